"""Lines for people: what each event looks like, and that nothing of a value can reach the terminal's controls."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from pgrepl.formats.pretty import Pretty
from pgrepl.lsn import Lsn
from pgrepl.pgoutput.messages import UNCHANGED
from pgrepl.pgoutput.types import Kind, ValueType

AT = Lsn.parse("0/A0")
TRANSACTION = Transaction(Lsn.parse("0/B0"), 0, 745)


def table(name: str = "t", key: tuple[int, ...] = (0,), names: tuple[str, ...] = ("id", "a", "b")) -> Table:
    columns = [Column(each, 25, -1, "text", ValueType(Kind.TEXT), None, None) for each in names]
    return Table(1, "public", name, "d", tuple(columns), key)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (Read(table(), (b"1", None, b""), AT), "read     public.t  id=1 a=null b=''"),
        (Insert(table(), (b"1", b"two words", b"null"), TRANSACTION, AT, 0),
         "insert   public.t  id=1 a='two words' b=null"),
        (Update(table(), (b"1", b"x", UNCHANGED), None, None, TRANSACTION, AT, 0), "update   public.t  id=1 a=x"),
        (Update(table(), (b"2", b"x", None), (b"1", None, None), "key", TRANSACTION, AT, 0),
         "update   public.t  id=1→2 a=x b=null"),
        (Update(table(), (b"1", b"x", None), (b"1", b"w", None), "full", TRANSACTION, AT, 0),
         "update   public.t  id=1 a=w→x"),
        (Update(table(), (b"1", None, b"y"), (b"1", b"w", None), "full", TRANSACTION, AT, 0),
         "update   public.t  id=1 a=w→null b=null→y"),
        (Delete(table(), (b"1", None, None), "key", TRANSACTION, AT, 0), "delete   public.t  id=1"),
        (Delete(table(), (b"1", None, b"z"), "full", TRANSACTION, AT, 0), "delete   public.t  id=1 a=null b=z"),
        (Truncate((table(), table("u")), True, True, TRANSACTION, AT, 0),
         "truncate public.t  cascade restart identity\ntruncate public.u  cascade restart identity"),
        (Truncate((table(),), False, False, TRANSACTION, AT, 0), "truncate public.t"),
        (SchemaChange(table(), SchemaDiff(("a",), ("x", "y"), (("o", "b"),), ("id",)), TRANSACTION, 0),
         "schema   public.t  +a -x -y o→b id is now text"),
        (SchemaChange(table(), SchemaDiff((), (), (), ()), TRANSACTION, 0),
         "schema   public.t  replica identity default"),
        (Message("p", b"hello you", None, AT, None), "message  p  'hello you' at 0/A0"),
        (Message("", b"\xff", None, AT, None), "message  ''  '\\\\xff' at 0/A0"),
        (SnapshotBegin(table(), 1, AT), "-- snapshot of public.t at 0/A0"),
        (SnapshotBegin(table(), 2, AT), "-- snapshot of public.t at 0/A0, attempt 2"),
        (SnapshotEnd(table(), 1, 1, AT), "-- 1 row of public.t"),
        (SnapshotEnd(table(), 1, 0, AT), "-- 0 rows of public.t"),
        (Begin(TRANSACTION), "-- begin 745, commits at 0/B0"),
        (Commit(TRANSACTION, AT, 2), "-- commit 745, 2 rows, ends at 0/A0"),
    ],
)  # fmt: skip
def test_lines(event: Event, expected: str) -> None:
    assert Pretty(color=False).encode(event).decode() == expected + "\n"


def test_lines_stay_aligned() -> None:
    pretty = Pretty(color=False)
    row = (b"1", None, None)
    lines = [pretty.encode(Read(table(name), row, AT)).decode() for name in ("t", "longer_name", "t")]
    assert [line.index("id=") for line in lines] == [19, 29, 29]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"abc", "abc"),
        (b"2026-01-31", "2026-01-31"),
        (b"a b", "'a b'"),
        (b"it's", "'it''s'"),
        (b"a\\b", "'a\\\\b'"),
        (b"a\x1b[31m\n\t\x00", "'a\\x1b[31m\\n\\t\\x00'"),
        ("ü🐘".encode(), "'ü🐘'"),
        ("a\u202eb\u200b".encode(), "'a\\u202eb\\u200b'"),
        (b"x" * 60, "x" * 60),
        (b"x" * 61, "x" * 59 + "…"),
    ],
)
def test_values(value: bytes, shown: str) -> None:
    line = Pretty(color=False).encode(Read(table(names=("id",)), (value,), AT)).decode()
    assert line == f"read     public.t  id={shown}\n"


def test_colour() -> None:
    """With colours the text is the same, and every colour ends on its line."""
    events: list[Event] = [
        Update(table(), (b"1", b"x", None), (b"1", b"w", None), "full", TRANSACTION, AT, 0),
        Truncate((table(), table("u")), True, True, TRANSACTION, AT, 0),
        SnapshotBegin(table(), 1, AT),
    ]
    for event in events:
        coloured, plain = Pretty(color=True).encode(event).decode(), Pretty(color=False).encode(event).decode()
        assert "\x1b[" in coloured
        assert re.sub("\x1b\\[[0-9]+m", "", coloured) == plain
        for line in coloured.splitlines():
            assert len(re.findall("\x1b\\[[1-9][0-9]*m", line)) == len(re.findall("\x1b\\[0m", line))


_names = st.text(min_size=1, max_size=10)
_values = st.none() | st.binary(max_size=100) | st.text(max_size=100).map(lambda text: text.encode(errors="replace"))


@given(_names, _names, _names, _values, _values, _values)
def test_no_control_character_reaches_the_terminal(
    schema: str, name: str, column: str, first: bytes | None, second: bytes | None, content: bytes | None
) -> None:
    """Whatever names and values hold, an event is one line of printable characters."""
    columns = (Column(column, 25, -1, column, ValueType(Kind.TEXT), None, None),)
    odd = Table(1, schema, name, "d", columns, (0,))
    pretty = Pretty(color=False)
    for event in (
        Insert(odd, (first,), TRANSACTION, AT, 0),
        Update(odd, (second,), (first,), "full", TRANSACTION, AT, 0),
        Message(name, content or b"", None, AT, None),
        SchemaChange(odd, SchemaDiff((name,), (column,), ((name, column),), (column,)), TRANSACTION, 0),
        SnapshotBegin(odd, 1, AT),
        SnapshotEnd(odd, 1, 1, AT),
        Truncate((odd,), False, False, TRANSACTION, AT, 0),
    ):
        text = pretty.encode(event).decode()
        assert text[-1] == "\n"
        assert text[:-1].isprintable(), text
