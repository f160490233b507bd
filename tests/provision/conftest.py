"""A shop's database for setup to work on, and the command as a function."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pgrepl.cli import main
from tests.provision.shop import SHOP, Outcome, Setup
from tests.servers.database import Database, fresh_database
from tests.servers.server import Server


@pytest.fixture
def setup(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Setup:
    """The command; no configuration of the developer's is read."""
    return _command("setup", capsys, monkeypatch, tmp_path)


@pytest.fixture
def teardown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Setup:
    """The way back, likewise."""
    return _command("teardown", capsys, monkeypatch, tmp_path)


def _command(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, directory: Path) -> Setup:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(directory))
    monkeypatch.chdir(directory)

    def run(
        database: Database, *arguments: str, user: str = Server.superuser, yes: bool = True, as_json: bool = True
    ) -> Outcome:
        options = [*(["--yes"] if yes else []), *(["--json"] if as_json else [])]
        capsys.readouterr()
        code = main.run([name, "-d", database.dsn(user), *options, *arguments])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def shop(server: Server) -> Iterator[Database]:
    """A shop's database, its tables owned by the superuser."""
    with fresh_database(server) as database:
        database.psql(SHOP)
        yield database


@pytest.fixture
def shop18(server18: Server) -> Iterator[Database]:
    """The same on the newest server, for what does not depend on the version."""
    with fresh_database(server18) as database:
        database.psql(SHOP)
        yield database


@pytest.fixture
def owned_shop(server: Server) -> Iterator[Database]:
    """A shop's database that belongs, with its tables, to ``dba``, who has CREATEROLE, but not REPLICATION."""
    with fresh_database(server) as database:
        database.psql(f"CREATE ROLE dba LOGIN CREATEROLE; ALTER DATABASE {database.name} OWNER TO dba")
        server.psql(SHOP, database.name, user="dba")
        yield database
