"""Tables that come into the publication and leave it while a session runs."""

from __future__ import annotations

import time
from collections.abc import Callable

import psycopg

from pgrepl.catalog import server
from pgrepl.catalog.publications import PublishedTable
from pgrepl.engine import preflight
from pgrepl.engine.connections import Connections
from pgrepl.engine.core import Action, Core, Phase, TableState
from pgrepl.engine.patience import in_store
from pgrepl.engine.run import Run
from pgrepl.events import Table
from pgrepl.lsn import Lsn

_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '100ms'"
_LOCKED_PAUSE = 1.0


class Publishing:
    """Follow what the publications have; ``removed`` are tables that were missing when it was read at that LSN."""

    def __init__(self, run: Run, connections: Connections, core: Core, removed: dict[int, Lsn]) -> None:
        self._run = run
        self._options = run.options
        self._connections = connections
        self._core = core
        self._removed = removed
        self._next_refresh = 0.0
        self._not_before = 0.0

    def wants(self, table: Table) -> bool:
        """Say whether a table is read; those of the state are, under whatever name, new ones are judged by theirs."""
        return table.oid in self._core.tables or self._options.selection.wants(table)

    def appeared(self, table: Table) -> None:
        """Take note of a table that the stream tells of for the first time."""
        if table.oid in self._core.tables:
            return
        if self._options.snapshot == "never":
            self._core.tables[table.oid] = TableState(Phase.READY)
            return
        # It may be the partition of a table that is known, of which the server tells as well.
        self._run.refresh = True

    def refresh_when_due(self) -> list[PublishedTable]:
        """Read the publications again if it is time; gives the tables that are to be copied now."""
        now = time.monotonic()
        if self._options.refresh is not None and now >= self._next_refresh:
            due = self._next_refresh > 0
            self._next_refresh = now + self._options.refresh
            self._run.refresh = self._run.refresh or due
        if not self._run.refresh or self._core.in_transaction or now < self._not_before:
            return []
        admin = self._connections.admin
        read_at, _ = server.wal_ends(admin)
        try:
            with admin.transaction():
                # Reading about tables takes locks on them, behind an ALTER or TRUNCATE that may be waiting for the end
                # of our own copies: and those wait for this thread.
                admin.execute(_LOCK_TIMEOUT)
                tables = preflight.check_publications(admin, self._options.publications, self._options.selection)
                published = preflight.published_oids(admin, self._options.publications)
        except psycopg.errors.LockNotAvailable:
            self._not_before = time.monotonic() + _LOCKED_PAUSE
            return []
        self._run.refresh = False
        known = set(self._core.tables)
        for table in tables:
            if table.oid not in known:
                self._run.observer.notice(f"{table.qualified} has come into the publication")
        for oid in self._core.tables_now(table.oid for table in tables):
            # One that is only called otherwise now is in the publication still.
            if oid not in published:
                self._removed.setdefault(oid, read_at)
        if self._options.snapshot == "never":
            for table in tables:
                if table.oid not in known:
                    self._core.tables[table.oid] = TableState(Phase.READY)
            return []
        return [table for table in tables if self._core.tables[table.oid].phase is Phase.INIT]

    def forget_removed(self, perform: Callable[[list[Action]], None]) -> None:
        """Remove tables that left the publication, once the stream is past the point at which they were missing."""
        for oid, read_at in list(self._removed.items()):
            if self._core.stored >= read_at:
                del self._removed[oid]
                in_store(self._run, lambda oid=oid: self._run.store.forget(oid))  # type: ignore[misc]
                perform(self._core.forget(oid))
