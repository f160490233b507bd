"""The apply loop's deeds: what comes from the stream and from copies goes where the core says."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pgrepl import events
from pgrepl.catalog.definitions import DDL_PREFIX, of_message
from pgrepl.catalog.publications import PublishedTable
from pgrepl.engine import copying, relations
from pgrepl.engine.changes import Changes
from pgrepl.engine.connections import Connections
from pgrepl.engine.copying import Copier, Inbox
from pgrepl.engine.core import (
    Action,
    Confirm,
    Copy,
    Core,
    Decision,
    DropSpool,
    Forget,
    HandOver,
    MarkCopying,
    Phase,
    StoreCaughtUp,
    StorePosition,
    StoreReady,
)
from pgrepl.engine.patience import in_store
from pgrepl.engine.publishing import Publishing
from pgrepl.engine.routing import Router
from pgrepl.engine.run import End, Reason, Run, StartAgain
from pgrepl.engine.starting import Beginning
from pgrepl.engine.streamed import StreamedTransactions
from pgrepl.engine.versions import Versions
from pgrepl.errors import InputError
from pgrepl.lsn import Lsn
from pgrepl.pgoutput import messages
from pgrepl.pgoutput.decoder import decode
from pgrepl.pgoutput.walsender import Keepalive, parse_copy_data
from pgrepl.stores.memory import MemoryStore
from pgrepl.stores.told import to_json

_PRUNE_INTERVAL = 3600.0
_BREATH = 10_000
"""Messages of one transaction after which whoever watches is told of the progress."""


class Applier:
    """Carry out what the core decides about the messages of a stream and the rows of copies.

    ``confirm`` is told positions that are durable and stored, and ``check_stream`` raises when the stream is lost.
    ``until`` is the position before which the run is to end.
    """

    def __init__(
        self,
        run: Run,
        connections: Connections,
        core: Core,
        beginning: Beginning,
        copier: Copier,
        inbox: Inbox,
        *,
        until: Lsn | None,
        confirm: Callable[[Lsn], None],
        check_stream: Callable[[], bool],
    ) -> None:
        self._run = run
        self._options = run.options
        self._output = run.output
        self._progress = run.progress
        self._core = core
        self._copier = copier
        self._inbox = inbox
        self._confirm = confirm
        self._check_stream = check_stream
        self._persistent = run.options.slot is not None
        self._until = until
        self._streamed: StreamedTransactions | None = None
        self._next_prune = 0.0
        # Set when the run is to end with the transaction that is being written.
        self._finish: Reason | None = None
        self.publishing = Publishing(run, connections, core, beginning.removed)
        self._changes = Changes(
            lambda relation, transaction: relations.resolve(connections.admin, relation, transaction.xid),
            printed=self.publishing.wants,
            known=beginning.known,
            appeared=self.publishing.appeared,
        )
        self._versions = Versions(beginning.told, beginning.not_stored)
        self._router = Router(
            core,
            run.output,
            run.spool,
            self._versions,
            frames=run.options.transactions,
            printed=self._row_printed,
        )
        self._done()

    def told_to_the_file(self, position: Lsn) -> dict[int, dict[str, Any]]:
        """Give the versions of tables that a file tells of before a position, and that are not stored yet, as JSON."""
        return {table.oid: to_json(table) for table in self._versions.not_stored(position)}

    def begin_copies(self, beginning: Beginning) -> None:
        """Begin to copy what is due."""
        self._progress.begin_again()
        self._expect(beginning.due)
        if beginning.prepared is not None:
            for table in beginning.prepared.tables:
                self.perform(self._core.copy_begins(table.oid, 0, beginning.position))
            self._copier.run(beginning.prepared)
        self.perform(self._core.copies_due())
        self._retry()

    def _retry(self) -> None:
        """Begin to copy errored tables whose time has come; what is stored is a time of day."""
        if self._options.snapshot != "never":
            self.perform(self._core.retries_due(time.time()))

    def connected(self, *, streaming: bool) -> None:
        """Take note that another stream begins; with ``streaming`` large transactions come in blocks."""
        self._streamed = StreamedTransactions(self._run.spool.messages) if streaming else None

    @property
    def in_progress(self) -> int:
        """How many transactions wait in the spool for their end."""
        return self._streamed.in_progress if self._streamed is not None else 0

    def broken_off(self) -> None:
        """Take note that the stream broke off, perhaps in the middle of a transaction."""
        if self._streamed is not None:
            self._streamed.close()
            self._streamed = None
        self._changes.broken_off()
        self._router.broken_off()
        self._core.connection_lost()

    # The stream.

    def payloads(self, payloads: list[bytes]) -> None:
        """Take what came from the server. Raises End at an end of the run, and StreamingOff."""
        for payload in payloads:
            framed = parse_copy_data(payload)
            if isinstance(framed, Keepalive):
                if not self._core.in_transaction:
                    # All that the server had to send before wal_end has come, and has been handled.
                    self.perform(self._core.keepalive(framed.wal_end))
                    self._done()
                    self._end_at(framed.wal_end)
                continue
            if self._streamed is None:
                self._message(framed.start, decode(framed.data))
            else:
                for number, (start, data) in enumerate(self._streamed.feed(framed.start, framed.data)):
                    self._message(start, decode(data))
                    if number % _BREATH == _BREATH - 1:
                        self._run.observer.progress(self._progress)

    def _message(self, start: Lsn, message: messages.AnyMessage) -> None:
        if self._output.full:
            self._output.write()
        kind = type(message)
        if kind is messages.Begin:
            assert isinstance(message, messages.Begin)
            # A hand-over that a keepalive caused may have reached the limit.
            self.end_between()
            self._end_at(message.final_lsn)
            self._changes.apply(start, message)
            self._core.begin(message.final_lsn)
            transaction = self._changes.transaction
            assert transaction is not None
            self._router.begin(transaction)
            return
        for event in self._changes.apply(start, message):
            self._router.route(event)
        if kind is messages.Message:
            assert isinstance(message, messages.Message)
            if message.prefix == DDL_PREFIX and message.transactional:
                self._defined(start, message.content)
        if kind is messages.Commit:
            assert isinstance(message, messages.Commit)
            self._router.commit(message.end_lsn)
            self._progress.transactions += 1
            actions = self._core.commit(message.end_lsn)
            self._done()
            self.perform(actions)
            self.end_between()

    def _defined(self, lsn: Lsn, content: bytes) -> None:
        """Store a version of a table, now or when its copy has been handed over: a copy that is lost forgets it."""
        try:
            definition = of_message(content)
        except ValueError as error:
            self._run.observer.warning(f"{error}, at {lsn}: no version of a table is stored")
            return
        decision = self._core.whose(definition.oid)
        if decision is Decision.EMIT:
            in_store(self._run, lambda: self._run.store.version(definition, lsn))
        elif decision is Decision.SPOOL:
            transaction = self._changes.transaction
            assert transaction is not None
            self._run.spool.append_definition(definition.oid, transaction.commit_lsn, lsn, content)

    def end_between(self) -> None:
        """End the run for a signal or the clock, now or with the transaction that is open."""
        self._finish = self._finish or self._run.ending()
        if self._finish is not None and not self._core.in_transaction:
            raise End(self._finish)

    def _end_at(self, position: Lsn) -> None:
        if self._until is not None and position >= self._until and not self._core.copying:
            raise End("until")

    def _done(self) -> None:
        if self._core.at_boundary:
            self._output.boundary(self._core.done)
        self._progress.position = self._core.done

    def _row_printed(self) -> None:
        self._progress.rows += 1
        self._check_limit()

    def _check_limit(self) -> None:
        limit = self._options.limit
        if limit is not None and self._progress.rows >= limit:
            if self._options.exact_limit:
                raise End("limit")
            self._finish = self._finish or "limit"

    # Copies.

    def copied(self, seconds: float) -> None:
        """Take in what copies have to tell, for so long at the most, and one write: there is always more of it."""
        end = time.monotonic() + seconds
        while (news := self._inbox.take()) is not None:
            self._news(news)
            self._done()
            if self._output.full:
                self._output.write()
            if time.monotonic() >= end:
                return

    def _news(self, news: copying.News) -> None:
        # Without its stream the copy of a temporary slot is worth nothing: another may as well begin now.
        streaming = self._persistent or self._check_stream()
        match news:
            case copying.Waits(oids, number, received):
                for oid in oids:
                    self.perform(self._core.copy_waits(oid, number, received))
            case copying.Begins(table, definition, number, snapshot_lsn):
                if not self._core.is_copying(table.oid, number):
                    return
                attempt = self._run.copies[table.oid] = self._run.copies.get(table.oid, 0) + 1
                self._progress.unfinished[table.oid] = table.qualified
                self._changes.knows(table)
                self._versions.copied(table, snapshot_lsn)
                self.perform(self._core.copy_begins(table.oid, number, snapshot_lsn))
                if self._until is not None:
                    self._until = max(self._until, snapshot_lsn)
                in_store(self._run, lambda: self._run.store.schema(definition))
                self._output.emit(events.SnapshotBegin(table, attempt, snapshot_lsn))
            case copying.Rows(oid, number, lines, count):
                if self._core.is_copying(oid, number):
                    self._rows(lines, count)
            case copying.Ends(table, number, snapshot_lsn, rows):
                if not self._core.is_copying(table.oid, number):
                    return
                attempt = self._run.copies[table.oid]
                self._output.emit(events.SnapshotEnd(table, attempt, rows, snapshot_lsn))
                self._progress.tables_done += 1
                if isinstance(self._run.store, MemoryStore):
                    self._progress.unfinished.pop(table.oid, None)
                self.perform(self._core.copy_ends(table.oid, number))
            case copying.Lost(oids, number, reason):
                self._run.observer.warning(f"{reason}; the copy begins again")
                if not streaming:
                    raise StartAgain(reason)
                self.perform(self._core.copy_lost(oids, number))
            case copying.Gone(oids, number):
                for oid in oids:
                    self._progress.unfinished.pop(oid, None)
                    self.perform(self._core.copy_gone(oid, number))
                # They may be back already.
                self._run.refresh = True
            case copying.Failed(oid, number, error):
                if not self._core.is_copying(oid, number):
                    return
                if not self._persistent:
                    raise error
                self._run.observer.warning(f"{error}; the stream goes on without this table", hint=error.hint)
                self._progress.unfinished.pop(oid, None)
                in_store(self._run, lambda: self._run.store.errored(oid, str(error), error.hint))
                self.perform(self._core.copy_failed(oid, number))

    def _rows(self, lines: bytes, count: int) -> None:
        limit = self._options.limit
        if limit is not None and self._progress.rows + count > limit:
            count = max(0, limit - self._progress.rows)
            lines = b"".join(lines.splitlines(keepends=True)[:count])
        self._output.add(lines)
        self._progress.rows += count
        self._progress.rows_copied += count
        self._check_limit()
        self.end_beside_copies()

    def end_beside_copies(self) -> None:
        """End the run as ``end_between`` does, and print no more rows of copies when it waits for the open transaction.

        They are stored as being copied, so the next run begins them again.
        """
        self.end_between()
        if self._finish is None:
            return
        for oid, state in tuple(self._core.tables.items()):
            if state.phase is Phase.DATA_SYNC and not state.copied:
                self.perform(self._core.copy_failed(oid, state.copy))

    def _expect(self, tables: Sequence[PublishedTable]) -> None:
        if tables:
            self._progress.expect(tables)

    # What is due between messages.

    def settle(self) -> None:
        """Write what was gathered, store and confirm what is durable, and look at the publication when it is time."""
        self._output.write()
        self._output.tick()
        self.perform(self._core.durable(self._output.durable(), time.monotonic()))
        self.reopen_when_asked()
        self.perform(self._core.forget_left())
        self._retry()
        if self.publishing.is_due():
            actions, due = self.publishing.refresh()
            self.perform(actions)
            self._expect(due)
            self.perform(self._core.copies_due())
        self._prune_when_due()
        self._progress.phase = "copying" if self._core.copying else "streaming"
        self._progress.spooled = self._run.spool.used
        self._run.observer.progress(self._progress)

    def reopen_when_asked(self) -> None:
        """Go on in a new output file, if that is wanted, between transactions: each is in one file as a whole."""
        if not self._run.reopen or not self._core.at_boundary:
            return
        self._run.reopen = False
        self._output.boundary(self._core.done)
        try:
            self._output.reopen()
        except InputError as error:
            self._run.observer.warning(f"{error}; going on in the old file")
        except BaseException:
            # Nobody asks twice: it is the next attempt's.
            self._run.reopen = True
            raise

    def _prune_when_due(self) -> None:
        """Remove versions of tables that nobody needs any more, once an hour."""
        now = time.monotonic()
        if now < self._next_prune or self._core.confirmed == 0:
            return
        self._next_prune = now + _PRUNE_INTERVAL
        in_store(self._run, lambda: self._run.store.prune(self._core.confirmed))

    def close(self) -> None:
        """Make what was printed durable, store it, and say it to the server as the last word."""
        self._output.close()
        self.perform(self._core.durable(self._output.durable(), time.monotonic(), at_once=True))
        self.perform(self._core.forget_left())
        self._prune_when_due()

    def perform(self, actions: list[Action]) -> None:
        """Do what the core has decided."""
        run, store = self._run, self._run.store
        for action in actions:
            match action:
                case MarkCopying(tables):
                    in_store(run, partial(store.copying, tables))
                case Copy(tables, number):
                    self._copier.copy(tables, number)
                case DropSpool(table, before):
                    run.spool.drop(table, before)
                case Forget(tables):
                    for table in tables:
                        self._progress.unfinished.pop(table, None)
                        in_store(run, partial(store.forget, table))
                case HandOver(tables):
                    self._hand_over(tables)
                case StoreReady(tables, position):
                    told = self._versions.not_stored(position)
                    in_store(run, partial(store.ready, tables, position, told))
                    self._stored_at(position)
                case StoreCaughtUp(tables):
                    in_store(run, partial(store.caught_up, tables))
                case StorePosition(position):
                    told = self._versions.not_stored(position)
                    in_store(run, partial(store.position, position, told))
                    self._stored_at(position)
                case Confirm(position):
                    self._confirm(position)

    def _stored_at(self, position: Lsn) -> None:
        self._versions.stored(position)
        self.perform(self._core.stored_at(position))

    def _hand_over(self, tables: tuple[int, ...]) -> None:
        """Print what was spooled of tables whose copy is done, and make it durable."""
        for table in tables:
            self._router.hand_over(table)
        self._output.boundary(self._core.done)
        self._output.sync()
        for table in tables:
            for lsn, content in self._run.spool.definitions(table):
                definition = of_message(content)
                in_store(self._run, partial(self._run.store.version, definition, lsn))
        self.perform(self._core.handed_over())
        for table in tables:
            self._progress.unfinished.pop(table, None)
