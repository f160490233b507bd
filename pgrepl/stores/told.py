"""Versions of tables as JSON: the ones that the output was told of last, so that a restart knows what has changed."""

from __future__ import annotations

from typing import Any

from pgrepl.events import Column, Table
from pgrepl.pgoutput.types import TEXT


def to_json(table: Table) -> dict[str, Any]:
    """Give a version of a table as JSON; how values of user-defined types are read is left out."""
    return {
        "schema": table.schema,
        "table": table.name,
        "replica_identity": table.replica_identity,
        "key": list(table.key),
        "columns": [
            [
                column.name,
                column.type_oid,
                column.type_modifier,
                column.type_name,
                column.attnum,
                column.nullable,
            ]
            for column in table.columns
        ],
    }


def from_json(oid: int, stored: dict[str, Any]) -> Table:
    """Give the version back, for comparisons only."""
    columns = tuple(
        Column(name, type_oid, type_modifier, type_name, TEXT, attnum, nullable)
        for name, type_oid, type_modifier, type_name, attnum, nullable in stored["columns"]
    )
    return Table(oid, stored["schema"], stored["table"], stored["replica_identity"], columns, tuple(stored["key"]))
