"""Copies that meet with trouble: whatever happens to them, something is told of every table."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest

from pgrepl import conninfo
from pgrepl.engine import copying
from pgrepl.engine.copying import Copier, Ends, Failed, Gone, Inbox, Lost, News, Prepared, Waits
from pgrepl.engine.lockwatch import LockWatch
from pgrepl.engine.selection import Selection
from pgrepl.engine.slotwait import SlotWait
from pgrepl.engine.snapshot import Snapshot
from pgrepl.errors import OperationError
from pgrepl.events import Event, Read
from pgrepl.formats.json import JsonLines
from pgrepl.lsn import Lsn
from pgrepl.replication.walsender import Walsender
from tests.command import eventually
from tests.conftest import NewServer
from tests.engine.test_snapshot import run
from tests.servers.database import Database
from tests.tail.running import Tail

_RECEIVED = Lsn(0x123)
_TABLES = """
    CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY);
    INSERT INTO a VALUES (1); INSERT INTO b VALUES (1), (2);
    CREATE PUBLICATION pub FOR TABLE a, b;
"""


@pytest.fixture
def tables(database: Database) -> Database:
    database.psql(_TABLES)
    return database


class Copies:
    """A copier, and what it tells."""

    def __init__(self, copier: Copier, inbox: Inbox, warnings: list[str]) -> None:
        self.copier = copier
        self.warnings = warnings
        self._inbox = inbox

    def news(self, oids: set[int]) -> list[News]:
        """Wait until the end of each of these tables has been told, in one way or the other."""
        news: list[News] = []
        left = set(oids)
        deadline = time.monotonic() + 60
        while left:
            told = self._inbox.take()
            if told is None:
                assert time.monotonic() < deadline, f"nothing is told of {left}; {news}, {self.warnings}"
                time.sleep(0.01)
                continue
            news.append(told)
            match told:
                case Ends(table):
                    left.discard(table.oid)
                case Lost(lost) | Gone(lost):
                    left -= set(lost)
                case Failed(oid):
                    left.discard(oid)
        return news


@contextmanager
def copies(
    database: Database,
    *,
    user: str = "postgres",
    jobs: int = 1,
    selection: Selection | None = None,
    encode: Callable[[Event], bytes] | None = None,
) -> Iterator[Copies]:
    warnings: list[str] = []
    inbox = Inbox(lambda: None)
    copier = Copier(
        conninfo.parse(database.dsn(user), "the test"),
        ["pub"],
        selection or Selection(),
        jobs,
        encode or JsonLines().encode,
        inbox,
        yield_after=None,
        received=lambda: _RECEIVED,
        names=_names(database),
        warn=warnings.append,
    )
    try:
        yield Copies(copier, inbox, warnings)
    finally:
        copier.stop()


@contextmanager
def prepared(database: Database, copier: Copier) -> Iterator[Prepared]:
    """What a fresh start has when its slot is there."""
    walsender = Walsender.open(conninfo.parse(database.dsn(), "the test"), "the test")
    try:
        slot = walsender.create_slot(f"{database.name}_slot", temporary=True)
        assert slot.snapshot_name is not None
        yield copier.prepare(slot.snapshot_name, slot.consistent_point, None, None)
    finally:
        walsender.close()


def _names(database: Database) -> dict[int, str]:
    query = "SELECT oid::int, format('%I.%I', relnamespace::regnamespace, relname) FROM pg_class WHERE relkind = 'r'"
    with database.connect() as connection:
        return dict(connection.execute(query).fetchall())


def oids(database: Database, *names: str) -> tuple[int, ...]:
    with database.connect() as connection:
        return tuple(
            connection.execute("SELECT %s::regclass::oid::int", [name]).fetchone()[0]  # type: ignore[index]
            for name in names
        )


def end(database: Database, worker: Snapshot) -> None:
    """End the session of a worker."""
    with database.connect() as connection:
        assert connection.execute("SELECT pg_terminate_backend(%s, 10000)", [worker.pid]).fetchone() == (True,)


def rows(news: list[News]) -> dict[int, int]:
    """How many rows came of each table whose copy was ended."""
    return {told.table.oid: told.rows for told in news if isinstance(told, Ends)}


# Workers that are lost.


def test_a_worker_that_is_lost_before_it_begins(tables: Database) -> None:
    """As in a restart of the server while the beginning is being stored."""
    both = set(oids(tables, "a", "b"))
    with copies(tables) as copied, prepared(tables, copied.copier) as snapshot:
        end(tables, snapshot.workers[0])
        copied.copier.run(snapshot)
        (lost,) = copied.news(both)
    assert isinstance(lost, Lost)
    assert set(lost.oids) == both
    assert "terminating connection" in lost.reason


def test_a_run_goes_on_when_its_workers_are_lost(tables: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    start = Copier.run

    def late(copier: Copier, snapshot: Prepared) -> None:
        for worker in snapshot.workers:
            end(tables, worker)
        start(copier, snapshot)

    monkeypatch.setattr(Copier, "run", late)
    events, warnings = run(tables)
    assert [event["op"] for event in events].count("snapshot_end") == 2
    assert [event["new"]["id"] for event in events if event["op"] == "read" and event["table"] == "b"] == [1, 2]
    assert len(warnings) == 1
    assert warnings[0].endswith("; the copy begins again")


def test_another_worker_that_is_lost_while_the_tables_are_locked(
    tables: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others do its work, and that they are fewer is said."""
    both = set(oids(tables, "a", "b"))
    hold = Snapshot.hold
    held: list[Snapshot] = []

    def late(snapshot: Snapshot, wanted: Any) -> None:
        held.append(snapshot)
        if len(held) == 2:
            end(tables, snapshot)
        hold(snapshot, wanted)

    monkeypatch.setattr(Snapshot, "hold", late)
    with copies(tables, jobs=3) as copied, prepared(tables, copied.copier) as snapshot:
        copied.copier.run(snapshot)
        news = copied.news(both)
    assert sorted(rows(news).values()) == [1, 2]
    assert len(copied.warnings) == 1
    assert copied.warnings[0].startswith("copying with 2 of 3 workers: ")


def test_a_role_that_may_not_connect_so_often(tables: Database) -> None:
    tables.psql("CREATE ROLE app LOGIN REPLICATION CONNECTION LIMIT 2; GRANT SELECT ON a, b TO app;")
    wanted = oids(tables, "a", "b")
    with copies(tables, user="app", jobs=4) as copied:
        copied.copier.copy(wanted, 1)
        news = copied.news(set(wanted))
    assert sorted(rows(news).values()) == [1, 2]
    assert "workers: " in copied.warnings[0]


# A table that cannot be copied.


def test_a_schema_that_may_not_be_used(database: Database) -> None:
    """SELECT was granted, so the table seems to be one that can be locked; the others are copied."""
    database.psql("""
        CREATE SCHEMA hidden; CREATE TABLE hidden.t (id int PRIMARY KEY);
        CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b VALUES (1), (2);
        CREATE PUBLICATION pub FOR TABLE a;
        CREATE ROLE app LOGIN REPLICATION; GRANT SELECT ON hidden.t, a, b TO app;
    """)
    arguments = ["pub", "--keep-slot", "--slot", f"{database.name}_slot", "--refresh", "1s"]
    with Tail(*arguments, dsn=database.dsn("app")) as tail:
        tail.until_op("snapshot_end")
        database.psql("ALTER PUBLICATION pub ADD TABLE hidden.t, b")
        tail.until(lambda event: event["op"] == "snapshot_end" and event["table"] == "b")
        said = tail.until_stderr("the stream goes on without this table")
        database.psql("INSERT INTO hidden.t VALUES (1); INSERT INTO b VALUES (3)")
        events = tail.until(lambda event: event["op"] == "insert" and event["table"] == "b")
        assert tail.stop().code == 143
    assert "cannot copy hidden.t: permission denied for schema hidden; the stream goes on without this table" in said
    assert [event["new"]["id"] for event in events if event["op"] == "read"] == [1, 2]
    assert "hidden" not in {event.get("schema") for event in events}


def test_a_schema_that_may_not_be_used_any_more(database: Database) -> None:
    """At a fresh start it ends the run, as it would have if it had been so before."""
    database.psql("""
        CREATE SCHEMA hidden; CREATE TABLE hidden.t (id int PRIMARY KEY); CREATE TABLE a (id int PRIMARY KEY);
        CREATE PUBLICATION pub FOR TABLE hidden.t, a;
        CREATE ROLE app LOGIN REPLICATION; GRANT SELECT ON hidden.t, a TO app;
    """)
    with (
        copies(database, user="app", jobs=2) as copied,
        pytest.raises(OperationError, match=r"cannot copy hidden\.t: permission denied for schema hidden"),
        prepared(database, copied.copier),
    ):
        pass


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_that_nobody_expects(tables: Database, jobs: int) -> None:
    """It is told as what it is, and of its own table alone."""
    a, b = oids(tables, "a", "b")
    encode = JsonLines().encode

    def failing(event: Event) -> bytes:
        if isinstance(event, Read) and event.table.oid == a:
            raise ZeroDivisionError("what nobody expects")
        return encode(event)

    with copies(tables, jobs=jobs, encode=failing) as copied:
        copied.copier.copy((a, b), 7)
        news = copied.news({a, b})
    (failed,) = [told for told in news if isinstance(told, Failed)]
    assert (failed.oid, failed.number) == (a, 7)
    assert str(failed.error) == "cannot copy public.a: ZeroDivisionError: what nobody expects"
    assert rows(news) == {b: 2}


@pytest.mark.parametrize("method", ["units", "describe", "hold_only"])
def test_an_error_that_nobody_expects_and_that_is_of_no_table(
    tables: Database, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    both = oids(tables, "a", "b")

    def failing(*_: object) -> None:
        raise ZeroDivisionError("what nobody expects")

    monkeypatch.setattr(Snapshot, method, failing)
    if method == "hold_only":
        # Called when something has been let go, or a table has failed.
        monkeypatch.setattr(Snapshot, "read", failing)
    with copies(tables) as copied:
        copied.copier.copy(both, 1)
        news = copied.news(set(both))
    failed = {told.oid: str(told.error) for told in news if isinstance(told, Failed)}
    assert failed.keys() == set(both)
    assert all(error.endswith(": ZeroDivisionError: what nobody expects") for error in failed.values())


# What passes.


def _attempts(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Count how often a replication connection was asked for, without much of a pause."""
    attempts: list[None] = []
    opened = Walsender.open.__func__  # type: ignore[attr-defined]

    def counted(kind: type[Walsender], *arguments: Any) -> Walsender:
        attempts.append(None)
        walsender: Walsender = opened(kind, *arguments)
        return walsender

    monkeypatch.setattr(Walsender, "open", classmethod(counted))
    monkeypatch.setattr(copying, "_LATE_RETRY", 0.05)
    return attempts


@pytest.mark.parametrize(
    ("setting", "message"),
    [("max_wal_senders", "max_wal_senders"), ("max_replication_slots", "all replication slots are in use")],
)
def test_nothing_is_free(new_server: NewServer, monkeypatch: pytest.MonkeyPatch, setting: str, message: str) -> None:
    """It is waited for, which is said once, and then the table is copied."""
    database = Database(new_server(18, **{setting: "1"}), "postgres")
    database.psql(_TABLES)
    both = oids(database, "a", "b")
    holder = Walsender.open(conninfo.parse(database.dsn(), "the test"), "the test")
    try:
        holder.create_slot("other", temporary=True)
        attempts = _attempts(monkeypatch)
        with copies(database) as copied:
            copied.copier.copy(both, 1)
            eventually(lambda: len(attempts) >= 5, 60)
            assert len(copied.warnings) == 1
            assert message in copied.warnings[0]
            assert copied.warnings[0].endswith("; the copy of public.a, public.b waits until that has passed")
            holder.close()
            news = copied.news(set(both))
    finally:
        holder.close()
    assert sorted(rows(news).values()) == [1, 2]
    assert Waits(both, 1, _RECEIVED) in news


def test_a_transaction_that_goes_on(tables: Database) -> None:
    """The slot of a copy waits for it: who that is is said, and what was received before is not needed."""
    both = oids(tables, "a", "b")
    with copies(tables) as copied, tables.connect(application_name="night job") as other:
        other.execute("BEGIN; INSERT INTO a VALUES (2)")
        copied.copier.copy(both, 1)
        eventually(lambda: copied.warnings != [], 60)
        other.execute("COMMIT")
        news = copied.news(set(both))
    assert sorted(rows(news).values()) == [2, 2]
    assert news[0] == Waits(both, 1, _RECEIVED)
    assert "the copy of public.a, public.b cannot begin yet, for 2 s now its slot waits for pid" in copied.warnings[0]
    assert "night job, idle in transaction" in copied.warnings[0]


def test_a_walsender_that_waits_for_no_transaction(tables: Database) -> None:
    """Its slot may be consistent already, so everything that comes now is needed."""
    seen: list[Lsn] = []
    target = conninfo.parse(tables.dsn(), "the test")
    with tables.connect() as idle:
        pid = idle.info.backend_pid
        with SlotWait(target, pid, "a", received=lambda: _RECEIVED, seen=seen.append, warn=print) as wait:
            wait.look(60)
        assert seen == []


def test_a_publication_that_is_away(tables: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    both = oids(tables, "a", "b")
    tables.psql("DROP PUBLICATION pub")
    attempts = _attempts(monkeypatch)
    with copies(tables) as copied:
        copied.copier.copy(both, 1)
        eventually(lambda: len(attempts) >= 3, 60)
        tables.psql("CREATE PUBLICATION pub FOR TABLE a, b")
        news = copied.news(set(both))
    assert sorted(rows(news).values()) == [1, 2]
    assert copied.warnings == [
        'publication "pub" does not exist; the copy of public.a, public.b waits until that has passed'
    ]


def test_another_table_leaves_the_publication(tables: Database) -> None:
    """One that --table names; it is none of the others' business."""
    a, b = oids(tables, "a", "b")
    tables.psql("ALTER PUBLICATION pub DROP TABLE a")
    named = frozenset({("public", "a"), ("public", "b")})
    with copies(tables, selection=Selection(only=named)) as copied:
        copied.copier.copy((b,), 1)
        assert rows(copied.news({b})) == {b: 2}
        copied.copier.copy((a, b), 2)
        news = copied.news({a, b})
    assert Gone((a,), 2) in news
    assert rows(news) == {b: 2}
    assert copied.warnings == []


def test_all_tables_leave_the_publication(tables: Database) -> None:
    both = oids(tables, "a", "b")
    tables.psql("ALTER PUBLICATION pub DROP TABLE a, b")
    with copies(tables) as copied:
        copied.copier.copy(both, 1)
        (gone,) = copied.news(set(both))
    assert isinstance(gone, Gone)
    assert set(gone.oids) == set(both)


# The end of a run.


def test_a_lock_is_let_go_when_nobody_listens_any_more(tables: Database) -> None:
    """The watch may find out who waits just when the run ends."""
    a, b = oids(tables, "a", "b")
    with copies(tables) as copied, prepared(tables, copied.copier) as snapshot:
        inbox = Inbox(lambda: None)
        stopping = threading.Event()
        job = copying._Job(snapshot, 1, JsonLines().encode, inbox, stopping)
        inbox.close()
        looks: list[set[int]] = []

        class Watched:
            """The job, with every look at who holds the locks."""

            unfinished = property(lambda _: job.unfinished)
            current = property(lambda _: job.current)
            let_go = staticmethod(job.let_go)

            @property
            def pids(self) -> list[int]:
                looks.append(job.unfinished)
                return job.pids

        target = conninfo.parse(tables.dsn(), "the test")
        with tables.connect() as other, closing(tables.connect()) as waiting:
            waiting.pgconn.send_query(b"TRUNCATE a")
            eventually(lambda: _is_waited_for(other))
            with snapshot.resources, LockWatch(target, Watched(), 0.0, copied.warnings.append):
                # It looks on when it has let go.
                eventually(lambda: looks.count({b}) >= 2)
    assert a not in job.unfinished


def _is_waited_for(connection: psycopg.Connection) -> bool:
    query = "SELECT 1 FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = %s)"
    return connection.execute(query, [connection.info.dbname]).fetchone() is not None
