"""Running what is missing, and writing it down as a script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pgrepl.connection import server_error
from pgrepl.migrations.lock import DEFAULT_LOCK_TIMEOUT, lock_key, locked, timeout_setting
from pgrepl.migrations.plan import Plan, Step, plan

if TYPE_CHECKING:
    import psycopg


@dataclass(frozen=True)
class Outcome:
    """The versions that were applied, and the steps that are left to somebody with more privileges, each with why."""

    database: str
    applied: tuple[int, ...]
    left: tuple[Step, ...]

    @property
    def needs(self) -> str | None:
        """What is left as a script for psql."""
        if not self.left:
            return None
        title = f"-- to be run as a superuser in database {_one_line(self.database)}\n"
        return title + _script(self.database, self.left)


def apply(conn: psycopg.Connection, *, to: int | None = None, lock_timeout: float = DEFAULT_LOCK_TIMEOUT) -> Outcome:
    """Apply what is missing up to and including version ``to``, each version in a transaction of its own.

    ``conn`` is in autocommit mode. ``lock_timeout`` is in seconds, for each lock, 0 waits for ever. What the connected
    role may not do is left, not tried halfway. Raises what ``plan`` raises, and OperationError when a version fails,
    which is then rolled back while those before it stay.
    """
    import psycopg

    database = conn.info.dbname
    applied: list[int] = []
    with locked(conn, database, lock_timeout):
        for step in plan(conn, to=to).steps:
            obstacle = step.obstacle
            if obstacle is None:
                try:
                    obstacle = _run(conn, step, lock_timeout)
                except psycopg.Error as error:
                    doing = f"migration {step.migration.version} failed and was rolled back"
                    raise server_error(error, doing) from None
            if obstacle is not None:
                # Planned anew, since what was applied meanwhile changes what somebody else is to run.
                first, *others = plan(conn, to=to).steps
                return Outcome(database, tuple(applied), (replace(first, obstacle=obstacle), *others))
            applied.append(step.migration.version)
    return Outcome(database, tuple(applied), ())


def _run(conn: psycopg.Connection, step: Step, lock_timeout: float) -> str | None:
    """Run a step whole, or not at all and say why when the event trigger was refused."""
    import psycopg

    refused = None
    with conn.transaction() as transaction:
        conn.execute(timeout_setting(lock_timeout).encode())
        for statement in step.statements:
            conn.execute(statement.encode())
        try:
            for statement in step.event_trigger:
                conn.execute(statement.encode())
        except psycopg.errors.InsufficientPrivilege as error:
            refused = error.diag.message_primary or "the event trigger was refused"
            raise psycopg.Rollback(transaction) from None
        conn.execute(step.record.encode())
    return refused


def dry_run_script(planned: Plan) -> str:
    """Write what ``apply`` would run as a script for psql, to the same effect.

    Where the connected role may not make the event trigger the script stops there like ``apply``, with everything
    before it done. Steps that it may not run at all follow as a comment.
    """
    runnable = [step for step in planned.steps if step.obstacle is None]
    blocked = [step for step in planned.steps if step.obstacle is not None]
    title = f"-- what migrations apply would run in database {_one_line(planned.database)}\n"
    if not planned.steps:
        return "-- nothing to do\n"
    script = title + _script(planned.database, runnable) if runnable else ""
    if blocked:
        left = _script(planned.database, blocked)
        lines = [f"role {planned.role} may not run this: {blocked[0].obstacle}", *left.splitlines()]
        script += "".join(f"-- {line}".rstrip() + "\n" for line in lines)
    return script


def transaction(statements: Iterable[str]) -> str:
    """Write statements as one transaction of a script."""
    return "".join(f"{statement};\n" for statement in ("BEGIN", *statements, "COMMIT"))


def locked_script(database: str, body: str) -> str:
    """Write a script that stops at its first error and holds the lock of the migrations."""
    key = lock_key(database)
    return (
        "\\set ON_ERROR_STOP on\n"
        f"SELECT pg_catalog.pg_advisory_lock({key});\n"
        f"{body}"
        f"SELECT pg_catalog.pg_advisory_unlock({key});\n"
    )


def _script(database: str, steps: Sequence[Step]) -> str:
    parts = []
    for step in steps:
        statements = (*step.statements, *step.event_trigger, step.record)
        parts.append(f"-- {step.migration.version}: {step.migration.description}\n" + transaction(statements))
    return locked_script(database, "".join(parts))


def _one_line(name: str) -> str:
    return " ".join(name.splitlines())
