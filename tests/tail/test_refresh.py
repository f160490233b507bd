"""The publication is read again while tail runs: at SIGUSR1, and every --refresh."""

from __future__ import annotations

import signal

import pytest

from tests.command import eventually
from tests.servers.database import Database
from tests.tail import pipelines
from tests.tail.running import PATIENCE, Tail

_ADD = """
    CREATE TABLE later (id int PRIMARY KEY);
    INSERT INTO later VALUES (1);
    ALTER PUBLICATION pub ADD TABLE later;
"""


@pytest.mark.parametrize("arguments", [("pub",), pipelines.POSTGRES], ids=["memory", "postgres"])
def test_sigusr1_reads_the_publication_again(database18: Database, arguments: tuple[str, ...]) -> None:
    pipelines.prepare(database18)
    with Tail(*arguments, dsn=database18.dsn()) as tail:
        tail.until(lambda event: event["op"] == "snapshot_end" and event["table"] == "t")
        database18.psql(_ADD)
        # Nobody writes to the new table, so the stream does not tell of it.
        tail.send(signal.SIGUSR1)
        tail.until_stderr("public.later has come into the publication")
        events = tail.until(lambda event: event["op"] == "snapshot_end" and event["table"] == "later")
        assert [event["op"] for event in events if event["table"] == "later"] == [
            "snapshot_begin",
            "read",
            "snapshot_end",
        ]
        database18.psql("INSERT INTO later VALUES (2); INSERT INTO t VALUES (2)")
        tail.until_op("insert", 2)
        assert tail.stop().code == 143


def test_sigusr1_takes_note_of_a_table_that_left(database18: Database) -> None:
    pipelines.prepare(database18)
    database18.psql(_ADD)
    with Tail(*pipelines.POSTGRES, dsn=database18.dsn()) as tail, database18.connect() as connection:
        tail.until_op("snapshot_end", 2)
        database18.psql("ALTER PUBLICATION pub DROP TABLE later")
        tail.send(signal.SIGUSR1)
        query = "SELECT count(*) FROM etl.replication_state WHERE table_id = 'later'::regclass AND is_current"

        def is_forgotten() -> bool:
            # It goes once the stream has passed the place where the publication was read.
            connection.execute("INSERT INTO t SELECT coalesce(max(id), 0) + 1 FROM t")
            return connection.execute(query).fetchone() == (0,)

        eventually(is_forgotten, PATIENCE)
        assert tail.stop().code == 143


def test_a_named_table_that_leaves_ends_no_run(database18: Database) -> None:
    """It is said once, and when it comes back it is copied, for what was missed."""
    pipelines.prepare(database18)
    database18.psql(_ADD)
    options = ["--table", "public.t", "--table", "public.later", "--refresh", "200ms"]
    with Tail(*pipelines.POSTGRES, *options, dsn=database18.dsn()) as tail:
        tail.until_op("snapshot_end", 2)
        database18.psql("ALTER PUBLICATION pub DROP TABLE later")
        tail.until_stderr("publication pub does not have public.later any more; going on without")
        database18.psql("INSERT INTO t VALUES (2); INSERT INTO later VALUES (2)")
        tail.until_op("insert")
        database18.psql("ALTER PUBLICATION pub ADD TABLE later")
        tail.until_stderr("public.later has come into the publication")
        events = tail.until_op("snapshot_end", 3)
        finished = tail.stop()
    assert finished.code == 143
    assert finished.stderr.count("any more; going on without") == 1
    last = [event["new"]["id"] for event in events[-3:] if event["op"] == "read"]
    assert sorted(last) == [1, 2]


def test_refresh_reads_it_now_and_then(database18: Database) -> None:
    pipelines.prepare(database18)
    with Tail("pub", "--refresh", "300ms", dsn=database18.dsn()) as tail:
        tail.until_op("snapshot_end")
        database18.psql(_ADD)
        tail.until(lambda event: event["op"] == "snapshot_end" and event["table"] == "later")
        assert tail.stop().code == 143
