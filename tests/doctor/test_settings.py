"""Settings: each one set so that it is at fault, then changed as printed."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psycopg
import pytest

from pgrepl import doctor
from pgrepl.catalog import settings
from pgrepl.conninfo import parse
from pgrepl.doctor import ConfiguredDatabase, Finding, Status
from tests.command import eventually, pgrepl
from tests.conftest import NewServer
from tests.doctor.conftest import apply_fixes, examine, of, one
from tests.servers.database import Database
from tests.servers.server import Server


def restart(server: Server, *given_at_start: str) -> None:
    """Restart, without these settings on the command line, so that ALTER SYSTEM decides about them."""
    server.stop(immediate=False)
    for name in given_at_start:
        server._settings.pop(name, None)
    server.start()


def test_a_setting_that_waits_for_a_restart(new_server: NewServer) -> None:
    server = new_server(18)
    restart(server, "max_wal_senders")
    database = Database(server, "postgres")
    database.psql("ALTER SYSTEM SET max_wal_senders = 7; ALTER SYSTEM SET max_locks_per_transaction = 100")
    database.psql("SELECT pg_reload_conf()")
    eventually(lambda: one(examine(database), "cfg.pending_restart").status is Status.WARN)
    found = one(examine(database), "cfg.pending_restart")
    # What has nothing to do with replication may wait.
    assert found.evidence["pending_restart"] == ["max_wal_senders"]
    restart(server)
    assert one(examine(database), "cfg.pending_restart").status is Status.PASS


def connections(database: Database, user: str = "postgres") -> Finding:
    """What is found about connections, by a doctor that opens no more of them than it needs."""
    return one(examine(database, user=user, only=["cfg.connections"]), "cfg.connections")


def test_connections_are_used_up(new_server: NewServer) -> None:
    server = new_server(17)
    restart(server, "max_connections")
    database = Database(server, "postgres")
    database.psql("ALTER SYSTEM SET max_connections = 16; CREATE ROLE looker LOGIN")
    restart(server)
    eventually(lambda: connections(database).status is Status.PASS)
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(server.connect())
        # Sessions that are closed are gone only a moment later.
        alone = {"max_connections": 16, "reserved": 3, "used": 11}
        eventually(lambda: connections(database).evidence == alone)
        found = connections(database)
        assert found.status is Status.WARN
        # Who may see nothing of the others sees as many.
        eventually(lambda: connections(database, "looker").evidence == alone)
        for _ in range(2):
            stack.enter_context(server.connect())
        eventually(lambda: connections(database).status is Status.FAIL)
    apply_fixes(database, [found])
    restart(server)
    assert connections(database).status is Status.PASS


@pytest.mark.parametrize("version", [16, 17, 18])
def test_keep_size(new_server: NewServer, version: int) -> None:
    database = Database(new_server(version), "postgres")
    found = one(examine(database), "cfg.keep_size")
    assert (found.status, found.evidence["max_slot_wal_keep_size_mb"]) == (Status.WARN, -1)
    apply_fixes(database, [found])
    eventually(lambda: one(examine(database), "cfg.keep_size").status is Status.PASS)

    # Less than what was written just now.
    database.psql("ALTER SYSTEM SET max_slot_wal_keep_size = '64MB'")
    database.psql("SELECT pg_reload_conf()")
    write = "SELECT pg_logical_emit_message(false, 'test', repeat('x', 50000000)) FROM generate_series(1, 2)"
    with database.connect() as conn:
        conn.execute(write.encode())
    eventually(lambda: "minutes" in one(examine(database, only=["cfg.keep_size"]), "cfg.keep_size").summary)
    database.psql("ALTER SYSTEM SET max_slot_wal_keep_size = 0")
    database.psql("SELECT pg_reload_conf()")
    eventually(lambda: one(examine(database, only=["cfg.keep_size"]), "cfg.keep_size").status is Status.FAIL)
    apply_fixes(database, of(examine(database), "cfg.keep_size"))
    eventually(lambda: one(examine(database, only=["cfg.keep_size"]), "cfg.keep_size").status is Status.PASS)


def test_the_new_bound_loses_no_slot(new_server: NewServer) -> None:
    database = Database(new_server(18), "postgres")
    database.psql("SELECT pg_create_physical_replication_slot('keeper', true)")
    kept = one(examine(database), "cfg.keep_size").evidence["most_kept_by_a_slot"]
    with database.connect() as conn:
        conn.execute("SELECT pg_logical_emit_message(false, 'test', repeat('x', 30000000))")
    found = one(examine(database), "cfg.keep_size")
    assert found.evidence["most_kept_by_a_slot"] >= kept + 29_000_000


def test_azure_keeps_the_bound_to_itself(database18: Database) -> None:
    # What a cloud refuses cannot be tried here: the provider is named.
    found = one(examine(database18, provider="azure"), "cfg.keep_size")
    assert [step.text for step in found.fix] == ["max_slot_wal_keep_size cannot be changed on azure"]


def test_idle_slot_timeout(new_server: NewServer, database: Database) -> None:
    if database.server.version < 18:
        assert one(examine(database), "cfg.idle_slot_timeout").status is Status.SKIP
        return
    own = Database(new_server(18), "postgres")
    assert one(examine(own), "cfg.idle_slot_timeout").status is Status.PASS
    for value, status in (("'2min'", Status.WARN), ("'2h'", Status.INFO), ("'2min'", Status.WARN)):
        own.psql(f"ALTER SYSTEM SET idle_replication_slot_timeout = {value}")
        own.psql("SELECT pg_reload_conf()")
        eventually(lambda status=status: one(examine(own), "cfg.idle_slot_timeout").status is status)  # type: ignore[misc]
    apply_fixes(own, of(examine(own), "cfg.idle_slot_timeout"))
    eventually(lambda: one(examine(own), "cfg.idle_slot_timeout").status is Status.PASS)


ROLE_SETTINGS = [
    ("cfg.sender_timeout", "wal_sender_timeout", "0", Status.WARN),
    ("cfg.sender_timeout", "wal_sender_timeout", "'9s'", Status.WARN),
    ("cfg.decoding_mem", "logical_decoding_work_mem", "'2GB'", Status.INFO),
    ("cfg.timeouts", "statement_timeout", "'1min'", Status.WARN),
    ("cfg.timeouts", "lock_timeout", "500", Status.WARN),
    ("cfg.timeouts", "idle_in_transaction_session_timeout", "'2h'", Status.WARN),
]


@pytest.mark.parametrize(("check", "setting", "value", "status"), ROLE_SETTINGS)
@pytest.mark.parametrize("where", ["ROLE cdc", "ROLE cdc IN DATABASE {}", "DATABASE {}", "ROLE ALL IN DATABASE {}"])
def test_a_setting_of_the_role(
    database18: Database, check: str, setting: str, value: str, status: Status, where: str
) -> None:
    database18.psql("CREATE ROLE cdc LOGIN REPLICATION")
    assert one(examine(database18, role="cdc"), check).status is Status.PASS
    database18.psql(f"ALTER {where.format(database18.name)} SET {setting} = {value}")
    found = one(examine(database18, role="cdc"), check)
    assert found.status is status
    # The role itself sees what was found about it from outside.
    assert one(examine(database18, user="cdc"), check).evidence == found.evidence
    apply_fixes(database18, [found])
    assert one(examine(database18, role="cdc"), check).status is Status.PASS
    assert one(examine(database18, user="cdc"), check).status is Status.PASS


def test_transaction_timeout_from_17_on(database: Database) -> None:
    database.psql("CREATE ROLE cdc LOGIN REPLICATION")
    if database.server.version < 17:
        assert "transaction_timeout_ms" not in one(examine(database), "cfg.timeouts").evidence
        return
    database.psql("ALTER ROLE cdc SET transaction_timeout = '5min'")
    found = one(examine(database, user="cdc"), "cfg.timeouts")
    assert (found.status, found.object) == (Status.WARN, "transaction_timeout")
    apply_fixes(database, [found])
    assert one(examine(database, user="cdc"), "cfg.timeouts").status is Status.PASS


def test_what_only_the_role_itself_can_tell_is_unknown(database18: Database) -> None:
    database18.psql("CREATE ROLE looker LOGIN; ALTER ROLE looker SET statement_timeout = '1min'; CREATE ROLE cdc LOGIN")
    found = one(examine(database18, user="looker", role="cdc"), "cfg.timeouts")
    assert found.status is Status.UNKNOWN
    assert "statement_timeout" in found.summary


def test_a_setting_of_the_connection_string_is_taken_out_there(database18: Database) -> None:
    target = parse(database18.dsn(options="-c statement_timeout=9s"), "the test")
    found = one(doctor.run(target), "cfg.timeouts")
    assert [step.kind for step in found.fix] == ["action"]
    assert one(examine(database18), "cfg.timeouts").status is Status.PASS


def test_tcp_keepalives(database18: Database) -> None:
    database18.psql("CREATE ROLE cdc LOGIN REPLICATION PASSWORD 'secret'")
    assert one(examine(database18), "cfg.tcp_keepalive").status is Status.SKIP

    def over_tcp(**parameters: int) -> doctor.Report:
        dsn = database18.server.tcp_dsn(database18.name, "cdc", "secret", **parameters)
        return doctor.run(parse(dsn, "the test"), only=["cfg.tcp_keepalive"])

    found = one(over_tcp(), "cfg.tcp_keepalive")
    assert found.status is Status.INFO
    assert one(over_tcp(keepalives_idle=30), "cfg.tcp_keepalive").status is Status.PASS
    apply_fixes(database18, [found])
    assert one(over_tcp(), "cfg.tcp_keepalive").status is Status.PASS


@pytest.mark.parametrize("version", [16, 18])
def test_a_server_that_subscribes(new_server: NewServer, version: int) -> None:
    server = new_server(version, log_min_messages="panic")
    database = Database(server, "postgres")
    report = examine(database)
    assert one(report, "cfg.workers").status is one(report, "cfg.origins").status is Status.SKIP
    database.psql(
        "ALTER SYSTEM SET max_logical_replication_workers = 2; CREATE ROLE looker LOGIN;"
        "CREATE SUBSCRIPTION one CONNECTION 'host=/nowhere' PUBLICATION p WITH (connect = false);"
        "CREATE SUBSCRIPTION two CONNECTION 'host=/nowhere' PUBLICATION p WITH (connect = false);"
        "ALTER SUBSCRIPTION one ENABLE; ALTER SUBSCRIPTION two ENABLE"
    )
    if version >= 18:
        database.psql("ALTER SYSTEM SET max_active_replication_origins = 2")
    restart(server)
    report = examine(database, user="looker")
    checks = ["cfg.workers", "cfg.origins"] if version >= 18 else ["cfg.workers"]
    for check in checks:
        assert one(report, check).status is Status.INFO
        apply_fixes(database, of(report, check))
    restart(server)
    report = examine(database, user="looker")
    assert {one(report, check).status for check in checks} == {Status.PASS}
    database.psql(
        "ALTER SUBSCRIPTION one DISABLE; ALTER SUBSCRIPTION one SET (slot_name = NONE); DROP SUBSCRIPTION one;"
        "ALTER SUBSCRIPTION two DISABLE; ALTER SUBSCRIPTION two SET (slot_name = NONE); DROP SUBSCRIPTION two"
    )


def test_what_is_lost_in_a_crash(new_server: NewServer) -> None:
    server = new_server(18)
    database = Database(server, "postgres")
    found = one(examine(database), "cfg.fsync")
    # On the command line, as Patroni has its settings, ALTER SYSTEM is of no use.
    assert (found.status, found.object, [step.kind for step in found.fix]) == (
        Status.WARN,
        "fsync",
        ["action", "action"],
    )
    restart(server, "fsync")
    assert one(examine(database), "cfg.fsync").status is Status.PASS
    database.psql("ALTER SYSTEM SET fsync = off; ALTER SYSTEM SET full_page_writes = off")
    database.psql("ALTER SYSTEM SET synchronous_commit = off")
    database.psql("SELECT pg_reload_conf()")
    eventually(lambda: len(of(examine(database), "cfg.fsync")) == 3)
    findings = of(examine(database), "cfg.fsync")
    assert [finding.status for finding in findings] == [Status.WARN, Status.WARN, Status.INFO]
    apply_fixes(database, findings)
    eventually(lambda: one(examine(database), "cfg.fsync").status is Status.PASS)


def test_two_databases_with_one_identity(database18: Database) -> None:
    one_entry = ConfiguredDatabase("a", "db1/orders", "5432")
    same = ConfiguredDatabase("b", "db1/orders", "5433")
    other = ConfiguredDatabase("c", "DB1/orders", "5432")
    assert one(examine(database18), "cfg.identity").status is Status.SKIP
    assert one(examine(database18, databases=[one_entry, other]), "cfg.identity").status is Status.PASS
    found = one(examine(database18, databases=[one_entry, same, other]), "cfg.identity")
    assert (found.status, found.object, found.evidence["ports"]) == (Status.FAIL, "db1/orders", ["5432", "5433"])
    # Without a server it is told as well.
    target = parse("host=/nonexistent", "the test")
    assert one(doctor.run(target, databases=[one_entry, same]), "cfg.identity").status is Status.FAIL


@pytest.mark.parametrize(
    ("text", "unit", "number"),
    [("60s", "ms", 60000), ("1min", "ms", 60000), ("500", "ms", 500), ("2GB", "kB", 2 << 20), ("-1", "MB", -1)],
)
def test_amounts(text: str, unit: str, number: float) -> None:
    assert settings.amount(text, unit) == number


def test_amounts_that_are_none() -> None:
    with pytest.raises(ValueError, match="soon"):
        settings.amount("soon", "ms")


def test_the_server_reads_amounts_alike(database18: Database) -> None:
    with database18.connect() as conn:
        for text in ("60s", "1min", "2h", "1d", "500", "1.5s"):
            with contextlib.suppress(psycopg.errors.InvalidParameterValue):
                conn.execute(f"SET statement_timeout = '{text}'".encode())
            found = settings.read(conn, ["statement_timeout"])["statement_timeout"]
            assert found.number == settings.amount(text, "ms")


def test_the_entries_of_the_configuration_are_compared(database18: Database, tmp_path: Path) -> None:
    server = database18.server
    entry = f'[[databases]]\nhost = "{server.host}"\ndbname = "{database18.name}"\nport = {server.port}\n'
    path = tmp_path / "pgrepl.toml"
    path.write_text(f'{entry}name = "a"\n[[databases]]\nname = "b"\ndbname = "other"\n')
    done = pgrepl("doctor", "-c", str(path), "--database", "a", "--only", "cfg.identity")
    assert "2 databases, each its own" in done.stdout
    # Two of one identity do not get past the reading of the file.
    path.write_text(f'{entry}name = "a"\n{entry}name = "b"\n')
    done = pgrepl("doctor", "-c", str(path), "--database", "a", "--only", "cfg.identity")
    assert (done.returncode, done.stdout) == (2, "")
    # One that only lies about is not read where a connection string says what is meant.
    done = pgrepl("doctor", "-d", database18.dsn(), "--only", "cfg.identity", XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == 0


def test_nagios_is_about_one_database(tmp_path: Path) -> None:
    path = tmp_path / "pgrepl.toml"
    path.write_text('[[databases]]\ndbname = "a"\n[[databases]]\ndbname = "b"\n')
    done = pgrepl("doctor", "-c", str(path), "--all-databases", "--nagios")
    assert done.returncode == 2
    assert "one database" in done.stderr
