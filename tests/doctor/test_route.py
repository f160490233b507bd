"""Where connections lead, and what the server at their end is."""

from __future__ import annotations

import itertools
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pgrepl import doctor
from pgrepl.conninfo import parse
from pgrepl.doctor import Status
from pgrepl.doctor.checks.route import judge_tls, signs_of_a_pooler
from tests.command import eventually
from tests.conftest import NewServer
from tests.doctor.conftest import apply_fixes, examine, of, one
from tests.proxy import Proxy
from tests.servers.database import Database
from tests.servers.server import Server


class Balancer(Proxy):
    """Lead each connection to the next of several servers."""

    def __init__(self, servers: list[Server]) -> None:
        self._next = itertools.cycle([f"{server.host}/.s.PGSQL.{server.port}" for server in servers])
        super().__init__("")

    @property
    def target(self) -> str:
        return next(self._next)

    @target.setter
    def target(self, _path: str) -> None:
        pass


@contextmanager
def balancer(*servers: Server) -> Iterator[Balancer]:
    running = Balancer(list(servers))
    try:
        yield running
    finally:
        running.close()


def test_a_balancer_in_front_of_two_servers(server18: Server, new_server: NewServer) -> None:
    other = new_server(18)
    with balancer(server18, other) as front:
        report = doctor.run(parse(server18.tcp_dsn(port=front.port, sslmode="disable"), "the test"))
    found = one(report, "conn.same_server")
    assert found.status is Status.FAIL
    assert found.evidence["sql"] != found.evidence["replication"]
    assert one(report, "conn.single_instance").status is Status.FAIL
    assert one(report, "conn.single_instance").evidence["sqlstate"] in ("42704", "22023")
    assert [step.kind for step in found.fix] == ["action"]

    # The action: past the balancer, to one server.
    with balancer(server18) as front:
        report = doctor.run(parse(server18.tcp_dsn(port=front.port, sslmode="disable"), "the test"))
    assert one(report, "conn.same_server").status is Status.PASS
    assert one(report, "conn.single_instance").status is Status.PASS
    assert one(report, "conn.pooler").status is Status.PASS


@pytest.mark.parametrize(
    ("host", "port", "announced", "pids", "error", "count"),
    [
        ("db1", "5432", 711, [711, 711], "", 0),
        # Recorded of PgBouncer in transaction mode: its own number first, then two server processes.
        ("db1", "6432", 2039411, [711, 815], "", 3),
        ("ep-cool-pooler.eu-central-1.aws.neon.tech", "5432", 711, [711, 711], "", 1),
        ("aws-0-eu-central-1.pooler.supabase.com", "6543", 711, [711, 711], "", 2),
        ("app.proxy-abc.eu-central-1.rds.amazonaws.com", "5432", 711, [711, 711], "", 1),
        ("db1", "5432", None, [], "FATAL: unsupported startup parameter: replication", 1),
    ],
)
def test_a_pooler_by_its_recorded_signs(
    host: str, port: str, announced: int | None, pids: list[int], error: str, count: int
) -> None:
    assert len(signs_of_a_pooler(host, port, announced, pids, error)) == count


class Numberer(Proxy):
    """Announce another process id than the server's, as poolers do."""

    def _pass_on(self, client: Any) -> None:
        super()._pass_on(_Renumbered(client))  # type: ignore[arg-type]


class _Renumbered:
    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def __enter__(self) -> _Renumbered:
        self._client.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        self._client.__exit__(*details)

    def sendall(self, data: bytes) -> None:
        # BackendKeyData: K, its length, the process id, the key.
        at = data.find(b"K\x00\x00\x00\x0c")
        if at >= 0:
            data = data[: at + 5] + (7).to_bytes(4, "big") + data[at + 9 :]
        self._client.sendall(data)


def test_a_process_id_that_is_not_the_servers(server18: Server) -> None:
    front = Numberer(f"{server18.host}/.s.PGSQL.{server18.port}")
    try:
        target = parse(server18.tcp_dsn(port=front.port, sslmode="disable"), "the test")
        found = one(doctor.run(target, only=["conn.pooler"]), "conn.pooler")
    finally:
        front.close()
    # It passes replication connections, so that it is worth a look and no failure.
    assert (found.status, found.evidence["announced_pid"]) == (Status.WARN, 7)
    direct = parse(server18.dsn(), "the test")
    assert one(doctor.run(direct, only=["conn.pooler"]), "conn.pooler").status is Status.PASS


def test_a_pooler_that_is_not_reached_is_told_by_its_name() -> None:
    report = doctor.run(parse("host=ep-x-pooler.invalid dbname=app", "the test"))
    assert one(report, "conn.pooler").status is Status.FAIL


@pytest.mark.parametrize(
    ("host", "address", "encrypted", "sslmode", "status"),
    [
        ("/run/postgresql", "", False, "prefer", "pass"),
        ("localhost", "127.0.0.1", False, "prefer", "pass"),
        ("localhost", "", False, "disable", "pass"),
        # Off this machine nothing runs in the tests: recorded answers of libpq.
        ("db1.example.com", "192.0.2.1", False, "prefer", "warn"),
        ("192.0.2.1", "", False, "disable", "warn"),
        ("db1.example.com", "192.0.2.1", True, "require", "info"),
        ("db1.example.com", "192.0.2.1", True, "verify-full", "pass"),
    ],
)
def test_tls(host: str, address: str, encrypted: bool, sslmode: str, status: str) -> None:
    assert judge_tls(host, address, encrypted, sslmode)[0].value == status


def test_tls_of_a_real_connection(server18: Server) -> None:
    target = parse(server18.tcp_dsn(), "the test")
    found = one(doctor.run(target, only=["conn.tls"]), "conn.tls")
    assert (found.status, found.evidence["encrypted"]) == (Status.PASS, False)


@pytest.mark.parametrize(("encoding", "status"), [("LATIN1", Status.WARN), ("SQL_ASCII", Status.FAIL)])
def test_encoding(database18: Database, encoding: str, status: Status) -> None:
    server, name = database18.server, f"{database18.name}_{encoding.lower()}"
    with server.connect() as conn:
        conn.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0".encode())
    try:
        other = Database(server, name)
        other.psql("CREATE TABLE t (a text); INSERT INTO t VALUES ('plain')")
        found = one(examine(other), "server.encoding")
        assert (found.status, found.evidence["encoding"]) == (status, encoding)
        # The action: dump, and restore into a database of UTF8.
        command = [str(server.bindir / "pg_dump"), "-E", "UTF8", "-d", other.dsn()]
        dump = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        database18.psql(dump)
        assert one(examine(database18), "server.encoding").status is Status.PASS
    finally:
        with server.connect() as conn:
            conn.execute(f"DROP DATABASE {name}".encode())


def standby(server: Server) -> None:
    """Start the server again in recovery, without a primary."""
    server.stop(immediate=False)
    (server._cluster.data / "standby.signal").touch()
    server.start()


@pytest.mark.parametrize("version", [16, 17, 18])
def test_recovery_and_promotion(new_server: NewServer, version: int) -> None:
    server = new_server(version)
    database = Database(server, "postgres")
    slot = "identity_test"
    identity = examine(database).server.system_identifier
    database.psql(
        "CREATE TABLE faucet_state (key text PRIMARY KEY, value jsonb NOT NULL, updated_at timestamptz DEFAULT now());"
        f"INSERT INTO faucet_state SELECT 'pgrepl::{slot}',"
        f" jsonb_build_object('system_identifier', '{identity}', 'timeline', 1)"
    )
    assert one(examine(database), "server.recovery").status is Status.PASS
    assert one(examine(database, slot=slot), "server.identity").status is Status.PASS

    standby(server)
    found = one(examine(database), "server.recovery")
    assert (found.status, [step.kind for step in found.fix]) == (Status.INFO, ["action"])
    # The action is to connect to a primary; here the standby becomes one, and begins a new timeline.
    database.psql("SELECT pg_promote(true)")
    eventually(lambda: one(examine(database), "server.recovery").status is Status.PASS)
    database.psql("CHECKPOINT")
    found = one(examine(database, slot=slot), "server.identity")
    assert (found.status, found.object) == (Status.FAIL, slot)
    assert "timeline 1" in found.summary
    assert found.fix[-1].text == f"pgrepl state adopt --store bookmarks --slot {slot}"
    # What adopt records.
    database.psql(f"""UPDATE faucet_state SET value = value || '{{"timeline": 2}}' WHERE key = 'pgrepl::{slot}'""")
    assert one(examine(database, slot=slot), "server.identity").status is Status.PASS


def test_a_restored_database_is_on_another_server(database18: Database) -> None:
    database18.psql(
        "CREATE SCHEMA etl; CREATE TABLE etl.pgrepl_pipelines (pipeline_id bigint PRIMARY KEY, slot_name text,"
        "publications text[], system_identifier text, timeline integer, position pg_lsn);"
        "CREATE ROLE looker LOGIN;"
        # Signed, as bigint has it: the slot's name has 13193928276068826399.
        "INSERT INTO etl.pgrepl_pipelines VALUES (-5252815797640725217, 's', '{p}', '7311', 1, '0/1')"
    )
    slot = "supabase_etl_apply_13193928276068826399"
    found = one(examine(database18, slot=slot), "server.identity")
    assert found.status is Status.FAIL
    assert found.evidence["stored"] == {"system_identifier": "7311", "timeline": 1}
    assert "--store postgres" in found.fix[-1].text
    # Who may not look does not say that all is well, and the grants let it see.
    report = examine(database18, user="looker", slot=slot)
    assert one(report, "server.identity").status is Status.UNKNOWN
    apply_fixes(database18, of(report, "server.identity"))
    assert one(examine(database18, user="looker", slot=slot), "server.identity").status is Status.FAIL
    # Nothing is stored of others.
    assert one(examine(database18), "server.identity").status is Status.SKIP


def test_the_clock(database18: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    assert one(examine(database18), "server.clock").status is Status.PASS
    # A clock of its own is what no test can give a server: this machine's is an hour late instead.
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 3600)
    found = one(examine(database18, only=["server.clock"]), "server.clock")
    assert (found.status, round(found.evidence["server_ahead_seconds"], -2)) == (Status.INFO, 3600)
    assert "ahead" in found.summary
