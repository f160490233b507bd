"""Each check on a server that is made to fail it; then its fix is carried out as printed, and it passes."""

from __future__ import annotations

import psycopg
import pytest

from pgrepl import doctor
from pgrepl.conninfo import parse
from pgrepl.doctor import Status
from pgrepl.doctor.checks import CHECKS
from tests.command import eventually
from tests.conftest import NewServer
from tests.doctor.conftest import apply_fixes, examine, of, one, statuses, troubles
from tests.servers.database import Database
from tests.servers.server import Server


def test_a_server_that_is_ready_passes_everything(database: Database) -> None:
    database.psql("CREATE TABLE t (a int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")
    report = examine(database, "p")
    assert troubles(report) == {}
    assert not report.fails("fail")
    assert not report.fails("unknown")
    assert report.server.version_num is not None
    assert report.server.version_num // 10000 == database.server.version
    assert (report.server.database, report.server.provider, report.role) == (database.name, "self-hosted", "postgres")


def test_nothing_but_the_server_is_checked_in_an_empty_database(database18: Database) -> None:
    report = examine(database18)
    assert troubles(report) == {}
    skipped = {name for name, status in statuses(report).items() if status == {"skip"}}
    assert skipped >= {"role.select", "role.rls", "pub.exists", "pub.nonempty", "pub.ops", "tbl.replica_identity"}


def test_without_a_name_every_publication_is_looked_at(database18: Database) -> None:
    database18.psql("CREATE PUBLICATION empty_one; CREATE PUBLICATION other")
    report = examine(database18)
    assert list(report.publications) == ["empty_one", "other"]
    assert [finding.object for finding in of(report, "pub.nonempty")] == ["empty_one", "other"]


def test_no_connection_is_a_finding_and_the_rest_is_skipped(server18: Server) -> None:
    report = doctor.run(parse(server18.dsn("no_such_database"), "the test"), publications=["p"], role="cdc")
    assert report.error is not None
    assert statuses(report) == {**{check.id: {"skip"} for check in CHECKS}, "conn.sql": {"fail"}}
    assert "no_such_database" in one(report, "conn.sql").summary
    assert one(report, "conn.sql").fix
    assert report.server == doctor.ServerIdentity()
    assert (list(report.publications), report.role) == (["p"], "cdc")


def test_a_password_is_not_in_what_failed(server18: Server) -> None:
    target = parse(server18.tcp_dsn(password="not-to-be-seen"), "the test")
    report = doctor.run(target)
    assert report.error is not None
    assert "not-to-be-seen" not in str(report.document()) + str(report.error)


def test_version_15_is_refused_and_its_tables_are_not_judged(server15: Server) -> None:
    with server15.connect() as conn:
        conn.execute("DROP PUBLICATION IF EXISTS old; CREATE PUBLICATION old")
    report = doctor.run(parse(server15.dsn(), "the test"), publications=["old"])
    assert one(report, "server.version").status is Status.FAIL
    assert "15." in one(report, "server.version").summary
    assert one(report, "server.version").evidence["version_num"] // 10000 == 15
    assert one(report, "pub.nonempty").status is Status.SKIP
    assert report.fails()


@pytest.mark.parametrize("version", [16, 17, 18])
def test_wal_level(new_server: NewServer, version: int) -> None:
    # The setting is the configuration's and not the command line's, which would win over ALTER SYSTEM.
    server = new_server(version)
    restart_with(server, "ALTER SYSTEM SET wal_level = replica", "wal_level")
    database = Database(server, "postgres")

    found = one(examine(database), "cfg.wal_level")
    assert found.status is Status.FAIL
    assert found.evidence["wal_level"] == "replica"
    assert [step.kind for step in found.fix] == ["sql", "action"]

    apply_fixes(database, [found])
    with server.connect() as conn:
        conn.execute("SELECT pg_reload_conf()")
    eventually(lambda: one(examine(database), "cfg.wal_level").evidence["pending_restart"] is True)
    assert [step.kind for step in one(examine(database), "cfg.wal_level").fix] == ["action"]

    server.stop(immediate=False)
    server.start()
    assert one(examine(database), "cfg.wal_level").status is Status.PASS


def test_no_slot_is_free(new_server: NewServer) -> None:
    server = new_server(18)
    restart_with(server, "ALTER SYSTEM SET max_replication_slots = 2", "max_replication_slots")
    database = Database(server, "postgres")
    with server.connect() as conn:
        conn.execute("SELECT pg_create_physical_replication_slot('one')")
        assert one(examine(database), "cfg.slots_free").status is Status.WARN
        conn.execute("SELECT pg_create_logical_replication_slot('two', 'pgoutput')")
    found = one(examine(database), "cfg.slots_free")
    assert found.status is Status.FAIL
    assert found.evidence == {"max_replication_slots": 2, "used": 2, "lost": []}
    # A slot that is there already needs no place.
    assert one(examine(database, slot="two"), "cfg.slots_free").status is Status.PASS

    apply_fixes(database, [found])
    server.stop(immediate=False)
    server.start()
    assert one(examine(database), "cfg.slots_free").status is Status.PASS


def test_no_walsender_is_free(new_server: NewServer) -> None:
    server = new_server(18)
    restart_with(server, "ALTER SYSTEM SET max_wal_senders = 1", "max_wal_senders")
    database = Database(server, "postgres")
    with server.connect(replication="database"):
        report = examine(database)
    assert one(report, "cfg.senders_free").status is Status.FAIL
    assert one(report, "conn.replication").status is Status.FAIL
    eventually(lambda: one(examine(database), "cfg.senders_free").status is Status.WARN)

    apply_fixes(database, of(report, "cfg.senders_free"))
    server.stop(immediate=False)
    server.start()
    report = examine(database)
    assert one(report, "cfg.senders_free").status is Status.PASS
    assert one(report, "conn.replication").status is Status.PASS


def restart_with(server: Server, statement: str, setting: str) -> None:
    """Change a setting where ALTER SYSTEM writes it, so that a fix can change it again."""
    with server.connect() as conn:
        conn.execute(statement.encode())
    server.stop(immediate=False)
    del server._settings[setting]
    server.start()


def test_fewer_walsenders_than_slots_is_worth_a_look(new_server: NewServer) -> None:
    server = new_server(16, max_wal_senders="5", max_replication_slots="6")
    found = one(examine(Database(server, "postgres")), "cfg.senders_free")
    assert found.status is Status.WARN
    assert "max_replication_slots" in found.summary


def test_a_role_with_login_alone(database: Database) -> None:
    database.psql(
        'CREATE ROLE "Plain Login" LOGIN; CREATE SCHEMA "Shop"; CREATE TABLE "Shop"."Orders" (a int PRIMARY KEY);'
        'CREATE TABLE public.b (a int PRIMARY KEY, c int); GRANT SELECT (a) ON b TO "Plain Login";'
        'CREATE PUBLICATION p FOR TABLE "Shop"."Orders", b'
    )
    report = examine(database, "p", user="Plain Login")
    assert troubles(report) == {
        "conn.replication": {"fail"},
        "role.replication": {"fail"},
        "role.select": {"fail"},
        "live.disk": {"unknown"},
    }
    assert [finding.object for finding in of(report, "role.select")] == ["Shop.Orders", "public.b"]
    assert of(report, "role.select")[0].evidence == {"schema_usage": False, "unreadable_columns": ["a"]}
    assert of(report, "role.select")[1].evidence == {"schema_usage": True, "unreadable_columns": ["c"]}

    # Seen from outside it is the same, but for what only the role itself can try.
    outside = troubles(examine(database, "p", role="Plain Login"))
    assert outside == {"role.replication": {"fail"}, "role.select": {"fail"}}

    for check_id in troubles(report):
        apply_fixes(database, of(report, check_id))
    assert troubles(examine(database, "p", user="Plain Login")) == {}


def test_a_column_that_is_not_published_need_not_be_readable(database18: Database) -> None:
    database18.psql(
        "CREATE ROLE reader LOGIN REPLICATION; CREATE TABLE t (a int PRIMARY KEY, secret text);"
        "GRANT SELECT (a) ON t TO reader; CREATE PUBLICATION p FOR TABLE t (a)"
    )
    assert one(examine(database18, "p", user="reader"), "role.select").status is Status.PASS


def test_a_role_that_does_not_exist(database18: Database) -> None:
    database18.psql("CREATE TABLE t (a int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")
    report = examine(database18, "p", role="cdc")
    assert one(report, "role.replication").object == "cdc"
    assert one(report, "role.select").status is Status.SKIP
    apply_fixes(database18, of(report, "role.replication"))
    report = examine(database18, "p", role="cdc")
    assert one(report, "role.replication").status is Status.PASS
    assert one(report, "role.select").status is Status.FAIL


def test_replication_granted_by_a_service(database18: Database) -> None:
    # Recorded of RDS: roles never have the attribute there, and a role named rds_replication is granted.
    database18.psql("CREATE ROLE rds_replication; CREATE ROLE rds_superuser; CREATE ROLE cdc LOGIN")
    report = examine(database18, role="cdc")
    assert report.server.provider == "rds"
    assert [step.text for step in one(report, "role.replication").fix] == ['GRANT rds_replication TO "cdc";']
    apply_fixes(database18, of(report, "role.replication"))
    assert one(examine(database18, role="cdc"), "role.replication").status is Status.PASS


def test_a_service_changes_settings_in_its_own_place(new_server: NewServer) -> None:
    database = Database(new_server(18, wal_level="replica"), "postgres")
    fixes = {
        name: one(examine(database, provider=name), "cfg.wal_level").fix
        for name in ("rds", "aurora", "cloudsql", "alloydb", "azure", "neon", "supabase")
    }
    assert {step.kind for fix in fixes.values() for step in fix} == {"action"}
    assert "rds.logical_replication" in fixes["aurora"][0].text
    assert "cloudsql.logical_decoding" in fixes["cloudsql"][0].text


def test_a_publication_that_does_not_exist(database: Database) -> None:
    database.psql(
        'CREATE TABLE a (x int PRIMARY KEY); CREATE TABLE "no key" (x int); CREATE SCHEMA "S";'
        'CREATE TABLE "S"."Part ed" (x int PRIMARY KEY) PARTITION BY LIST (x);'
        'CREATE TABLE "S".leaf PARTITION OF "S"."Part ed" DEFAULT; CREATE PUBLICATION "Orders_pub" FOR TABLE a'
    )
    report = examine(database, "orders_pub")
    found = one(report, "pub.exists")
    assert (found.status, found.object) == (Status.FAIL, "orders_pub")
    assert "did you mean Orders_pub?" in found.summary
    assert statuses(report)["pub.nonempty"] == {"skip"}

    apply_fixes(database, [found])
    report = examine(database, "orders_pub")
    # What has no replica identity is not proposed: publishing it would break the application.
    assert troubles(report) == {}
    with database.connect() as conn:
        query = "SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = 'orders_pub' ORDER BY 1"
        assert conn.execute(query).fetchall() == [("S", "Part ed"), ("public", "a")]


def test_a_publication_without_tables(database: Database) -> None:
    database.psql('CREATE TABLE a (x int PRIMARY KEY); CREATE TABLE keyless (x int); CREATE PUBLICATION "P p"')
    found = one(examine(database, "P p"), "pub.nonempty")
    assert (found.status, found.object) == (Status.FAIL, "P p")
    apply_fixes(database, [found])
    assert troubles(examine(database, "P p")) == {}


def test_a_publication_of_all_tables_that_are_none(database18: Database) -> None:
    database18.psql("CREATE PUBLICATION everything FOR ALL TABLES")
    found = one(examine(database18, "everything"), "pub.nonempty")
    assert found.status is Status.FAIL
    assert [step.kind for step in found.fix] == ["action"]


@pytest.mark.parametrize(
    "table",
    [
        "CREATE TABLE %s (a int, b int)",
        "CREATE TABLE %s (a int NOT NULL, b int); CREATE UNIQUE INDEX ON %s (a)",
        "CREATE TABLE %s (a int PRIMARY KEY, b int); ALTER TABLE %s REPLICA IDENTITY NOTHING",
        "CREATE TABLE %s (a int, b int NOT NULL); CREATE UNIQUE INDEX x ON %s (b);"
        "ALTER TABLE %s REPLICA IDENTITY USING INDEX x; DROP INDEX public.x",
    ],
    ids=["no key", "unique index", "nothing", "index gone"],
)
def test_a_table_without_replica_identity(database: Database, table: str) -> None:
    name = 'public."Order ""lines"""'
    database.psql(
        f"{table.replace('%s', name)}; INSERT INTO {name} VALUES (1, 1); CREATE PUBLICATION p FOR TABLE {name}"
    )
    found = one(examine(database, "p"), "tbl.replica_identity")
    assert (found.status, found.object) == (Status.FAIL, 'public.Order "lines"')
    update = f"UPDATE {name} SET b = 2".encode()
    with database.connect() as conn, pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        conn.execute(update)

    apply_fixes(database, [found])
    assert one(examine(database, "p"), "tbl.replica_identity").status is Status.PASS
    with database.connect() as conn:
        conn.execute(update)


def test_a_partition_without_replica_identity_behind_a_root_that_has_one(database: Database) -> None:
    database.psql(
        "CREATE TABLE root (a int PRIMARY KEY, b int) PARTITION BY RANGE (a);"
        "CREATE TABLE leaf PARTITION OF root DEFAULT; ALTER TABLE leaf REPLICA IDENTITY NOTHING;"
        "CREATE PUBLICATION p FOR TABLE root WITH (publish_via_partition_root)"
    )
    found = one(examine(database, "p"), "tbl.replica_identity")
    assert (found.status, found.object) == (Status.FAIL, "public.leaf")
    apply_fixes(database, [found])
    assert one(examine(database, "p"), "tbl.replica_identity").status is Status.PASS


@pytest.mark.parametrize("operation", ["update", "delete"])
def test_either_of_update_and_delete_needs_a_replica_identity(database18: Database, operation: str) -> None:
    database18.psql(f"CREATE TABLE t (a int); CREATE PUBLICATION p FOR TABLE t WITH (publish = 'insert, {operation}')")
    found = one(examine(database18, "p"), "tbl.replica_identity")
    assert found.status is Status.FAIL
    assert found.summary == f"no primary key: {operation.upper()} on it fails"


def test_inserts_alone_need_no_replica_identity(database18: Database) -> None:
    database18.psql("CREATE TABLE t (a int); CREATE PUBLICATION p FOR TABLE t WITH (publish = 'insert, truncate')")
    report = examine(database18, "p")
    assert one(report, "tbl.replica_identity").status is Status.WARN
    assert not report.fails("fail")
    assert report.fails("warn")
    # Another publication may publish what this one does not.
    database18.psql("CREATE PUBLICATION q FOR TABLE t")
    assert one(examine(database18, "p"), "tbl.replica_identity").status is Status.WARN
    assert one(examine(database18), "tbl.replica_identity").status is Status.FAIL
