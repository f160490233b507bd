"""Who makes a backend wait, and whom a backend makes wait."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import psycopg


@dataclass(frozen=True)
class Blocker:
    """A session or a prepared transaction that another backend waits for.

    What only pg_read_all_stats may see of another role's session is None. ``seconds`` is the age of its transaction.
    """

    pid: int | None
    gid: str | None
    user: str | None
    application: str | None
    state: str | None
    seconds: float | None
    query: str | None

    def __str__(self) -> str:
        if self.gid is not None:
            return f"prepared transaction {self.gid!r} of {self.user}, {_age(self.seconds)}"
        who = ", ".join(part for part in (self.user, self.application, self.state) if part)
        return f"pid {self.pid} ({who or 'a session of another role'}{_since(self.seconds)})" + (
            f": {' '.join(self.query.split())[:80]}" if self.query else ""
        )


_BLOCKERS = """
SELECT b.pid, NULL, a.usename, a.application_name, a.state,
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8,
       nullif(a.query, '<insufficient privilege>')
  FROM (SELECT DISTINCT unnest(pg_catalog.pg_blocking_pids(%(pid)s)) AS pid) b
  LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = b.pid
 WHERE b.pid <> 0
UNION ALL
SELECT NULL, p.gid, p.owner, NULL, NULL, extract(epoch FROM clock_timestamp() - p.prepared)::float8, NULL
  FROM pg_catalog.pg_prepared_xacts p
 WHERE 0 = ANY (pg_catalog.pg_blocking_pids(%(pid)s))
"""


def of_backend(connection: psycopg.Connection, pid: int) -> list[Blocker]:
    """List what the backend ``pid`` waits for; a prepared transaction shows in pg_blocking_pids only as 0."""
    return [Blocker(*row) for row in connection.execute(_BLOCKERS, {"pid": pid})]


def names(connection: psycopg.Connection, pid: int) -> str:
    """Name what the backend ``pid``, which builds a slot, waits for, in one line."""
    found = of_backend(connection, pid)
    return "; ".join(str(blocker) for blocker in found) or "transactions that are still running"


def waits_for_transaction(connection: psycopg.Connection, pid: int) -> bool:
    """Say whether the backend ``pid`` waits for the end of a transaction at this moment."""
    query = "SELECT 1 FROM pg_catalog.pg_locks WHERE pid = %s AND locktype = 'transactionid' AND NOT granted"
    return connection.execute(query, [pid]).fetchone() is not None


@dataclass(frozen=True)
class Waiter:
    """A session that waits for a lock on a table which other backends hold.

    ``tables`` is the table and, of a partition, all that it is a part of. ``behind`` counts those who wait for the
    waiter in turn.
    """

    pid: int
    user: str | None
    application: str | None
    query: str | None
    table: str
    tables: frozenset[int]
    seconds: float
    behind: int

    def __str__(self) -> str:
        who = ", ".join(part for part in (f"pid {self.pid}", self.user, self.application) if part)
        what = " ".join(self.query.split())[:80] if self.query else "a statement"
        return f"{what} ({who}) has been waiting for {self.table} for {self.seconds:.0f} s"


_WAITERS = """
SELECT l.pid, a.usename, a.application_name, nullif(a.query, '<insufficient privilege>'),
       format('%%I.%%I', n.nspname, c.relname),
       array(SELECT c.oid UNION SELECT relid FROM pg_catalog.pg_partition_ancestors(c.oid)),
       coalesce(extract(epoch FROM clock_timestamp() - l.waitstart), 0)::float8,
       (SELECT count(*) FROM (SELECT DISTINCT pid FROM pg_catalog.pg_locks WHERE NOT granted) o
         WHERE l.pid = ANY (pg_catalog.pg_blocking_pids(o.pid)))
  FROM pg_catalog.pg_locks l
  LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = l.relation
  JOIN pg_catalog.pg_class c ON c.oid = coalesce(i.indrelid, l.relation)
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
 WHERE NOT l.granted AND l.locktype = 'relation'
   AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
   AND pg_catalog.pg_blocking_pids(l.pid) && %s::int[]
"""


def waiting_for(connection: psycopg.Connection, pids: Collection[int]) -> list[Waiter]:
    """List who waits for a lock on a table that one of these backends holds."""
    rows = connection.execute(_WAITERS, [list(pids)])
    return [
        Waiter(pid, user, application, query, table, frozenset(tables), seconds, behind)
        for pid, user, application, query, table, tables, seconds, behind in rows
    ]


def _age(seconds: float | None) -> str:
    return "of unknown age" if seconds is None else f"{seconds:.0f} s old"


def _since(seconds: float | None) -> str:
    return "" if seconds is None else f" for {seconds:.0f} s"
