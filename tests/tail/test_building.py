"""A stop while the server still waits with the slot for somebody's transaction: nothing is left of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.command import eventually
from tests.servers.database import Database
from tests.tail.pipelines import POSTGRES, SLOTS, prepare
from tests.tail.running import Tail, run_tail

_BEING_BUILT = """
    SELECT 1 FROM pg_replication_slots JOIN pg_stat_activity ON pid = active_pid
     WHERE database = current_database() AND slot_name LIKE %s AND wait_event_type = 'Lock'
"""


@contextmanager
def blocker(database: Database) -> Iterator[psycopg.Connection]:
    """A transaction that a slot has to wait for."""
    with database.connect() as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT pg_current_xact_id()")
        yield connection


def must_stop_and_leave_nothing(tail: Tail, database: Database, name: str, left: int = 0) -> None:
    """Stop a run whose slot of this name is being built, and make sure that it is gone at the end of the run."""
    with database.connect() as connection:
        eventually(lambda: connection.execute(_BEING_BUILT, [name]).fetchone() is not None, 60)
        assert tail.stop().code == 143, tail.stderr
        assert len(connection.execute(SLOTS).fetchall()) == left
    assert "Traceback" not in tail.stderr


def test_a_slot_that_stays(database: Database) -> None:
    prepare(database)
    with blocker(database), Tail(*POSTGRES, dsn=database.dsn()) as tail:
        must_stop_and_leave_nothing(tail, database, "supabase_etl_apply_%")
    finished = run_tail(*POSTGRES, "--until-lsn", "now", dsn=database.dsn())
    assert finished.code == 0, finished.stderr
    assert [event["new"]["id"] for event in finished.events if event["op"] == "read"] == [1]


def test_a_temporary_slot(database: Database) -> None:
    prepare(database)
    with blocker(database), Tail("pub", dsn=database.dsn()) as tail:
        must_stop_and_leave_nothing(tail, database, "pgrepl_tmp_%")


def test_the_slot_of_a_late_copy(database: Database) -> None:
    prepare(database)
    database.psql("CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late VALUES (7)")
    with Tail(*POSTGRES, "--refresh", "1s", dsn=database.dsn()) as tail:
        tail.until_op("snapshot_end")
        with database.connect() as connection:
            ready = "SELECT state FROM etl.replication_state WHERE is_current"
            eventually(lambda: connection.execute(ready).fetchall() == [("ready",)], 60)
        with blocker(database):
            database.psql("ALTER PUBLICATION pub ADD TABLE late")
            must_stop_and_leave_nothing(tail, database, "pgrepl_copy_%", left=1)
    finished = run_tail(*POSTGRES, "--until-lsn", "now", dsn=database.dsn())
    assert finished.code == 0, finished.stderr
    assert [event["new"]["id"] for event in finished.events if event["op"] == "read"] == [7]
