"""TRUNCATE, logical messages, origins, the frames of transactions, and the numbering of changes."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest

from tests.servers.database import Database
from tests.tail.running import Event
from tests.tail.scenario import streaming


def without_place(event: Event) -> dict[str, Any]:
    return {name: event[name] for name in event if name not in ("commit_lsn", "start_lsn", "seq", "xid", "commit_time")}


@pytest.fixture
def tables(database: Database) -> Database:
    database.psql("""
        CREATE TABLE a (id int PRIMARY KEY);
        CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a);
        CREATE TABLE c (id serial PRIMARY KEY);
        CREATE TABLE other (id int PRIMARY KEY);
        CREATE PUBLICATION pub FOR TABLE a, b, c;
    """)
    return database


def test_truncate(tables: Database) -> None:
    """One event for a statement, with the published tables alone."""
    with streaming(tables) as stream:
        one, several, cascade, restart = stream.changes(
            "INSERT INTO other VALUES (1)",
            "TRUNCATE c",
            "TRUNCATE b, a, c, other",
            "TRUNCATE a CASCADE",
            "TRUNCATE c RESTART IDENTITY",
            "TRUNCATE other",
        )
    assert list(one) == [
        *("op", "tables", "cascade", "restart_identity"),
        *("commit_lsn", "start_lsn", "seq", "xid", "commit_time"),
    ]
    c = {"schema": "public", "table": "c"}
    assert without_place(one) == {"op": "truncate", "tables": [c], "cascade": False, "restart_identity": False}
    assert sorted(table["table"] for table in several["tables"]) == ["a", "b", "c"]
    assert sorted(table["table"] for table in cascade["tables"]) == ["a", "b"]
    assert (cascade["cascade"], cascade["restart_identity"]) == (True, False)
    assert (restart["cascade"], restart["restart_identity"]) == (False, True)


def test_truncate_counts_once(tables: Database) -> None:
    with streaming(tables) as stream:
        events = stream.changes("INSERT INTO a VALUES (1); TRUNCATE a, b, c; INSERT INTO a VALUES (2)")
    assert [(event["op"], event["seq"]) for event in events] == [("insert", 0), ("truncate", 1), ("insert", 2)]


def test_messages(tables: Database) -> None:
    with streaming(tables) as stream:
        events = stream.changes(
            "SELECT pg_logical_emit_message(true, 'greeting', 'hello 🐘')",
            "SELECT pg_logical_emit_message(true, '', '')",
            "SELECT pg_logical_emit_message(true, 'bytes', '\\x00ff'::bytea)",
            "SELECT pg_logical_emit_message(false, 'aside', 'a \"quote\"'), pg_current_xact_id()",
            "SELECT pg_logical_emit_message(true, 'pgrepl', 'own')",
        )
    greeting, empty, binary, aside = events
    assert list(greeting) == [
        *("op", "prefix", "content", "transactional"),
        *("commit_lsn", "start_lsn", "seq", "xid", "commit_time"),
    ]
    assert without_place(greeting) == {
        "op": "message",
        "prefix": "greeting",
        "content": "hello 🐘",
        "transactional": True,
    }
    assert without_place(empty) == {"op": "message", "prefix": "", "content": "", "transactional": True}
    assert base64.b64decode(binary["content_base64"]) == b"\x00\xff"
    assert "content" not in binary
    assert list(aside) == ["op", "prefix", "content", "transactional", "start_lsn"]
    assert (aside["content"], aside["transactional"]) == ('a "quote"', False)


def test_messages_inside_a_transaction(tables: Database) -> None:
    """A message carries the number of the next change and takes none; one of a rolled-back part that is not
    transactional comes all the same, before the transaction."""
    with streaming(tables) as stream:
        events = stream.changes(
            "INSERT INTO a VALUES (1); SELECT pg_logical_emit_message(true, 'm', '1'); INSERT INTO a VALUES (2);"
            " SELECT pg_logical_emit_message(true, 'm', '2'); SELECT pg_logical_emit_message(false, 'm', '3')"
        )
    assert [(event["op"], event.get("content"), event.get("seq")) for event in events] == [
        ("message", "3", None),
        ("insert", None, 0),
        ("message", "1", 1),
        ("insert", None, 1),
        ("message", "2", 2),
    ]


def test_rolled_back_changes_take_no_number(tables: Database) -> None:
    with streaming(tables) as stream:
        events = stream.changes(
            "BEGIN; INSERT INTO a VALUES (1);"
            " SAVEPOINT s; INSERT INTO a VALUES (2); ROLLBACK TO s;"
            " INSERT INTO a VALUES (3); COMMIT",
            "DO $$ BEGIN INSERT INTO a VALUES (4); RAISE 'no'; EXCEPTION WHEN OTHERS THEN NULL; END $$",
        )
    assert [(event["new"]["id"], event["seq"]) for event in events] == [(1, 0), (3, 1)]


def test_place_of_changes(tables: Database) -> None:
    """(commit_lsn, seq) orders, and what belongs to the transaction is the same in each of its events."""
    with streaming(tables) as stream, tables.connect() as connection:
        events = stream.changes(
            "INSERT INTO a SELECT generate_series(1, 3)", "UPDATE a SET id = id + 10", "DELETE FROM a WHERE id = 12"
        )
        xids = {event["xid"] for event in events}
        row = connection.execute("SELECT pg_current_wal_lsn(), now()").fetchone()
        assert row is not None
    places = [(lsn(event["commit_lsn"]), event["seq"]) for event in events]
    assert places == sorted(set(places))
    assert [seq for _, seq in places] == [0, 1, 2, 0, 1, 2, 0]
    assert len(xids) == 3
    for event in events:
        assert lsn(event["start_lsn"]) < lsn(event["commit_lsn"]) < lsn(row[0])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", event["commit_time"])
    assert events[-1]["commit_time"] <= row[1].strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    for xid in xids:
        of_one = [event for event in events if event["xid"] == xid]
        assert len({(event["commit_lsn"], event["commit_time"]) for event in of_one}) == 1


def lsn(text: str) -> int:
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def test_origin(tables: Database) -> None:
    with tables.connect() as connection:
        connection.execute("""SELECT pg_replication_origin_create('else "where"')""")
        try:
            with streaming(tables, "--transactions") as stream:
                connection.execute("""
                    SELECT pg_replication_origin_session_setup('else "where"');
                """)
                connection.execute("""
                    SELECT pg_replication_origin_xact_setup('0/ABCDEF', '2026-01-31 12:30:00.5+00');
                    INSERT INTO a VALUES (1); TRUNCATE c; SELECT pg_logical_emit_message(true, 'm', '');
                """)
                connection.execute("SELECT pg_replication_origin_session_reset()")
                events = stream.changes("INSERT INTO a VALUES (2)")
        finally:
            connection.execute("""SELECT pg_replication_origin_drop('else "where"')""")
    assert [(event["op"], event.get("origin")) for event in events] == [
        ("begin", 'else "where"'),
        ("insert", 'else "where"'),
        ("truncate", 'else "where"'),
        ("message", 'else "where"'),
        ("commit", 'else "where"'),
        ("begin", None),
        ("insert", None),
        ("commit", None),
    ]
    assert events[0]["commit_time"] == "2026-01-31T12:30:00.500000Z"


def test_frames(tables: Database) -> None:
    """Begin and commit are printed for transactions of which something is printed, and count what was."""
    with streaming(tables, "--transactions") as stream:
        assert {event["op"] for event in stream.before} == {"snapshot_begin", "snapshot_end"}
        events = stream.changes(
            "INSERT INTO a VALUES (1); INSERT INTO other VALUES (1); UPDATE a SET id = 2",
            "INSERT INTO other VALUES (2)",
            "SELECT pg_logical_emit_message(true, 'm', 'only')",
            "SELECT pg_logical_emit_message(true, 'pgrepl', 'own')",
            "ALTER TABLE a ADD x int",
            "TRUNCATE c",
        )
    assert [event["op"] for event in events] == [
        *("begin", "insert", "update", "commit"),
        *("begin", "message", "commit"),
        *("begin", "truncate", "commit"),
    ]
    begin, insert, _, commit = events[:4]
    assert list(begin) == ["op", "commit_lsn", "xid", "commit_time"]
    assert list(commit) == ["op", "commit_lsn", "xid", "commit_time", "end_lsn", "rows"]
    assert {event["commit_lsn"] for event in events[:4]} == {insert["commit_lsn"]}
    assert lsn(commit["end_lsn"]) > lsn(commit["commit_lsn"])
    assert [event["rows"] for event in events if event["op"] == "commit"] == [2, 0, 1]


def test_prepared_transactions(tables: Database) -> None:
    """Without two-phase decoding a prepared transaction arrives whole at its COMMIT PREPARED."""
    with streaming(tables) as stream:
        events = stream.changes(
            "BEGIN; INSERT INTO a VALUES (1); PREPARE TRANSACTION 'one'", "INSERT INTO a VALUES (2)"
        )
        assert [event["new"]["id"] for event in events] == [2]
        events = stream.changes("COMMIT PREPARED 'one'")
        assert [(event["new"]["id"], event["seq"]) for event in events] == [(1, 0)]


def test_every_line_is_compact_json(tables: Database) -> None:
    with streaming(tables, "--transactions") as stream:
        stream.changes(
            "INSERT INTO a VALUES (1); SELECT pg_logical_emit_message(true, 'a b', 'c: d, e');"
            "ALTER TABLE a ADD x int; UPDATE a SET x = 1; DELETE FROM a; TRUNCATE c"
        )
        lines = stream.tail.lines
    for line in lines:
        assert line == json.dumps(json.loads(line), separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
