"""Cases of supabase/etl's own tests, as far as they concern what is seen here; each test names its cases.

Others of them are named in the docstrings of the tests that cover them. Two have nothing to be seen here:
pipeline_shutdown_calls_destination_shutdown is about a hook of destinations, and
replication_mask_loads_correctly_from_string_bytea about a column that is never read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.command import eventually, pgrepl
from tests.conftest import NewServer
from tests.servers.database import Database, fresh_database
from tests.stores.upstream import DATA_SYNC, INIT, Upstream, from_now, tried_again
from tests.tail.running import Event, Tail, run_tail

VERSIONS = """
    SELECT s.table_id, s.snapshot_id::text, array_agg(column_name || ' ' || column_type ORDER BY c.ordinal_position)
      FROM etl.table_schemas s JOIN etl.table_columns c ON c.table_schema_id = s.id GROUP BY s.id ORDER BY s.snapshot_id
"""
OPTIONS = ["pub", "--store", "postgres", "--until-lsn", "now"]


def rows(events: list[Event], table: str, op: str) -> list[Any]:
    return [event["new"]["id"] for event in events if event["op"] == op and event["table"] == table]


def test_existing_rows_and_new_ones(database: Database) -> None:
    """Case table_copy_replicates_existing_data, table_copy_and_sync_streams_new_data,
    table_processing_converges_to_apply_loop_with_no_events_coming, empty_tables_are_created_at_destination: two tables
    of ten rows and an empty one are ready without any traffic, each with its version, and no slot of a copy is left;
    what is written then comes in order.
    """
    upstream = Upstream(database)
    database.psql("""
        CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY);
        INSERT INTO a SELECT generate_series(1, 10); INSERT INTO b SELECT generate_series(1, 10);
        CREATE PUBLICATION pub FOR TABLE a, b, c;
    """)
    with Tail("pub", "--store", "postgres", dsn=database.dsn()) as tail:
        tail.until_op("snapshot_end", 3)
        eventually(lambda: all(upstream.history(table)[-1:] == ["ready"] for table in "abc"))
        assert upstream.slots() == [upstream.slot]
        for number in range(11, 15):
            database.psql(f"INSERT INTO a VALUES ({number}); INSERT INTO b VALUES ({number})")
        events = tail.until_op("insert", 8)
        assert tail.stop().code == 143
    for table in "ab":
        assert sorted(rows(events, table, "read")) == list(range(1, 11))
        assert rows(events, table, "insert") == [11, 12, 13, 14]
    assert upstream.query("SELECT table_name, snapshot_id::text FROM etl.table_schemas ORDER BY 1") == [
        ("a", "0/0"),
        ("b", "0/0"),
        ("c", "0/0"),
    ]
    upstream.must_go_on()


@pytest.mark.parametrize(("filtered", "expected"), [(False, 100_000), (True, 99_983)], ids=["all rows", "a filter"])
def test_many_workers_copy_each_row_once(database: Database, tmp_path: Path, filtered: bool, expected: int) -> None:
    """Case table_copy_replicates_many_rows_with_parallel_connections, table_copy_stream_with_ctid_partition,
    table_copy_with_row_filter_and_parallel_connections: every row of a big table exactly once, and with a filter those
    that pass it.
    """
    database.psql(f"""
        CREATE TABLE t (id int PRIMARY KEY, age int NOT NULL);
        INSERT INTO t SELECT i, i FROM generate_series(1, 100000) i;
        CREATE PUBLICATION pub FOR TABLE t {"WHERE (age >= 18)" if filtered else ""} WITH (publish = 'insert');
    """)
    output = tmp_path / "out.jsonl"
    finished = run_tail("pub", "--snapshot", "only", "--jobs", "8", "-o", str(output), dsn=database.dsn())
    assert finished.code == 0, finished.stderr
    copied = rows([json.loads(line) for line in output.read_text().splitlines()], "t", "read")
    assert len(copied) == expected
    assert set(copied) == set(range(100_001 - expected, 100_001))


def test_versions_survive_a_restart(database: Database) -> None:
    """Case table_schema_copy_survives_pipeline_restarts, table_schema_preserves_primary_key_constraint_order: stored
    once, with each column's place in the key as the constraint has it; both tables go on after a restart.
    """
    upstream = Upstream(database)
    database.psql("""
        CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (a int, id int, c int, PRIMARY KEY (c, a));
        CREATE PUBLICATION pub FOR TABLE a, b;
    """)
    query = (
        "SELECT s.id, table_name, column_name, primary_key_ordinal_position FROM etl.table_schemas s"
        " JOIN etl.table_columns c ON c.table_schema_id = s.id ORDER BY 2, ordinal_position"
    )
    assert run_tail(*OPTIONS, dsn=database.dsn()).code == 0
    before = upstream.query(query)
    assert [row[1:] for row in before] == [("a", "id", 1), ("b", "a", 2), ("b", "id", None), ("b", "c", 1)]
    database.psql("INSERT INTO a VALUES (1); INSERT INTO b VALUES (0, 2, 0)")
    events = run_tail(*OPTIONS, dsn=database.dsn()).events
    assert (rows(events, "a", "insert"), rows(events, "b", "insert")) == ([1], [2])
    assert upstream.query(query) == before


def test_the_publication_changes(database: Database) -> None:
    """Case publication_changes_are_correctly_handled, cleanup_deletes_state_schema_and_metadata_for_table: of a table
    that left nothing is kept, not even the slot of its copy; one that came is copied; the one that stayed goes on.
    """
    upstream = Upstream(database)
    database.psql("""
        CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY);
        CREATE PUBLICATION pub FOR TABLE a, b; INSERT INTO c VALUES (1);
    """)
    with Tail("pub", "--store", "postgres", dsn=database.dsn()) as tail:
        tail.until_op("snapshot_end", 2)
        eventually(lambda: upstream.history("b")[-1:] == ["ready"])
        database.psql("ALTER PUBLICATION pub DROP TABLE b; ALTER PUBLICATION pub ADD TABLE c")
        assert tail.stop().code == 143
    upstream.make_copy_slot("b")
    database.psql("INSERT INTO a VALUES (1); INSERT INTO b VALUES (1)")
    events = run_tail(*OPTIONS, dsn=database.dsn()).events
    assert (rows(events, "a", "insert"), rows(events, "b", "insert"), rows(events, "c", "read")) == ([1], [], [1])
    assert [upstream.history(table)[-1:] for table in "abc"] == [["ready"], [], ["ready"]]
    assert upstream.query("SELECT table_name FROM etl.table_schemas ORDER BY 1") == [("a",), ("c",)]
    assert upstream.slots() == [upstream.slot]


def test_a_walsender_that_is_ended_sends_nothing_twice(database: Database) -> None:
    """Case streaming_reconnect_does_not_replay_already_flushed_events: confirmed before the connection was lost."""
    upstream = Upstream(database)
    database.psql("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE t")
    with Tail("pub", "--store", "postgres", dsn=database.dsn()) as tail:
        tail.until_op("snapshot_end")
        database.psql("INSERT INTO t VALUES (1)")
        end = upstream.wal_end()
        database.psql("INSERT INTO t VALUES (2)")
        tail.until_op("insert", 2)
        eventually(lambda: upstream.confirmed() > end)
        database.psql("SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots WHERE active_pid > 0")
        tail.until_stderr("connected again")
        database.psql("INSERT INTO t VALUES (3)")
        events = tail.until_op("insert", 3)
        assert tail.stop().code == 143
    assert rows(events, "t", "insert") == [1, 2, 3]


def test_a_new_table_of_a_published_schema(database: Database) -> None:
    """Case publication_for_all_tables_in_schema_ignores_new_tables_until_restart: no error either, but here no restart
    is needed: its first change brings it in.
    """
    database.psql("""
        CREATE SCHEMA shop; CREATE TABLE shop.a (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLES IN SCHEMA shop
    """)
    upstream = Upstream(database)
    with Tail("pub", "--store", "postgres", dsn=database.dsn()) as tail:
        tail.until_op("snapshot_end")
        database.psql("CREATE TABLE shop.b (id int PRIMARY KEY); INSERT INTO shop.b VALUES (1)")
        tail.until_op("snapshot_end", 2)
        eventually(lambda: upstream.history("shop.b")[-1:] == ["ready"])
        database.psql("INSERT INTO shop.b VALUES (2); INSERT INTO shop.a VALUES (3)")
        events = tail.until(lambda event: event["op"] == "insert" and event["table"] == "a")
        assert tail.stop().code == 143
    assert (rows(events, "b", "read"), rows(events, "b", "insert"), rows(events, "a", "insert")) == ([1], [2], [3])


def test_the_column_list_changes_while_it_runs(database: Database) -> None:
    """Case pipeline_respects_column_level_publication: rows have the columns of their moment, told of before them."""
    Upstream(database)
    database.psql("""
        CREATE TABLE t (id int PRIMARY KEY, a int, b int, c int); CREATE PUBLICATION pub FOR TABLE t (id, a, b);
        INSERT INTO t VALUES (1, 1, 1, 1);
    """)
    with Tail("pub", "--store", "postgres", dsn=database.dsn()) as tail:
        tail.until_op("snapshot_end")
        for number, columns in enumerate(["id, a, b, c", "id, a, c"], 2):
            database.psql(f"ALTER PUBLICATION pub SET TABLE t ({columns})")
            database.psql(f"INSERT INTO t VALUES ({number}, 1, 1, 1)")
        events = tail.until_op("insert", 2)
        assert tail.stop().code == 143
    widths = [list(event["new"]) for event in events if "new" in event]
    assert widths == [["id", "a", "b"], ["id", "a", "b", "c"], ["id", "a", "c"]]
    assert [event["op"] for event in events if event["op"] in ("schema", "insert")] == ["schema", "insert"] * 2


def read_twice(database: Database, *transactions: str) -> list[Event]:
    """Write, and read it two times, as if nothing had been stored or confirmed of the first; give what was printed.

    Both times the same lines must be printed, and the same versions of tables be stored.
    """
    upstream = Upstream(database)
    assert run_tail(*OPTIONS, dsn=database.dsn()).code == 0
    copy_slot = "SELECT pg_copy_logical_replication_slot(%s, %s)"
    upstream.query(copy_slot, upstream.slot, "before")
    upstream.query("CREATE TABLE saved AS TABLE etl.pgrepl_pipelines")
    for transaction in transactions:
        database.psql(f"BEGIN; {transaction}; COMMIT")
    first, versions = run_tail(*OPTIONS, dsn=database.dsn()), upstream.query(VERSIONS)
    upstream.query("SELECT pg_drop_replication_slot(%s)", upstream.slot)
    upstream.query(copy_slot, "before", upstream.slot)
    upstream.query("UPDATE etl.pgrepl_pipelines p SET position = s.position, told = s.told FROM saved s")
    second = run_tail(*OPTIONS, dsn=database.dsn())
    assert (first.code, second.code) == (0, 0), second.stderr
    assert first.stdout == second.stdout
    assert upstream.query(VERSIONS) == versions
    return second.events


def test_column_lists_that_shrink_are_read_again(database: Database) -> None:
    """Case table_schema_replication_masks_are_consistent_after_restart: each row has the columns that were published at
    its time, also when it is read again.
    """
    database.psql("""
        CREATE TABLE t (id int PRIMARY KEY, a int, b int, c int); CREATE PUBLICATION pub FOR TABLE t (id, a, b, c);
    """)
    lists = enumerate(["id, a, b, c", "id, a, b", "id, a"])
    events = read_twice(
        database,
        *(
            f"ALTER PUBLICATION pub SET TABLE t ({shown}); INSERT INTO t VALUES ({number}, 1, 1, 1)"
            for number, shown in lists
        ),
    )
    widths = [list(event["new"]) for event in events if "new" in event]
    assert widths == [["id", "a", "b", "c"], ["id", "a", "b"], ["id", "a"]]


@pytest.mark.parametrize("together", [True, False], ids=["same transaction", "across transactions"])
def test_ddl_between_changes_is_read_again(together: bool, database: Database) -> None:
    """Case table_schema_snapshots_are_consistent_after_missing_status_update_with_interleaved_ddl_in_same_transaction
    and …_with_interleaved_ddl_across_transactions: each row is in the version of its moment, and the same is stored.
    """
    database.psql("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE t")
    steps = [
        "INSERT INTO t VALUES (1)",
        "ALTER TABLE t ADD COLUMN a int",
        "INSERT INTO t VALUES (2, 2)",
        "ALTER TABLE t RENAME a TO b; ALTER TABLE t ALTER b TYPE bigint",
        "INSERT INTO t VALUES (3, 3)",
        "ALTER TABLE t DROP COLUMN b",
        "INSERT INTO t VALUES (4)",
    ]
    events = read_twice(database, *(["; ".join(steps)] if together else steps))
    printed = [(event["op"], event.get("new")) for event in events]
    assert [new for op, new in printed if op == "insert"] == [
        {"id": 1},
        {"id": 2, "a": 2},
        {"id": 3, "b": 3},
        {"id": 4},
    ]
    assert [op for op, _ in printed if op != "message"] == ["insert", *["schema", "insert"] * 3]
    # Those before the confirmed position are not kept.
    ((_, version, columns),) = Upstream(database).query(VERSIONS)
    assert version != "0/0"
    assert columns == ["id INT4"]


@pytest.mark.parametrize(
    ("options", "copied"),
    [
        ([], {"a": 2, "b": 2}),
        (["--snapshot", "never"], {}),
        (["--table", "public.a"], {"a": 2}),
        (["--exclude-table", "public.a"], {"b": 2}),
    ],
)
def test_what_is_copied(options: list[str], copied: dict[str, int], database: Database) -> None:
    """Case table_sync_copy_include_all_tables, …_skip_all_tables, …_include_only_specified_tables and
    …_skip_only_specified_tables: each copied table has its begin and end once, and what comes later is streamed.
    """
    Upstream(database)
    database.psql("""
        CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE a, b;
        INSERT INTO a VALUES (1), (2); INSERT INTO b VALUES (1), (2);
    """)
    first = run_tail(*OPTIONS, *options, dsn=database.dsn())
    assert first.code == 0, first.stderr
    ends = [(event["table"], event["rows"]) for event in first.events if event["op"] == "snapshot_end"]
    assert sorted(ends) == sorted(copied.items())
    assert {table: len(rows(first.events, table, "read")) for table in copied} == copied
    database.psql("INSERT INTO a VALUES (3); INSERT INTO b VALUES (3)")
    second = run_tail(*OPTIONS, *options, dsn=database.dsn()).events
    assert {table for table in "ab" if rows(second, table, "insert") == [3]} == (set(copied) or {"a", "b"})


def test_a_timed_retry_that_fails_waits_for_a_person(database: Database) -> None:
    """Case table_copy_fails_after_timed_retry_exceeded_max_attempts: no rows, and the stream goes on without it."""
    upstream = Upstream(database)
    database.psql("""
        CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE good (id int PRIMARY KEY); INSERT INTO t VALUES (0);
        CREATE PUBLICATION pub FOR TABLE t WHERE (1 / id > 0), good;
    """)
    upstream.make_slot()
    upstream.leave("t", INIT, DATA_SYNC, tried_again(from_now(seconds=-5)))
    with Tail("pub", "--store", "postgres", dsn=database.dsn()) as tail:
        tail.until_stderr("the stream goes on without this table")
        database.psql("INSERT INTO good VALUES (1)")
        events = tail.until(lambda event: event["op"] in ("insert", "read") and event["table"] == "good")
        assert tail.stop().code == 143
    assert rows(events, "t", "read") == []
    assert upstream.history("t")[-1] == "errored"
    query = "SELECT metadata->'retry_policy'->>'type' FROM etl.replication_state WHERE is_current AND table_id = %s"
    assert upstream.query(query, upstream.oid("t")) == [("manual_retry",)]


def test_a_table_that_is_reset(database: Database) -> None:
    """Case table_sync_truncates_destination_after_state_reset: it alone is copied again, and the attempt says which
    rows count; nothing is missing of it.
    """
    Upstream(database)
    database.psql("""
        CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE a, b;
        INSERT INTO a SELECT generate_series(1, 5); INSERT INTO b SELECT generate_series(1, 5);
    """)
    assert run_tail(*OPTIONS, dsn=database.dsn()).code == 0
    assert pgrepl("state", "reset", "public.a", "--yes", "-d", database.dsn()).returncode == 0
    with Tail("pub", "--store", "postgres", dsn=database.dsn()) as tail:
        tail.until_op("snapshot_end")
        database.psql("INSERT INTO a SELECT generate_series(6, 10)")
        events = tail.until_op("insert", 5)
        assert tail.stop().code == 143
    assert [event["attempt"] for event in events if event["op"] == "snapshot_begin"] == [2]
    assert sorted(rows(events, "a", "read") + rows(events, "a", "insert")) == list(range(1, 11))
    assert rows(events, "b", "read") == []


def test_partitions_of_partitions(database: Database) -> None:
    """Case partitioned_table_copy_replicates_existing_data, nested_partitioned_table_copy_and_cdc,
    partitioned_table_copy_and_streams_new_data_from_new_partition, parent_table_truncate_does_emit_truncate_event: the
    top parent alone is a table of the pipeline, and has everything.
    """
    upstream = Upstream(database)
    database.psql("""
        CREATE TABLE root (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE low PARTITION OF root FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (id);
        CREATE TABLE lowest PARTITION OF low FOR VALUES FROM (0) TO (10);
        CREATE TABLE lower PARTITION OF low FOR VALUES FROM (10) TO (100);
        INSERT INTO root VALUES (1), (20);
        CREATE PUBLICATION pub FOR TABLE root WITH (publish_via_partition_root);
    """)
    with Tail("pub", "--store", "postgres", dsn=database.dsn()) as tail:
        tail.until_op("snapshot_end")
        database.psql("INSERT INTO root VALUES (2), (30)")
        database.psql(
            "CREATE TABLE high PARTITION OF root FOR VALUES FROM (100) TO (200); INSERT INTO high VALUES (150)"
        )
        database.psql("TRUNCATE root")
        events = tail.until_op("truncate")
        assert tail.stop().code == 143
    assert {event["table"] for event in events if "table" in event} == {"root"}
    assert sorted(rows(events, "root", "read")) == [1, 20]
    assert rows(events, "root", "insert") == [2, 30, 150]
    tables = upstream.query("SELECT DISTINCT table_id::bigint FROM etl.replication_state")
    assert tables == [(upstream.oid("root"),)]
    upstream.must_go_on()


@pytest.mark.parametrize("version", [16, 18])
def test_a_slot_that_is_lost(new_server: NewServer, version: int) -> None:
    """Case exclusive_pipeline_fails_when_slot_invalidated_with_error_behavior and …_recovers_…_with_recreate_behavior:
    it is an error that says what to do; once that is done, all rows come again, over a new slot.
    """
    server = new_server(version, max_slot_wal_keep_size="1MB", max_wal_size="32MB")
    with fresh_database(server) as database:
        upstream = Upstream(database)
        database.psql("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE t")
        database.psql("INSERT INTO t SELECT generate_series(1, 5)")
        assert run_tail(*OPTIONS, dsn=database.dsn()).code == 0

        def lost() -> bool:
            database.psql("SELECT pg_switch_wal(); CREATE TABLE x (); DROP TABLE x; CHECKPOINT")
            query = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s"
            return upstream.query(query, upstream.slot) == [("lost",)]

        eventually(lost, 60)
        before = upstream.history("t")
        refused = run_tail(*OPTIONS, dsn=database.dsn())
        assert (refused.code, refused.stdout, upstream.history("t")) == (5, "", before)
        assert f"pgrepl slots drop {upstream.slot}" in refused.stderr
        assert pgrepl("slots", "drop", upstream.slot, "--yes", "-d", database.dsn()).returncode == 0
        # Case pipeline_fails_when_slot_deleted_with_non_init_tables: nor is one that is gone made anew.
        assert run_tail(*OPTIONS, dsn=database.dsn()).code == 5
        assert upstream.slots() == []
        assert pgrepl("state", "reset", "--all", "--yes", "-d", database.dsn()).returncode == 0
        again = run_tail(*OPTIONS, dsn=database.dsn())
        assert sorted(rows(again.events, "t", "read")) == [1, 2, 3, 4, 5], again.stderr
        assert upstream.slots() == [upstream.slot]
        upstream.must_go_on()
