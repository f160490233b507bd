"""Bytes of pgoutput to messages (PostgreSQL documentation, Logical Replication Message Formats).

``decode`` reads protocol version 1, ``StreamDecoder`` version 2: there a transaction may come in blocks while it is
still going on, and what is in a block is a message of version 1 with an xid put in behind its first byte.

Every length is hostile until proven: nothing is read past the end, and a message that is too short, too long or holds
a value the protocol does not know raises ProtocolError. The way to that is cheap. Lengths are read as unsigned numbers,
so a negative one is a huge one; a slice past the end is short, never wrong; and the last offset must be the end of the
message exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from struct import Struct
from struct import error as StructError
from typing import Final, cast

from pgrepl.errors import ProtocolError
from pgrepl.lsn import Lsn
from pgrepl.pgoutput.messages import (
    UNCHANGED,
    AnyMessage,
    Begin,
    Column,
    Commit,
    Delete,
    Insert,
    Message,
    Origin,
    Relation,
    ReplicaIdentity,
    StreamAbort,
    StreamCommit,
    StreamMessage,
    StreamStart,
    StreamStop,
    Truncate,
    TupleData,
    Type,
    Unchanged,
    Update,
)

_int16: Final = Struct(">H").unpack_from
_int32: Final = Struct(">I").unpack_from
_int64: Final = Struct(">Q").unpack_from
_begin: Final = Struct(">QqI").unpack_from
_commit: Final = Struct(">BQQq").unpack_from
_column: Final = Struct(">Ii").unpack_from
_truncate: Final = Struct(">IB").unpack_from
_message: Final = Struct(">BQ").unpack_from
_row_head: Final = Struct(">IB").unpack_from
_stream_start: Final = Struct(">xIB")
_stream_stop: Final = Struct(">x")
_stream_commit: Final = Struct(">xIBQQq")
_stream_abort: Final = Struct(">II").unpack_from

# An unsigned 64-bit number is always an LSN, so the check of the constructor would be paid for nothing.
_lsn: Final = cast(Callable[[int], Lsn], partial(int.__new__, Lsn))

_NULL, _UNCHANGED, _TEXT, _BINARY = b"nutb"
_NEW, _KEY, _OLD = b"NKO"

_ORIGIN, _STREAM_START, _STREAM_STOP = b"OSE"
# The messages that name one relation, and those that carry an xid inside a block.
_OF_A_RELATION: Final = frozenset(b"RIUD")
_WITH_XID: Final = frozenset(b"RYIUDTM")


def decode(data: bytes) -> AnyMessage:
    """Read one message, the ``data`` of one XLogData.

    Raises ProtocolError unless the bytes are exactly one well-formed message of protocol version 1 with text columns.
    """
    if not data:
        raise ProtocolError("empty pgoutput message")
    read = _READERS.get(data[0])
    if read is None:
        raise ProtocolError(f"unknown pgoutput message {data[:1]!r}")
    try:
        message, end = read(data)
    except (IndexError, StructError):
        raise _truncated(data) from None
    if end != len(data):
        raise _truncated(data) if end > len(data) else _left_over(data)
    return message


class StreamDecoder:
    """Read the messages of one stream of protocol version 2 with ``streaming 'on'``, one after the other.

    ``in_block`` says whether the next message is inside a block, between a StreamStart and its StreamStop.
    """

    def __init__(self) -> None:
        self.in_block = False

    def decode(self, data: bytes) -> tuple[int | None, AnyMessage | StreamMessage]:
        """Read one message, and the xid it carries inside a block: that of the subtransaction that made the change.

        A logical message carries the xid of the top-level transaction, also when a subtransaction wrote it; Origin
        carries none. Raises ProtocolError as ``decode`` does, and for a message that cannot stand there.
        """
        tag, xid, _ = head(data, in_block=self.in_block)
        if xid is not None:
            return xid, decode(without_xid(data))
        if tag not in _STREAM_READERS:
            return None, decode(data)
        message = _STREAM_READERS[tag](data)
        self.in_block = tag == _STREAM_START
        return None, message


def head(data: bytes, in_block: bool = False) -> tuple[int, int | None, int | None]:
    """Read the first byte of a message, the xid it carries inside a block, and the OID of the relation it concerns.

    The OID is None for what concerns no relation or, as Truncate, several. The rest is not looked at. Raises
    ProtocolError for a message that is unknown, cannot stand there, or ends before those fields.
    """
    if not data:
        raise ProtocolError("empty pgoutput message")
    tag = data[0]
    if tag not in _READERS and tag not in _STREAM_READERS:
        raise ProtocolError(f"unknown pgoutput message {data[:1]!r}")
    try:
        if not in_block:
            if tag == _STREAM_STOP:
                raise ProtocolError("the end of a block outside of one")
            return tag, None, _int32(data, 1)[0] if tag in _OF_A_RELATION else None
        if tag in _WITH_XID:
            return tag, _int32(data, 1)[0], _int32(data, 5)[0] if tag in _OF_A_RELATION else None
    except StructError:
        raise _truncated(data) from None
    if tag not in (_STREAM_STOP, _ORIGIN):
        raise ProtocolError(f"pgoutput message {data[:1]!r} inside a block of a transaction")
    return tag, None, None


def without_xid(data: bytes) -> bytes:
    """Make a message of protocol version 1 of one that ``head`` has found to carry an xid."""
    return data[:1] + data[5:]


def _truncated(data: bytes) -> ProtocolError:
    return ProtocolError(f"truncated pgoutput message {data[:1]!r} of {len(data)} bytes")


def _left_over(data: bytes) -> ProtocolError:
    return ProtocolError(f"bytes left over after pgoutput message {data[:1]!r} of {len(data)} bytes")


def _read_begin(data: bytes) -> tuple[Begin, int]:
    final_lsn, commit_time, xid = _begin(data, 1)
    return Begin(_lsn(final_lsn), commit_time, xid), 21


def _read_commit(data: bytes) -> tuple[Commit, int]:
    flags, commit_lsn, end_lsn, commit_time = _commit(data, 1)
    if flags:
        raise ProtocolError(f"unknown flags {flags:#x} in a Commit message")
    return Commit(flags, _lsn(commit_lsn), _lsn(end_lsn), commit_time), 26


def _read_origin(data: bytes) -> tuple[Origin, int]:
    name, end = _string(data, 9)
    return Origin(_lsn(_int64(data, 1)[0]), name), end


def _read_type(data: bytes) -> tuple[Type, int]:
    oid = _int32(data, 1)[0]
    namespace, offset = _string(data, 5)
    name, end = _string(data, offset)
    return Type(oid, namespace or "pg_catalog", name), end


def _read_relation(data: bytes) -> tuple[Relation, int]:
    oid = _int32(data, 1)[0]
    namespace, offset = _string(data, 5)
    name, offset = _string(data, offset)
    identity = chr(data[offset])
    if identity not in "dnfi":
        raise ProtocolError(f"unknown replica identity {identity!r} of relation {name!r}")
    count = _count(data, offset + 1)
    offset += 3
    columns = []
    for _ in range(count):
        flags = data[offset]
        if flags > 1:
            raise ProtocolError(f"unknown flags {flags:#x} of a column of relation {name!r}")
        column, offset = _string(data, offset + 1)
        type_oid, type_modifier = _column(data, offset)
        offset += 8
        columns.append(Column(flags == 1, column, type_oid, type_modifier))
    return Relation(oid, namespace or "pg_catalog", name, cast(ReplicaIdentity, identity), tuple(columns)), offset


def _read_insert(data: bytes) -> tuple[Insert, int]:
    oid, kind = _row_head(data, 1)
    if kind != _NEW:
        raise ProtocolError(f"unknown tuple {chr(kind)!r} in an Insert message")
    new, end = _tuple(data, 6)
    return Insert(oid, new), end


def _read_update(data: bytes) -> tuple[Update, int]:
    oid, kind = _row_head(data, 1)
    if kind == _NEW:
        new, end = _tuple(data, 6)
        return Update(oid, None, None, new), end
    if kind not in (_KEY, _OLD):
        raise ProtocolError(f"unknown tuple {chr(kind)!r} in an Update message")
    old, offset = _tuple(data, 6)
    if data[offset] != _NEW:
        raise ProtocolError(f"unknown tuple {chr(data[offset])!r} in an Update message")
    new, end = _tuple(data, offset + 1)
    return Update(oid, "key" if kind == _KEY else "full", old, new), end


def _read_delete(data: bytes) -> tuple[Delete, int]:
    oid, kind = _row_head(data, 1)
    if kind not in (_KEY, _OLD):
        raise ProtocolError(f"unknown tuple {chr(kind)!r} in a Delete message")
    old, end = _tuple(data, 6)
    return Delete(oid, "key" if kind == _KEY else "full", old), end


def _read_truncate(data: bytes) -> tuple[Truncate, int]:
    count, options = _truncate(data, 1)
    if options > 3:
        raise ProtocolError(f"unknown options {options:#x} in a Truncate message")
    oids = Struct(f">{count}I").unpack_from(data, 6)
    return Truncate(oids, bool(options & 1), bool(options & 2)), 6 + 4 * count


def _read_message(data: bytes) -> tuple[Message, int]:
    flags, lsn = _message(data, 1)
    if flags > 1:
        raise ProtocolError(f"unknown flags {flags:#x} in a Message message")
    prefix, offset = _string(data, 10)
    start = offset + 4
    end = start + _int32(data, offset)[0]
    return Message(flags == 1, _lsn(lsn), prefix, data[start:end]), end


def _read_stream_start(data: bytes) -> StreamStart:
    xid, first_segment = _fixed(_stream_start, data)
    if first_segment > 1:
        raise ProtocolError(f"unknown flags {first_segment:#x} in a Stream Start message")
    return StreamStart(xid, first_segment == 1)


def _read_stream_stop(data: bytes) -> StreamStop:
    _fixed(_stream_stop, data)
    return StreamStop()


def _read_stream_commit(data: bytes) -> StreamCommit:
    xid, flags, commit_lsn, end_lsn, commit_time = _fixed(_stream_commit, data)
    if flags:
        raise ProtocolError(f"unknown flags {flags:#x} in a Stream Commit message")
    return StreamCommit(xid, flags, _lsn(commit_lsn), _lsn(end_lsn), commit_time)


def _read_stream_abort(data: bytes) -> tuple[StreamAbort, int]:
    return StreamAbort(*_stream_abort(data, 1)), 9


def _fixed(form: Struct, data: bytes) -> tuple[int, ...]:
    """Read a message whose fields all have a fixed length."""
    if len(data) != form.size:
        raise _truncated(data) if len(data) < form.size else _left_over(data)
    return form.unpack(data)


def _tuple(data: bytes, offset: int) -> tuple[TupleData, int]:
    """Read a TupleData and where it ends, which may be past the end of the bytes: the caller compares."""
    count = _count(data, offset)
    offset += 2
    values: list[bytes | Unchanged | None] = []
    append = values.append
    int32 = _int32
    for _ in range(count):
        kind = data[offset]
        if kind == _TEXT:
            start = offset + 5
            offset = start + int32(data, offset + 1)[0]
            append(data[start:offset])
        elif kind == _NULL:
            append(None)
            offset += 1
        elif kind == _UNCHANGED:
            append(UNCHANGED)
            offset += 1
        elif kind == _BINARY:
            raise ProtocolError("a column in binary form, which was not asked for")
        else:
            raise ProtocolError(f"unknown kind {chr(kind)!r} of a column")
    return tuple(values), offset


def _count(data: bytes, offset: int) -> int:
    """Read a number of columns, a signed Int16 that must not be negative."""
    count: int = _int16(data, offset)[0]
    if count > 0x7FFF:
        raise ProtocolError(f"negative number of columns {count - 0x10000}")
    return count


def _string(data: bytes, offset: int) -> tuple[str, int]:
    """Read a zero-terminated name and where the next field starts."""
    end = data.find(0, offset)
    if end < 0:
        raise IndexError
    try:
        return data[offset:end].decode(), end + 1
    except UnicodeDecodeError:
        raise ProtocolError(f"a name that is not UTF-8: {data[offset:end]!r}") from None


_READERS: Final[dict[int, Callable[[bytes], tuple[AnyMessage, int]]]] = {
    ord("B"): _read_begin,
    ord("C"): _read_commit,
    ord("O"): _read_origin,
    ord("Y"): _read_type,
    ord("R"): _read_relation,
    ord("I"): _read_insert,
    ord("U"): _read_update,
    ord("D"): _read_delete,
    ord("T"): _read_truncate,
    ord("M"): _read_message,
    ord("A"): _read_stream_abort,
}

_STREAM_READERS: Final[dict[int, Callable[[bytes], StreamMessage]]] = {
    _STREAM_START: _read_stream_start,
    _STREAM_STOP: _read_stream_stop,
    ord("c"): _read_stream_commit,
}
