"""What a walsender and its client put into CopyData (PostgreSQL documentation, Streaming Replication Protocol).

Times are microseconds since 2000-01-01 00:00 UTC on the sender's clock.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple, cast

from pgrepl.errors import ProtocolError
from pgrepl.lsn import Lsn

_xlog_data: Final = Struct(">QQq").unpack_from
_keepalive: Final = Struct(">xQqB")
_status_update: Final = Struct(">cQQQqB")

_XLOG_DATA, _KEEPALIVE = b"wk"

# An unsigned 64-bit number is always an LSN, so the check of the constructor would be paid for nothing.
_lsn: Final = cast(Callable[[int], Lsn], partial(int.__new__, Lsn))


class XLogData(NamedTuple):
    """Carry one message of the output plugin.

    ``start`` and ``wal_end`` of a logical walsender are both the position of the record the message comes from, and
    0 for a message sent ahead of it (Relation, Type); neither is a position to confirm.
    """

    start: Lsn
    wal_end: Lsn
    sent_at: int
    data: bytes


class Keepalive(NamedTuple):
    """Say how far the server has read; with ``reply_requested`` it hangs up if no status update comes in time."""

    wal_end: Lsn
    sent_at: int
    reply_requested: bool


def parse_copy_data(payload: bytes) -> XLogData | Keepalive:
    """Read the payload of one CopyData message of a walsender.

    Raises ProtocolError for anything but XLogData and a primary keepalive message of the right length.
    """
    if not payload:
        raise ProtocolError("empty message of a walsender")
    kind = payload[0]
    if kind == _XLOG_DATA:
        try:
            start, wal_end, sent_at = _xlog_data(payload, 1)
        except StructError:
            raise ProtocolError(f"truncated XLogData of {len(payload)} bytes") from None
        return XLogData(_lsn(start), _lsn(wal_end), sent_at, payload[25:])
    if kind == _KEEPALIVE:
        if len(payload) != _keepalive.size:
            raise ProtocolError(f"primary keepalive message of {len(payload)} bytes instead of {_keepalive.size}")
        wal_end, sent_at, reply_requested = _keepalive.unpack(payload)
        if reply_requested > 1:
            raise ProtocolError(f"primary keepalive message with reply flag {reply_requested}")
        return Keepalive(_lsn(wal_end), sent_at, reply_requested == 1)
    raise ProtocolError(f"unknown message {payload[:1]!r} of a walsender")


def status_update(write: Lsn, flush: Lsn, apply: Lsn, now_us: int, reply_requested: bool = False) -> bytes:
    """Build the payload of a standby status update.

    Each position is where the next byte of WAL starts; ``flush`` becomes the slot's ``confirmed_flush_lsn``. ``now_us``
    is the client's clock. With ``reply_requested`` the server answers at once with a keepalive.
    """
    return _status_update.pack(b"r", write, flush, apply, now_us, reply_requested)
