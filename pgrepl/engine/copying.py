"""Copies beside the stream: workers on one snapshot, whose rows come to the apply loop as finished lines.

Nothing here decides anything. What happens carries the number of its copy, which the core gave, and is put into an
inbox, bounded in bytes, that the apply loop empties; a worker waits while it is full.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from typing import TypeAlias

import psycopg

from pgrepl import connection as sql_connection
from pgrepl import events
from pgrepl.catalog.definitions import Definition
from pgrepl.catalog.publications import PublishedTable
from pgrepl.connection import is_lost, one_line, server_error
from pgrepl.conninfo import ConnectionTarget
from pgrepl.engine.lockwatch import LockWatch
from pgrepl.engine.relations import Described
from pgrepl.engine.selection import Selection
from pgrepl.engine.slotwait import SlotWait
from pgrepl.engine.snapshot import Snapshot, SnapshotUnusable
from pgrepl.engine.units import Unit
from pgrepl.errors import ConnectError, OperationError, PgreplError
from pgrepl.events import Event, Table
from pgrepl.lsn import Lsn
from pgrepl.replication.verdicts import Passing
from pgrepl.replication.walsender import Walsender

INBOX_BYTES = 8 << 20
_CHUNK_BYTES = 64 << 10
_LATE_RETRY = 1.0
_NAMED = 5
# No walsender, connection or slot is free, the query was cancelled, the publication is not there, for a moment perhaps.
_PASSING = ("53300", "53400", "57014", "42704")


@dataclass(frozen=True)
class Begins:
    """The rows of a table follow, read with this version of it from a snapshot at ``snapshot_lsn``."""

    table: Table
    definition: Definition
    number: int
    snapshot_lsn: Lsn


@dataclass(frozen=True)
class Rows:
    """Finished lines of a table."""

    oid: int
    number: int
    lines: bytes
    count: int


@dataclass(frozen=True)
class Ends:
    """All rows of a table have come."""

    table: Table
    number: int
    snapshot_lsn: Lsn
    rows: int


@dataclass(frozen=True)
class Lost:
    """Copies broke off and have to begin anew with another snapshot."""

    oids: tuple[int, ...]
    number: int
    reason: str


@dataclass(frozen=True)
class Gone:
    """Tables are not in the publication any more."""

    oids: tuple[int, ...]
    number: int


@dataclass(frozen=True)
class Failed:
    """A table cannot be copied."""

    oid: int
    number: int
    error: PgreplError


@dataclass(frozen=True)
class Waits:
    """A copy has no snapshot yet; the one that it gets will hold all that was committed before ``received``."""

    oids: tuple[int, ...]
    number: int
    received: Lsn


News: TypeAlias = Waits | Begins | Rows | Ends | Lost | Gone | Failed


class Inbox:
    """News for the apply loop; ``wake`` is told when the first one comes."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._room = threading.Condition()
        self._news: deque[News] = deque()
        self._bytes = 0
        self._closed = False

    def put(self, news: News, wanted: Callable[[], bool] = lambda: True) -> None:
        """Hand over news; rows wait while the inbox is full, and are not put in when they are not wanted any more.

        Raises SnapshotUnusable when nobody listens any more.
        """
        with self._room:
            if isinstance(news, Rows):
                self._room.wait_for(lambda: self._bytes < INBOX_BYTES or self._closed or not wanted())
            if self._closed:
                raise SnapshotUnusable("the run has ended")
            if not wanted():
                return
            self._news.append(news)
            if isinstance(news, Rows):
                self._bytes += len(news.lines)
        self._wake()

    def ask_again(self) -> None:
        """Let those who wait look again whether their rows are wanted."""
        with self._room:
            self._room.notify_all()

    def take(self) -> News | None:
        """Take the next news, if there is any."""
        with self._room:
            if not self._news:
                return None
            news = self._news.popleft()
            if isinstance(news, Rows):
                self._bytes -= len(news.lines)
                self._room.notify_all()
            return news

    @property
    def is_empty(self) -> bool:
        """Whether there is no news."""
        return not self._news

    def close(self) -> None:
        """Let go of whoever waits."""
        with self._room:
            self._closed = True
            self._news.clear()
            self._room.notify_all()


@dataclass
class Prepared:
    """A snapshot that workers hold, and the tables in it; ``refused`` are those that they may not hold."""

    snapshot_lsn: Lsn
    workers: list[Snapshot]
    tables: list[PublishedTable]
    refused: dict[int, PgreplError]
    known: dict[int, Described]
    resources: ExitStack


class Copier:
    """Copy tables out of snapshots, each set of tables by ``jobs`` workers on one snapshot.

    ``warn`` is told who waits for the locks of a copy, and whom a copy waits for; a table that makes somebody wait for
    ``yield_after`` seconds is let go, and copied again. ``received`` says before which LSN everything was committed
    that the stream has brought so far, ``names`` how tables are called, by OID.
    """

    def __init__(
        self,
        target: ConnectionTarget,
        publications: Sequence[str],
        selection: Selection,
        jobs: int,
        encode: Callable[[Event], bytes],
        inbox: Inbox,
        *,
        yield_after: float | None,
        received: Callable[[], Lsn],
        names: Mapping[int, str],
        warn: Callable[[str], None],
    ) -> None:
        self._target = target
        self._publications = publications
        self._selection = selection
        self._jobs = jobs
        self._encode = encode
        self._inbox = inbox
        self._yield_after = yield_after
        self._received = received
        self._names = names
        self._warn = warn
        self._snapshots: set[Snapshot] = set()
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        # The connections of a fresh start, which may be refused before it is run.
        self._fresh = ExitStack()

    def prepare(
        self,
        snapshot_name: str,
        snapshot_lsn: Lsn,
        wanted: Collection[int] | None,
        before: Sequence[PublishedTable] | None,
    ) -> Prepared:
        """Import a snapshot with all workers and hold its tables.

        ``before`` is what was published before the slot was made: a difference makes the snapshot unusable, since a
        transaction may have written to a table before it was published and commit after the slot's point. Tables in
        ``wanted`` that are not published any more are left out; None are all that are selected. Raises
        SnapshotUnusable when no worker can hold the tables, OperationError for a table that the server does not let
        hold unless it is one of ``wanted``, and what the connection of the first worker raises.
        """
        resources = ExitStack()
        workers: list[Snapshot] = []
        refused: dict[int, PgreplError] = {}
        reason: Exception | None = None
        try:
            first = self._worker(snapshot_name, resources)
            published = first.published(self._publications)
            if wanted is None:
                tables = self._selection.of(published, self._publications)
            else:
                # They were chosen before, and it does not matter to them which others have left meanwhile.
                tables = [table for table in published if table.oid in wanted]
            if before is not None and [_identity(table) for table in tables] != [_identity(table) for table in before]:
                raise SnapshotUnusable("the publication was changed while the snapshot was taken")
            known = first.describe(tables)
            for number in range(self._jobs):
                try:
                    worker = first if number == 0 else self._worker(snapshot_name, resources)
                    tables = _hold(worker, tables, refused)
                except (SnapshotUnusable, ConnectError, psycopg.Error) as error:
                    if not isinstance(error, SnapshotUnusable) and not _may_pass(error):
                        raise
                    reason = error
                    continue
                workers.append(worker)
            if not workers:
                raise reason or SnapshotUnusable("no connection could hold the tables")
            if wanted is None and refused:
                raise next(iter(refused.values()))
        except BaseException:
            resources.close()
            raise
        if wanted is None:
            self._fresh = resources
        if reason is not None:
            self._warn(f"copying with {len(workers)} of {self._jobs} workers: {one_line(reason)}")
        return Prepared(snapshot_lsn, workers, tables, refused, known, resources)

    def _worker(self, snapshot_name: str, resources: ExitStack) -> Snapshot:
        connection = sql_connection.connect(self._target, "pgrepl tail", row_security=False)
        resources.callback(connection.close)
        snapshot = Snapshot(connection, snapshot_name)
        self._snapshots.add(snapshot)
        resources.callback(self._snapshots.discard, snapshot)
        return snapshot

    def run(self, prepared: Prepared) -> None:
        """Copy the tables of a prepared snapshot, in threads of its own: the copy of a fresh start, number 0."""
        oids = tuple(table.oid for table in prepared.tables)
        self._spawn(oids, 0, lambda: self._copy(prepared, oids, 0))

    def copy(self, oids: tuple[int, ...], number: int) -> None:
        """Make a temporary slot for its snapshot and copy tables out of it, in threads of its own."""
        self._spawn(oids, number, lambda: self._late(oids, number))

    def stop(self) -> None:
        """End all copies where they stand."""
        self._stopping.set()
        self._inbox.close()
        for snapshot in tuple(self._snapshots):
            # It may have ended by itself meanwhile.
            with suppress(psycopg.Error):
                snapshot.cancel()
        for thread in self._threads:
            thread.join(10)
        self._fresh.close()

    def _spawn(self, oids: tuple[int, ...], number: int, work: Callable[[], None]) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=self._to_the_end, args=(oids, number, work), name="pgrepl copy", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _to_the_end(self, oids: tuple[int, ...], number: int, work: Callable[[], None]) -> None:
        """Copy, and tell how it ended: tables of which nothing is told would be waited for, for ever."""
        try:
            work()
        except SnapshotUnusable as unusable:
            self._report(Lost(oids, number, str(unusable)))
        except Exception as error:
            if _may_pass(error):
                self._report(Lost(oids, number, one_line(error)))
                return
            failure = _failure(error, "the copy failed")
            for oid in oids:
                self._report(Failed(oid, number, failure))

    def _late(self, oids: tuple[int, ...], number: int) -> None:
        said = ""
        while not self._stopping.is_set():
            try:
                prepared = self._prepare_late(oids, number)
            except (PgreplError, psycopg.Error) as error:
                if not _may_pass(error):
                    raise
                # Nothing has been told of this copy yet, so it is still the same one; and the reason is said once.
                reason = one_line(error)
                if reason != said:
                    self._warn(f"{reason}; the copy of {self._named(oids)} waits until that has passed")
                    said = reason
                self._report(Waits(oids, number, self._received()))
                self._stopping.wait(_LATE_RETRY)
            else:
                self._copy(prepared, oids, number)
                return

    def _prepare_late(self, oids: tuple[int, ...], number: int) -> Prepared:
        name = f"pgrepl_copy_{os.getpid()}_{secrets.token_hex(4)}"
        walsender = Walsender.open(self._target, f"pgrepl tail ({name})")
        wait = SlotWait(
            self._target,
            walsender.pid,
            self._named(oids),
            received=self._received,
            seen=lambda received: self._report(Waits(oids, number, received)),
            warn=self._warn,
        )

        def waiting(seconds: float) -> None:
            if self._stopping.is_set():
                raise SnapshotUnusable("the run has ended")
            wait.look(seconds)

        try:
            with wait:
                slot = walsender.create_slot(name, temporary=True, waiting=waiting)
            assert slot.snapshot_name is not None
            return self.prepare(slot.snapshot_name, slot.consistent_point, oids, None)
        finally:
            # Its snapshot is imported; the server need not keep WAL for it.
            walsender.close()

    def _named(self, oids: tuple[int, ...]) -> str:
        shown = sorted(self._names.get(oid, f"table {oid}") for oid in oids)
        return ", ".join(shown[:_NAMED]) + (f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else "")

    def _report(self, news: News) -> None:
        # Nobody listens any more once the run has ended.
        with suppress(SnapshotUnusable):
            self._inbox.put(news)

    def _copy(self, prepared: Prepared, oids: tuple[int, ...], number: int) -> None:
        with prepared.resources:
            for oid, error in prepared.refused.items():
                self._report(Failed(oid, number, error))
            gone = tuple(set(oids) - {table.oid for table in prepared.tables} - prepared.refused.keys())
            if gone:
                self._report(Gone(gone, number))
            job = _Job(prepared, number, self._encode, self._inbox, self._stopping)
            with LockWatch(self._target, job, self._yield_after, self._warn):
                job.run()


class _Job:
    """The copy of some tables out of one snapshot.

    ``let_go`` may be called from another thread: workers then hold only the locks of tables that are still to be
    copied, once they have done with the unit they are at.
    """

    def __init__(
        self,
        prepared: Prepared,
        number: int,
        encode: Callable[[Event], bytes],
        inbox: Inbox,
        stopping: threading.Event,
    ) -> None:
        self._prepared = prepared
        self._number = number
        self._encode = encode
        self._inbox = inbox
        self._stopping = stopping
        self._lock = threading.Lock()
        units = prepared.workers[0].units(prepared.tables)
        self._left = {oid: len(pieces) for oid, pieces in units.items()}
        self._counts = dict.fromkeys(units, 0)
        self._broken: set[int] = set()
        self._begun: set[int] = set()
        self._queue = deque(unit for table in prepared.tables for unit in units[table.oid])
        # What each worker is at; one that has no more to do is not there.
        self._at: dict[Snapshot, int | None] = dict.fromkeys(prepared.workers)
        # How often something was let go.
        self._let_go = 0
        self._reason = "the connections that held the snapshot were lost"
        self._failure: PgreplError | None = None

    def run(self) -> None:
        """Work until all units are done."""
        others = [
            threading.Thread(target=self._work, args=(worker,), name="pgrepl copy", daemon=True)
            for worker in self._prepared.workers[1:]
        ]
        for thread in others:
            thread.start()
        self._work(self._prepared.workers[0])
        for thread in others:
            thread.join()
        # A worker that lost its connection leaves its share to the others; what none could do begins anew.
        left = tuple(self.unfinished)
        if self._failure is not None:
            for oid in left:
                self._break(oid, Failed(oid, self._number, self._failure))
        elif left and not self._stopping.is_set():
            self._inbox.put(Lost(left, self._number, self._reason))

    @property
    def pids(self) -> list[int]:
        """The backends that hold the locks."""
        with self._lock:
            return [worker.pid for worker in self._at]

    @property
    def unfinished(self) -> set[int]:
        """The tables that are still to be copied."""
        return {oid for oid, count in self._left.items() if count and oid not in self._broken}

    @property
    def current(self) -> set[int]:
        """The tables that are being read."""
        with self._lock:
            return {oid for oid in self._at.values() if oid is not None}

    def let_go(self, tables: Collection[int], reason: str) -> None:
        """Hold no lock on tables any more; the copy of one that is not done begins anew, for that reason."""
        cut_short = self.unfinished & set(tables)
        for oid in cut_short:
            self._break(oid, Lost((oid,), self._number, reason))
        with self._lock:
            self._let_go += 1
            reading = [worker for worker, oid in self._at.items() if oid in cut_short]
        self._inbox.ask_again()
        for worker in reading:
            with suppress(psycopg.Error):
                worker.cancel()

    def _work(self, worker: Snapshot) -> None:
        try:
            self._units(worker)
        except psycopg.Error as error:
            self._reason = one_line(error)
        except SnapshotUnusable as unusable:
            self._reason = str(unusable)
        except Exception as error:
            self._failure = _failure(error, "the copy failed")
        finally:
            with self._lock:
                del self._at[worker]
            # Its locks are in nobody's way any more.
            worker.close()

    def _units(self, worker: Snapshot) -> None:
        let_go: int | None = 0
        while not self._stopping.is_set():
            with self._lock:
                last, let_go = let_go, self._let_go
            if last != let_go:
                unfinished = self.unfinished
                worker.hold_only([table for table in self._prepared.tables if table.oid in unfinished])
            with self._lock:
                self._at[worker] = None
                if not self._queue:
                    return
                unit = self._queue.popleft()
                oid = unit.table.oid
                if oid in self._broken:
                    continue
                first = oid not in self._begun
                self._begun.add(oid)
                self._at[worker] = oid
                if first:
                    # Under the lock, so that no other worker's rows of the table come before it.
                    self._inbox.put(Begins(*self._prepared.known[oid], self._number, self._prepared.snapshot_lsn))
            if not self._unit(worker, unit):
                # The transaction is spoilt, but for its snapshot.
                let_go = None

    def _unit(self, worker: Snapshot, unit: Unit) -> bool:
        """Copy a unit; False when it came to no good end."""
        oid = unit.table.oid
        table, lsn = self._prepared.known[oid].table, self._prepared.snapshot_lsn
        lines: list[bytes] = []
        size = count = total = 0

        def wanted() -> bool:
            return oid not in self._broken

        try:
            with closing(worker.read(unit)) as blocks:
                for rows in blocks:
                    for row in rows:
                        line = self._encode(events.Read(table, row, lsn))
                        lines.append(line)
                        size += len(line)
                    count += len(rows)
                    if size >= _CHUNK_BYTES:
                        self._inbox.put(Rows(oid, self._number, b"".join(lines), count), wanted)
                        total += count
                        lines, size, count = [], 0, 0
                    if self._stopping.is_set() or not wanted():
                        return False
        except (SnapshotUnusable, psycopg.errors.QueryCanceled) as unusable:
            self._break(oid, Lost((oid,), self._number, one_line(unusable)))
            return False
        except Exception as error:
            if is_lost(error):
                self._break(oid, Lost((oid,), self._number, one_line(error)))
            else:
                self._break(oid, Failed(oid, self._number, _failure(error, f"cannot copy {table.qualified}")))
            return False
        if count:
            self._inbox.put(Rows(oid, self._number, b"".join(lines), count), wanted)
        with self._lock:
            self._left[oid] -= 1
            self._counts[oid] += total + count
            ended = self._left[oid] == 0 and oid not in self._broken
        if ended:
            self._inbox.put(Ends(table, self._number, lsn, self._counts[oid]))
        return True

    def _break(self, oid: int, news: Lost | Failed) -> None:
        with self._lock:
            if oid in self._broken:
                return
            self._broken.add(oid)
        # Nobody listens any more once the run has ended, which whoever breaks a table off need not know.
        with suppress(SnapshotUnusable):
            self._inbox.put(news)


def _hold(worker: Snapshot, tables: list[PublishedTable], refused: dict[int, PgreplError]) -> list[PublishedTable]:
    """Hold tables with a worker; those that the server does not let it hold are left out, and added to ``refused``."""
    try:
        worker.hold(tables)
    except psycopg.Error as error:
        at_fault = {} if _may_pass(error) else worker.refused(tables)
        if not at_fault:
            raise
        for table in tables:
            if table.oid in at_fault:
                refused[table.oid] = server_error(at_fault[table.oid], f"cannot copy {table.qualified}")
        tables = [table for table in tables if table.oid not in at_fault]
        worker.hold_only(tables)
    return tables


def _may_pass(error: Exception) -> bool:
    """Say whether an error is none of the tables', and is waited for (docs/verdicts.md)."""
    if isinstance(error, ConnectError | Passing) or getattr(error, "sqlstate", None) in _PASSING:
        return True
    return is_lost(error)


def _failure(error: Exception, doing: str) -> PgreplError:
    """Turn what ended a copy into an error for the user; one that nobody expected is named as what it is."""
    if isinstance(error, PgreplError):
        return error
    if isinstance(error, psycopg.Error):
        return server_error(error, doing)
    failure = OperationError(f"{doing}: {type(error).__name__}: {error}", hint="this is a defect of pgrepl")
    failure.__cause__ = error
    return failure


def _identity(table: PublishedTable) -> tuple[object, ...]:
    return table.oid, table.schema, table.name, table.columns, table.row_filter
