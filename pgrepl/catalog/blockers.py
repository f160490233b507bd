"""Who makes a backend wait."""

from __future__ import annotations

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


def _age(seconds: float | None) -> str:
    return "of unknown age" if seconds is None else f"{seconds:.0f} s old"


def _since(seconds: float | None) -> str:
    return "" if seconds is None else f" for {seconds:.0f} s"
