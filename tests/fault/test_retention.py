"""What a long copy costs the server: little WAL while it goes on, and no slot when it is killed."""

from __future__ import annotations

import os
import select

import psycopg
import pytest

from tests.fault import workload
from tests.servers.database import Database
from tests.tail.running import Tail

_SETUP = """
CREATE TABLE big (id int PRIMARY KEY, filler text);
INSERT INTO big SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 80000) i;
CREATE TABLE busy (id int, filler text);
CREATE PUBLICATION p FOR TABLE big, busy;
"""
_MB = 1 << 20
_BOUND = 48 * _MB
_WRITTEN = 256 * _MB


def _retained(connection: psycopg.Connection) -> int:
    """Bytes of WAL that the slots of this database keep on the server."""
    # Where reading would have to begin again moves on when the server has noted which transactions run.
    connection.execute("SELECT pg_log_standby_snapshot()")
    row = connection.execute(
        "SELECT max(pg_current_wal_insert_lsn() - restart_lsn)::bigint FROM pg_replication_slots"
        " WHERE database = current_database()"
    ).fetchone()
    assert row is not None
    return int(row[0] or 0)


@pytest.mark.parametrize("store", ["memory", "postgres"])
def test_wal_stays_bounded_during_a_slow_copy(store: str, database18: Database) -> None:
    """A slow reader makes the copy last; meanwhile far more WAL is written than the server may have to keep."""
    database18.psql(_SETUP)
    workload.migrate(database18)
    with database18.connect() as connection, database18.connect() as writer:
        arguments = ["p", "--store", store, "--spool-limit", "2GB"]
        with Tail(*arguments, dsn=database18.dsn(), read=False) as tail:
            reader = _SlowReader(tail)
            workload.wait(reader.read, "the first rows", of=tail)
            began = _position(connection)
            most = 0
            while (written := _position(connection) - began) < _WRITTEN:
                writer.execute("INSERT INTO busy SELECT i, repeat('x', 1000) FROM generate_series(1, 2000) i")

                def keeps_up() -> bool:
                    reader.read()
                    return _retained(connection) < _BOUND

                workload.wait(keeps_up, f"the stream after {written >> 20} MB of WAL", of=tail)
                most = max(most, _retained(connection))
            assert b'"snapshot_end"' not in reader.seen, "the copy was over too soon to show anything"
            assert most < _BOUND
            assert reader.size < written / 4, "the stream was read only while the reader made room"
            print(f"{store}: kept {most >> 20} MB of {written >> 20} MB of WAL, while {reader.size >> 20} MB were read")
            tail.kill()
        workload.wait(lambda: len(_slots(connection)) == (store == "postgres"), "the end of the slots")


class _SlowReader:
    """Read a little of what a tail prints, each time it is told to; what was seen is kept from its end."""

    def __init__(self, tail: Tail) -> None:
        self._pipe = tail.pipe.fileno()
        self.seen = b""
        self.size = 0

    def read(self) -> bool:
        """Read one piece if there is one."""
        if not select.select([self._pipe], [], [], 0)[0]:
            return False
        piece = os.read(self._pipe, 64 << 10)
        self.size += len(piece)
        self.seen = self.seen[-100:] + piece
        return True


def _position(connection: psycopg.Connection) -> int:
    row = connection.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchone()
    assert row is not None
    return int(row[0])


def _slots(connection: psycopg.Connection) -> list[tuple[str, bool]]:
    query = "SELECT slot_name, temporary FROM pg_replication_slots WHERE database = current_database()"
    return [(name, temporary) for name, temporary in connection.execute(query)]


@pytest.mark.parametrize("store", ["memory", "postgres"])
def test_kill_leaves_no_slot_but_that_of_the_state(store: str, database18: Database) -> None:
    """Killed while one slot streams and a second one, for a table that came later, waits for a transaction to end."""
    database18.psql(_SETUP)
    workload.migrate(database18)
    with database18.connect() as connection, database18.connect() as long:
        with Tail("p", "--store", store, "--refresh", "100ms", dsn=database18.dsn()) as tail:
            tail.until_op("snapshot_end", 2)
            long.execute("BEGIN; INSERT INTO busy VALUES (1)")
            connection.execute("CREATE TABLE late (id int); ALTER PUBLICATION p ADD TABLE late")
            workload.wait(lambda: len(_slots(connection)) == 2, "the second slot", of=tail)
            tail.kill()
        # A walsender that waits for a transaction does not see that its client is gone.
        long.execute("ROLLBACK")
        workload.wait(lambda: len(_slots(connection)) == (store == "postgres"), "the end of the slots")
        assert all(not temporary for _, temporary in _slots(connection))
        with Tail("p", "--store", store, dsn=database18.dsn()) as tail:
            if store == "postgres":
                tail.until(lambda event: event["op"] == "snapshot_end" and event["table"] == "late")
            else:
                tail.until_op("snapshot_end", 3)
            assert tail.stop().code == 143
        workload.wait(lambda: len(_slots(connection)) == (store == "postgres"), "the end of the slots")
