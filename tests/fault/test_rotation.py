"""A file that is renamed while it is written, and SIGHUP: all files together hold every change once, killed or not."""

from __future__ import annotations

import random
import signal
import time
from functools import partial
from pathlib import Path

import psycopg
import pytest

from tests.fault import workload
from tests.fault.test_disk import BROKEN_DISK
from tests.fault.workload import wait
from tests.servers.database import Database
from tests.tail.mirror import Mirror, Writers
from tests.tail.running import ROOT, Finished, Tail


class _Files:
    """An output and what it was renamed to."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "changes.jsonl"
        self.renamed: list[Path] = []

    def rename(self) -> None:
        """Rename it, when there is something in it."""
        if self.path.exists() and self.path.stat().st_size:
            self.renamed.append(self.path.with_name(f"changes.{len(self.renamed)}"))
            self.path.rename(self.renamed[-1])

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def is_not(self, size: int) -> bool:
        return self.size() != size

    def events(self) -> list[workload.Event]:
        parts = [path.read_bytes() for path in (*self.renamed, self.path)]
        assert all(part.endswith(b"\n") for part in parts if part), "half a line at the end of a file"
        return workload.parse(b"".join(parts).splitlines(keepends=True))


def _arguments(files: _Files, interval: str) -> list[str]:
    return ["mirrored", "--store", "postgres", "-o", str(files.path), "--fsync-interval", interval]


def _must_be_whole(files: _Files, database: Database) -> None:
    events = files.events()
    workload.must_hold_each_once(events)
    workload.must_equal(events, database, ["bulk"])


def _ready(connection: psycopg.Connection) -> bool:
    query = "SELECT 1 FROM etl.replication_state WHERE is_current AND state = 'ready' HAVING count(*) = 7"
    return connection.execute(query).fetchone() is not None


def test_a_renamed_file_is_followed_by_a_new_one(database18: Database, tmp_path: Path) -> None:
    """In the copies, in the stream, and with nothing to write."""
    files = _Files(tmp_path)
    workload.prepare(database18)
    writers = Writers(database18, count=2, seed=4)
    try:
        with Tail(*_arguments(files, "100ms"), dsn=database18.dsn()) as tail:
            for number in range(6):
                wait(lambda: files.path.exists() and files.path.stat().st_size > 0, "output", of=tail)
                if number == 5:
                    writers.stop()
                files.rename()
                tail.send(signal.SIGHUP)
                wait(files.path.exists, "a new file", of=tail)
                with database18.connect() as connection:
                    connection.execute("INSERT INTO composite VALUES (%s, 'x', 1)", [1_000_000 + number])
            wait(lambda: b"1000005" in files.path.read_bytes(), "the last change", of=tail)
            # Without a new name it stays the same file.
            inode = files.path.stat().st_ino
            tail.send(signal.SIGHUP)
            assert tail.stop().code == 143
            assert files.path.stat().st_ino == inode
    finally:
        writers.stop()
    _must_be_whole(files, database18)


def test_killed_around_a_rotation(database18: Database, tmp_path: Path) -> None:
    dice = random.Random(6)
    files = _Files(tmp_path)
    workload.prepare(database18)
    writers = Writers(database18, count=2, seed=5)
    arguments = _arguments(files, "300ms")
    try:
        for number in range(workload.times(30)):
            size = files.size()
            with Tail(*arguments, dsn=database18.dsn()) as tail:
                wait(partial(files.is_not, size), "output", of=tail)
                time.sleep(dice.uniform(0, 0.3))
                moment = number % 4
                files.rename()
                if moment > 0:
                    time.sleep(dice.uniform(0, 0.2))
                if moment > 1:
                    tail.send(signal.SIGHUP)
                    time.sleep(dice.uniform(0, 0.02))
                if moment > 2:
                    wait(files.path.exists, "a new file", of=tail)
                    time.sleep(dice.uniform(0, 0.1))
                assert tail.running, tail.finish().stderr
                # Leaving the block is kill -9.
        writers.stop()
        with Tail(*arguments, "--until-lsn", "now", dsn=database18.dsn()) as tail:
            ended = tail.finish(120)
        assert ended.code == 0, ended.stderr
    finally:
        writers.stop()
    _must_be_whole(files, database18)


def test_killed_between_the_new_name_and_the_signal(database18: Database, tmp_path: Path) -> None:
    """What the renamed file holds beyond its last sync comes again, so it is cut off there."""
    files = _Files(tmp_path)
    workload.prepare(database18)
    with database18.connect() as connection:
        with Tail(*_arguments(files, "1h"), dsn=database18.dsn()) as tail:
            wait(lambda: _ready(connection), "the end of the copies", of=tail)
            size = files.path.stat().st_size
            connection.execute("INSERT INTO composite VALUES (1, 'x', 1)")
            wait(lambda: files.path.stat().st_size > size, "a change that is not synced", of=tail)
            files.rename()
        with Tail(*_arguments(files, "1h"), "--until-lsn", "now", dsn=database18.dsn()) as tail:
            ended = tail.finish()
    assert ended.code == 0
    assert f"{files.path} begins anew at" in ended.stderr
    assert f"where {files.renamed[0]} ends" in ended.stderr
    assert files.renamed[0].stat().st_size == size
    assert len(files.path.read_bytes().splitlines()) == 1
    _must_be_whole(files, database18)


def test_a_failed_sync_does_not_swallow_the_signal(database18: Database, tmp_path: Path) -> None:
    """Whoever has renamed the file waits for the new one."""
    files, trigger = _Files(tmp_path), tmp_path / "fail"
    environment = {"PYTHONPATH": f"{BROKEN_DISK}:{ROOT}", "BROKEN_DISK": str(trigger)}
    workload.prepare(database18)
    with (
        database18.connect() as connection,
        Tail(*_arguments(files, "1h"), dsn=database18.dsn(), env=environment) as tail,
    ):
        wait(lambda: _ready(connection), "the end of the copies", of=tail)
        size = files.path.stat().st_size
        connection.execute("INSERT INTO composite VALUES (1, 'x', 1)")
        wait(lambda: files.path.stat().st_size > size, "a change that is not synced", of=tail)
        trigger.touch()
        files.rename()
        tail.send(signal.SIGHUP)
        tail.until_stderr("cannot sync")
        wait(files.path.exists, "a new file", of=tail)
        connection.execute("INSERT INTO composite VALUES (2, 'x', 1)")
        wait(lambda: files.size() > 0, "the next change", of=tail)
        assert tail.stop().code == 143
    _must_be_whole(files, database18)


def test_another_file_of_the_same_inode_is_left_alone(database18: Database, tmp_path: Path) -> None:
    files = _Files(tmp_path)
    workload.prepare(database18)
    assert _until_now(files, database18).code == 0
    files.rename()
    # The number of a file that is gone is given to the next one; here by writing another text into it.
    other = b"not ours\n" * 2_000_000
    files.renamed[0].write_bytes(other)
    ended = _until_now(files, database18)
    assert ended.code == 0
    assert "the file that it was is not beside it" in ended.stderr
    assert files.renamed[0].read_bytes() == other


def test_a_file_that_is_not_what_the_sidecar_says(database18: Database, tmp_path: Path) -> None:
    files = _Files(tmp_path)
    workload.prepare(database18)
    assert _until_now(files, database18).code == 0
    other = b"not ours\n" * 2_000_000
    files.path.write_bytes(other)
    ended = _until_now(files, database18)
    assert ended.code == 5
    assert "is not the file that had been written" in ended.stderr
    assert files.path.read_bytes() == other


def test_an_emptied_file_goes_on_at_its_position(database18: Database, tmp_path: Path) -> None:
    files = _Files(tmp_path)
    workload.prepare(database18)
    assert _until_now(files, database18).code == 0
    files.path.write_bytes(b"")
    with database18.connect() as connection:
        connection.execute("INSERT INTO composite VALUES (1, 'x', 1)")
    ended = _until_now(files, database18)
    assert ended.code == 0
    assert "it was emptied" in ended.stderr
    assert [event["op"] for event in files.events()] == ["insert"]


@pytest.mark.parametrize("obstacle", ["not empty", "a directory"])
def test_what_cannot_be_the_new_file_is_left_alone(obstacle: str, database18: Database, tmp_path: Path) -> None:
    files = _Files(tmp_path)
    workload.prepare(database18)
    with database18.connect() as connection, Tail(*_arguments(files, "100ms"), dsn=database18.dsn()) as tail:
        wait(lambda: files.path.exists() and files.path.stat().st_size > 0, "output", of=tail)
        files.rename()
        if obstacle == "not empty":
            files.path.write_text("somebody else's\n")
        else:
            files.path.mkdir()
        tail.send(signal.SIGHUP)
        tail.until_stderr("going on in the old file")
        connection.execute("INSERT INTO composite VALUES (1, 'x', 1)")
        wait(lambda: b'"b":1,' in files.renamed[0].read_bytes(), "the change", of=tail)
        assert tail.stop().code == 143
    if obstacle == "not empty":
        assert files.path.read_text() == "somebody else's\n"


def test_without_a_stored_state_too(database18: Database, tmp_path: Path) -> None:
    files = _Files(tmp_path)
    workload.prepare(database18)
    with database18.connect() as connection, Tail("mirrored", "-o", str(files.path), dsn=database18.dsn()) as tail:
        wait(lambda: files.path.exists() and b"snapshot_end" in files.path.read_bytes(), "a copy", of=tail)
        files.rename()
        tail.send(signal.SIGHUP)
        wait(files.path.exists, "a new file", of=tail)
        connection.execute("INSERT INTO marker VALUES (1)")
        wait(lambda: b'"marker"' in files.path.read_bytes(), "the change", of=tail)
        wait(lambda: Mirror().apply(files.events()).rows("bulk").total() == 36_000, "all rows", of=tail)
        assert tail.stop().code == 143
    events = files.events()
    assert "marker" in Mirror().apply(events).keyed


def test_without_a_file_a_hang_up_ends_the_run(database18: Database) -> None:
    workload.prepare(database18)
    with Tail("mirrored", dsn=database18.dsn()) as tail:
        tail.until_op("snapshot_end")
        assert tail.stop(signal.SIGHUP).code == -signal.SIGHUP


def _until_now(files: _Files, database: Database) -> Finished:
    with Tail(*_arguments(files, "100ms"), "--until-lsn", "now", dsn=database.dsn()) as tail:
        return tail.finish(60)
