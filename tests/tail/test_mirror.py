"""The main promise: what is printed, applied to nothing, gives the source tables."""

from __future__ import annotations

import time

from tests.servers.database import Database
from tests.tail.mirror import SCHEMA, Mirror, Writers
from tests.tail.running import Tail

STREAMING_SECONDS = 5.0


def test_printed_lines_rebuild_the_tables(database: Database) -> None:
    database.psql(SCHEMA)
    writers = Writers(database)
    try:
        # The snapshot is to be taken in the middle of things.
        _wait_for_transactions(writers, 200)
        with Tail("mirrored", dsn=database.dsn()) as tail:
            tail.until(lambda line: line["op"] == "insert")
            _wait_for_transactions(writers, writers.transactions + 500, until=time.monotonic() + STREAMING_SECONDS)
            writers.stop()
            with database.connect() as connection:
                connection.execute("INSERT INTO marker VALUES (1)")
            tail.until(lambda line: line.get("table") == "marker" and line["op"] == "insert")
            finished = tail.stop()
    finally:
        writers.stop()

    assert finished.code == 143
    assert {"insert", "update", "key", "delete", "truncate"} <= set(writers.kinds)
    mirror = Mirror().apply(finished.events)
    mirror.must_equal(database)
    with database.connect() as connection:
        assert connection.execute("SELECT slot_name FROM pg_replication_slots WHERE temporary").fetchall() == []


def _wait_for_transactions(writers: Writers, count: int, until: float = 0.0) -> None:
    """Wait until so many transactions are committed, and at least to the time ``until``."""
    deadline = time.monotonic() + 60
    while writers.transactions < count or time.monotonic() < until:
        assert time.monotonic() < deadline, f"only {writers.transactions} transactions: {writers.failures}"
        assert not writers.failures, writers.failures
        time.sleep(0.05)
