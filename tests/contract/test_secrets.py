"""Passwords appear nowhere, whatever is wrong with the connection string that holds them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.command import pgrepl
from tests.servers.server import Server

SECRET = "hunter2"
UNREADABLE = [
    f"postgresql://u:{SECRET}%zz@h/db",
    f"postgresql://u:{SECRET}@[h/db",
    f"postgresql://u:a {SECRET}@h/db",
    f"postgresql://u:{SECRET}@h/db?nonsense=1",
    f"postgresql://u@h/db?password={SECRET}&nonsense",
    f"u:{SECRET}@h/db",
    f'u:pa"{SECRET}@h/db',
    f"host=h password='{SECRET}",
    f"host=h password={SECRET} nonsense",
    f"host=h passwd={SECRET}",
    f"password {SECRET}",
]
CONNECTING = [
    "doctor",
    "doctor --json",
    "setup --yes",
    "slots list",
    "slots drop s --yes",
    "publications coverage pub --table a.b",
    "tail pub",
]


def assert_secret(*arguments: str, code: int, **environment: str) -> None:
    done = pgrepl(*arguments, **environment)
    assert done.returncode == code, done.stderr
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize("dsn", UNREADABLE)
def test_a_connection_string_that_cannot_be_read(dsn: str) -> None:
    assert_secret("slots", "list", "--debug", "-v", "-d", dsn, code=2)
    assert_secret("slots", "list", "--log-format", "json", "--debug", code=2, PGREPL_DSN=dsn)


@pytest.mark.parametrize("line", CONNECTING)
def test_a_connection_that_fails(line: str) -> None:
    with socket.socket() as unused:
        # Bound but not listening: whoever connects is refused, and nobody else gets the port.
        unused.bind(("127.0.0.1", 0))
        dsn = f"postgresql://u:{SECRET}@127.0.0.1:{unused.getsockname()[1]}/db"
        assert_secret(*line.split(), "--debug", "-v", "-d", dsn, code=3)


@pytest.mark.parametrize("line", CONNECTING)
def test_a_wrong_password(server18: Server, line: str) -> None:
    dsn = server18.tcp_dsn(password=SECRET)
    assert_secret(*line.split(), "--debug", "-v", "-d", dsn, code=3)
    assert_secret(*line.split(), "--debug", "-v", "--log-format", "json", code=3, PGREPL_DSN=dsn)


def test_a_password_in_a_configuration_that_is_wrong(tmp_path: Path) -> None:
    config = tmp_path / "pgrepl.toml"
    for text in (f'password = "{SECRET}', f'pasword = "{SECRET}"', f'password = ["{SECRET}"]'):
        config.write_text(f"[[databases]]\n{text}\n")
        assert_secret("slots", "list", "--debug", "-c", str(config), code=2)


@pytest.mark.parametrize("text", [f"postgresql://u:{SECRET}@h/db", f"host=h password={SECRET}"])
def test_a_connection_string_in_the_wrong_place(text: str) -> None:
    assert_secret(text, code=2)
    assert_secret("slots", text, code=2)
    assert_secret("tail", "pub", text, "--debug", code=2)
    assert_secret("tail", "pub", text, "--log-format", "json", code=2)
    assert_secret("tail", "--format", text, code=2)
    assert_secret("tail", "--table", text, code=2)
    assert_secret("slots", "list", "-c", text, "-d", "host=/nonexistent", code=2)
