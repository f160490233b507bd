"""Tables that come into the publication and leave it while a session runs."""

from __future__ import annotations

import time
from collections.abc import Sequence

import psycopg

from pgrepl.catalog import server
from pgrepl.catalog.publications import PublishedTable
from pgrepl.engine import preflight
from pgrepl.engine.connections import Connections
from pgrepl.engine.core import Action, Core, Phase, TableState
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
        for oid, read_at in removed.items():
            core.table_left(oid, read_at)
        self._next_refresh = 0.0
        self._not_before = 0.0
        # What was named and is not there any more, as it was said last.
        self._missing: list[str] = []

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

    def is_due(self) -> bool:
        """Say whether it is time to read the publications again."""
        now = time.monotonic()
        if self._options.refresh is not None and now >= self._next_refresh:
            self._run.refresh = self._run.refresh or self._next_refresh > 0
            self._next_refresh = now + self._options.refresh
        return self._run.refresh and not self._core.in_transaction and now >= self._not_before

    def refresh(self) -> tuple[list[Action], list[PublishedTable]]:
        """Read the publications again; gives what is to be done, and the tables that are to be copied then."""
        admin = self._connections.admin
        try:
            with admin.transaction():
                # Reading about tables takes locks on them, behind an ALTER or TRUNCATE that may be waiting for the end
                # of our own copies: and those wait for this thread.
                admin.execute(_LOCK_TIMEOUT)
                published = preflight.published(admin, self._options.publications)
        except psycopg.errors.LockNotAvailable:
            self._not_before = time.monotonic() + _LOCKED_PAUSE
            return [], []
        self._run.refresh = False
        # Read afterwards, and not how far it is flushed: what tables changed before they left is before this position.
        _, read_at = server.wal_ends(admin)
        self._tell_missing(published)
        tables = [table for table in published if self._options.selection.wants(table)]
        known = set(self._core.tables)
        # One that is only called otherwise now is in the publication still.
        there = {table.oid for table in tables} | known & {table.oid for table in published}
        actions = self._core.tables_now(there, read_at)
        due = [table for table in tables if self._core.tables[table.oid].phase is Phase.INIT]
        for table in due:
            back = " again" if table.oid in known else ""
            self._run.observer.notice(f"{table.qualified} has come into the publication{back}")
        if self._options.snapshot != "never":
            return actions, due
        for table in due:
            self._core.tables[table.oid] = TableState(Phase.READY)
        return actions, []

    def _tell_missing(self, published: Sequence[PublishedTable]) -> None:
        """Say which of the named tables are not published any more: that stops no run, since they may come back."""
        missing = self._options.selection.missing(published)
        if missing and missing != self._missing:
            named = ", ".join(self._options.publications)
            self._run.observer.warning(
                f"publication {named} does not have {', '.join(missing)} any more; going on without",
                hint="once it is back it is copied again",
            )
        self._missing = missing
