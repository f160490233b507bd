"""Transactions that are not over yet."""

from __future__ import annotations

import psycopg


def is_open(connection: psycopg.Connection, xid: int) -> bool:
    """Tell whether a transaction still runs, to this session too: what it wrote cannot be seen yet.

    A commit stands in the WAL, and is streamed, before it can be seen, and long before while it waits for a
    synchronous standby. Until after that its session holds the lock on its xid.
    """
    held = """
        SELECT 1 FROM pg_catalog.pg_locks
         WHERE locktype = 'transactionid' AND transactionid = %s::xid AND mode = 'ExclusiveLock' AND granted
    """
    return connection.execute(held, [str(xid)]).fetchone() is not None
