"""Copies beside TRUNCATE and ALTER, which snapshots do not cover: a table is read as it was, or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg
import pytest

from pgrepl import conninfo
from pgrepl.catalog.publications import PublishedTable
from pgrepl.connection import connect
from pgrepl.engine import snapshot as snapshot_module
from pgrepl.engine.pipeline import Options, Pipeline
from pgrepl.engine.snapshot import Snapshot, SnapshotUnusable
from pgrepl.engine.units import Unit
from pgrepl.formats.json import JsonLines
from pgrepl.replication.walsender import Walsender
from tests.engine.in_memory import Listener, MemorySink
from tests.servers.database import Database


@pytest.fixture
def table(database: Database) -> Database:
    database.psql("""
        CREATE TABLE t (id int PRIMARY KEY, a varchar(10));
        CREATE TABLE root (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE low PARTITION OF root FOR VALUES FROM (0) TO (10);
        CREATE TABLE high PARTITION OF root FOR VALUES FROM (10) TO (20);
        INSERT INTO t VALUES (1, 'a'), (2, 'b'); INSERT INTO root VALUES (1), (11);
        CREATE PUBLICATION pub FOR TABLE t;
        CREATE PUBLICATION via_root FOR TABLE root WITH (publish_via_partition_root);
    """)
    return database


@contextmanager
def exported(database: Database) -> Iterator[str]:
    """A snapshot of now, which has touched no table."""
    with database.connect() as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        row = connection.execute("SELECT pg_export_snapshot()").fetchone()
        assert row is not None
        yield row[0]


@contextmanager
def imported(database: Database, name: str, user: str = "postgres") -> Iterator[Snapshot]:
    target = conninfo.parse(database.dsn(user), "the test")
    snapshot = Snapshot(connect(target, row_security=False), name)
    try:
        yield snapshot
    finally:
        snapshot.close()


def copied(snapshot: Snapshot, tables: list[PublishedTable]) -> list[tuple[Any, ...]]:
    units = snapshot.units(tables)
    return [row for table in tables for unit in units[table.oid] for rows in snapshot.read(unit) for row in rows]


REPLACED: list[tuple[str, LiteralString]] = [
    ("pub", "TRUNCATE t"),
    ("pub", "TRUNCATE t; INSERT INTO t VALUES (3, 'c')"),
    ("pub", "ALTER TABLE t ALTER id TYPE bigint"),
    ("pub", "ALTER TABLE t ADD x uuid DEFAULT gen_random_uuid()"),
    ("pub", "VACUUM FULL t"),
    ("via_root", "TRUNCATE root"),
    ("via_root", "TRUNCATE high"),
]


@pytest.mark.parametrize(("publication", "change"), REPLACED)
def test_a_table_that_was_replaced_is_not_copied(table: Database, publication: str, change: LiteralString) -> None:
    with exported(table) as name:
        with table.connect() as other:
            other.execute(change)
        with imported(table, name) as snapshot:
            tables = snapshot.published([publication])
            with pytest.raises(SnapshotUnusable, match="was truncated, rewritten, renamed or dropped"):
                snapshot.hold(tables)


RENAMED: list[LiteralString] = [
    "DROP TABLE t",
    "DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, a text)",
    "ALTER TABLE t RENAME TO u",
    "ALTER TABLE t RENAME TO u; CREATE TABLE t (id int PRIMARY KEY, a text)",
    "ALTER TABLE t DROP a",
    "ALTER TABLE t RENAME a TO b",
    "CREATE SCHEMA s; ALTER TABLE t SET SCHEMA s",
]


@pytest.mark.parametrize("change", RENAMED)
def test_a_table_or_column_of_another_name_is_not_copied(table: Database, change: LiteralString) -> None:
    """Neither is a new table that has taken the name."""
    with exported(table) as name, table.connect() as other, imported(table, name) as snapshot:
        tables = snapshot.published(["pub"])
        other.execute(change)
        with pytest.raises(SnapshotUnusable):
            copied_when_held(snapshot, tables)


def copied_when_held(snapshot: Snapshot, tables: list[PublishedTable]) -> list[tuple[Any, ...]]:
    snapshot.hold(tables)
    return copied(snapshot, tables)


HARMLESS: list[LiteralString] = [
    "INSERT INTO t VALUES (3, 'c')",
    "UPDATE t SET a = 'z'",
    "DELETE FROM t",
    "ALTER TABLE t ADD x int DEFAULT 5",
    "ALTER TABLE t ALTER a TYPE varchar(20)",
    "ALTER TABLE t REPLICA IDENTITY FULL",
    "CREATE INDEX ON t (a)",
    "ANALYZE t",
    "VACUUM t",
]


@pytest.mark.parametrize("change", HARMLESS)
def test_other_changes_do_not_matter(table: Database, change: LiteralString) -> None:
    with exported(table) as name:
        with table.connect() as other:
            other.execute(change)
        with imported(table, name) as snapshot:
            tables = snapshot.published(["pub"])
            snapshot.hold(tables)
            assert copied(snapshot, tables) == [(b"1", b"a"), (b"2", b"b")]


def test_held_tables_stay_as_they_are(table: Database) -> None:
    """Partitions too; reading and writing goes on, and at the end the locks are gone."""
    with exported(table) as name, table.connect() as other, imported(table, name) as snapshot:
        tables = snapshot.published(["pub", "via_root"])
        snapshot.hold(tables)
        other.execute("SET lock_timeout = '100ms'")
        for statement in ("TRUNCATE t", "TRUNCATE high", "DROP TABLE low", "ALTER TABLE t ALTER id TYPE bigint"):
            with pytest.raises(psycopg.errors.LockNotAvailable):
                other.execute(statement)
        other.execute("INSERT INTO t VALUES (3); UPDATE root SET id = 2 WHERE id = 1")
        assert copied(snapshot, tables) == [(b"1",), (b"11",), (b"1", b"a"), (b"2", b"b")]
        snapshot.close()
        other.execute("SET lock_timeout = '30s'")
        other.execute("TRUNCATE t, root")


def test_a_table_is_let_go_and_the_others_are_not(table: Database) -> None:
    """The snapshot stays, also after an error; what was replaced while nothing was locked is found."""
    with exported(table) as name, table.connect() as other, imported(table, name) as snapshot:
        (held,) = snapshot.published(["pub"])
        (let_go,) = snapshot.published(["via_root"])
        snapshot.hold([held, let_go])
        other.execute("SET lock_timeout = '100ms'; INSERT INTO t VALUES (3)")
        snapshot.hold_only([held])
        other.execute("TRUNCATE root")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            other.execute("TRUNCATE t")
        other.execute("ALTER TABLE root RENAME TO renamed")
        with pytest.raises(SnapshotUnusable):
            copied(snapshot, [let_go])
        snapshot.hold_only([held])
        assert copied(snapshot, [held]) == [(b"1", b"a"), (b"2", b"b")]
        snapshot.hold_only([])
        other.execute("TRUNCATE t")
        with pytest.raises(SnapshotUnusable, match=r"public\.t was truncated"):
            snapshot.hold_only([held])


def test_a_lock_that_is_not_to_be_had(table: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_module, "_LOCK_TIMEOUT", "50ms")
    with exported(table) as name, table.connect() as other, imported(table, name) as snapshot:
        tables = snapshot.published(["pub"])
        other.execute("BEGIN; LOCK TABLE t")
        with pytest.raises(SnapshotUnusable, match="cannot be locked"):
            snapshot.hold(tables)


@pytest.mark.parametrize("name", ["00000003-0000001B-1", "no such thing", "'; DROP TABLE t; --", "../../x"])
def test_a_snapshot_that_is_gone(table: Database, name: str) -> None:
    connection = connect(conninfo.parse(table.dsn(), "the test"))
    with connection, pytest.raises(SnapshotUnusable, match="the exported snapshot is gone"):
        Snapshot(connection, name)


def test_a_role_that_may_not_lock(table: Database) -> None:
    """With rights on columns alone the copy itself takes the lock, and the comparison comes after it."""
    table.psql("CREATE ROLE app LOGIN REPLICATION; GRANT SELECT (id, a) ON t TO app")
    with exported(table) as name:
        with imported(table, name, "app") as snapshot:
            tables = snapshot.published(["pub"])
            snapshot.hold(tables)
            assert copied(snapshot, tables) == [(b"1", b"a"), (b"2", b"b")]
        with imported(table, name, "app") as snapshot:
            tables = snapshot.published(["pub"])
            snapshot.hold(tables)
            with table.connect() as other:
                other.execute("TRUNCATE t")
            with pytest.raises(SnapshotUnusable, match=r"public\.t was truncated"):
                copied(snapshot, tables)


def run(database: Database, user: str = "postgres") -> tuple[list[dict[str, Any]], list[str]]:
    """Run a pipeline to the end of the WAL, or for a minute; give its events and its warnings."""
    sink, observer = MemorySink(), Listener()
    options = Options(("pub",), until="now", duration=60)
    Pipeline(conninfo.parse(database.dsn(user), "the test"), options, JsonLines(), sink, observer).run()
    return [json.loads(line) for line in sink.data.splitlines()], observer.warnings


def test_the_pipeline_takes_a_new_snapshot(table: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TRUNCATE between the slot and the lock: the rows of after it are copied, once."""
    hold = Snapshot.hold
    changes = iter(["TRUNCATE t; INSERT INTO t VALUES (7, 'x')", "ALTER TABLE t ADD x uuid DEFAULT gen_random_uuid()"])

    def late(snapshot: Snapshot, tables: list[PublishedTable]) -> None:
        for change in changes:
            table.psql(change)
            break
        hold(snapshot, tables)

    monkeypatch.setattr(Snapshot, "hold", late)
    events, warnings = run(table)
    assert [event["op"] for event in events] == ["snapshot_begin", "read", "snapshot_end"]
    assert events[1]["key"] == {"id": 7}
    assert set(events[1]["new"]) == {"id", "a", "x"}
    expected = (
        "public.t was truncated, rewritten, renamed or dropped while the snapshot was taken; the copy begins again"
    )
    assert warnings == [expected] * 2


def test_a_copy_that_turns_out_unusable_is_a_new_attempt(table: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    table.psql("CREATE ROLE app LOGIN REPLICATION; GRANT SELECT (id, a) ON t TO app")
    read = Snapshot.read
    changes = iter(["TRUNCATE t; INSERT INTO t VALUES (7, 'x')"])

    def late(snapshot: Snapshot, unit: Unit) -> Iterator[Any]:
        for change in changes:
            table.psql(change)
        return read(snapshot, unit)

    monkeypatch.setattr(Snapshot, "read", late)
    events, warnings = run(table, "app")
    assert len(warnings) == 1
    # Whatever was written of the first attempt has no end.
    begun = [number for number, event in enumerate(events) if event["op"] == "snapshot_begin"]
    last = events[begun[-1] :]
    assert [event["op"] for event in last] == ["snapshot_begin", "read", "snapshot_end"]
    assert (last[0]["attempt"], last[1]["new"]) == (2, {"id": 7, "a": "x"})
    assert [event["op"] for event in events].count("snapshot_end") == 1


@pytest.mark.parametrize(
    ("change", "ends"),
    [
        ("TRUNCATE t; INSERT INTO t VALUES (1, 'a')", "as with 3 slots before; going on"),
        ("ALTER TABLE t ALTER a TYPE text; ALTER TABLE t ALTER a TYPE varchar(10)", "built; the copy begins again"),
    ],
)
def test_a_table_that_changes_all_the_time(
    change: LiteralString, ends: str, table: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside each slot; what can only end in an error is risked with the fourth, what could go unnoticed is not."""
    changes = iter([change] * 4)
    create = Walsender.create_slot

    def late(walsender: Any, *arguments: Any, **options: Any) -> Any:
        table.psql(next(changes, "SELECT 1"))
        return create(walsender, *arguments, **options)

    monkeypatch.setattr(Walsender, "create_slot", late)
    events, warnings = run(table)
    assert len(warnings) == 4
    assert all("public.t changed while the slot was being built" in warning for warning in warnings)
    assert warnings[3].endswith(ends)
    assert events[-1]["op"] == "snapshot_end"


@pytest.mark.parametrize(
    ("change", "reason", "columns"),
    [
        ("ALTER PUBLICATION pub SET TABLE t (id)", "publication pub changed while the slot was being built", ["id"]),
        # A row that is gone from the catalog has no xmin to be found by.
        (
            "ALTER PUBLICATION pub DROP TABLE more",
            "the publication was changed while the snapshot was taken",
            ["id", "a"],
        ),
    ],
)
def test_a_publication_that_changes_meanwhile(
    change: LiteralString, reason: str, columns: list[str], table: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read before the slot and as the snapshot sees it, it must be the same."""
    table.psql("CREATE TABLE more (id int PRIMARY KEY); ALTER PUBLICATION pub ADD TABLE more")
    changes = iter([change])
    create = Walsender.create_slot

    def late(walsender: Any, *arguments: Any, **options: Any) -> Any:
        for each in changes:
            table.psql(each)
        return create(walsender, *arguments, **options)

    monkeypatch.setattr(Walsender, "create_slot", late)
    events, warnings = run(table)
    (warning,) = warnings
    assert warning.startswith(reason)
    assert warning.endswith("; the copy begins again")
    reads = [event["new"] for event in events if event["op"] == "read"]
    assert [row["id"] for row in reads] == [1, 2]
    assert list(reads[0]) == columns
