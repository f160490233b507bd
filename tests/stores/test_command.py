"""``pgrepl state`` as a command: which pipeline it means, what it prints, and what it says to who may not."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import pytest

from pgrepl import migrations
from pgrepl.names import apply_slot
from tests.command import pgrepl
from tests.servers.database import Database
from tests.tail.running import run_tail

OPTIONS = ["pub", "--store", "postgres", "--until-lsn", "now"]


@pytest.fixture
def etl(database18: Database) -> Database:
    """A database with the tables of the state, a table and a publication."""
    with database18.connect() as connection:
        migrations.apply(connection)
    database18.psql("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE t")
    return database18


def leave_states(database: Database, *pipelines: int) -> None:
    for pipeline in pipelines:
        database.psql(
            "INSERT INTO etl.replication_state (pipeline_id, table_id, state, metadata, is_current)"
            f""" VALUES ({pipeline}, 't'::regclass, 'ready', '{{"type": "ready"}}', true)"""
        )


def test_several_other_pipelines_are_listed(etl: Database) -> None:
    leave_states(etl, 7, 8)
    for words in (["show"], ["history", "t"], ["reset", "--all", "--yes"], ["release", "--yes"]):
        refused = pgrepl("state", *words, "-d", etl.dsn())
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "but 7, 8" in refused.stderr
        assert "choose one with --pipeline-id" in refused.stderr
    assert pgrepl("state", "show", "--pipeline-id", "8", "-d", etl.dsn()).returncode == 0
    assert pgrepl("state", "show", "--slot", apply_slot(7), "-d", etl.dsn()).returncode == 0


def test_the_only_other_pipeline_is_shown_but_not_gone_on_with(etl: Database) -> None:
    leave_states(etl, 7)
    shown = json.loads(pgrepl("state", "show", "--json", "-d", etl.dsn()).stdout)
    assert shown["pipeline_id"] == 7
    refused = run_tail(*OPTIONS, dsn=etl.dsn())
    assert refused.code == 2
    assert "no state of this pipeline, but of 7" in refused.stderr
    assert "--pipeline-id 7" in refused.stderr


def test_who_may_not_make_the_table_gets_the_script(etl: Database) -> None:
    """Run by the owner of schema etl, it is enough."""
    etl.psql("""
        CREATE ROLE "Reader" LOGIN REPLICATION; GRANT USAGE ON SCHEMA etl TO "Reader";
        GRANT SELECT ON ALL TABLES IN SCHEMA etl TO "Reader"; GRANT SELECT ON t TO "Reader";
        GRANT SELECT, INSERT, UPDATE, DELETE ON etl.replication_state, etl.table_schemas, etl.table_columns,
                                                etl.destination_tables_metadata TO "Reader"
    """)
    refused = run_tail(*OPTIONS, dsn=etl.dsn("Reader"))
    assert refused.code == 1
    assert "role Reader may not make the table etl.pgrepl_pipelines" in refused.stderr
    found = re.search(r"run as the owner of schema etl: (.*)", refused.stderr)
    assert found is not None
    assert "OWNER TO" not in found[1]
    etl.psql(found[1])
    finished = run_tail(*OPTIONS, dsn=etl.dsn("Reader"))
    assert finished.code == 0, finished.stderr


@pytest.mark.parametrize(
    "words", [["show"], ["reset", "--all", "--dry-run"], ["history", "t"], ["release", "--dry-run"]]
)
def test_who_may_not_read_the_state_is_told_whose_it_is(etl: Database, words: list[str]) -> None:
    etl.psql("CREATE ROLE cdc LOGIN; CREATE ROLE dba LOGIN; GRANT USAGE ON SCHEMA etl TO cdc")
    assert run_tail(*OPTIONS, dsn=etl.dsn()).code == 0
    etl.psql("ALTER TABLE etl.pgrepl_pipelines OWNER TO cdc")
    refused = pgrepl("state", *words, "-d", etl.dsn("dba"))
    assert refused.returncode == 1
    assert "schema etl of postgres, etl.pgrepl_pipelines of cdc, etl.destination" in refused.stderr
    assert "(SQLSTATE 42501)" in refused.stderr
    found = re.search(r"run as cdc and as postgres, or as a superuser: (.*)", refused.stderr)
    assert found is not None
    etl.psql(found[1])
    words = [word if word != "t" else "public.t" for word in words]
    done = pgrepl("state", *words, "-d", etl.dsn("dba"))
    assert done.returncode == 0, done.stderr


def test_owner_of_the_database_is_told_whose_the_table_is(etl: Database) -> None:
    """All else belongs to the connected role, as setup leaves it for one with CREATEROLE."""
    etl.psql(f"""
        CREATE ROLE cdc LOGIN; CREATE ROLE dba LOGIN CREATEROLE; ALTER DATABASE {etl.name} OWNER TO dba;
        ALTER SCHEMA etl OWNER TO dba; ALTER TABLE etl.replication_state OWNER TO dba;
        GRANT ALL ON ALL TABLES IN SCHEMA etl TO dba
    """)
    assert run_tail(*OPTIONS, dsn=etl.dsn()).code == 0
    etl.psql("ALTER TABLE etl.pgrepl_pipelines OWNER TO cdc")
    refused = pgrepl("state", "show", "-d", etl.dsn("dba"))
    assert refused.returncode == 1
    assert "privileges on etl.pgrepl_pipelines of cdc" in refused.stderr
    grant = 'GRANT SELECT, INSERT, UPDATE, DELETE ON etl.pgrepl_pipelines TO "dba"'
    assert f"hint: run as cdc, or as a superuser: {grant}\n" in refused.stderr


def test_times_are_written_as_those_of_slots_and_have_an_age(etl: Database) -> None:
    assert run_tail(*OPTIONS, dsn=etl.dsn()).code == 0
    etl.psql("UPDATE etl.replication_state SET created_at = created_at - interval '3 hours 20 minutes'")
    shown = json.loads(pgrepl("state", "show", "--json", "-d", etl.dsn()).stdout)
    history = json.loads(pgrepl("state", "history", "public.t", "--json", "-d", etl.dsn()).stdout)
    [slot] = [
        slot
        for slot in json.loads(pgrepl("slots", "list", "--json", "-d", etl.dsn()).stdout)
        if slot["name"] == shown["slot"]
    ]
    [table] = shown["tables"]
    form = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00")
    for text in (shown["updated_at"], table["since"], history[0]["created_at"], slot["inactive_since"]):
        assert form.fullmatch(text), text
    assert timedelta(hours=3, minutes=20).total_seconds() <= table["age_seconds"] < 4 * 3600
    assert 0 <= shown["age_seconds"] < 1200
    assert datetime.now(UTC) - datetime.fromisoformat(table["since"]) > timedelta(hours=3)
    drawn = pgrepl("state", "show", "-d", etl.dsn()).stdout
    assert f"position {shown['position']}, stored" in drawn
    assert "3 h 2" in drawn
    assert re.sub(r"\.\d+", "", table["since"]) in drawn


def test_what_was_written_is_a_document(etl: Database) -> None:
    """A dry run gives the same one, and changes nothing."""
    assert run_tail(*OPTIONS, dsn=etl.dsn()).code == 0
    oid = json.loads(pgrepl("state", "show", "--json", "-d", etl.dsn()).stdout)["tables"][0]["oid"]
    before = pgrepl("state", "history", "public.t", "--json", "-d", etl.dsn()).stdout
    table = {"schema": "public", "table": "t", "oid": oid}
    for words, changes in (
        (["rollback", "public.t"], [table | {"from": "ready", "to": "sync_done"}]),
        (["reset", "public.t"], [table | {"from": "sync_done", "to": "init"}]),
    ):
        dry_run = pgrepl("state", *words, "--dry-run", "--json", "-d", etl.dsn())
        planned = json.loads(dry_run.stdout)
        assert "nothing is written; it would be: " in dry_run.stderr
        if words[0] == "rollback":
            assert pgrepl("state", "history", "public.t", "--json", "-d", etl.dsn()).stdout == before
        done = json.loads(pgrepl("state", *words, "--yes", "--json", "-d", etl.dsn()).stdout)
        assert (planned["dry_run"], done["dry_run"]) == (True, False)
        assert done["action"] == words[0]
        assert planned["tables"] == done["tables"] == changes
    assert pgrepl("state", "reset", "public.t", "--yes", "-d", etl.dsn()).stdout == ""
