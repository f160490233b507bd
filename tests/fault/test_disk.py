"""Disks that are full, or fail, and a store that is away: nothing is lost or comes twice, and nothing is confirmed."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.conftest import NewServer
from tests.fault import slowcopy, workload
from tests.fault.workload import wait
from tests.servers.database import Database, fresh_database
from tests.tail.mirror import Mirror, Writers, source_rows
from tests.tail.running import ROOT, Tail

BROKEN_DISK = Path(__file__).with_name("broken_disk")
SLOT = """
SELECT position, confirmed_flush_lsn <= position::pg_lsn, active_pid
  FROM pg_replication_slots, etl.pgrepl_pipelines WHERE database = current_database() AND NOT temporary
"""
CONFIRMED = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE database = current_database()"
MOVED = "SELECT 1 FROM pg_replication_slots WHERE confirmed_flush_lsn > %s AND database = current_database()"
WAL_SENDER_TIMEOUT = 2


@contextmanager
def full(tail: Tail, size: int) -> Iterator[None]:
    """Let no file of a process become larger, for a while; nobody needs a disk of his own for that."""
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(tail.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        if tail.running:
            resource.prlimit(tail.pid, resource.RLIMIT_FSIZE, unlimited)


def prepare(database: Database) -> None:
    workload.prepare(database)
    database.psql("INSERT INTO composite VALUES (0, 'x', 1)")


def finish(arguments: list[str], database: Database) -> None:
    with Tail(*arguments, "--until-lsn", "now", dsn=database.dsn()) as tail:
        ended = tail.finish(120)
    assert ended.code == 0, ended.stderr


def must_be_whole(output: Path, database: Database) -> None:
    events = workload.parse(output.read_bytes().splitlines(keepends=True))
    workload.must_hold_each_once(events)
    workload.must_equal(events, database, ["bulk"])


def prepare_slow(database: Database) -> None:
    prepare(database)
    database.psql(slowcopy.SCHEMA)


def must_hold_slow_once(output: Path, database: Database) -> None:
    events = workload.parse(output.read_bytes().splitlines(keepends=True))
    workload.must_hold_each_once(events)
    assert Mirror().apply(events).rows("slow") == source_rows(database, "slow")


def test_a_full_disk_is_waited_for(new_server: NewServer, tmp_path: Path) -> None:
    server = new_server(18, wal_sender_timeout=f"{WAL_SENDER_TIMEOUT}s")
    output = tmp_path / "changes.jsonl"
    arguments = ["mirrored", "--store", "postgres", "-o", str(output), "--fsync-interval", "100ms"]
    with fresh_database(server) as database:
        prepare(database)
        writers = Writers(database, count=2, seed=1)
        try:
            with database.connect() as connection, Tail(*arguments, dsn=database.dsn()) as tail:
                # The first time in the copy, then in the stream.
                for number in range(1, 4):
                    wait(lambda: output.exists() and output.stat().st_size > 100_000, "output", of=tail)
                    if number == 2:
                        wait(lambda: ready(connection), "the end of the copies", of=tail)
                    with full(tail, output.stat().st_size + 1001):
                        said = "cannot write .*File too large; nothing is confirmed until it works again"
                        complained(tail, said, number)
                        before = connection.execute(SLOT).fetchone()
                        size = output.stat().st_size
                        assert output.read_bytes().endswith(b"\n"), "half a line"
                        time.sleep(2.5 * WAL_SENDER_TIMEOUT)
                        assert connection.execute(SLOT).fetchone() == before, "something was confirmed"
                        assert output.stat().st_size == size
                        assert tail.running
                        assert len(complaints(tail, "cannot write")) == number, tail.stderr
                    complained(tail, "writing works again", number)
                writers.stop()
                assert tail.stop().code == 143
        finally:
            writers.stop()
        finish(arguments, database)
        must_be_whole(output, database)


def test_a_full_disk_that_stays_full_ends_the_run(database18: Database, tmp_path: Path) -> None:
    output = tmp_path / "changes.jsonl"
    arguments = ["mirrored", "--store", "postgres", "-o", str(output), "--fsync-interval", "100ms"]
    prepare(database18)
    with database18.connect() as connection, Tail(*arguments, "--output-timeout", "1s", dsn=database18.dsn()) as tail:
        wait(lambda: ready(connection), "the end of the copies", of=tail)
        with full(tail, output.stat().st_size + 100):
            connection.execute("UPDATE bulk SET note = 'new'")
            ended = tail.finish()
    assert ended.code == 1
    assert f"pgrepl: error: cannot write {output}: File too large" in ended.stderr
    assert "hint: make room" in ended.stderr
    finish(arguments, database18)
    must_be_whole(output, database18)


@pytest.mark.parametrize("what", ["file", "store"])
def test_a_signal_ends_the_wait(what: str, database18: Database, tmp_path: Path) -> None:
    output = tmp_path / "changes.jsonl"
    arguments = ["mirrored", "--store", "postgres", "-o", str(output), "--fsync-interval", "100ms"]
    prepare(database18)
    with database18.connect() as connection, Tail(*arguments, dsn=database18.dsn()) as tail:
        wait(lambda: ready(connection), "the end of the copies", of=tail)
        failing = full(tail, output.stat().st_size + 100) if what == "file" else store_away(database18, connection)
        with failing:
            connection.execute("UPDATE bulk SET note = 'new'")
            tail.until_stderr("nothing is confirmed until it works again")
            ended = tail.stop()
    assert ended.code == 143
    assert "Traceback" not in ended.stderr
    finish(arguments, database18)
    must_be_whole(output, database18)


@pytest.mark.parametrize("what", ["full disk", "full spool"])
def test_a_signal_ends_the_wait_for_room_in_the_spool(what: str, database18: Database, tmp_path: Path) -> None:
    output, spool = tmp_path / "changes.jsonl", tmp_path / "spool"
    arguments = ["slowly", "--store", "postgres", "-o", str(output), "--spool-dir", str(spool)]
    limit = ["--spool-limit", "1MB"] if what == "full spool" else []
    prepare_slow(database18)
    with (
        database18.connect() as connection,
        Tail(*arguments, *limit, dsn=database18.dsn()) as tail,
        slowcopy.halted(connection),
        full(tail, 1 << 20) if what == "full disk" else nullcontext(),
    ):
        write_much(connection, transactions=1)
        if what == "full disk":
            tail.until_stderr("cannot write the spool")
        else:
            wait(lambda: stands_still(connection), "the pause", of=tail)
        ended = tail.stop()
    assert ended.code == 143
    assert "Traceback" not in ended.stderr
    finish(arguments, database18)
    must_hold_slow_once(output, database18)


def test_a_sidecar_that_cannot_be_written_is_waited_for(database18: Database, tmp_path: Path) -> None:
    output = tmp_path / "changes.jsonl"
    arguments = ["mirrored", "--store", "postgres", "-o", str(output), "--fsync-interval", "100ms"]
    in_the_way = tmp_path / "changes.jsonl.pgrepl.new"
    prepare(database18)
    with database18.connect() as connection, Tail(*arguments, dsn=database18.dsn()) as tail:
        wait(lambda: ready(connection), "the end of the copies", of=tail)
        # A directory of that name: root is stopped by nothing less.
        wait(lambda: made(in_the_way), "the moment", of=tail)
        connection.execute("INSERT INTO composite VALUES (1000000, 'x', 1)")
        tail.until_stderr(f"cannot write {output}.pgrepl: Is a directory; nothing is confirmed")
        size, before = output.stat().st_size, connection.execute(SLOT).fetchone()
        connection.execute("INSERT INTO composite VALUES (1000001, 'x', 1)")
        assert connection.execute(SLOT).fetchone() == before
        in_the_way.rmdir()
        tail.until_stderr("writing works again")
        wait(lambda: output.stat().st_size > size, "the next change", of=tail)
        assert tail.stop().code == 143
    finish(arguments, database18)
    must_be_whole(output, database18)


def test_what_a_failed_sync_has_lost_is_written_again(database18: Database, tmp_path: Path) -> None:
    output, trigger = tmp_path / "changes.jsonl", tmp_path / "fail"
    arguments = ["mirrored", "--store", "postgres", "-o", str(output), "--fsync-interval", "300ms"]
    environment = {"PYTHONPATH": f"{BROKEN_DISK}:{ROOT}", "BROKEN_DISK": str(trigger)}
    prepare(database18)
    writers = Writers(database18, count=2, seed=3)
    try:
        with database18.connect() as connection, Tail(*arguments, dsn=database18.dsn(), env=environment) as tail:
            for number in range(1, 5):
                # The first time in the middle of the copies.
                if number > 1:
                    wait(lambda: ready(connection), "the end of the copies", of=tail)
                trigger.touch()
                said = "cannot sync .*Input/output error; going back to [0-9A-F]+/[0-9A-F]+"
                complained(tail, said, number)
            wait(lambda: ready(connection), "the end of the copies", of=tail)
            writers.stop()
            ended = tail.stop()
            assert ended.code == 143, ended.stderr
    finally:
        writers.stop()
    finish(arguments, database18)
    must_be_whole(output, database18)


def test_what_was_asked_for_once_is_not_done_again_on_the_way_back(database18: Database, tmp_path: Path) -> None:
    output, trigger = tmp_path / "changes.jsonl", tmp_path / "fail"
    arguments = ["mirrored", "--store", "postgres", "-o", str(output), "--fsync-interval", "300ms"]
    environment = {"PYTHONPATH": f"{BROKEN_DISK}:{ROOT}", "BROKEN_DISK": str(trigger)}
    prepare(database18)
    finish(arguments, database18)

    def attempts() -> set[int]:
        lines = output.read_bytes().splitlines(keepends=True)
        return {event["attempt"] for event in workload.parse(lines) if event["op"] == "snapshot_begin"}

    with database18.connect() as connection:
        # Copies that are done are not made again …
        with Tail(*arguments, "--resnapshot", "all", dsn=database18.dsn(), env=environment) as tail:
            wait(lambda: attempts() == {1, 2} and ready(connection), "the end of the copies", of=tail)
            trigger.touch()
            insert(connection)
            tail.until_stderr("cannot sync")
            arrives(connection, output, tail)
            assert tail.stop().code == 143
        assert attempts() == {1, 2}
        # … and a position that the slot has left since is not begun at.
        insert(connection)
        ((wanted,),) = connection.execute(CONFIRMED).fetchall()
        with Tail(*arguments, "--from-lsn", wanted, dsn=database18.dsn(), env=environment) as tail:
            arrives(connection, output, tail)
            wait(lambda: connection.execute(MOVED, [wanted]).fetchone(), "the confirmation", of=tail)
            trigger.touch()
            insert(connection)
            tail.until_stderr("cannot sync")
            arrives(connection, output, tail)
            assert tail.stop().code == 143
    finish(arguments, database18)
    must_be_whole(output, database18)


@pytest.mark.parametrize("interval", ["300ms", "1h"])
def test_a_stop_while_going_back_vouches_for_nothing(interval: str, database18: Database, tmp_path: Path) -> None:
    """No later sync says anything about what the failed one has lost, and that may be the last one, at the end."""
    output, trigger = tmp_path / "changes.jsonl", tmp_path / "fail"
    arguments = ["mirrored", "--store", "postgres", "-o", str(output), "--fsync-interval", interval]
    environment = {"PYTHONPATH": f"{BROKEN_DISK}:{ROOT}", "BROKEN_DISK": str(trigger)}
    prepare(database18)
    with database18.connect() as connection, Tail(*arguments, dsn=database18.dsn(), env=environment) as tail:
        wait(lambda: ready(connection), "the end of the copies", of=tail)
        size = output.stat().st_size
        trigger.touch()
        insert(connection)
        if interval == "1h":
            wait(lambda: output.stat().st_size > size, "the change", of=tail)
        else:
            # The next attempt is 0.4 s away.
            tail.until_stderr("cannot sync")
        ended = tail.stop()
    assert ended.code == 143, ended.stderr
    assert "cannot sync" in ended.stderr
    assert b"\0" in output.read_bytes(), "nothing was lost"
    finish(arguments, database18)
    must_be_whole(output, database18)


def test_a_failed_sync_of_a_file_that_cannot_go_back_ends_the_run(database18: Database, tmp_path: Path) -> None:
    output, trigger = tmp_path / "changes.jsonl", tmp_path / "fail"
    environment = {"PYTHONPATH": f"{BROKEN_DISK}:{ROOT}", "BROKEN_DISK": str(trigger)}
    prepare(database18)
    arguments = ["mirrored", "-o", str(output), "--fsync-interval", "100ms"]
    with database18.connect() as connection, Tail(*arguments, dsn=database18.dsn(), env=environment) as tail:
        wait(lambda: output.exists() and b"snapshot_end" in output.read_bytes(), "a copy", of=tail)
        trigger.touch()
        wait(lambda: not tail.running or insert(connection), "the end", of=tail)
        ended = tail.finish()
    assert ended.code == 1
    assert f"cannot sync {output}: Input/output error" in ended.stderr
    assert "may not be on the disk" in ended.stderr


def test_a_spool_without_room_is_waited_for(database18: Database, tmp_path: Path) -> None:
    output, spool = tmp_path / "changes.jsonl", tmp_path / "spool"
    arguments = ["slowly", "--store", "postgres", "-o", str(output), "--spool-dir", str(spool)]
    prepare_slow(database18)
    with database18.connect() as connection, Tail(*arguments, dsn=database18.dsn()) as tail:
        with slowcopy.halted(connection):
            with full(tail, 1 << 20):
                write_much(connection)
                tail.until_stderr(f"cannot write the spool {spool}")
                assert spooled(spool) <= 1 << 20
            tail.until_stderr("writing works again")
        wait(lambda: ready(connection), "the end of the copy", 120, of=tail)
        assert tail.stop().code == 143
    finish(arguments, database18)
    must_hold_slow_once(output, database18)
    assert not list(spool.glob("spool-*"))


@pytest.mark.parametrize("transactions", [1, 40])
def test_a_full_spool_pauses_the_stream(transactions: int, database18: Database, tmp_path: Path) -> None:
    """Also when the end of the transaction that fills it is behind what there is no room for."""
    output, spool = tmp_path / "changes.jsonl", tmp_path / "spool"
    arguments = ["slowly", "--store", "postgres", "-o", str(output), "--spool-dir", str(spool)]
    prepare_slow(database18)
    with database18.connect() as connection, Tail(*arguments, "--spool-limit", "10MB", dsn=database18.dsn()) as tail:
        with slowcopy.halted(connection):
            write_much(connection, transactions)
            wait(lambda: spooled(spool) > 1 << 20, "a spool on disk", of=tail)
            wait(lambda: rests(connection, spool), "the pause", of=tail)
            assert spooled(spool) <= 12 << 20
        wait(lambda: ready(connection), "the end of the copy", 120, of=tail)
        assert tail.stop().code == 143
    finish(arguments, database18)
    must_hold_slow_once(output, database18)


def test_a_store_that_is_away_is_waited_for(database18: Database, tmp_path: Path) -> None:
    output = tmp_path / "changes.jsonl"
    arguments = ["mirrored", "--store", "postgres", "-o", str(output), "--fsync-interval", "100ms"]
    prepare(database18)
    with database18.connect() as connection, Tail(*arguments, dsn=database18.dsn()) as tail:
        wait(lambda: ready(connection), "the end of the copies", of=tail)
        with store_away(database18, connection):
            connection.execute("UPDATE bulk SET note = 'new'")
            tail.until_stderr("the store is away")
            before = connection.execute(SLOT).fetchone()
            connection.execute("UPDATE bulk SET note = 'newer'")
            assert connection.execute(SLOT).fetchone() == before
        tail.until_stderr("the store is back")
        assert tail.stop().code == 143
    finish(arguments, database18)
    must_be_whole(output, database18)


def test_a_server_that_stays_away_is_waited_for_though_the_store_is_there(
    new_server: NewServer, tmp_path: Path
) -> None:
    """Longer than a store would be: in the middle of a copy, which has to be begun again, and of a hand-over."""
    server = new_server(18)
    output = tmp_path / "changes.jsonl"
    arguments = ["slowly", "--store", "postgres", "-o", str(output), "--output-timeout", "1s"]
    with fresh_database(server) as database:
        prepare_slow(database)
        with Tail(*arguments, dsn=database.dsn()) as tail:
            for number in range(1, 3):
                with database.connect() as connection:
                    slowcopy.copying_backend(connection)
                    connection.execute("INSERT INTO slow VALUES (%s, false, 'meanwhile')", [1000 + number])
                server.stop(immediate=True)
                complained(tail, "the store is away: .*; trying again in", number)
                server.start()
            wait(lambda: workload.is_up(server), "the server", of=tail)
            with database.connect() as connection:
                wait(lambda: ready(connection), "the end of the copy", 120, of=tail)
            assert tail.stop().code == 143
        finish(arguments, database)
        must_hold_slow_once(output, database)


def test_a_store_that_stays_away_ends_the_run(database18: Database) -> None:
    prepare(database18)
    arguments = ["mirrored", "--store", "postgres", "--output-timeout", "1s"]
    with database18.connect() as connection, Tail(*arguments, dsn=database18.dsn()) as tail:
        wait(lambda: ready(connection), "the end of the copies", of=tail)
        with store_away(database18, connection):
            connection.execute("UPDATE bulk SET note = 'new'")
            ended = tail.finish()
    assert ended.code == 1
    assert "pgrepl: error: the store is away: " in ended.stderr
    assert "hint: what was printed is not lost" in ended.stderr


# What the tests need.


def complained(tail: Tail, text: str, times: int) -> None:
    wait(lambda: len(complaints(tail, text)) >= times, text, of=tail)


def complaints(tail: Tail, text: str) -> list[str]:
    return [line for line in tail.stderr.splitlines() if re.search(text, line)]


def ready(connection: psycopg.Connection) -> bool:
    query = "SELECT count(*), count(*) FILTER (WHERE state <> 'ready') FROM etl.replication_state WHERE is_current"
    count, left = connection.execute(query).fetchone() or (0, 0)
    return bool(count and not left)


def insert(connection: psycopg.Connection) -> bool:
    connection.execute("INSERT INTO composite SELECT max(b) + 1, 'x', 1 FROM composite")
    return False


def arrives(connection: psycopg.Connection, output: Path, tail: Tail) -> None:
    """Insert a row and wait until it is printed."""
    query = "INSERT INTO composite SELECT max(b) + 1, 'x', 1 FROM composite RETURNING b"
    ((number,),) = connection.execute(query).fetchall()
    wait(lambda: f'"b":{number},'.encode() in output.read_bytes(), f"row {number}", of=tail)


def made(directory: Path) -> bool:
    try:
        directory.mkdir()
    except FileExistsError:
        # The sidecar is being written just now.
        return False
    return True


def write_much(connection: psycopg.Connection, transactions: int = 40) -> None:
    """Write 40 MB of lines into the table that is being copied."""
    with connection.transaction() if transactions == 1 else nullcontext():
        for number in range(40):
            connection.execute(
                "INSERT INTO slow SELECT i, false, repeat('x', 1000) FROM generate_series(%s::int, %s::int) i",
                [1000 * (number + 1), 1000 * (number + 2) - 1],
            )


def stands_still(connection: psycopg.Connection) -> bool:
    """Whether the server cannot send on."""
    query = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'WalSenderWriteData'"
    return connection.execute(query).fetchone() is not None


def rests(connection: psycopg.Connection, spool: Path) -> bool:
    """Whether the server cannot send on, and what was spooled stays as it is, for a second."""
    before, end = spooled(spool), time.monotonic() + 1
    while time.monotonic() < end:
        if not stands_still(connection) or spooled(spool) != before:
            return False
        time.sleep(0.05)
    return True


def spooled(spool: Path) -> int:
    return sum(file.stat().st_size for file in spool.glob("*/*.segment"))


@contextmanager
def store_away(database: Database, connection: psycopg.Connection) -> Iterator[None]:
    """End the store's connection, and let nobody connect to the database."""
    name = sql.Identifier(database.name)
    with database.server.connect() as admin:
        admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
        try:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'pgrepl state'"
            )
            yield
        finally:
            admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(name))
