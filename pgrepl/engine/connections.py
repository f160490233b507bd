"""The connections of a session, and the wait for what the server is still busy with."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack

import psycopg

from pgrepl import connection as sql_connection
from pgrepl.catalog import blockers, server, slots
from pgrepl.catalog.slots import Slot
from pgrepl.engine.run import Run
from pgrepl.engine.slotwait import TELL_AFTER, TELL_EVERY
from pgrepl.errors import OperationError
from pgrepl.lsn import Lsn
from pgrepl.replication.walsender import Walsender

# PostgreSQL tells nobody when a slot comes free or WAL is flushed, so it is asked again and again.
_STEP = 0.05
_FLUSH_PATIENCE = 1.0
_SLOT_PATIENCE = 10.0
_HOLDER_PATIENCE = 5.0
# How long after wal_sender_timeout the server may take to end the walsender of a lost connection.
_OLD_WALSENDER = 10.0
_SAY_AGAIN_AFTER = 60.0


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
        self._walsender: Walsender | None = None
        self._said: dict[str, float] = {}

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
        self.say_notices()
        walsender = Walsender.open(self._run.target, f"pgrepl tail ({slot})")
        self._open.callback(walsender.close)
        # Asked now: after the slot's creation the next command ends the export of its snapshot.
        self.wal_sender_timeout = walsender.wal_sender_timeout()
        self._walsender = walsender
        return walsender

    def say_notices(self) -> None:
        """Pass on what the server has said on the replication connection, the same at most once a minute."""
        if self._walsender is None:
            return
        now = time.monotonic()
        for text, hint in self._walsender.take_notices():
            if now - self._said.get(text, float("-inf")) >= _SAY_AGAIN_AFTER:
                self._said[text] = now
                self._run.observer.warning(f"the server says: {text}", hint=hint)

    def slot(self, name: str) -> Slot | None:
        """Ask what the server says of a slot."""
        return next((slot for slot in slots.all_of(self.admin) if slot.name == name), None)

    def free_slot(self, name: str, database: str) -> Slot | None:
        """Find a slot that can be read here, giving whoever holds it a few seconds to let go; None when there is none.

        Raises OperationError for another database's slot, one for something else, and one that stays in use.
        """
        give_up = time.monotonic() + self.holder_patience(ours=self._run.slot_name == name)
        told = False
        while (slot := self.slot(name)) is not None:
            if slot.physical or slot.plugin != "pgoutput":
                kind = "a physical slot" if slot.physical else f"for the plugin {slot.plugin}"
                raise OperationError(
                    f"slot {name} is {kind}; tail reads those for pgoutput",
                    hint="'pgrepl slots create NAME --publication …' makes one",
                )
            if slot.database != database:
                raise OperationError(
                    f"the slot {name} belongs to database {slot.database}", hint="connect to that database"
                )
            if slot.two_phase:
                raise OperationError(
                    f"slot {name} gives prepared transactions, which tail does not read",
                    hint="make one without --two-phase",
                )
            if not slot.active:
                return slot
            if time.monotonic() >= give_up:
                raise held(slot)
            if not told:
                self._run.observer.notice(f"{held(slot)}; waiting for it")
                told = True
            self._run.pause(_STEP)
        return None

    def holder_patience(self, *, ours: bool) -> float:
        """Say how many seconds to wait for a walsender on the slot to end, which may be one of ours that died."""
        return self.wal_sender_timeout + _OLD_WALSENDER if ours else _HOLDER_PATIENCE

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
            if waited < TELL_AFTER or now - self._run.told_blockers < TELL_EVERY:
                return
            self._run.told_blockers = now
            who = blockers.names(self.admin, walsender.pid)
            self._run.observer.warning(
                f"the slot cannot be built yet, for {waited:.0f} s now it waits for {who}",
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


def held(slot: Slot) -> OperationError:
    """Build the error for a slot that somebody else reads."""
    holder = slot.holder
    who = "another session"
    if holder is not None:
        named = [part for part in (holder.application_name, holder.client_addr) if part]
        who = f"pid {holder.pid}" + (f" ({', '.join(named)})" if named else "")
    return OperationError(
        f"the slot {slot.name} is in use by {who}",
        hint="stop that reader first; two cannot share a slot",
        sqlstate="55006",
    )
