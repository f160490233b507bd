"""Which of the published tables are wanted."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from pgrepl.engine.selection import Selection
from pgrepl.errors import InputError, OperationError


class Named(NamedTuple):
    schema: str
    name: str


TABLES = [Named("public", "a"), Named("public", "b"), Named("S x", "a.b"), Named("etl", "replication_state")]


def chosen(only: set[tuple[str, str]] | None = None, without: set[tuple[str, str]] | None = None) -> list[str]:
    selection = Selection(frozenset(only or ()), frozenset(without or ()))
    tables = selection.of(TABLES, ["pub"])
    assert tables == [table for table in TABLES if selection.wants(table)]
    return [table.name for table in tables]


def test_wanted() -> None:
    """State tables never; what is left out wins over what is asked for; names are compared as they are."""
    assert chosen() == ["a", "b", "a.b"]
    assert chosen(only={("public", "b"), ("S x", "a.b")}) == ["b", "a.b"]
    assert chosen(without={("public", "b")}) == ["a", "a.b"]
    assert chosen(only={("public", "a"), ("public", "b")}, without={("public", "b")}) == ["a"]


def test_tables_that_are_not_published() -> None:
    with pytest.raises(InputError, match=r"publication one, two does not have public\.A, s\.c") as caught:
        Selection(frozenset({("public", "A")}), frozenset({("s", "c")})).of(TABLES, ["one", "two"])
    assert caught.value.hint == "it has S x.a.b, etl.replication_state, public.a, public.b"


def test_nothing_left() -> None:
    with pytest.raises(OperationError, match="publication pub has no tables"):
        Selection(frozenset({("public", "a")})).of([], ["pub"])
    with pytest.raises(OperationError, match="no table is left to print"):
        Selection().of([Named("etl", "t")], ["pub"])
    with pytest.raises(OperationError, match="no table is left to print"):
        Selection(frozenset({("etl", "replication_state")})).of(TABLES, ["pub"])


def test_a_hint_names_five_tables() -> None:
    many = [Named("s", f"t{number}") for number in range(9)]
    with pytest.raises(InputError) as caught:
        Selection(frozenset({("s", "x")})).of(many, ["pub"])
    assert caught.value.hint == "it has s.t0, s.t1, s.t2, s.t3, s.t4 and 4 more"
