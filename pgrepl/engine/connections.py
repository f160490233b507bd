"""The connections of a session, and the wait for what the server is still busy with."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack

import psycopg

from pgrepl import connection as sql_connection
from pgrepl.catalog import blockers, server
from pgrepl.engine.run import Run
from pgrepl.lsn import Lsn
from pgrepl.replication.walsender import Walsender

_STEP = 0.05
_FLUSH_PATIENCE = 1.0
_SLOT_PATIENCE = 10.0
_TELL_BLOCKERS_AFTER = 2.0
_TELL_BLOCKERS_EVERY = 10.0


class Connections:
    """Open what a session needs; ``resources`` closes all of it.

    ``admin`` is for queries, and another one after each reconnect. ``wal_sender_timeout`` (seconds, 0 for none) is that
    of the last walsender.
    """

    def __init__(self, run: Run, resources: ExitStack) -> None:
        self._run = run
        self._open = ExitStack()
        resources.callback(self.close)
        self.admin = self.open()
        self.wal_sender_timeout = 0.0

    def open(self) -> psycopg.Connection:
        """Open an ordinary connection."""
        connection = sql_connection.connect(self._run.target, "pgrepl tail")
        self._open.callback(connection.close)
        return connection

    def before_close(self, callback: Callable[[], None]) -> None:
        """Call something before the connections are closed that are open now."""
        self._open.callback(callback)

    def close(self) -> None:
        """Close all connections."""
        self._open.close()

    def open_admin(self) -> None:
        """Open ``admin`` anew, and close what else is still open."""
        self.close()
        self.admin = self.open()

    def walsender(self, slot: str) -> Walsender:
        """Open a replication connection."""
        walsender = Walsender.open(self._run.target, f"pgrepl tail ({slot})")
        self._open.callback(walsender.close)
        # Asked now: after the slot's creation the next command ends the export of its snapshot.
        self.wal_sender_timeout = walsender.wal_sender_timeout()
        return walsender

    def wait_for_old_slot(self) -> None:
        """Give the server time to notice that the last session's connection, and so its temporary slot, is gone."""
        query = "SELECT 1 FROM pg_catalog.pg_replication_slots WHERE slot_name = %s AND temporary"
        give_up = time.monotonic() + _SLOT_PATIENCE
        name = self._run.slot_name
        while name and time.monotonic() < give_up and self.admin.execute(query, [name]).fetchone():
            self._run.pause(_STEP)

    def building(self, walsender: Walsender) -> Callable[[float], None]:
        """While a slot is being built: end when told to, and say who makes it wait."""

        def waiting(waited: float) -> None:
            self._run.check_end()
            now = time.monotonic()
            if waited < _TELL_BLOCKERS_AFTER or now - self._run.told_blockers < _TELL_BLOCKERS_EVERY:
                return
            self._run.told_blockers = now
            found = blockers.of_backend(self.admin, walsender.pid)
            what = "; ".join(str(blocker) for blocker in found) or "transactions that are still running"
            self._run.observer.warning(
                f"the slot cannot be built yet, for {waited:.0f} s now it waits for {what}",
                hint="it goes on by itself when they end",
            )

        return waiting

    def wal_end(self) -> Lsn:
        """Find the end of the WAL that the stream will have; an asynchronous commit is written before it is flushed."""
        give_up = time.monotonic() + _FLUSH_PATIENCE
        flushed, wanted = server.wal_ends(self.admin)
        while flushed < wanted and time.monotonic() < give_up:
            time.sleep(_STEP / 2)
            flushed, _ = server.wal_ends(self.admin)
        return flushed
