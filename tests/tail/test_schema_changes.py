"""Schema events: what becomes of a table while it is tailed, and what does not count as a change."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import LiteralString

import pytest

from tests.conftest import NewServer
from tests.servers.database import Database, fresh_database
from tests.tail.running import Event
from tests.tail.scenario import streaming

NOTHING: dict[str, list[object]] = {"added": [], "dropped": [], "renamed": [], "retyped": []}


def names(event: Event) -> list[str]:
    return [column["name"] for column in event["columns"]]


@pytest.fixture
def table(database: Database) -> Database:
    database.psql("""
        CREATE SCHEMA elsewhere;
        CREATE TABLE t (id int PRIMARY KEY, a varchar(10) NOT NULL, b text);
        CREATE TABLE parent (id int PRIMARY KEY);
        CREATE PUBLICATION pub FOR TABLE t;
    """)
    return database


def test_a_table_changes(table: Database) -> None:
    """One tail through all of a table's life; the event stands before the first row of the new shape.

    Case relation_message_updates_when_column_added, …_removed, …_renamed of supabase/etl's tests.
    """
    with streaming(table) as stream:
        (first,) = stream.changes("INSERT INTO t VALUES (1, 'a', 'b')")
        assert first["op"] == "insert"

        added, row = stream.changes("ALTER TABLE t ADD c numeric(12,2) DEFAULT 7; INSERT INTO t VALUES (2, 'a', 'b')")
        assert [added["op"], row["op"]] == ["schema", "insert"]
        assert list(added) == ["op", "schema", "table", "columns", "diff", "commit_lsn", "seq", "xid", "commit_time"]
        assert added["columns"] == [
            {"name": "id", "type": "integer", "key": True, "nullable": False},
            {"name": "a", "type": "character varying(10)", "key": False, "nullable": False},
            {"name": "b", "type": "text", "key": False, "nullable": True},
            {"name": "c", "type": "numeric(12,2)", "key": False, "nullable": True},
        ]
        assert added["diff"] == {**NOTHING, "added": ["c"]}
        assert added["seq"] == row["seq"] == 0
        assert (added["xid"], added["commit_lsn"]) == (row["xid"], row["commit_lsn"])
        assert row["new"]["c"] == "7.00"

        renamed, row = stream.changes("ALTER TABLE t RENAME a TO alpha; INSERT INTO t VALUES (3, 'x')")
        assert renamed["diff"] == {**NOTHING, "renamed": [["a", "alpha"]]}
        assert row["new"] == {"id": 3, "alpha": "x", "b": None, "c": "7.00"}

        retyped, row = stream.changes("ALTER TABLE t ALTER c TYPE float8; INSERT INTO t VALUES (4, 'x', NULL, 0.5)")
        assert retyped["diff"] == {**NOTHING, "retyped": ["c"]}
        assert row["new"]["c"] == 0.5

        wider, row = stream.changes("ALTER TABLE t ALTER alpha TYPE varchar(20); INSERT INTO t VALUES (5, 'x')")
        assert wider["diff"] == {**NOTHING, "retyped": ["alpha"]}
        assert wider["columns"][1]["type"] == "character varying(20)"

        replaced, row = stream.changes(
            "ALTER TABLE t RENAME b TO old_b; ALTER TABLE t ADD b int; INSERT INTO t VALUES (60, 'x', 'y', 1, 5)"
        )
        assert replaced["diff"] == {**NOTHING, "added": ["b"], "renamed": [["b", "old_b"]]}
        assert (row["new"]["old_b"], row["new"]["b"]) == ("y", 5)
        stream.changes("ALTER TABLE t DROP old_b", "DELETE FROM t WHERE id = 60")

        dropped, row = stream.changes("ALTER TABLE t DROP c, DROP b; INSERT INTO t VALUES (6, 'x')")
        assert dropped["diff"] == {**NOTHING, "dropped": ["c", "b"]}
        assert names(dropped) == ["id", "alpha"]
        assert row["new"] == {"id": 6, "alpha": "x"}

        moved, row = stream.changes("ALTER TABLE t RENAME TO u", "INSERT INTO u VALUES (7, 'x')")
        assert (moved["schema"], moved["table"], moved["diff"]) == ("public", "u", NOTHING)
        assert row["table"] == "u"

        moved, row = stream.changes("ALTER TABLE u SET SCHEMA elsewhere", "INSERT INTO elsewhere.u VALUES (8, 'x')")
        assert (moved["schema"], moved["table"], moved["diff"]) == ("elsewhere", "u", NOTHING)
        assert row["schema"] == "elsewhere"

        full, row = stream.changes(
            "ALTER TABLE elsewhere.u REPLICA IDENTITY FULL", "UPDATE elsewhere.u SET alpha = 'y' WHERE id = 8"
        )
        assert (full["op"], full["diff"]) == ("schema", NOTHING)
        assert row["old"] == {"id": 8, "alpha": "x"}


def test_several_changes_in_one_transaction(table: Database) -> None:
    """Each shape that rows were written in gets its event; a column renamed and dropped later is gone for good."""
    with streaming(table) as stream:
        stream.changes("INSERT INTO t VALUES (0, 'a')")
        events = stream.changes(
            "INSERT INTO t VALUES (1, 'a');"
            "ALTER TABLE t ADD c int; INSERT INTO t VALUES (2, 'a', NULL, 5);"
            "ALTER TABLE t DROP b; INSERT INTO t VALUES (3, 'a', 6)"
        )
    assert [(event["op"], event["seq"]) for event in events] == [
        ("insert", 0),
        ("schema", 1),
        ("insert", 1),
        ("schema", 2),
        ("insert", 2),
    ]
    assert [event["diff"] for event in events if event["op"] == "schema"] == [
        {**NOTHING, "added": ["c"]},
        {**NOTHING, "dropped": ["b"]},
    ]
    assert [event["new"] for event in events if event["op"] == "insert"] == [
        {"id": 1, "a": "a", "b": None},
        {"id": 2, "a": "a", "b": None, "c": 5},
        {"id": 3, "a": "a", "c": 6},
    ]


def test_a_change_between_the_snapshot_and_the_first_row(table: Database) -> None:
    """The snapshot's version is the one compared with, although the stream has not told of it yet."""
    table.psql("INSERT INTO t VALUES (1, 'a')")
    with streaming(table) as stream:
        schema, row = stream.changes("ALTER TABLE t ADD c int", "INSERT INTO t VALUES (2, 'a', 'b', 3)")
    assert (schema["op"], schema["diff"]) == ("schema", {**NOTHING, "added": ["c"]})
    assert row["new"]["c"] == 3


def test_a_new_primary_key(table: Database) -> None:
    with streaming(table) as stream:
        schema, row = stream.changes(
            "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (a)", "INSERT INTO t VALUES (1, 'a')"
        )
    assert schema["op"] == "schema"
    assert [column["name"] for column in schema["columns"] if column["key"]] == ["a"]
    assert row["key"] == {"a": "a"}


NO_CHANGES: list[LiteralString] = [
    "ALTER TABLE t ALTER b SET DEFAULT 'x'",
    "ALTER TABLE t ALTER b SET NOT NULL",
    "ALTER TABLE t ALTER b SET STATISTICS 500",
    "ALTER TABLE t ADD CHECK (id > 0)",
    "ALTER TABLE t SET (fillfactor = 80)",
    "ALTER TABLE t RENAME CONSTRAINT t_pkey TO other",
    "ALTER TABLE t ADD c int; ALTER TABLE t DROP c",
    "ALTER TABLE t RENAME b TO c; ALTER TABLE t RENAME c TO b",
    "ALTER TABLE t ALTER b TYPE text",
    "CREATE INDEX ON t (b)",
    "ANALYZE t",
    "COMMENT ON TABLE t IS 'x'",
    "GRANT SELECT ON t TO PUBLIC",
    "CREATE TABLE child () INHERITS (t)",
]


def test_what_does_not_change_what_a_reader_sees(table: Database) -> None:
    with streaming(table) as stream:
        stream.changes("INSERT INTO t VALUES (1, 'a', 'b')")
        for number, statement in enumerate(NO_CHANGES, 1):
            events = stream.changes(statement, "UPDATE t SET b = b || '.'")
            assert [event["op"] for event in events] == ["update"], (number, statement)


def test_a_rolled_back_alter(table: Database) -> None:
    with streaming(table) as stream:
        stream.changes("INSERT INTO t VALUES (0, 'a', 'b')")
        events = stream.changes(
            "DO $$ BEGIN BEGIN ALTER TABLE t ADD c int; INSERT INTO t VALUES (5, 'x');"
            " RAISE 'no'; EXCEPTION WHEN OTHERS THEN NULL; END; INSERT INTO t VALUES (1, 'a'); END $$"
        )
    assert [(event["op"], event["seq"]) for event in events] == [("insert", 0)]
    assert events[0]["new"] == {"id": 1, "a": "a", "b": None}


def test_a_commit_that_is_streamed_before_it_can_be_seen(new_server: NewServer) -> None:
    """Types and names of the new shape are those of the catalog once the transaction is over, not as it was before."""
    server = new_server(18)
    with fresh_database(server) as database, database.connect() as admin, database.connect() as writer:
        admin.execute("CREATE TABLE t (id int PRIMARY KEY, a text); CREATE PUBLICATION pub FOR TABLE t")
        with streaming(database) as stream:
            admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
            admin.execute("SELECT pg_reload_conf()")
            setting = "SELECT setting FROM pg_settings WHERE name = 'synchronous_standby_names'"
            admin.execute("SET synchronous_commit = local")
            wait_until(lambda: writer.execute(setting).fetchone() == ("nobody",))
            change = """
                ALTER TABLE t RENAME a TO b; CREATE TYPE mood AS ENUM ('so so'); ALTER TABLE t ADD moods mood[];
                INSERT INTO t VALUES (1, 'x', '{so so}')
            """
            session = threading.Thread(target=writer.execute, args=[change], daemon=True)
            session.start()
            waits = "SELECT wait_event FROM pg_stat_activity WHERE pid = %s"
            wait_until(lambda: admin.execute(waits, [writer.info.backend_pid]).fetchone() == ("SyncRep",))
            admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
            admin.execute("SELECT pg_reload_conf()")
            session.join()
            wait_until(lambda: admin.execute(setting).fetchone() == ("",))
            schema, row = stream.changes()
    assert schema["diff"] == {**NOTHING, "added": ["moods"], "renamed": [["a", "b"]]}
    assert schema["columns"][2]["type"] == "public.mood[]"
    assert row["new"] == {"id": 1, "b": "x", "moods": ["so so"]}


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
