"""The role: its way in, its rights, and what it must not have."""

from __future__ import annotations

import psycopg
import pytest

from pgrepl.connection import connect
from pgrepl.conninfo import parse
from pgrepl.doctor import Report, Status
from tests.doctor.conftest import apply_fixes, examine, of, one
from tests.servers.database import Database


def test_login_and_connect(database: Database) -> None:
    database.psql(f"CREATE ROLE cdc; REVOKE CONNECT ON DATABASE {database.name} FROM PUBLIC")
    found = one(examine(database, role="cdc"), "role.connect")
    assert (found.status, found.evidence) == (Status.FAIL, {"login": False, "connect": False})
    with pytest.raises(psycopg.OperationalError):
        database.connect("cdc")
    apply_fixes(database, [found])
    database.connect("cdc").close()
    assert one(examine(database, user="cdc"), "role.connect").status is Status.PASS


def test_a_password_that_expires(database18: Database) -> None:
    database18.psql("CREATE ROLE cdc LOGIN REPLICATION PASSWORD 'secret'")
    assert one(examine(database18, role="cdc"), "role.valid").status is Status.PASS
    for interval, status in (("40 days", Status.PASS), ("10 days", Status.WARN), ("-1 day", Status.FAIL)):
        until = f"SELECT format('ALTER ROLE cdc VALID UNTIL %L', now() + interval '{interval}') \\gexec"
        database18.psql(until)
        assert one(examine(database18, role="cdc"), "role.valid").status is status
    dsn = database18.server.tcp_dsn(database18.name, "cdc", "secret")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn)
    apply_fixes(database18, of(examine(database18, role="cdc"), "role.valid"))
    assert one(examine(database18, role="cdc"), "role.valid").status is Status.PASS
    psycopg.connect(dsn).close()


def test_a_limit_of_connections(database18: Database) -> None:
    database18.psql("CREATE ROLE cdc LOGIN REPLICATION CONNECTION LIMIT 2")
    assert one(examine(database18, role="cdc"), "role.valid").status is Status.PASS
    with database18.connect("cdc"):
        assert one(examine(database18, role="cdc"), "role.valid").status is Status.WARN
        with database18.connect("cdc"):
            found = one(examine(database18, role="cdc"), "role.valid")
            assert found.status is Status.FAIL
            apply_fixes(database18, [found])
            assert one(examine(database18, role="cdc"), "role.valid").status is Status.PASS


def test_a_limit_that_leaves_the_doctor_one_connection(database18: Database) -> None:
    database18.psql("CREATE ROLE cdc LOGIN REPLICATION CONNECTION LIMIT 1")
    report = examine(database18, user="cdc")
    assert one(report, "role.valid").status is Status.WARN
    # What needs a second connection is unknown or at fault, and no traceback.
    assert one(report, "conn.single_instance").status is Status.UNKNOWN


@pytest.mark.parametrize(
    ("owner", "table", "status"),
    [
        ("postgres", "ENABLE ROW LEVEL SECURITY", Status.FAIL),
        ("cdc", "ENABLE ROW LEVEL SECURITY", Status.PASS),
        ("cdc", "FORCE ROW LEVEL SECURITY, ENABLE ROW LEVEL SECURITY", Status.FAIL),
        ("postgres", "FORCE ROW LEVEL SECURITY", Status.PASS),
    ],
)
def test_row_security(database18: Database, owner: str, table: str, status: Status) -> None:
    database18.psql(
        "CREATE ROLE cdc LOGIN REPLICATION; CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t VALUES (1), (2);"
        "GRANT SELECT ON t TO cdc; CREATE POLICY visible ON t USING (a = 1); CREATE PUBLICATION p FOR TABLE t;"
        f"ALTER TABLE t {table}; ALTER TABLE t OWNER TO {owner}"
    )

    def rows() -> int:
        with connect(parse(database18.dsn("cdc"), "the test")) as conn:
            row = conn.execute("SELECT count(*) FROM public.t").fetchone()
            assert row is not None
            return int(row[0])

    found = one(examine(database18, "p", role="cdc"), "role.rls")
    assert (found.status, rows()) == (status, 1 if status is Status.FAIL else 2)
    assert one(examine(database18, "p", user="cdc"), "role.rls").status is status
    apply_fixes(database18, [found])
    assert (one(examine(database18, "p", role="cdc"), "role.rls").status, rows()) == (Status.PASS, 2)


def test_create_for_the_store(database18: Database) -> None:
    database18.psql("CREATE ROLE cdc LOGIN REPLICATION")
    assert one(examine(database18, role="cdc"), "role.create").status is Status.INFO
    found = one(examine(database18, role="cdc", store="postgres"), "role.create")
    assert found.status is Status.FAIL
    apply_fixes(database18, [found])
    assert one(examine(database18, role="cdc", store="postgres"), "role.create").status is Status.PASS
    with database18.connect("cdc") as conn:
        conn.execute("CREATE SCHEMA IF NOT EXISTS etl")


def test_create_for_the_bookmarks(database18: Database) -> None:
    database18.psql("CREATE ROLE cdc LOGIN REPLICATION; CREATE ROLE second LOGIN REPLICATION")
    found = one(examine(database18, role="cdc", store="bookmarks"), "role.create")
    assert found.status is Status.FAIL
    apply_fixes(database18, [found])
    assert one(examine(database18, role="cdc", store="bookmarks"), "role.create").status is Status.PASS
    with database18.connect("cdc") as conn:
        conn.execute("CREATE TABLE faucet_state (key text PRIMARY KEY, value jsonb NOT NULL)")
    assert one(examine(database18, role="cdc", store="bookmarks"), "role.create").status is Status.PASS
    found = one(examine(database18, role="second", store="bookmarks"), "role.create")
    assert found.status is Status.FAIL
    apply_fixes(database18, [found])
    assert one(examine(database18, role="second", store="bookmarks"), "role.create").status is Status.PASS


def test_a_superuser_that_replicates(database18: Database) -> None:
    database18.psql("CREATE ROLE cdc LOGIN SUPERUSER")
    found = one(examine(database18, role="cdc"), "role.superuser")
    assert (found.status, [step.kind for step in found.fix]) == (Status.WARN, ["command", "action"])
    database18.psql(found.fix[1].text.partition("and then ")[2])
    report = examine(database18, role="cdc")
    assert one(report, "role.superuser").status is one(report, "role.replication").status is Status.PASS
    # Who only looks around has chosen nobody; and initdb's own role stays what it is.
    found = one(examine(database18), "role.superuser")
    assert (found.status, [step.kind for step in found.fix]) == (Status.INFO, ["command"])


def test_who_may_make_the_missing_publication(database18: Database) -> None:
    database18.psql("CREATE ROLE maker LOGIN; CREATE TABLE t (a int PRIMARY KEY)")
    assert one(examine(database18), "role.pub_create").status is Status.SKIP
    assert one(examine(database18, "p"), "role.pub_create").status is Status.PASS
    found = one(examine(database18, "p", user="maker"), "role.pub_create")
    assert (found.status, [step.kind for step in found.fix]) == (Status.WARN, ["sql", "action"])
    assert found.evidence["tables_of_others"] == ["public.t"]
    apply_fixes(database18, [found])
    assert [step.kind for step in one(examine(database18, "p", user="maker"), "role.pub_create").fix] == ["action"]
    # The action: somebody who may runs what pub.exists prints.
    apply_fixes(database18, of(examine(database18, "p", user="maker"), "pub.exists"))
    assert one(examine(database18, "p", user="maker"), "role.pub_create").status is Status.SKIP


def test_the_owner_makes_it(database18: Database) -> None:
    database18.psql(
        f"CREATE ROLE maker LOGIN; GRANT CREATE ON DATABASE {database18.name} TO maker;"
        "CREATE TABLE t (a int PRIMARY KEY); ALTER TABLE t OWNER TO maker"
    )
    report = examine(database18, "p", user="maker")
    assert one(report, "role.pub_create").status is Status.PASS
    with database18.connect("maker") as conn:
        conn.execute(one(report, "pub.exists").fix[0].text.encode())


def test_pg_monitor(database18: Database) -> None:
    database18.psql("CREATE ROLE looker LOGIN")
    found = one(examine(database18, user="looker"), "role.monitor")
    assert found.status is Status.INFO
    apply_fixes(database18, [found])
    assert one(examine(database18, user="looker"), "role.monitor").status is Status.PASS


def test_whoever_looks_finds_the_same_or_does_not_know(database: Database) -> None:
    database.psql(
        "CREATE ROLE cdc LOGIN; CREATE ROLE watcher LOGIN; GRANT pg_monitor TO watcher; CREATE ROLE looker LOGIN;"
        "CREATE ROLE replicator LOGIN REPLICATION; ALTER ROLE cdc SET statement_timeout = '9s';"
        "CREATE SCHEMA shop; CREATE TABLE shop.a (x int, y text); CREATE TABLE shop.b (x int PRIMARY KEY, y int);"
        "ALTER TABLE shop.b ENABLE ROW LEVEL SECURITY; ALTER TABLE shop.b REPLICA IDENTITY FULL;"
        "CREATE SCHEMA etl; CREATE TABLE etl.pgrepl_pipelines (pipeline_id bigint);"
        "CREATE TABLE public.parent (x int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE parent, shop.a;"
        "CREATE TABLE public.child (y int) INHERITS (parent); ALTER PUBLICATION p ADD TABLE shop.b (x) WHERE (y > 1)"
    )
    all_seen = {
        user: _statuses(examine(database, "p", user=user, role="cdc"))
        for user in ("postgres", "watcher", "replicator", "looker")
    }
    reference = all_seen["postgres"]
    # These are about who looks.
    about_the_looker = {"role.monitor", "conn.sql"}
    for user, seen in all_seen.items():
        assert seen.keys() == reference.keys()
        for check, statuses in seen.items():
            if check not in about_the_looker:
                assert statuses == reference[check] or statuses <= {"unknown", "skip"}, (user, check, statuses)
    failed = {check for check, statuses in reference.items() if "fail" in statuses}
    assert failed >= {
        "role.replication",
        "role.select",
        "role.rls",
        "tbl.replica_identity",
        "pub.columns_ri",
    }


def _statuses(report: Report) -> dict[str, set[str]]:
    return {finding.id: {other.status.value for other in of(report, finding.id)} for finding in report.findings}
