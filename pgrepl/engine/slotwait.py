"""What the slot of a copy waits for while it is being built: it is said, and nothing is kept for the copy meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

import psycopg

from pgrepl import connection as sql_connection
from pgrepl.catalog import blockers
from pgrepl.conninfo import ConnectionTarget
from pgrepl.errors import ConnectError
from pgrepl.lsn import Lsn

TELL_AFTER = 2.0
"""Seconds after which it is said what a slot waits for."""

TELL_EVERY = 10.0
"""Seconds between two lines about it."""

_LOOK_EVERY = 1.0


class SlotWait:
    """Look at the walsender ``pid``, which builds the slot for a copy of ``tables``, now and then while that takes.

    ``received`` says before which LSN everything that the stream has brought so far was committed. While the walsender
    waits for a transaction all that lies before the slot's consistent point, so that the snapshot will have it:
    ``seen`` is told of that LSN (docs/engine.md). ``warn`` is told who makes the walsender wait. The connection is made
    only for slots that take long.
    """

    def __init__(
        self,
        target: ConnectionTarget,
        pid: int,
        tables: str,
        *,
        received: Callable[[], Lsn],
        seen: Callable[[Lsn], None],
        warn: Callable[[str], None],
    ) -> None:
        self._target = target
        self._pid = pid
        self._tables = tables
        self._received = received
        self._seen = seen
        self._warn = warn
        self._connection: psycopg.Connection | None = None
        self._looked = self._told = float("-inf")

    def __enter__(self) -> SlotWait:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._connection.close()

    def look(self, waited: float) -> None:
        """Look, after so many seconds of waiting."""
        now = time.monotonic()
        if waited < TELL_AFTER or now - self._looked < _LOOK_EVERY:
            return
        self._looked = now
        # Before the server is asked: what comes afterwards may lie beyond the consistent point.
        received = self._received()
        try:
            if self._connection is None or self._connection.closed:
                self._connection = sql_connection.connect(self._target, "pgrepl tail")
            if not blockers.waits_for_transaction(self._connection, self._pid):
                return
            who = blockers.names(self._connection, self._pid)
        except (ConnectError, psycopg.Error):
            # What is wrong with the server is found out, and said, by those who need it more.
            return
        self._seen(received)
        if now - self._told >= TELL_EVERY:
            self._told = now
            self._warn(f"the copy of {self._tables} cannot begin yet, for {waited:.0f} s now its slot waits for {who}")
