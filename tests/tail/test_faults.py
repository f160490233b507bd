"""Cut connections and crashed servers: what is lost with them is said, and nothing is passed off as whole."""

from __future__ import annotations

import re
import select
import threading
import time
from collections.abc import Callable

import psycopg
import pytest

from tests.conftest import NewServer
from tests.proxy import proxy
from tests.servers.database import Database
from tests.servers.server import Server
from tests.tail.mirror import Mirror
from tests.tail.running import Event, Tail

_TABLE = "CREATE TABLE t (id int PRIMARY KEY, filler text); CREATE PUBLICATION p FOR TABLE t;"
_MANY = "INSERT INTO t SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 60000) i"


def _terminate(connection: psycopg.Connection, application: str) -> None:
    connection.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name LIKE %s AND datname ="
        " current_database()",
        [application],
    )


def _whole_copies(events: list[Event]) -> list[int]:
    return [event["attempt"] for event in events if event["op"] == "snapshot_end"]


def test_stream_that_is_cut_ends_with_5_and_names_the_position(database: Database) -> None:
    database.psql(_TABLE)
    with database.connect() as connection, Tail("p", dsn=database.dsn()) as tail:
        tail.until_op("snapshot_end")
        connection.execute("INSERT INTO t VALUES (1, 'x')")
        tail.until_op("insert")
        position = connection.execute(
            "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE database = %s", [database.name]
        )
        assert position.fetchone() is not None
        _terminate(connection, "pgrepl tail (pgrepl_tmp_%)")
        finished = tail.finish()
    assert finished.code == 5
    (error, hint) = finished.complaints
    assert re.search(r"changes from [0-9A-F]+/[0-9A-F]+ on cannot be read any more", error)
    assert "a new snapshot is taken" in hint


@pytest.mark.parametrize("victim", ["pgrepl tail (pgrepl_tmp_%)", "pgrepl tail"], ids=["walsender", "copy"])
def test_copy_that_is_cut_begins_again_as_another_attempt(database18: Database, victim: str) -> None:
    """Case table_copy_is_consistent_during_data_sync_threw_an_error_with_timed_retry of supabase/etl's tests."""
    database18.psql(_TABLE + _MANY)
    with database18.connect() as connection, Tail("p", dsn=database18.dsn(), read=False) as tail:
        # The pipe is full, so the copy stands in the middle.
        tail.until_stderr("snapshot: 1 table")
        _wait(lambda: bool(select.select([tail.pipe], [], [], 0)[0]), "the first lines")
        connection.execute("UPDATE t SET filler = 'changed' WHERE id <= 10")
        _terminate(connection, victim)
        tail.read_on()
        tail.until_op("snapshot_end", seconds=60)
        connection.execute("INSERT INTO t VALUES (0, 'last')")
        tail.until(lambda event: event["op"] == "insert")
        finished = tail.stop()
    assert finished.code == 143
    assert "the copy begins again" in finished.stderr
    assert _whole_copies(finished.events) == [2]
    mirror = Mirror().apply(finished.events)
    assert len(mirror.keyed["t"]) == 60001
    assert mirror.keyed["t"]['{"id": 5}'] == {"id": 5, "filler": "changed"}


def test_server_that_crashes_during_the_copy_is_waited_for(new_server: NewServer) -> None:
    server = new_server(18)
    with server.connect() as connection:
        connection.execute(_TABLE + _MANY)
        with Tail("p", dsn=server.dsn(), read=False) as tail:
            tail.until_stderr("snapshot: 1 table")
            _wait(lambda: _copying(connection), "the copy to begin")
            # Rows that were never printed would be no attempt.
            _wait(lambda: bool(select.select([tail.pipe], [], [], 0)[0]), "the first lines")
            connection.close()
            server.stop(immediate=True)
            restart = threading.Thread(target=server.start)
            tail.read_on()
            tail.until_stderr("trying again")
            restart.start()
            tail.until_op("snapshot_end", seconds=60)
            restart.join()
            finished = tail.stop()
    assert finished.code == 143
    assert _whole_copies(finished.events) == [2]
    assert len(Mirror().apply(finished.events).keyed["t"]) == 60000


def test_server_that_crashes_during_the_stream_ends_it_with_5(new_server: NewServer) -> None:
    server = new_server(18)
    with server.connect() as connection:
        connection.execute(_TABLE)
    with Tail("p", dsn=server.dsn()) as tail:
        tail.until_op("snapshot_end")
        server.stop(immediate=True)
        assert tail.finish().code == 5


def test_bytes_in_other_pieces_give_the_same_lines(server: Server, database: Database) -> None:
    """The stream is cut at random places by a proxy; what libpq and the decoder make of it stays the same."""
    database.psql(_TABLE)
    with (
        proxy(f"{server.host}/.s.PGSQL.{server.port}", pieces=7, seed=server.version) as pieces,
        database.connect() as connection,
        Tail("p", dsn=f"host=127.0.0.1 port={pieces.port} user=postgres dbname={database.name}") as through_proxy,
        Tail("p", dsn=database.dsn()) as direct,
    ):
        both = (through_proxy, direct)
        for tail in both:
            tail.until_op("snapshot_end")
        for number in range(1, 40):
            connection.execute("INSERT INTO t VALUES (%s, %s)", [number, "é😀\t\\" * number])
        connection.execute("UPDATE t SET id = id + 100; TRUNCATE t; INSERT INTO t VALUES (1, NULL)")
        lines = []
        for tail in both:
            tail.until(lambda event: event.get("new") == {"id": 1, "filler": None})
            finished = tail.stop()
            assert finished.code == 143
            lines.append([line for line in finished.stdout.splitlines() if "snapshot_lsn" not in line])
    assert len(lines[0]) == 39 + 39 + 2
    assert lines[0] == lines[1]


def test_wire_that_is_cut_in_the_middle_of_a_row_prints_only_whole_lines(database18: Database) -> None:
    database18.psql(_TABLE)
    server = database18.server
    with (
        proxy(f"{server.host}/.s.PGSQL.{server.port}") as wire,
        database18.connect() as connection,
        Tail("p", dsn=f"host=127.0.0.1 port={wire.port} user=postgres dbname={database18.name}") as tail,
    ):
        tail.until_op("snapshot_end")
        wire.cut_after = 300_000
        connection.execute("INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 2000) i")
        finished = tail.finish()
    assert finished.code == 5
    assert finished.stdout.endswith("\n")
    ids = [event["new"]["id"] for event in finished.events if event["op"] == "insert"]
    assert ids == list(range(1, len(ids) + 1))
    assert 0 < len(ids) < 2000


def _copying(connection: psycopg.Connection) -> bool:
    query = "SELECT 1 FROM pg_stat_progress_copy WHERE datname = current_database() AND tuples_processed > 0"
    return connection.execute(query).fetchone() is not None


def _wait(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.05)
