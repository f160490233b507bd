"""JSON lines: one object an event, as docs/events.md describes them."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, cast

import orjson

from pgrepl.events import (
    Begin,
    Commit,
    Delete,
    Event,
    Insert,
    Message,
    Read,
    SchemaChange,
    SnapshotBegin,
    SnapshotEnd,
    Table,
    Transaction,
    Truncate,
    Update,
)
from pgrepl.formats.values import Encoder, encoder
from pgrepl.pgoutput.messages import POSTGRES_EPOCH_US, UNCHANGED, TupleData

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Prepared(NamedTuple):
    """What is the same in every line of a table."""

    name: bytes
    columns: tuple[tuple[bytes, Encoder], ...]
    key: tuple[int, ...]


class JsonLines:
    """Write each event as one JSON object on a line of its own."""

    def encode(self, event: Event) -> bytes:
        """Give the line."""
        match event:
            case Insert(table, new, transaction, start_lsn, seq):
                prepared = _prepare(table)
                return b'{"op":"insert",%b%b,"new":%b' % (
                    prepared.name,
                    _key(prepared, new),
                    _row(prepared, new),
                ) + _place(transaction, start_lsn, seq)
            case Update(table, new, old, old_kind, transaction, start_lsn, seq):
                prepared = _prepare(table)
                line = b'{"op":"update",%b%b,"new":%b' % (prepared.name, _key(prepared, new), _row(prepared, new))
                if old is not None and old_kind is not None:
                    line += _old(prepared, old, old_kind)
                if UNCHANGED in new:
                    names = [
                        name[:-1] for (name, _), value in zip(prepared.columns, new, strict=True) if value is UNCHANGED
                    ]
                    line += b',"unchanged":[%b]' % b",".join(names)
                return line + _place(transaction, start_lsn, seq)
            case Delete(table, old, old_kind, transaction, start_lsn, seq):
                prepared = _prepare(table)
                return (
                    b'{"op":"delete",%b%b' % (prepared.name, _key(prepared, old))
                    + _old(prepared, old, old_kind)
                    + _place(transaction, start_lsn, seq)
                )
            case Read(table, new, snapshot_lsn):
                prepared = _prepare(table)
                return b'{"op":"read",%b%b,"new":%b,"snapshot_lsn":"%b"}\n' % (
                    prepared.name,
                    _key(prepared, new),
                    _row(prepared, new),
                    str(snapshot_lsn).encode(),
                )
            case _:
                return orjson.dumps(_document(event), option=orjson.OPT_APPEND_NEWLINE)


def _prepare(table: Table) -> _Prepared:
    prepared = table.prepared.get(JsonLines)
    if prepared is None:
        prepared = table.prepared[JsonLines] = _Prepared(
            b'"schema":%b,"table":%b' % (orjson.dumps(table.schema), orjson.dumps(table.name)),
            tuple((orjson.dumps(column.name) + b":", encoder(column.value_type)) for column in table.columns),
            table.key,
        )
    return cast(_Prepared, prepared)


def _row(prepared: _Prepared, row: TupleData) -> bytes:
    parts = [
        name + b"null" if value is None else name + encode(value)
        for (name, encode), value in zip(prepared.columns, row, strict=True)
        if value is not UNCHANGED
    ]
    return b"{%b}" % b",".join(parts)


def _key(prepared: _Prepared, row: TupleData) -> bytes:
    if not prepared.key:
        return b""
    return b',"key":' + _some(prepared, row, prepared.key)


def _some(prepared: _Prepared, row: TupleData, indexes: tuple[int, ...]) -> bytes:
    parts = []
    for index in indexes:
        name, encode = prepared.columns[index]
        value = row[index]
        if value is not UNCHANGED:
            parts.append(name + (b"null" if value is None else encode(value)))
    return b"{%b}" % b",".join(parts)


def _old(prepared: _Prepared, old: TupleData, old_kind: str) -> bytes:
    row = _row(prepared, old) if old_kind == "full" else _some(prepared, old, prepared.key)
    return b',"old":%b,"old_kind":"%b"' % (row, old_kind.encode())


def _place(transaction: Transaction, start_lsn: int, seq: int) -> bytes:
    """Say where in the WAL a change stands, and end the line; what is the same for a whole transaction is made once."""
    before_after = transaction.prepared.get(JsonLines)
    if before_after is None:
        after = b',"xid":%d,"commit_time":"%b"' % (transaction.xid, _time(transaction.commit_time).encode())
        if transaction.origin is not None:
            after += b',"origin":' + orjson.dumps(transaction.origin)
        before = b',"commit_lsn":"%b","start_lsn":"' % str(transaction.commit_lsn).encode()
        before_after = transaction.prepared[JsonLines] = (before, after + b"}\n")
    before, after = cast(tuple[bytes, bytes], before_after)
    return b'%b%X/%X","seq":%d%b' % (before, start_lsn >> 32, start_lsn & 0xFFFFFFFF, seq, after)


def _time(microseconds: int) -> str:
    moment = _EPOCH + timedelta(microseconds=microseconds + POSTGRES_EPOCH_US)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _document(event: Event) -> dict[str, object]:
    """Build the objects that are rare enough to be built key by key."""
    match event:
        case SnapshotBegin(table, attempt, snapshot_lsn):
            return {"op": "snapshot_begin", **_name(table), "attempt": attempt, "snapshot_lsn": str(snapshot_lsn)}
        case SnapshotEnd(table, attempt, rows, snapshot_lsn):
            end = {"attempt": attempt, "rows": rows, "snapshot_lsn": str(snapshot_lsn)}
            return {"op": "snapshot_end", **_name(table), **end}
        case Truncate(tables, cascade, restart_identity, transaction, start_lsn, seq):
            flags = {"cascade": cascade, "restart_identity": restart_identity}
            place = {**_commit(transaction), "start_lsn": str(start_lsn), "seq": seq, **_transaction(transaction)}
            return {"op": "truncate", "tables": [_name(table) for table in tables], **flags, **place}
        case Message(prefix, content, transaction, start_lsn, seq):
            document: dict[str, object] = {"op": "message", "prefix": prefix, **_content(content)}
            document["transactional"] = transaction is not None
            if transaction is None:
                return {**document, "start_lsn": str(start_lsn)}
            place = {**_commit(transaction), "start_lsn": str(start_lsn), "seq": seq, **_transaction(transaction)}
            return {**document, **place}
        case SchemaChange(table, diff, transaction, seq):
            columns = [
                {"name": column.name, "type": column.type_name, "key": index in table.key, "nullable": column.nullable}
                for index, column in enumerate(table.columns)
            ]
            place = {**_commit(transaction), "seq": seq, **_transaction(transaction)}
            return {"op": "schema", **_name(table), "columns": columns, "diff": diff._asdict(), **place}
        case Begin(transaction):
            return {"op": "begin", **_commit(transaction), **_transaction(transaction)}
        case Commit(transaction, end_lsn, rows):
            end = {"end_lsn": str(end_lsn), "rows": rows}
            return {"op": "commit", **_commit(transaction), **_transaction(transaction), **end}
        case _:
            raise TypeError(f"no JSON form of {event!r}")


def _name(table: Table) -> dict[str, object]:
    return {"schema": table.schema, "table": table.name}


def _commit(transaction: Transaction) -> dict[str, object]:
    return {"commit_lsn": str(transaction.commit_lsn)}


def _transaction(transaction: Transaction) -> dict[str, object]:
    document: dict[str, object] = {"xid": transaction.xid, "commit_time": _time(transaction.commit_time)}
    if transaction.origin is not None:
        document["origin"] = transaction.origin
    return document


def _content(content: bytes) -> dict[str, object]:
    try:
        return {"content": content.decode()}
    except UnicodeDecodeError:
        return {"content_base64": base64.b64encode(content).decode()}
