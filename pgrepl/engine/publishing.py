"""Tables that come into the publication and leave it while a session runs."""

from __future__ import annotations

import time
        return self._run.refresh and not self._core.in_transaction and now >= self._not_before

    def refresh(self) -> tuple[list[Action], list[PublishedTable]]:
        """Read the publications again; gives what is to be done, and the tables that are to be copied then."""
        admin = self._connections.admin
        try:
            with admin.transaction():
                # Reading about tables takes locks on them, behind an ALTER or TRUNCATE that may be waiting for the end
                # of our own copies: and those wait for this thread.
                admin.execute(_LOCK_TIMEOUT)
                tables = preflight.check_publications(admin, self._options.publications, self._options.selection)
        except psycopg.errors.LockNotAvailable:
            self._not_before = time.monotonic() + _LOCKED_PAUSE
            return [], []
        self._run.refresh = False
        # Read afterwards, and not how far it is flushed: what tables changed before they left is before this position.
        _, read_at = server.wal_ends(admin)
        known = set(self._core.tables)
        actions = self._core.tables_now((table.oid for table in tables), read_at)
        due = [table for table in tables if self._core.tables[table.oid].phase is Phase.INIT]
        for table in due:
            back = " again" if table.oid in known else ""
            self._run.observer.notice(f"{table.qualified} has come into the publication{back}")
        if self._options.snapshot != "never":
            return actions, due
        for table in due:
            self._core.tables[table.oid] = TableState(Phase.READY)
        return actions, []
