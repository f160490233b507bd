"""``tls`` of an entry: the server must prove that it is the one that was named."""

from __future__ import annotations

import os
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgrepl.config import load
from pgrepl.sandbox import account
from tests.command import pgrepl
from tests.config.conftest import Write
from tests.conftest import NewServer
from tests.servers.server import Server

CERTIFICATES = Path(__file__).with_name("tls")
OURS = CERTIFICATES / "server.crt"
OTHER = CERTIFICATES / "other.crt"


@pytest.fixture
def tls_server(new_server: NewServer) -> Iterator[Server]:
    """A server whose certificate, which it signed itself, is for the name localhost."""
    owner = account.server_account()
    directory = account.temporary_directory("pgrepl-tests-", owner)
    try:
        for name in ("server.key", "server.crt"):
            file = directory / name
            shutil.copy(CERTIFICATES / name, file)
            file.chmod(0o600)
            if owner is not None:
                os.chown(file, owner.uid, owner.gid)
        key, certificate = directory / "server.key", directory / "server.crt"
        yield new_server(17, ssl="on", ssl_cert_file=str(certificate), ssl_key_file=str(key))
    finally:
        account.remove_directory(directory)


def entry(server: Server, tls: str, host: str = "localhost") -> str:
    return f"""
[[databases]]
host = "{host}"
port = {server.port}
password = "{server.password}"
tls = {tls}
"""


def test_who_is_believed(tls_server: Server, write: Write, tmp_path: Path) -> None:
    def code(tls: str, host: str = "localhost") -> int:
        write(entry(tls_server, tls, host))
        return pgrepl("slots", "list", HOME=str(tmp_path), TMPDIR=str(tmp_path)).returncode

    assert code(f'{{ enabled = true, trusted_root_certs = """\n{OURS.read_text()}""" }}') == 0
    assert code(f'{{ enabled = true, trusted_root_certs = "{OURS}" }}') == 0
    assert code(f'{{ enabled = true, trusted_root_certs = """\n{OTHER.read_text()}""" }}') == 3
    assert code(f'{{ enabled = true, trusted_root_certs = "{OTHER}" }}') == 3
    assert code("{ enabled = true }") == 3
    assert code(f'{{ enabled = true, trusted_root_certs = "{OURS}" }}', "127.0.0.1") == 3
    assert code("{ enabled = false }", "127.0.0.1") == 0
    assert not list(tmp_path.glob("*.pem"))


def test_without_roots_those_of_the_user_count(tls_server: Server, write: Write, tmp_path: Path) -> None:
    write(entry(tls_server, "{ enabled = true }"))
    assert pgrepl("slots", "list", HOME=str(tmp_path), PGSSLROOTCERT=str(OURS)).returncode == 0
    home = tmp_path / ".postgresql"
    home.mkdir()
    shutil.copy(OURS, home / "root.crt")
    assert pgrepl("slots", "list", HOME=str(tmp_path)).returncode == 0


def test_without_those_the_systems_count(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write("[[databases]]\ntls = { enabled = true }\n")
    params = load(None).databases[0].target.params
    assert params["sslmode"] == "verify-full"
    assert params["sslrootcert"] == (ssl.get_default_verify_paths().cafile or "system")


def test_the_file_for_libpq_is_for_its_owner_alone(write: Write) -> None:
    write(f'[[databases]]\ntls = {{ enabled = true, trusted_root_certs = """\n{OURS.read_text()}""" }}\n')
    file = Path(load(None).databases[0].target.params["sslrootcert"])
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text() == OURS.read_text()


def test_switched_off_or_not_there_it_is_left_to_libpq(write: Write) -> None:
    write('[[databases]]\ntls = { enabled = false, trusted_root_certs = "/x" }\n[[databases]]\nhost = "h"\n')
    for entry in load(None).databases:
        assert not {"sslmode", "sslrootcert"} & set(entry.target.params)
