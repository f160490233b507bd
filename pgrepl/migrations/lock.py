"""The lock that keeps two runs of the migrations apart, be they pgrepl's or sqlx's."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pgrepl.errors import OperationError

if TYPE_CHECKING:
    import psycopg

DEFAULT_LOCK_TIMEOUT = 10.0

_SQLX = 0x3D32AD9E

# A bigint key stands in pg_locks in two halves (PostgreSQL documentation, pg_locks).
_HOLDER = """
SELECT l.pid, coalesce(nullif(a.application_name, ''), a.usename::text, 'unknown')
FROM pg_catalog.pg_locks l
LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
  AND l.classid = (%(key)s::bigint >> 32)::oid AND l.objid = (%(key)s::bigint & 4294967295)::oid
  AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())
LIMIT 1
"""


def lock_key(database: str) -> int:
    """Give the key of the advisory lock that sqlx takes for a database: it fits a bigint and is never negative."""
    return _SQLX * zlib.crc32(database.encode())


@contextmanager
def locked(conn: psycopg.Connection, database: str, timeout: float) -> Iterator[None]:
    """Hold the lock; wait ``timeout`` seconds for it, 0 for ever. Raises OperationError naming who holds it."""
    import psycopg

    key = lock_key(database)
    try:
        with conn.transaction():
            conn.execute(timeout_setting(timeout).encode())
            conn.execute("SELECT pg_advisory_lock(%s)", [key])
    except psycopg.errors.LockNotAvailable as error:
        holder = conn.execute(_HOLDER, {"key": key}).fetchone()
        who = f": process {holder[0]} ({holder[1]}) does" if holder else ""
        raise OperationError(
            f"somebody else migrates database {database}{who}", hint="wait for its end", sqlstate=error.sqlstate
        ) from None
    try:
        yield
    finally:
        # With the session gone, so is its lock.
        with suppress(psycopg.Error):
            conn.execute("SELECT pg_advisory_unlock(%s)", [key])


def timeout_setting(seconds: float) -> str:
    """Write the statement that limits the wait for locks within the transaction."""
    return f"SET LOCAL lock_timeout = '{round(seconds * 1000)}ms'"
