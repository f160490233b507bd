"""Servers that crash, and readers that do not read for longer than the server has patience."""

from __future__ import annotations

import random
import time
from pathlib import Path

import psycopg
import pytest

from tests.conftest import NewServer
from tests.fault import workload
from tests.servers.database import Database
from tests.tail.mirror import Writers
from tests.tail.running import Tail

_ARGUMENTS = ["mirrored", "--store", "postgres", "--refresh", "1s"]


@pytest.mark.parametrize(("version", "crashes"), [(18, 6), (16, 2)])
def test_a_server_that_crashes_is_waited_for(version: int, crashes: int, new_server: NewServer, tmp_path: Path) -> None:
    crashes = workload.times(crashes)
    dice = random.Random(version)
    server = new_server(version)
    database = Database(server, "postgres")
    workload.prepare(database)
    output = tmp_path / "changes.jsonl"
    bulk = ["bulk"]
    writers = Writers(database, count=4, seed=version, pause=0.02, reconnect=True)
    file_tail = Tail(*_ARGUMENTS, "--pipeline-id", "1", "-o", str(output), dsn=database.dsn())
    pipe_tail = Tail(*_ARGUMENTS, "--pipeline-id", "2", dsn=database.dsn())
    try:
        with file_tail, pipe_tail:
            workload.wait(lambda: workload.streams(database, 2), "the first copies", 120, of=file_tail)
            for number in range(crashes):
                with database.connect() as connection:
                    if number % 2:
                        bulk.append(f"bulk_{number}")
                        workload.add_table(connection, bulk[-1])
                    workload.disturb(connection, dice, bulk)
                time.sleep(dice.uniform(0.2, 1.5))
                server.stop(immediate=True)
                time.sleep(dice.uniform(0, 0.5))
                server.start()
                workload.wait(lambda: workload.is_up(server), "the server")
                # So that not all crashes hit runs that are still looking for the server.
                workload.wait(lambda: workload.active_streams(database) == 2, "the streams", 120, of=file_tail)
            writers.stop()
            workload.wait(lambda: workload.streams(database, 2), "the end of the copies", 120, of=file_tail)
            events = workload.finish(database, file_tail, pipe_tail, output)
    finally:
        writers.stop()
    workload.verdict(*events, database, bulk)
    assert file_tail.stderr.count("connected again") >= min(crashes, 1)


def test_a_reader_that_is_blocked_misses_nothing(new_server: NewServer) -> None:
    """It is blocked for three times wal_sender_timeout, first in the copies, then in the stream."""
    server = new_server(18, wal_sender_timeout="2s")
    database = Database(server, "postgres")
    workload.prepare(database)
    writers = Writers(database, count=4, seed=4, pause=0.01)
    try:
        with Tail(*_ARGUMENTS, dsn=database.dsn(), read=False) as tail:
            workload.wait(lambda: workload.active_streams(database) == 1, "the stream", of=tail)
            walsender = _walsender(database)
            _must_stay(database, tail, walsender)
            tail.read_on()
            workload.wait(lambda: workload.streams(database, 1), "the end of the copies", of=tail)
            tail.hold()
            _must_stay(database, tail, walsender)
            tail.go_on()
            writers.stop()
            with database.connect() as connection:
                connection.execute("INSERT INTO marker VALUES (1)")
            tail.until(lambda line: line.get("table") == "marker" and line["op"] == "insert", 120)
            assert _walsender(database) == walsender, tail.stderr
            assert tail.stop().code == 143
    finally:
        writers.stop()
    # Nothing was lost on the way, so that nothing comes twice either.
    events = workload.parse(tail.lines)
    workload.must_hold_each_once(events)
    workload.must_equal(events, database, ["bulk"])


def test_a_crash_never_leaves_the_slot_ahead_of_the_state(new_server: NewServer) -> None:
    """With synchronous_commit off a crash loses commits that were reported, but none that the slot relies on."""
    server = new_server(18, synchronous_commit="off", wal_writer_delay="10s")
    database = Database(server, "postgres")
    workload.prepare(database)
    arguments = ["mirrored", "--store", "postgres"]
    with Tail(*arguments, dsn=database.dsn()) as tail, database.connect() as connection:
        workload.wait(lambda: workload.streams(database, 1), "the end of the copies", of=tail)
        connection.execute("SET synchronous_commit = on")
        for number in range(3):
            # What makes the server write the slot to its disk with the next confirmed position.
            connection.execute("SELECT pg_log_standby_snapshot()")
            before = connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
            assert before is not None
            connection.execute("INSERT INTO marker VALUES (%s)", [number])
            workload.wait(lambda before=before: _confirmed_beyond(connection, before[0]), "the position", of=tail)  # type: ignore[misc]
        server.stop(immediate=True)
    server.start()
    workload.wait(lambda: workload.is_up(server), "the server")
    with database.connect() as connection:
        workload.must_not_be_ahead(connection)
    with Tail(*arguments, "--until-lsn", "now", dsn=database.dsn()) as tail:
        assert tail.finish().code == 0, tail.stderr


def _confirmed_beyond(connection: psycopg.Connection, position: str) -> bool:
    query = "SELECT confirmed_flush_lsn > %s::pg_lsn FROM pg_replication_slots"
    return connection.execute(query, [position]).fetchone() == (True,)


def _walsender(database: Database) -> int | None:
    with database.connect() as connection:
        row = connection.execute("SELECT active_pid FROM pg_replication_slots WHERE NOT temporary").fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return]


def _must_stay(database: Database, tail: Tail, walsender: int | None) -> None:
    end = time.monotonic() + 6.0
    while time.monotonic() < end:
        assert _walsender(database) == walsender, tail.stderr
        time.sleep(0.2)
