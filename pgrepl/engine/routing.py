"""Where an event goes: to the output, to the spool of a table that is still being copied, or nowhere.

Lines are formatted once, whichever way they go. With frames each transaction has one in the output, and in the spool
one for each table, since the spool of a table is printed by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from pgrepl import events
from pgrepl.engine.core import Core, Decision
from pgrepl.engine.output import Output
from pgrepl.engine.versions import Versions
from pgrepl.events import Event, Table, Transaction
from pgrepl.lsn import Lsn


class LineSpool(Protocol):
    """Lines of tables that are being copied, in order."""

    def append(self, table: int, commit_lsn: Lsn, line: bytes, *, rows: int = 0) -> None: ...

    def append_version(self, table: int, commit_lsn: Lsn, number: int) -> None: ...

    def entries(self, table: int) -> Iterator[tuple[int, bytes]]: ...


class _Frame:
    """How much of a transaction went one way, and in the spool the version that its last row is in."""

    __slots__ = ("begun", "rows", "version")

    def __init__(self) -> None:
        self.begun = False
        self.rows = 0
        self.version: Table | None = None


class Router:
    """Send the events of one transaction after the other where they belong.

    ``versions`` knows what the output was told of each table. ``frames`` asks for Begin and Commit around what is
    printed. ``printed`` is called after each row event that is printed, from the spool too, and may end the run.
    """

    def __init__(
        self,
        core: Core,
        output: Output,
        spool: LineSpool,
        versions: Versions,
        *,
        frames: bool,
        printed: Callable[[], None],
    ) -> None:
        self._core = core
        self._output = output
        self._spool = spool
        self._versions = versions
        # Of each table with a spool, the versions in it: what was told of the table before is known at the hand-over.
        self._spooled_versions: dict[int, list[tuple[Table, Transaction, int]]] = {}
        self._frames = frames
        self._printed = printed
        self._transaction: Transaction | None = None
        self._main = _Frame()
        self._spooled: dict[int, _Frame] = {}
        # Messages carry the seq of the next change, which does not say whether they came before a connection was lost:
        # how many with one seq have come over this connection, and how many have been dealt with.
        self._came = self._dealt = (0, 0)
        # A transaction that broke off: its frame has been begun already when it comes again.
        self._broken: tuple[Lsn, _Frame, dict[int, _Frame]] | None = None

    def begin(self, transaction: Transaction) -> None:
        """Begin a transaction."""
        self._transaction = transaction
        if self._broken is not None and self._broken[0] == transaction.commit_lsn:
            _, self._main, self._spooled = self._broken
        else:
            self._main, self._spooled, self._dealt = _Frame(), {}, (0, 0)
        self._came = (0, 0)
        self._broken = None

    def broken_off(self) -> None:
        """Take note that the stream broke off, perhaps in the middle of a transaction."""
        if self._transaction is not None:
            self._broken = (self._transaction.commit_lsn, self._main, self._spooled)
        self._transaction = None

    def route(self, event: Event) -> None:
        """Send one event where it belongs."""
        match event:
            case events.Insert() | events.Update() | events.Delete():
                decision = self._core.decide(event.table.oid, event.seq)
                if decision is Decision.EMIT:
                    self._open(self._main, None)
                    self._tell(event.table, event.transaction, event.seq)
                    self._main.rows += 1
                    self._output.emit(event)
                    self._printed()
                elif decision is Decision.SPOOL:
                    self._to_spool(event.table, event)
            case events.Truncate(tables):
                self._truncate(event, {table.oid: self._core.decide(table.oid, event.seq) for table in tables})
            case events.Message(_, _, transaction, _, seq):
                if transaction is None:
                    self._output.emit(event)
                elif seq is not None and not self._is_repeated(seq):
                    self._open(self._main, None)
                    self._output.emit(event)
            case _:
                self._output.emit(event)

    def _is_repeated(self, seq: int) -> bool:
        """Say whether a message was dealt with before a lost connection; else take note of it."""
        if self._core.is_replayed(seq):
            return True
        self._came = (seq, self._came[1] + 1 if self._came[0] == seq else 1)
        if self._came <= self._dealt:
            return True
        self._dealt = self._came
        return False

    def commit(self, end_lsn: Lsn) -> None:
        """End the transaction."""
        assert self._transaction is not None
        if self._frames:
            if self._main.begun:
                self._output.emit(events.Commit(self._transaction, end_lsn, self._main.rows))
            for table, frame in self._spooled.items():
                if self._core.whose(table) is not Decision.SPOOL:
                    # Dropped meanwhile, since the snapshot has it.
                    continue
                line = self._output.format(events.Commit(self._transaction, end_lsn, frame.rows))
                if line:
                    self._spool.append(table, self._transaction.commit_lsn, line)
        self._transaction = None

    def _truncate(self, event: events.Truncate, decisions: dict[int, Decision]) -> None:
        now = tuple(table for table in event.tables if decisions[table.oid] is Decision.EMIT)
        if now:
            self._open(self._main, None)
            for table in now:
                self._tell(table, event.transaction, event.seq)
            self._main.rows += 1
            self._output.emit(event._replace(tables=now))
        for table in event.tables:
            if decisions[table.oid] is Decision.SPOOL:
                self._to_spool(table, event._replace(tables=(table,)))

    def _tell(self, table: Table, transaction: Transaction, seq: int) -> None:
        """Print a schema event before a change in another version than the output was told of."""
        change = self._versions.changed(table, transaction, seq)
        if change is not None:
            self._output.emit(change)

    def _to_spool(self, table: Table, event: events.Change | events.Truncate) -> None:
        transaction = event.transaction
        frame = self._spooled.setdefault(table.oid, _Frame())
        self._open(frame, table.oid)
        if frame.version is not table:
            # Said in each transaction: those before it may be dropped.
            versions = self._spooled_versions.setdefault(table.oid, [])
            if not versions or versions[-1][0] is not table:
                versions.append((table, transaction, event.seq))
            self._spool.append_version(table.oid, transaction.commit_lsn, len(versions) - 1)
            frame.version = table
        frame.rows += 1
        line = self._output.format(event)
        if line:
            # TRUNCATE is not one.
            rows = 0 if isinstance(event, events.Truncate) else 1
            self._spool.append(table.oid, transaction.commit_lsn, line, rows=rows)

    def hand_over(self, table: int) -> None:
        """Print what was spooled of a table."""
        versions = self._spooled_versions.pop(table, [])
        for number, line in self._spool.entries(table):
            if not line:
                self._tell(*versions[number])
                continue
            self._output.add(line)
            if number:
                self._printed()
            if self._output.full:
                self._output.write()

    def _open(self, frame: _Frame, table: int | None) -> None:
        if frame.begun or not self._frames:
            return
        frame.begun = True
        assert self._transaction is not None
        line = self._output.format(events.Begin(self._transaction))
        if table is None:
            self._output.add(line)
        elif line:
            self._spool.append(table, self._transaction.commit_lsn, line)
