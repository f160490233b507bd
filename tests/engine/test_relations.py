"""Versions of tables: what two of them differ in, what identifies a row, and what the catalog adds."""

from __future__ import annotations

import pytest

from pgrepl.catalog.tables import ColumnDescription, TableDescription
from pgrepl.engine.relations import build, diff, same_definition
from pgrepl.events import Column, SchemaDiff
from pgrepl.pgoutput import messages
from pgrepl.pgoutput.types import Kind, ValueType
from tests.engine.tables import INT4, TEXT, column, relation, table

A, B, C = column("a", attnum=1), column("b", attnum=2), column("c", attnum=3)


@pytest.mark.parametrize(
    ("before", "after", "added", "dropped", "renamed", "retyped"),
    [
        ([A, B], [A, B], [], [], [], []),
        ([A], [A, B, C], ["b", "c"], [], [], []),
        ([A, B, C], [B], [], ["a", "c"], [], []),
        ([A, B], [A, column("x", attnum=2)], [], [], [("b", "x")], []),
        ([A, B], [A, column("x", INT4, attnum=2)], [], [], [("b", "x")], ["x"]),
        ([A, B], [column("a", INT4, attnum=1), B], [], [], [], ["a"]),
        ([A], [column("a", attnum=1, modifier=24)], [], [], [], ["a"]),
        # Names that pass from one column to another.
        ([A, B], [column("b", attnum=1), column("a", attnum=2)], [], [], [("a", "b"), ("b", "a")], []),
        ([A, B, C], [column("b", attnum=1), column("x", attnum=2), C], [], [], [("a", "b"), ("b", "x")], []),
        ([A], [column("old_a", attnum=1), column("a", INT4, attnum=2)], ["a"], [], [("a", "old_a")], []),
        ([A, B], [column("a", INT4, attnum=2)], [], ["a"], [("b", "a")], ["a"]),
        # The same name for another column: dropped and added in one transaction.
        ([A, B], [A, column("b", INT4, attnum=3)], [], [], [], ["b"]),
        # The catalog has moved on and knows neither name any more.
        ([A, column("b", attnum=None)], [A, column("x", attnum=2)], ["x"], ["b"], [], []),
        ([A, B], [A, column("x", attnum=None)], ["x"], ["b"], [], []),
        ([A, B, C], [column("x", attnum=1), column("y", attnum=3), column("z", attnum=9)],
         ["z"], ["b"], [("a", "x"), ("c", "y")], []),
    ],
)  # fmt: skip
def test_diff(
    before: list[Column],
    after: list[Column],
    added: list[str],
    dropped: list[str],
    renamed: list[tuple[str, str]],
    retyped: list[str],
) -> None:
    expected = SchemaDiff(tuple(added), tuple(dropped), tuple(renamed), tuple(retyped))
    assert diff(table("t", *before), table("t", *after)) == expected


def test_same_definition() -> None:
    """What a reader of rows sees counts: attnum and nullability do not."""
    first = table("t", A, B)
    assert same_definition(first, table("t", A, B._replace(attnum=None, nullable=False)))
    others = [
        table("u", A, B),
        table("t", B, A),
        table("t", A),
        table("t", A, B._replace(type_oid=INT4)),
        table("t", A, B._replace(type_modifier=5)),
        table("t", A, B, key=(1,)),
        table("t", A, B, key=()),
        table("t", A, B, identity="f"),
    ]
    assert not [other for other in others if same_definition(first, other)]


def _place(name: str, primary: tuple[str, ...]) -> int | None:
    return primary.index(name) + 1 if name in primary else None


def described(*names: str, primary: tuple[str, ...] = (), index: tuple[str, ...] = ()) -> TableDescription:
    columns = [
        ColumnDescription(
            name, number, TEXT, -1, "text", name not in primary, name in index, _place(name, primary), False
        )
        for number, name in enumerate(names, 1)
    ]
    return TableDescription(1, "s", "t1", "r", "d", tuple(columns))


def key(identity: messages.ReplicaIdentity, in_key: str, catalog: TableDescription | None) -> tuple[int, ...]:
    columns = tuple(messages.Column(name in in_key, name, TEXT, -1) for name in ("a", "b", "c"))
    return build(messages.Relation(1, "s", "t1", identity, columns), catalog, {}, {}).key


def test_key() -> None:
    """The stream names the identity's columns; under FULL the catalog's primary key is what identifies."""
    assert key("d", "ac", described("a", "b", "c", primary=("c", "a"))) == (0, 2)
    assert key("d", "", described("a", "b", "c")) == ()
    assert key("i", "b", described("a", "b", "c", primary=("a",), index=("b",))) == (1,)
    assert key("n", "", described("a", "b", "c", primary=("a",))) == ()
    assert key("f", "abc", described("a", "b", "c", primary=("b",))) == (1,)
    assert key("f", "abc", described("a", "b", "c")) == (0, 1, 2)
    assert key("f", "abc", None) == (0, 1, 2)
    assert key("d", "a", None) == (0,)


def test_a_key_that_is_not_wholly_published_identifies_nothing() -> None:
    assert key("d", "a", described("a", "b", "c", "hidden", primary=("a", "hidden"))) == ()
    assert key("i", "b", described("a", "b", "c", "hidden", index=("b", "hidden"))) == ()
    assert key("f", "abc", described("a", "b", "c", "hidden", primary=("a", "hidden"))) == (0, 1, 2)


def test_what_the_catalog_adds() -> None:
    number = ValueType(Kind.NUMBER)
    columns = (messages.Column(True, "id", INT4, -1), messages.Column(False, "n", 70000, 5))
    message = messages.Relation(1, "", "t", "d", columns)
    catalog = TableDescription(
        1, "pg_catalog", "t", "r", "d", (ColumnDescription("id", 4, INT4, -1, "integer", False, False, 1, False),)
    )
    built = build(message, catalog, {INT4: number}, {(70000, 5): "public.mood(5)"})
    assert built.schema == "pg_catalog"
    first, second = built.columns
    assert first == Column("id", INT4, -1, "integer", number, 4, False)
    # The catalog is further on and has no such column: its type has a name all the same, and its text is text.
    assert second == Column("n", 70000, 5, "public.mood(5)", ValueType(Kind.TEXT), None, None)


def test_types_that_nobody_knows_any_more() -> None:
    built = build(relation(1, "a"), None, {}, {})
    assert built.columns[0].type_name == f"type {TEXT}"


def test_a_type_that_the_catalog_has_changed_meanwhile() -> None:
    """The stream's word stands: the type's name is that of the message, and the column is the same one."""
    catalog = TableDescription(
        1, "s", "t1", "r", "d", (ColumnDescription("a", 1, INT4, -1, "integer", False, False, 1, False),)
    )
    built = build(relation(1, "a"), catalog, {}, {(TEXT, -1): "text"})
    assert (built.columns[0].type_name, built.columns[0].attnum, built.columns[0].nullable) == ("text", 1, False)
