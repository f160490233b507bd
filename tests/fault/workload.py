"""What the fault tests have in common: a workload that never rests, and the verdict on what was printed meanwhile.

PGREPL_TORTURE_FACTOR multiplies the number of faults, for a run that is to take longer than the test suite may.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from tests.servers.database import Database
from tests.servers.server import Server
from tests.tail.mirror import SCHEMA, TABLES, Mirror, source_rows
from tests.tail.running import ROOT, Tail

FACTOR = float(os.environ.get("PGREPL_TORTURE_FACTOR", "1"))
ROWS = 12_000
_BULK: LiteralString = """
CREATE TABLE {table} (id int PRIMARY KEY, note text);
INSERT INTO {table} SELECT i, repeat(md5(i::text), 4) FROM generate_series(1, {rows}) i;
ALTER PUBLICATION mirrored ADD TABLE {table}
"""
_ALTERS: list[LiteralString] = [
    "ALTER TABLE plain ADD COLUMN IF NOT EXISTS more int; ALTER TABLE parts ADD COLUMN IF NOT EXISTS more int",
    "ALTER TABLE plain DROP COLUMN IF EXISTS more; ALTER TABLE parts DROP COLUMN IF EXISTS more",
    "ALTER TABLE composite ALTER n SET STATISTICS 50",
    "ALTER TABLE composite ALTER n TYPE int",
    "ALTER TABLE composite ALTER n TYPE bigint",
    "ALTER TABLE plain ALTER note TYPE varchar(100)",
    "ALTER TABLE plain ALTER note TYPE text",
    "VACUUM FULL composite",
    "TRUNCATE plain, parts",
]

Event = dict[str, Any]


def times(count: int) -> int:
    """Give the number of faults for a test that makes ``count`` of them in the test suite."""
    return max(1, round(count * FACTOR))


def wait(condition: Callable[[], object], what: str, seconds: float = 60.0, *, of: Tail | None = None) -> None:
    """Wait for something, for at most so many seconds; ``of`` a tail that is to run meanwhile."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come\n{of.stderr if of else ''}"
        assert of is None or of.running, f"it ended\n{of.stderr}"
        time.sleep(0.02)


def is_up(server: Server) -> bool:
    """Whether a server takes connections."""
    try:
        server.connect().close()
    except psycopg.OperationalError:
        return False
    return True


def prepare(database: Database) -> None:
    """Make the tables of the mirror, a larger one, and the state tables."""
    database.psql(SCHEMA)
    with database.connect() as connection:
        add_table(connection, "bulk", 3 * ROWS)
    migrate(database)


def migrate(database: Database) -> None:
    """Make the state tables."""
    subprocess.run(
        [sys.executable, "-m", "pgrepl", "migrations", "apply", "-d", database.dsn()],
        check=True,
        capture_output=True,
        cwd=ROOT,
    )


def add_table(connection: psycopg.Connection, name: str, rows: int = ROWS) -> None:
    """Make a table of some size and publish it; its rows are there before and change afterwards."""
    table = sql.Identifier(name)
    with connection.transaction():
        for statement in _BULK.split(";"):
            connection.execute(sql.SQL(statement).format(table=table, rows=sql.Literal(rows)))


def disturb(connection: psycopg.Connection, dice: random.Random, bulk: Iterable[str]) -> None:
    """Change a definition, unless the writers are in the way, and rows of the larger tables."""
    connection.execute("SET lock_timeout = '200ms'")
    for statement in dice.choice(_ALTERS).split(";"):
        try:
            connection.execute(statement)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            break
    for name in bulk:
        for change in (
            "UPDATE {} SET note = note || 'x' WHERE id = %s",
            "DELETE FROM {} WHERE id = %s",
            "INSERT INTO {} VALUES (%s, 'new') ON CONFLICT (id) DO UPDATE SET note = 'again'",
        ):
            connection.execute(sql.SQL(change).format(sql.Identifier(name)), [dice.randrange(ROWS)])


def parse(lines: Iterable[bytes]) -> list[Event]:
    """Parse lines; one that was cut by a kill is no line."""
    return list(_one_table_each(json.loads(line) for line in lines if line.endswith(b"\n")))


def _one_table_each(events: Iterable[Event]) -> Iterator[Event]:
    # Of the tables of one TRUNCATE some may be printed at once and others after their copy.
    for event in events:
        if event["op"] == "truncate":
            yield from ({**event, "tables": [table]} for table in event["tables"])
        else:
            yield event


def place(event: Event) -> tuple[str, int, str] | None:
    """Say which change an event is; None when it is none."""
    if event["op"] not in ("insert", "update", "delete", "truncate"):
        return None
    table = event["tables"][0] if event["op"] == "truncate" else event
    return event["commit_lsn"], event["seq"], table["table"]


def once(events: Iterable[Event]) -> list[Event]:
    """Leave out what an at-least-once output repeats: a reader can tell it by its place."""
    kept: list[Event] = []
    seen: dict[str, set[tuple[str, int, str]]] = defaultdict(set)
    for event in events:
        if event["op"] == "snapshot_begin":
            # A table that is copied again may tell its changes again.
            seen[event["table"]].clear()
        change = place(event)
        if change is not None:
            if change in seen[change[2]]:
                continue
            seen[change[2]].add(change)
        kept.append(event)
    return kept


def must_hold_each_once(events: list[Event]) -> None:
    """Make sure that no change stands there twice, and that the last copy of each table is whole."""
    changes = Counter(change for event in events if (change := place(event)) is not None)
    twice = [change for change, count in changes.items() if count > 1]
    assert not twice, f"{len(twice)} changes twice, such as {twice[:3]}"
    _copies_must_be_whole(events)


def _copies_must_be_whole(events: list[Event]) -> None:
    # The mirror finds a row of a copy that comes twice, where the table has a key.
    attempts: dict[str, int] = {}
    rows: Counter[str] = Counter()
    ended: dict[str, tuple[int, int]] = {}
    for event in events:
        match event["op"]:
            case "snapshot_begin":
                table = event["table"]
                assert event["attempt"] > attempts.get(table, 0), event
                attempts[table] = event["attempt"]
                rows[table] = 0
                ended.pop(table, None)
            case "read":
                assert event["table"] not in ended, event
                rows[event["table"]] += 1
            case "snapshot_end":
                ended[event["table"]] = (event["attempt"], event["rows"])
    assert ended == {table: (attempt, rows[table]) for table, attempt in attempts.items()}


def attempts(events: list[Event]) -> dict[str, int]:
    """Give the number of the last copy of each table."""
    return {event["table"]: event["attempt"] for event in events if event["op"] == "snapshot_end"}


def must_equal(events: list[Event], database: Database, bulk: Iterable[str]) -> None:
    """Make sure that the events, applied to nothing, give the tables of the server."""
    mirror = Mirror().apply(events)
    mirror.must_equal(database)
    for name in bulk:
        assert mirror.rows(name) == source_rows(database, name), name
    assert sum(sum(mirror.rows(table).values()) for table in TABLES) > 0


def streams(database: Database, pipelines: int) -> bool:
    """Whether so many pipelines have copied all their tables."""
    with database.connect() as connection:
        row = connection.execute(
            "SELECT count(DISTINCT pipeline_id), count(*) FILTER (WHERE state <> 'ready')"
            " FROM etl.replication_state WHERE is_current"
        ).fetchone()
    return row == (pipelines, 0)


def active_streams(database: Database) -> int:
    """Count the persistent slots that are being streamed."""
    with database.connect() as connection:
        # A slot is active, too, while it is being made.
        row = connection.execute(
            "SELECT count(*) FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid"
            " WHERE NOT s.temporary AND r.state <> 'startup'"
        ).fetchone()
    assert row is not None
    return int(row[0])


def must_not_be_ahead(connection: psycopg.Connection) -> None:
    """Make sure that no slot is confirmed past what is stored, which nobody would notice before the next start."""
    # In this order, since both move on.
    confirmed = connection.execute("SELECT slot_name, confirmed_flush_lsn FROM pg_replication_slots").fetchall()
    if connection.execute("SELECT to_regclass('etl.pgrepl_pipelines')").fetchone() == (None,):
        return
    for slot, position in confirmed:
        ahead = "SELECT position FROM etl.pgrepl_pipelines WHERE slot_name = %s AND position < %s::pg_lsn"
        assert connection.execute(ahead, [slot, position]).fetchall() == [], f"{slot} is at {position}"


def finish(database: Database, file: Tail, pipe: Tail, output: Path) -> tuple[list[Event], list[Event]]:
    """Wait until a tail with a file and one with a pipe have printed all, end them, and give what they printed."""
    with database.connect() as connection:
        connection.execute("INSERT INTO marker VALUES (1)")
    wait(lambda: _ends_with_marker(output.read_bytes().splitlines()), "the last row", 120, of=file)
    wait(lambda: _ends_with_marker(pipe.lines), "the last row", 120, of=pipe)
    for tail in (file, pipe):
        assert tail.stop().code == 143, tail.stderr
    return parse(output.read_bytes().splitlines(keepends=True)), parse(pipe.lines)


def _ends_with_marker(lines: list[bytes]) -> bool:
    return any(b'"table":"marker"' in line and b'"op":"insert"' in line for line in lines[-2000:])


def verdict(file: list[Event], pipe: list[Event], database: Database, bulk: Iterable[str]) -> None:
    """Make sure that a file has everything once, and a pipe everything."""
    must_hold_each_once(file)
    must_equal(file, database, bulk)
    must_equal(once(pipe), database, bulk)
