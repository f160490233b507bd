"""What a server must be like before anything on it is set up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgrepl.catalog import server as catalog
from pgrepl.errors import OperationError
from pgrepl.provision.steps import Note, Step

if TYPE_CHECKING:
    import psycopg

_OLDEST = 16


def check_version(conn: psycopg.Connection) -> None:
    """Raise OperationError for a server that is too old, without asking it anything."""
    version = conn.info.server_version
    if version < _OLDEST * 10_000:
        raise OperationError(
            f"the server is PostgreSQL {version // 10_000}.{version % 10_000}, too old for pgrepl",
            hint=f"{_OLDEST} or newer is needed",
        )


def check(conn: psycopg.Connection) -> tuple[catalog.Server, list[Step], list[Note]]:
    """Check version, wal_level and the room for a slot and a walsender; return the server with the steps and notes.

    Raises OperationError at the first that does not fit: nothing that is set up on such a server would work.
    """
    check_version(conn)
    server = catalog.read(conn)
    if server.in_recovery:
        raise OperationError("the server is a standby and read-only", hint="connect to its primary")
    if not server.decodes:
        hint = "ALTER SYSTEM SET wal_level = 'logical'; then restart the server (managed services: see their setting)"
        if "wal_level" in server.pending_restart:
            hint = "restart the server: a new value of wal_level waits for that"
        raise OperationError(f"wal_level is {server.wal_level}, not logical", hint=hint)
    for setting, limit, free in (
        ("max_replication_slots", server.max_replication_slots, server.free_slots),
        ("max_wal_senders", server.max_wal_senders, server.free_wal_senders),
    ):
        if free < 1:
            raise OperationError(
                f"all {limit} of {setting} are in use" if limit else f"{setting} is 0",
                hint=f"ALTER SYSTEM SET {setting} = {max(limit * 2, 10)}; then restart the server",
            )
    level = server.effective_wal_level or server.wal_level
    steps = [
        Step("check", "exists", "server_version", f"PostgreSQL {server.version}"),
        Step("check", "exists", "wal_level", f"wal_level is {level}"),
        Step(
            "check",
            "exists",
            "max_replication_slots",
            f"{server.free_slots} of {server.max_replication_slots} slots free",
        ),
        Step(
            "check",
            "exists",
            "max_wal_senders",
            f"{server.free_wal_senders} of {server.max_wal_senders} walsenders free",
        ),
    ]
    notes = []
    if server.max_slot_wal_keep_size_mb < 0:
        notes.append(
            Note(
                "max_slot_wal_keep_size is unlimited: the slot of a stopped consumer keeps WAL until the disk is full",
                "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf();",
            )
        )
    return server, steps, notes
