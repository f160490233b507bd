"""The servers of a test run: which versions are here, and each one started when a test first wants it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from pgrepl.errors import OperationError
from pgrepl.sandbox import Cluster, account, programs
from tests.servers.server import PASSWORD, Server

# 15 is there to be refused.
KNOWN = (15, 16, 17, 18)
SUPPORTED = (16, 17, 18)
_INSTALLED_BY_NPM = Path(__file__).resolve().parents[2] / ".servers" / "node_modules"
_SETTINGS = {
    "wal_level": "logical",
    "max_replication_slots": "50",
    "max_wal_senders": "50",
    "max_connections": "100",
    "max_prepared_transactions": "10",
    "shared_buffers": "32MB",
    "fsync": "off",
    "log_line_prefix": "%m [%p] %u@%d %a ",
}


def installation(version: int) -> Path | None:
    """Find the programs of a major version, or None."""
    try:
        return programs.installed(version)
    except KeyError:
        tree = _INSTALLED_BY_NPM / f"postgresql-{version}" / "native"
        return tree if (tree / "bin" / "postgres").is_file() else None
    except OperationError:
        return None


def present() -> dict[int, Path]:
    """Return the installations that are here, by major version."""
    return {version: tree for version in KNOWN if (tree := installation(version)) is not None}


class ServerPool:
    """Start servers below one temporary directory; ``close`` stops them all and removes it.

    A watchdog does so, too, when the tests are killed.
    """

    def __init__(self) -> None:
        self._account = account.server_account()
        self._directory = account.temporary_directory("pgrepl-tests-", self._account)
        watchdog = [sys.executable, str(Path(__file__).with_name("watchdog.py")), str(self._directory)]
        self._watchdog = subprocess.Popen(watchdog, stdin=subprocess.PIPE, start_new_session=True)
        self._installations = present()
        self._trees: dict[int, Path] = {}
        self._shared: dict[int, Server] = {}
        self._clusters: list[Cluster] = []

    @property
    def watchdog_pid(self) -> int:
        """The process that cleans up when this one is killed."""
        return self._watchdog.pid

    def shared(self, version: int) -> Server:
        """Return the one server of a version that all tests share. Raises LookupError when the version is not here."""
        if version not in self._shared:
            self._shared[version] = self.new(version, {})
        return self._shared[version]

    def new(self, version: int, settings: Mapping[str, str]) -> Server:
        """Make and start another server, with a system identifier of its own. Raises LookupError, OperationError."""
        directory = self._directory / str(len(self._clusters) + 1)
        account.make_directory(directory, self._account)
        cluster = Cluster(self._tree(version), directory, self._account)
        self._clusters.append(cluster)
        cluster.create(PASSWORD, durable=False)
        self._begin_beyond_4_gb(cluster)
        clients = self._installations[18] / "bin"
        return Server(version, cluster, {**_SETTINGS, **settings}, clients)

    def _begin_beyond_4_gb(self, cluster: Cluster) -> None:
        """Let the WAL begin beyond 4 GB, for positions with two halves, where pg_resetwal is there to do it."""
        reset = cluster.tree / "bin" / "pg_resetwal"
        if reset.exists():
            begin = ["-l", "000000010000000100000001"]
            done = account.run_as(self._account, [reset, *begin, "-D", cluster.data])
            assert done.code == 0, done.said

    def standby(self, primary: Server, settings: Mapping[str, str]) -> Server:
        """Make a physical standby of a server with its own pg_basebackup, and start it.

        ``settings`` go into its configuration file, where ALTER SYSTEM wins over them.
        """
        directory = self._directory / str(len(self._clusters) + 1)
        account.make_directory(directory, self._account)
        tree = self._tree(primary.version)
        cluster = Cluster(tree, directory, self._account)
        self._clusters.append(cluster)
        backup: list[str | Path] = [tree / "bin" / "pg_basebackup", "-D", cluster.data, "-d", primary.dsn()]
        made = account.run_as(self._account, [*backup, "-R", "-X", "stream", "-c", "fast", "--no-sync"])
        assert made.code == 0, made.said
        with (cluster.data / "postgresql.conf").open("a", encoding="utf-8") as configuration:
            configuration.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        return Server(primary.version, cluster, dict(_SETTINGS), self._installations[18] / "bin")

    def close(self) -> None:
        """Stop every server and remove every file."""
        for cluster in self._clusters:
            cluster.stop(immediate=True)
        shutil.rmtree(self._directory)
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.close()
        self._watchdog.wait()

    def _tree(self, version: int) -> Path:
        if version not in self._trees:
            tree = self._installations[version]
            self._trees[version] = programs.usable_copy(self._account, tree, self._directory)
        return self._trees[version]
