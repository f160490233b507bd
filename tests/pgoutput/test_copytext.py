"""Rows of COPY: the rules of its text format, any split of the bytes, and what real servers send."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg import sql

from pgrepl.errors import ProtocolError
from pgrepl.pgoutput.copytext import CopyRows, Row
from tests.servers.database import Database


def rows_of(data: bytes, columns: int, cuts: list[int] | None = None) -> list[Row]:
    rows = CopyRows(columns)
    edges = [0, *sorted(cuts or []), len(data)]
    result = [row for start, end in pairwise(edges) for row in rows.feed(data[start:end])]
    rows.finish()
    return result


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"", b""),
        (rb"\N", None),
        (rb"\\N", rb"\N"),
        (rb"\N ", b"N "),
        (b"N", b"N"),
        (rb"\b\f\n\r\t\v", b"\b\f\n\r\t\v"),
        (rb"\\", b"\\"),
        (rb"\\n", rb"\n"),
        (rb"\\\n", b"\\\n"),
        (rb"\\\\x", rb"\\x"),
        (rb"\\xff", rb"\xff"),
        (rb"\101\60\0601\7", b"A001\x07"),
        (rb"\777", b"\xff"),
        (rb"\x41\x4a1\xg\x", b"AJ1xgx"),
        (rb"\.\q\"", b'.q"'),
        ("🐘".encode(), "🐘".encode()),
    ],
)
def test_field(field: bytes, value: bytes | None) -> None:
    assert rows_of(field + b"\n", 1) == [(value,)]
    assert rows_of(b"a\t" + field + b"\t\\N\n", 3) == [(b"a", value, None)]


def test_table_without_columns() -> None:
    assert rows_of(b"\n\n", 0) == [(), ()]


@pytest.mark.parametrize(
    ("data", "columns"), [(b"a\tb\n", 1), (b"a\n", 2), (b"\n", 2), (b"a\n", 0), (b"\t\n", 0), (b"a\\\n", 1)]
)
def test_wrong_rows(data: bytes, columns: int) -> None:
    with pytest.raises(ProtocolError):
        CopyRows(columns).feed(data)


@pytest.mark.parametrize("data", [b"a", b"a\nb", b"\\"])
def test_end_in_the_middle_of_a_row(data: bytes) -> None:
    rows = CopyRows(1)
    rows.feed(data)
    with pytest.raises(ProtocolError, match="middle of a row"):
        rows.finish()


def written(value: bytes | None) -> bytes:
    """Write a field as COPY TO does."""
    if value is None:
        return rb"\N"
    value = value.replace(b"\\", rb"\\")
    for letter, byte in zip(b"bfnrtv", b"\b\f\n\r\t\v", strict=True):
        value = value.replace(bytes([byte]), bytes([ord("\\"), letter]))
    return value


_fields = st.none() | st.binary() | st.lists(st.sampled_from(list(b"\\\\nNtx1\t\n\r"))).map(bytes)
_tables = st.integers(0, 5).flatmap(
    lambda columns: st.tuples(st.just(columns), st.lists(st.tuples(*[_fields] * columns), max_size=6))
)


@given(_tables, st.lists(st.integers(0, 200)))
@example((1, [(b"\\N",), (b"",), (b"\\",)]), [1, 2, 3, 4, 5, 6, 7])
def test_any_split_gives_the_same_rows(table: tuple[int, list[Row]], cuts: list[int]) -> None:
    columns, rows = table
    data = b"".join(b"\t".join(map(written, row)) + b"\n" for row in rows)
    assert rows_of(data, columns) == rows
    assert rows_of(data, columns, cuts) == rows
    assert rows_of(data, columns, list(range(len(data)))) == rows


@given(st.binary(), st.integers(0, 4))
def test_any_bytes(data: bytes, columns: int) -> None:
    try:
        rows = rows_of(data, columns)
    except ProtocolError:
        return
    assert all(len(row) == columns for row in rows)


def test_what_a_server_sends(database: Database) -> None:
    characters = [chr(code) for code in range(1, 0x250)]
    texts = [None, "", "\\N", "\\", "\\\\", "\\.", "N", "🐘", "".join(characters), "\r\n", *characters]
    with database.connect(client_encoding="UTF8") as connection:
        connection.execute("CREATE TABLE t (a text, raw bytea, b text)")
        for text in texts:
            raw = None if text is None else text.encode()
            connection.execute("INSERT INTO t VALUES (%s, %s, %s)", [text, raw, text])
        connection.execute("CREATE TABLE columnless ()")
        connection.execute("INSERT INTO columnless DEFAULT VALUES")
        for table, columns, expected in (
            ("t", 3, [(text, raw_text(text), text) for text in texts]),
            ("columnless", 0, [()]),
        ):
            rows = CopyRows(columns)
            with connection.cursor().copy(sql.SQL("COPY {} TO STDOUT").format(sql.Identifier(table))) as copy:
                received = [row for chunk in copy for row in rows.feed(bytes(chunk))]
            rows.finish()
            assert [tuple(None if value is None else value.decode() for value in row) for row in received] == expected


def raw_text(text: str | None) -> str | None:
    return None if text is None else "\\x" + text.encode().hex()
