"""Killed at any moment, as often as you like: a file holds every change once, a pipe at least once."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.fault import workload
from tests.servers.database import Database, fresh_database
from tests.tail.mirror import Writers
from tests.tail.running import Tail

# Of every five kills these are for copies, so another table comes into the publication before them.
_IN_A_COPY = (2, 4)


class _Killer:
    """Start a tail again and again, and kill it: at its start, in a copy, in the stream."""

    def __init__(self, database: Database, seed: int) -> None:
        self._database = database
        self._dice = random.Random(seed)
        self.bulk = ["bulk"]
        self.hits: Counter[str] = Counter()
        # The shortest way to a copy or the stream so far, in seconds.
        self._start = 0.5

    def run(self, kills: int, *arguments: str, has_more: Callable[[Tail], bool]) -> Iterator[Tail]:
        """Kill a tail so many times, beside writers that end with the last one; gives each that was killed."""
        writers = Writers(self._database, count=4, seed=self._dice.randrange(1000), pause=0.01)
        try:
            with self._database.connect() as connection:
                for number in range(kills):
                    if number % 5 in _IN_A_COPY:
                        self.bulk.append(f"bulk_{number}")
                        workload.add_table(connection, self.bulk[-1])
                    with Tail(*arguments, dsn=self._database.dsn()) as tail:
                        self._wait_for_a_moment(number, connection, tail, has_more)
                        assert tail.running, tail.finish().stderr
                        self.hits[self._doing(connection)] += 1
                        # Leaving the block is kill -9.
                    workload.must_not_be_ahead(connection)
                    yield tail
                    workload.disturb(connection, self._dice, self.bulk)
        finally:
            writers.stop()

    def _wait_for_a_moment(
        self, number: int, connection: psycopg.Connection, tail: Tail, has_more: Callable[[Tail], bool]
    ) -> None:
        if number % 5 == 0:
            time.sleep(self._dice.uniform(0, self._start))
            return
        begun = time.monotonic()
        workload.wait(lambda: self._doing(connection) != "start", "the start", of=tail)
        self._start = min(self._start, time.monotonic() - begun)
        if number % 5 in (1, 3):
            workload.wait(lambda: self._doing(connection) == "stream", "the stream", of=tail)
            workload.wait(lambda: has_more(tail), "output", of=tail)
            if number % 5 == 3:
                # It is confirmed once a second.
                before = self._confirmed(connection)
                workload.wait(lambda: self._confirmed(connection) != before, "another position", of=tail)
            time.sleep(self._dice.uniform(0, 0.3))
        else:
            time.sleep(self._dice.uniform(0, 0.15))

    def _confirmed(self, connection: psycopg.Connection) -> str | None:
        query = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE database = %s AND NOT temporary"
        row = connection.execute(query, [self._database.name]).fetchone()
        return row[0] if row is not None else None

    def _doing(self, connection: psycopg.Connection) -> str:
        active = connection.execute(
            "SELECT 1 FROM pg_replication_slots WHERE database = %s AND active AND NOT temporary", [self._database.name]
        )
        copying = "SELECT 1 FROM etl.replication_state WHERE is_current AND state <> 'ready'"
        if active.fetchone() is None:
            return "start"
        return "copy" if connection.execute(copying).fetchone() else "stream"


def _slots(database: Database) -> list[str]:
    with database.connect() as connection:
        query = "SELECT slot_name FROM pg_replication_slots WHERE database = %s"
        return [name for (name,) in connection.execute(query, [database.name])]


def _must_have_hit_everything(hits: Counter[str], kills: int) -> None:
    assert sum(hits.values()) == kills
    if kills >= 20:
        assert all(hits[moment] >= kills / 10 for moment in ("start", "copy", "stream")), hits


@pytest.mark.parametrize(("version", "kills"), [(18, 60), (16, 15)])
def test_a_file_holds_every_change_once(
    version: int, kills: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    kills = workload.times(kills)
    output = tmp_path / "changes.jsonl"
    arguments = ["mirrored", "--store", "postgres", "-o", str(output), "--fsync-interval", "100ms"]

    def size() -> int:
        return output.stat().st_size if output.exists() else 0

    with fresh_database(request.getfixturevalue(f"server{version}")) as database:
        workload.prepare(database)
        killer = _Killer(database, seed=version)
        # A start cuts the file before it writes on, which is no less a sign of life.
        seen = 0

        def has_more(_: Tail) -> bool:
            return size() != seen

        for _ in killer.run(kills, *arguments, has_more=has_more):
            seen = size()
        with Tail(*arguments, "--until-lsn", "now", dsn=database.dsn()) as tail:
            ended = tail.finish(120)
        assert ended.code == 0, ended.stderr
        events = workload.parse(output.read_bytes().splitlines(keepends=True))
        workload.must_hold_each_once(events)
        workload.must_equal(events, database, killer.bulk)
        _must_have_hit_everything(killer.hits, kills)
        if kills >= 20:
            copies = workload.attempts(events)
            assert sum(copies.values()) - len(copies) >= kills / 10, copies
        wait_for_one_slot(database)


def test_a_pipe_misses_nothing(database18: Database) -> None:
    kills = workload.times(60)
    workload.prepare(database18)
    killer = _Killer(database18, seed=5)
    arguments = ["mirrored", "--store", "postgres"]
    lines: list[bytes] = []
    for tail in killer.run(kills, *arguments, has_more=lambda tail: bool(tail.lines)):
        lines += tail.lines
    with Tail(*arguments, "--until-lsn", "now", dsn=database18.dsn()) as tail:
        ended = tail.finish(120)
    assert ended.code == 0, ended.stderr
    events = workload.parse(lines + tail.lines)
    only_once = workload.once(events)
    workload.must_equal(only_once, database18, killer.bulk)
    _must_have_hit_everything(killer.hits, kills)
    if kills >= 20:
        assert len(only_once) < len(events), "no kill came between a change and its stored position"
    wait_for_one_slot(database18)


def wait_for_one_slot(database: Database) -> None:
    """Wait until the server has noticed that the copies are gone, of which the temporary slots were."""
    workload.wait(lambda: len(_slots(database)) == 1, "the end of the copies' slots")
