"""Connections that are cut at any byte, and servers that crash: the run goes on, and misses nothing."""

from __future__ import annotations

import random
import time
from pathlib import Path

import psycopg

from tests.fault import workload
from tests.proxy import Proxy, proxy
from tests.servers.database import Database
from tests.tail.mirror import Writers
from tests.tail.running import Tail

_ARGUMENTS = ["mirrored", "--store", "postgres", "--refresh", "1s"]


def test_connections_that_are_cut_are_found_again(database18: Database, tmp_path: Path) -> None:
    """Half of the cuts come in the middle of much data, so in a copy or the stream, half on any connection."""
    cuts = workload.times(30)
    dice = random.Random(30)
    workload.prepare(database18)
    output = tmp_path / "changes.jsonl"
    bulk = ["bulk"]
    server = database18.server
    socket = f"{server.host}/.s.PGSQL.{server.port}"
    writers = Writers(database18, count=4, seed=30, pause=0.02)
    try:
        with (
            proxy(socket, seed=1) as first,
            proxy(socket, seed=2) as second,
            Tail(*_ARGUMENTS, "--pipeline-id", "1", "-o", str(output), dsn=_through(first, database18)) as file_tail,
            Tail(*_ARGUMENTS, "--pipeline-id", "2", dsn=_through(second, database18)) as pipe_tail,
            database18.connect() as connection,
        ):
            workload.wait(lambda: workload.streams(database18, 2), "the first copies", 120, of=file_tail)
            for number in range(cuts):
                new = number % 5 == 4
                if new:
                    bulk.append(f"bulk_{number}")
                    workload.add_table(connection, bulk[-1])
                for pipeline, wire in ((1, first), (2, second)):
                    if new:
                        _wait_for_copy(connection, pipeline, bulk[-1])
                    _cut(wire, dice, in_data=new or dice.random() < 0.5)
                workload.disturb(connection, dice, bulk)
                time.sleep(dice.uniform(0, 0.6))
                workload.must_not_be_ahead(connection)
                assert file_tail.running, file_tail.stderr
                assert pipe_tail.running, pipe_tail.stderr
            writers.stop()
            workload.wait(lambda: workload.streams(database18, 2), "the end of the copies", 120, of=file_tail)
            events = workload.finish(database18, file_tail, pipe_tail, output)
    finally:
        writers.stop()
    workload.verdict(*events, database18, bulk)
    said = file_tail.stderr, pipe_tail.stderr
    assert all("connected again" in text for text in said)
    if cuts >= 20:
        assert any("the copy begins again" in text for text in said)


def _through(wire: Proxy, database: Database) -> str:
    return f"host=127.0.0.1 port={wire.port} user=postgres dbname={database.name}"


def _wait_for_copy(connection: psycopg.Connection, pipeline: int, table: str) -> None:
    query = "SELECT 1 FROM etl.replication_state WHERE pipeline_id = %s AND table_id = %s::regclass"
    workload.wait(lambda: connection.execute(query, [pipeline, table]).fetchone(), "the copy of a new table")


def _cut(wire: Proxy, dice: random.Random, *, in_data: bool) -> None:
    before = wire.cuts
    if in_data:
        wire.cut_one(dice.randrange(200_000))
    else:
        workload.wait(wire.cut_any, "a connection")
    workload.wait(lambda: wire.cuts > before, "the cut")
