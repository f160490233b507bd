"""Tables: keys, identities, and what of them does not arrive."""

from __future__ import annotations

import psycopg
import pytest

from pgrepl.catalog.publications import PublishedTable
from pgrepl.doctor import Status
from pgrepl.doctor.checks.rows import judge_snapshot
from tests.doctor.conftest import apply_fixes, examine, of, one
from tests.servers.database import Database


def mend(database: Database, check: str) -> None:
    """Carry out the fix of a check as printed, and see it pass."""
    apply_fixes(database, of(examine(database, "p"), check))
    assert {finding.status for finding in of(examine(database, "p"), check)} == {Status.PASS}


def test_a_unique_index_becomes_the_primary_key(database: Database) -> None:
    database.psql(
        'CREATE TABLE "T" (a int NOT NULL); CREATE UNIQUE INDEX "the index" ON "T" (a);'
        'CREATE PUBLICATION p FOR TABLE "T"'
    )
    found = one(examine(database, "p"), "tbl.primary_key")
    assert (found.status, found.object) == (Status.WARN, "public.T")
    assert one(examine(database, "p"), "tbl.dupes").evidence == {"tables": ["public.T"]}
    # Both fixes of this table, one after the other.
    apply_fixes(database, of(examine(database, "p"), "tbl.replica_identity"))
    mend(database, "tbl.primary_key")
    report = examine(database, "p")
    assert one(report, "tbl.replica_identity").status is one(report, "tbl.dupes").status is Status.PASS


def test_a_table_without_anything_that_could_be_a_key(database18: Database) -> None:
    database18.psql("CREATE TABLE t (a int); CREATE PUBLICATION p FOR TABLE t")
    assert [step.kind for step in one(examine(database18, "p"), "tbl.primary_key").fix] == ["action"]
    database18.psql("ALTER TABLE t ADD PRIMARY KEY (a)")
    assert one(examine(database18, "p"), "tbl.primary_key").status is Status.PASS


def test_a_partition_has_the_key_of_its_table(database18: Database) -> None:
    database18.psql(
        "CREATE TABLE root (a int PRIMARY KEY) PARTITION BY RANGE (a); CREATE TABLE leaf PARTITION OF root DEFAULT;"
        "CREATE PUBLICATION p FOR TABLE root WITH (publish_via_partition_root)"
    )
    assert one(examine(database18, "p"), "tbl.primary_key").status is Status.PASS


@pytest.mark.parametrize("table", ["(a int PRIMARY KEY, b int)", "(a int NOT NULL UNIQUE, b int)"])
def test_full_without_need(database: Database, table: str) -> None:
    database.psql(f"CREATE TABLE t {table}; ALTER TABLE t REPLICA IDENTITY FULL; CREATE PUBLICATION p FOR TABLE t")
    # Nothing was paid for it yet.
    assert one(examine(database, "p"), "tbl.ri_full").status is Status.INFO
    with database.connect() as conn:
        conn.execute("INSERT INTO t VALUES (1, 1)")
        conn.execute("UPDATE t SET b = 2")
        conn.execute("SELECT pg_stat_force_next_flush()")
    found = one(examine(database, "p"), "tbl.ri_full")
    assert (found.status, found.evidence["updates"]) == (Status.WARN, 1)
    mend(database, "tbl.ri_full")
    assert one(examine(database, "p"), "tbl.replica_identity").status is Status.PASS


def test_full_where_nothing_else_is_there(database18: Database) -> None:
    database18.psql("CREATE TABLE t (a int); ALTER TABLE t REPLICA IDENTITY FULL; CREATE PUBLICATION p FOR TABLE t")
    found = one(examine(database18, "p"), "tbl.ri_full")
    assert (found.status, found.fix) == (Status.INFO, ())


@pytest.mark.parametrize("chosen", [True, False])
def test_an_invalid_index(database: Database, chosen: bool) -> None:
    choose = "ALTER TABLE t REPLICA IDENTITY USING INDEX t_pkey;" if chosen else ""
    # How a REINDEX that was broken off leaves it.
    database.psql(
        f"CREATE TABLE t (a int PRIMARY KEY, b int); {choose} INSERT INTO t VALUES (1, 1);"
        "CREATE PUBLICATION p FOR TABLE t;"
        "SET allow_system_table_mods = on; UPDATE pg_index SET indisvalid = false WHERE indexrelid = 't_pkey'::regclass"
    )
    with database.connect() as conn, pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        conn.execute("UPDATE t SET b = 2")
    report = examine(database, "p")
    assert one(report, "tbl.ri_index_ok").status is Status.WARN
    assert one(report, "tbl.replica_identity").status is Status.FAIL
    mend(database, "tbl.ri_index_ok")
    assert one(examine(database, "p"), "tbl.replica_identity").status is Status.PASS
    with database.connect() as conn:
        conn.execute("UPDATE t SET b = 2")


def test_a_deferrable_key_identifies_nothing(database: Database) -> None:
    database.psql(
        "CREATE TABLE t (a int PRIMARY KEY DEFERRABLE, b int); INSERT INTO t VALUES (1, 1);"
        "CREATE PUBLICATION p FOR TABLE t"
    )
    with database.connect() as conn, pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        conn.execute("UPDATE t SET b = 2")
    report = examine(database, "p")
    assert one(report, "tbl.replica_identity").status is Status.FAIL
    assert [step.kind for step in one(report, "tbl.ri_index_ok").fix] == ["action"]
    # The action.
    database.psql("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (a)")
    report = examine(database, "p")
    assert one(report, "tbl.ri_index_ok").status is one(report, "tbl.replica_identity").status is Status.PASS
    with database.connect() as conn:
        conn.execute("UPDATE t SET b = 2")


def test_values_out_of_line(database: Database) -> None:
    database.psql(
        "CREATE TABLE t (a int PRIMARY KEY, long text, short int); ALTER TABLE t ALTER long SET STORAGE EXTERNAL;"
        "CREATE PUBLICATION p FOR TABLE t"
    )
    assert one(examine(database, "p"), "tbl.toast_unchanged").status is Status.PASS
    database.psql("INSERT INTO t VALUES (1, repeat('x', 10000))")
    found = one(examine(database, "p"), "tbl.toast_unchanged")
    assert (found.status, found.evidence["columns"]) == (Status.INFO, ["long"])
    database.psql("ALTER PUBLICATION p SET (publish = 'insert, delete')")
    assert one(examine(database, "p"), "tbl.toast_unchanged").status is Status.PASS
    database.psql("ALTER PUBLICATION p SET (publish = 'insert, update')")
    mend(database, "tbl.toast_unchanged")


def test_kinds_that_cannot_be_published(database: Database) -> None:
    database.psql(
        "CREATE TABLE t (a int PRIMARY KEY); CREATE UNLOGGED TABLE quick (a int PRIMARY KEY);"
        "CREATE MATERIALIZED VIEW view AS SELECT 1; CREATE FOREIGN DATA WRAPPER none; CREATE SERVER far FOREIGN DATA"
        " WRAPPER none; CREATE FOREIGN TABLE elsewhere (a int) SERVER far; CREATE PUBLICATION p FOR ALL TABLES"
    )
    findings = of(examine(database, "p"), "tbl.kinds")
    assert {finding.object: finding.evidence["kind"] for finding in findings} == {
        "public.elsewhere": "foreign table",
        "public.quick": "unlogged table",
        "public.view": "materialised view",
    }
    assert {finding.status for finding in findings} == {Status.INFO}
    apply_fixes(database, findings)
    left = of(examine(database, "p"), "tbl.kinds")
    assert [finding.object for finding in left] == ["public.elsewhere", "public.view"]
    # Who names tables has not asked for these.
    database.psql("CREATE PUBLICATION q FOR TABLE t")
    assert one(examine(database, "q"), "tbl.kinds").status is Status.PASS


def test_a_partition_that_is_not_logged(database: Database) -> None:
    # From 18 on a partitioned table's partitions may still be unlogged; they are published by no version.
    database.psql(
        "CREATE TABLE root (a int PRIMARY KEY) PARTITION BY RANGE (a);"
        "CREATE TABLE leaf PARTITION OF root FOR VALUES FROM (0) TO (9);"
        "CREATE UNLOGGED TABLE quick PARTITION OF root DEFAULT;"
        "CREATE PUBLICATION p FOR TABLE root WITH (publish_via_partition_root)"
    )
    found = one(examine(database, "p"), "tbl.kinds")
    assert (found.status, found.object) == (Status.FAIL, "public.quick")
    mend(database, "tbl.kinds")


def test_a_child_that_came_later(database: Database) -> None:
    database.psql(
        "CREATE TABLE parent (a int PRIMARY KEY); CREATE TABLE early () INHERITS (parent);"
        "CREATE PUBLICATION p FOR TABLE parent; CREATE TABLE late (PRIMARY KEY (a)) INHERITS (parent);"
        "CREATE TABLE keyless () INHERITS (early)"
    )
    findings = of(examine(database, "p"), "tbl.inherits")
    assert [(finding.object, finding.status) for finding in findings] == [
        ("public.keyless", Status.WARN),
        ("public.late", Status.WARN),
    ]
    assert [[step.kind for step in finding.fix] for finding in findings] == [["action"], ["sql"]]
    database.psql("ALTER TABLE keyless ADD PRIMARY KEY (a)")
    mend(database, "tbl.inherits")


def test_types_of_which_only_the_text_is_known(database: Database) -> None:
    database.psql("CREATE TABLE t (a int PRIMARY KEY, n numeric(9,2), t text[]); CREATE PUBLICATION p FOR TABLE t")
    assert one(examine(database, "p"), "tbl.types").status is Status.PASS
    database.psql(
        "CREATE TYPE pair AS (x int, y int); CREATE TYPE mood AS ENUM ('good'); CREATE DOMAIN age AS int;"
        "ALTER TABLE t ADD p pair, ADD m mood[], ADD d age, ADD r int4range, ADD mr int4multirange"
    )
    found = one(examine(database, "p"), "tbl.types")
    assert found.status is Status.INFO
    assert found.evidence == {
        "public.pair (composite)": ["public.t.p"],
        "public.mood[] (enum)": ["public.t.m"],
        "public.age (domain)": ["public.t.d"],
        "int4range (range)": ["public.t.r"],
        "int4multirange (range)": ["public.t.mr"],
    }


def test_sequences(database: Database) -> None:
    database.psql("CREATE TABLE t (a int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")
    assert one(examine(database, "p"), "tbl.sequences").status is Status.PASS
    database.psql(
        'CREATE SCHEMA "S"; CREATE TABLE "S"."It\'s" (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, b serial);'
        'INSERT INTO "S"."It\'s" SELECT FROM generate_series(1, 41); ALTER PUBLICATION p ADD TABLE "S"."It\'s";'
        "CREATE ROLE looker LOGIN"
    )
    found = one(examine(database, "p"), "tbl.sequences")
    assert found.status is Status.INFO
    assert sorted(found.evidence.values()) == [41, 41]
    # The action: the statements run on the copy, here on the original itself.
    statements = found.fix[0].text.partition(": ")[2]
    database.psql('TRUNCATE "S"."It\'s" RESTART IDENTITY')
    database.psql(statements)
    assert one(examine(database, "p"), "tbl.sequences").evidence == found.evidence
    # Who may not read a sequence gets no number, and no error.
    assert set(one(examine(database, "p", user="looker"), "tbl.sequences").evidence.values()) == {None}


@pytest.mark.parametrize(("gigabytes", "status"), [(0.5, Status.PASS), (20, Status.INFO), (500, Status.WARN)])
def test_the_size_of_a_snapshot(gigabytes: float, status: Status) -> None:
    # Recorded sizes: no test has half a terabyte.
    tables = [
        PublishedTable(n, "s", f"t{n}", "r", (), None, "d", (), (), 1, int(gigabytes * (1 << 29))) for n in (1, 2)
    ]
    assert judge_snapshot(tables)[0] is status


def test_the_size_of_a_real_snapshot(database18: Database) -> None:
    database18.psql(
        "CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 1000); ANALYZE t;"
        "CREATE PUBLICATION p FOR TABLE t"
    )
    found = one(examine(database18, "p"), "tbl.snapshot_size")
    assert (found.status, found.evidence["rows"], found.evidence["bytes"] > 30_000) == (Status.PASS, 1000, True)


TRIGGER = (
    "CREATE FUNCTION f() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_logical_emit_message(true,"
    " ''ddl'', tg_tag); END'; CREATE EVENT TRIGGER supabase_etl_ddl_message_trigger ON ddl_command_end"
    " WHEN tag IN ('ALTER TABLE') EXECUTE FUNCTION f()"
)


@pytest.mark.parametrize(
    "trouble",
    [
        "ALTER EVENT TRIGGER supabase_etl_ddl_message_trigger DISABLE",
        "ALTER EVENT TRIGGER supabase_etl_ddl_message_trigger ENABLE REPLICA",
        "CREATE ROLE restorer; ALTER ROLE restorer SET session_replication_role = replica",
    ],
)
def test_the_event_trigger(database: Database, trouble: str) -> None:
    assert one(examine(database), "ddl.trigger").status is Status.SKIP
    database.psql(TRIGGER)
    assert one(examine(database), "ddl.trigger").status is Status.PASS
    database.psql(trouble)
    found = one(examine(database), "ddl.trigger")
    assert (found.status, [step.kind for step in found.fix]) == (Status.WARN, ["sql"])
    apply_fixes(database, [found])
    assert one(examine(database), "ddl.trigger").status is Status.PASS
