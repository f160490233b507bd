"""Who waits for the locks of a copy: it is said, and where that is wanted the copy gives way.

ACCESS SHARE lets everybody read and write, and an ALTER TABLE wait. But what comes after the ALTER waits behind it, so
that the application's own queries stand still until the copy is done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import Protocol

import psycopg

from pgrepl import connection as sql_connection
from pgrepl.catalog import blockers
from pgrepl.catalog.blockers import Waiter
from pgrepl.conninfo import ConnectionTarget
from pgrepl.errors import ConnectError

_LOOK_EVERY = 1.0
_TELL_EVERY = 5.0
# How long workers may take to finish the piece they are at, of another table.
_GRACE = 5.0


class Copying(Protocol):
    """A copy that holds locks.

    ``pids`` are the backends that hold them. ``let_go`` makes them let go of tables, and begins a copy anew that is
    not done; ``unfinished`` are the tables of which that is so, ``current`` those that are being read just now.
    """

    @property
    def pids(self) -> list[int]: ...

    @property
    def unfinished(self) -> set[int]: ...

    @property
    def current(self) -> set[int]: ...

    def let_go(self, tables: Collection[int], reason: str) -> None: ...


class LockWatch:
    """Look after the locks of a copy, in a thread of its own, as long as the ``with`` block lasts.

    A table that has been copied is let go at once when somebody waits for it, one that has not after ``yield_after``
    seconds, or never. ``warn`` is told every few seconds who waits. Its connection is made only for copies that last.
    """

    def __init__(
        self, target: ConnectionTarget, copying: Copying, yield_after: float | None, warn: Callable[[str], None]
    ) -> None:
        self._target = target
        self._copying = copying
        self._yield_after = yield_after
        self._warn = warn
        self._told = float("-inf")
        # When each table was let go.
        self._let_go: dict[int, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pgrepl locks", daemon=True)

    def __enter__(self) -> LockWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        every = _LOOK_EVERY if self._yield_after is None else min(_LOOK_EVERY, max(self._yield_after, 0.1))
        connection: psycopg.Connection | None = None
        while not self._over.wait(every):
            try:
                if connection is None or connection.closed:
                    connection = sql_connection.connect(self._target, "pgrepl tail")
                self._look(blockers.waiting_for(connection, self._copying.pids))
            except (ConnectError, psycopg.Error):
                # What is wrong with the server is found out, and said, by those who need it more.
                continue
        if connection is not None:
            connection.close()

    def _look(self, waiters: list[Waiter]) -> None:
        now = time.monotonic()
        for waiter in waiters:
            tables = set(waiter.tables)
            if not tables & self._copying.unfinished:
                self._copying.let_go(tables, "")
            elif self._yield_after is not None and waiter.seconds >= self._yield_after:
                self._copying.let_go(tables, f"gave way: {waiter}")
            else:
                continue
            since = min(self._let_go.setdefault(table, now) for table in tables)
            if self._yield_after is not None and now - since >= _GRACE:
                self._copying.let_go(self._copying.current, f"broke off to give way: {waiter}")
        if waiters and now - self._told >= _TELL_EVERY:
            self._told = now
            for waiter in waiters:
                self._warn(self._description(waiter))

    def _description(self, waiter: Waiter) -> str:
        others = f", and {waiter.behind} more behind it" if waiter.behind else ""
        if self._yield_after is None:
            advice = "--yield-to-ddl DURATION would let it go first"
        else:
            advice = f"it goes first after {self._yield_after:g} s"
        return f"{waiter}{others}, since the table is being copied; {advice}"
