"""Readers that do not read, publications on which nothing happens, servers that want to shut down."""

from __future__ import annotations

import time

import psycopg
import pytest

from tests.conftest import NewServer
from tests.tail.running import Tail

WAL_SENDER_TIMEOUT = 2.0


def _walsender(connection: psycopg.Connection) -> tuple[int, str, str] | None:
    return connection.execute(
        "SELECT pid, r.sent_lsn::text, s.confirmed_flush_lsn::text"
        " FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid"
    ).fetchone()


@pytest.mark.parametrize("version", [16, 18])
def test_reader_that_stops_reading_costs_neither_connection_nor_data(version: int, new_server: NewServer) -> None:
    server = new_server(version, wal_sender_timeout="2s")
    rows, batch = 60_000, 500
    with server.connect() as connection:
        connection.execute("CREATE TABLE t (id int PRIMARY KEY, filler text); CREATE PUBLICATION p FOR TABLE t")
        connection.execute("INSERT INTO t VALUES (0, 'from the snapshot')")
        with Tail("p", dsn=server.dsn(), read=False) as tail:
            tail.until_stderr("snapshot: 1 table")
            _wait(lambda: _walsender(connection) is not None, "a walsender that streams")
            before = _walsender(connection)
            # More than every buffer between the server and the pipe can hold.
            for first in range(1, rows, batch):
                connection.execute(
                    "INSERT INTO t SELECT i, repeat(md5(i::text), 40) FROM generate_series(%s::int, %s::int) i",
                    [first, first + batch - 1],
                )
            last = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
            blocked_since = time.monotonic()
            while time.monotonic() - blocked_since < 3 * WAL_SENDER_TIMEOUT:
                now = _walsender(connection)
                assert now is not None, f"the walsender is gone\n{tail.stderr}"
                assert before is not None
                assert now[0] == before[0], "it is another walsender"
                time.sleep(0.2)
            assert now is not None
            assert last is not None
            behind = connection.execute("SELECT %s::pg_lsn < %s::pg_lsn", [now[2], last[0]]).fetchone()
            assert behind == (True,), "something was confirmed that nobody has read"
            tail.read_on()
            tail.until(lambda line: line.get("key") == {"id": rows}, seconds=120)
            after = _walsender(connection)
            assert after is not None
            assert before is not None
            assert after[0] == before[0]
            finished = tail.stop()
    assert finished.code == 143
    ids = [line["new"]["id"] for line in finished.events if line["op"] in ("read", "insert")]
    assert ids == list(range(rows + 1))


def test_idle_publication_is_confirmed_while_others_write(new_server: NewServer) -> None:
    server = new_server(18, wal_sender_timeout="2s")
    with server.connect() as connection:
        connection.execute(
            "CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t;"
            " CREATE TABLE other (id int, filler text)"
        )
        with Tail("p", dsn=server.dsn()) as tail:
            tail.until_op("snapshot_end")
            connection.execute("INSERT INTO other SELECT i, repeat('x', 500) FROM generate_series(1, 2000) i")
            written = connection.execute("SELECT pg_current_wal_flush_lsn()").fetchone()
            assert written is not None
            query = "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots"
            _wait(lambda: connection.execute(query, [written[0]]).fetchone() == (True,), "the slot to be confirmed")
            assert tail.stop().code == 143


def test_server_shuts_down_although_the_reader_is_blocked(new_server: NewServer) -> None:
    server = new_server(18)
    with server.connect() as connection:
        connection.execute("CREATE TABLE t (id int PRIMARY KEY, filler text); CREATE PUBLICATION p FOR TABLE t")
        tail = Tail("p", dsn=server.dsn(), read=False)
        with tail:
            _wait(lambda: _walsender(connection) is not None, "a walsender that streams")
            connection.execute("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 40000) i")
            blocked = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'WalSenderWriteData'"
            _wait(lambda: connection.execute(blocked).fetchone() is not None, "a walsender that cannot send")
            connection.close()
            began = time.monotonic()
            server.stop(immediate=False)
            assert time.monotonic() - began < 15
            finished = tail.finish()
    assert finished.code == 5
    assert "the temporary slot is gone with it" in finished.stderr


def _wait(condition: object, what: str, seconds: float = 30.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.05)
