"""The password: it works, and nobody but the person and libpq ever has it."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tests.conftest import NewServer
from tests.provision.shop import SHOP, Setup, scalar
from tests.servers.database import Database, fresh_database

PASSWORD = "Zaubér'\\\"wort 1"
ROLES = ["cdc", "C d\"c'\\", "Ärger"]


@pytest.mark.parametrize("role", ROLES)
def test_password_works_and_is_seen_nowhere(new_server: NewServer, setup: Setup, tmp_path: Path, role: str) -> None:
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n", encoding="utf-8")
    server = new_server(18, log_statement="all")
    with fresh_database(server) as database:
        database.psql(SHOP)
        arguments = ["pub", "--role", role, "--table", "shop.orders", "--password-file", str(file)]
        outputs = [setup(database, *arguments, "--dry-run", yes=False, as_json=False)]
        assert "\\password" in outputs[0].out.splitlines()[-1]
        outputs.append(setup(database, *arguments, "--debug"))
        assert outputs[1].code == 0, outputs[1].err
        with psycopg.connect(server.tcp_dsn(database.name, role, PASSWORD)) as conn:
            assert scalar(conn, "SELECT current_user") == role
        with database.connect() as conn:
            verifier = scalar(conn, "SELECT rolpassword FROM pg_authid WHERE rolname = %s", role)
        assert verifier.startswith("SCRAM-SHA-256$")
        for output in outputs:
            for secret in (PASSWORD, "Zauber", verifier):
                assert secret not in output.out + output.err
        assert "ALTER ROLE" in server.log
        assert "wort 1" not in server.log


def test_password_of_an_existing_role_is_left_unless_told(
    shop18: Database, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["pub", "--role", "cdc", "--table", "shop.orders"]
    monkeypatch.setenv("PGREPL_ROLE_PASSWORD", "first")
    assert setup(shop18, *arguments).code == 0
    monkeypatch.setenv("PGREPL_ROLE_PASSWORD", "second")
    left = setup(shop18, *arguments)
    assert left.statements == []
    assert "its password is left as it is" in left.err
    psycopg.connect(shop18.server.tcp_dsn(shop18.name, "cdc", "first")).close()
    assert setup(shop18, *arguments, "--reset-password").steps("role") == [("altered", "cdc")]
    psycopg.connect(shop18.server.tcp_dsn(shop18.name, "cdc", "second")).close()


def test_new_role_without_one_is_told(shop18: Database, setup: Setup) -> None:
    outcome = setup(shop18, "pub", "--role", "cdc", "--table", "shop.orders")
    assert "role cdc has no password yet" in outcome.err
    assert '\\password "cdc"' in outcome.err
    with shop18.connect() as conn:
        assert scalar(conn, "SELECT rolpassword FROM pg_authid WHERE rolname = 'cdc'") is None
