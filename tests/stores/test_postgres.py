"""The state in schema etl: rows as supabase/etl has them, read back, rolled back and reset; and a tail that goes on."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pgrepl import conninfo, migrations, names
from pgrepl.errors import OperationError
from pgrepl.lsn import Lsn
from pgrepl.stores import Identity, StoredTable
from pgrepl.stores.pipeline import StoredPipeline
from pgrepl.stores.postgres import PostgresStore
from pgrepl.stores.tables import CREATE_PIPELINES, PIPELINES
from tests.command import pgrepl
from tests.servers.database import Database
from tests.tail.running import Tail, run_tail

BIG = 13193928276068826399
HERE = Identity("7", 1, names.apply_slot(BIG), "pub")


@pytest.fixture
def etl(database: Database) -> Database:
    with database.connect() as connection:
        migrations.apply(connection)
    return database


def store_of(database: Database, pipeline: int = BIG) -> StoredPipeline:
    store = StoredPipeline(conninfo.parse(database.dsn(), "the test"), pipeline)
    store.prepare()
    return store


def rows(database: Database) -> list[tuple[Any, ...]]:
    with database.connect() as connection:
        return connection.execute(
            "SELECT pipeline_id, table_id, state::text, metadata, prev, is_current"
            " FROM etl.replication_state ORDER BY id"
        ).fetchall()


def test_a_life_of_a_table(etl: Database) -> None:
    """The history is a chain, the id signed, and the position only goes forward."""
    store = store_of(etl)
    assert store.load().position is None
    store.begin(HERE, Lsn(0x100), [5])
    store.ready([5], Lsn(0x200))
    store.position(Lsn(0x150))
    signed = -5252815797640725217
    assert rows(etl) == [
        (signed, 5, "init", {"type": "init"}, None, False),
        (signed, 5, "data_sync", {"type": "data_sync"}, 1, False),
        (signed, 5, "finished_copy", {"type": "finished_copy"}, 2, False),
        (signed, 5, "sync_done", {"type": "sync_done", "lsn": "0/200"}, 3, False),
        (signed, 5, "ready", {"type": "ready"}, 4, True),
    ]
    state = store.load()
    assert (state.identity, state.position, state.copies) == (HERE, 0x200, {5: 1})
    assert state.tables == {5: StoredTable("ready")}
    store.close()


def test_rollback_forgets_what_it_leaves(etl: Database) -> None:
    """Case state_store_rollback of supabase/etl's tests."""
    store = store_of(etl)
    store.begin(HERE, Lsn(0x100), [5])
    store.rollback(5)
    assert [(row[2], row[5]) for row in rows(etl)] == [("init", True)]
    with pytest.raises(OperationError, match="no state to go back to"):
        store.rollback(5)
    store.close()


def test_pipelines_stay_apart(etl: Database) -> None:
    """Case multiple_pipelines_isolation of supabase/etl's tests."""
    first, second = store_of(etl), store_of(etl, 7)
    first.begin(HERE, Lsn(0x100), [5])
    second.begin(Identity("7", 1, names.apply_slot(7), "pub"), Lsn(0x300), [5])
    first.ready([5], Lsn(0x200))
    second.forget(5)
    assert first.load().tables == {5: StoredTable("ready")}
    assert second.load().tables == {}
    third = store_of(etl, 9)
    assert third.other_pipelines() == [BIG]
    for store in (first, second, third):
        store.close()


@pytest.mark.parametrize(
    ("metadata", "stored"),
    [
        ({"type": "sync_done", "lsn": "0/1a"}, StoredTable("sync_done", Lsn(0x1A))),
        ({"type": "finished_copy", "more": 1}, StoredTable("finished_copy")),
        (
            {
                "type": "errored",
                "reason": "r",
                "solution": None,
                "retry_policy": {"type": "timed_retry", "next_retry": "2026-05-01T05:42:15.123456789Z"},
            },
            StoredTable("errored", None, "r", datetime(2026, 5, 1, 5, 42, 15, 123456, UTC)),
        ),
        (
            {"type": "errored", "reason": "r", "retry_policy": {"type": "manual_retry"}},
            StoredTable("errored", None, "r"),
        ),
        ({"type": "errored", "reason": "r", "retry_policy": {"type": "no_retry"}}, StoredTable("errored", None, "r")),
    ],
)
def test_what_supabase_etl_has_left_is_read(etl: Database, metadata: dict[str, Any], stored: StoredTable) -> None:
    """Only the metadata counts, whatever the state column says.

    Case errored_state_with_different_retry_policies of supabase/etl's tests.
    """
    with etl.connect() as connection:
        connection.execute(
            "INSERT INTO etl.replication_state (pipeline_id, table_id, state, metadata, is_current)"
            " VALUES (%s, 5, 'init', %s, true)",
            [names.signed_id(BIG), json.dumps(metadata)],
        )
    store = store_of(etl)
    assert store.load().tables == {5: stored}
    store.close()


@pytest.mark.parametrize(
    "metadata",
    [
        "null",
        '{"type": "catchup", "lsn": "0/1"}',
        '{"type": "sync_done"}',
        '{"type": "sync_done", "lsn": "here"}',
        '{"type": "errored", "reason": "r", "retry_policy": {"type": "timed_retry", "next_retry": "soon"}}',
        '{"type": "errored", "reason": "r", "retry_policy": {"type": "timed_retry"}}',
    ],
)
def test_a_state_that_nobody_knows_is_an_error(etl: Database, metadata: str) -> None:
    with etl.connect() as connection:
        connection.execute(
            "INSERT INTO etl.replication_state (pipeline_id, table_id, state, metadata, is_current)"
            " VALUES (7, 5, 'init', %s, true)",
            [metadata],
        )
    store = store_of(etl, 7)
    with pytest.raises(OperationError, match="not understood"):
        store.load()
    store.close()


def test_without_migrations_it_says_what_to_run(database: Database) -> None:
    database.psql("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE t")
    finished = run_tail("pub", "--store", "postgres", dsn=database.dsn())
    assert finished.code == 1
    assert "pgrepl migrations apply" in finished.stderr


def test_two_pipelines_that_start_at_once_make_one_table(etl: Database) -> None:
    store = PostgresStore(conninfo.parse(etl.dsn(), "the test"), BIG)
    failures: list[Exception] = []

    def prepare() -> None:
        try:
            store.prepare()
        except Exception as error:
            failures.append(error)

    with etl.connect() as first, etl.connect() as other:
        with first.transaction():
            first.execute(f"DROP TABLE IF EXISTS etl.{PIPELINES}")
        with first.transaction():
            first.execute(CREATE_PIPELINES)
            second = threading.Thread(target=prepare)
            second.start()
            query = (
                "SELECT 1 FROM pg_stat_activity WHERE application_name = 'pgrepl state' AND wait_event_type = 'Lock'"
            )
            give_up = time.monotonic() + 30
            while other.execute(query).fetchone() is None:
                assert time.monotonic() < give_up, "the second one does not wait"
        second.join()
    store.close()
    assert failures == []


def test_another_checksum_is_refused(etl: Database) -> None:
    """With the command that says how to set it right; nothing is made before."""
    etl.psql("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE t")
    etl.psql("UPDATE etl._sqlx_migrations SET checksum = '\\x00' WHERE version = 20260415090000")
    refused = run_tail("pub", "--store", "postgres", dsn=etl.dsn())
    assert (refused.code, refused.stdout) == (1, "")
    assert "records another checksum for 20260415090000" in refused.stderr
    assert "'pgrepl doctor --store postgres --only etl.checksums'" in refused.stderr
    with etl.connect() as connection:
        assert connection.execute("SELECT 1 FROM pg_replication_slots WHERE database = %s", [etl.name]).fetchall() == []
    script = pgrepl("doctor", "--store", "postgres", "--only", "etl.checksums", "--fix-sql", "-d", etl.dsn()).stdout
    etl.psql(script)
    assert run_tail("pub", "--store", "postgres", "--until-lsn", "now", dsn=etl.dsn()).code == 0


def test_a_migration_of_a_newer_supabase_etl_is_no_hindrance(etl: Database) -> None:
    etl.psql("""
        CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE t;
        INSERT INTO etl._sqlx_migrations (version, description, success, checksum, execution_time)
        VALUES (20260511090000, 'replication progress', true, 'x', 1)
    """)
    assert run_tail("pub", "--store", "postgres", "--until-lsn", "now", dsn=etl.dsn()).code == 0


def test_who_may_not_read_the_tracker_is_told(etl: Database) -> None:
    etl.psql("""
        CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE t;
        CREATE ROLE plain LOGIN REPLICATION; GRANT USAGE ON SCHEMA etl TO plain
    """)
    refused = run_tail("pub", "--store", "postgres", dsn=etl.dsn("plain"))
    assert refused.code == 1
    assert "role plain may not read etl._sqlx_migrations" in refused.stderr
    assert 'GRANT SELECT ON etl._sqlx_migrations TO "plain"' in refused.stderr


def test_the_state_of_another_store_is_told_of(etl: Database) -> None:
    """Whoever begins with one store where another has state of the pipeline starts over, and is told so once."""
    etl.psql("""
        CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE t;
        CREATE TABLE faucet_state (key text PRIMARY KEY, value jsonb NOT NULL, updated_at timestamptz DEFAULT now())
    """)
    options = ["pub", "--until-lsn", "now"]
    over = "this run starts over"
    fresh = [run_tail(*options, "--store", store, dsn=etl.dsn()) for store in ("memory", "postgres", "postgres")]
    assert [over in finished.stderr for finished in fresh] == [False, False, False]
    with etl.connect() as connection:
        ((position, slot),) = connection.execute("SELECT position::text, slot_name FROM etl.pgrepl_pipelines")
    memory = run_tail(*options, dsn=etl.dsn())
    assert f"the postgres store has state of this pipeline, up to {position}; {over}" in memory.stderr
    assert over not in run_tail(*options, "--slot", "mine", dsn=etl.dsn()).stderr

    with etl.connect() as connection:
        connection.execute(
            "INSERT INTO faucet_state (key, value) VALUES (%s, %s)",
            [f"pgrepl::{slot}", json.dumps({"position": "0/AB", "tables": []})],
        )
    assert over not in run_tail(*options, "--store", "postgres", dsn=etl.dsn()).stderr
    etl.psql(
        "DELETE FROM etl.replication_state; DELETE FROM etl.pgrepl_pipelines;"
        f" SELECT pg_drop_replication_slot('{slot}')"
    )
    kept = run_tail(*options, "--store", "postgres", dsn=etl.dsn())
    assert kept.code == 0
    assert f"the bookmarks store has state of this pipeline, up to 0/AB; {over}" in kept.stderr


def test_tail_goes_on_where_it_stopped(etl: Database, tmp_path: Path) -> None:
    etl.psql("""
        CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t VALUES (1, 'a');
        CREATE PUBLICATION pub FOR TABLE t;
    """)
    output = tmp_path / "out.jsonl"
    options = ["pub", "--store", "postgres", "-o", str(output), "--until-lsn", "now"]
    assert run_tail(*options, dsn=etl.dsn()).code == 0
    etl.psql("INSERT INTO t VALUES (2, 'b'); CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late VALUES (9)")
    etl.psql("ALTER PUBLICATION pub ADD TABLE late")
    assert run_tail(*options, dsn=etl.dsn()).code == 0
    assert run_tail(*options, dsn=etl.dsn()).code == 0
    events = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted((event["op"], event["new"]["id"]) for event in events if "new" in event) == [
        ("insert", 2),
        ("read", 1),
        ("read", 9),
    ]
    shown = json.loads(pgrepl("state", "show", "--json", "-d", etl.dsn()).stdout)
    assert [(table["table"], table["state"]) for table in shown["tables"]] == [("late", "ready"), ("t", "ready")]
    with etl.connect() as connection:
        versions = connection.execute(
            "SELECT s.table_name, s.snapshot_id::text, c.column_name, c.column_type, c.ordinal_position,"
            " c.primary_key_ordinal_position"
            " FROM etl.table_schemas s JOIN etl.table_columns c ON c.table_schema_id = s.id"
            " WHERE table_name = 't' ORDER BY 5"
        ).fetchall()
    assert versions == [("t", "0/0", "id", "INT4", 1, 1), ("t", "0/0", "a", "TEXT", 2, None)]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()",
            "is gone",
        ),
        (
            "INSERT INTO t VALUES (3, 'x'); SELECT pg_replication_slot_advance(slot_name, pg_current_wal_flush_lsn())"
            " FROM pg_replication_slots WHERE database = current_database()",
            "beyond the stored position",
        ),
        ("UPDATE etl.pgrepl_pipelines SET system_identifier = '1'", "the state belongs to the server 1"),
        ("UPDATE etl.pgrepl_pipelines SET position = 'FFFF/0'", "beyond the server's WAL"),
    ],
    ids=["slot dropped", "slot advanced", "another server", "another history"],
)
def test_what_a_person_must_decide(etl: Database, spoil: str, message: str) -> None:
    """Exit code 5, and nothing made or skipped."""
    etl.psql("CREATE TABLE t (id int PRIMARY KEY, a text); CREATE PUBLICATION pub FOR TABLE t")
    options = ["pub", "--store", "postgres"]
    assert run_tail(*options, "--until-lsn", "now", dsn=etl.dsn()).code == 0
    etl.psql(spoil)
    before = rows(etl)
    finished = run_tail(*options, "--until-lsn", "now", dsn=etl.dsn())
    assert finished.code == 5
    assert message in finished.stderr
    assert finished.stdout == ""
    assert rows(etl) == before


def test_reset_makes_a_lost_slot_good(etl: Database) -> None:
    etl.psql(
        "CREATE TABLE t (id int PRIMARY KEY, a text); CREATE PUBLICATION pub FOR TABLE t; INSERT INTO t VALUES (1)"
    )
    options = ["pub", "--store", "postgres", "--until-lsn", "now"]
    assert run_tail(*options, dsn=etl.dsn()).code == 0
    etl.psql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()")
    assert run_tail(*options, dsn=etl.dsn()).code == 5
    assert pgrepl("state", "reset", "--all", "--yes", "-d", etl.dsn()).returncode == 0
    finished = run_tail(*options, dsn=etl.dsn())
    assert finished.code == 0, finished.stderr
    assert [event["op"] for event in finished.events] == ["snapshot_begin", "read", "snapshot_end"]


def test_state_is_not_written_beside_a_running_pipeline(etl: Database) -> None:
    etl.psql("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE t")
    with Tail("pub", "--store", "postgres", dsn=etl.dsn()) as tail:
        tail.until_op("snapshot_end")
        refused = pgrepl("state", "reset", "public.t", "--yes", "-d", etl.dsn())
        assert refused.returncode == 1
        assert "is active" in refused.stderr
        assert tail.stop().code == 143


def test_a_slot_that_is_there_is_read_and_left(database: Database) -> None:
    """With the memory store and --slot: from its confirmed position, each table copied, nothing made or dropped."""
    database.psql("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE t; INSERT INTO t VALUES (1)")
    missing = run_tail("pub", "--slot", "mine", dsn=database.dsn())
    assert (missing.code, missing.stdout) == (1, "")
    assert "slot mine does not exist" in missing.stderr
    with database.connect() as connection:
        connection.execute("SELECT pg_create_logical_replication_slot('mine', 'pgoutput')")
        connection.execute("INSERT INTO t VALUES (2)")
        first = run_tail("pub", "--slot", "mine", "--until-lsn", "now", dsn=database.dsn())
        connection.execute("INSERT INTO t VALUES (3)")
        second = run_tail("pub", "--slot", "mine", "--snapshot", "never", "--until-lsn", "now", dsn=database.dsn())
        left = connection.execute("SELECT slot_name FROM pg_replication_slots WHERE database = %s", [database.name])
        assert left.fetchall() == [("mine",)]
    assert (first.code, second.code) == (0, 0), first.stderr + second.stderr
    assert sorted(event["new"]["id"] for event in first.events if "new" in event) == [1, 2]
    assert [(event["op"], event["new"]["id"]) for event in second.events] == [("insert", 3)]


def test_without_a_snapshot_a_table_is_ready_at_once(etl: Database) -> None:
    etl.psql("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE t; INSERT INTO t VALUES (1)")
    options = ["pub", "--store", "postgres", "--until-lsn", "now"]
    first = run_tail(*options, "--snapshot", "never", dsn=etl.dsn())
    assert (first.code, first.stdout) == (0, ""), first.stderr
    etl.psql("INSERT INTO t VALUES (2)")
    finished = run_tail(*options, dsn=etl.dsn())
    assert [(event["op"], event["new"]["id"]) for event in finished.events] == [("insert", 2)]


def test_adopt_takes_the_state_for_this_servers(etl: Database) -> None:
    etl.psql("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE t")
    options = ["pub", "--store", "postgres", "--until-lsn", "now"]
    assert run_tail(*options, dsn=etl.dsn()).code == 0
    etl.psql("UPDATE etl.pgrepl_pipelines SET system_identifier = '1'")
    assert run_tail(*options, dsn=etl.dsn()).code == 5
    shown = pgrepl("state", "adopt", "--dry-run", "-d", etl.dsn())
    assert (shown.returncode, "from server 1, timeline 1, to server" in shown.stderr) == (0, True)
    assert run_tail(*options, dsn=etl.dsn()).code == 5
    assert pgrepl("state", "adopt", "--yes", "-d", etl.dsn()).returncode == 0
    assert run_tail(*options, dsn=etl.dsn()).code == 0


def test_a_pipeline_that_only_upstream_ran_can_be_reset(etl: Database) -> None:
    """There is no table of pgrepl's own then."""
    with etl.connect() as connection:
        connection.execute(
            "INSERT INTO etl.replication_state (pipeline_id, table_id, state, metadata, is_current)"
            """ VALUES (7, 5, 'ready', '{"type": "ready"}', true)"""
        )
    assert pgrepl("state", "reset", "--all", "--yes", "-d", etl.dsn()).returncode == 0
    assert [(row[0], row[2]) for row in rows(etl)] == [(7, "init")]
