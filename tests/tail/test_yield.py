"""A copy and an ALTER TABLE: who waits is said, and where that is wanted the copy gives way."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import LiteralString

from tests.fault import slowcopy
from tests.fault.workload import must_hold_each_once, parse, prepare, wait
from tests.servers.database import Database
from tests.tail.mirror import Mirror, source_rows
from tests.tail.running import Event, Tail

_MORE: LiteralString = """
CREATE TABLE a_first (id int PRIMARY KEY); INSERT INTO a_first VALUES (1);
CREATE TABLE z_last (id int PRIMARY KEY); INSERT INTO z_last VALUES (1);
ALTER PUBLICATION slowly ADD TABLE a_first, z_last;
INSERT INTO slow SELECT i, true, 'more' FROM generate_series(1001, 1100) i;
"""
_PARTITIONED: LiteralString = """
CREATE TABLE a_first (id int PRIMARY KEY); INSERT INTO a_first VALUES (1);
CREATE TABLE slow (id int, slow bool, note text, PRIMARY KEY (id, slow)) PARTITION BY RANGE (id);
CREATE TABLE slow_1 PARTITION OF slow FOR VALUES FROM (0) TO (100);
CREATE TABLE slow_2 PARTITION OF slow FOR VALUES FROM (100) TO (200);
CREATE TABLE slow_3 PARTITION OF slow FOR VALUES FROM (200) TO (300);
CREATE TABLE slow_4 PARTITION OF slow FOR VALUES FROM (300) TO (400);
INSERT INTO slow SELECT i, true, 'before' FROM generate_series(0, 399) i;
CREATE PUBLICATION slowly FOR TABLE a_first, slow
 WHERE (CASE WHEN slow THEN md5(repeat('x', 12000000 + id)) <> '' ELSE true END)
  WITH (publish_via_partition_root);
"""
_ALTER: LiteralString = "ALTER TABLE slow ADD more int; UPDATE slow SET slow = false"
_SAID = "since the table is being copied"


class _Executing(threading.Thread):
    """Execute something beside the test, in one transaction."""

    def __init__(self, database: Database, statement: LiteralString) -> None:
        super().__init__()
        self._database = database
        self._statement = statement
        self.start()

    def run(self) -> None:
        with self._database.connect() as connection, connection.transaction():
            connection.execute(self._statement)

    def must_end(self) -> None:
        self.join(60)
        assert not self.is_alive()


def _attempts(events: list[Event]) -> dict[str, int]:
    return {event["table"]: event["attempt"] for event in events if event["op"] == "snapshot_end"}


def _must_equal(events: list[Event], database: Database, *tables: str) -> None:
    must_hold_each_once(events)
    mirror = Mirror().apply(events)
    for table in tables:
        assert mirror.rows(table) == source_rows(database, table), table


def test_who_waits_is_said(database18: Database) -> None:
    database18.psql(slowcopy.SCHEMA)
    with database18.connect() as connection, Tail("slowly", dsn=database18.dsn()) as tail:
        with slowcopy.halted(connection):
            alter = _Executing(database18, _ALTER)
            said = tail.until_stderr(_SAID)
            reader = _Executing(database18, "SELECT count(*) FROM slow")
            tail.until_stderr("and 1 more behind it")
            # Every few seconds, not all the time.
            assert tail.stderr.count(_SAID) <= 4
        alter.must_end()
        reader.must_end()
        tail.until(lambda event: event["op"] == "update" and event["new"]["id"] == slowcopy.ROWS, 60)
        events = tail.stop().events
    assert "pgrepl: warning: ALTER TABLE slow ADD more int; UPDATE slow SET slow = false (pid " in said
    assert "has been waiting for public.slow for " in said
    assert "--yield-to-ddl DURATION would let it go first" in said
    assert _attempts(events) == {"slow": 1}
    _must_equal(events, database18, "slow")


def test_a_copy_gives_way(database18: Database, tmp_path: Path) -> None:
    """The table alone begins anew; what else is copied out of the same snapshot goes on."""
    output = tmp_path / "changes.jsonl"
    prepare(database18)
    database18.psql(slowcopy.SCHEMA + _MORE)
    arguments = ["slowly", "--store", "postgres", "-o", str(output), "--jobs", "1", "--yield-to-ddl", "1s"]
    with database18.connect() as connection:
        with Tail(*arguments, dsn=database18.dsn()) as tail:
            slowcopy.copying_backend(connection)
            alter = _Executing(database18, _ALTER)
            said = tail.until_stderr("gave way: ALTER TABLE slow")
            alter.must_end()
            query = "SELECT count(*) FROM etl.replication_state WHERE is_current AND state = 'ready'"
            wait(lambda: connection.execute(query).fetchone() == (3,), "the end of the copies", 120, of=tail)
            connection.execute("INSERT INTO slow VALUES (0, false, 'last', 7)")
            assert tail.stop().code == 143
        with Tail(*arguments, "--until-lsn", "now", dsn=database18.dsn()) as tail:
            assert tail.finish().code == 0
    assert "; the copy begins again" in said
    events = parse(output.read_bytes().splitlines(keepends=True))
    assert _attempts(events) == {"a_first": 1, "slow": 2, "z_last": 1}
    _must_equal(events, database18, "slow", "a_first", "z_last")


def test_a_partition_gives_way_with_its_table(database18: Database) -> None:
    database18.psql(_PARTITIONED)
    with database18.connect() as connection, Tail("slowly", "--yield-to-ddl", "1s", dsn=database18.dsn()) as tail:
        slowcopy.copying_backend(connection)
        alter = _Executing(database18, "TRUNCATE slow_4; TRUNCATE slow")
        alter.must_end()
        tail.until(lambda event: event["op"] == "snapshot_end" and event["table"] == "slow", 60)
        events = tail.stop().events
    assert _attempts(events) == {"a_first": 1, "slow": 2}
    _must_equal(events, database18, "slow")


def test_a_table_that_has_been_copied_is_let_go(database18: Database) -> None:
    """Without being told to, since it costs nothing."""
    database18.psql(_PARTITIONED)
    with Tail("slowly", "--jobs", "1", dsn=database18.dsn()) as tail:
        tail.until(lambda event: event["op"] == "snapshot_end" and event["table"] == "a_first")
        alter = _Executing(database18, "ALTER TABLE a_first ADD more int")
        alter.must_end()
        assert "slow" not in _attempts(tail.events), "the other table was copied before"
        tail.until(lambda event: event["op"] == "snapshot_end" and event["table"] == "slow", 120)
        events = tail.stop().events
    assert _attempts(events) == {"a_first": 1, "slow": 1}


def test_a_copy_gives_way_although_nobody_reads(database18: Database) -> None:
    database18.psql("""
        CREATE TABLE t (id int PRIMARY KEY, filler text); CREATE PUBLICATION p FOR TABLE t;
        INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 60000) i;
    """)
    arguments = ["p", "--jobs", "2", "--yield-to-ddl", "500ms"]
    with database18.connect() as connection, Tail(*arguments, dsn=database18.dsn(), read=False) as tail:
        copying = "SELECT 1 FROM pg_stat_progress_copy WHERE tuples_processed > 1000"
        wait(lambda: connection.execute(copying).fetchone() is not None, "the copy", of=tail)
        _Executing(database18, "ALTER TABLE t ADD more int").must_end()
        tail.read_on()
        tail.until_op("snapshot_end", seconds=120)
        events = tail.stop().events
    assert _attempts(events) == {"t": 2}
    _must_equal(events, database18, "t")
