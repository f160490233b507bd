"""The other direction of the decoder: messages to bytes, and random messages, for round trips."""

from __future__ import annotations

from struct import pack

from hypothesis import strategies as st

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
    StreamAbort,
    Truncate,
    TupleData,
    Type,
    Update,
)


def encode(message: AnyMessage) -> bytes:
    """Write a message as PostgreSQL documentation, Logical Replication Message Formats, says."""
    match message:
        case Begin(final_lsn, commit_time, xid):
            return b"B" + pack(">QqI", final_lsn, commit_time, xid)
        case Commit(flags, commit_lsn, end_lsn, commit_time):
            return b"C" + pack(">bQQq", flags, commit_lsn, end_lsn, commit_time)
        case Origin(commit_lsn, name):
            return b"O" + pack(">Q", commit_lsn) + _string(name)
        case Type(oid, namespace, name):
            return b"Y" + pack(">I", oid) + _namespace(namespace) + _string(name)
        case Relation(oid, namespace, name, replica_identity, columns):
            head = b"R" + pack(">I", oid) + _namespace(namespace) + _string(name) + replica_identity.encode()
            return head + pack(">h", len(columns)) + b"".join(map(_column, columns))
        case Insert(oid, new):
            return b"I" + pack(">I", oid) + b"N" + _tuple(new)
        case Update(oid, _, None, new):
            return b"U" + pack(">I", oid) + b"N" + _tuple(new)
        case Update(oid, old_kind, old, new):
            assert old is not None
            return b"U" + pack(">I", oid) + _old(old_kind) + _tuple(old) + b"N" + _tuple(new)
        case Delete(oid, old_kind, old):
            return b"D" + pack(">I", oid) + _old(old_kind) + _tuple(old)
        case Truncate(oids, cascade, restart_identity):
            return b"T" + pack(f">ib{len(oids)}I", len(oids), cascade | restart_identity << 1, *oids)
        case Message(transactional, lsn, prefix, content):
            return b"M" + pack(">bQ", transactional, lsn) + _string(prefix) + pack(">i", len(content)) + content
        case StreamAbort(xid, subxid):
            return b"A" + pack(">II", xid, subxid)


def _string(text: str) -> bytes:
    return text.encode() + b"\0"


def _namespace(name: str) -> bytes:
    return b"\0" if name == "pg_catalog" else _string(name)


def _column(column: Column) -> bytes:
    return bytes([column.part_of_key]) + _string(column.name) + pack(">Ii", column.type_oid, column.type_modifier)


def _old(kind: str | None) -> bytes:
    return {"key": b"K", "full": b"O"}[str(kind)]


def _tuple(values: TupleData) -> bytes:
    parts = [pack(">h", len(values))]
    for value in values:
        if value is None:
            parts.append(b"n")
        elif value is UNCHANGED:
            parts.append(b"u")
        else:
            parts.append(b"t" + pack(">i", len(value)) + value)
    return b"".join(parts)


_lsns = st.integers(0, 2**64 - 1).map(Lsn)
_times = st.integers(-(2**63), 2**63 - 1)
_oids = st.integers(0, 2**32 - 1)
_names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
_namespaces = _names.filter(bool)
_rows = st.lists(st.binary() | st.none() | st.just(UNCHANGED), max_size=12).map(tuple)
_old_kinds = st.sampled_from(["key", "full"])
_columns = st.builds(Column, st.booleans(), _names, _oids, st.integers(-(2**31), 2**31 - 1))

messages: st.SearchStrategy[AnyMessage] = st.one_of(
    st.builds(Begin, _lsns, _times, _oids),
    st.builds(Commit, st.just(0), _lsns, _lsns, _times),
    st.builds(Origin, _lsns, _names),
    st.builds(Type, _oids, _namespaces, _names),
    st.builds(Relation, _oids, _namespaces, _names, st.sampled_from("dnfi"), st.lists(_columns).map(tuple)),
    st.builds(Insert, _oids, _rows),
    st.builds(Update, _oids, st.none(), st.none(), _rows),
    st.builds(Update, _oids, _old_kinds, _rows, _rows),
    st.builds(Delete, _oids, _old_kinds, _rows),
    st.builds(Truncate, st.lists(_oids).map(tuple), st.booleans(), st.booleans()),
    st.builds(StreamAbort, _oids, _oids),
    st.builds(Message, st.booleans(), _lsns, _names, st.binary()),
)
