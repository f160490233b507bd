"""Fixtures that every test may use: PostgreSQL servers of several versions, and a database of its own for each test.

``server`` runs a test on every supported version that is here (16, 17, 18); ``server16``, ``server17``, ``server18``
and ``server15``, which pgrepl refuses, are one each. ``database`` and ``database18`` are fresh databases on ``server``
and ``server18``. ``new_server(version, **settings)`` starts a server for one test alone, ``standby(server)`` a
physical standby of one. ``--servers 16,18`` chooses versions, and PGREPL_REQUIRE_SERVERS names those without which
the run is a failure.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from typing import Any, Protocol

import pytest

from tests.servers.database import Database, fresh_database
from tests.servers.pool import KNOWN, SUPPORTED, ServerPool, present
from tests.servers.server import Server

_OURS = ("PGREPL_REQUIRE_SERVERS", "PGREPL_TORTURE_FACTOR")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--servers", metavar="16,17,18", help="major versions of PostgreSQL to test on; default: all that are here"
    )


def pytest_configure(config: pytest.Config) -> None:
    required = _versions(os.environ.get("PGREPL_REQUIRE_SERVERS"), "PGREPL_REQUIRE_SERVERS")
    missing = sorted(set(required) - set(present()))
    if missing:
        raise pytest.UsageError(f"no PostgreSQL {_list(missing)} here; tests/servers/install.py installs 15 and 17")
    # What the developer's shell says about servers is not what is tested.
    for name in list(os.environ):
        if name.startswith(("PG", "PGSENSE__")) and name not in _OURS:
            del os.environ[name]
    # So that finalizers run, and servers stop, when the run is terminated.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


def pytest_report_header() -> list[str]:
    shells = [shell for shell in ("bash", "zsh", "fish") if shutil.which(shell)]
    return [_servers_line(), f"shells whose completion is tested: {_list(shells)}"]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if set(KNOWN) - set(present()):
        terminalreporter.write_line(_servers_line())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" in metafunc.fixturenames:
        versions = [version for version in _chosen(metafunc.config) if version in present()]
        metafunc.parametrize(
            "server", versions, indirect=True, ids=[f"pg{version}" for version in versions], scope="session"
        )


def _servers_line() -> str:
    missing = sorted(set(KNOWN) - set(present()))
    line = f"PostgreSQL servers: {_list(sorted(present()))}"
    return f"{line}; not here: {_list(missing)} (python tests/servers/install.py)" if missing else line


def _chosen(config: pytest.Config) -> list[int]:
    return _versions(config.getoption("--servers"), "--servers") or list(SUPPORTED)


def _versions(text: str | None, origin: str) -> list[int]:
    try:
        versions = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        versions = [0]
    if not set(versions) <= set(KNOWN):
        raise pytest.UsageError(f"{origin} is {text}, not a list of {_list(KNOWN)}")
    return versions


def _list(versions: Any) -> str:
    return ", ".join(map(str, versions)) or "none"


@pytest.fixture(scope="session")
def server_pool() -> Iterator[ServerPool]:
    """The servers of this run."""
    pool = ServerPool()
    yield pool
    pool.close()


def _need(version: int) -> None:
    # A fresh checkout has 16 and 18 alone, and its tests must run. Where nothing may be left out, as in CI,
    # PGREPL_REQUIRE_SERVERS has made a missing server a failure before this is reached.
    if version not in present():
        pytest.skip(f"no PostgreSQL {version} here")


def _shared(pool: ServerPool, version: int) -> Server:
    _need(version)
    return pool.shared(version)


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, server_pool: ServerPool) -> Server:
    """A server of every supported version, one after the other."""
    return _shared(server_pool, request.param)


@pytest.fixture(scope="session")
def server15(server_pool: ServerPool) -> Server:
    """A server that is too old."""
    return _shared(server_pool, 15)


@pytest.fixture(scope="session")
def server16(server_pool: ServerPool) -> Server:
    """The oldest supported server."""
    return _shared(server_pool, 16)


@pytest.fixture(scope="session")
def server17(server_pool: ServerPool) -> Server:
    """A server of version 17; its programs and those of 15 are the ones that know TLS."""
    return _shared(server_pool, 17)


@pytest.fixture(scope="session")
def server18(server_pool: ServerPool) -> Server:
    """The newest supported server."""
    return _shared(server_pool, 18)


class NewServer(Protocol):
    """Start a server with settings of its own, for instance ``new_server(18, wal_sender_timeout="2s")``."""

    def __call__(self, version: int, **settings: str) -> Server: ...


@pytest.fixture
def new_server(server_pool: ServerPool) -> Iterator[NewServer]:
    """Servers for one test alone, stopped at its end."""
    started: list[Server] = []

    def start(version: int, **settings: str) -> Server:
        _need(version)
        started.append(server_pool.new(version, settings))
        return started[-1]

    yield start
    for server in started:
        server.stop()


class NewStandby(Protocol):
    """Start a physical standby of a server of version 16 or 18, for instance ``standby(primary)``."""

    def __call__(self, primary: Server, **settings: str) -> Server: ...


@pytest.fixture
def standby(server_pool: ServerPool) -> Iterator[NewStandby]:
    """Standbys for one test alone, stopped at its end."""
    started: list[Server] = []

    def start(primary: Server, **settings: str) -> Server:
        started.append(server_pool.standby(primary, settings))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def database(server: Server) -> Iterator[Database]:
    """A fresh database on every supported server."""
    with fresh_database(server) as database:
        yield database


@pytest.fixture
def database18(server18: Server) -> Iterator[Database]:
    """A fresh database on the newest server."""
    with fresh_database(server18) as database:
        yield database
