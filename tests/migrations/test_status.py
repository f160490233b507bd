"""The states, what verify finds, and that looking changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgrepl import migrations
from pgrepl.catalog.etl_manifest import MIGRATIONS
from tests.migrations.conftest import Command
from tests.migrations.etl import BASE, MESSAGES, STORAGE, VERSIONS, connect, everything
from tests.servers.database import Database

# Rows as a pipeline with an id above 2^63 leaves them: a table's whole life with a schema change, one that failed.
PIPELINE = """
    CREATE TABLE public.orders (id int PRIMARY KEY, note text);
    INSERT INTO etl.replication_state (pipeline_id, table_id, state, metadata, prev, is_current) VALUES
        (-5252815797640725217, 'public.orders'::regclass, 'init', '{"type": "init"}', NULL, false),
        (-5252815797640725217, 'public.orders'::regclass, 'data_sync', '{"type": "data_sync"}', 1, false),
        (-5252815797640725217, 'public.orders'::regclass, 'finished_copy', '{"type": "finished_copy"}', 2, false),
        (-5252815797640725217, 'public.orders'::regclass, 'sync_done', '{"type": "sync_done", "lsn": "0/2571FE0"}', 3,
         false),
        (-5252815797640725217, 'public.orders'::regclass, 'ready', '{"type": "ready"}', 4, true),
        (-5252815797640725217, 16999, 'errored', '{"type": "errored", "reason": "[SourceSchemaError] no key",
         "solution": null, "retry_policy": {"type": "manual_retry"}}', NULL, true);
    INSERT INTO etl.table_schemas (pipeline_id, table_id, schema_name, table_name, snapshot_id) VALUES
        (-5252815797640725217, 'public.orders'::regclass, 'public', 'orders', '0/0'),
        (-5252815797640725217, 'public.orders'::regclass, 'public', 'orders', '0/2571FE0');
    INSERT INTO etl.table_columns (table_schema_id, column_name, column_type, type_modifier, nullable,
                                   ordinal_position, primary_key_ordinal_position)
    VALUES (1, 'id', 'INT4', -1, false, 1, 1), (2, 'id', 'INT4', -1, false, 1, 1),
           (2, 'note', 'TEXT', -1, true, 2, NULL);
    INSERT INTO etl.destination_tables_metadata
        (pipeline_id, table_id, destination_table_id, snapshot_id, schema_status, replication_mask)
    VALUES (-5252815797640725217, 'public.orders'::regclass, 'public_orders', '0/2571FE0', 'applied', '\\x0101');
"""


def test_an_untouched_database_lacks_all(database: Database, command: Command) -> None:
    outcome = command(database, "status")
    assert outcome.code == 1
    assert outcome.document == {
        "revision": "ce88ba7",
        "migrations": [
            {
                "version": m.version,
                "description": m.description,
                "expected_checksum": m.checksum,
                "recorded_checksum": None,
                "state": "missing",
            }
            for m in MIGRATIONS
        ],
    }


def test_a_pipelines_state_is_left_untouched_by_everything(migrated: Database, command: Command) -> None:
    migrated.psql(PIPELINE)
    # As the pipeline itself recorded them: with its own times, one of them cut off by a crash.
    migrated.psql(
        "UPDATE etl._sqlx_migrations SET execution_time = 5359744;"
        "UPDATE etl._sqlx_migrations SET execution_time = -1, description = 'x' WHERE version = 20260415100000"
    )
    before = everything(migrated)
    for arguments in (["status"], ["apply"], ["apply", "--dry-run"], ["seed"], ["seed", "--dry-run"], ["verify"]):
        outcome = command(migrated, *arguments)
        assert outcome.code == 0, outcome.err
        assert outcome.states == ["applied"] * 3
    assert everything(migrated) == before


@pytest.mark.parametrize(
    ("change", "states", "advice"),
    [
        (
            "DELETE FROM etl._sqlx_migrations WHERE version = 20260415090000",
            ["applied", "missing", "applied"],
            "migrations seed",
        ),
        ("UPDATE etl._sqlx_migrations SET execution_time = 0", ["seeded"] * 3, ""),
        (
            "UPDATE etl._sqlx_migrations SET checksum = '\\x12' WHERE version = 20250827000000",
            ["checksum-mismatch", "applied", "applied"],
            "migrations verify",
        ),
        (
            "DROP EVENT TRIGGER supabase_etl_ddl_message_trigger",
            ["applied", "applied", "objects-missing"],
            "migrations verify",
        ),
        ("DROP INDEX etl.idx_table_schemas_pipeline_table_snapshot_id", ["applied", "objects-missing", "applied"], ""),
        ("DROP TABLE etl.replication_state", ["objects-missing", "applied", "applied"], ""),
        (
            "INSERT INTO etl._sqlx_migrations VALUES (20260511090000, 'replication progress', now(), true, '\\x1f', 1)",
            ["applied", "applied", "applied", "unknown"],
            "of another revision",
        ),
        (
            "UPDATE etl._sqlx_migrations SET success = false WHERE version = 20260415100000",
            ["applied", "applied", "missing"],
            "recorded as failed",
        ),
        ("DROP TABLE etl._sqlx_migrations", ["missing"] * 3, "migrations seed"),
    ],
)
def test_states(migrated18: Database, command: Command, change: str, states: list[str], advice: str) -> None:
    migrated18.psql(change)
    outcome = command(migrated18, "status")
    assert outcome.states == states
    assert advice in outcome.err
    assert outcome.code == (0 if states == ["seeded"] * 3 else 1)
    if "unknown" in states:
        assert outcome.document["migrations"][3] == {
            "version": 20260511090000,
            "description": "replication progress",
            "expected_checksum": None,
            "recorded_checksum": "1f",
            "state": "unknown",
        }


def test_a_version_that_lost_an_object_is_not_built_on(database18: Database, command: Command) -> None:
    with connect(database18) as conn:
        migrations.apply(conn, to=BASE)
    database18.psql("DROP INDEX etl.uq_replication_state_current_true")
    assert command(database18, "status").states == ["objects-missing", "missing", "missing"]
    before = everything(database18)
    outcome = command(database18, "apply")
    assert outcome.code == 1
    assert "uq_replication_state_current_true is not there" in outcome.err
    assert everything(database18) == before


def test_one_who_may_not_read_the_tracker_is_told_so(migrated18: Database, command: Command) -> None:
    migrated18.psql("CREATE ROLE app LOGIN")
    for name in ("status", "apply", "seed", "verify"):
        outcome = command(migrated18, name, user="app")
        assert outcome.code == 1
        assert "SELECT on etl._sqlx_migrations" in outcome.err


def test_the_table_shows_what_differs(migrated18: Database, command: Command) -> None:
    migrated18.psql("UPDATE etl._sqlx_migrations SET checksum = '\\x12' WHERE version = 20250827000000")
    out = command(migrated18, "status", as_json=False).out
    first, *others = (m.checksum for m in MIGRATIONS)
    assert "recorded 12\n" in "".join(line.rstrip() + "\n" for line in out.splitlines())
    assert f"expected {first}" in out
    assert all(checksum in out for checksum in others)


def test_verify_finds_every_kind_of_difference(migrated18: Database, command: Command, tmp_path: Path) -> None:
    assert (command(migrated18, "verify").code, command(migrated18, "verify").document["differences"]) == (0, [])
    migrated18.psql("""
        UPDATE etl._sqlx_migrations SET checksum = '\\x12' WHERE version = 20250827000000;
        ALTER TABLE etl.table_columns DROP primary_key_ordinal_position
    """)
    (tmp_path / f"{BASE}_base.sql").write_text("other", encoding="utf-8")
    (tmp_path / f"{MESSAGES + 1}_more.sql").write_text("more", encoding="utf-8")
    outcome = command(migrated18, "verify", str(tmp_path))
    assert outcome.code == 1
    found = [(d["version"], d["subject"], d["object"]) for d in outcome.document["differences"]]
    assert found == [
        (BASE, "record", None),
        (BASE, "file", None),
        (STORAGE, "file", None),
        (MESSAGES, "file", None),
        (MESSAGES + 1, "file", None),
        (STORAGE, "object", "column etl.table_columns.primary_key_ordinal_position"),
    ]
    assert outcome.document["differences"][0]["found"] == "12"
    assert "primary_key_ordinal_position" in command(migrated18, "verify", as_json=False).out


def test_what_a_pipelines_migrator_does_at_its_start_succeeds(migrated: Database) -> None:
    """As a role with no more than it needs; both CREATEs are checked although nothing is made."""
    migrated.psql(f"""
        CREATE ROLE pipeline LOGIN;
        GRANT CREATE ON DATABASE {migrated.name} TO pipeline;
        GRANT USAGE, CREATE ON SCHEMA etl TO pipeline;
        GRANT SELECT ON etl._sqlx_migrations TO pipeline;
    """)
    with migrated.connect("pipeline") as conn:
        conn.execute("SET client_min_messages TO warning")
        conn.execute("CREATE SCHEMA IF NOT EXISTS etl")
        conn.execute("SET search_path TO etl")
        conn.execute("SELECT pg_advisory_lock(%s)", [migrations.lock_key(migrated.name)])
        conn.execute(
            "CREATE TABLE IF NOT EXISTS _sqlx_migrations (version bigint PRIMARY KEY, description text NOT NULL,"
            " installed_on timestamptz NOT NULL DEFAULT now(), success boolean NOT NULL, checksum bytea NOT NULL,"
            " execution_time bigint NOT NULL)"
        )
        failed = conn.execute("SELECT version FROM _sqlx_migrations WHERE success = false ORDER BY version LIMIT 1")
        assert failed.fetchall() == []
        recorded = conn.execute("SELECT version, checksum FROM _sqlx_migrations ORDER BY version").fetchall()
        assert recorded == [(m.version, bytes.fromhex(m.checksum)) for m in MIGRATIONS]
        conn.execute("SELECT pg_advisory_unlock(%s)", [migrations.lock_key(migrated.name)])
    assert [version for version, _ in recorded] == list(VERSIONS)
