"""What identifies a row, what is known of the old one, and what an update left out, under every replica identity."""

from __future__ import annotations

from typing import Any

import pytest

from tests.servers.database import Database
from tests.tail.running import Event
from tests.tail.scenario import streaming

# Long enough to be TOASTed, and stored outside without compression.
LONG = "x" * 5000


def shape(event: Event) -> dict[str, Any]:
    """What an event says of the rows alone."""
    wanted = ("op", "table", "key", "new", "old", "old_kind", "unchanged")
    return {name: event[name] for name in wanted if name in event}


@pytest.fixture
def tables(database: Database) -> Database:
    database.psql("""
        CREATE TABLE by_default (id int PRIMARY KEY, a text);
        CREATE TABLE composite (a int, b text, c int, d text, PRIMARY KEY (c, a));
        CREATE TABLE by_nothing (id int PRIMARY KEY, a text);
        ALTER TABLE by_nothing REPLICA IDENTITY NOTHING;
        CREATE TABLE by_index (id int PRIMARY KEY, code text NOT NULL, part int NOT NULL, note text);
        CREATE UNIQUE INDEX by_index_key ON by_index (part, code) INCLUDE (note);
        ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_key;
        CREATE TABLE by_full (a text, id int PRIMARY KEY);
        ALTER TABLE by_full REPLICA IDENTITY FULL;
        CREATE TABLE full_no_key (a text, b int);
        ALTER TABLE full_no_key REPLICA IDENTITY FULL;
        CREATE TABLE no_key (a text);
        CREATE PUBLICATION pub FOR TABLE by_default, composite, by_index, by_full, full_no_key;
        CREATE PUBLICATION inserts FOR TABLE by_nothing, no_key WITH (publish = 'insert, truncate');
    """)
    return database


def test_default_with_a_primary_key(tables: Database) -> None:
    with streaming(tables) as stream:
        events = stream.changes(
            "INSERT INTO by_default VALUES (1, 'a')",
            "UPDATE by_default SET a = NULL",
            "UPDATE by_default SET id = 2",
            "DELETE FROM by_default",
        )
    assert [shape(event) for event in events] == [
        {"op": "insert", "table": "by_default", "key": {"id": 1}, "new": {"id": 1, "a": "a"}},
        {"op": "update", "table": "by_default", "key": {"id": 1}, "new": {"id": 1, "a": None}},
        {
            "op": "update",
            "table": "by_default",
            "key": {"id": 2},
            "new": {"id": 2, "a": None},
            "old": {"id": 1},
            "old_kind": "key",
        },
        {"op": "delete", "table": "by_default", "key": {"id": 2}, "old": {"id": 2}, "old_kind": "key"},
    ]


def test_composite_key_out_of_column_order(tables: Database) -> None:
    """The key stands in the order of the columns, as the stream has it, in the snapshot too."""
    tables.psql("INSERT INTO composite VALUES (1, 'b', 2, 'd')")
    with streaming(tables) as stream:
        (read,) = [event for event in stream.before if event["op"] == "read"]
        update, delete = stream.changes("UPDATE composite SET c = 3, b = 'B'", "DELETE FROM composite")
    assert list(read["key"].items()) == [("a", 1), ("c", 2)]
    assert shape(update) == {
        "op": "update",
        "table": "composite",
        "key": {"a": 1, "c": 3},
        "new": {"a": 1, "b": "B", "c": 3, "d": "d"},
        "old": {"a": 1, "c": 2},
        "old_kind": "key",
    }
    assert shape(delete)["key"] == shape(delete)["old"] == {"a": 1, "c": 3}


def test_using_index(tables: Database) -> None:
    """The index's key columns, not the ones it includes and not the primary key, in every event of the table.

    Case using_index_replica_identity_keeps_key_rows_in_table_order of supabase/etl's tests.
    """
    tables.psql("INSERT INTO by_index VALUES (1, 'c', 5, 'n')")
    with streaming(tables) as stream:
        (read,) = [event for event in stream.before if event["op"] == "read"]
        events = stream.changes(
            "INSERT INTO by_index VALUES (2, 'd', 6, 'm')",
            "UPDATE by_index SET id = 3, note = 'o' WHERE id = 1",
            "UPDATE by_index SET code = 'e' WHERE id = 3",
            "DELETE FROM by_index WHERE id = 3",
        )
    assert read["key"] == {"code": "c", "part": 5}
    assert [event["key"] for event in events] == [
        {"code": "d", "part": 6},
        {"code": "c", "part": 5},
        {"code": "e", "part": 5},
        {"code": "e", "part": 5},
    ]
    assert [(event.get("old"), event.get("old_kind")) for event in events] == [
        (None, None),
        (None, None),
        ({"code": "c", "part": 5}, "key"),
        ({"code": "e", "part": 5}, "key"),
    ]


def test_full_with_a_primary_key(tables: Database) -> None:
    """The primary key identifies, although the whole old row is sent."""
    tables.psql("INSERT INTO by_full VALUES ('a', 1)")
    with streaming(tables) as stream:
        (read,) = [event for event in stream.before if event["op"] == "read"]
        update, change, delete = stream.changes(
            "UPDATE by_full SET a = NULL", "UPDATE by_full SET id = 2", "DELETE FROM by_full"
        )
    assert read["key"] == {"id": 1}
    assert shape(update) == {
        "op": "update",
        "table": "by_full",
        "key": {"id": 1},
        "new": {"a": None, "id": 1},
        "old": {"a": "a", "id": 1},
        "old_kind": "full",
    }
    assert (change["key"], change["old"]) == ({"id": 2}, {"a": None, "id": 1})
    assert shape(delete) == {
        "op": "delete",
        "table": "by_full",
        "key": {"id": 2},
        "old": {"a": None, "id": 2},
        "old_kind": "full",
    }


def test_full_without_a_key(tables: Database) -> None:
    tables.psql("INSERT INTO full_no_key VALUES (NULL, 1)")
    with streaming(tables) as stream:
        (read,) = [event for event in stream.before if event["op"] == "read"]
        update, delete = stream.changes("UPDATE full_no_key SET a = 'x'", "DELETE FROM full_no_key")
    assert read["key"] == {"a": None, "b": 1}
    assert update["key"] == {"a": "x", "b": 1}
    assert update["old"] == {"a": None, "b": 1}
    assert delete["key"] == delete["old"] == {"a": "x", "b": 1}


def test_nothing_and_no_key(tables: Database) -> None:
    """Without anything that identifies a row there is no key, in the snapshot neither."""
    tables.psql("INSERT INTO by_nothing VALUES (1, 'a'); INSERT INTO no_key VALUES ('b')")
    with streaming(tables, publication="inserts") as stream:
        reads = sorted((e for e in stream.before if e["op"] == "read"), key=lambda event: event["table"])
        events = stream.changes("INSERT INTO by_nothing VALUES (2, 'c')", "INSERT INTO no_key VALUES ('d')")
    assert [shape(event) for event in reads] == [
        {"op": "read", "table": "by_nothing", "new": {"id": 1, "a": "a"}},
        {"op": "read", "table": "no_key", "new": {"a": "b"}},
    ]
    assert [shape(event) for event in events] == [
        {"op": "insert", "table": "by_nothing", "new": {"id": 2, "a": "c"}},
        {"op": "insert", "table": "no_key", "new": {"a": "d"}},
    ]


def test_the_order_of_keys(tables: Database) -> None:
    with streaming(tables) as stream:
        _, update, delete = stream.changes(
            "INSERT INTO by_full VALUES ('a', 1)", "UPDATE by_full SET a = 'b'", "DELETE FROM by_full"
        )
    place = ["commit_lsn", "start_lsn", "seq", "xid", "commit_time"]
    assert list(update) == ["op", "schema", "table", "key", "new", "old", "old_kind", *place]
    assert list(delete) == ["op", "schema", "table", "key", "old", "old_kind", *place]


@pytest.fixture
def toasted(database: Database) -> Database:
    database.psql("""
        CREATE TABLE by_default (id int PRIMARY KEY, a text, big text, "other ""big"" one" text);
        CREATE TABLE by_full (id int PRIMARY KEY, a text, big text);
        ALTER TABLE by_full REPLICA IDENTITY FULL;
        CREATE TABLE by_key (big text, a text, id int, PRIMARY KEY (big));
        ALTER TABLE by_default ALTER big SET STORAGE EXTERNAL, ALTER "other ""big"" one" SET STORAGE EXTERNAL;
        ALTER TABLE by_full ALTER big SET STORAGE EXTERNAL;
        CREATE PUBLICATION pub FOR ALL TABLES;
    """)
    return database


def test_unchanged_toast_is_left_out_and_named(toasted: Database) -> None:
    toasted.psql("INSERT INTO by_default VALUES (1, 'a', repeat('x', 5000), repeat('y', 5000))")
    with streaming(toasted) as stream:
        both, one, null = stream.changes(
            "UPDATE by_default SET a = 'b'",
            "UPDATE by_default SET big = 'short'",
            """UPDATE by_default SET "other ""big"" one" = NULL""",
        )
    assert shape(both) == {
        "op": "update",
        "table": "by_default",
        "key": {"id": 1},
        "new": {"id": 1, "a": "b"},
        "unchanged": ["big", 'other "big" one'],
    }
    assert (one["new"], one["unchanged"]) == ({"id": 1, "a": "b", "big": "short"}, ['other "big" one'])
    assert null["new"]['other "big" one'] is None
    assert "unchanged" not in null


def test_unchanged_toast_with_a_changed_key(toasted: Database) -> None:
    """The old row holds the key alone, so that nothing can be filled in from it.

    Case default_replica_identity_with_composite_primary_key_handles_partial_and_key_rows of supabase/etl's tests.
    """
    toasted.psql("INSERT INTO by_default VALUES (1, 'a', repeat('x', 5000), NULL)")
    with streaming(toasted) as stream:
        (update,) = stream.changes("UPDATE by_default SET id = 2")
    assert update["unchanged"] == ["big"]
    assert update["new"] == {"id": 2, "a": "a", 'other "big" one': None}
    assert update["old"] == {"id": 1}


def test_unchanged_toast_is_filled_under_full(toasted: Database) -> None:
    """Case full_replica_identity_with_composite_primary_key_preserves_full_old_rows of supabase/etl's tests."""
    toasted.psql("INSERT INTO by_full VALUES (1, 'a', repeat('x', 5000))")
    with streaming(toasted) as stream:
        (update,) = stream.changes("UPDATE by_full SET a = 'b'")
    assert "unchanged" not in update
    assert update["new"] == {"id": 1, "a": "b", "big": LONG}
    assert update["old"] == {"id": 1, "a": "a", "big": LONG}


def test_a_toasted_key_is_never_missing(toasted: Database) -> None:
    """The server sends the old key with it then, and the new row is filled from there."""
    toasted.psql("""
        ALTER TABLE by_key ALTER big SET STORAGE EXTERNAL;
        INSERT INTO by_key VALUES (repeat('k', 2500), 'a', 1);
    """)
    with streaming(toasted) as stream:
        (update,) = stream.changes("UPDATE by_key SET a = 'b'")
    assert update["key"] == {"big": "k" * 2500}
    assert update["new"] == {"big": "k" * 2500, "a": "b", "id": 1}
    assert "unchanged" not in update
