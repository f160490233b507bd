"""Leaving a pipeline to supabase/etl, and taking one over that it has left."""

from __future__ import annotations

import json

import pytest

from pgrepl import migrations
from pgrepl.lsn import Lsn
from tests.command import eventually, pgrepl
from tests.servers.database import Database
from tests.tail.running import Tail, run_tail

OPTIONS = ["pub", "--store", "postgres", "--until-lsn", "now"]


@pytest.fixture
def etl(database: Database) -> Database:
    with database.connect() as connection:
        migrations.apply(connection)
    database.psql("CREATE TABLE t (id int PRIMARY KEY, a text); CREATE PUBLICATION pub FOR TABLE t")
    return database


def confirmed(database: Database) -> Lsn:
    with database.connect() as connection:
        row = connection.execute(
            "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE database = %s", [database.name]
        ).fetchone()
    assert row is not None
    return Lsn.parse(row[0])


def position(database: Database) -> Lsn:
    shown = json.loads(pgrepl("state", "show", "--json", "-d", database.dsn()).stdout)
    return Lsn.parse(shown["position"])


def move_slot_to_position(database: Database) -> Lsn:
    """Let the slot stand exactly at the stored position, where a crash of pgrepl leaves it."""
    at = position(database)
    with database.connect() as connection:
        connection.execute(
            "SELECT pg_replication_slot_advance(slot_name, %s) FROM pg_replication_slots WHERE database = %s",
            [str(at), database.name],
        )
    assert confirmed(database) == at
    return at


def test_state_release(etl: Database) -> None:
    """The slot stands where the byte after it is no commit record, and the next run of pgrepl goes on from there."""
    assert run_tail(*OPTIONS, dsn=etl.dsn()).code == 0
    at = move_slot_to_position(etl)
    planned = pgrepl("state", "release", "--dry-run", "-d", etl.dsn())
    assert (planned.returncode, confirmed(etl)) == (0, at)
    assert f"is released at position {at}" in planned.stderr
    unasked = pgrepl("state", "release", "-d", etl.dsn())
    assert (unasked.returncode, confirmed(etl)) == (2, at)
    done = pgrepl("state", "release", "--yes", "-d", etl.dsn())
    assert done.returncode == 0, done.stderr
    assert f"stands at {confirmed(etl)}" in done.stderr
    assert confirmed(etl) in (at, position(etl) - 1)
    etl.psql("INSERT INTO t VALUES (1, 'a')")
    finished = run_tail(*OPTIONS, dsn=etl.dsn())
    assert (finished.code, [event["op"] for event in finished.events]) == (0, ["insert"]), finished.stderr


def test_release_needs_a_slot_that_nobody_reads(etl: Database) -> None:
    with Tail("pub", "--store", "postgres", dsn=etl.dsn()) as tail:
        tail.until_op("snapshot_end")
        refused = pgrepl("state", "release", "--yes", "-d", etl.dsn())
        assert refused.returncode == 1
        assert "is active" in refused.stderr
        assert tail.stop().code == 143


def test_release_of_what_pgrepl_never_ran(etl: Database) -> None:
    refused = pgrepl("state", "release", "--yes", "-d", etl.dsn())
    assert refused.returncode == 1
    assert "nothing to leave" in refused.stderr


def test_the_last_word_of_a_good_end_lies_inside_the_last_record(etl: Database) -> None:
    """One byte before the position is the same for pgrepl, and right for supabase/etl, which adds one."""
    assert run_tail(*OPTIONS, dsn=etl.dsn()).code == 0
    for number in range(3):
        etl.psql(f"INSERT INTO t VALUES ({number}, 'a')")
        finished = run_tail(*OPTIONS, dsn=etl.dsn())
        assert [event["op"] for event in finished.events] == ["insert"]
        assert confirmed(etl) == position(etl) - 1
        assert finished.complaints == []
        assert "could not be released" not in finished.stderr


def test_the_last_word_while_others_write(etl: Database) -> None:
    """Where it is said too late, since the server knows the position already, another record follows."""
    with Tail("pub", "--store", "postgres", dsn=etl.dsn()) as tail:
        tail.until_op("snapshot_end")
        etl.psql("INSERT INTO t VALUES (1, 'a')")
        tail.until_op("insert")
        eventually(lambda: confirmed(etl) == position(etl))
        with etl.connect() as connection:
            connection.execute("CREATE TABLE quiet (id int)")
            assert tail.stop().code == 143
    assert confirmed(etl) == position(etl) - 1


def test_a_good_end_says_when_the_slot_could_not_be_released(etl: Database) -> None:
    with Tail("pub", "--store", "postgres", dsn=etl.dsn()) as tail:
        tail.until_op("snapshot_end")
        # The connection for queries, the first that it opened; the stream knows nothing of it.
        etl.psql("""
            SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = 'pgrepl tail' AND backend_type = 'client backend'
             ORDER BY backend_start LIMIT 1
        """)
        finished = tail.stop()
    assert finished.code == 143
    assert "could not be released" in finished.stderr
    assert "'pgrepl state release'" in finished.stderr
    assert finished.complaints == []
    assert pgrepl("state", "release", "--yes", "-d", etl.dsn()).returncode == 0
