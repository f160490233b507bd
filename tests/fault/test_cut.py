"""Connections that are cut at any byte, and servers that crash: the run goes on, and misses nothing."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fault import workload
from tests.fault.workload import Event
from tests.proxy import Proxy, proxy
from tests.servers.database import Database
from tests.tail.mirror import Writers
from tests.tail.running import Tail

_PUBLICATION = ["mirrored", "--store", "postgres", "--refresh", "1s"]


class _Pair:
    """Two pipelines on one publication, each through a proxy of its own: one writes a file, the other a pipe."""

    def __init__(self, database: Database, file: Tail, pipe: Tail, output: Path, proxies: tuple[Proxy, Proxy]) -> None:
        self._database = database
        self.tails = (file, pipe)
        self.proxies = proxies
        self._output = output

    def must_run(self) -> None:
        """Make sure that none has given up."""
        for tail in self.tails:
            assert tail.running, tail.finish().stderr

    def wait_for_progress(self) -> None:
        """Wait until both have everything that is committed now."""
        mark = _position(self._database)
        for number in (1, 2):
            workload.wait(lambda number=number: self._stored(number) >= mark, f"position of pipeline {number}", 120)  # type: ignore[misc]

    def _stored(self, number: int) -> int:
        with self._database.connect() as connection:
            row = connection.execute(
                "SELECT (position - '0/0')::bigint FROM etl.pgrepl_pipelines WHERE pipeline_id = %s", [number]
            ).fetchone()
        return row[0] if row is not None else 0

    def copied(self) -> bool:
        """Whether no copy is going on."""
        with self._database.connect() as connection:
            row = connection.execute(
                "SELECT count(DISTINCT pipeline_id), count(*) FILTER (WHERE state <> 'ready')"
                " FROM etl.replication_state WHERE is_current"
            ).fetchone()
        return row == (2, 0)

    def end(self) -> tuple[list[Event], list[Event]]:
        """Wait until both have printed everything, end them, and give what they have printed."""
        workload.wait(self.copied, "the end of the copies", 120, of=self.tails[0])
        with self._database.connect() as connection:
            connection.execute("INSERT INTO marker VALUES (1)")
        for tail in self.tails:
            workload.wait(lambda tail=tail: self._has_marker(tail), "the last row", 120, of=tail)  # type: ignore[misc]
            assert tail.stop().code == 143, tail.stderr
        return (
            workload.parse(self._output.read_bytes().splitlines(keepends=True)),
            workload.parse(self.tails[1].lines),
        )

    def _has_marker(self, tail: Tail) -> bool:
        lines = self._output.read_bytes().splitlines() if tail is self.tails[0] else tail.lines
        return any(b'"table":"marker"' in line and b'"op":"insert"' in line for line in lines[-2000:])


@contextmanager
def _pair(database: Database, output: Path) -> Iterator[_Pair]:
    server = database.server
    socket = f"{server.host}/.s.PGSQL.{server.port}"
    with proxy(socket, seed=1) as first, proxy(socket, seed=2) as second:
        dsns = [f"host=127.0.0.1 port={each.port} user=postgres dbname={database.name}" for each in (first, second)]
        with (
            Tail(*_PUBLICATION, "--pipeline-id", "1", "-o", str(output), dsn=dsns[0]) as file,
            Tail(*_PUBLICATION, "--pipeline-id", "2", dsn=dsns[1]) as pipe,
        ):
            yield _Pair(database, file, pipe, output, (first, second))


def _position(database: Database) -> int:
    with database.connect() as connection:
        row = connection.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchone()
    assert row is not None
    return int(row[0])


def _verdict(events: tuple[list[Event], list[Event]], database: Database, bulk: list[str]) -> None:
    file, pipe = events
    workload.must_hold_each_once(file)
    workload.must_equal(file, database, bulk)
    workload.must_equal(workload.once(pipe), database, bulk)


def test_connections_that_are_cut_are_found_again(database18: Database, tmp_path: Path) -> None:
    """Half of the cuts come in the middle of much data, so in a copy or the stream, half anywhere, once it is quiet."""
    cuts = workload.times(30)
    dice = random.Random(30)
    workload.prepare(database18)
    bulk = ["bulk"]
    writers = Writers(database18, count=4, seed=30, pause=0.02)
    try:
        with _pair(database18, tmp_path / "changes.jsonl") as pair, database18.connect() as connection:
            workload.wait(pair.copied, "the first copies", 120, of=pair.tails[0])
            for number in range(cuts):
                if number % 5 == 4:
                    bulk.append(f"bulk_{number}")
                    workload.add_table(connection, bulk[-1])
                for wire in pair.proxies:
                    before = wire.cuts
                    if number % 2:
                        wire.cut_one(dice.randrange(200_000))
                    else:
                        workload.wait(wire.cut_any, "a connection")
                    workload.wait(lambda wire=wire, before=before: wire.cuts > before, "the cut")  # type: ignore[misc]
                workload.disturb(connection, dice, bulk)
                time.sleep(dice.uniform(0, 0.6))
                pair.must_run()
            writers.stop()
            events = pair.end()
    finally:
        writers.stop()
    _verdict(events, database18, bulk)
    for tail in pair.tails:
        assert "connected again" in tail.stderr
        assert "the copy begins again" in tail.stderr
