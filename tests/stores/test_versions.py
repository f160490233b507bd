"""Versions of tables: what the event trigger says is stored as supabase/etl stores it, and let go of when it is old."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pgrepl import conninfo, migrations, names
from pgrepl.catalog.publications import PublishedTable
from pgrepl.engine.pipeline import Options, Pipeline
from pgrepl.engine.run import End
from pgrepl.engine.snapshot import Snapshot
from pgrepl.formats.json import JsonLines
from pgrepl.lsn import Lsn
from pgrepl.stores.postgres import PostgresStore
from tests.engine.in_memory import Listener, MemorySink
from tests.fault import workload
from tests.servers.database import Database
from tests.tail.running import Tail, run_tail

ID = 77
ARGUMENTS = ("pub", "--store", "postgres", "--pipeline-id", str(ID))


@pytest.fixture
def etl(database: Database) -> Database:
    with database.connect() as connection:
        migrations.apply(connection)
    database.psql("""
        CREATE TABLE t (id int, note varchar(20), at text, twice int GENERATED ALWAYS AS (id * 2) STORED,
                        PRIMARY KEY (note, id));
        INSERT INTO t VALUES (1, 'a');
        CREATE PUBLICATION pub FOR TABLE t;
    """)
    return database


def versions(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """The stored columns of t, by snapshot_id."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    with database.connect() as connection:
        for snapshot, *column in connection.execute(
            "SELECT s.snapshot_id::text, c.column_name, c.column_type, c.type_modifier, c.nullable,"
            " c.ordinal_position, c.primary_key_ordinal_position"
            " FROM etl.table_schemas s JOIN etl.table_columns c ON c.table_schema_id = s.id"
            " WHERE s.pipeline_id = %s AND s.table_name = 't' ORDER BY s.snapshot_id, c.ordinal_position",
            [ID],
        ):
            found.setdefault(snapshot, []).append(tuple(column))
    return found


COPIED = [("id", "INT4", -1, False, 1, 2), ("note", "VARCHAR", 24, False, 2, 1), ("at", "TEXT", -1, True, 3, None)]


def test_an_alter_table_is_a_version_at_the_end_of_its_message(etl: Database) -> None:
    """Case alter_table_without_dml_stores_schema_snapshot, schema_store_versioning of supabase/etl's tests."""
    with Tail(*ARGUMENTS, dsn=etl.dsn()) as tail, etl.connect() as connection:
        tail.until_op("snapshot_end")
        assert versions(etl) == {"0/0": COPIED}
        connection.execute("ALTER TABLE t ADD more numeric(12,2) NOT NULL DEFAULT 0")
        connection.execute("ALTER TABLE t DROP at; INSERT INTO t VALUES (2, 'b')")
        with connection.transaction(force_rollback=True):
            connection.execute("ALTER TABLE t ADD never int")
        messages = [event for event in tail.until_op("insert") if event["op"] == "message"]
        assert tail.stop().code == 143
    more = ("more", "NUMERIC", 786438, False, 5, None)
    assert versions(etl) == {
        "0/0": COPIED,
        messages[0]["start_lsn"]: [*COPIED, more],
        messages[1]["start_lsn"]: [*COPIED[:2], more],
    }


# A run that tries it waits for this session, until it is killed.
_HOLD_BACK_THE_POSITION = """
SELECT pg_advisory_lock(1);
CREATE FUNCTION etl.wait() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END';
CREATE TRIGGER late BEFORE UPDATE ON etl.pgrepl_pipelines FOR EACH ROW
    WHEN (OLD.told IS DISTINCT FROM NEW.told) EXECUTE FUNCTION etl.wait();
"""


def test_a_version_that_comes_again_is_there_once(etl: Database) -> None:
    """Case table_schema_snapshots_are_consistent_after_missing_status_update of supabase/etl's tests."""
    with etl.connect() as connection:
        with Tail(*ARGUMENTS, dsn=etl.dsn()) as tail:
            tail.until_op("snapshot_end")
            workload.wait(lambda: workload.streams(etl, 1), "the end of the copy", of=tail)
            connection.execute(_HOLD_BACK_THE_POSITION)
            etl.psql("ALTER TABLE t ADD more int; INSERT INTO t VALUES (2, 'b')")
            tail.until_op("insert")
            # Leaving the block is kill -9: the version is stored, and the position that lies behind it is not.
        connection.execute("DROP TRIGGER late ON etl.pgrepl_pipelines")
        before = versions(etl)
    again = run_tail(*ARGUMENTS, "--until-lsn", "now", dsn=etl.dsn())
    assert [event["op"] for event in again.events] == ["message", "schema", "insert"]
    # The end of the run lets go of the older one.
    assert list(before) == ["0/0", again.events[0]["start_lsn"]]
    before.pop("0/0")
    assert versions(etl) == before


def test_messages_that_the_trigger_did_not_write_are_no_versions(etl: Database) -> None:
    with Tail(*ARGUMENTS, dsn=etl.dsn()) as tail, etl.connect() as connection:
        tail.until_op("snapshot_end")
        for content in ("", "[]", '{"oid": "x"}', "{" * 5000):
            connection.execute("SELECT pg_logical_emit_message(true, 'supabase_etl_ddl', %s)", [content])
        connection.execute("INSERT INTO t VALUES (2, 'b')")
        events = tail.until_op("insert")
        assert tail.stop().code == 143
    assert sum(event["op"] == "message" for event in events) == 4
    assert tail.stderr.count("no version of a table is stored") == 4
    assert versions(etl) == {"0/0": COPIED}


def test_an_unpublished_table_has_no_versions(etl: Database) -> None:
    with Tail(*ARGUMENTS, dsn=etl.dsn()) as tail:
        tail.until_op("snapshot_end")
        etl.psql("CREATE TABLE u (id int); CREATE PUBLICATION another FOR TABLE u; ALTER TABLE u ADD more int")
        etl.psql("INSERT INTO t VALUES (2, 'b')")
        tail.until_op("insert")
        assert tail.stop().code == 143
    with etl.connect() as connection:
        assert connection.execute("SELECT DISTINCT table_name FROM etl.table_schemas").fetchall() == [("t",)]


class _UntilAChange(Listener):
    """End the run with the first change that is printed."""

    def __init__(self, sink: MemorySink) -> None:
        super().__init__()
        self._sink = sink

    def progress(self, progress: object) -> None:
        if b'"op":"insert"' in self._sink.data:
            raise End("stopped")


def test_an_alter_table_beside_a_copy_is_stored_when_the_copy_is_handed_over(
    etl: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is altered after its snapshot and before its lock: versions in the spool outlive the copy's own."""
    run_tail(*ARGUMENTS, "--until-lsn", "now", dsn=etl.dsn())
    etl.psql("CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late VALUES (1)")
    etl.psql("ALTER PUBLICATION pub ADD TABLE late")
    hold = Snapshot.hold
    altered: list[bool] = []

    def late(snapshot: Snapshot, tables: list[PublishedTable]) -> None:
        if not altered:
            altered.append(True)
            etl.psql("ALTER TABLE late ADD more int; INSERT INTO late VALUES (2, 3)")
        hold(snapshot, tables)

    monkeypatch.setattr(Snapshot, "hold", late)
    sink = MemorySink()
    target = conninfo.parse(etl.dsn(), "the test")
    store = PostgresStore(target, ID)
    store.prepare()
    options = Options(("pub",), slot=names.apply_slot(ID), duration=60.0)
    observer = _UntilAChange(sink)
    outcome = Pipeline(target, options, JsonLines(), sink, observer, store=store, spool_directory=tmp_path).run()
    assert outcome.reason == "stopped"
    assert altered
    with etl.connect() as connection:
        stored = connection.execute(
            "SELECT s.snapshot_id > '0/0', count(*) FROM etl.table_schemas s"
            " JOIN etl.table_columns c ON c.table_schema_id = s.id WHERE s.table_name = 'late' GROUP BY 1, s.id"
            " ORDER BY 1"
        ).fetchall()
    # That of the copy may have been pruned already.
    assert stored[-1] == (True, 2)


@pytest.mark.parametrize(
    ("position", "destination", "left"),
    [
        ("0/50", None, ["0/0", "0/100", "0/200", "0/300"]),
        ("0/100", None, ["0/100", "0/200", "0/300"]),
        ("0/2FF", None, ["0/200", "0/300"]),
        ("0/400", None, ["0/300"]),
        ("0/400", ("0/200", None), ["0/200", "0/300"]),
        ("0/400", ("0/300", "0/100"), ["0/100", "0/200", "0/300"]),
    ],
)
def test_pruning_keeps_what_a_reader_needs(
    etl: Database, position: str, destination: tuple[str, str | None] | None, left: list[str]
) -> None:
    """Case schema_snapshots_are_pruned_after_confirmed_progress of supabase/etl's tests, and
    schema_store_prunes_obsolete_versions_from_database_and_cache.
    """
    store = PostgresStore(conninfo.parse(etl.dsn(), "the test"), ID)
    store.prepare()
    with etl.connect() as connection:
        for pipeline in (ID, ID + 1):
            for snapshot in ("0/0", "0/100", "0/200", "0/300"):
                connection.execute(
                    "INSERT INTO etl.table_schemas (pipeline_id, table_id, schema_name, table_name, snapshot_id)"
                    " VALUES (%s, 5, 's', 't', %s)",
                    [pipeline, snapshot],
                )
        if destination is not None:
            connection.execute(
                "INSERT INTO etl.destination_tables_metadata (pipeline_id, table_id, destination_table_id, snapshot_id,"
                " previous_snapshot_id, schema_status, replication_mask) VALUES (%s, 5, 'd', %s, %s, 'applied', '')",
                [ID, *destination],
            )
        store.prune(Lsn.parse(position))
        found = connection.execute(
            "SELECT pipeline_id, snapshot_id::text FROM etl.table_schemas ORDER BY pipeline_id, snapshot_id"
        ).fetchall()
    store.close()
    assert [snapshot for pipeline, snapshot in found if pipeline == ID] == left
    assert sum(pipeline == ID + 1 for pipeline, _ in found) == 4


def test_old_versions_are_let_go_of_at_the_next_start(etl: Database) -> None:
    with Tail(*ARGUMENTS, dsn=etl.dsn()) as tail:
        tail.until_op("snapshot_end")
        etl.psql("ALTER TABLE t ADD more int; INSERT INTO t VALUES (2, 'b')")
        tail.until_op("insert")
        assert tail.stop().code == 143
    assert len(versions(etl)) == 2
    etl.psql("INSERT INTO t VALUES (3, 'c')")
    assert run_tail(*ARGUMENTS, "--until-lsn", "now", dsn=etl.dsn()).code == 0
    assert list(versions(etl)) != ["0/0"]
    assert len(versions(etl)) == 1
