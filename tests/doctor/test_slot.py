"""The slot that is to be used: made to fail each check on a real server, mended as printed, and good again."""

from __future__ import annotations

import json

import pytest

from pgrepl.doctor import Status
from pgrepl.lsn import Lsn
from pgrepl.names import apply_slot, pipeline_id, signed_id
from tests.command import eventually
from tests.doctor.conftest import examine, of, one
from tests.doctor.fixes import (
    ask,
    commands_of,
    fresh_name,
    in_actions,
    make_slot,
    reading,
    run_command,
    run_sql,
    sql_of,
)
from tests.doctor.state import bookmark, pipelines_row, state, state_table
from tests.servers.database import Database, fresh_database
from tests.servers.server import Server


@pytest.fixture
def name() -> str:
    """A name for a slot."""
    return fresh_name()


def own_id(database: Database) -> int:
    """The pipeline of a test's database, which is reached through a socket."""
    return pipeline_id("localhost", database.name)


def own_slot(database: Database) -> str:
    """The apply slot of that pipeline."""
    return apply_slot(own_id(database))


def test_the_memory_store_needs_no_slot_and_another_store_gets_one(database18: Database) -> None:
    report = examine(database18)
    assert one(report, "slot.exists").status is Status.SKIP
    assert one(report, "slot.database").status is Status.SKIP
    assert report.slot is None

    report = examine(database18, store="postgres")
    found = one(report, "slot.exists")
    assert (found.status, found.object) == (Status.INFO, own_slot(database18))
    assert one(report, "slot.database").status is Status.SKIP
    assert report.slot == own_slot(database18)


def test_a_slot_of_the_pipeline_is_looked_at_whatever_the_store(database18: Database) -> None:
    make_slot(database18, own_slot(database18))
    for store in ("memory", "postgres", "bookmarks"):
        report = examine(database18, store=store)
        assert one(report, "slot.exists").status is Status.PASS
        assert report.slot == own_slot(database18)


def test_a_pipeline_that_calls_the_host_by_another_name_is_taken_when_it_is_the_only_one(database18: Database) -> None:
    other = pipeline_id("db1.example.com", database18.name)
    state(database18, "t", "ready", pipeline=other)
    assert examine(database18, store="postgres").slot == apply_slot(other)
    state(database18, "u", "ready", pipeline=own_id(database18))
    assert examine(database18, store="postgres").slot == own_slot(database18)


def test_a_named_slot_that_is_not_there_yet(database: Database, name: str) -> None:
    database.psql('CREATE TABLE t (a int PRIMARY KEY); CREATE PUBLICATION "A pub" FOR TABLE t')
    found = ask("slot.exists", database, "A pub", slot=name)
    assert found.status is Status.INFO
    (command,) = commands_of(found)
    assert command == f"pgrepl slots create {name} --publication 'A pub'"
    # What the command does.
    make_slot(database, name)
    assert ask("slot.exists", database, "A pub", slot=name).status is Status.PASS


def test_a_slot_that_is_gone_while_its_state_is_there(database: Database) -> None:
    state(database, "t", "ready", pipeline=own_id(database))
    pipelines_row(database, own_id(database), own_slot(database), "0/1")
    found = ask("slot.exists", database, store="postgres")
    assert (found.status, found.object) == (Status.FAIL, own_slot(database))
    assert found.evidence["saved_tables"] == ["public.t"]
    assert commands_of(found) == ["pgrepl state reset --all --store postgres"]
    assert ask("slot.valid", database, store="postgres").status is not Status.FAIL

    # Who may not read the state cannot know whether the slot should be there.
    database.psql("CREATE ROLE onlooker LOGIN")
    unknown = ask("slot.exists", database, store="postgres", user="onlooker")
    assert unknown.status is Status.UNKNOWN
    run_sql(database, unknown)
    assert ask("slot.exists", database, store="postgres", user="onlooker").status is Status.FAIL

    run_command(database, commands_of(found)[0])
    assert ask("slot.exists", database, store="postgres").status is Status.INFO


def test_a_bookmark_of_a_slot_that_is_gone(database18: Database, name: str) -> None:
    bookmark(database18, name, "0/1000000")
    found = ask("slot.exists", database18, store="bookmarks", slot=name)
    assert found.status is Status.FAIL
    assert commands_of(found) == [f"pgrepl state reset --all --store bookmarks --slot {name}"]


def test_a_physical_slot_and_a_temporary_one(database: Database, name: str) -> None:
    with database.connect() as conn:
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput', true)", [name])
        found = ask("slot.exists", database, slot=name)
        assert found.status is Status.FAIL
        assert "temporary" in found.summary
        conn.execute("SELECT pg_create_physical_replication_slot(%s)", [f"{name}_p"])
        try:
            found = ask("slot.exists", database, slot=f"{name}_p")
        finally:
            conn.execute("SELECT pg_drop_replication_slot(%s)", [f"{name}_p"])
    assert found.status is Status.FAIL
    assert "physical" in found.summary


def test_a_slot_of_another_database(database: Database, name: str) -> None:
    with fresh_database(database.server) as other:
        make_slot(other, name)
        found = ask("slot.database", database, slot=name)
        assert (found.status, found.evidence["slot_database"]) == (Status.FAIL, other.name)
        assert f"connect to database {other.name}" in found.fix[0].text
        assert ask("slot.database", other, slot=name).status is Status.PASS


def test_another_plugin(server17: Server, name: str) -> None:
    # The one server here that comes with another plugin.
    with fresh_database(server17) as database:
        make_slot(database, name, "test_decoding")
        found = ask("slot.plugin", database, slot=name)
        assert (found.status, found.evidence) == (Status.FAIL, {"plugin": "test_decoding"})
        run_command(database, commands_of(found)[0])
        make_slot(database, name)
        assert ask("slot.plugin", database, slot=name).status is Status.PASS


def test_who_reads_it(database: Database, name: str) -> None:
    make_slot(database, name)
    assert ask("slot.holder", database, slot=name).status is Status.PASS
    database.psql("CREATE ROLE onlooker LOGIN")
    with reading(database, name) as walsender:
        found = ask("slot.holder", database, slot=name)
        assert (found.status, found.evidence["pid"]) == (Status.INFO, walsender.pid)
        assert "somebody" in found.summary
        seen = ask("slot.holder", database, slot=name, user="onlooker")
        assert (seen.status, seen.evidence["pid"]) == (Status.INFO, walsender.pid)
        (statement,) = in_actions(found)
        database.psql(statement)
    eventually(lambda: ask("slot.holder", database, slot=name).status is Status.PASS)


def test_two_phase(database: Database, name: str) -> None:
    make_slot(database, name, two_phase=True)
    assert ask("slot.two_phase", database, slot=name).status is Status.INFO
    found = ask("slot.two_phase", database, slot=name, store="postgres")
    assert found.status is Status.WARN
    run_command(database, commands_of(found)[0])
    if database.server.version < 18:
        make_slot(database, name)
    assert ask("slot.two_phase", database, slot=name, store="postgres").status is Status.PASS


def position_of(database: Database, name: str) -> Lsn:
    """Where a slot stands."""
    with database.connect() as conn:
        row = conn.execute("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = %s", [name])
        return Lsn.parse(str(row.fetchall()[0][0]))


@pytest.mark.parametrize("store", ["postgres", "bookmarks"])
def test_a_slot_past_the_stored_position(database: Database, store: str) -> None:
    database.psql("CREATE TABLE s (a int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE s")
    name, pipeline = own_slot(database), own_id(database)
    make_slot(database, name)
    here = position_of(database, name)

    def store_position(lsn: int) -> None:
        if store == "postgres":
            pipelines_row(database, pipeline, name, str(Lsn(lsn)))
        else:
            bookmark(database, name, str(Lsn(lsn)))

    assert ask("slot.state_match", database, "p", store=store).status is Status.SKIP

    store_position(here - 4096)
    found = ask("slot.state_match", database, "p", store=store)
    assert (found.status, found.evidence["gap_bytes"]) == (Status.FAIL, 4096)
    assert "4.0 kB past the stored position" in found.summary
    assert commands_of(found)[0] == f"pgrepl state reset --all --store {store}"
    assert commands_of(found)[1] == f"pgrepl tail p --store {store} --accept-slot-position"

    # That far another tool came that reads the position as one further.
    store_position(here - 1)
    found = ask("slot.state_match", database, "p", store=store)
    assert found.status is Status.FAIL
    assert "one byte past" in found.summary

    # What --accept-slot-position stores.
    store_position(here)
    assert ask("slot.state_match", database, "p", store=store).status is Status.PASS
    database.psql("INSERT INTO s VALUES (1); CHECKPOINT")
    with database.connect() as conn:
        (end,) = conn.execute("SELECT pg_current_wal_flush_lsn()::text").fetchall()[0]
    store_position(Lsn.parse(end))
    found = ask("slot.state_match", database, "p", store=store)
    assert found.status is Status.PASS
    assert "before the stored position" in found.summary

    store_position(Lsn.parse(end) + (1 << 40))
    found = ask("slot.state_match", database, "p", store=store)
    assert found.status is Status.FAIL
    assert "beyond the end" in found.summary


def test_a_table_that_is_done_ahead_of_the_slot(database18: Database) -> None:
    name, pipeline = own_slot(database18), own_id(database18)
    make_slot(database18, name)
    here = position_of(database18, name)
    state(database18, "t", "sync_done", pipeline=pipeline, lsn=str(Lsn(here + 100)))
    found = ask("slot.state_match", database18, store="postgres")
    assert (found.status, found.object) == (Status.WARN, "public.t")
    assert commands_of(found) == ["pgrepl state reset public.t --store postgres"]
    # One that the slot has passed is well.
    state(database18, "t", "sync_done", pipeline=pipeline, lsn=str(here))
    assert ask("slot.state_match", database18, store="postgres").status is Status.SKIP


def test_positions_that_may_not_be_read(database18: Database) -> None:
    name = own_slot(database18)
    make_slot(database18, name)
    pipelines_row(database18, own_id(database18), name, "0/1")
    database18.psql("CREATE ROLE onlooker LOGIN")
    found = ask("slot.state_match", database18, store="postgres", user="onlooker")
    assert found.status is Status.UNKNOWN
    run_sql(database18, found)
    assert ask("slot.state_match", database18, store="postgres", user="onlooker").status is Status.FAIL


def test_the_progress_of_a_newer_etl_counts_as_a_position(database18: Database) -> None:
    # Recorded: the columns of the table with which a later supabase/etl keeps its position.
    make_slot(database18, own_slot(database18))
    state_table(database18)
    database18.psql(
        "CREATE TYPE etl.worker_type AS ENUM ('apply', 'table_sync');"
        "CREATE TABLE etl.replication_progress (id bigint, pipeline_id bigint, worker_type etl.worker_type,"
        " table_id oid, flush_lsn pg_lsn);"
        f"INSERT INTO etl.replication_progress VALUES (1, {signed_id(own_id(database18))}, 'apply', NULL, '0/10'),"
        f" (2, {signed_id(own_id(database18))}, 'table_sync', 1, 'F/10')"
    )
    found = ask("slot.state_match", database18, store="postgres")
    assert (found.status, found.evidence["source"]) == (Status.FAIL, "etl.replication_progress")


def test_a_bookmark_of_nonsense_is_passed_over(database18: Database, name: str) -> None:
    make_slot(database18, name)
    bookmark(database18, name, "not an LSN")
    with database18.connect() as conn:
        conn.execute("INSERT INTO public.faucet_state VALUES ('pgrepl::x', %s)", [json.dumps([1, 2])])
        conn.execute(
            "INSERT INTO public.faucet_state VALUES ('pgrepl::y', %s)",
            [json.dumps({"position": "0/1", "tables": [7, {"oid": "x"}], "timeline": "one"})],
        )
    report = examine(database18, store="bookmarks", slot=name)
    assert one(report, "slot.state_match").status is Status.SKIP
    assert one(report, "state.errored").status is Status.PASS


def test_nothing_is_printed_that_is_no_fix(database18: Database, name: str) -> None:
    make_slot(database18, name)
    report = examine(database18, slot=name)
    for check_id in ("slot.exists", "slot.database", "slot.plugin", "slot.two_phase"):
        assert not any(finding.fix for finding in of(report, check_id))
        assert sql_of(one(report, check_id)) == []
