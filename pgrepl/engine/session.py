"""One slot and what is read from it: the driver that carries out what the core decides.

The order in which things are done is what the promises rest on; docs/engine.md gives the reasons.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from typing import TypeVar

import psycopg

from pgrepl import connection as sql_connection
from pgrepl import events
from pgrepl.catalog import blockers, server, slots
from pgrepl.catalog.publications import PublishedTable
from pgrepl.catalog.server import Server
from pgrepl.connection import is_lost, one_line
from pgrepl.engine import copying, preflight, relations, resume
from pgrepl.engine.changes import Changes
from pgrepl.engine.copying import Copier, Inbox, Prepared
from pgrepl.engine.core import (
    Action,
    Confirm,
    Copy,
    Core,
    DropSpool,
    HandOver,
    MarkCopying,
    Phase,
    StoreCaughtUp,
    StorePosition,
    StoreReady,
    TableState,
)
from pgrepl.engine.routing import Router
from pgrepl.engine.run import End, Reason, Run, StartAgain
from pgrepl.engine.snapshot import SnapshotUnusable
from pgrepl.errors import ConnectError, OperationError, PositionError
from pgrepl.events import Event, Table
from pgrepl.lsn import Lsn
from pgrepl.pgoutput import messages
from pgrepl.pgoutput.decoder import decode
from pgrepl.pgoutput.walsender import Keepalive, parse_copy_data
from pgrepl.replication.receiver import Receiver
from pgrepl.replication.walsender import CreatedSlot, Walsender
from pgrepl.sinks.file import FileSink
from pgrepl.stores import Identity, StoredState, StoredTable
from pgrepl.stores.memory import MemoryStore

_STEP = 0.2
_FIRST_RETRY = 0.5
_LONGEST_RETRY = 30.0
_TELL_BLOCKERS_AFTER = 2.0
_TELL_BLOCKERS_EVERY = 10.0
_SLOT_PATIENCE = 10.0
_HOLDER_PATIENCE = 5.0
_FLUSH_PATIENCE = 1.0


_T = TypeVar("_T")


class Session:
    """One slot and what is read from it; with a persistent slot over as many connections as it takes."""

    def __init__(self, run: Run, resources: ExitStack) -> None:
        self._run = run
        self._options = run.options
        self._output = run.output
        self._progress = run.progress
        self._observer = run.observer
        self._resources = resources
        self._persistent = run.options.slot is not None
        # Set when the run is to end with the transaction that is being written.
        self._finish: Reason | None = None
        self._receiver: Receiver | None = None
        self._until: Lsn | None = None
        self._next_refresh = 0.0
        self._known: dict[int, Table] = {}
        self._removed: dict[int, Lsn] = {}

    # The start.

    def run(self) -> None:
        """Prepare and stream. Ends with End, StartAgain, or an error."""
        options = self._options
        self._admin = self._open()
        self._wait_for_old_slot()
        facts = preflight.check_server(self._admin, slots=0 if self._persistent else 1)
        tables = preflight.check_publications(self._admin, options.publications, options.selection)
        if options.snapshot != "never":
            preflight.check_readable(self._admin, tables)
        self._run.check_end()
        self._inbox = Inbox(self._nudge)
        self._copier = Copier(
            self._run.target, options.publications, options.selection, options.jobs, self._output.format, self._inbox
        )
        self._resources.callback(self._copier.stop)
        walsender = self._begin(facts, tables)
        self._changes = Changes(
            lambda relation, transaction: relations.resolve(self._admin, relation, transaction.xid),
            printed=self._wants,
            known=self._known,
            appeared=self._appeared,
        )
        self._router = Router(
            self._core, self._output, self._run.spool, frames=options.transactions, printed=self._row_printed
        )
        self._output.boundary(self._core.done)
        self._perform(self._core.copies_due())
        try:
            while True:
                try:
                    self._stream(walsender)
                except (ConnectError, psycopg.OperationalError) as error:
                    if not is_lost(error):
                        raise
                    walsender = self._after_loss(error)
        except End:
            self._end_well()
            raise

    def _open(self, *, row_security: bool = True) -> psycopg.Connection:
        connection = sql_connection.connect(self._run.target, "pgrepl tail", row_security=row_security)
        self._resources.callback(connection.close)
        return connection

    def _wait_for_old_slot(self) -> None:
        """Give the server time to notice that the last session's connection, and so its temporary slot, is gone."""
        query = "SELECT 1 FROM pg_catalog.pg_replication_slots WHERE slot_name = %s AND temporary"
        give_up = time.monotonic() + _SLOT_PATIENCE
        name = self._run.slot_name
        while name and time.monotonic() < give_up and self._admin.execute(query, [name]).fetchone():
            self._run.pause(_STEP / 4)

    def _begin(self, facts: Server, tables: list[PublishedTable]) -> Walsender:
        """Decide where to begin, make the slot where there is none, and set up the core."""
        name = self._options.slot or f"pgrepl_tmp_{os.getpid()}_{secrets.token_hex(4)}"
        self._identity = Identity(
            facts.system_identifier or "", facts.timeline or 0, name, ",".join(self._options.publications)
        )
        state = self._run.store.load() if self._persistent else StoredState()
        how = self._resume(state, facts)
        if how.how == "fresh":
            if self._persistent and isinstance(self._run.store, MemoryStore):
                raise OperationError(
                    f"slot {name} does not exist",
                    hint=f"'pgrepl slots create {name} --publication …' makes it; without --slot none is needed",
                )
            return self._fresh(name, tables)
        assert how.position is not None
        if how.how == "take_over":
            self._observer.notice(f"slot {name} is there and no position is stored: going on from {how.position}")
            self._store(lambda: self._run.store.begin(self._identity, how.position or Lsn(0), ()))
        stored = {oid: _state(table) for oid, table in state.tables.items()}
        return self._resumed(how.position, stored, tables, state.copies)

    def _resume(self, state: StoredState, facts: Server) -> resume.Resume:
        if not self._persistent:
            return resume.Resume("fresh", None)
        slot = next((slot for slot in slots.all_of(self._admin) if slot.name == self._options.slot), None)
        found = None
        if slot is not None:
            if slot.database != facts.database:
                raise OperationError(
                    f"the slot {slot.name} belongs to database {slot.database}", hint="connect to that database"
                )
            found = resume.SlotFacts(slot.confirmed_flush_lsn, slot.lost, slot.verdict.text if slot.lost else None)
        wal_end, _ = server.wal_ends(self._admin)
        return resume.decide(
            state, found, self._identity, wal_end, accept_slot_position=self._options.accept_slot_position
        )

    def _fresh(self, name: str, tables: list[PublishedTable]) -> Walsender:
        """Make the slot and take the snapshot that it exports."""
        options = self._options
        copy = options.snapshot != "never"
        if copy and self._run.slot_name is None and not self._observer.may_copy(tables):
            raise OperationError("nothing was copied, as you said", hint="--snapshot never prints changes only")
        walsender = self._walsender(name)
        slot = walsender.create_slot(name, temporary=not self._persistent, waiting=self._building(walsender))
        self._run.slot_name = name
        try:
            prepared = self._prepare(slot, tables) if copy else None
        except BaseException as error:
            if self._persistent:
                # Nothing is stored of it yet, and nobody else can know it.
                walsender.drop_slot(name)
            if isinstance(error, SnapshotUnusable):
                raise StartAgain(str(error)) from None
            raise
        published = prepared.tables if prepared else tables
        oids = [table.oid for table in published]
        self._store(lambda: self._run.store.begin(self._identity, slot.consistent_point, oids if copy else ()))
        if not copy:
            self._store(lambda: self._run.store.ready(oids, slot.consistent_point))
        phase = Phase.DATA_SYNC if copy else Phase.READY
        states = {table.oid: TableState(phase) for table in published}
        self._known = dict(prepared.known) if prepared else {}
        self._setup_core(states, slot.consistent_point, {})
        if prepared is not None:
            for table in published:
                self._perform(self._core.copy_begins(table.oid, slot.consistent_point))
            self._expect_copies(published)
            self._copier.run(prepared)
        return walsender

    def _prepare(self, slot: CreatedSlot, before: list[PublishedTable]) -> Prepared:
        if slot.snapshot_name is None:
            raise SnapshotUnusable("the server exported no snapshot with the slot")
        return self._copier.prepare(slot.snapshot_name, slot.consistent_point, None, before)

    def _resumed(
        self,
        position: Lsn,
        stored: dict[int, TableState],
        tables: list[PublishedTable],
        copies: Mapping[int, int],
    ) -> Walsender:
        """Go on from a stored position; what was being copied is copied again."""
        name = self._identity.slot
        self._run.slot_name = name
        self._setup_core(stored, position, copies)
        if self._options.snapshot == "never":
            for table in tables:
                self._core.tables.setdefault(table.oid, TableState(Phase.READY))
        self._removed = {oid: server.wal_ends(self._admin)[0] for oid in self._core.tables_now(t.oid for t in tables)}
        due = [table for table in tables if self._core.tables[table.oid].phase is Phase.INIT]
        if due and not self._observer.may_copy(due):
            raise OperationError("nothing was copied, as you said", hint="--snapshot never prints changes only")
        self._expect_copies(due)
        return self._walsender(name)

    def _setup_core(self, states: dict[int, TableState], position: Lsn, copies: Mapping[int, int]) -> None:
        self._run.copies.update(copies)
        output_position = None
        sink = self._run.sink
        if isinstance(sink, FileSink) and not isinstance(self._run.store, MemoryStore):
            held = sink.adopt(self._identity.system_identifier, self._identity.slot, self._options.format_name)
            for oid, count in held.copies.items():
                self._run.copies[oid] = max(self._run.copies.get(oid, 0), count)
            # Shared with the sidecar, which is written with each sync.
            held.copies = self._run.copies
            output_position = held.position or None
        # The memory store costs nothing, so nothing is saved up for it.
        eager = {} if self._persistent else {"store_interval": 0.0, "idle_bytes": 0}
        self._core = Core(states, position, output_position, **eager)  # type: ignore[arg-type]
        self._done()
        until = self._options.until
        self._until = self._now() if until == "now" else until

    def _expect_copies(self, tables: Collection[PublishedTable]) -> None:
        if tables:
            self._progress.phase = "copying"
            self._progress.tables += len(tables)
            self._progress.rows_to_copy += sum(table.rows or 0 for table in tables)

    def _walsender(self, slot: str) -> Walsender:
        walsender = Walsender.open(self._run.target, f"pgrepl tail ({slot})")
        self._resources.callback(walsender.close)
        # Asked now: after the slot's creation the next command ends the export of its snapshot.
        self._silence = walsender.wal_sender_timeout()
        return walsender

    def _building(self, walsender: Walsender) -> Callable[[float], None]:
        """While the slot is being built: end when told to, and say who makes it wait."""

        def waiting(waited: float) -> None:
            self._run.check_end()
            now = time.monotonic()
            if waited < _TELL_BLOCKERS_AFTER or now - self._run.told_blockers < _TELL_BLOCKERS_EVERY:
                return
            self._run.told_blockers = now
            found = blockers.of_backend(self._admin, walsender.pid)
            what = "; ".join(str(blocker) for blocker in found) or "transactions that are still running"
            self._observer.warning(
                f"the slot cannot be built yet, for {waited:.0f} s now it waits for {what}",
                hint="it goes on by itself when they end",
            )

        return waiting

    def _now(self) -> Lsn:
        # An asynchronous commit is in the WAL before it is flushed, and the stream has what is flushed.
        give_up = time.monotonic() + _FLUSH_PATIENCE
        flushed, wanted = server.wal_ends(self._admin)
        while flushed < wanted and time.monotonic() < give_up:
            time.sleep(_STEP / 10)
            flushed, _ = server.wal_ends(self._admin)
        return flushed

    # The stream.

    def _stream(self, walsender: Walsender) -> None:
        """Read the stream over one connection, to its end or that of the run."""
        options = self._options
        only = options.snapshot == "only"
        if not only:
            guard = self._open()
            self._start_replication(walsender)
            self._receiver = Receiver(
                walsender, self._core.resume_position(), wal_sender_timeout=self._silence, guard=guard.pgconn
            )
            receiver = self._receiver
            self._resources.callback(receiver.close)
            receiver.start()
            if self._until is not None:
                receiver.ask_for_keepalives()
        else:
            walsender.close()
        self._run.delay = _FIRST_RETRY
        while True:
            if only and not self._core.copying:
                raise End("snapshot")
            self._end_between()
            payloads = self._receive()
            while (news := self._inbox.take()) is not None:
                self._copied(news)
            if payloads is not None:
                self._payloads(payloads)
            self._output.write()
            self._output.tick()
            self._perform(self._core.durable(self._output.durable(), time.monotonic()))
            self._forget_removed()
            self._refresh_when_due()
            self._progress.phase = "copying" if self._core.copying else "streaming"
            self._progress.spooled = self._run.spool.used
            self._observer.progress(self._progress)

    def _receive(self) -> list[bytes] | None:
        if self._receiver is None:
            self._run.pause(_STEP / 10)
            return None
        if self._run.spool.full:
            # Only the end of a copy makes room; the server waits meanwhile, and is told that we are alive.
            self._receiver.check()
            time.sleep(_STEP / 4)
            return None
        payloads = self._receiver.batch(self._patience())
        self._progress.received = self._receiver.received
        return payloads

    def _start_replication(self, walsender: Walsender) -> None:
        """Start, waiting for a while for another walsender on the slot to end, which may be one of ours that died."""
        position = self._core.resume_position()
        give_up = time.monotonic() + _HOLDER_PATIENCE
        while True:
            try:
                walsender.start_replication(self._identity.slot, position, self._options.publications)
                return
            except OperationError as error:
                if error.sqlstate != "55006" or time.monotonic() >= give_up:
                    raise
            self._run.pause(_STEP)

    def _after_loss(self, error: Exception) -> Walsender:
        """Deal with a lost connection: find another, or end where the slot is lost with it."""
        self._changes.broken_off()
        self._router.broken_off()
        self._core.connection_lost()
        self._receiver = None
        if not self._persistent:
            if self._core.copying:
                raise StartAgain(one_line(error))
            # What has been read is printed, also the beginning of a transaction that did not arrive whole.
            self._output.close()
            raise PositionError(
                f"{one_line(error)}; the temporary slot is gone with it,"
                f" and changes from {self._output.printed} on cannot be read any more",
                hint="start again: a new snapshot is taken, and changes in between are not seen;"
                " --store postgres keeps the position",
                sqlstate=getattr(error, "sqlstate", None),
            ) from None
        told = False
        while True:
            delay = self._run.next_delay()
            if not told:
                self._observer.warning(f"{one_line(error)}; connecting again")
                told = True
            self._pause_writing(delay)
            try:
                self._admin = self._open()
                facts = preflight.check_server(self._admin, slots=0)
                self._check_same(facts)
                walsender = self._walsender(self._identity.slot)
            except (ConnectError, psycopg.OperationalError) as again:
                if not is_lost(again):
                    raise
                continue
            self._observer.notice(f"connected again, going on from {self._core.resume_position()}")
            return walsender

    def _pause_writing(self, seconds: float) -> None:
        """Wait, but let copies that are still going on be printed."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._run.check_end()
            while (news := self._inbox.take()) is not None:
                self._copied(news)
            self._output.write()
            self._output.tick()
            time.sleep(_STEP / 4)

    def _check_same(self, facts: Server) -> None:
        """Make sure that what answers now is the server, and the slot, that the connection was lost to."""
        if facts.system_identifier != self._identity.system_identifier:
            raise PositionError(
                f"the server is {facts.system_identifier} now, it was {self._identity.system_identifier}",
                hint="another server answers at this address",
            )
        slot = next((slot for slot in slots.all_of(self._admin) if slot.name == self._identity.slot), None)
        if slot is None or slot.lost or slot.confirmed_flush_lsn is None:
            raise PositionError(
                f"the slot {self._identity.slot} {'is gone' if slot is None else 'is lost'},"
                f" and changes from {self._core.done} on with it",
                hint="reset the state of all tables ('pgrepl state reset --all') and take a new snapshot",
            )
        if slot.confirmed_flush_lsn > self._core.done:
            raise PositionError(
                f"the slot {slot.name} is at {slot.confirmed_flush_lsn}, beyond {self._core.done}:"
                " somebody else has read it",
                hint="changes in between are gone; take a new snapshot",
            )

    def _patience(self) -> float:
        if self._run.deadline is None:
            return _STEP
        return max(0.0, min(_STEP, self._run.deadline - time.monotonic()))

    def _nudge(self) -> None:
        receiver = self._receiver
        if receiver is not None:
            receiver.nudge()

    def _end_between(self) -> None:
        """End the run for a signal or the clock, now or with the transaction that is open."""
        self._finish = self._finish or self._run.ending()
        if self._finish is not None and not self._core.in_transaction:
            raise End(self._finish)

    def _payloads(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            framed = parse_copy_data(payload)
            if isinstance(framed, Keepalive):
                if not self._core.in_transaction:
                    # All that the server had to send before wal_end has come, and has been handled.
                    self._perform(self._core.keepalive(framed.wal_end))
                    self._done()
                    self._end_at(framed.wal_end)
                continue
            message = decode(framed.data)
            kind = type(message)
            if kind is messages.Begin:
                assert isinstance(message, messages.Begin)
                self._end_at(message.final_lsn)
                self._changes.apply(framed.start, message)
                self._core.begin(message.final_lsn)
                transaction = self._changes.transaction
                assert transaction is not None
                self._router.begin(transaction)
                continue
            for event in self._changes.apply(framed.start, message):
                self._router.route(event)
            if kind is messages.Commit:
                assert isinstance(message, messages.Commit)
                self._router.commit(message.end_lsn)
                self._progress.transactions += 1
                actions = self._core.commit(message.end_lsn)
                self._done()
                self._perform(actions)
                self._end_between()
            if self._output.full:
                self._output.write()

    def _end_at(self, position: Lsn) -> None:
        if self._until is not None and position >= self._until and not self._core.copying:
            raise End("until")

    def _done(self) -> None:
        if self._core.at_boundary:
            self._output.boundary(self._core.done)
        self._progress.position = self._core.done

    def _row_printed(self, _event: Event) -> None:
        self._progress.rows += 1
        limit = self._options.limit
        if limit is not None and self._progress.rows >= limit:
            if self._options.exact_limit:
                raise End("limit")
            self._finish = "limit"

    # Copies.

    def _copied(self, news: copying.News) -> None:
        """Take in what a copy has to tell."""
        if not self._persistent and self._receiver is not None:
            # Without its stream the copy is worth nothing: another may as well begin now.
            self._receiver.check()
        match news:
            case copying.Begins(table, snapshot_lsn):
                if table.oid not in self._core.tables:
                    return
                attempt = self._run.copies[table.oid] = self._run.copies.get(table.oid, 0) + 1
                self._changes.knows(table)
                self._perform(self._core.copy_begins(table.oid, snapshot_lsn))
                if self._until is not None:
                    self._until = max(self._until, snapshot_lsn)
                self._store(lambda: self._run.store.schema(table, Lsn(0)))
                self._output.emit(events.SnapshotBegin(table, attempt, snapshot_lsn))
            case copying.Rows(oid, lines, count):
                if oid in self._core.tables:
                    self._rows(lines, count)
            case copying.Ends(table, snapshot_lsn, rows):
                if table.oid not in self._core.tables:
                    return
                attempt = self._run.copies[table.oid]
                self._output.emit(events.SnapshotEnd(table, attempt, rows, snapshot_lsn))
                self._progress.tables_done += 1
                self._perform(self._core.copy_ends(table.oid))
            case copying.Lost(oids, reason):
                self._observer.warning(f"{reason}; the copy begins again")
                if not self._persistent and self._receiver is None:
                    raise StartAgain(reason)
                for oid in oids:
                    if oid in self._core.tables:
                        self._perform(self._core.copy_lost(oid))
            case copying.Gone(oids):
                for oid in oids:
                    self._perform(self._core.forget(oid))
            case copying.Failed(oid, error):
                if not self._persistent:
                    raise error
                self._observer.warning(f"{error}; the stream goes on without this table", hint=error.hint)
                self._store(lambda: self._run.store.errored(oid, str(error), error.hint))
                self._perform(self._core.copy_failed(oid))
        self._done()
        if self._output.full:
            self._output.write()

    def _rows(self, lines: bytes, count: int) -> None:
        limit = self._options.limit
        if limit is not None and self._progress.rows + count >= limit:
            wanted = limit - self._progress.rows
            kept = b"".join(lines.splitlines(keepends=True)[:wanted])
            self._output.add(kept)
            self._progress.rows += wanted
            raise End("limit")
        self._output.add(lines)
        self._progress.rows += count
        self._progress.rows_copied += count
        self._run.check_end()

    # What the core decides.

    def _perform(self, actions: list[Action]) -> None:
        store = self._run.store
        for action in actions:
            match action:
                case MarkCopying(tables):
                    self._store(lambda tables=tables: store.copying(tables))  # type: ignore[misc]
                case Copy(tables):
                    self._copier.copy(tables)
                case DropSpool(table, before):
                    self._run.spool.drop(table, before)
                case HandOver(tables):
                    self._hand_over(tables)
                case StoreReady(tables, position):
                    self._store(lambda t=tables, p=position: store.ready(t, p))  # type: ignore[misc]
                    self._perform(self._core.stored_at(position))
                case StoreCaughtUp(tables):
                    self._store(lambda tables=tables: store.caught_up(tables))  # type: ignore[misc]
                case StorePosition(position):
                    self._store(lambda p=position: store.position(p))  # type: ignore[misc]
                    self._perform(self._core.stored_at(position))
                case Confirm(position):
                    if self._receiver is not None:
                        self._receiver.confirm(position)

    def _hand_over(self, tables: tuple[int, ...]) -> None:
        """Print what was spooled of tables whose copy is done, and make it durable."""
        for table in tables:
            for line in self._run.spool.lines(table):
                self._output.add(line)
                if self._output.full:
                    self._output.write()
            self._run.spool.drop(table, None)
        self._output.boundary(self._core.done)
        self._output.sync()
        self._perform(self._core.handed_over())

    def _store(self, work: Callable[[], _T]) -> _T:
        """Do something in the store; one that is away is tried again, while the stream's connection is kept alive."""
        give_up = time.monotonic() + self._options.output_timeout
        told = False
        while True:
            try:
                return work()
            except psycopg.OperationalError as error:
                if not is_lost(error) or time.monotonic() >= give_up:
                    raise
                if not told:
                    self._observer.warning(
                        f"the store is away: {one_line(error)}; nothing is confirmed until it is back"
                    )
                    told = True
            except ConnectError:
                if time.monotonic() >= give_up:
                    raise
            self._run.pause(_FIRST_RETRY)

    # Tables that come and go.

    def _wants(self, table: Table) -> bool:
        """Tables of the state stay wanted under whatever name; one that is new is judged by its name."""
        return table.oid in self._core.tables or self._options.selection.wants(table)

    def _appeared(self, table: Table) -> None:
        if table.oid in self._core.tables:
            return
        if self._options.snapshot == "never":
            self._core.tables[table.oid] = TableState(Phase.READY)
            return
        self._observer.notice(f"{table.qualified} has come into the publication")
        self._run.refresh = True

    def _refresh_when_due(self) -> None:
        now = time.monotonic()
        if self._options.refresh is not None and now >= self._next_refresh:
            due = self._next_refresh > 0
            self._next_refresh = now + self._options.refresh
            self._run.refresh = self._run.refresh or due
        if not self._run.refresh or self._core.in_transaction:
            return
        self._run.refresh = False
        read_at, _ = server.wal_ends(self._admin)
        tables = preflight.check_publications(self._admin, self._options.publications, self._options.selection)
        for oid in self._core.tables_now(table.oid for table in tables):
            self._removed.setdefault(oid, read_at)
        if self._options.snapshot != "never":
            self._expect_copies([t for t in tables if self._core.tables[t.oid].phase is Phase.INIT])
            self._perform(self._core.copies_due())

    def _forget_removed(self) -> None:
        """Remove tables that left the publication, once the stream is past the point at which they were missing."""
        for oid, read_at in list(self._removed.items()):
            if self._core.stored >= read_at:
                del self._removed[oid]
                self._store(lambda oid=oid: self._run.store.forget(oid))  # type: ignore[misc]
                self._perform(self._core.forget(oid))

    # The end.

    def _end_well(self) -> None:
        """Make what was printed durable, store it, and say it to the server as the last word."""
        self._output.close()
        self._perform(self._core.durable(self._output.durable(), time.monotonic(), at_once=True))


def _state(stored: StoredTable) -> TableState:
    match stored.phase:
        case "ready":
            return TableState(Phase.READY)
        case "sync_done":
            return TableState(Phase.SYNC_DONE, stored.lsn)
        case "errored":
            return TableState(Phase.ERRORED)
        case _:
            return TableState(Phase.INIT)
