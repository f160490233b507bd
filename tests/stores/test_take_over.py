"""Going on with a pipeline that supabase/etl has left, whatever state its tables are in, and leaving one to it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pgrepl import names
from pgrepl.lsn import Lsn
from tests.command import pgrepl
from tests.servers.database import Database
from tests.stores.upstream import (
    DATA_SYNC,
    FINISHED_COPY,
    INIT,
    READY,
    REASON,
    State,
    Upstream,
    errored,
    from_now,
    sync_done,
    tried_again,
)
from tests.tail.running import Event, Tail, run_tail

OPTIONS = ["pub", "--store", "postgres", "--until-lsn", "now"]
COPIED = ["data_sync", "finished_copy", "sync_done", "ready"]


@pytest.fixture
def upstream(database: Database) -> Upstream:
    """Two rows before the slot, a third one in it."""
    database.psql("""
        CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE t; INSERT INTO t VALUES (1), (2);
    """)
    upstream = Upstream(database)
    upstream.make_slot()
    database.psql("INSERT INTO t VALUES (3)")
    return upstream


def rows(events: list[Event], table: str = "t") -> list[tuple[str, int]]:
    return sorted((e["op"], e["new"]["id"]) for e in events if e["op"] in ("read", "insert") and e["table"] == table)


ALL_READ = [("read", 1), ("read", 2), ("read", 3), ("read", 4)]


@pytest.mark.parametrize(
    ("states", "events", "history"),
    [
        ([INIT], ALL_READ, ["init", *COPIED]),
        ([INIT, DATA_SYNC], ALL_READ, ["init", "data_sync", *COPIED]),
        ([INIT, DATA_SYNC, FINISHED_COPY], ALL_READ, ["init", "data_sync", "finished_copy", *COPIED]),
        ([INIT, DATA_SYNC, FINISHED_COPY, sync_done(Lsn(1))], [("insert", 4)], ["init", *COPIED]),
        ([INIT, DATA_SYNC, FINISHED_COPY, sync_done(Lsn(1)), READY], [("insert", 3), ("insert", 4)], ["init", *COPIED]),
        ([INIT, DATA_SYNC, errored(type="no_retry")], [], ["init", "data_sync", "errored"]),
        ([INIT, DATA_SYNC, errored(type="manual_retry")], [], ["init", "data_sync", "errored"]),
        ([INIT, DATA_SYNC, tried_again(from_now(hours=1))], [], ["init", "data_sync", "errored"]),
        ([INIT, DATA_SYNC, tried_again(from_now(hours=-1))], ALL_READ, ["init", "data_sync", "errored", *COPIED]),
    ],
    ids=["init", "data_sync", "finished_copy", "sync_done", "ready", "no retry", "manual", "later", "now"],
)
def test_every_state_is_taken_over(
    upstream: Upstream, database: Database, states: list[State], events: list[tuple[str, int]], history: list[str]
) -> None:
    """No slot of a copy is left, the destination's rows are as they were, and supabase/etl could go on again.

    Case table_copy_fails_after_data_sync_threw_an_error_with_no_retry of supabase/etl's tests.
    """
    # Between the third row and the fourth, as the worker that copied the table had come so far.
    here = upstream.wal_end()
    states = [sync_done(here) if state["type"] == "sync_done" else state for state in states]
    upstream.leave("t", *states)
    upstream.make_copy_slot("t")
    database.psql("INSERT INTO t VALUES (4)")
    destination = upstream.destination()

    finished = run_tail(*OPTIONS, dsn=database.dsn())

    assert finished.code == 0, finished.stderr
    assert rows(finished.events) == events
    assert upstream.history("t") == history
    assert upstream.slots() == [upstream.slot]
    assert upstream.destination() == destination
    upstream.must_go_on()
    if history[-1] == "errored":
        assert f"public.t is errored and not read: {REASON}" in finished.stderr
    # What is ready goes on.
    database.psql("INSERT INTO t VALUES (5)")
    again = run_tail(*OPTIONS, dsn=database.dsn())
    assert rows(again.events) == ([("insert", 5)] if history[-1] == "ready" else [])
    upstream.must_go_on()


def test_a_timed_retry_is_made_when_its_time_has_come(upstream: Upstream, database: Database) -> None:
    """Case table_copy_is_consistent_after_data_sync_threw_an_error_with_timed_retry of supabase/etl's tests."""
    due = from_now(seconds=4)
    upstream.leave("t", INIT, DATA_SYNC, tried_again(due))
    with Tail("pub", "--store", "postgres", dsn=database.dsn()) as tail:
        tail.until_stderr("it is tried again at")
        tail.until_op("snapshot_begin")
        assert datetime.now(UTC) >= due
        tail.until_op("snapshot_end")
        database.psql("INSERT INTO t VALUES (5)")
        events = tail.until_op("insert")
        assert tail.stop().code == 143
    assert rows(events) == [("insert", 5), ("read", 1), ("read", 2), ("read", 3)]
    assert upstream.history("t") == ["init", "data_sync", "errored", *COPIED]


def test_an_errored_table_is_tried_again_by_hand(upstream: Upstream, database: Database) -> None:
    """Its changes were passed over meanwhile, so it is copied again; the other tables go on."""
    database.psql("CREATE TABLE good (id int PRIMARY KEY); ALTER PUBLICATION pub ADD TABLE good")
    upstream.leave("t", INIT, DATA_SYNC, errored(type="manual_retry"))
    upstream.leave("good", INIT, DATA_SYNC, FINISHED_COPY, sync_done(upstream.confirmed()), READY)
    database.psql("INSERT INTO good VALUES (1)")
    first = run_tail(*OPTIONS, dsn=database.dsn())
    assert (rows(first.events), rows(first.events, "good")) == ([], [("insert", 1)])
    assert pgrepl("state", "reset", "public.t", "--yes", "-d", database.dsn()).returncode == 0
    second = run_tail(*OPTIONS, dsn=database.dsn())
    assert (rows(second.events), rows(second.events, "good")) == (ALL_READ[:3], [])
    upstream.must_go_on()


def test_only_its_own_leftover_slots_are_dropped(upstream: Upstream, database: Database) -> None:
    """Not those of another pipeline, nor those of a table that this run leaves out while supabase/etl needs them."""
    database.psql("CREATE TABLE u (id int PRIMARY KEY); ALTER PUBLICATION pub ADD TABLE u")
    upstream.leave("t", INIT, DATA_SYNC, FINISHED_COPY, sync_done(upstream.confirmed()), READY)
    upstream.leave("u", INIT, DATA_SYNC, FINISHED_COPY)
    upstream.make_copy_slot("t")
    needed = upstream.make_copy_slot("u")
    stranger = names.table_sync_slot(upstream.id + 1, upstream.oid("t"))
    upstream.make_slot(stranger)
    finished = run_tail(*OPTIONS, "--table", "public.t", dsn=database.dsn())
    assert finished.code == 0, finished.stderr
    assert upstream.slots() == sorted([upstream.slot, needed, stranger])
    upstream.must_go_on()
    assert run_tail(*OPTIONS, dsn=database.dsn()).code == 0
    assert upstream.slots() == sorted([upstream.slot, stranger])
    assert upstream.history("u")[-1] == "ready"


def test_a_pipeline_that_supabase_etl_is_running_is_left_alone(upstream: Upstream, database: Database) -> None:
    """Before anything is stored: the states of the tables are those of whoever reads the slot."""
    upstream.leave("t", INIT)
    before = upstream.history("t")
    with Tail("pub", "--slot", upstream.slot, dsn=database.dsn()) as reader:
        reader.until_op("snapshot_end")
        refused = run_tail(*OPTIONS, dsn=database.dsn())
        assert refused.code == 1
        assert f"the slot {upstream.slot} is in use by pid" in refused.stderr
        assert reader.stop().code == 143
    assert upstream.history("t") == before
    assert upstream.query("SELECT * FROM etl.pgrepl_pipelines") == []


def test_a_slot_one_byte_further_is_said(upstream: Upstream, database: Database) -> None:
    """An idle start of supabase/etl confirms one byte more than it was given; the server passes over what is there."""
    upstream.leave("t", INIT, DATA_SYNC, FINISHED_COPY, sync_done(upstream.confirmed()), READY)
    at = upstream.wal_end()
    database.psql("INSERT INTO t VALUES (4)")

    def advance(position: Lsn) -> None:
        upstream.query("SELECT pg_replication_slot_advance(%s, %s)", upstream.slot, str(position))
        assert upstream.confirmed() == position

    advance(Lsn(at + 1))
    said = pgrepl("doctor", "pub", "--store", "postgres", "--only", "slot.state_match", "-d", database.dsn())
    assert f"past {at}: supabase/etl was started on a quiet server" in " ".join(said.stdout.split())
    taken = run_tail(*OPTIONS, dsn=database.dsn())
    assert taken.code == 0, taken.stderr
    assert f"one byte beyond {at}: supabase/etl was started on a quiet server" in taken.stderr
    assert rows(taken.events) == [("insert", 4)]
    ((text,),) = upstream.query("SELECT position::text FROM etl.pgrepl_pipelines")
    stored = Lsn.parse(text)
    for further, how_far in [(1, "one byte"), (2, "2 bytes")]:
        database.psql(f"INSERT INTO t VALUES ({4 + further})")
        advance(Lsn(stored + further))
        refused = run_tail(*OPTIONS, dsn=database.dsn())
        assert refused.code == 5
        assert f"{how_far} beyond the stored position {stored}: supabase/etl was started in between" in refused.stderr
    assert run_tail(*OPTIONS, "--accept-slot-position", dsn=database.dsn()).code == 0


def test_a_fresh_pipeline_can_be_taken_over_by_supabase_etl(database: Database) -> None:
    """Also one without a snapshot, and one with a table that cannot be copied: it was dropped meanwhile, say."""
    database.psql("CREATE TABLE t (id int PRIMARY KEY, n numeric(12, 2), g int GENERATED ALWAYS AS (id * 2) STORED)")
    database.psql("CREATE PUBLICATION pub FOR TABLE t; INSERT INTO t VALUES (1, 2)")
    upstream = Upstream(database)
    for options in ([], ["--snapshot", "never"], ["--snapshot", "only"]):
        assert run_tail(*OPTIONS, *options, dsn=database.dsn()).code == 0
        upstream.must_go_on()
        assert upstream.history("t")[-1] == "ready"
        columns = upstream.query("SELECT column_name, column_type, type_modifier FROM etl.table_columns ORDER BY id")
        # A generated column is no part of a version.
        assert columns == [("id", "INT4", -1), ("n", "NUMERIC", 786438)]
        upstream.query("SELECT pg_drop_replication_slot(%s)", upstream.slot)
        assert pgrepl("state", "reset", "--all", "--yes", "-d", database.dsn()).returncode == 0
        upstream.query("DELETE FROM etl.replication_state")
        upstream.query("DELETE FROM etl.table_schemas")


def test_what_the_destination_keeps_is_left_alone(upstream: Upstream, database: Database) -> None:
    """It is deleted for a table that has left the publication, and not for one that is only left out or reset."""
    database.psql("CREATE TABLE u (id int PRIMARY KEY); ALTER PUBLICATION pub ADD TABLE u")
    for table in ("t", "u"):
        upstream.leave(table, INIT, DATA_SYNC, FINISHED_COPY, sync_done(upstream.confirmed()), READY)
    before = upstream.destination()
    assert run_tail(*OPTIONS, dsn=database.dsn()).code == 0
    refused = run_tail(*OPTIONS, "--exclude-table", "public.u", dsn=database.dsn())
    assert refused.code == 2
    assert "the changes of public.u would be passed over" in refused.stderr
    for words in (["reset", "public.u"], ["rollback", "public.t"]):
        assert pgrepl("state", *words, "--yes", "-d", database.dsn()).returncode == 0
    left_out = run_tail(*OPTIONS, "--exclude-table", "public.u", dsn=database.dsn())
    assert left_out.code == 0, left_out.stderr
    assert upstream.history("u") == ["init"]
    assert run_tail(*OPTIONS, dsn=database.dsn()).code == 0
    assert upstream.history("u")[-1] == "ready"
    assert upstream.destination() == before

    database.psql("ALTER PUBLICATION pub DROP TABLE u")
    assert run_tail(*OPTIONS, dsn=database.dsn()).code == 0
    assert upstream.destination() == [row for row in before if upstream.oid("t") in row]
    assert upstream.history("u") == []


def test_a_table_that_was_never_copied_may_leave_the_publication(upstream: Upstream, database: Database) -> None:
    """Its state goes, and nothing is copied."""
    database.psql("CREATE TABLE u (id int PRIMARY KEY)")
    upstream.leave("t", INIT, DATA_SYNC, FINISHED_COPY, sync_done(upstream.confirmed()), READY)
    upstream.leave("u", INIT, DATA_SYNC)
    finished = run_tail(*OPTIONS, dsn=database.dsn())
    assert finished.code == 0, finished.stderr
    assert rows(finished.events) == [("insert", 3)]
    assert upstream.history("u") == []


def test_state_tables_that_supabase_etl_has_published(upstream: Upstream, database: Database) -> None:
    """A publication of all tables made them tables of the pipeline: they are not printed, and their state stays."""
    database.psql("DROP PUBLICATION pub; CREATE PUBLICATION pub FOR ALL TABLES")
    upstream.query("SELECT pg_drop_replication_slot(%s)", upstream.slot)
    upstream.make_slot()
    done = sync_done(upstream.confirmed())
    upstream.leave("t", INIT, DATA_SYNC, FINISHED_COPY, done, READY)
    upstream.leave("etl.replication_state", INIT, DATA_SYNC, FINISHED_COPY, done, READY)
    before = upstream.history("etl.replication_state")
    finished = run_tail(*OPTIONS, dsn=database.dsn())
    assert finished.code == 0, finished.stderr
    assert finished.events == []
    assert upstream.history("etl.replication_state") == before
