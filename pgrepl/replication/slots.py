"""Creating and dropping slots, and ending the sessions that hold them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pgrepl.errors import OperationError
from pgrepl.lsn import Lsn
from pgrepl.names import check_slot_name, quote_ident

if TYPE_CHECKING:
    import psycopg

    from pgrepl.replication.walsender import Waiting, Walsender

_TERMINATE_SECONDS = 10.0
_HAS_FAILOVER = 170000

_TERMINATE = """
SELECT s.active_pid, pg_terminate_backend(s.active_pid, %s)
FROM pg_catalog.pg_replication_slots s
WHERE s.slot_name = %s AND s.active_pid IS NOT NULL AND s.active_pid <> pg_backend_pid()
"""


def create_slot(
    walsender: Walsender,
    name: str,
    *,
    failover: bool = False,
    two_phase: bool = False,
    waiting: Waiting | None = None,
) -> Lsn:
    """Create a logical slot that stays, for pgoutput, and return its consistent point: what commits later is streamed.

    The server first waits until all transactions that run have ended; ``waiting`` is called meanwhile, and when it
    raises, the creation is broken off and leaves nothing behind. Raises InputError for a name that no slot can have,
    and OperationError: 42710 when there is such a slot, 53400 when none is free, 55000 when wal_level is too low or
    ``failover`` is wanted on a standby, and without a code when it is wanted of a server below 17.
    """
    if failover and int(walsender.setting("server_version_num")) < _HAS_FAILOVER:
        raise OperationError("slots that survive a failover need PostgreSQL 17 or newer", hint="leave out --failover")
    options = ["SNAPSHOT 'nothing'", *["TWO_PHASE"] * two_phase, *["FAILOVER"] * failover]
    command = f"CREATE_REPLICATION_SLOT {quote_ident(check_slot_name(name))} LOGICAL pgoutput ({', '.join(options)})"
    point, _ = walsender.build_slot(name, command, temporary=False, waiting=waiting)
    return point


def drop_slot(conn: psycopg.Connection, name: str, *, terminate: bool = False) -> list[int]:
    """Drop a slot and return the pids of the sessions that were ended for it.

    With ``terminate`` whoever holds the slot is ended first, and again for up to 10 seconds, since many clients come
    back at once. Raises OperationError: 42704 when there is no such slot, 55006 when it is held, 42501 when the role
    may not.
    """
    import psycopg

    deadline = time.monotonic() + _TERMINATE_SECONDS
    ended: list[int] = []
    while True:
        if terminate:
            ended += terminate_holder(conn, name)
        try:
            conn.execute("SELECT pg_drop_replication_slot(%s)", [name])
        except psycopg.errors.ObjectInUse as error:
            if terminate and time.monotonic() < deadline:
                continue
            hint = "its client comes back each time: stop the client first" if terminate else "stop its client first"
            raise OperationError(
                f"slot {name} is in use: {error.diag.message_primary}", hint=hint, sqlstate=error.sqlstate
            ) from None
        except psycopg.errors.UndefinedObject as error:
            # A temporary slot goes with the session that was ended.
            if not ended:
                raise OperationError(f"there is no slot {name}", sqlstate=error.sqlstate) from None
        except psycopg.errors.InsufficientPrivilege as error:
            raise OperationError(
                f"slot {name} cannot be dropped: {error.diag.message_primary}",
                hint="the role needs REPLICATION, or on a managed service the role that stands for it",
                sqlstate=error.sqlstate,
            ) from None
        return ended


def terminate_holder(conn: psycopg.Connection, name: str) -> list[int]:
    """End the session that holds a slot at this moment, wait until it is gone, and return its pid if there was one.

    Raises OperationError when the role may not end it, or when it does not end within 10 seconds.
    """
    import psycopg

    try:
        rows = conn.execute(_TERMINATE, [int(_TERMINATE_SECONDS * 1000), name]).fetchall()
    except psycopg.errors.InsufficientPrivilege as error:
        raise OperationError(
            f"the session that holds slot {name} cannot be ended: {error.diag.message_primary}",
            hint="the role needs to be a member of pg_signal_backend, for a superuser's session a superuser itself",
            sqlstate=error.sqlstate,
        ) from None
    for pid, gone in rows:
        if not gone:
            raise OperationError(f"pid {pid}, which holds slot {name}, did not end within {_TERMINATE_SECONDS:g} s")
    return [pid for pid, _ in rows]
