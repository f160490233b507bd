"""The order in which things must be done, each shown by holding up one of them."""

from __future__ import annotations

import select
import threading
from pathlib import Path
from typing import LiteralString

import psycopg

from tests.fault import workload
from tests.servers.database import Database
from tests.tail.mirror import Mirror, source_rows
from tests.tail.running import PATIENCE, Tail

_SETUP = """
CREATE TABLE t (id int PRIMARY KEY, filler text);
CREATE TABLE big (id int PRIMARY KEY, filler text);
CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE parts_0 PARTITION OF parts FOR VALUES FROM (0) TO (1000);
CREATE PUBLICATION p FOR TABLE t, big, parts WITH (publish_via_partition_root = true);
"""
_MANY: LiteralString = "INSERT INTO big SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 60000) i"


def _prepare(database: Database) -> None:
    database.psql(_SETUP)
    workload.migrate(database)


def _value(connection: psycopg.Connection, query: LiteralString) -> object:
    row = connection.execute(query).fetchone()
    return row[0] if row else None


def _wait_for_another(connection: psycopg.Connection, query: LiteralString, tail: Tail) -> None:
    before = _value(connection, query)
    workload.wait(lambda: _value(connection, query) not in (None, before), "another value", of=tail)


def test_the_slot_is_never_confirmed_past_the_store(database18: Database, tmp_path: Path) -> None:
    """The file is ahead of a store that cannot be written; where a run goes on from there it may not confirm it."""
    _prepare(database18)
    output = tmp_path / "changes.jsonl"
    arguments = ["p", "--store", "postgres", "-o", str(output), "--fsync-interval", "100ms", "--until-lsn", "FF/0"]
    # A status every 0.2 s, as --until-lsn asks for keepalives.
    ahead: LiteralString = (
        "SELECT s.confirmed_flush_lsn > p.position FROM pg_replication_slots s JOIN etl.pgrepl_pipelines p"
        " USING (slot_name)"
    )
    replies: LiteralString = (
        "SELECT r.reply_time FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid"
        " WHERE s.database = current_database()"
    )
    with database18.connect() as connection, database18.connect() as locker:
        with Tail(*arguments, dsn=database18.dsn()) as tail:
            workload.wait(lambda: workload.streams(database18, 1), "the end of the copies", of=tail)
            with locker.transaction():
                locker.execute("SELECT 1 FROM etl.pgrepl_pipelines FOR UPDATE")
                connection.execute("INSERT INTO t VALUES (1, 'x')")
                workload.wait(lambda: b'"op":"insert"' in output.read_bytes(), "the change in the file", of=tail)
                position = _value(connection, "SELECT position::text FROM etl.pgrepl_pipelines")
                sidecar = output.with_name(output.name + ".pgrepl")
                workload.wait(lambda: f'"position": "{position}"' not in sidecar.read_text(), "the sidecar", of=tail)
                tail.kill()
                with Tail(*arguments, dsn=database18.dsn()) as again:
                    for _ in range(5):
                        _wait_for_another(connection, replies, again)
                        assert _value(connection, ahead) is False
                    again.kill()
        with Tail(*arguments[:-1], "now", dsn=database18.dsn()) as tail:
            assert tail.finish().code == 0, tail.stderr
    events = workload.parse(output.read_bytes().splitlines(keepends=True))
    assert [event["new"]["id"] for event in events if event["op"] == "insert"] == [1]


def test_a_lock_that_waits_for_a_copy_does_not_stop_it(database18: Database) -> None:
    """TRUNCATE waits for the copy's locks, and whoever asks the catalog about the table waits behind it."""
    _prepare(database18)
    with database18.connect() as connection, database18.connect() as blocked:
        connection.execute(_MANY)
        with Tail("p", "--refresh", "100ms", "--jobs", "1", dsn=database18.dsn(), read=False) as tail:
            workload.wait(lambda: select.select([tail.pipe], [], [], 0)[0], "the first rows", of=tail)
            pid = _value(blocked, "SELECT pg_backend_pid()")
            truncate = threading.Thread(target=blocked.execute, args=("TRUNCATE t",))
            truncate.start()
            waits = psycopg.sql.SQL("SELECT wait_event_type FROM pg_stat_activity WHERE pid = {}").format(pid)
            workload.wait(lambda: connection.execute(waits).fetchone() == ("Lock",), "the TRUNCATE to wait", of=tail)
            tail.read_on()
            events = tail.until_op("snapshot_end", 3, PATIENCE)
            assert sum(event["op"] == "read" for event in events) == 60_000
            truncate.join()
            tail.until_op("truncate")
            assert tail.stop().code == 143, tail.stderr


def test_a_copy_that_broke_off_tells_nothing_any_more(database18: Database) -> None:
    """One of two workers is lost while the reader is blocked: what the other has still read belongs to no copy."""
    _prepare(database18)
    workers: LiteralString = (
        "SELECT pid FROM pg_stat_activity"
        " WHERE datname = current_database() AND query LIKE 'COPY %' AND state = 'active'"
    )
    with database18.connect() as connection:
        connection.execute(_MANY)
        with Tail("p", "--store", "postgres", "--jobs", "2", dsn=database18.dsn(), read=False) as tail:
            workload.wait(lambda: len(connection.execute(workers).fetchall()) == 2, "two workers", of=tail)
            workload.wait(lambda: select.select([tail.pipe], [], [], 0)[0], "the first rows", of=tail)
            victim = connection.execute(workers).fetchone()
            assert victim is not None
            connection.execute("SELECT pg_terminate_backend(%s, 10000)", [victim[0]])
            connection.execute("UPDATE big SET filler = 'changed' WHERE id % 100 = 0")
            tail.read_on()
            tail.until_stderr("the copy begins again")
            workload.wait(lambda: workload.streams(database18, 1), "the end of the copies", of=tail)
            connection.execute("INSERT INTO t VALUES (1, 'last')")
            tail.until(lambda event: event["op"] == "insert" and event["table"] == "t")
            assert tail.stop().code == 143, tail.stderr
        events = workload.parse(tail.lines)
        workload.must_hold_each_once(events)
        assert workload.attempts(events)["big"] == 2
        assert Mirror().apply(events).rows("big") == source_rows(database18, "big")


def test_a_transaction_that_commits_at_the_stored_position_is_read(database18: Database, tmp_path: Path) -> None:
    """Under load the next commit record often starts exactly where the last one ended."""
    _prepare(database18)
    output = tmp_path / "changes.jsonl"
    arguments = ["p", "--store", "postgres", "-o", str(output)]
    inserted: list[int] = []
    exact = 0
    with Tail(*arguments, "--until-lsn", "now", dsn=database18.dsn()) as tail:
        assert tail.finish().code == 0, tail.stderr
    with database18.connect() as first, database18.connect() as second:
        # The server may write a record of its own in between.
        for number in range(20):
            second.execute("BEGIN")
            second.execute("INSERT INTO t VALUES (%s)", [2 * number + 1])
            first.execute("INSERT INTO t VALUES (%s)", [2 * number])
            end = str(_value(first, "SELECT pg_current_wal_insert_lsn()::text"))
            second.execute("COMMIT")
            inserted += [2 * number, 2 * number + 1]
            for until in (end, "now"):
                with Tail(*arguments, "--until-lsn", until, dsn=database18.dsn()) as tail:
                    assert tail.finish().code == 0, tail.stderr
            events = workload.parse(output.read_bytes().splitlines(keepends=True))
            changes = [event for event in events if event["op"] == "insert"]
            assert [event["new"]["id"] for event in changes] == inserted
            exact += changes[-1]["commit_lsn"] == end
            if exact == 2:
                return
    raise AssertionError("no transaction committed at the end of the one before")
