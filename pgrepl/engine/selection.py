"""Which of the published tables are wanted."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from pgrepl.errors import InputError, OperationError
from pgrepl.names import quote_ident

STATE_SCHEMA = "etl"
"""The schema of the pipelines' own state; printing its changes would bring about more of them, without end."""

TableName = tuple[str, str]


class Named(Protocol):
    """Anything with the name of a table."""

    @property
    def schema(self) -> str: ...

    @property
    def name(self) -> str: ...


_T = TypeVar("_T", bound=Named)


@dataclass(frozen=True)
class Selection:
    """``only`` these tables (empty: all that are published), ``without`` those; pairs of schema and name."""

    only: frozenset[TableName] = field(default=frozenset())
    without: frozenset[TableName] = field(default=frozenset())

    def wants(self, table: Named) -> bool:
        """Say whether a table is wanted, by its name."""
        name = (table.schema, table.name)
        return table.schema != STATE_SCHEMA and name not in self.without and (not self.only or name in self.only)

    def missing(self, published: Iterable[Named]) -> list[str]:
        """List the tables that were named and are not published."""
        return sorted(".".join(name) for name in (self.only | self.without) - _names(published))

    def of(self, published: Iterable[_T], publications: Collection[str]) -> list[_T]:
        """Choose the wanted tables.

        Raises InputError when a table that was named is not published, OperationError when none is left.
        """
        tables = list(published)
        named, missing = _names(tables), self.missing(tables)
        where = f"publication {', '.join(publications)}"
        if not tables:
            raise OperationError(
                f"{where} has no tables", hint=f"ALTER PUBLICATION {quote_ident(next(iter(publications)))} ADD TABLE …"
            )
        if missing:
            raise InputError(f"{where} does not have {', '.join(missing)}", hint=f"it has {_some(named)}")
        wanted = [table for table in tables if self.wants(table)]
        if not wanted:
            raise OperationError(
                f"{where}: no table is left to print",
                hint=f"it has {_some(named)}; tables of schema {STATE_SCHEMA} are never printed",
            )
        return wanted


def _names(tables: Iterable[Named]) -> set[TableName]:
    return {(table.schema, table.name) for table in tables}


def _some(names: Collection[TableName]) -> str:
    shown = sorted(".".join(name) for name in names)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
