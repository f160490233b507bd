"""One PostgreSQL server below one directory: made, started and stopped with PostgreSQL's own initdb and pg_ctl."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pgrepl.errors import OperationError
from pgrepl.sandbox.account import Account, Outcome, make_directory, remove_directory, run_as, temporary_directory

SUPERUSER = "postgres"
_LOOPBACK = "127.0.0.1"
# A socket's path has 103 bytes on the strictest system; its name needs 16 of them.
_SOCKET_DIRECTORY_LIMIT = 103 - len("/.s.PGSQL.65535")
_PORT_ATTEMPTS = 5
_LOG_TAIL = 15


@dataclass(frozen=True)
class Postmaster:
    """A server that runs: its process, its socket directory, and its port (of the socket and of loopback TCP)."""

    pid: int
    host: str
    port: int


class Cluster:
    """A server whose data, log and configuration are in ``directory``, which belongs to the server's account alone.

    Over the socket, whose directory nobody else can enter, everyone may connect as anyone (``trust``); over TCP, on
    loopback alone, a password is needed (``scram-sha-256``).
    """

    def __init__(self, tree: Path, directory: Path, account: Account | None) -> None:
        self.tree = tree
        self.directory = directory
        self.data = directory / "data"
        self.log = directory / "server.log"
        self._account = account

    @property
    def exists(self) -> bool:
        """Whether the server has been made."""
        return self.data.is_dir()

    def create(self, password: str, *, durable: bool = True) -> None:
        """Make the server; ``directory`` must be there. ``password`` is the superuser's, for TCP.

        ``durable=False`` does not wait for the disk, for servers that are thrown away. Raises OperationError.
        """
        # Under another name until it is whole, so that an interrupted attempt is never taken for a server.
        unfinished = self.directory / "data.unfinished"
        remove_directory(unfinished)
        secrets = temporary_directory("pgrepl-", self._account)
        try:
            password_file = secrets / "password"
            password_file.touch(mode=0o600)
            password_file.write_text(password + "\n", encoding="utf-8")
            if self._account is not None:
                os.chown(password_file, self._account.uid, self._account.gid)
            command: list[str | Path] = [
                self.tree / "bin" / "initdb",
                "-D",
                unfinished,
                "-U",
                SUPERUSER,
                f"--pwfile={password_file}",
            ]
            command += ["--encoding=UTF8", "--locale=C", "--auth-local=trust", "--auth-host=scram-sha-256"]
            command += ["--no-instructions", *([] if durable else ["--no-sync"])]
            made = run_as(self._account, command)
        finally:
            remove_directory(secrets)
        if made.code != 0:
            raise OperationError(f"initdb failed in {self.directory}: {made.said}")
        unfinished.rename(self.data)

    def start(self, settings: Mapping[str, str], *, port: int | None = None) -> Postmaster:
        """Start the server with these settings, on ``port`` if it is free, else on any; or return it when it runs.

        Raises OperationError, with the end of the server's log, when it does not start.
        """
        running = self.running()
        if running is not None:
            return running
        host = self._socket_directory()
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            chosen = port if port is not None and attempt == 1 and _is_free(port) else _free_port()
            address = {"listen_addresses": _LOOPBACK, "port": str(chosen), "unix_socket_directories": str(host)}
            options = [part for name, value in {**settings, **address}.items() for part in ("-c", f"{name}={value}")]
            # pg_ctl hands the options to a shell.
            started = self._pg_ctl("start", "-w", "-t", "60", "-l", self.log, "-o", shlex.join(options))
            running = self.running()
            if running is not None:
                return running
            # Somebody may have taken the port between our look and the server's.
            if _is_free(chosen) or attempt == _PORT_ATTEMPTS:
                break
        self._remove_socket_directory(host)
        raise OperationError(
            f"the PostgreSQL server in {self.directory} does not start: {self._log_tail() or started.said}",
            hint=f"the server's log is {self.log}",
        )

    def stop(self, *, immediate: bool = False) -> None:
        """Stop the server, with ``immediate`` without a checkpoint and without waiting for its clients.

        A server that does not run is fine. Raises OperationError when it does not stop.
        """
        answering = self._answering()
        if answering is None:
            return
        stopped = self._pg_ctl("stop", "-m", "immediate" if immediate else "fast", "-w", "-t", "30")
        if stopped.code != 0 and not immediate:
            stopped = self._pg_ctl("stop", "-m", "immediate", "-w", "-t", "30")
        if stopped.code != 0:
            raise OperationError(f"the PostgreSQL server in {self.directory} does not stop: {stopped.said}")
        self._remove_socket_directory(Path(answering[0].host))

    def running(self) -> Postmaster | None:
        """Return the server's process and address if it accepts connections."""
        answering = self._answering()
        return answering[0] if answering and answering[1] == "ready" else None

    def _answering(self) -> tuple[Postmaster, str] | None:
        # PostgreSQL documentation, Database File Layout: postmaster.pid.
        try:
            lines = (self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
            postmaster = Postmaster(int(lines[0]), lines[4].strip(), int(lines[3]))
            state = lines[7].strip()
        except (OSError, IndexError, ValueError):
            return None
        # The file outlives a crash of the machine, and its process id may by then be another's. Only a socket that
        # answers proves a server.
        with closing(socket.socket(socket.AF_UNIX)) as probe:
            probe.settimeout(5)
            try:
                probe.connect(f"{postmaster.host}/.s.PGSQL.{postmaster.port}")
            except OSError:
                return None
        return postmaster, state

    def _pg_ctl(self, action: str, *options: str | Path) -> Outcome:
        return run_as(self._account, [self.tree / "bin" / "pg_ctl", action, "-D", self.data, *options])

    def _socket_directory(self) -> Path:
        path = self.directory / "run"
        if len(os.fsencode(path)) <= _SOCKET_DIRECTORY_LIMIT:
            # Made by the account: we must not change owners in a directory that is another's.
            run_as(self._account, ["mkdir", "-p", path])
            return path
        parent = temporary_directory("pgrepl-", self._account)
        path = parent / "run"
        make_directory(path, self._account)
        return path

    def _remove_socket_directory(self, path: Path) -> None:
        if path.parent != self.directory:
            remove_directory(path.parent)

    def _log_tail(self) -> str:
        try:
            return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_TAIL:])
        except OSError:
            return ""


def _free_port() -> int:
    with closing(socket.socket(socket.AF_INET)) as probe:
        probe.bind((_LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with closing(socket.socket(socket.AF_INET)) as probe:
        try:
            probe.bind((_LOOPBACK, port))
        except OSError:
            return False
        return True
