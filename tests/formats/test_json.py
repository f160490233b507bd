"""The JSON lines of events, byte for byte."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pgrepl.events import (
    Begin,
    Column,
    Commit,
    Delete,
    Event,
    Insert,
    Message,
    Read,
    SchemaChange,
    SchemaDiff,
    SnapshotBegin,
    SnapshotEnd,
    Table,
    Transaction,
    Truncate,
    Update,
)
from pgrepl.formats.json import JsonLines
from pgrepl.lsn import Lsn
from pgrepl.pgoutput.messages import UNCHANGED
from pgrepl.pgoutput.types import Kind, ValueType

NUMBER, TEXT = ValueType(Kind.NUMBER), ValueType(Kind.TEXT)
PLACE = '"commit_lsn":"1/16B3748","start_lsn":"1/A0","seq":3,"xid":745,"commit_time":"2026-01-31T12:30:00.000001Z"'


def table(key: tuple[int, ...] = (0,), schema: str = "public", name: str = "t") -> Table:
    columns = (
        Column("id", 23, -1, "integer", NUMBER, 1, False),
        Column('a "b"', 25, -1, "text", TEXT, 2, True),
        Column("c", 25, -1, "text", TEXT, None, None),
    )
    return Table(1, schema, name, "d", columns, key)


def transaction(origin: str | None = None, time: int = 823_177_800_000_000 + 1) -> Transaction:
    return Transaction(Lsn.parse("1/16B3748"), time, 745, origin)


def line(event: Event) -> str:
    encoded = JsonLines().encode(event)
    assert encoded.endswith(b"\n")
    assert encoded.count(b"\n") == 1
    json.loads(encoded)
    return encoded[:-1].decode()


START = Lsn.parse("1/A0")


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            Read(table(), (b"1", b'x"\n', None), Lsn.parse("0/A")),
            '{"op":"read","schema":"public","table":"t","key":{"id":1},'
            '"new":{"id":1,"a \\"b\\"":"x\\"\\n","c":null},"snapshot_lsn":"0/A"}',
        ),
        (
            Insert(table(), (b"1", None, b""), transaction(), START, 3),
            '{"op":"insert","schema":"public","table":"t","key":{"id":1},'
            f'"new":{{"id":1,"a \\"b\\"":null,"c":""}},{PLACE}}}',
        ),
        (
            Insert(table(()), (b"1", None, None), transaction('o"'), START, 3),
            '{"op":"insert","schema":"public","table":"t",'
            f'"new":{{"id":1,"a \\"b\\"":null,"c":null}},{PLACE},"origin":"o\\""}}',
        ),
        (
            Update(table(), (b"2", UNCHANGED, UNCHANGED), (b"1", None, None), "key", transaction(), START, 3),
            '{"op":"update","schema":"public","table":"t","key":{"id":2},"new":{"id":2},'
            f'"old":{{"id":1}},"old_kind":"key","unchanged":["a \\"b\\"","c"],{PLACE}}}',
        ),
        (
            Update(table(), (b"2", b"x", None), None, None, transaction(), START, 3),
            '{"op":"update","schema":"public","table":"t","key":{"id":2},'
            f'"new":{{"id":2,"a \\"b\\"":"x","c":null}},{PLACE}}}',
        ),
        (
            Update(table((0, 2)), (b"2", b"x", b"k"), (b"1", b"y", None), "full", transaction(), START, 3),
            '{"op":"update","schema":"public","table":"t","key":{"id":2,"c":"k"},'
            '"new":{"id":2,"a \\"b\\"":"x","c":"k"},'
            f'"old":{{"id":1,"a \\"b\\"":"y","c":null}},"old_kind":"full",{PLACE}}}',
        ),
        (
            Delete(table((1,)), (None, b"k", None), "key", transaction(), START, 3),
            '{"op":"delete","schema":"public","table":"t","key":{"a \\"b\\"":"k"},'
            f'"old":{{"a \\"b\\"":"k"}},"old_kind":"key",{PLACE}}}',
        ),
        (
            Delete(table((0, 1, 2)), (b"1", None, b"z"), "full", transaction(), START, 3),
            '{"op":"delete","schema":"public","table":"t","key":{"id":1,"a \\"b\\"":null,"c":"z"},'
            f'"old":{{"id":1,"a \\"b\\"":null,"c":"z"}},"old_kind":"full",{PLACE}}}',
        ),
        (
            Truncate((table(), table(schema='s"', name="ü")), True, False, transaction(), START, 3),
            '{"op":"truncate","tables":[{"schema":"public","table":"t"},{"schema":"s\\"","table":"ü"}],'
            f'"cascade":true,"restart_identity":false,{PLACE}}}',
        ),
        (
            Message("p", "é".encode(), transaction("o"), START, 3),
            f'{{"op":"message","prefix":"p","content":"é","transactional":true,{PLACE},"origin":"o"}}',
        ),
        (
            Message("", b"\xff\x00", None, START, None),
            '{"op":"message","prefix":"","content_base64":"/wA=","transactional":false,"start_lsn":"1/A0"}',
        ),
        (
            SchemaChange(table(), SchemaDiff(("c",), ("d",), (("e", 'a "b"'),), ("id",)), transaction(), 3),
            '{"op":"schema","schema":"public","table":"t","columns":['
            '{"name":"id","type":"integer","key":true,"nullable":false},'
            '{"name":"a \\"b\\"","type":"text","key":false,"nullable":true},'
            '{"name":"c","type":"text","key":false,"nullable":null}],'
            '"diff":{"added":["c"],"dropped":["d"],"renamed":[["e","a \\"b\\""]],"retyped":["id"]},'
            + PLACE.replace('"start_lsn":"1/A0",', "")
            + "}",
        ),
        (
            SnapshotBegin(table(), 2, START),
            '{"op":"snapshot_begin","schema":"public","table":"t","attempt":2,"snapshot_lsn":"1/A0"}',
        ),
        (
            SnapshotEnd(table(), 2, 7, START),
            '{"op":"snapshot_end","schema":"public","table":"t","attempt":2,"rows":7,"snapshot_lsn":"1/A0"}',
        ),
        (
            Begin(transaction("o")),
            '{"op":"begin","commit_lsn":"1/16B3748","xid":745,"commit_time":"2026-01-31T12:30:00.000001Z",'
            '"origin":"o"}',
        ),
        (
            Commit(transaction(), Lsn.parse("1/16B3778"), 2),
            '{"op":"commit","commit_lsn":"1/16B3748","xid":745,"commit_time":"2026-01-31T12:30:00.000001Z",'
            '"end_lsn":"1/16B3778","rows":2}',
        ),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_lines(event: Event, expected: str) -> None:
    assert line(event) == expected


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (0, "2000-01-01T00:00:00.000000Z"),
        (-1, "1999-12-31T23:59:59.999999Z"),
        (823_177_800_500_000, "2026-01-31T12:30:00.500000Z"),
        (252_455_615_999_999_999, "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_commit_times(time: int, expected: str) -> None:
    """The same form in the lines that are put together and in those that are not."""
    change = json.loads(line(Insert(table(), (b"1", None, None), transaction(time=time), START, 0)))
    frame = json.loads(line(Begin(transaction(time=time))))
    assert change["commit_time"] == frame["commit_time"] == expected


def test_large_positions() -> None:
    big = Transaction(Lsn(2**64 - 1), 0, 2**32 - 1)
    event = json.loads(line(Insert(table(), (b"1", None, None), big, Lsn(2**63), 10**12)))
    assert (event["commit_lsn"], event["start_lsn"]) == ("FFFFFFFF/FFFFFFFF", "80000000/0")
    assert (event["seq"], event["xid"]) == (10**12, 2**32 - 1)


def test_a_new_version_of_a_table_is_prepared_anew() -> None:
    """What a format keeps for a table is that version's own."""
    lines = JsonLines()
    first = table()
    second = Table(1, "public", "t", "d", (first.columns[0], first.columns[2]._replace(name="z")), (0,))
    assert b'"c":"y"' in lines.encode(Read(first, (b"1", b"x", b"y"), START))
    assert b'"new":{"id":1,"z":"y"}' in lines.encode(Read(second, (b"1", b"y"), START))
    assert b'"c":"y"' in lines.encode(Read(first, (b"1", b"x", b"y"), START))


def test_an_origin_is_that_of_its_transaction() -> None:
    lines = JsonLines()
    here, there = transaction(), transaction("there")
    row = (b"1", None, None)
    origins: list[Any] = [
        json.loads(lines.encode(Insert(table(), row, one, START, 0))).get("origin") for one in (here, there, here)
    ]
    assert origins == [None, "there", None]


def test_a_table_without_columns() -> None:
    empty = Table(1, "s", "t", "d", (), ())
    assert (
        line(Insert(empty, (), transaction(), START, 3))
        == f'{{"op":"insert","schema":"s","table":"t","new":{{}},{PLACE}}}'
    )
