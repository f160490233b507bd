"""Snapshot, then stream, with the memory store: a temporary slot that leaves nothing behind.

The order in which things are done is what the guarantees rest on; docs/engine.md gives the reasons.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal, Protocol

import psycopg

from pgrepl import connection as sql_connection
from pgrepl import events
from pgrepl.catalog import blockers, server
from pgrepl.catalog.publications import PublishedTable
from pgrepl.connection import is_lost, one_line
from pgrepl.conninfo import ConnectionTarget
from pgrepl.engine import preflight, relations
from pgrepl.engine.changes import Changes
from pgrepl.engine.output import Output
from pgrepl.engine.selection import Selection
from pgrepl.engine.snapshot import Snapshot, SnapshotUnusable
from pgrepl.errors import ConnectError, OperationError, PositionError
from pgrepl.events import Event, Table
from pgrepl.formats import Format
from pgrepl.lsn import Lsn
from pgrepl.pgoutput import messages
from pgrepl.pgoutput.decoder import decode
from pgrepl.pgoutput.walsender import Keepalive, parse_copy_data
from pgrepl.replication.receiver import Receiver
from pgrepl.replication.walsender import ConnectionLost, CreatedSlot, Walsender
from pgrepl.sinks import Sink

_STEP = 0.2
_FIRST_RETRY = 0.5
_LONGEST_RETRY = 30.0
_TELL_BLOCKERS_AFTER = 2.0
_TELL_BLOCKERS_EVERY = 10.0
_OLD_SLOT_PATIENCE = 10.0
_FLUSH_PATIENCE = 1.0

Reason = Literal["snapshot", "limit", "until", "duration", "stopped"]


@dataclass(frozen=True)
class Options:
    """What a run is to do.

    ``snapshot``: ``initial`` copies the tables first, ``never`` streams only, ``only`` ends after the copy. The run
    ends after ``limit`` row events, before the first transaction with ``commit_lsn >= until`` (``now``: the end of the
    WAL once the slot exists), or ``duration`` seconds after its start. With ``exact_limit`` it ends at the row itself,
    else with its transaction.
    """

    publications: tuple[str, ...]
    selection: Selection = field(default_factory=Selection)
    snapshot: Literal["initial", "never", "only"] = "initial"
    transactions: bool = False
    limit: int | None = None
    exact_limit: bool = False
    until: Lsn | Literal["now"] | None = None
    duration: float | None = None


@dataclass
class Progress:
    """How far a run is, for whoever watches.

    ``rows`` counts all row events given, ``rows_copied`` those of this attempt at the copy, of about ``rows_to_copy``.
    ``position`` is up to where the stream is done, ``received`` how far the server has read.
    """

    phase: Literal["connecting", "copying", "streaming"] = "connecting"
    tables: int = 0
    tables_done: int = 0
    rows_copied: int = 0
    rows_to_copy: int = 0
    rows: int = 0
    transactions: int = 0
    position: Lsn = field(default_factory=Lsn)
    received: Lsn = field(default_factory=Lsn)


class Observer(Protocol):
    """Whoever is told what happens. ``may_copy`` may refuse a snapshot of this size before anything is made."""

    def notice(self, message: str) -> None: ...

    def warning(self, message: str, *, hint: str | None = None) -> None: ...

    def may_copy(self, tables: Collection[PublishedTable]) -> bool: ...

    def progress(self, progress: Progress) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """Why a run ended, and how far it came."""

    reason: Reason
    progress: Progress


class _End(Exception):
    """An end of the run was reached."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


class Pipeline:
    """Run a snapshot and a stream into a sink, once.

    ``run`` blocks until an end of the options is reached or ``stop`` is called, from a signal handler or another
    thread.
    """

    def __init__(
        self, target: ConnectionTarget, options: Options, output_format: Format, sink: Sink, observer: Observer
    ) -> None:
        self._run = _Run(target, options, Output(output_format, sink), observer)

    def stop(self) -> None:
        """Ask the run to end: with the transaction that is being written, or at once when there is none."""
        self._run.stop = True

    def run(self) -> Outcome:
        """Run to the end.

        Raises ConnectError when the first connection fails, OperationError when the server is not fit or refuses,
        InputError for a table that is not published, and PositionError when changes can no longer be read.
        BrokenPipeError of the sink passes through.
        """
        run = self._run
        if run.options.duration is not None:
            run.deadline = time.monotonic() + run.options.duration
        reason = self._attempts(run)
        run.output.close()
        return Outcome(reason, run.progress)

    def _attempts(self, run: _Run) -> Reason:
        delay = _FIRST_RETRY
        while True:
            begun = time.monotonic()
            try:
                with ExitStack() as resources:
                    return _Attempt(run, resources).run()
            except _End as end:
                return end.reason
            except SnapshotUnusable as unusable:
                run.observer.warning(f"{unusable}; the copy begins again")
            except (ConnectError, psycopg.OperationalError) as error:
                # Only what was lost after a first success is worth waiting for.
                if run.slot_name is None or not is_lost(error):
                    raise
                if time.monotonic() - begun > _LONGEST_RETRY:
                    delay = _FIRST_RETRY
                run.observer.warning(f"{one_line(error)}; trying again in {delay:.1f} s, the copy begins again")
                try:
                    run.pause(delay * random.uniform(0.8, 1.2))  # noqa: S311  jitter is no secret
                except _End as end:
                    return end.reason
                delay = min(delay * 2, _LONGEST_RETRY)
            run.output.discard()


@dataclass
class _Run:
    """What outlives an attempt."""

    target: ConnectionTarget
    options: Options
    output: Output
    observer: Observer
    progress: Progress = field(default_factory=Progress)
    copies: dict[int, int] = field(default_factory=dict)
    slot_name: str | None = None
    stop: bool = False
    deadline: float | None = None
    told_blockers: float = 0.0

    def ending(self) -> Reason | None:
        """Say why the run should end now, if it should."""
        if self.stop:
            return "stopped"
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return "duration"
        return None

    def check_end(self) -> None:
        """End the run where nothing is in the middle of being written. Raises _End."""
        reason = self.ending()
        if reason is not None:
            raise _End(reason)

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond the end of the run. Raises _End."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check_end()
            time.sleep(min(_STEP, left))


class _Attempt:
    """One slot with its snapshot and stream; lost before the copies are done, another follows."""

    def __init__(self, run: _Run, resources: ExitStack) -> None:
        self._run = run
        self._options = run.options
        self._output = run.output
        self._progress = run.progress
        self._observer = run.observer
        self._resources = resources
        # Set when the run is to end with the transaction that is being written.
        self._finish: Reason | None = None

    def run(self) -> Reason:
        options = self._options
        admin = self._open()
        self._wait_for_old_slot(admin)
        preflight.check_server(admin)
        tables = preflight.check_publications(admin, options.publications, options.selection)
        if options.snapshot != "never":
            preflight.check_readable(admin, tables)
            if self._run.slot_name is None and not self._observer.may_copy(tables):
                raise OperationError("nothing was copied, as you said", hint="--snapshot never prints changes only")
        self._run.check_end()

        slot_name = f"pgrepl_tmp_{os.getpid()}_{secrets.token_hex(4)}"
        walsender = Walsender.open(self._run.target, f"pgrepl tail ({slot_name})")
        self._resources.callback(walsender.close)
        # Asked first: the next command after the slot's creation ends the export of its snapshot.
        silence = walsender.wal_sender_timeout()
        slot = walsender.create_temporary_slot(slot_name, lambda waited: self._building(admin, walsender, waited))
        self._run.slot_name = slot_name
        self._done(slot.consistent_point)
        until = self._end_position(admin)

        snapshot: Snapshot | None = None
        known: dict[int, Table] = {}
        if options.snapshot != "never":
            snapshot, tables = self._import(slot, tables)
            known = snapshot.describe(tables)
        if options.snapshot == "only" and snapshot is not None:
            # The imported snapshot lives without the slot, and the server need not keep WAL for it.
            walsender.close()
            self._copy(snapshot, tables, known, slot.consistent_point, None)
            return "snapshot"

        guard = self._open()
        walsender.start_replication(slot.name, slot.consistent_point, options.publications)
        receiver = Receiver(walsender, slot.consistent_point, wal_sender_timeout=silence, guard=guard.pgconn)
        self._resources.callback(receiver.close)
        receiver.start()
        if snapshot is not None:
            self._copy(snapshot, tables, known, slot.consistent_point, receiver)
            snapshot.close()
        return self._stream(admin, receiver, known, until)

    def _open(self, *, row_security: bool = True) -> psycopg.Connection:
        connection = sql_connection.connect(self._run.target, "pgrepl tail", row_security=row_security)
        self._resources.callback(connection.close)
        return connection

    def _wait_for_old_slot(self, admin: psycopg.Connection) -> None:
        """Give the server time to notice that the last attempt's connection, and so its slot, is gone."""
        query = "SELECT 1 FROM pg_catalog.pg_replication_slots WHERE slot_name = %s"
        give_up = time.monotonic() + _OLD_SLOT_PATIENCE
        while (
            self._run.slot_name
            and time.monotonic() < give_up
            and admin.execute(query, [self._run.slot_name]).fetchone()
        ):
            self._run.pause(_STEP / 4)

    def _building(self, admin: psycopg.Connection, walsender: Walsender, waited: float) -> None:
        """While the slot is being built: end when told to, and say who makes it wait."""
        self._run.check_end()
        now = time.monotonic()
        if waited < _TELL_BLOCKERS_AFTER or now - self._run.told_blockers < _TELL_BLOCKERS_EVERY:
            return
        self._run.told_blockers = now
        found = blockers.of_backend(admin, walsender.pid)
        what = "; ".join(str(blocker) for blocker in found) or "transactions that are still running"
        self._observer.warning(
            f"the slot cannot be built yet, for {waited:.0f} s now it waits for {what}",
            hint="it goes on by itself when they end",
        )

    def _end_position(self, admin: psycopg.Connection) -> Lsn | None:
        if self._options.until != "now":
            return self._options.until
        # An asynchronous commit is in the WAL before it is flushed, and the stream has what is flushed.
        give_up = time.monotonic() + _FLUSH_PATIENCE
        flushed, wanted = server.wal_ends(admin)
        while flushed < wanted and time.monotonic() < give_up:
            time.sleep(_STEP / 10)
            flushed, _ = server.wal_ends(admin)
        return flushed

    def _import(self, slot: CreatedSlot, before: list[PublishedTable]) -> tuple[Snapshot, list[PublishedTable]]:
        """Open the slot's snapshot and hold its tables, as the snapshot itself sees publications and tables."""
        if slot.snapshot_name is None:
            raise SnapshotUnusable("the server exported no snapshot with the slot")
        snapshot = Snapshot(self._open(row_security=False), slot.snapshot_name)
        published = snapshot.published(self._options.publications)
        tables = self._options.selection.of(published, self._options.publications)
        if [_published(table) for table in tables] != [_published(table) for table in before]:
            raise SnapshotUnusable("the publication was changed while the snapshot was taken")
        snapshot.hold(tables)
        return snapshot, tables

    def _copy(
        self,
        snapshot: Snapshot,
        tables: list[PublishedTable],
        known: dict[int, Table],
        snapshot_lsn: Lsn,
        receiver: Receiver | None,
    ) -> None:
        progress = self._progress
        progress.phase, progress.tables, progress.tables_done, progress.rows_copied = "copying", len(tables), 0, 0
        progress.rows_to_copy = sum(table.rows or 0 for table in tables)
        for published in tables:
            table = known[published.oid]
            attempt = self._run.copies[table.oid] = self._run.copies.get(table.oid, 0) + 1
            self._emit(events.SnapshotBegin(table, attempt, snapshot_lsn))
            count = 0
            try:
                for rows in snapshot.copy(published):
                    for row in rows:
                        self._emit(events.Read(table, row, snapshot_lsn))
                    count += len(rows)
                    progress.rows_copied += len(rows)
                    self._between_rows(receiver)
            except psycopg.Error as error:
                if is_lost(error):
                    raise
                raise sql_connection.server_error(error, f"cannot copy {table.qualified}") from None
            self._emit(events.SnapshotEnd(table, attempt, count, snapshot_lsn))
            progress.tables_done += 1
        self._output.write()
        self._run.check_end()
        if receiver is not None:
            receiver.check()

    def _between_rows(self, receiver: Receiver | None) -> None:
        # A copy that is cut short has no snapshot_end, so nobody takes its rows for the table.
        self._run.check_end()
        # Without its stream the copy is worth nothing: a new attempt may as well begin now.
        if receiver is not None:
            receiver.check()
        if self._output.full:
            self._output.write()
        self._observer.progress(self._progress)

    def _stream(
        self, admin: psycopg.Connection, receiver: Receiver, known: dict[int, Table], until: Lsn | None
    ) -> Reason:
        changes = Changes(
            lambda relation, transaction: relations.resolve(admin, relation, transaction.xid),
            printed=_Printed(known, self._options.selection),
            known=known,
            transactions=self._options.transactions,
            appeared=self._appeared,
        )
        self._progress.phase = "streaming"
        if until is not None:
            receiver.ask_for_keepalives()
        try:
            while True:
                self._end_between(changes)
                payloads = receiver.batch(self._patience())
                self._progress.received = receiver.received
                if payloads is None:
                    self._output.tick()
                else:
                    self._payloads(changes, payloads, until)
                    self._output.write()
                receiver.confirm(self._output.durable())
                self._observer.progress(self._progress)
        except _End:
            self._output.close()
            receiver.confirm(self._output.durable())
            raise
        except (ConnectionLost, psycopg.Error) as error:
            if not is_lost(error):
                raise
            # What has been read is printed, also the beginning of a transaction that did not arrive whole.
            self._output.close()
            raise PositionError(
                f"{one_line(error)}; the temporary slot is gone with it,"
                f" and changes from {self._output.printed} on cannot be read any more",
                hint="start again: a new snapshot is taken, and changes in between are not seen",
                sqlstate=error.sqlstate,
            ) from None

    def _patience(self) -> float:
        if self._run.deadline is None:
            return _STEP
        return max(0.0, min(_STEP, self._run.deadline - time.monotonic()))

    def _end_between(self, changes: Changes) -> None:
        """End the run for a signal or the clock, now or with the transaction that is open."""
        self._finish = self._finish or self._run.ending()
        if self._finish is not None and changes.transaction is None:
            raise _End(self._finish)

    def _payloads(self, changes: Changes, payloads: list[bytes], until: Lsn | None) -> None:
        for payload in payloads:
            framed = parse_copy_data(payload)
            if isinstance(framed, Keepalive):
                if changes.transaction is None:
                    # All that the server had to send before wal_end has come, and has been handled.
                    self._done(framed.wal_end)
                    if until is not None and framed.wal_end >= until:
                        raise _End("until")
                continue
            message = decode(framed.data)
            if type(message) is messages.Begin and until is not None and message.final_lsn >= until:
                raise _End("until")
            for event in changes.apply(framed.start, message):
                self._emit(event)
            if type(message) is messages.Commit:
                self._done(message.end_lsn)
                self._progress.transactions += 1
                self._end_between(changes)
            if self._output.full:
                self._output.write()

    def _appeared(self, table: Table) -> None:
        if self._options.snapshot != "never":
            self._observer.warning(
                f"{table.qualified} was not there when the snapshot was taken:"
                " its changes are printed, older rows are not"
            )

    def _done(self, position: Lsn) -> None:
        self._output.done(position)
        self._progress.position = max(self._progress.position, position)

    def _emit(self, event: Event) -> None:
        if not self._output.emit(event):
            return
        self._progress.rows += 1
        limit = self._options.limit
        if limit is not None and self._output.rows >= limit:
            if self._options.exact_limit or isinstance(event, events.Read):
                raise _End("limit")
            self._finish = "limit"


class _Printed:
    """Tables of the snapshot stay wanted under whatever name; one that is new is judged by its name."""

    def __init__(self, known: dict[int, Table], selection: Selection) -> None:
        self._known = frozenset(known)
        self._selection = selection

    def __call__(self, table: Table) -> bool:
        return table.oid in self._known or self._selection.wants(table)


def _published(table: PublishedTable) -> tuple[object, ...]:
    return table.oid, table.schema, table.name, table.columns, table.row_filter
