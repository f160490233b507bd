"""The pieces in which tables are copied: ranges of blocks of each leaf, many more than there are workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from pgrepl.catalog import tables as catalog
from pgrepl.catalog.publications import PublishedTable

UNIT_BLOCKS = 4096
"""Blocks of a unit, 32 MB with blocks of 8 kB: small enough to share out, large enough not to be felt."""


@dataclass(frozen=True)
class Unit:
    """One COPY: blocks from ``first`` up to ``end`` (None: all that follow) of a leaf, or of the table as a whole."""

    table: PublishedTable
    leaf: tuple[str, str] | None = None
    first: int = 0
    end: int | None = None

    def query(self) -> sql.Composed:
        """Write the COPY that reads the unit's rows with the published columns and filter."""
        columns = sql.SQL(", ").join(sql.Identifier(name) for name in self.table.columns)
        if self.leaf is not None:
            source: sql.Composable = sql.SQL("ONLY {}").format(sql.Identifier(*self.leaf))
        elif self.table.relkind == "p":
            source = sql.Identifier(self.table.schema, self.table.name)
        else:
            source = sql.SQL("ONLY {}").format(sql.Identifier(self.table.schema, self.table.name))
        conditions: list[sql.Composable] = []
        if self.first > 0:
            conditions.append(sql.SQL("ctid >= '({},0)'").format(sql.SQL(str(self.first))))
        if self.end is not None:
            conditions.append(sql.SQL("ctid < '({},0)'").format(sql.SQL(str(self.end))))
        if self.table.row_filter:
            # The filter is SQL that the server itself has printed.
            conditions.append(sql.SQL(f"({self.table.row_filter})"))
        where = sql.SQL(" WHERE ") + sql.SQL(" AND ").join(conditions) if conditions else sql.SQL("")
        return sql.SQL("COPY (SELECT {} FROM {}{}) TO STDOUT").format(columns, source, where)


def plan(connection: psycopg.Connection, tables: Sequence[PublishedTable]) -> dict[int, list[Unit]]:
    """Cut tables into units, by OID of the table; each has at least one.

    The last range of a leaf is open, so it does not matter that a table grows: rows that the snapshot sees are there
    already when it is measured. A table that the role reads by column grants alone is one unit, since they do not
    cover ctid; so is a partitioned one whose leaves it may not read by themselves.
    """
    units: dict[int, list[Unit]] = {table.oid: [] for table in tables}
    by_oid = {table.oid: table for table in tables}
    leaves = catalog.leaves(connection, list(by_oid))
    whole = {leaf.table for leaf in leaves if not leaf.readable}
    for leaf in leaves:
        if leaf.table in whole:
            continue
        table = by_oid[leaf.table]
        firsts = range(0, max(leaf.blocks, 1), UNIT_BLOCKS)
        for first in firsts:
            end = first + UNIT_BLOCKS
            units[table.oid].append(Unit(table, (leaf.schema, leaf.name), first, end if end < leaf.blocks else None))
    return {oid: found or [Unit(by_oid[oid])] for oid, found in units.items()}
