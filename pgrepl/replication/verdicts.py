"""What an error of the walsender means: try again, give up, or let a person decide (docs/verdicts.md).

Errors are told by SQLSTATE first. Where that is not enough the C function that raised it decides, since a server's
messages come in its own language; the English text is the second sign, for versions that have the function elsewhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from psycopg import Error, pq

from pgrepl.connection import connect_error
from pgrepl.conninfo import ConnectionTarget
from pgrepl.errors import ConnectError, OperationError, PgreplError, PositionError


class ConnectionLost(ConnectError):
    """A connection that was there is gone: the server went away, shut down, or ended the session."""


class Passing(OperationError):
    """An error that has been seen to pass by itself; ``final`` is what to raise when it comes again and again."""

    def __init__(self, message: str, *, final: PgreplError) -> None:
        super().__init__(message, hint=final.hint, sqlstate=final.sqlstate)
        self.final = final


class _Verdict(Enum):
    STOP = OperationError
    DECIDE = PositionError
    RETRY_THEN_STOP = 1
    RETRY_THEN_DECIDE = 2


@dataclass(frozen=True)
class _Row:
    """One row: an error of these SQLSTATEs that comes from one of these functions, or has one of these texts in it."""

    states: tuple[str, ...]
    verdict: _Verdict
    hint: str | None = None
    functions: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()


_MORE_MEMORY = "the server could not read what it had spilled to disk; a higher logical_decoding_work_mem spills less"
_ROWS = (
    _Row(
        ("55000",),
        _Verdict.DECIDE,
        texts=(
            "cannot read from logical replication slot",
            "can no longer get changes",
            "can no longer access replication slot",
        ),
    ),
    _Row(
        ("42704",),
        _Verdict.DECIDE,
        functions=("get_publication_oid",),
        texts=("publication",),
    ),
    _Row(
        ("42704",),
        _Verdict.DECIDE,
        functions=("ReplicationSlotAcquire",),
        texts=("replication slot",),
    ),
    _Row(
        ("58P01", "XX000"),
        _Verdict.RETRY_THEN_DECIDE,
        functions=("WalSndSegmentOpen",),
        texts=("requested WAL segment",),
    ),
    _Row(
        ("58P01", "XX000"),
        _Verdict.RETRY_THEN_STOP,
        _MORE_MEMORY,
        functions=("ReorderBufferRestoreChanges", "ReorderBufferSerializeTXN", "SnapBuildRestore"),
        texts=("reorderbuffer spill file", "restore changes for xid", ".snap"),
    ),
    _Row(
        ("XX000",),
        _Verdict.STOP,
        "a row or a transaction is larger than the 1 GB that the server can decode: leave the column or the table out",
        texts=("invalid memory alloc request size",),
    ),
    _Row(
        ("XX000",),
        _Verdict.DECIDE,
        functions=("ReorderBufferProcessTXN",),
        texts=("could not map filenumber",),
    ),
    _Row(
        ("53400",), _Verdict.STOP, "drop a slot that is not needed (pgrepl slots list), or raise max_replication_slots"
    ),
    _Row(("42501",), _Verdict.STOP, "the role needs the REPLICATION attribute: ALTER ROLE … REPLICATION"),
    _Row(("53100",), _Verdict.STOP, "the server's disk is full"),
    _Row(("53200",), _Verdict.STOP, "the server is out of memory; a lower logical_decoding_work_mem may help"),
)
_LOST = re.compile("57P0[1-4]|08...|53300", re.ASCII)


def result_error(result: pq.abc.PGresult, doing: str) -> PgreplError:
    """Turn an error result of the walsender into the verdict on it.

    A PositionError comes without a hint: what a person can do depends on where the state is kept.
    """

    def field(code: pq.DiagnosticField) -> str | None:
        value = result.error_field(code)
        return None if value is None else value.decode()

    state = field(pq.DiagnosticField.SQLSTATE)
    text = field(pq.DiagnosticField.MESSAGE_PRIMARY) or "no message"
    message = f"{doing}: {text}"
    if state is None or _LOST.fullmatch(state):
        return ConnectionLost(message, hint=field(pq.DiagnosticField.MESSAGE_HINT), sqlstate=state)
    row = _row(state, field(pq.DiagnosticField.SOURCE_FUNCTION) or "", text)
    if row is None:
        return OperationError(message, hint=field(pq.DiagnosticField.MESSAGE_HINT), sqlstate=state)
    match row.verdict:
        case _Verdict.STOP:
            return OperationError(message, hint=row.hint, sqlstate=state)
        case _Verdict.DECIDE:
            return PositionError(message, hint=row.hint, sqlstate=state)
        case _Verdict.RETRY_THEN_STOP:
            return Passing(message, final=OperationError(message, hint=row.hint, sqlstate=state))
        case _Verdict.RETRY_THEN_DECIDE:
            return Passing(message, final=PositionError(message, hint=row.hint, sqlstate=state))


def _row(state: str, function: str, text: str) -> _Row | None:
    rows = [row for row in _ROWS if state in row.states]
    for row in rows:
        if function in row.functions:
            return row
    for row in rows:
        if not (row.functions or row.texts) or any(part in text for part in row.texts):
            return row
    return None


def refused(error: Error, target: ConnectionTarget) -> PgreplError:
    """Turn libpq's report of a refused replication connection into the verdict on it."""
    # libpq gives no SQLSTATE for a failed start, so the two refusals that are no connection problem are told by their
    # text.
    text = str(error)
    reason = connect_error(error, target)
    if "WAL sender" in text or "walsender" in text:
        return OperationError(str(reason), hint="the role needs the REPLICATION attribute: ALTER ROLE … REPLICATION")
    if "max_wal_senders" in text:
        return OperationError(
            str(reason),
            hint="all walsenders are in use: raise max_wal_senders, or stop another consumer",
            sqlstate="53300",
        )
    return reason
