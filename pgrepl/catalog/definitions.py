"""A table's definition as supabase/etl stores it: from the catalog, or from a message of its event trigger."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pgrepl.catalog.tables import TableDescription

DDL_PREFIX = "supabase_etl_ddl"
"""The prefix of the logical messages that the event trigger of schema ``etl`` writes after each ALTER TABLE."""


@dataclass(frozen=True)
class DefinedColumn:
    """A column; ``primary_key_place`` counts from 1, and is None for a column that is not in the primary key."""

    name: str
    attnum: int
    type_oid: int
    type_modifier: int
    nullable: bool
    primary_key_place: int | None


@dataclass(frozen=True)
class Definition:
    """A table with its columns, generated ones left out."""

    oid: int
    schema: str
    name: str
    columns: tuple[DefinedColumn, ...]


def of_description(table: TableDescription) -> Definition:
    """Give the definition of a table as the catalog has it."""
    columns = tuple(
        DefinedColumn(
            column.name,
            column.attnum,
            column.type_oid,
            column.type_modifier,
            column.nullable,
            column.primary_key_place,
        )
        for column in table.columns
        if not column.generated
    )
    return Definition(table.oid, table.schema, table.name, columns)


def of_message(content: bytes) -> Definition:
    """Read the message of the event trigger. Raises ValueError: every role may write messages, with any content."""
    try:
        message = json.loads(content)
        places = {attnum: place for place, attnum in enumerate(message["identity"]["primary_key_attnums"], 1)}
        columns = tuple(_column(column, places) for column in message["columns"])
        definition = Definition(
            _number(message["oid"], 2**32 - 1), _text(message["nspname"]), _text(message["relname"]), columns
        )
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"a message of prefix {DDL_PREFIX} that its event trigger does not write") from error
    if len({column.name for column in columns}) < len(columns) or len({c.attnum for c in columns}) < len(columns):
        raise ValueError(f"a message of prefix {DDL_PREFIX} that has a column twice")
    return definition


def _column(column: dict[str, Any], places: dict[int, int]) -> DefinedColumn:
    attnum = _number(column["attnum"], 32767)
    modifier = column["atttypmod"]
    nullable = not column["attnotnull"]
    return DefinedColumn(
        _text(column["attname"]),
        attnum,
        _number(column["atttypid"], 2**32 - 1),
        -1 if modifier == -1 else _number(modifier, 2**31 - 1),
        nullable,
        places.get(attnum),
    )


def _number(value: object, largest: int) -> int:
    if type(value) is not int or not 0 <= value <= largest:
        raise TypeError("not a number of that kind")
    return value


def _text(value: object) -> str:
    # A name is at most 63 bytes long, and NUL is in none; the server would refuse it as a value.
    if not isinstance(value, str) or len(value) > 63 or "\0" in value:
        raise TypeError("not a name")
    return value
