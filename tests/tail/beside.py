"""Transactions that change a table beside a slot that is being built, and write to it before it is consistent."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import LiteralString

import psycopg

from tests.command import eventually
from tests.servers.database import Database

_WAITS = """
    SELECT 1 FROM pg_locks JOIN pg_replication_slots ON active_pid = pid
     WHERE locktype = 'transactionid' AND NOT granted AND transactionid = ANY (%s::xid[])
       AND pg_replication_slots.database = current_database()
"""


class Beside:
    """Transactions beside a slot that is being built; the first of them is there before it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connections = ExitStack()

    def __enter__(self) -> Beside:
        self._eyes = self._connections.enter_context(self._database.connect())
        self._first, self._first_xid = self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connections.close()

    def change(self, change: LiteralString, row: LiteralString) -> psycopg.Connection:
        """Change a table before the slot is full, and write to it before it is consistent; gives the writer."""
        self._waits_for(self._first_xid)
        changer, xid = self._begin()
        changer.execute(change)
        # It keeps the slot from being consistent when the changer has ended.
        last, last_xid = self._begin()
        self._first.execute("COMMIT")
        # Of both, in the order that it likes.
        self._waits_for(xid, last_xid)
        changer.execute("COMMIT")
        writer, _ = self._begin()
        writer.execute(row)
        last.execute("COMMIT")
        return writer

    def _begin(self) -> tuple[psycopg.Connection, str]:
        connection = self._connections.enter_context(self._database.connect())
        connection.execute("BEGIN")
        row = connection.execute("SELECT pg_current_xact_id()::xid::text").fetchone()
        assert row is not None
        return connection, row[0]

    def _waits_for(self, *xids: str) -> None:
        eventually(lambda: self._eyes.execute(_WAITS, [list(xids)]).fetchone() is not None, 30)
