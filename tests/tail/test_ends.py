"""How a tail ends: at a row, at a position, after a time, by a signal, without a reader; and where it writes to."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.servers.database import Database
from tests.tail.running import ROOT, Tail, run_tail
from tests.tail.scenario import streaming, wait_for_slot

ONE_HUNDRED = "INSERT INTO t SELECT n FROM generate_series({}, {}) n"


@pytest.fixture
def table(database18: Database) -> Database:
    database18.psql("""
        CREATE TABLE t (id int PRIMARY KEY, a text);
        INSERT INTO t SELECT n FROM generate_series(1, 100) n;
        CREATE PUBLICATION pub FOR TABLE t;
    """)
    return database18


def nothing_left(database: Database) -> None:
    """Check that no slot and no session of a tail is left, or wait until the server has noticed."""
    query = """
        SELECT slot_name FROM pg_replication_slots WHERE database = current_database()
         UNION ALL SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'pgrepl%'
    """
    deadline = time.monotonic() + 30
    with database.connect() as connection:
        while left := connection.execute(query).fetchall():
            assert time.monotonic() < deadline, left
            time.sleep(0.01)


def test_limit_is_exact(table: Database) -> None:
    """In the snapshot, and in the middle of a transaction of the stream."""
    finished = run_tail("pub", "--limit", "7", dsn=table.dsn())
    assert finished.code == 0
    assert [event["op"] for event in finished.events] == ["snapshot_begin", *["read"] * 7]
    assert "done: 7 rows" in finished.stderr
    with table.connect() as connection, Tail("pub", "--limit", "105", dsn=table.dsn()) as tail:
        tail.until_op("snapshot_end")
        connection.execute("INSERT INTO t SELECT n FROM generate_series(101, 103) n")
        connection.execute("TRUNCATE t; INSERT INTO t SELECT n FROM generate_series(1, 50) n")
        finished = tail.finish()
    assert finished.code == 0
    changes = [event for event in finished.events if event["op"] not in ("read", "snapshot_begin", "snapshot_end")]
    assert [event["op"] for event in changes] == ["insert", "insert", "insert", "truncate", "insert", "insert"]
    nothing_left(table)


def test_limit_in_a_file_ends_with_the_transaction(table: Database, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    options = ("--snapshot", "never", "--transactions", "--limit", "2", "-o", str(path))
    with table.connect() as connection, Tail("pub", *options, dsn=table.dsn()) as tail:
        wait_for_slot(connection, tail)
        connection.execute("INSERT INTO t SELECT n FROM generate_series(101, 105) n")
        connection.execute("INSERT INTO t VALUES (200)")
        finished = tail.finish()
    assert (finished.code, finished.stdout) == (0, "")
    assert [json.loads(line)["op"] for line in path.read_text().splitlines()] == ["begin", *["insert"] * 5, "commit"]


def test_until_now(table: Database) -> None:
    """It ends by itself on an idle server, after the snapshot, and also without one."""
    finished = run_tail("pub", "--until-lsn", "now", dsn=table.dsn())
    assert finished.code == 0
    assert [event["op"] for event in finished.events] == ["snapshot_begin", *["read"] * 100, "snapshot_end"]
    finished = run_tail("pub", "--until-lsn", "now", "--snapshot", "never", dsn=table.dsn())
    assert (finished.code, finished.stdout) == (0, "")
    nothing_left(table)


def test_until_a_position(table: Database) -> None:
    """The first transaction that commits there is not printed any more, one before it is."""
    with table.connect() as connection:
        (before,) = connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone() or ("",)
        # Beyond what the next transactions write.
        until = f"{before.split('/')[0]}/{int(before.split('/')[1], 16) + 20_000:X}"
        with Tail("pub", "--snapshot", "never", "--until-lsn", until, dsn=table.dsn()) as tail:
            wait_for_slot(connection, tail)
            connection.execute("INSERT INTO t VALUES (101)")
            tail.until_op("insert")
            connection.execute("INSERT INTO t VALUES (102, repeat('x', 40000))")
            connection.execute("INSERT INTO t VALUES (103, repeat(md5('x'), 2000))")
            connection.execute("INSERT INTO t SELECT n, md5(n::text) FROM generate_series(200, 1200) n")
            connection.execute("INSERT INTO t VALUES (104)")
            finished = tail.finish()
    assert finished.code == 0
    ids = [event["new"]["id"] for event in finished.events]
    assert ids[0] == 101
    assert 104 not in ids
    for event in finished.events:
        high, low = event["commit_lsn"].split("/")
        assert f"{high}/{int(low, 16):08X}" < f"{until.split('/')[0]}/{int(until.split('/')[1], 16):08X}"


def test_until_the_past_and_for(table: Database) -> None:
    finished = run_tail("pub", "--until-lsn", "0/1", dsn=table.dsn())
    assert (finished.code, len(finished.events)) == (0, 102)
    began = time.monotonic()
    finished = run_tail("pub", "--for", "500ms", dsn=table.dsn())
    assert (finished.code, len(finished.events)) == (0, 102)
    assert time.monotonic() - began >= 0.5
    assert "done: 100 rows" in finished.stderr
    nothing_left(table)


def test_snapshot_only(table: Database) -> None:
    finished = run_tail("pub", "--snapshot", "only", dsn=table.dsn())
    assert finished.code == 0
    begin, *reads, end = finished.events
    assert [list(event) for event in (begin, reads[0], end)] == [
        ["op", "schema", "table", "attempt", "snapshot_lsn"],
        ["op", "schema", "table", "key", "new", "snapshot_lsn"],
        ["op", "schema", "table", "attempt", "rows", "snapshot_lsn"],
    ]
    assert (begin["attempt"], end["attempt"], end["rows"]) == (1, 1, 100)
    assert {event["snapshot_lsn"] for event in finished.events} == {begin["snapshot_lsn"]}
    assert [event["new"]["id"] for event in reads] == list(range(1, 101))
    assert "restart begins anew" not in finished.stderr
    nothing_left(table)


def test_snapshot_never(table: Database) -> None:
    """No row is read, so that no right to read is needed.

    Case table_sync_copy_skip_all_tables of supabase/etl's tests.
    """
    table.psql("CREATE ROLE app LOGIN REPLICATION")
    with streaming(table, "--snapshot", "never", user="app") as stream:
        assert stream.before == []
        events = stream.changes("INSERT INTO t VALUES (101, 'x')")
    assert [event["new"] for event in events] == [{"id": 101, "a": "x"}]


def test_every_change_once_around_the_snapshot(table: Database) -> None:
    """What commits before the snapshot is read, what commits after it is streamed: nothing twice, nothing lost.

    Case pipeline_processes_concurrent_inserts_during_startup of supabase/etl's tests.
    """
    with table.connect() as connection, Tail("pub", dsn=table.dsn()) as tail:
        number = 100
        while len(tail.lines) < 103:
            number += 1
            connection.execute("INSERT INTO t VALUES (%s)", [number])
        connection.execute("INSERT INTO t VALUES (0)")
        events = tail.until(lambda event: event.get("key") == {"id": 0})
    printed = [event["new"]["id"] for event in events if event["op"] in ("read", "insert")]
    assert sorted(printed) == list(range(number + 1))
    assert {event["op"] for event in events} == {"snapshot_begin", "read", "snapshot_end", "insert"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(table: Database, number: signal.Signals, code: int) -> None:
    with table.connect() as connection, Tail("pub", dsn=table.dsn()) as tail:
        wait_for_slot(connection, tail)
        tail.until_op("snapshot_end")
        connection.execute("INSERT INTO t SELECT n FROM generate_series(101, 300) n")
        tail.until_op("insert")
        finished = tail.stop(number)
    assert finished.code == code
    # The transaction that was being written is whole, and so is every line.
    assert [event["new"]["id"] for event in finished.events if event["op"] == "insert"] == list(range(101, 301))
    assert "stopped: 300 rows, 1 transactions" in finished.stderr
    assert finished.complaints == []
    nothing_left(table)


def test_a_second_signal_ends_at_once(table: Database) -> None:
    """Also while nobody reads, when the first one cannot be followed."""
    table.psql("INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(101, 5000) n")
    with Tail("pub", dsn=table.dsn(), read=False) as tail:
        deadline = time.monotonic() + 30
        full = fcntl.fcntl(tail.pipe, fcntl.F_GETPIPE_SZ)
        # Its pages need not be full when there is no room any more: that depends on how large the writes were.
        while struct.unpack("i", fcntl.ioctl(tail.pipe, termios.FIONREAD, b"    "))[0] < full // 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        # Two at once may arrive as one.
        while tail.running:
            assert time.monotonic() < deadline
            tail.send(signal.SIGTERM)
            time.sleep(0.01)
        assert tail.finish().code == 143
    nothing_left(table)


def test_signal_while_the_slot_cannot_be_built(table: Database) -> None:
    """Whoever is in the way is named after two seconds, and the wait can be ended."""
    with table.connect(application_name="slow report") as slow, table.connect() as other:
        slow.execute("BEGIN; INSERT INTO t VALUES (0)")
        other.execute("BEGIN; INSERT INTO t VALUES (-1); PREPARE TRANSACTION 'forgotten'")
        try:
            began = time.monotonic()
            with Tail("pub", dsn=table.dsn()) as tail:
                stderr = tail.until_stderr("the slot cannot be built yet")
                assert time.monotonic() - began > 2
                # Which of the two the server waits for first is its own affair.
                assert f"pid {slow.info.backend_pid} (postgres, slow report" in stderr or "'forgotten'" in stderr
                finished = tail.stop(signal.SIGINT)
            assert finished.code == 130
            assert finished.stdout == ""
            assert "stopped: 0 rows" in finished.stderr
        finally:
            slow.execute("ROLLBACK")
            other.execute("ROLLBACK PREPARED 'forgotten'")
    nothing_left(table)


def test_the_wait_for_a_slot_goes_on_by_itself(table: Database) -> None:
    with table.connect(application_name="slow report") as slow:
        slow.execute("BEGIN; INSERT INTO t VALUES (0)")
        with Tail("pub", dsn=table.dsn()) as tail:
            stderr = tail.until_stderr("hint: it goes on by itself")
            assert f"pid {slow.info.backend_pid} (postgres, slow report, idle in transaction for" in stderr
            slow.execute("COMMIT")
            events = tail.until_op("snapshot_end")
    assert events[-1]["rows"] == 101


def test_reader_that_has_enough(table: Database) -> None:
    """``| head -1``: quiet, with the exit code of a closed pipe, in the snapshot and in the stream."""
    table.psql("INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(101, 5000) n")
    with Tail("pub", dsn=table.dsn(), read=False) as tail:
        assert json.loads(tail.pipe.readline())["op"] == "snapshot_begin"
        tail.pipe.close()
        finished = tail.finish()
    assert finished.code == 141
    assert finished.complaints == []
    nothing_left(table)
    with table.connect() as connection, Tail("pub", "--snapshot", "never", dsn=table.dsn(), read=False) as tail:
        wait_for_slot(connection, tail)
        tail.pipe.close()
        connection.execute("INSERT INTO t VALUES (0)")
        finished = tail.finish()
    assert finished.code == 141
    assert finished.complaints == []
    nothing_left(table)


def test_closed_stdout(table: Database) -> None:
    """Nobody wants the lines then, and they reach nothing else that is open."""
    command = f'exec "{sys.executable}" -m pgrepl tail pub --snapshot only >&-'
    environment = {"PATH": os.environ["PATH"], "PGREPL_DSN": table.dsn(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "done: 100 rows" in done.stderr
    nothing_left(table)


def test_full_disk(table: Database) -> None:
    """/dev/full takes nothing; that is said, and nothing is passed off as written."""
    table.psql("INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(101, 1000) n")
    arguments = ["pub", "--snapshot", "only", "--output-timeout", "1s"]
    finished = run_tail(*arguments, "-o", "/dev/full", dsn=table.dsn())
    assert finished.code == 1
    (warning, error) = [line for line in finished.complaints if "hint" not in line]
    assert warning.endswith(
        "cannot write /dev/full: No space left on device; nothing is confirmed until it works again"
    )
    assert error == "pgrepl: error: cannot write /dev/full: No space left on device"
    with Path("/dev/full").open("w") as full:
        environment = {"PATH": os.environ["PATH"], "PGREPL_DSN": table.dsn(), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "pgrepl", "tail", *arguments]
        done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "no space left on device" in done.stderr.lower()
    assert "defect" not in done.stderr
    nothing_left(table)


def test_output_file_is_appended_to(table: Database, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("before\n")
    for _ in range(2):
        finished = run_tail("pub", "--snapshot", "only", "-o", str(path), "--append", dsn=table.dsn())
        assert (finished.code, finished.stdout) == (0, "")
    first, *lines = path.read_text().splitlines()
    assert first == "before"
    assert [json.loads(line)["op"] for line in lines] == ["snapshot_begin", *["read"] * 100, "snapshot_end"] * 2


def test_output_file_while_it_is_written(table: Database, tmp_path: Path) -> None:
    """What a signal finds in the file is whole, and the lines of stdout would have been the same."""
    path = tmp_path / "out.jsonl"
    with table.connect() as connection, Tail("pub", "-o", str(path), dsn=table.dsn()) as tail:
        wait_for_slot(connection, tail)
        connection.execute("INSERT INTO t SELECT n FROM generate_series(101, 400) n")
        deadline = time.monotonic() + 30
        while len(path.read_bytes().splitlines()) < 402:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        finished = tail.stop()
    assert finished.code == 143
    lines = path.read_text().splitlines(keepends=True)
    assert lines[-1].endswith("\n")
    assert [json.loads(line)["op"] for line in lines[102:]] == ["insert"] * 300


def test_pretty_output(table: Database) -> None:
    finished = run_tail("pub", "--snapshot", "only", "--format", "pretty", "--table", "public.t", dsn=table.dsn())
    first, second, *_, last = finished.stdout.splitlines()
    assert re.match(r"-- snapshot of public\.t at [0-9A-F]+/[0-9A-F]+", first)
    assert second == "read     public.t  id=1 a=null"
    assert last == "-- 100 rows of public.t"
    assert "\x1b" in run_tail("pub", "--limit", "1", "--format", "pretty", "--color", "always", dsn=table.dsn()).stdout


def test_sizes_are_said_before_the_snapshot(table: Database) -> None:
    table.psql("ANALYZE t")
    finished = run_tail("pub", "--snapshot", "only", dsn=table.dsn())
    assert "snapshot: 1 table, about 100 rows, " in finished.stderr
    assert run_tail("pub", "-q", "--snapshot", "only", dsn=table.dsn()).stderr == ""


def test_log_lines_as_json(table: Database) -> None:
    finished = run_tail("pub", "--snapshot", "only", "--log-format", "json", dsn=table.dsn())
    levels = [json.loads(line)["level"] for line in finished.stderr.splitlines()]
    assert levels == ["notice"] * len(levels)
    assert levels
