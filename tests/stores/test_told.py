"""A restart knows which definition of a table the output was told of last."""

from __future__ import annotations

from tests.command import pgrepl
from tests.servers.database import Database
from tests.tail.running import Event, Tail, run_tail

ARGUMENTS = ("pub", "--store", "postgres")


def _ready(database: Database) -> None:
    database.psql("""
        CREATE TYPE mood AS ENUM ('sad', 'ok');
        CREATE TABLE t (id int PRIMARY KEY, note varchar(20), how mood); INSERT INTO t VALUES (1, 'a', 'ok');
        CREATE PUBLICATION pub FOR TABLE t;
    """)
    assert pgrepl("migrations", "apply", "-d", database.dsn()).returncode == 0
    # The messages of the event trigger are no part of this.
    database.psql("ALTER EVENT TRIGGER supabase_etl_ddl_message_trigger DISABLE")


def _on(database: Database) -> list[Event]:
    ended = run_tail(*ARGUMENTS, "--until-lsn", "now", dsn=database.dsn())
    assert ended.code == 0, ended.stderr
    return ended.events


def test_an_alter_table_while_nobody_reads_is_told_of(database: Database) -> None:
    """Case pipeline_recovers_after_multiple_schema_changes_and_restart of supabase/etl's tests."""
    _ready(database)
    assert [event["op"] for event in _on(database)] == ["snapshot_begin", "read", "snapshot_end"]
    database.psql("INSERT INTO t VALUES (2, 'b', 'ok')")
    assert [event["op"] for event in _on(database)] == ["insert"]
    database.psql(
        "ALTER TABLE t RENAME note TO words; ALTER TABLE t ADD more int; INSERT INTO t VALUES (3, 'c', 'sad', 1)"
    )
    told, inserted = _on(database)
    assert told["op"] == "schema"
    assert told["diff"] == {"added": ["more"], "dropped": [], "renamed": [["note", "words"]], "retyped": []}
    assert inserted["new"] == {"id": 3, "words": "c", "how": "sad", "more": 1}
    database.psql("INSERT INTO t VALUES (4, 'd')")
    assert [event["op"] for event in _on(database)] == ["insert"]


def test_what_was_told_after_the_position_is_told_again(database: Database) -> None:
    """The version is stored with the position, no earlier: what is printed again is told of again."""
    _ready(database)
    _on(database)
    with Tail(*ARGUMENTS, dsn=database.dsn(), read=False) as tail, database.connect() as connection:
        # More than the pipe takes: the position stays before it.
        connection.execute("ALTER TABLE t ADD more text")
        connection.execute("INSERT INTO t SELECT g, 'x', 'ok', repeat('y', 1000) FROM generate_series(10, 2000) g")
        slot = "SELECT active FROM pg_replication_slots WHERE database = %s"
        while connection.execute(slot, [database.name]).fetchone() != (True,):
            assert tail.running
        assert tail.pipe.readline().startswith(b'{"op":"schema"')
    events = _on(database)
    assert [event["op"] for event in events[:2]] == ["schema", "insert"]
    assert len(events) == 1992
    database.psql("INSERT INTO t VALUES (4, 'd')")
    assert [event["op"] for event in _on(database)] == ["insert"]


def test_a_table_that_is_copied_again_is_compared_with_its_copy(database: Database) -> None:
    _ready(database)
    _on(database)
    database.psql("ALTER TABLE t ADD more int")
    assert pgrepl("state", "reset", "public.t", "--yes", "-d", database.dsn()).returncode == 0
    assert [event["op"] for event in _on(database)] == ["snapshot_begin", "read", "snapshot_end"]
    database.psql("INSERT INTO t VALUES (2, 'b')")
    assert [event["op"] for event in _on(database)] == ["insert"]
