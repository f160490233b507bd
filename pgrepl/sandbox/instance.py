"""The sandbox: one embedded PostgreSQL 18 of the user's own, which stays until it is destroyed."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from psycopg.conninfo import make_conninfo

from pgrepl.errors import OperationError
from pgrepl.sandbox import programs
from pgrepl.sandbox.account import can_reach, make_directory, remove_directory, server_account
from pgrepl.sandbox.cluster import SUPERUSER, Cluster

MAJOR = 18
DATABASE = "postgres"
SETTINGS = {
    "wal_level": "logical",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    "log_line_prefix": "%m [%p] %q%u@%d %a ",
}
# Tried first, so that what was exported to a shell stays true when the sandbox is started again.
_PORT = 54318
# Root's own data directory is closed to the account that the server runs as.
_ROOT_DATA_HOME = Path("/var/lib")


@dataclass(frozen=True)
class Status:
    """What is known of a sandbox; the address is None unless it runs.

    The superuser's password, which TCP needs and the socket does not, is in ``password_file``.
    """

    exists: bool
    running: bool
    directory: str
    version: str | None
    pid: int | None
    host: str | None
    port: int | None
    user: str
    database: str
    dsn: str | None
    password_file: str
    log: str


class Sandbox:
    """An embedded PostgreSQL in ``directory``; by default in the user's data directory.

    ``durable=False`` is for one that is soon thrown away: making it does not wait for the disk.
    Raises OperationError when the ``sandbox`` extra is not installed, or root finds no account to run a server as.
    """

    def __init__(self, directory: Path | None = None, *, durable: bool = True) -> None:
        self._durable = durable
        self._account = server_account()
        self._installed = programs.installed(MAJOR)
        self._in_data_home = directory is None
        self.directory = directory or self._data_home() / "pgrepl" / "sandbox"
        self._password_file = self.directory / "password"

    def start(self) -> Status:
        """Start the server, made first if need be. Raises OperationError."""
        try:
            self._make_directories()
            with self._locked():
                server = self.directory / "server"
                if not server.is_dir():
                    make_directory(server, self._account)
                cluster = self._cluster(self._programs())
                if not cluster.exists:
                    cluster.create(self._password(), durable=self._durable)
                cluster.start(SETTINGS, port=_PORT)
        except OSError as error:
            raise OperationError(f"cannot make the sandbox in {self.directory}: {error}") from None
        return self.status()

    def stop(self) -> None:
        """Stop the server; its data stay. Raises OperationError."""
        if self.directory.is_dir():
            with self._locked():
                self._cluster(self._programs()).stop()

    def status(self) -> Status:
        """Say whether the server is there and runs, and how to reach it."""
        cluster = self._cluster(self._installed)
        running = cluster.running()
        dsn = None
        if running is not None:
            dsn = make_conninfo(host=running.host, port=running.port, user=SUPERUSER, dbname=DATABASE)
        return Status(
            exists=cluster.exists,
            running=running is not None,
            directory=str(self.directory),
            version=programs.version(self._installed),
            pid=running.pid if running else None,
            host=running.host if running else None,
            port=running.port if running else None,
            user=SUPERUSER,
            database=DATABASE,
            dsn=dsn,
            password_file=str(self._password_file),
            log=str(cluster.log),
        )

    def env(self) -> dict[str, str]:
        """Return the environment with which every command uses the sandbox. Raises OperationError unless it runs."""
        dsn = self.status().dsn
        if dsn is None:
            raise _not_running()
        return {"PGREPL_DSN": dsn}

    def psql(self, arguments: list[str]) -> tuple[list[str], dict[str, str]]:
        """Return the command that opens psql on the sandbox, and its environment. Raises OperationError unless it runs.

        The place is in the environment alone, so that every option of psql counts, also ``-d``.
        """
        status = self.status()
        if status.host is None:
            raise _not_running()
        # These would lead elsewhere (PostgreSQL documentation, Environment Variables of libpq).
        environment = {name: value for name, value in os.environ.items() if name not in ("PGHOSTADDR", "PGSERVICE")}
        environment |= {"PGHOST": status.host, "PGPORT": str(status.port)}
        environment |= {"PGUSER": status.user, "PGDATABASE": status.database}
        return [str(self._installed / "bin" / "psql"), *arguments], environment

    def destroy(self) -> None:
        """Stop the server and remove all its files. Raises OperationError."""
        if not self.directory.is_dir():
            return
        with self._locked():
            self._cluster(self._programs()).stop(immediate=True)
            remove_directory(self.directory)
            if self._in_data_home:
                # The directory above is pgrepl's too, but there may be other things in it.
                with suppress(OSError):
                    self.directory.parent.rmdir()
        if self.directory.exists():
            raise OperationError(f"cannot remove all files in {self.directory}", hint="remove the directory by hand")

    def _data_home(self) -> Path:
        named = os.environ.get("XDG_DATA_HOME", "")
        home = Path(named) if named.startswith("/") else Path("~/.local/share").expanduser()
        if self._account is not None:
            standing = next(path for path in (home, *home.parents) if path.is_dir())
            if not can_reach(self._account, standing):
                return _ROOT_DATA_HOME
        return home

    def _make_directories(self) -> None:
        for path in (*reversed(self.directory.parents), self.directory):
            if not path.is_dir():
                path.mkdir(exist_ok=True)
                # Whatever the umask is: only we write here, and the server's account passes through.
                path.chmod(0o755 if self._account else 0o700)

    def _password(self) -> str:
        self._password_file.touch(mode=0o600)
        password = secrets.token_urlsafe(18)
        self._password_file.write_text(password + "\n", encoding="utf-8")
        return password

    def _programs(self) -> Path:
        return programs.usable_copy(self._account, self._installed, self.directory)

    def _cluster(self, tree: Path) -> Cluster:
        return Cluster(tree, self.directory / "server", self._account)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # Two starts at once would make one server twice.
        descriptor = os.open(self.directory, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _not_running() -> OperationError:
    return OperationError("the sandbox does not run", hint="pgrepl sandbox start")
