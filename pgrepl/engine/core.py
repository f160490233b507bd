"""The engine's decisions, without its deeds: a state machine that is told what happened and answers what to do.

It opens no connection, reads no clock and writes no file. Drivers tell it what happened (a transaction began, a copy
ended, bytes became durable, a second passed) and carry out the actions it answers with. So the same decisions run
against a real server and against a model of one that crashes at every step.

Positions follow one rule: P means that every transaction with ``commit_lsn < P`` is done. See docs/engine.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from pgrepl.lsn import Lsn

STORE_INTERVAL = 1.0
"""Seconds between two stored positions, at the least."""

IDLE_BYTES = 1 << 20
"""Bytes of WAL after which a position is stored although nothing was printed: storing writes WAL itself."""


class Phase(Enum):
    """Where a table stands. What other tools store as finished_copy is ``INIT`` here: it is copied again."""

    INIT = "init"
    DATA_SYNC = "data_sync"
    SYNC_DONE = "sync_done"
    READY = "ready"
    ERRORED = "errored"


@dataclass
class TableState:
    """A table of the publication.

    ``sync_lsn`` belongs to ``SYNC_DONE``: changes of transactions from there on are ours. ``copy`` is the number of the
    copy that is going on, 0 for the one of a fresh start; ``snapshot_lsn`` is its consistent point, once it is known,
    and ``copied`` says that all its rows have been printed. ``retry_at`` belongs to ``ERRORED``: when it is copied
    again, in seconds since 1970; None for never.
    """

    phase: Phase
    sync_lsn: Lsn | None = None
    copy: int = 0
    snapshot_lsn: Lsn | None = None
    copied: bool = False
    retry_at: float | None = None


class Decision(Enum):
    """What becomes of a change."""

    EMIT = "emit"
    SPOOL = "spool"
    SKIP = "skip"


@dataclass(frozen=True)
class Copy:
    """Copy these tables, out of one snapshot; nothing has been printed of them that counts.

    What is heard of the copy comes with its number: a table may be copied again before the copy before has ended.
    """

    tables: tuple[int, ...]
    number: int


@dataclass(frozen=True)
class MarkCopying:
    """Store that these tables are being copied, before their copy begins."""

    tables: tuple[int, ...]


@dataclass(frozen=True)
class DropSpool:
    """Forget the spooled changes of a table from transactions with ``commit_lsn < before``; None for all."""

    table: int
    before: Lsn | None


@dataclass(frozen=True)
class Forget:
    """Remove what is stored of tables that have left the publication."""

    tables: tuple[int, ...]


@dataclass(frozen=True)
class HandOver:
    """Print the spooled changes of these tables and make them durable; then answer with ``handed_over``."""

    tables: tuple[int, ...]


@dataclass(frozen=True)
class StoreReady:
    """Store in one transaction that these tables are ready, and the position; then answer with ``stored_at``."""

    tables: tuple[int, ...]
    position: Lsn


@dataclass(frozen=True)
class StoreCaughtUp:
    """Store that tables which another tool left in sync_done are ready: the stored position is not before theirs."""

    tables: tuple[int, ...]


@dataclass(frozen=True)
class StorePosition:
    """Store the position; then answer with ``stored_at``."""

    position: Lsn


@dataclass(frozen=True)
class Confirm:
    """Tell the server that every transaction before the position is done."""

    position: Lsn


Action: TypeAlias = (
    Copy | MarkCopying | DropSpool | Forget | HandOver | StoreReady | StoreCaughtUp | StorePosition | Confirm
)


class Core:
    """Decide about one stream and the tables in it.

    ``tables`` is what the store knows, ``position`` the stored position from which the stream is read;
    ``output_position`` is the position up to which the output already holds everything (a file that was written before
    a crash may be ahead of the store), equal to ``position`` where the output cannot tell.
    """

    def __init__(
        self,
        tables: Mapping[int, TableState],
        position: Lsn,
        output_position: Lsn | None = None,
        *,
        store_interval: float = STORE_INTERVAL,
        idle_bytes: int = IDLE_BYTES,
    ) -> None:
        self.tables = dict(tables)
        self._store_interval = store_interval
        self._idle_bytes = idle_bytes
        self.done = max(position, output_position or position)
        self.stored = position
        self.confirmed = Lsn(0)
        self._printed_until = self.done
        self._durable = self.done
        self._commit_lsn: Lsn | None = None
        self._seq = 0
        # Of a transaction whose end was lost with a connection: how many of its changes have been dealt with.
        self._partial: tuple[Lsn, int] | None = None
        self._handing_over: tuple[int, ...] = ()
        self._copies = 0
        # Tables whose copy has ended: there are few of them, and each commit looks at them.
        self._copied: set[int] = set()
        # Tables that were missing when the publication was read, and the end of the WAL then.
        self._left: dict[int, Lsn] = {}
        self._changed_since_store = False
        self._last_store = float("-inf")

    # Where to read from.

    def resume_position(self) -> Lsn:
        """Say where the stream is to be read from, at the start and after a lost connection."""
        return self.done

    @property
    def read_until(self) -> Lsn:
        """Say before which position everything that the output or the spool has something of lies."""
        return self.done if self._partial is None else max(self.done, Lsn(self._partial[0] + 1))

    @property
    def received(self) -> Lsn:
        """Say before which position everything was committed of which the stream has brought something.

        A snapshot that is begun after this was asked has all of it. May be asked from another thread.
        """
        commit_lsn = self._commit_lsn
        return self.done if commit_lsn is None else max(self.done, Lsn(commit_lsn + 1))

    # The stream.

    @property
    def in_transaction(self) -> bool:
        """Whether the stream is in the middle of a transaction."""
        return self._commit_lsn is not None

    @property
    def at_boundary(self) -> bool:
        """Whether everything that was printed belongs to whole transactions, so that a position can stand for it."""
        return self._commit_lsn is None and self._partial is None

    def begin(self, commit_lsn: Lsn) -> None:
        """Take note that the changes of a transaction follow."""
        self._commit_lsn = commit_lsn
        self._seq = 0

    def decide(self, table: int, seq: int) -> Decision:
        """Decide about change ``seq`` of the transaction, as far as it concerns a table."""
        assert self._commit_lsn is not None
        assert not self._handing_over, "a hand-over is one step"
        self._seq = seq + 1
        if self.is_replayed(seq):
            return Decision.SKIP
        decision = self._owner(table, self._commit_lsn)
        if decision is Decision.EMIT:
            self._changed_since_store = True
        return decision

    def is_replayed(self, seq: int) -> bool:
        """Whether change ``seq`` was dealt with before: the output has it, or it came before a lost connection."""
        assert self._commit_lsn is not None
        replayed = self._partial is not None and self._partial[0] == self._commit_lsn and seq < self._partial[1]
        return replayed or self._already_printed(self._commit_lsn)

    def whose(self, table: int) -> Decision:
        """Say what becomes of what concerns a table in this transaction and is no change of a row."""
        assert self._commit_lsn is not None
        return self._owner(table, self._commit_lsn)

    def _owner(self, table: int, commit_lsn: Lsn) -> Decision:
        state = self.tables.get(table)
        if state is None:
            return Decision.SKIP
        match state.phase:
            case Phase.READY:
                return Decision.EMIT
            case Phase.SYNC_DONE:
                assert state.sync_lsn is not None
                return Decision.EMIT if commit_lsn >= state.sync_lsn else Decision.SKIP
            case Phase.DATA_SYNC:
                if state.snapshot_lsn is not None and self._in_snapshot(commit_lsn, state.snapshot_lsn):
                    return Decision.SKIP
                return Decision.SPOOL
            case Phase.INIT | Phase.ERRORED:
                # A copy that begins later has a snapshot that is younger than this.
                return Decision.SKIP

    def _already_printed(self, commit_lsn: Lsn) -> bool:
        return commit_lsn < self._printed_until

    @staticmethod
    def _in_snapshot(commit_lsn: Lsn, snapshot_lsn: Lsn) -> bool:
        return commit_lsn < snapshot_lsn

    def commit(self, end_lsn: Lsn) -> list[Action]:
        """Take note that the transaction is whole; the next WAL record starts at ``end_lsn``."""
        self._commit_lsn = None
        self._partial = None
        return self._advance(end_lsn)

    def keepalive(self, wal_end: Lsn) -> list[Action]:
        """Take note that the server has sent everything before ``wal_end``; inside a transaction that says nothing."""
        return [] if self.in_transaction else self._advance(wal_end)

    def connection_lost(self) -> None:
        """Take note that the stream broke off; it is read again from ``resume_position``."""
        if self._commit_lsn is not None:
            if self._partial is None or self._partial[0] != self._commit_lsn or self._seq > self._partial[1]:
                self._partial = (self._commit_lsn, self._seq)
            self._commit_lsn = None

    def _advance(self, position: Lsn) -> list[Action]:
        if position > self.done:
            self.done = position
        return self._settle()

    # Copies.

    def copies_due(self) -> list[Action]:
        """Begin to copy what has to be copied: mark it first, so that a crash finds it out."""
        due = tuple(oid for oid, state in self.tables.items() if state.phase is Phase.INIT)
        if not due:
            return []
        return self._copy(due)

    def retries_due(self, now: float) -> list[Action]:
        """Begin to copy errored tables whose time has come; ``now`` is in seconds since 1970."""
        due = [
            oid
            for oid, state in self.tables.items()
            if state.phase is Phase.ERRORED and state.retry_at is not None and state.retry_at <= now
        ]
        for oid in due:
            self.tables[oid] = TableState(Phase.INIT)
        return self.copies_due() if due else []

    def _copy(self, tables: tuple[int, ...]) -> list[Action]:
        self._copies += 1
        for oid in tables:
            self.tables[oid] = TableState(Phase.DATA_SYNC, copy=self._copies)
        return [MarkCopying(tables), Copy(tables, self._copies)]

    def is_copying(self, table: int, number: int) -> bool:
        """Whether what a copy tells of a table counts: another may have been begun since, or none be wanted."""
        state = self.tables.get(table)
        return state is not None and state.phase is Phase.DATA_SYNC and state.copy == number

    def copy_waits(self, table: int, number: int, received: Lsn) -> list[Action]:
        """Take note that a copy has no snapshot yet, and that the one it gets will hold what was ``received`` then."""
        return [DropSpool(table, received)] if self.is_copying(table, number) else []

    def copy_begins(self, table: int, number: int, snapshot_lsn: Lsn) -> list[Action]:
        """Take note at which position the copy of a table is consistent; what the snapshot holds is not repeated."""
        if not self.is_copying(table, number):
            return []
        self.tables[table].snapshot_lsn = snapshot_lsn
        return [DropSpool(table, snapshot_lsn)]

    def copy_ends(self, table: int, number: int) -> list[Action]:
        """Take note that all rows of a table have been printed."""
        if not self.is_copying(table, number):
            return []
        self.tables[table].copied = True
        self._copied.add(table)
        return self._settle()

    def copy_lost(self, tables: Iterable[int], number: int) -> list[Action]:
        """Take note that a copy of tables cannot be finished; it begins anew with another snapshot."""
        lost = tuple(oid for oid in tables if self.is_copying(oid, number))
        if not lost:
            return []
        # The other snapshot will hold what has been received so far.
        return [*(DropSpool(oid, self.received) for oid in lost), *self._copy(lost)]

    def copy_failed(self, table: int, number: int) -> list[Action]:
        """Take note that a table cannot be copied at all; the stream goes on without it."""
        if not self.is_copying(table, number):
            return []
        self.tables[table] = TableState(Phase.ERRORED)
        return [DropSpool(table, None)]

    def copy_gone(self, table: int, number: int) -> list[Action]:
        """Take note that a table is not in the publication that the snapshot of its copy sees."""
        return self._forget((table,)) if self.is_copying(table, number) else []

    def _settle(self) -> list[Action]:
        """Between transactions: hand over the tables whose copy the stream has reached."""
        if not self._copied or self._handing_over or not self.at_boundary:
            return []
        ready = tuple(oid for oid in sorted(self._copied) if self._is_reached(oid))
        if not ready:
            return []
        self._handing_over = ready
        return [HandOver(ready)]

    def _is_reached(self, table: int) -> bool:
        state = self.tables.get(table)
        return (
            state is not None
            and state.phase is Phase.DATA_SYNC
            and state.copied
            and state.snapshot_lsn is not None
            and self.done >= state.snapshot_lsn
        )

    def handed_over(self) -> list[Action]:
        """Take note that the tables' spooled changes are printed and durable, and all up to ``done``."""
        tables, self._handing_over = self._handing_over, ()
        self._copied.difference_update(tables)
        for oid in tables:
            self.tables[oid] = TableState(Phase.READY)
        self._durable = max(self._durable, self.done)
        return [StoreReady(tables, self.done)]

    # Tables that come and go.

    def tables_now(self, published: Iterable[int], read_at: Lsn) -> list[Action]:
        """Compare with what the publication has; the WAL had come to ``read_at`` when that had been read.

        New tables are to be copied, and so are those that have come back: their changes of meanwhile are missing.
        """
        wanted = set(published)
        actions: list[Action] = []
        for oid in sorted(wanted):
            if oid in self._left:
                del self._left[oid]
                self.tables[oid] = TableState(Phase.INIT)
                actions.append(DropSpool(oid, None))
            elif oid not in self.tables:
                self.tables[oid] = TableState(Phase.INIT)
        for oid in self.tables:
            if oid not in wanted:
                self.table_left(oid, read_at)
        return actions

    def table_left(self, table: int, read_at: Lsn) -> None:
        """Take note that a table was not in the publication, which was read before the WAL had come to ``read_at``.

        Its changes of before still count, so it is forgotten when all that is before has been stored.
        """
        self._left.setdefault(table, read_at)

    def forget_left(self) -> list[Action]:
        """Forget the tables that have left the publication, as far as the stream has passed that point."""
        return self._forget(tuple(oid for oid, read_at in self._left.items() if self.stored >= read_at))

    def _forget(self, tables: tuple[int, ...]) -> list[Action]:
        for oid in tables:
            self._left.pop(oid, None)
            self._copied.discard(oid)
            del self.tables[oid]
        return [Forget(tables), *(DropSpool(oid, None) for oid in tables)] if tables else []

    @property
    def copying(self) -> bool:
        """Whether a table is still being copied or handed over."""
        return any(state.phase in (Phase.INIT, Phase.DATA_SYNC) for state in self.tables.values())

    @property
    def awaits_stream(self) -> bool:
        """Whether a copy is, or will be, of a later moment than the stream has come to."""
        return any(
            state.phase is Phase.INIT
            or (state.phase is Phase.DATA_SYNC and (state.snapshot_lsn is None or state.snapshot_lsn > self.done))
            for state in self.tables.values()
        )

    @property
    def awaits_rows(self) -> bool:
        """Whether rows of a copy are still to come: its end, and then the end of a transaction, empties the spool."""
        return any(
            state.phase is Phase.INIT or (state.phase is Phase.DATA_SYNC and not state.copied)
            for state in self.tables.values()
        )

    # What is durable.

    def durable(self, position: Lsn, now: float, *, at_once: bool = False) -> list[Action]:
        """Take note that the output up to ``position`` is durable; ``now`` is a clock in seconds.

        The position is stored before it is confirmed, always, so the slot is never ahead of the store by our own doing.
        """
        self._durable = max(self._durable, position)
        if self._durable <= self.stored:
            return []
        due = now - self._last_store >= self._store_interval
        worth_it = self._changed_since_store or self._durable - self.stored >= self._idle_bytes
        if not at_once and not (due and worth_it):
            return []
        self._last_store = now
        self._changed_since_store = False
        return [StorePosition(self._durable)]

    def stored_at(self, position: Lsn) -> list[Action]:
        """Take note that the position is stored."""
        self.stored = max(self.stored, position)
        actions: list[Action] = []
        if self.stored > self.confirmed:
            self.confirmed = self.stored
            actions.append(Confirm(self.stored))
        # No sooner: what is read again from the stored position must not be printed for a table that was ahead of it.
        caught_up = tuple(
            oid
            for oid, state in self.tables.items()
            if state.phase is Phase.SYNC_DONE and state.sync_lsn is not None and self.stored >= state.sync_lsn
        )
        for oid in caught_up:
            self.tables[oid] = TableState(Phase.READY)
        return [*actions, StoreCaughtUp(caught_up)] if caught_up else actions
