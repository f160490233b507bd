"""Recording what is there, and the refusals."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pgrepl import migrations
from pgrepl.catalog.etl_manifest import MIGRATIONS
from tests.migrations.conftest import Command
from tests.migrations.etl import BASE, MESSAGES, STORAGE, VERSIONS, connect, everything, expected_shape, shape, tracker
from tests.servers.database import Database

PUBLISHED = [(m.version, m.description, True, m.checksum, 0) for m in MIGRATIONS]


@pytest.fixture
def unrecorded(migrated18: Database) -> Database:
    """All objects and no tracker, as after running the printed SQL."""
    migrated18.psql("DROP TABLE etl._sqlx_migrations")
    return migrated18


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Files of another revision, beside things that are no migrations."""
    files = tmp_path / "files"
    files.mkdir()
    for version in VERSIONS:
        (files / f"{version}_some_name.sql").write_text(f"-- {version}\n", encoding="utf-8")
    (files / "README.md").write_text("read me", encoding="utf-8")
    return files


def test_the_published_checksums_are_recorded(database: Database, command: Command) -> None:
    database.psql(migrations.sql())
    assert command(database, "status").states == ["missing"] * 3
    outcome = command(database, "seed", "--checksums")
    assert outcome.code == 0, outcome.err
    assert outcome.states == ["seeded"] * 3
    assert outcome.document["done"] == list(VERSIONS)
    assert tracker(database) == PUBLISHED
    assert shape(database) == expected_shape(MESSAGES)


def test_what_is_recorded_stays(migrated18: Database, command: Command) -> None:
    migrated18.psql("DELETE FROM etl._sqlx_migrations WHERE version = 20260415100000")
    before = tracker(migrated18)
    assert command(migrated18, "seed").document["done"] == [MESSAGES]
    assert tracker(migrated18)[:2] == before
    assert tracker(migrated18)[2] == PUBLISHED[2]
    whole = everything(migrated18)
    assert command(migrated18, "seed", "--checksums", "pinned").document["done"] == []
    assert everything(migrated18) == whole


def test_a_dry_run_in_psql_gives_the_same(unrecorded: Database, command: Command) -> None:
    before = everything(unrecorded)
    outcome = command(unrecorded, "seed", "--dry-run", as_json=False)
    assert everything(unrecorded) == before
    unrecorded.psql(outcome.out)
    assert tracker(unrecorded) == PUBLISHED
    assert command(unrecorded, "seed", "--dry-run", as_json=False).out == "-- nothing to do\n"


@pytest.mark.parametrize(
    ("damage", "missing"),
    [
        ("DROP EVENT TRIGGER supabase_etl_ddl_message_trigger", "event trigger supabase_etl_ddl_message_trigger"),
        ("ALTER EVENT TRIGGER supabase_etl_ddl_message_trigger DISABLE", "disabled"),
        ("ALTER FUNCTION etl.emit_schema_change_messages() SECURITY INVOKER", "emit_schema_change_messages"),
        ("DROP FUNCTION etl.describe_table_schema(oid)", "describe_table_schema"),
        ("DROP TABLE etl.destination_tables_metadata", "destination_tables_metadata"),
        ("DROP INDEX etl.uq_replication_state_current_true", "uq_replication_state_current_true"),
        ("ALTER TABLE etl.table_columns DROP primary_key_ordinal_position", "primary_key_ordinal_position"),
        ("ALTER TABLE etl.replication_state ALTER metadata SET NOT NULL", "metadata is jsonb NOT NULL"),
        ("ALTER TYPE etl.table_state RENAME VALUE 'ready' TO 'prepared'", "prepared"),
        ("ALTER TABLE etl.table_columns DROP CONSTRAINT table_columns_table_schema_id_fkey", "schema_id_fkey"),
    ],
)
def test_nothing_is_recorded_while_something_is_missing(
    unrecorded: Database, command: Command, damage: str, missing: str
) -> None:
    unrecorded.psql(damage)
    before = everything(unrecorded)
    outcome = command(unrecorded, "seed")
    assert outcome.code == 1
    assert missing in outcome.err
    assert everything(unrecorded) == before
    assert command(unrecorded, "seed", "--dry-run").code == 1


def test_more_than_is_needed_is_no_obstacle(unrecorded: Database, command: Command) -> None:
    unrecorded.psql("""
        CREATE TABLE etl.pgrepl_pipelines (id int PRIMARY KEY); CREATE INDEX ON etl.table_schemas (table_name);
        COMMENT ON FUNCTION etl.describe_table_schema(oid) IS NULL;
        GRANT EXECUTE ON FUNCTION etl.describe_table_schema(oid) TO PUBLIC;
        ALTER EVENT TRIGGER supabase_etl_ddl_message_trigger ENABLE ALWAYS
    """)
    assert command(unrecorded, "seed").code == 0


@pytest.mark.parametrize("version", [None, BASE, STORAGE])
def test_a_database_on_the_way_is_refused(database18: Database, command: Command, version: int | None) -> None:
    if version is not None:
        with connect(database18) as conn:
            migrations.apply(conn, to=version)
        database18.psql("DROP TABLE etl._sqlx_migrations")
    before = everything(database18)
    outcome = command(database18, "seed")
    assert outcome.code == 1
    assert "pgrepl migrations" in outcome.err
    assert everything(database18) == before


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE etl._sqlx_migrations SET checksum = '\\x00' WHERE version = 20260415090000",
        "UPDATE etl._sqlx_migrations SET success = false WHERE version = 20260415090000",
        "INSERT INTO etl._sqlx_migrations VALUES (20260511090000, 'replication progress', now(), true, '\\x00', 1)",
    ],
)
def test_a_record_that_does_not_fit_is_never_overwritten(migrated18: Database, command: Command, damage: str) -> None:
    migrated18.psql("DELETE FROM etl._sqlx_migrations WHERE version = 20260415100000;" + damage)
    before = everything(migrated18)
    for name in ("seed", "apply"):
        outcome = command(migrated18, name)
        assert outcome.code == 1
        assert "recorded with another checksum" in outcome.err or "records version" in outcome.err
    assert everything(migrated18) == before


def test_files_of_another_revision_are_refused_unless_accepted(
    unrecorded: Database, command: Command, directory: Path
) -> None:
    before = everything(unrecorded)
    outcome = command(unrecorded, "seed", "--checksums", str(directory))
    assert outcome.code == 1
    assert "--accept-revision" in outcome.err
    assert everything(unrecorded) == before
    accepted = command(unrecorded, "seed", "--checksums", str(directory), "--accept-revision")
    assert accepted.code == 0
    assert accepted.states == ["checksum-mismatch"] * 3
    assert [row[3] for row in tracker(unrecorded)] == [
        hashlib.sha384(f"-- {version}\n".encode()).hexdigest() for version in VERSIONS
    ]


def test_a_set_of_other_versions_is_refused_in_any_case(
    unrecorded: Database, command: Command, directory: Path
) -> None:
    (directory / "20260511090000_replication_progress.sql").write_text("--", encoding="utf-8")
    outcome = command(unrecorded, "seed", "--checksums", str(directory), "--accept-revision")
    assert (outcome.code, "20260511090000" in outcome.err) == (1, True)
    (directory / "20260511090000_replication_progress.sql").unlink()
    (directory / f"{STORAGE}_some_name.sql").unlink()
    outcome = command(unrecorded, "seed", "--checksums", str(directory), "--accept-revision")
    assert (outcome.code, f"no file of version {STORAGE}" in outcome.err) == (1, True)
    assert "_sqlx_migrations" not in everything(unrecorded)


def test_a_directory_that_is_none_is_an_input_error(database18: Database, command: Command, tmp_path: Path) -> None:
    assert command(database18, "seed", "--checksums", str(tmp_path / "nowhere")).code == 2
    assert command(database18, "verify", str(tmp_path)).code == 2
    assert command(database18, "seed", "--accept-revision").code == 2
    (tmp_path / "1_a.sql").touch()
    (tmp_path / "1_b.sql").touch()
    assert command(database18, "verify", str(tmp_path)).code == 2


def test_a_role_that_may_not_write_the_tracker_changes_nothing(unrecorded: Database, command: Command) -> None:
    unrecorded.psql("CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA etl TO app")
    outcome = command(unrecorded, "seed", user="app")
    assert outcome.code == 1
    assert "etl._sqlx_migrations cannot be written, nothing was changed" in outcome.err
    assert "_sqlx_migrations" not in everything(unrecorded)
