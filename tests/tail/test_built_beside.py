"""Tables that are changed while a slot is being built: what is decoded from such a slot may be wrong, or nothing is.

PostgreSQL 16 to 18 miss the change when they decode a transaction that began after it and was open when the slot became
consistent (docs/engine.md).
"""

from __future__ import annotations

from typing import LiteralString

import pytest

from tests.command import eventually
from tests.servers.database import Database
from tests.tail.beside import Beside
from tests.tail.pipelines import POSTGRES, SLOTS, everything, prepare
from tests.tail.running import Event, Tail, run_tail


def rows(events: list[Event]) -> list[dict[str, object]]:
    return [event["new"] for event in events if event["op"] in ("read", "insert")]


@pytest.mark.parametrize(
    ("change", "row", "what"),
    [
        ("TRUNCATE t", "INSERT INTO t VALUES (7, 'x')", "public.t"),
        ("ALTER TABLE t ALTER filler TYPE varchar(40)", "INSERT INTO t VALUES (7, 'x')", "public.t"),
        ("ALTER TYPE mood ADD VALUE 'new'", "INSERT INTO parts VALUES (7, '{new}')", "public.mood"),
        ("TRUNCATE part", "INSERT INTO parts VALUES (7, '{old}')", "public.part"),
    ],
)
@pytest.mark.parametrize("store", [(), ("--store", "postgres")])
def test_the_slot_is_made_anew(
    change: LiteralString, row: LiteralString, what: str, store: tuple[str, ...], database: Database
) -> None:
    prepare(database)
    database.psql("""
        CREATE TYPE mood AS ENUM ('old');
        CREATE TABLE parts (id int PRIMARY KEY, moods mood[]) PARTITION BY RANGE (id);
        CREATE TABLE part PARTITION OF parts DEFAULT;
        ALTER PUBLICATION pub ADD TABLE parts;
        ALTER PUBLICATION pub SET (publish_via_partition_root = true);
    """)
    with Beside(database) as beside, Tail("pub", *store, dsn=database.dsn()) as tail:
        writer = beside.change(change, row)
        tail.until_stderr(f"{what} changed while the slot was being built; the copy begins again")
        writer.execute("COMMIT")
        tail.until_op("snapshot_end", 2)
        database.psql("INSERT INTO t VALUES (8)")
        events = tail.until(lambda event: event["op"] == "insert")
        assert tail.stop().code == 143
        with database.connect() as connection:
            assert len(connection.execute(SLOTS).fetchall()) == (1 if store else 0)
    written = [new["id"] for new in rows(events) if new["id"] in (7, 8)]
    assert written == [7, 8]


def test_without_a_snapshot(database: Database) -> None:
    """The columns of the row would be those of before."""
    prepare(database)
    options = ("--snapshot", "never")
    with Beside(database) as beside, Tail("pub", *options, dsn=database.dsn()) as tail:
        writer = beside.change("ALTER TABLE t ADD more int", "INSERT INTO t VALUES (7, 'x', 42)")
        tail.until_stderr("public.t changed while the slot was being built")
        writer.execute("COMMIT")
        with database.connect() as connection:
            streams = "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'"
            eventually(lambda: connection.execute(streams).fetchone() is not None, 60)
            connection.execute("INSERT INTO t VALUES (8, 'x', 43)")
        events = tail.until_op("insert")
    assert rows(events) == [{"id": 8, "filler": "x", "more": 43}]


def test_a_slot_that_somebody_else_has_made(database: Database) -> None:
    """Nothing but the server's own error tells, and going on is not possible."""
    prepare(database)
    with Beside(database) as beside, database.connect() as other:
        with other.pipeline():
            other.execute("SELECT pg_create_logical_replication_slot('made', 'pgoutput')")
            other.pgconn.flush()
            writer = beside.change("TRUNCATE t", "INSERT INTO t VALUES (7)")
        writer.execute("COMMIT")
        before = everything(other)
        finished = run_tail("pub", "--slot", "made", "--until-lsn", "now", dsn=database.dsn())
        assert everything(other) == before
    assert finished.code == 5
    assert "could not map filenumber" in finished.stderr
    assert "a table was truncated or rewritten while the slot was being built" in finished.stderr
    assert "hint: 'pgrepl slots drop made', then start again with --keep-slot --slot made" in finished.stderr


def test_a_change_of_before_is_no_matter(database: Database) -> None:
    prepare(database)
    database.psql("TRUNCATE t; INSERT INTO t VALUES (3)")
    finished = run_tail(*POSTGRES, "--until-lsn", "now", dsn=database.dsn())
    assert finished.code == 0
    assert "begins again" not in finished.stderr
    assert [new["id"] for new in rows(finished.events)] == [3]
