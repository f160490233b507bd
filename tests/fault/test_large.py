"""Transactions of a million rows: right rows, and no more memory than a small one takes."""

from __future__ import annotations

import time
from pathlib import Path

import orjson
import psycopg

from tests.command import pgrepl
from tests.servers.database import Database
from tests.tail.running import Tail

ROWS = 1_000_000
GROWTH = 32 << 20
PATIENCE = 300.0


def _peak(pid: int) -> int:
    """The most memory that a process has ever had resident, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _insert(connection: psycopg.Connection, first: int, rows: int) -> None:
    """One transaction: every fifth part of the rows in a savepoint that is rolled back, and written again as kept."""
    part = rows // 10
    insert = "INSERT INTO big SELECT g, %s, repeat('x', 100) FROM generate_series(%s::int, %s::int) g"
    with connection.transaction():
        for number in range(10):
            start = first + number * part
            if number % 5 == 3:
                with connection.transaction(force_rollback=True):
                    connection.execute(insert, ["gone", start, start + part - 1])
            with connection.transaction():
                connection.execute(insert, ["kept", start, start + part - 1])


def _wait_for(output: Path, marker: bytes, tail: Tail) -> None:
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up and tail.running:
        if output.exists():
            with output.open("rb") as file:
                file.seek(max(0, output.stat().st_size - 4096))
                if marker in file.read():
                    return
        time.sleep(0.1)
    raise AssertionError(f"{marker!r} did not come: {tail.stderr}")


def test_a_million_rows_take_no_memory(database18: Database, tmp_path: Path) -> None:
    database18.psql(
        f"ALTER DATABASE \"{database18.name}\" SET logical_decoding_work_mem = '4MB';"
        "CREATE TABLE big (id int, what text, filler text); CREATE TABLE marker (n int);"
        "CREATE PUBLICATION pub FOR TABLE big, marker"
    )
    assert pgrepl("migrations", "apply", "-d", database18.dsn()).returncode == 0
    output = tmp_path / "out.jsonl"
    arguments = ["pub", "--store", "postgres", "-o", str(output), "--spool-dir", str(tmp_path / "spool")]
    with Tail(*arguments, dsn=database18.dsn()) as tail, database18.connect() as connection:
        slots = "SELECT slot_name FROM pg_replication_slots WHERE database = %s AND active"
        while connection.execute(slots, [database18.name]).fetchone() is None:
            assert tail.running, tail.stderr
        # All buffers are full with the first one.
        _insert(connection, 1_000_000, ROWS // 4)
        connection.execute("INSERT INTO marker VALUES (1)")
        _wait_for(output, b'"n":1}', tail)
        before = _peak(tail.pid)
        _insert(connection, 2_000_000, ROWS)
        with connection.transaction(force_rollback=True):
            _insert(connection, 5_000_000, ROWS // 4)
        connection.execute("INSERT INTO marker VALUES (2)")
        _wait_for(output, b'"n":2}', tail)
        grown = _peak(tail.pid) - before
        streamed = connection.execute(
            "SELECT stream_txns FROM pg_stat_replication_slots JOIN pg_replication_slots USING (slot_name)"
            " WHERE database = %s",
            [database18.name],
        ).fetchone()
        assert tail.stop().code == 143
    assert streamed is not None
    assert streamed[0] >= 2
    assert grown < GROWTH, f"{grown / (1 << 20):.0f} MiB more"
    seen: dict[int, int] = {1: 0, 2: 0}
    next_id, next_seq = 2_000_000, 0
    with output.open("rb") as file:
        for line in file:
            event = orjson.loads(line)
            if event["op"] != "insert" or event["table"] != "big":
                continue
            row = event["new"]
            assert row["what"] == "kept"
            seen[row["id"] // 1_000_000] = seen.get(row["id"] // 1_000_000, 0) + 1
            if row["id"] >= 2_000_000:
                assert (row["id"], event["seq"]) == (next_id, next_seq)
                next_id, next_seq = next_id + 1, next_seq + 1
    assert seen == {1: ROWS // 4, 2: ROWS}
    assert list((tmp_path / "spool").glob("spool-*")) == []
