"""Row security: rows that a role may not see are never left out of a copy without a word."""

from __future__ import annotations

import subprocess
import sys

import psycopg
import pytest

from tests.fault import workload
from tests.servers.database import Database
from tests.tail.running import ROOT, Event, Tail, run_tail

_SETUP = """
CREATE TABLE hidden (id int PRIMARY KEY);
CREATE TABLE shown (id int PRIMARY KEY);
CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE parts_0 PARTITION OF parts FOR VALUES FROM (0) TO (10);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (10) TO (20);
INSERT INTO hidden VALUES (1), (2);
INSERT INTO shown VALUES (1), (2);
INSERT INTO parts VALUES (1), (11);
CREATE PUBLICATION p FOR TABLE hidden, shown, parts WITH (publish_via_partition_root = true);
CREATE ROLE app LOGIN REPLICATION;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO app;
GRANT USAGE, CREATE ON SCHEMA etl TO app;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA etl TO app;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA etl TO app;
"""
_POLICY = "ALTER TABLE {0} ENABLE ROW LEVEL SECURITY; CREATE POLICY later ON {0} USING (id > 1)"


@pytest.fixture
def tables(database: Database) -> Database:
    workload.migrate(database)
    database.psql(_SETUP)
    return database


def _reads(events: list[Event], table: str) -> list[int]:
    return [event["new"]["id"] for event in events if event["op"] == "read" and event["table"] == table]


# A partition's own policies hold where it is read by itself, as the workers do.
@pytest.mark.parametrize(("table", "published"), [("hidden", "hidden"), ("parts_0", "parts")])
def test_a_table_with_hidden_rows_is_no_partial_copy(table: str, published: str, tables: Database) -> None:
    tables.psql(_POLICY.format(table))
    finished = run_tail("p", dsn=tables.dsn("app"))
    assert finished.code == 1
    assert f"cannot copy public.{published}" in finished.stderr
    assert "row-level security" in finished.stderr
    ended = [event["table"] for event in finished.events if event["op"] == "snapshot_end"]
    assert published not in ended
    with tables.connect() as admin:
        admin.execute("ALTER ROLE app BYPASSRLS")
    finished = run_tail("p", "--snapshot", "only", dsn=tables.dsn("app"))
    assert finished.code == 0, finished.stderr
    assert len(_reads(finished.events, published)) == 2


def _reason(admin: psycopg.Connection) -> str:
    """Why the table is errored; empty when it is not."""
    row = admin.execute(
        "SELECT metadata ->> 'reason' FROM etl.replication_state"
        " WHERE is_current AND state = 'errored' AND table_id = 'hidden'::regclass"
    ).fetchone()
    return str(row[0]) if row else ""


def test_a_pipeline_goes_on_without_it_until_it_may_see_all(tables: Database) -> None:
    tables.psql(_POLICY.format("hidden"))
    arguments = ["p", "--store", "postgres"]
    with Tail(*arguments, dsn=tables.dsn("app")) as tail, tables.connect() as admin:
        tail.until_op("snapshot_end", 2)
        said = tail.until_stderr("the stream goes on without this table")
        assert "cannot copy public.hidden" in said
        assert "row-level security" in said
        workload.wait(lambda: "row-level security" in _reason(admin), "the reason in the state", of=tail)
        admin.execute("INSERT INTO hidden VALUES (3); INSERT INTO shown VALUES (3)")
        tail.until_op("insert")
        assert tail.stop().code == 143
    assert not any(event["table"] == "hidden" for event in tail.events if event["op"] in ("read", "insert"))
    assert _reads(tail.events, "shown") == [1, 2]

    with tables.connect() as admin:
        admin.execute("ALTER ROLE app BYPASSRLS")
    reset = ["state", "reset", "public.hidden", "--yes", "-d", tables.dsn("app")]
    subprocess.run([sys.executable, "-m", "pgrepl", *reset], check=True, capture_output=True, cwd=ROOT)
    with Tail(*arguments, dsn=tables.dsn("app")) as tail:
        tail.until_op("snapshot_end")
        assert tail.stop().code == 143
    assert _reads(tail.events, "hidden") == [1, 2, 3]
