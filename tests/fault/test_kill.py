"""Killed at any moment, as often as you like: a file holds every change once, a pipe at least once."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.servers.database import Database
from tests.tail.mirror import SCHEMA, Mirror, Writers
from tests.tail.running import ROOT, Tail

KILLS = int(os.environ.get("PGREPL_TORTURE_KILLS", "25"))


def _prepare(database: Database) -> None:
    database.psql(SCHEMA)
    subprocess.run(
        [sys.executable, "-m", "pgrepl", "migrations", "apply", "-d", database.dsn()],
        check=True,
        capture_output=True,
        cwd=ROOT,
    )


def _alter(connection: psycopg.Connection, dice: random.Random, number: int) -> None:
    """Change a table's definition in a way that leaves its rows as they are for the mirror."""
    statement = dice.choice(
        [
            "ALTER TABLE plain ADD COLUMN c{n} int; ALTER TABLE plain DROP COLUMN c{n}",
            "ALTER TABLE composite ALTER n SET STATISTICS 50",
            "ALTER TABLE plain ALTER note TYPE varchar(100)",
            "ALTER TABLE plain ALTER note TYPE text",
        ]
    ).format(n=number)
    connection.execute("SET lock_timeout = '200ms'")
    for part in statement.split(";"):
        try:
            connection.execute(part)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            return


def _once(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out what an at-least-once output repeats: changes by their place, which a reader can tell as well."""
    kept = []
    places: set[tuple[str, int, str]] = set()
    for line in lines:
        if line["op"] == "snapshot_begin":
            places = {place for place in places if place[2] != line["table"]}
        if "commit_lsn" in line and line["op"] not in ("schema", "message"):
            tables = ",".join(t["table"] for t in line.get("tables", [line]))
            place = (line["commit_lsn"], line["seq"], tables)
            if place in places:
                continue
            places.add(place)
        kept.append(line)
    return kept


@pytest.mark.parametrize("version", [16, 18])
def test_a_file_holds_every_change_once(version: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    server = request.getfixturevalue(f"server{version}")
    from tests.servers.database import fresh_database

    dice = random.Random(version)
    output = tmp_path / "changes.jsonl"
    with fresh_database(server) as database:
        _prepare(database)
        writers = Writers(database, count=4, seed=version)
        arguments = ["mirrored", "--store", "postgres", "-o", str(output), "--fsync-interval", "100ms", "-q"]
        try:
            with database.connect() as connection:
                for number in range(KILLS):
                    with Tail(*arguments, dsn=database.dsn()) as tail:
                        time.sleep(dice.uniform(0.3, 1.2))
                        assert tail.running, tail.finish().stderr
                        _alter(connection, dice, number)
                        # Leaving the block is kill -9.
                writers.stop()
                connection.execute("INSERT INTO marker VALUES (1)")
            finished = Tail(*arguments, "--until-lsn", "now", dsn=database.dsn())
            with finished as tail:
                ended = tail.finish(120)
            assert ended.code == 0, ended.stderr
        finally:
            writers.stop()
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        assert any(line.get("table") == "marker" and line["op"] in ("insert", "read") for line in lines)
        changes = Counter(
            (line["commit_lsn"], line["seq"])
            for line in lines
            if line["op"] in ("insert", "update", "delete", "truncate")
        )
        twice = [place for place, count in changes.items() if count > 1]
        assert not twice, f"{len(twice)} changes twice, {twice[:3]}"
        mirror = Mirror().apply(lines)
        mirror.must_equal(database)
        with database.connect() as connection:
            left = connection.execute("SELECT slot_name FROM pg_replication_slots WHERE database = %s", [database.name])
            assert len(left.fetchall()) == 1


def test_a_pipe_misses_nothing(database18: Database) -> None:
    dice = random.Random(5)
    _prepare(database18)
    writers = Writers(database18, count=4, seed=77)
    lines: list[bytes] = []
    arguments = ["mirrored", "--store", "postgres", "-q"]
    try:
        for _ in range(KILLS):
            with Tail(*arguments, dsn=database18.dsn()) as tail:
                time.sleep(dice.uniform(0.3, 1.0))
                assert tail.running, tail.finish().stderr
            # A line that was cut by the kill is no line.
            lines += [line for line in tail.lines if line.endswith(b"\n")]
        writers.stop()
        with Tail(*arguments, "--until-lsn", "now", dsn=database18.dsn()) as tail:
            ended = tail.finish(120)
        assert ended.code == 0, ended.stderr
        lines += tail.lines
    finally:
        writers.stop()
    mirror = Mirror().apply(_once([json.loads(line) for line in lines]))
    mirror.must_equal(database18)
