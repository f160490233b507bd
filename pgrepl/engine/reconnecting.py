"""The way back after a lost connection: wait, connect, and make sure that nothing is missing behind it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import psycopg

from pgrepl.connection import is_lost, one_line
from pgrepl.engine import preflight, resume
from pgrepl.engine.connections import Connections
from pgrepl.engine.core import Core
from pgrepl.engine.patience import in_store
from pgrepl.engine.run import Run
from pgrepl.errors import ConnectError, OperationError, PositionError
from pgrepl.lsn import Lsn
from pgrepl.replication.verdicts import Passing
from pgrepl.replication.walsender import Walsender
from pgrepl.stores import Identity
from pgrepl.stores.memory import MemoryStore

_STANDBY = "25006"
NO_WALSENDER = "53300"
_PROMOTION_PATIENCE = 300.0
# How often an error that should pass is seen at one position before it is taken seriously.
_ATTEMPTS = 3


class Reconnecting:
    """Find the server and the persistent slot again that a connection was lost to.

    ``pause`` waits some seconds while what else is going on goes on, and ends with the run.
    """

    def __init__(
        self, run: Run, connections: Connections, core: Core, identity: Identity, pause: Callable[[float], None]
    ) -> None:
        self._run = run
        self._connections = connections
        self._core = core
        self._identity = identity
        self._pause = pause
        # How often, at which position, an error came that should have passed by itself.
        self._failed = (0, Lsn(0))

    def again(self, error: Exception) -> Walsender:
        """Connect again, however long it takes, and tell why it takes so long.

        Raises what waiting does not cure: PositionError where changes are gone or another server answers, ConnectError
        and OperationError for a role that may not connect any more.
        """
        if isinstance(error, Passing):
            self._count_failure(error)
        observer = self._run.observer
        observer.warning(f"{one_line(error)}; connecting again", hint=getattr(error, "hint", None))
        standby_since: float | None = None
        said = ""
        while True:
            self._pause(self._run.next_delay())
            try:
                walsender = self._connect()
            except (OperationError, ConnectError, psycopg.OperationalError) as again:
                state = getattr(again, "sqlstate", None)
                # What was the primary's address a moment ago may be that of a standby which is to be promoted.
                standby_since = (standby_since or time.monotonic()) if state == _STANDBY else None
                promoted_soon = standby_since is not None and time.monotonic() < standby_since + _PROMOTION_PATIENCE
                if not (is_lost(again) or promoted_soon or state == NO_WALSENDER):
                    raise
                reason = one_line(again)
                if reason != said:
                    observer.notice(f"waiting: {reason}")
                    said = reason
                continue
            observer.notice(f"connected again, going on from {self._core.resume_position()}")
            return walsender

    def check_not_moved(self) -> None:
        """Make sure that nobody has moved the slot before it was ours: the server would begin there without a word."""
        slot = self._connections.slot(self._identity.slot)
        if slot is not None and slot.confirmed_flush_lsn is not None:
            self._check_position(slot.confirmed_flush_lsn)

    def _count_failure(self, error: Passing) -> None:
        count, position = self._failed
        count = count + 1 if position == self._core.done else 1
        if count > _ATTEMPTS:
            raise error.final from None
        self._failed = (count, self._core.done)

    def _connect(self) -> Walsender:
        self._connections.open_admin()
        preflight.check_server(self._connections.admin, slots=0)
        walsender = self._connections.walsender(self._identity.slot)
        self._check_same(walsender)
        return walsender

    def _check_same(self, walsender: Walsender) -> None:
        """Make sure that what answers now is the server, and the slot, that the connection was lost to."""
        # Also the transaction that is printed in part: it has to be in this server's WAL, to come again.
        before, done, read_until = self._identity, self._core.done, self._core.read_until
        system_identifier, timeline = walsender.identify()
        if system_identifier != before.system_identifier:
            raise PositionError(
                f"the server is {system_identifier} now, it was {before.system_identifier}",
                hint="another server answers at this address: connect to the one of before",
            )
        now = replace(before, timeline=timeline)
        slot = self._connections.slot(now.slot)
        if slot is None or slot.lost or slot.confirmed_flush_lsn is None:
            failover = f" since the failover to timeline {timeline}" if timeline != before.timeline else ""
            state = f"gone{failover}" if slot is None else slot.verdict.text
            kept = not isinstance(self._run.store, MemoryStore)
            raise PositionError(
                f"the slot {now.slot} is {state}, and changes from {done} on with it",
                hint=resume.anew(now.slot, there=slot is not None, kept=kept),
            )
        self._check_position(slot.confirmed_flush_lsn)
        if timeline != before.timeline:
            resume.check_timeline(before.timeline, now, read_until, walsender.timeline_history(timeline))
            self._run.observer.warning(resume.came_along(before.timeline, now, done))
            in_store(self._run, lambda: self._run.store.begin(now, self._core.stored, ()))
            self._identity = now
        wal_end = self._connections.wal_end()
        if read_until > wal_end:
            raise PositionError(
                f"changes up to {read_until} were read, and the server's WAL ends at {wal_end}:"
                " it was restored to an earlier time"
            )

    def _check_position(self, confirmed: Lsn) -> None:
        if confirmed > self._core.done:
            raise PositionError(
                f"the slot {self._identity.slot} is at {confirmed}, beyond {self._core.done}:"
                " somebody else has read it, or made it anew"
            )
