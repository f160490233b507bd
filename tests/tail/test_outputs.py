"""What ``-o`` may name, whose file it is, and where the output ends while tables are copied beside the stream."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.command import eventually
from tests.fault import slowcopy
from tests.fault.test_disk import stands_still
from tests.fault.workload import wait
from tests.servers.database import Database
from tests.tail.pipelines import POSTGRES, everything, prepare, ran_once, refuses
from tests.tail.running import PATIENCE, ROOT, Event, Finished, Tail, run_tail

NOW = ("--until-lsn", "now")


def events_of(path: Path) -> list[Event]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# What is not a file.


@contextmanager
def read(fifo: Path) -> Iterator[list[bytes]]:
    """Read a FIFO to the end of its writer."""
    received: list[bytes] = []
    thread = threading.Thread(target=lambda: received.append(fifo.read_bytes()), daemon=True)
    thread.start()
    yield received
    thread.join(PATIENCE)


def test_a_fifo_with_a_stored_state(database18: Database, tmp_path: Path) -> None:
    """It is a pipe as stdout may be one: written on from the stored position, and nothing stands beside it."""
    prepare(database18)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    printed = []
    for number in (1, 2, 3):
        with read(fifo) as received:
            finished = run_tail(*POSTGRES, "-o", str(fifo), *NOW, dsn=database18.dsn())
        assert finished.code == 0, finished.stderr
        printed.append([json.loads(line) for line in received[0].splitlines()])
        database18.psql(f"INSERT INTO t VALUES ({number + 1})")
    assert [event["op"] for event in printed[0]] == ["snapshot_begin", "read", "snapshot_end"]
    assert [[event["new"]["id"] for event in events] for events in printed[1:]] == [[2], [3]]
    assert list(tmp_path.iterdir()) == [fifo]


@pytest.mark.parametrize("output", ["/dev/null", "/dev/stdout"])
def test_a_device_with_a_stored_state(output: str, database18: Database) -> None:
    prepare(database18)
    for _ in range(2):
        finished = run_tail(*POSTGRES, "-o", output, *NOW, dsn=database18.dsn())
        assert finished.code == 0, finished.stderr
        database18.psql("INSERT INTO t SELECT max(id) + 1 FROM t")
    assert (finished.stdout == "") == (output == "/dev/null")
    assert not Path(output + ".pgrepl").exists()


def test_the_standard_output_is_a_file(database18: Database, tmp_path: Path) -> None:
    """By its name as without one: the shell has opened it, and pgrepl puts nothing beside it."""
    prepare(database18)
    output = tmp_path / "out.jsonl"
    for _ in range(2):
        with output.open("ab") as file:
            code = run_redirected(file.fileno(), database18, *POSTGRES, "-o", "/dev/stdout", *NOW).returncode
        assert code == 0
        database18.psql("INSERT INTO t SELECT max(id) + 1 FROM t")
    assert [event["op"] for event in events_of(output)] == ["snapshot_begin", "read", "snapshot_end", "insert"]
    assert list(tmp_path.iterdir()) == [output]
    assert not Path("/dev/stdout.pgrepl").exists()


def run_redirected(stdout: int, database: Database, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PGREPL_DSN": database.dsn(), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pgrepl", "tail", *arguments]
    return subprocess.run(
        command, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=False
    )


def test_a_directory(database18: Database, tmp_path: Path) -> None:
    prepare(database18)
    with database18.connect() as connection:
        before = everything(connection)
        finished = run_tail(*POSTGRES, "-o", str(tmp_path), dsn=database18.dsn())
        assert everything(connection) == before
    assert finished.code == 2
    error, hint = finished.complaints
    assert error == f"pgrepl: error: cannot write {tmp_path}: Is a directory"
    assert hint == "hint: FILE is a regular one, a FIFO or a device, and not a directory"


def test_a_link_to_a_file(database18: Database, tmp_path: Path) -> None:
    prepare(database18)
    target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
    target.parent.mkdir()
    link.symlink_to(target)
    for _ in range(2):
        assert run_tail(*POSTGRES, "-o", str(link), *NOW, dsn=database18.dsn()).code == 0
        database18.psql("INSERT INTO t SELECT max(id) + 1 FROM t")
    assert [event["op"] for event in events_of(target)] == ["snapshot_begin", "read", "snapshot_end", "insert"]
    assert link.is_symlink()


def test_a_reader_that_is_slow_on_a_pipe_that_does_not_block(database18: Database) -> None:
    """Being slow is no failure, however it shows."""
    prepare(database18)
    database18.psql("INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(2, 2000) n")
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    received: list[bytes] = []

    def read() -> None:
        with os.fdopen(reader, "rb") as pipe:
            eventually(lambda: not select.select((), (writer,), (), 0)[1])
            received.append(pipe.read())

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    done = run_redirected(writer, database18, "pub", "--snapshot", "only", "--output-timeout", "0")
    os.close(writer)
    thread.join(PATIENCE)
    assert done.returncode == 0, done.stderr
    assert "cannot write" not in done.stderr
    rows = [json.loads(line)["new"]["id"] for line in received[0].splitlines()[1:-1]]
    assert rows == list(range(1, 2001))


# Whose file it is.


@pytest.mark.parametrize("emptied", [False, True])
def test_what_is_kept_of_a_file_is_not_written_past(emptied: bool, database18: Database, tmp_path: Path) -> None:
    """The next run with the stored state would cut off what a run without one has appended."""
    output = tmp_path / "out.jsonl"
    ran_once(database18, "-o", str(output))
    if emptied:
        output.write_bytes(b"")
    before = output.read_bytes()
    refuses(
        database18,
        *("pub", "-o", str(output), "--append"),
        code=2,
        message=f"{output}.pgrepl",
        hint="--overwrite",
    )
    assert output.read_bytes() == before
    finished = run_tail("pub", "--snapshot", "only", "-o", str(output), "--overwrite", dsn=database18.dsn())
    assert finished.code == 0
    assert list(tmp_path.iterdir()) == [output]


def test_a_file_of_somebody_elses_is_refused_before_anything_is_made(database18: Database, tmp_path: Path) -> None:
    prepare(database18)
    output = tmp_path / "out.jsonl"
    output.write_text("kept\n")
    hint = "--append writes on at its end, --overwrite begins it anew"
    refuses(database18, *POSTGRES, "-o", str(output), code=2, message="has no sidecar", hint=hint)
    assert output.read_text() == "kept\n"


def test_a_file_of_another_slot_is_refused_before_anything_is_made(database18: Database, tmp_path: Path) -> None:
    """A slot that was made for a run that is refused would hold WAL, and nobody would know of it."""
    prepare(database18)
    output = tmp_path / "out.jsonl"
    mine = ("pub", "--keep-slot", "--slot", "mine", "-o", str(output))
    assert run_tail(*mine, *NOW, dsn=database18.dsn()).code == 0
    for arguments in ([*POSTGRES, "-o", str(output)], ["pub", "--keep-slot", "-o", str(output)]):
        refuses(database18, *arguments, code=2, message="of slot mine, not json of slot", hint="--overwrite")
    with output.open("r+b") as file:
        file.truncate(10)
    database18.psql("SELECT pg_drop_replication_slot('mine')")
    refuses(database18, *mine, code=5, message="has 10 bytes, and", hint="--overwrite")
    assert run_tail(*mine, "--overwrite", *NOW, dsn=database18.dsn()).code == 0


def test_a_file_of_a_kept_slot_has_each_change_once(database18: Database, tmp_path: Path) -> None:
    """Also with the memory store, which knows nothing of where the last run came to: the sidecar does."""
    prepare(database18)
    output = tmp_path / "out.jsonl"
    options = ["pub", "--slot", "mine", "-o", str(output), "--fsync-interval", "100ms"]
    sidecar = tmp_path / "out.jsonl.pgrepl"
    number = 1
    for beginning in (["--keep-slot"], *[["--snapshot", "never"]] * 4):
        with Tail(*options, *beginning, dsn=database18.dsn()) as tail, database18.connect() as connection:
            # A copy that is cut short is not begun again by a run that is to print changes only.
            wait(lambda: sidecar.exists() and '"offset": 0,' not in sidecar.read_text(), "the copy", of=tail)
            for _ in range(40):
                number += 1
                connection.execute("INSERT INTO t VALUES (%s)", [number])
            last = f'"id":{number},'.encode()
            wait(lambda last=last: output.exists() and last in output.read_bytes(), "the last row", of=tail)  # type: ignore[misc]
            # Leaving the block is kill -9.
    finished = run_tail(*options, "--snapshot", "never", *NOW, dsn=database18.dsn())
    assert finished.code == 0, finished.stderr
    printed = [event["new"]["id"] for event in events_of(output) if "new" in event]
    assert printed == list(range(1, number + 1))


# Where the output ends while tables are copied.


@pytest.fixture
def slow(database18: Database) -> Database:
    """A table whose copy lasts, and one whose changes are printed meanwhile."""
    prepare(database18)
    database18.psql(slowcopy.SCHEMA)
    return database18


SPOOLED = 20


def spool_some(database: Database, tail: Tail) -> None:
    """Change the slow table while its copy stands still, until the changes have been read, and let it go on."""
    with database.connect() as connection, slowcopy.halted(connection):
        database.psql(f"INSERT INTO slow SELECT n, false, 'now' FROM generate_series(1, {SPOOLED}) n")
        database.psql("INSERT INTO t VALUES (0)")
        tail.until(lambda event: event.get("key") == {"id": 0})


def test_limit_is_exact_in_what_was_spooled(slow: Database) -> None:
    """Those rows are printed like others, although when they came the table was being copied."""
    # Two rows of t, those of the copy, and a part of the spooled ones.
    limit = 2 + slowcopy.ROWS + 5
    with Tail("pub,slowly", "--jobs", "2", "--limit", str(limit), dsn=slow.dsn()) as tail:
        spool_some(slow, tail)
        finished = tail.finish()
    assert finished.code == 0, finished.stderr
    rows = [event["op"] for event in finished.events if event["op"] in ("read", "insert")]
    assert rows == [*["read"] * 1, *["insert"] * 1, *["read"] * slowcopy.ROWS, *["insert"] * 5]
    assert f"done: {limit} rows" in finished.stderr


def test_limit_in_what_was_spooled_is_counted(slow: Database) -> None:
    """With a stored state all that was spooled is printed, and the table is done."""
    limit = 2 + slowcopy.ROWS + 5
    arguments = ("pub,slowly", "--jobs", "2", "--store", "postgres")
    with Tail(*arguments, "--limit", str(limit), dsn=slow.dsn()) as tail:
        spool_some(slow, tail)
        finished = tail.finish()
    assert finished.code == 0, finished.stderr
    assert [event["op"] for event in finished.events][-SPOOLED:] == ["insert"] * SPOOLED
    assert f"done: {limit - 5 + SPOOLED} rows" in finished.stderr
    finished = run_tail(*arguments, *NOW, dsn=slow.dsn())
    assert (finished.code, finished.stdout) == (0, "")


LARGE = 20_000
"""Rows of a transaction that is many times larger than what is on its way to a reader."""


def end_in_a_transaction(database: Database, *options: str, number: signal.Signals | None) -> Finished:
    """Let a run end in the middle of a transaction while there is a lot of a copy to print as well.

    The reader stops in the middle; then comes the signal, if there is one.
    """
    database.psql("""
        CREATE TABLE wide (id int PRIMARY KEY, filler text);
        ALTER TABLE wide ALTER filler SET STORAGE PLAIN;
        INSERT INTO wide SELECT n, repeat('x', 4000) FROM generate_series(1, 10000) n;
        CREATE PUBLICATION beside FOR TABLE wide;
    """)
    with Tail("pub,beside", "--jobs", "2", "--transactions", *options, dsn=database.dsn()) as tail:
        tail.until(lambda event: event["op"] == "snapshot_end" and event["table"] == "t")
        tail.hold()
        database.psql(f"INSERT INTO t SELECT n, 'x' FROM generate_series(2, {LARGE + 1}) n")
        # A line at a time, so that it is the transaction in which the output is blocked.
        tail.go_on()
        tail.until_op("insert")
        tail.hold()
        if number is not None:
            tail.send(number)
        tail.go_on()
        return tail.finish()


def must_end_with_the_transaction(finished: Finished) -> None:
    events = finished.events
    assert [event["new"]["id"] for event in events if event["op"] == "insert"] == list(range(2, LARGE + 2))
    assert events[-1]["op"] == "commit"
    # The copy was cut short, else this shows nothing.
    assert [event["table"] for event in events if event["op"] == "snapshot_end"] == ["t"]


def test_a_signal_while_copies_go_on_lets_the_transaction_end(database18: Database) -> None:
    prepare(database18)
    finished = end_in_a_transaction(database18, "--streaming", "off", number=signal.SIGTERM)
    assert finished.code == 143, finished.stderr
    must_end_with_the_transaction(finished)


@pytest.mark.parametrize("how", ["signal", "clock"])
def test_an_end_while_the_spool_is_full_lets_the_transaction_end(how: str, slow: Database) -> None:
    """Its end is behind what there is no room for, and the copy that would make room makes none."""
    options = ["--jobs", "2", "--transactions", "--streaming", "off", "--spool-limit", "1MB"]
    with (
        Tail("pub,slowly", *options, *(["--for", "8s"] if how == "clock" else []), dsn=slow.dsn()) as tail,
        slow.connect() as connection,
        slowcopy.halted(connection),
    ):
        tail.until(lambda event: event["op"] == "snapshot_end" and event["table"] == "t")
        with connection.transaction():
            connection.execute("INSERT INTO t VALUES (2)")
            connection.execute(
                "INSERT INTO slow SELECT n, false, repeat('x', 1000) FROM generate_series(1000, 40000) n"
            )
            connection.execute("INSERT INTO t VALUES (3)")
        tail.until_op("insert")
        wait(lambda: stands_still(connection), "the pause", of=tail)
        if how == "signal":
            tail.send(signal.SIGTERM)
        finished = tail.finish(60)
    assert finished.code == (143 if how == "signal" else 0), finished.stderr
    assert [event["new"]["id"] for event in finished.events if event["op"] == "insert"] == [2, 3]
    assert finished.events[-1]["op"] == "commit"


def test_limit_while_copies_go_on_lets_the_transaction_end(database18: Database) -> None:
    """No more of the copy is printed once the limit is reached, and the next run begins it again."""
    prepare(database18)
    options, limit = ("--store", "postgres", "--streaming", "off"), 6000
    finished = end_in_a_transaction(database18, *options, "--limit", str(limit), number=None)
    assert finished.code == 0, finished.stderr
    must_end_with_the_transaction(finished)
    reads = sum(event["op"] == "read" for event in finished.events)
    assert reads < limit
    finished = run_tail("pub,beside", *options, *NOW, dsn=database18.dsn())
    assert finished.code == 0, finished.stderr
    (begin, *_, end) = finished.events
    assert (begin["op"], begin["table"], begin["attempt"]) == ("snapshot_begin", "wide", 2)
    assert (end["op"], end["rows"], len(finished.events)) == ("snapshot_end", 10_000, 10_002)
