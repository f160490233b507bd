"""Schema etl and the state in it: broken, mended as printed, and good again."""

from __future__ import annotations

from typing import Any

import pytest

from pgrepl import connection, migrations
from pgrepl.conninfo import parse
from pgrepl.doctor import Status
from pgrepl.names import pipeline_id, signed_id, table_sync_slot
from tests.command import eventually, pgrepl
from tests.doctor.conftest import examine, of
from tests.doctor.fixes import (
    ask,
    ask_about,
    commands_of,
    fresh_name,
    in_actions,
    is_silent,
    make_slot,
    reading,
    run_command,
    run_sql,
)
from tests.doctor.state import bookmark, state
from tests.servers.database import Database

BASE, STORAGE, MESSAGES = 20250827000000, 20260415090000, 20260415100000
IDS = ["live.schema", "etl.trigger", "etl.checksums", "etl.unknown_version"]


def migrate(database: Database, to: int | None = None) -> None:
    """Make schema etl as a superuser."""
    with connection.connect(parse(database.dsn(), "the test"), "the test") as conn:
        migrations.apply(conn, to=to)


def statuses(database: Database, **options: Any) -> dict[str, set[str]]:
    """How the checks of the schema end."""
    report = examine(database, store="postgres", only=IDS, **options)
    return {check_id: {str(finding.status) for finding in of(report, check_id)} for check_id in IDS}


def everything(status: str) -> dict[str, set[str]]:
    """All of them alike."""
    return {check_id: {status} for check_id in IDS}


def test_no_schema_is_needed_without_the_postgres_store(database18: Database) -> None:
    for store in ("memory", "bookmarks"):
        report = examine(database18, store=store, only=IDS)
        assert {finding.status for finding in report.findings} == {Status.SKIP}


def test_a_schema_that_is_not_there(database: Database) -> None:
    found = ask("live.schema", database, store="postgres")
    assert (found.status, found.object) == (Status.FAIL, "etl")
    assert statuses(database) == {
        "live.schema": {"fail"},
        "etl.trigger": {"skip"},
        "etl.checksums": {"skip"},
        "etl.unknown_version": {"skip"},
    }
    run_command(database, commands_of(found)[0])
    assert statuses(database) == everything("pass")


def test_a_schema_that_stopped_at_an_earlier_version(database: Database) -> None:
    migrate(database, STORAGE)
    found = ask_about("live.schema", str(MESSAGES), database, store="postgres")
    assert (found.status, found.evidence["level"]) == (Status.FAIL, STORAGE)
    assert ask("etl.trigger", database, store="postgres").status is Status.FAIL
    assert ask("etl.checksums", database, store="postgres").status is Status.PASS
    run_command(database, commands_of(found)[0])
    assert statuses(database) == everything("pass")


def test_what_is_there_and_not_recorded(database18: Database) -> None:
    migrate(database18)
    database18.psql("DROP TABLE etl._sqlx_migrations")
    report = examine(database18, store="postgres", only=["live.schema"])
    assert [finding.object for finding in of(report, "live.schema")] == [str(BASE), str(STORAGE), str(MESSAGES)]
    (command,) = {command for finding in of(report, "live.schema") for command in commands_of(finding)}
    assert command == "pgrepl migrations seed"
    run_command(database18, command)
    assert statuses(database18) == everything("pass")


def test_a_role_that_may_not_use_the_schema(database: Database) -> None:
    migrate(database)
    database.psql("CREATE ROLE cdc LOGIN REPLICATION")
    # Both as the role itself and seen by somebody else.
    unknown = ask("live.schema", database, store="postgres", user="cdc")
    assert unknown.status is Status.UNKNOWN
    report = examine(database, store="postgres", role="cdc", only=["live.schema"])
    missing = {finding.object: finding.evidence["missing"] for finding in of(report, "live.schema")}
    assert missing == {
        "SCHEMA etl": "USAGE, CREATE",
        "etl.replication_state": "SELECT, INSERT, UPDATE, DELETE",
        "etl.table_schemas": "SELECT, INSERT, UPDATE, DELETE",
        "etl.table_columns": "SELECT, INSERT, UPDATE, DELETE",
        "etl.destination_tables_metadata": "SELECT, INSERT, UPDATE, DELETE",
        "etl._sqlx_migrations": "SELECT",
        "FUNCTION etl.describe_table_identity(p_table oid)": "EXECUTE",
        "FUNCTION etl.describe_table_schema(p_table oid)": "EXECUTE",
    }
    database.psql(report.fix_sql())
    assert ask("live.schema", database, store="postgres", role="cdc").status is Status.PASS
    assert ask("live.schema", database, store="postgres", user="cdc").status is Status.PASS


def test_who_may_not_read_the_tracker_does_not_know(database18: Database) -> None:
    migrate(database18)
    database18.psql("CREATE ROLE onlooker LOGIN")
    assert statuses(database18, user="onlooker") == everything("unknown")
    run_sql(database18, ask("etl.checksums", database18, store="postgres", user="onlooker"))
    assert statuses(database18, user="onlooker") == {**everything("pass"), "live.schema": {"fail"}}


def test_an_event_trigger_that_is_gone(database: Database) -> None:
    migrate(database)
    database.psql("DROP EVENT TRIGGER supabase_etl_ddl_message_trigger")
    found = ask("etl.trigger", database, store="postgres")
    assert found.status is Status.FAIL
    # One finding is enough for one cause.
    assert ask("etl.checksums", database, store="postgres").status is Status.PASS
    run_sql(database, found)
    assert statuses(database) == everything("pass")
    # A disabled one is ddl.trigger's.
    database.psql("ALTER EVENT TRIGGER supabase_etl_ddl_message_trigger DISABLE")
    assert ask("etl.trigger", database, store="postgres").status is Status.PASS
    assert ask("ddl.trigger", database, store="postgres").status is Status.WARN


def test_another_checksum(database: Database) -> None:
    migrate(database)
    database.psql(f"UPDATE etl._sqlx_migrations SET checksum = '\\x00' WHERE version = {STORAGE}")
    found = ask_about("etl.checksums", str(STORAGE), database, store="postgres")
    assert (found.status, found.evidence["recorded_checksum"]) == (Status.FAIL, "00")
    run_sql(database, found)
    assert statuses(database) == everything("pass")


def test_another_checksum_and_other_objects(database18: Database) -> None:
    migrate(database18)
    database18.psql(
        f"UPDATE etl._sqlx_migrations SET checksum = '\\x00' WHERE version = {STORAGE};"
        "ALTER TABLE etl.destination_tables_metadata DROP COLUMN replication_mask"
    )
    found = ask_about("etl.checksums", str(STORAGE), database18, store="postgres")
    assert found.status is Status.FAIL
    assert "replication_mask is not there" in found.summary
    # Its exit code is 1: there is a difference.
    assert commands_of(found) == ["pgrepl migrations verify"]
    # Somebody puts it back as the file has it.
    database18.psql("ALTER TABLE etl.destination_tables_metadata ADD COLUMN replication_mask bytea NOT NULL")
    run_sql(database18, ask_about("etl.checksums", str(STORAGE), database18, store="postgres"))
    assert statuses(database18) == everything("pass")


def test_objects_that_are_gone(database18: Database) -> None:
    migrate(database18)
    database18.psql("DROP INDEX etl.uq_replication_state_current_true")
    found = ask_about("etl.checksums", str(BASE), database18, store="postgres")
    assert (found.status, found.evidence["state"]) == (Status.FAIL, "objects-missing")
    (command,) = commands_of(found)
    printed = pgrepl(*command.split()[1:])
    assert "uq_replication_state_current_true" in printed.stdout
    database18.psql(
        "CREATE UNIQUE INDEX uq_replication_state_current_true ON etl.replication_state (pipeline_id, table_id)"
        " WHERE is_current = true"
    )
    assert statuses(database18) == everything("pass")


def test_a_migration_that_failed(database18: Database) -> None:
    migrate(database18)
    database18.psql(f"UPDATE etl._sqlx_migrations SET success = false WHERE version = {MESSAGES}")
    found = ask_about("etl.checksums", str(MESSAGES), database18, store="postgres")
    assert (found.status, found.evidence["state"]) == (Status.FAIL, "failed")
    (statement,) = in_actions(found)
    database18.psql(statement)
    # What it made is there, and only has to be recorded.
    run_command(database18, commands_of(ask_about("live.schema", str(MESSAGES), database18, store="postgres"))[0])
    assert statuses(database18) == everything("pass")


def test_a_migration_of_another_etl(database18: Database) -> None:
    migrate(database18)
    database18.psql(
        "INSERT INTO etl._sqlx_migrations (version, description, success, checksum, execution_time)"
        " VALUES (20260511090000, 'replication progress', true, '\\x01', 1)"
    )
    found = ask("etl.unknown_version", database18, store="postgres")
    assert (found.status, found.object) == (Status.FAIL, "20260511090000")
    assert ask("etl.checksums", database18, store="postgres").status is Status.PASS
    (statement,) = in_actions(found)
    database18.psql(statement)
    assert statuses(database18) == everything("pass")


def own(database: Database) -> int:
    """The pipeline of a test's database."""
    return pipeline_id("localhost", database.name)


def test_a_table_that_stopped(database: Database) -> None:
    reason = "[SourceSchemaError] Primary key not found:\nTable 'public.t' has no primary key"
    details = {"reason": reason, "solution": "Add a primary key.", "retry_policy": {"type": "manual_retry"}}
    oid = state(database, "t", "errored", pipeline=own(database), **details)
    found = ask("state.errored", database, store="postgres")
    assert (found.status, found.object, found.evidence["oid"]) == (Status.FAIL, "public.t", oid)
    assert "Primary key not found: Table 'public.t' has no primary key" in found.summary
    assert found.fix[0].text == "mend the cause: Add a primary key."
    assert commands_of(found) == ["pgrepl state reset public.t --store postgres"]

    database.psql("CREATE ROLE onlooker LOGIN")
    unknown = ask("state.errored", database, store="postgres", user="onlooker")
    assert unknown.status is Status.UNKNOWN
    run_sql(database, unknown)
    assert ask("state.errored", database, store="postgres", user="onlooker").status is Status.FAIL
    run_command(database, commands_of(found)[0])
    assert ask("state.errored", database, store="postgres").status is Status.PASS


def test_a_table_of_another_pipeline_and_one_that_was_dropped(database18: Database) -> None:
    other = pipeline_id("elsewhere", database18.name)
    state(database18, "good", "ready", pipeline=own(database18))
    oid = state(database18, "odd.name", "errored", pipeline=other, reason="x")
    found = ask("state.errored", database18, store="postgres")
    assert (found.status, found.object) == (Status.WARN, "public.odd.name")
    assert commands_of(found) == [f"pgrepl state reset {oid} --store postgres --pipeline-id {other}"]
    database18.psql('DROP TABLE public."odd.name"')
    assert ask("state.errored", database18, store="postgres").object == str(oid)


def test_an_errored_table_of_a_bookmark(database18: Database) -> None:
    name = fresh_name()
    table = {"schema": "public", "table": "t", "oid": 16400, "state": "errored", "metadata": {"reason": "no key"}}
    bookmark(database18, name, "0/1", table)
    found = ask("state.errored", database18, store="bookmarks", slot=name)
    assert (found.status, found.summary) == (Status.FAIL, "public.t stopped: no key")
    assert commands_of(found) == [f"pgrepl state reset public.t --store bookmarks --slot {name}"]
    bookmark(database18, name, "0/1", {**table, "state": "init"})
    assert ask("state.errored", database18, store="bookmarks", slot=name).status is Status.PASS


@pytest.mark.parametrize(
    ("phase", "status"),
    [("errored", Status.WARN), ("ready", Status.WARN), ("sync_done", Status.WARN), ("data_sync", Status.INFO)],
)
def test_a_slot_that_is_left_from_a_copy(database: Database, phase: str, status: Status) -> None:
    oid = state(database, "t", phase, pipeline=own(database), reason="x", lsn="0/1")
    name = table_sync_slot(own(database), oid)
    make_slot(database, name)
    found = ask_about("state.leftover_slots", name, database, store="postgres")
    assert (found.status, found.evidence["state"]) == (status, phase)
    with reading(database, name):
        eventually(lambda: is_silent("state.leftover_slots", name, database))
    eventually(lambda: not is_silent("state.leftover_slots", name, database))
    # For a table that is still being copied the next start of the pipeline does this.
    command = commands_of(found)[0] if commands_of(found) else f"pgrepl slots drop {name}"
    run_command(database, command)
    assert is_silent("state.leftover_slots", name, database)


def test_a_slot_of_a_table_that_left_the_pipeline(database18: Database) -> None:
    state(database18, "t", "ready", pipeline=own(database18))
    name = table_sync_slot(own(database18), 99)
    make_slot(database18, name)
    found = ask_about("state.leftover_slots", name, database18, store="postgres")
    assert (found.status, found.evidence["state"]) == (Status.WARN, None)
    assert is_silent("slot.orphans", name, database18, store="postgres")


def test_whose_slot_it_is_may_not_be_seen(database18: Database) -> None:
    oid = state(database18, "t", "ready", pipeline=own(database18))
    database18.psql("CREATE ROLE onlooker LOGIN")
    assert ask("state.leftover_slots", database18, user="onlooker").status is Status.PASS
    make_slot(database18, table_sync_slot(own(database18), oid))
    found = ask("state.leftover_slots", database18, user="onlooker")
    assert found.status is Status.UNKNOWN
    run_sql(database18, found)
    assert ask("state.leftover_slots", database18, user="onlooker").status is Status.WARN


def test_metadata_counts_and_not_the_state_beside_it(database18: Database) -> None:
    state(database18, "t", "ready", pipeline=own(database18))
    database18.psql("UPDATE etl.replication_state SET state = 'errored'")
    assert ask("state.errored", database18, store="postgres").status is Status.PASS
    database18.psql("UPDATE etl.replication_state SET metadata = NULL")
    assert ask("state.errored", database18, store="postgres").status is Status.FAIL


def test_ids_above_2_63_are_negative_in_tables(database18: Database) -> None:
    big = 2**64 - 5
    assert signed_id(big) == -5
    state(database18, "t", "errored", pipeline=big, reason="x")
    assert ask("state.errored", database18, store="postgres").evidence["pipeline_id"] == big
