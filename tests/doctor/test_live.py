"""What happens on the server at this moment, and the probe; seconds of waiting are lowered where a test would wait."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg
import pytest

from pgrepl.catalog import wal
from pgrepl.doctor import Status, context
from pgrepl.doctor.checks import live, probe
from tests.command import eventually
from tests.conftest import NewServer
from tests.doctor.conftest import examine, of, one
from tests.doctor.fixes import (
    ask,
    ask_about,
    commands_of,
    fresh_name,
    in_actions,
    is_silent,
    make_slot,
    reading,
    run_command,
    run_sql,
    write_wal,
)
from tests.servers.database import Database


@contextlib.contextmanager
def writing(database: Database, statement: str = "SELECT pg_current_xact_id()") -> Iterator[psycopg.Connection]:
    """A session in a transaction that has written, which somebody may end."""
    session = database.connect(application_name="batch job")
    session.execute("BEGIN")
    session.execute(statement.encode())
    try:
        yield session
    finally:
        session.close()


def test_a_transaction_that_stays_open(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    database.psql("CREATE TABLE t (a int)")
    with writing(database, "INSERT INTO t VALUES (1)") as session:
        pid = session.info.backend_pid
        assert is_silent("live.long_xact", f"pid {pid}", database)
        monkeypatch.setattr(live, "_LONG_SECONDS", 0.0)
        found = ask_about("live.long_xact", f"pid {pid}", database)
        assert found.status is Status.WARN
        assert "(postgres, batch job, idle in transaction)" in found.summary
        assert found.summary.endswith("INSERT INTO t VALUES (1)")
        # An idle session does not listen to pg_cancel_backend.
        (statement,) = in_actions(found)
        assert statement == f"SELECT pg_terminate_backend({pid});"
        database.psql(statement)
        eventually(lambda: is_silent("live.long_xact", f"pid {pid}", database))


def test_who_may_not_look_into_sessions_does_not_say_that_all_is_well(database: Database) -> None:
    database.psql("CREATE ROLE onlooker LOGIN")
    with writing(database):
        found = ask("live.long_xact", database, user="onlooker")
        assert found.status is Status.UNKNOWN
        assert found.evidence["hidden_sessions"] >= 1
        run_sql(database, found)
        assert all(
            finding.status is not Status.UNKNOWN
            for finding in of(examine(database, only=["live.long_xact"], user="onlooker"), "live.long_xact")
        )


def test_a_role_sees_its_own_sessions_without_any_right(new_server: NewServer) -> None:
    database = Database(new_server(18, autovacuum="off"), "postgres")
    database.psql("CREATE ROLE onlooker LOGIN")
    # Nobody else is there, so that nothing is hidden.
    assert ask("live.long_xact", database, user="onlooker").status is Status.PASS


def test_a_prepared_transaction(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    gid = f"it's {fresh_name()}"
    with database.connect() as session:
        session.execute("BEGIN")
        session.execute("SELECT pg_current_xact_id()")
        session.execute("PREPARE TRANSACTION {}".format("'" + gid.replace("'", "''") + "'").encode())
    try:
        assert ask_about("live.prepared", gid, database).status is Status.INFO
        monkeypatch.setattr(live, "_LONG_SECONDS", 0.0)
        database.psql("CREATE ROLE onlooker LOGIN")
        assert ask_about("live.prepared", gid, database, user="onlooker").status is Status.WARN
        found = ask_about("live.prepared", gid, database)
        assert (found.status, found.evidence["database"]) == (Status.WARN, database.name)
    finally:
        commit, _rollback = in_actions(ask_about("live.prepared", gid, database))
        database.psql(commit)
    assert is_silent("live.prepared", gid, database)


def test_the_rate_of_wal_is_what_was_written(new_server: NewServer, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(new_server(18), "postgres")
    monkeypatch.setattr(context, "SAMPLE_SECONDS", 0.5)
    found = ask("live.wal_rate", database)
    assert found.status is Status.INFO
    assert found.evidence["seconds"] >= 0.5
    assert found.evidence["bytes_per_second"] < 100_000


def test_a_rate_counts_the_bytes_between_two_looks(database18: Database) -> None:
    name = fresh_name()
    make_slot(database18, name)
    with database18.connect() as conn:
        before = wal.sample(conn)
        conn.execute("SELECT pg_logical_emit_message(false, 'filler', repeat('x', 1000000))")
        after = wal.sample(conn)
    assert before is not None
    assert after is not None
    rate = wal.rate(before, after)
    assert rate.written * rate.seconds >= 1_000_000
    # The slot stays where it is, and falls behind by as much.
    assert rate.falling_behind[name] == rate.written


def test_pg_wal_that_a_slot_keeps(new_server: NewServer) -> None:
    server = new_server(18, max_wal_size="32MB", min_wal_size="32MB")
    database = Database(server, "postgres")
    name = fresh_name()
    make_slot(database, name)
    assert ask("live.disk", database).status is Status.PASS
    write_wal(database, 8)
    database.psql("CREATE ROLE onlooker LOGIN")
    unknown = ask("live.disk", database, user="onlooker")
    assert unknown.status is Status.UNKNOWN
    run_sql(database, unknown)
    assert ask("live.disk", database, user="onlooker").status is Status.WARN

    found = ask("live.disk", database)
    assert found.status is Status.WARN
    assert found.evidence["slot"] == name
    assert found.evidence["bytes"] > 3 * (32 << 20)
    (command,) = commands_of(found)
    run_command(database, command)
    database.psql("CHECKPOINT")
    assert ask("live.disk", database).status is Status.PASS


def test_pg_wal_that_waits_for_the_archive(new_server: NewServer) -> None:
    server = new_server(18, max_wal_size="32MB", min_wal_size="32MB", archive_mode="on", archive_command="false")
    database = Database(server, "postgres")
    write_wal(database, 8)
    eventually(lambda: ask("live.disk", database).evidence["archiving_failed"] is not None)
    found = ask("live.disk", database)
    assert found.status is Status.WARN
    assert "archiving fails" in found.summary
    assert "archive_command" in found.fix[0].text


def test_many_slots_that_are_read(new_server: NewServer) -> None:
    database = Database(new_server(16), "postgres")
    names = [fresh_name() for _ in range(5)]
    for name in names:
        make_slot(database, name)
    with contextlib.ExitStack() as readers:
        for name in names[:4]:
            readers.enter_context(reading(database, name))
        eventually(lambda: len(ask("live.slot_count", database).evidence["active_logical_slots"]) == 4)
        assert ask("live.slot_count", database).status is Status.PASS
        with reading(database, names[4]):
            eventually(lambda: ask("live.slot_count", database).status is Status.WARN)
            assert ask("live.slot_count", database).evidence["active_logical_slots"] == sorted(names)
        # One that is not needed was stopped.
        eventually(lambda: ask("live.slot_count", database).status is Status.PASS)


def test_a_message_gets_through(database: Database) -> None:
    assert ask("live.end_to_end", database).status is Status.SKIP
    assert ask("live.end_to_end", database, probe=True).summary == "a stream needs a publication, and there is none"
    database.psql("CREATE TABLE t (a int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")
    found = ask("live.end_to_end", database, probe=True)
    assert found.status is Status.PASS
    assert 0 < found.evidence["round_trip_ms"] < 10_000
    with database.connect() as conn:
        left = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"
        eventually(lambda: conn.execute(left).fetchone() == (0,))


def test_a_message_gets_through_among_others(database: Database) -> None:
    database.psql(
        "CREATE TABLE t (a int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t;"
        "SELECT pg_create_logical_replication_slot(current_database() || '_other', 'pgoutput');"
        "INSERT INTO t SELECT generate_series(1, 1000)"
    )
    with database.connect() as conn:
        conn.execute("SELECT pg_logical_emit_message(true, 'pgrepl', 'not that one')")
        assert ask("live.end_to_end", database, probe=True).status is Status.PASS


def test_a_message_that_does_not_get_through(database18: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    database18.psql("CREATE PUBLICATION p")
    monkeypatch.setattr(probe, "_SECONDS", 0.5)
    with writing(database18) as session:
        pid = session.info.backend_pid
        found = ask("live.end_to_end", database18, probe=True)
        assert found.status is Status.FAIL
        assert "a slot could not be made within 0.5 s, which waits for" in found.summary
        assert {"pid": pid, "gid": None} in found.evidence["blockers"]
        database18.psql(f"SELECT pg_terminate_backend({pid})")
    eventually(lambda: ask("live.end_to_end", database18, probe=True).status is Status.PASS)


def test_no_slot_for_the_probe(new_server: NewServer) -> None:
    database = Database(new_server(18, max_replication_slots="1"), "postgres")
    database.psql("CREATE PUBLICATION p")
    name = fresh_name()
    make_slot(database, name)
    found = ask("live.end_to_end", database, probe=True)
    assert (found.status, found.evidence["sqlstate"]) == (Status.FAIL, "53400")
    run_command(database, f"pgrepl slots drop {name}")
    assert ask("live.end_to_end", database, probe=True).status is Status.PASS


def test_a_role_that_may_not_replicate_cannot_probe(database18: Database) -> None:
    database18.psql("CREATE ROLE onlooker LOGIN; CREATE PUBLICATION p")
    report = examine(database18, only=["live.end_to_end"], user="onlooker", probe=True)
    assert one(report, "conn.replication").status is Status.FAIL
    assert one(report, "live.end_to_end").status is Status.SKIP
