"""The test servers themselves: unless they are what they promise, no other test says anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.conftest import NewServer
from tests.servers.database import fresh_database
from tests.servers.processes import is_gone, wait_until_gone
from tests.servers.server import Server


def test_each_server_has_the_version_it_is_called_by_and_logical_decoding(server: Server) -> None:
    with server.connect() as connection:
        assert connection.info.server_version // 10000 == server.version
        assert connection.execute("SHOW wal_level").fetchone() == ("logical",)


def test_tcp_asks_for_the_password_and_the_socket_does_not(server: Server) -> None:
    psycopg.connect(server.tcp_dsn()).close()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(server.tcp_dsn(password="wrong"))
    assert server.psql("SELECT current_user") == "postgres\n"


def test_nobody_else_can_enter_the_directory_of_the_socket(server18: Server) -> None:
    assert Path(server18.host).stat().st_mode & 0o777 == 0o700
    assert Path(f"/proc/{server18.pid}").stat().st_uid != 0


def test_a_database_takes_its_slots_roles_and_sessions_with_it(server: Server) -> None:
    with fresh_database(server) as database, server.connect() as watcher:
        connection = database.connect(replication="database")
        connection.execute("CREATE_REPLICATION_SLOT left_temporary TEMPORARY LOGICAL pgoutput")
        connection.execute("CREATE_REPLICATION_SLOT left_behind LOGICAL pgoutput")
        database.psql("CREATE ROLE left_behind; GRANT CREATE ON SCHEMA public TO left_behind")
        assert _leftovers(watcher, database.name) == (1, 2, 1)
    with server.connect() as watcher:
        assert _leftovers(watcher, database.name) == (0, 0, 0)
    connection.close()


def _leftovers(watcher: psycopg.Connection, dbname: str) -> tuple[int, ...] | None:
    return watcher.execute(
        """SELECT (SELECT count(*) FROM pg_database WHERE datname = %s),
                  (SELECT count(*) FROM pg_replication_slots WHERE database = %s),
                  (SELECT count(*) FROM pg_roles WHERE rolname = 'left_behind')""",
        [dbname, dbname],
    ).fetchone()


def test_a_new_server_has_its_settings_and_starts_again_on_its_port(new_server: NewServer) -> None:
    server = new_server(16, wal_level="replica", cluster_name="it's \\ $odd")
    assert server.psql("SHOW wal_level; SHOW cluster_name") == "replica\nit's \\ $odd\n"
    port = server.port
    server.stop()
    with pytest.raises(psycopg.OperationalError):
        server.connect()
    server.start()
    assert (server.port, server.psql("SHOW wal_level")) == (port, "replica\n")


def test_a_server_that_does_not_start_shows_its_log(new_server: NewServer) -> None:
    with pytest.raises(Exception, match=r"does not start(.|\n)*unrecognized configuration parameter"):
        new_server(18, no_such_setting="1")


def test_servers_do_not_outlive_killed_tests() -> None:
    program = (
        "from tests.servers.pool import ServerPool\n"
        "pool = ServerPool()\n"
        "server = pool.shared(18)\n"
        "print(server.pid, pool.watchdog_pid, server.host, flush=True)\n"
        "input()\n"
    )
    root = Path(__file__).resolve().parents[2]
    killed = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with killed:
        assert killed.stdout is not None
        pid, watchdog, host = killed.stdout.readline().split()
        assert not is_gone(int(pid))
        killed.kill()
    wait_until_gone(int(pid))
    wait_until_gone(int(watchdog))
    assert not Path(host).parents[1].exists()
