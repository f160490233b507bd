"""The sandbox, through its commands and as a library, on the real programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from pgrepl.errors import OperationError
from pgrepl.sandbox import Sandbox, account
from pgrepl.sandbox.account import server_account, temporary_directory
from tests.servers.processes import wait_until_gone

Pgrepl = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def data_home() -> Iterator[Path]:
    """A data directory that the account of a server can enter."""
    path = temporary_directory("pgrepl-test-", server_account())
    yield path
    account.remove_directory(path)


@pytest.fixture
def pgrepl(data_home: Path) -> Iterator[Pgrepl]:
    """Run pgrepl with that data directory; the sandbox is destroyed afterwards."""

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pgrepl", *arguments]
        environment = {**os.environ, "XDG_DATA_HOME": str(data_home), **more}
        return subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

    yield run
    run("sandbox", "destroy", "--yes")


def test_its_life(pgrepl: Pgrepl, data_home: Path) -> None:
    assert json.loads(pgrepl("sandbox", "status", "--json").stdout)["exists"] is False

    started = pgrepl("sandbox", "start")
    assert (started.returncode, started.stdout) == (0, "")
    status = json.loads(pgrepl("sandbox", "status", "--json").stdout)
    assert (status["running"], status["version"].split(".")[0]) == (True, "18")
    assert Path(status["directory"]) == data_home / "pgrepl" / "sandbox"

    settings = "SELECT current_setting('wal_level'), current_setting('listen_addresses')"
    assert pgrepl("sandbox", "psql", "--", "-Atc", settings).stdout == "logical|127.0.0.1\n"
    pgrepl("sandbox", "psql", "--", "-c", "CREATE TABLE kept ()")

    # Every option of psql means the sandbox, whatever the shell's environment says.
    pgrepl("sandbox", "psql", "--", "-c", "CREATE DATABASE other")
    where = "SELECT current_database(), current_user, inet_server_addr() IS NULL"
    assert pgrepl("sandbox", "psql", "--", "-d", "other", "-Atc", where).stdout == "other|postgres|t\n"
    elsewhere = {"PGHOST": "/nonexistent", "PGHOSTADDR": "127.0.0.2", "PGPORT": "1", "PGDATABASE": "x", "PGUSER": "x"}
    for environment in (elsewhere, {"PGSERVICE": "x"}):
        done = pgrepl("sandbox", "psql", "--", "-Atc", where, **environment)
        assert done.stdout == "postgres|postgres|t\n", done.stderr

    again = pgrepl("sandbox", "start")
    assert again.returncode == 0
    assert json.loads(pgrepl("sandbox", "status", "--json").stdout)["pid"] == status["pid"]

    assert pgrepl("sandbox", "stop").returncode == 0
    wait_until_gone(status["pid"])
    stopped = pgrepl("sandbox", "env")
    assert (stopped.returncode, stopped.stdout) == (1, "")
    assert stopped.stderr.endswith("hint: pgrepl sandbox start\n")

    pgrepl("sandbox", "start")
    assert pgrepl("sandbox", "psql", "--", "-Atc", "SELECT count(*) FROM kept").stdout == "0\n"

    refused = pgrepl("sandbox", "destroy")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    pid = json.loads(pgrepl("sandbox", "status", "--json").stdout)["pid"]
    assert pgrepl("sandbox", "destroy", "--yes").returncode == 0
    wait_until_gone(pid)
    assert list(data_home.iterdir()) == []


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_env_makes_every_other_command_use_it(pgrepl: Pgrepl, data_home: Path, shell: str) -> None:
    pgrepl("sandbox", "start")
    script = 'eval "$("$0" -m pgrepl sandbox env)"; "$0" -c "import os; print(os.environ[\'PGREPL_DSN\'])"'
    environment = {**os.environ, "XDG_DATA_HOME": str(data_home)}
    done = subprocess.run(
        [shell, "-c", script, sys.executable], env=environment, capture_output=True, text=True, check=True
    )
    with psycopg.connect(done.stdout.strip()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_tcp_needs_the_password_that_is_in_the_file(data_home: Path) -> None:
    sandbox = Sandbox(data_home / "it's a sandbox", durable=False)
    try:
        status = sandbox.start()
        with psycopg.connect(str(status.dsn)) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        password_file = Path(status.password_file)
        assert password_file.stat().st_mode & 0o777 == 0o600
        tcp = {"host": "127.0.0.1", "port": status.port, "user": status.user}
        psycopg.connect(**tcp, password=password_file.read_text().strip()).close()  # type: ignore[arg-type]
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(**tcp, password="wrong")  # type: ignore[arg-type]
    finally:
        sandbox.destroy()


def test_a_long_directory_gets_its_socket_elsewhere(data_home: Path) -> None:
    sandbox = Sandbox(data_home / ("long" * 30), durable=False)
    try:
        status = sandbox.start()
        socket_directory = Path(str(status.host))
        assert sandbox.directory not in socket_directory.parents
        assert socket_directory.stat().st_mode & 0o777 == 0o700
    finally:
        sandbox.destroy()
    assert not socket_directory.parent.exists()


def test_two_starts_at_once_make_one_server(data_home: Path) -> None:
    environment = {**os.environ, "XDG_DATA_HOME": str(data_home)}
    command = [sys.executable, "-m", "pgrepl", "sandbox", "start"]
    starts = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    for start in starts:
        _, said = start.communicate()
        assert start.returncode == 0, said
    sandbox = Sandbox(data_home / "pgrepl" / "sandbox")
    assert sandbox.status().running
    sandbox.destroy()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root lends its server to another account")
def test_root_changes_no_directory_that_is_not_its_own(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    environment = {**os.environ, "XDG_DATA_HOME": str(closed)}
    command = [sys.executable, "-m", "pgrepl", "sandbox", "status", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["directory"] == "/var/lib/pgrepl/sandbox"
    assert closed.stat().st_mode & 0o777 == 0o700
    assert list(closed.iterdir()) == []


def test_programs_that_the_account_cannot_reach_are_copied(data_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pgrepl.sandbox import programs

    installed = programs.installed(18)
    closed = data_home / "closed"
    closed.mkdir()
    for path in (installed.parent, installed.parent.with_name(f"{installed.parent.name}.libs")):
        (closed / path.name).symlink_to(path)
    tree = closed / installed.parent.name / installed.name
    closed.chmod(0o700)
    monkeypatch.setattr(programs, "installed", lambda major: tree)
    sandbox = Sandbox(data_home / "sandbox", durable=False)
    try:
        assert sandbox.start().running
        copies = [path.name for path in sandbox.directory.glob("postgresql-18.*")]
        assert len(copies) == (1 if os.geteuid() == 0 else 0)
    finally:
        sandbox.destroy()


def test_without_the_extra_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgrepl.sandbox.programs._PACKAGE", "not_installed")
    with pytest.raises(OperationError, match="not installed") as caught:
        Sandbox()
    assert "pgrepl[sandbox]" in str(caught.value.hint)
