"""A PostgreSQL server of the tests: how to reach it, ask it, stop it and start it again."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from pgrepl.sandbox import Cluster, Postmaster

PASSWORD = "a superuser's password"


class Server:
    """A running server of one major version.

    ``host`` is the socket's directory: there everyone connects as anyone. Over TCP (127.0.0.1, same ``port``) a role
    needs its password; the superuser's is ``PASSWORD``. ``bindir`` holds PostgreSQL 18's clients (psql, pg_dump, …).
    """

    superuser = "postgres"
    password = PASSWORD

    def __init__(self, version: int, cluster: Cluster, settings: dict[str, str], bindir: Path) -> None:
        self.version = version
        self.bindir = bindir
        self._cluster = cluster
        self._settings = settings
        self._postmaster: Postmaster = cluster.start(settings)

    @property
    def host(self) -> str:
        """The directory of the server's socket."""
        return self._postmaster.host

    @property
    def port(self) -> int:
        """The port, of the socket and of TCP on 127.0.0.1."""
        return self._postmaster.port

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        return self._postmaster.pid

    @property
    def log(self) -> str:
        """What the server has logged so far."""
        return self._cluster.log.read_text(encoding="utf-8", errors="replace")

    def dsn(self, dbname: str = "postgres", user: str = superuser, **parameters: Any) -> str:
        """Return a connection string for the socket, with further libpq parameters."""
        return make_conninfo(host=self.host, port=self.port, dbname=dbname, user=user, **parameters)

    def tcp_dsn(
        self, dbname: str = "postgres", user: str = superuser, password: str = PASSWORD, **parameters: Any
    ) -> str:
        """Return a connection string for TCP."""
        parameters = {"host": "127.0.0.1", "port": self.port, **parameters}
        return make_conninfo(dbname=dbname, user=user, password=password, **parameters)

    def connect(self, dbname: str = "postgres", user: str = superuser, **parameters: Any) -> psycopg.Connection:
        """Open a connection over the socket, in autocommit mode."""
        return psycopg.connect(self.dsn(dbname, user, **parameters), autocommit=True)

    def psql(self, script: str, dbname: str = "postgres", user: str = superuser) -> str:
        """Run a script in psql, which stops at the first error; return what it prints, without headers."""
        command: list[str | Path] = [
            self.bindir / "psql",
            "-XAtq",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            self.dsn(dbname, user),
        ]
        environment = {"PATH": os.environ["PATH"]}
        done = subprocess.run(command, input=script, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop(self, *, immediate: bool = True) -> None:
        """Stop the server, by default as if its power were cut; ``immediate=False`` is pg_ctl's fast mode."""
        self._cluster.stop(immediate=immediate)

    def start(self) -> None:
        """Start a stopped server again, on the same port unless somebody took it."""
        self._postmaster = self._cluster.start(self._settings, port=self.port)
