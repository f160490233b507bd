"""Large transactions that the server sends while they are going on: the same lines, the same promises."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import psycopg
import pytest

from tests.command import pgrepl
from tests.servers.database import Database
from tests.tail.running import Event, Tail
from tests.tail.scenario import streaming

SMALL = "ALTER DATABASE {} SET logical_decoding_work_mem = '64kB'"
FILL = "INSERT INTO filler SELECT g, repeat('x', 1000) FROM generate_series(1, 200) g"


@pytest.fixture
def tables(database: Database) -> Database:
    """Tables, and a server that streams whatever is larger than 64 kB."""
    database.psql(
        SMALL.format(psycopg.sql.Identifier(database.name).as_string())
        + "; CREATE TABLE t (id int PRIMARY KEY, note text); CREATE TABLE filler (id int, note text);"
        " CREATE PUBLICATION pub FOR TABLE t, filler; ALTER TABLE filler REPLICA IDENTITY FULL"
    )
    return database


def streamed(connection: psycopg.Connection, database: Database) -> int:
    """How many blocks of transactions that were going on the server has sent on the slots of the database."""
    connection.execute("SELECT pg_stat_force_next_flush()")
    query = """
        SELECT coalesce(sum(s.stream_count), 0) FROM pg_stat_replication_slots s
          JOIN pg_replication_slots r USING (slot_name) WHERE r.database = %s
    """
    row = connection.execute(query, [database.name]).fetchone()
    assert row is not None
    return int(row[0])


def _is_of_t(event: Event, key: int) -> bool:
    return bool(event["op"] == "insert" and event["table"] == "t" and event["new"]["id"] == key)


def said(events: list[Event]) -> list[int | str]:
    """The keys inserted into t, and the messages but those that only make the server write."""
    changes = [event for event in events if event["op"] in ("insert", "message")]
    return [
        event["prefix"] if "prefix" in event else event["new"]["id"]
        for event in changes
        if event.get("prefix") != "flush" and event.get("table") != "filler"
    ]


def _write(database: Database, number: int) -> None:
    with database.connect() as connection:
        for each in range(6):
            key = number * 100 + each * 10
            with connection.transaction(force_rollback=each == 4):
                connection.execute("INSERT INTO t VALUES (%s, 'kept')", [key])
                connection.execute(FILL)
                with connection.transaction(force_rollback=True):
                    connection.execute("INSERT INTO t VALUES (%s, 'gone')", [key + 1])
                    connection.execute(FILL)
                    with connection.transaction():
                        connection.execute("UPDATE t SET note = 'gone' WHERE id = %s", [key])
                with connection.transaction():
                    connection.execute("UPDATE t SET note = 'kept twice' WHERE id = %s", [key])
                    connection.execute(FILL)
                connection.execute("DELETE FROM filler WHERE id % 40 = 0")
            connection.execute("INSERT INTO t VALUES (%s, 'whole')", [key + 5])


def test_protocol_2_prints_what_protocol_1_prints(tables: Database) -> None:
    with (
        streaming(tables, "--snapshot", "never", "--transactions") as blocks,
        streaming(tables, "--snapshot", "never", "--transactions", "--protocol", "1") as whole,
        tables.connect() as connection,
    ):
        writers = [threading.Thread(target=_write, args=(tables, number)) for number in range(3)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        connection.execute("INSERT INTO t VALUES (-1, 'end')")

        def lines(tail: Tail) -> list[bytes]:
            tail.until(lambda event: event["op"] == "insert" and event["new"]["id"] == -1)
            return [line for line in tail.lines if b'"test mark"' not in line]

        def changes(tail: Tail) -> list[bytes]:
            # What came before both of them ran is not compared.
            every = lines(tail)
            first = next(number for number, line in enumerate(every) if b'"filler"' in line)
            return every[first:]

        assert changes(blocks.tail) == changes(whole.tail)
        assert sum(b"kept twice" in line for line in changes(blocks.tail)) == 15
        assert not any(b'"gone"' in line for line in changes(blocks.tail))
        assert streamed(connection, tables) >= 18


def test_what_was_read_of_a_rolled_back_savepoint_is_dropped(tables: Database) -> None:
    with streaming(tables, "--snapshot", "never") as stream, tables.connect() as connection:
        with connection.transaction():
            connection.execute(f"INSERT INTO t VALUES (1); SAVEPOINT s; INSERT INTO t VALUES (2); {FILL}")
            # Sent already when it is rolled back.
            _until_streamed(connection, tables)
            connection.execute("ROLLBACK TO s; INSERT INTO t VALUES (3)")
        events = stream.changes("INSERT INTO t VALUES (4)")
    assert said(events) == [1, 3, 4]
    assert [event["seq"] for event in events if event["op"] == "insert"] == [0, 1, 0]


def _until_streamed(connection: psycopg.Connection, tables: Database) -> None:
    """Wait until the server has sent blocks; it decodes what has been flushed."""
    with tables.connect() as other:
        for _ in range(300):
            other.execute("SELECT pg_logical_emit_message(false, 'flush', '')")
            other.execute("SELECT pg_sleep(0.05)")
            if streamed(other, tables):
                return
    raise AssertionError("the server has streamed nothing")


def _message_in_a_lost_savepoint(connection: psycopg.Connection, tables: Database) -> None:
    with connection.transaction():
        connection.execute(f"INSERT INTO t VALUES (1); SAVEPOINT s; INSERT INTO t VALUES (2); {FILL}")
        connection.execute("SELECT pg_logical_emit_message(true, 'lost', 'gone')")
        connection.execute(FILL)
        _until_streamed(connection, tables)
        connection.execute("ROLLBACK TO s; INSERT INTO t VALUES (3)")
        connection.execute("SELECT pg_logical_emit_message(true, 'kept', 'there')")


def test_a_message_in_a_rolled_back_savepoint_is_read_again_on_a_temporary_slot(tables: Database) -> None:
    with streaming(tables, "--snapshot", "never") as stream, tables.connect() as connection:
        _message_in_a_lost_savepoint(connection, tables)
        events = stream.changes("INSERT INTO t VALUES (4)")
        assert "reading it again with streaming off" in stream.tail.stderr
        slots = connection.execute(
            "SELECT temporary, active FROM pg_replication_slots WHERE database = %s", [tables.name]
        )
        assert slots.fetchall() == [(True, True)]
    assert said(events) == [1, 3, "kept", 4]


def test_a_message_in_a_rolled_back_savepoint_is_read_again_on_a_slot_that_stays(
    tables: Database, tmp_path: Path
) -> None:
    assert pgrepl("migrations", "apply", "-d", tables.dsn()).returncode == 0
    output = tmp_path / "out"
    arguments = ["pub", "--store", "postgres", "-o", str(output), "--until-lsn", "now"]
    with Tail("pub", "--store", "postgres", dsn=tables.dsn()) as tail, tables.connect() as connection:
        tail.until_op("snapshot_end", 2)
        _message_in_a_lost_savepoint(connection, tables)
        connection.execute("INSERT INTO t VALUES (4)")
        events = tail.until(lambda event: _is_of_t(event, 4))
        assert "reading it again with streaming off" in tail.stderr
        assert tail.stop().code == 143
    assert said(events) == [1, 3, "kept", 4]
    with Tail(*arguments, dsn=tables.dsn()) as tail:
        assert tail.finish().code == 0
    assert output.read_text() == ""


def _truncate_twice(connection: psycopg.Connection, tables: Database) -> None:
    with connection.transaction():
        connection.execute(f"INSERT INTO t VALUES (1); {FILL}")
        connection.execute(f"SAVEPOINT s; TRUNCATE t; INSERT INTO t VALUES (2); {FILL}")
        _until_streamed(connection, tables)
        connection.execute(f"ROLLBACK TO s; INSERT INTO t VALUES (3); {FILL}")
        connection.execute(f"TRUNCATE t; INSERT INTO t VALUES (4); {FILL}")
    connection.execute("INSERT INTO t VALUES (5)")


def test_a_server_that_cannot_stream_is_asked_for_whole_transactions(tables: Database) -> None:
    """A large transaction replaces a table's file twice, the first time in a savepoint that was rolled back."""
    assert pgrepl("migrations", "apply", "-d", tables.dsn()).returncode == 0
    with Tail("pub", "--store", "postgres", dsn=tables.dsn()) as tail, tables.connect() as connection:
        tail.until_op("snapshot_end", 2)
        _truncate_twice(connection, tables)
        events = tail.until(lambda event: _is_of_t(event, 5))
        assert "could not map filenumber" in tail.stderr
        assert "reading it again with streaming off" in tail.stderr
    assert said(events) == [1, 3, 4, 5]
    assert sum(event["op"] == "truncate" for event in events) == 1


def test_on_a_temporary_slot_that_ends_the_run(tables: Database) -> None:
    with streaming(tables, "--snapshot", "never") as stream, tables.connect() as connection:
        _truncate_twice(connection, tables)
        ended = stream.tail.finish()
    assert ended.code == 5
    assert "could not map filenumber" in ended.stderr
    assert "hint: " in ended.stderr
    assert "--streaming off" in ended.stderr


def test_a_full_spool_turns_streaming_off(tables: Database, tmp_path: Path) -> None:
    options = ("--snapshot", "never", "--spool-limit", "1MB", "--spool-dir", str(tmp_path))
    with streaming(tables, *options) as stream, tables.connect() as connection:
        with connection.transaction():
            for _ in range(20):
                connection.execute(FILL)
        events = stream.changes("INSERT INTO t VALUES (1)")
        assert re.search(r"the spool is full.*reading it again with streaming off", stream.tail.stderr)
    assert len(events) == 4001
    assert [event["seq"] for event in events] == [*range(4000), 0]


def test_streaming_off_is_protocol_2_without_blocks(tables: Database) -> None:
    with streaming(tables, "--snapshot", "never", "--streaming", "off") as stream, tables.connect() as connection:
        assert len(stream.changes(FILL)) == 200
        assert streamed(connection, tables) == 0
    refused = pgrepl("tail", "pub", "--protocol", "1", "--streaming", "on", "-d", tables.dsn())
    assert refused.returncode == 2
    assert "--streaming on needs --protocol 2" in refused.stderr
