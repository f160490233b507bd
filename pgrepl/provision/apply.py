"""Running a plan: all of it or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from pgrepl.connection import server_error
from pgrepl.errors import OperationError
from pgrepl.provision.steps import Plan, Statement, Step

if TYPE_CHECKING:
    import psycopg

DEFAULT_LOCK_TIMEOUT = 5.0

# What CREATE and ALTER PUBLICATION take on a table is SHARE UPDATE EXCLUSIVE; these are the modes that keep it out
# (PostgreSQL documentation, Explicit Locking).
_HOLDERS = """
SELECT 'one on ' || n.nspname || '.' || c.relname, l.pid, a.usename::text, a.application_name
FROM pg_catalog.pg_locks l
JOIN pg_catalog.pg_class c ON c.oid = l.relation
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.granted AND l.relation = ANY (%s::oid[]) AND l.pid <> pg_backend_pid()
  AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())
  AND l.mode IN ('ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
                 'AccessExclusiveLock')
ORDER BY l.pid, 1
LIMIT 1
"""

# A bigint key stands in pg_locks in two halves (PostgreSQL documentation, pg_locks).
_ADVISORY_HOLDER = """
SELECT 'the lock of the migrations', l.pid, a.usename::text, a.application_name
FROM pg_catalog.pg_locks l
LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.pid <> pg_backend_pid()
  AND l.classid = (%(key)s::bigint >> 32)::oid AND l.objid = (%(key)s::bigint & 4294967295)::oid
  AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())
LIMIT 1
"""


def apply(conn: psycopg.Connection, plan: Plan, *, lock_timeout: float = DEFAULT_LOCK_TIMEOUT) -> Plan:
    """Run the planned statements in one transaction, and return the plan with the steps as they are then.

    ``lock_timeout`` is in seconds, for each lock; 0 waits for ever. Raises OperationError when a statement fails or a
    lock is not to be had, naming who holds it as far as a second look tells; the server is then as it was before. Only
    a step that is an attempt may be refused for want of privilege, and is then left to somebody else.
    """
    import psycopg

    if not plan.has_work:
        return plan
    running = next(plan.statements())
    refused: list[Step] = []
    try:
        with conn.transaction():
            conn.execute(lock_timeout_setting(lock_timeout).encode())
            for step in plan.steps:
                if step.status != "planned":
                    continue
                try:
                    with conn.transaction() if step.attempt else nullcontext():
                        for statement in step.statements:
                            running = step, statement
                            conn.execute(statement.sql.encode())
                except psycopg.errors.InsufficientPrivilege:
                    if not step.attempt:
                        raise
                    refused.append(step)
    except psycopg.errors.LockNotAvailable as error:
        raise _locked(conn, *running, lock_timeout, error.sqlstate) from None
    except psycopg.Error as error:
        raise server_error(error, _failed(running[0])) from None
    return replace(plan, steps=_done(plan.steps, refused))


def lock_timeout_setting(seconds: float) -> str:
    """Write the statement that limits the wait for locks within the transaction."""
    return f"SET LOCAL lock_timeout = '{round(seconds * 1000)}ms'"


def _done(steps: Sequence[Step], refused: Sequence[Step]) -> tuple[Step, ...]:
    done = []
    for step in steps:
        if step in refused:
            step = replace(step, status="needs_superuser")
        elif step.status == "planned":
            step = replace(step, status=step.outcome)
        done.append(step)
    return tuple(done)


def _failed(step: Step) -> str:
    return f"{step.name} {step.object} failed, nothing was changed"


def _locked(
    conn: psycopg.Connection, step: Step, statement: Statement, lock_timeout: float, sqlstate: str | None
) -> OperationError:
    if statement.advisory is None:
        holder = conn.execute(_HOLDERS, [list(statement.locks)]).fetchone()
    else:
        holder = conn.execute(_ADVISORY_HOLDER, {"key": statement.advisory}).fetchone()
    failed = f"{_failed(step)}: no lock within {lock_timeout:g} s"
    if holder is None:
        return OperationError(failed, hint="try again, or wait longer with --lock-timeout", sqlstate=sqlstate)
    held, pid, user, application = holder
    details = ", ".join(
        part for part in (f"user {user}" if user else "", f"application {application}" if application else "") if part
    )
    return OperationError(
        f"{failed}; process {pid}{f' ({details})' if details else ''} holds {held}",
        hint=f"let it end its transaction, wait longer with --lock-timeout, or SELECT pg_terminate_backend({pid})",
        sqlstate=sqlstate,
    )
