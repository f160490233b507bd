"""Versions of a table: built from what the stream says and the catalog knows, and compared."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import psycopg

from pgrepl.catalog import tables, transactions, types
from pgrepl.catalog.definitions import Definition, of_description
from pgrepl.catalog.publications import PublishedTable
from pgrepl.catalog.tables import ColumnDescription, TableDescription
from pgrepl.events import Column, SchemaDiff, Table
from pgrepl.pgoutput import messages
from pgrepl.pgoutput.types import TEXT, ValueType

_VISIBLE_PATIENCE = 2.0
# PostgreSQL tells nobody when a transaction can be seen, so it is asked again and again.
_STEP = 0.01


class Described(NamedTuple):
    """A table as a snapshot sees it: what is published of it, and its whole definition."""

    table: Table
    definition: Definition


def published(connection: psycopg.Connection, wanted: Sequence[PublishedTable]) -> dict[int, Described]:
    """Build the tables of a snapshot, as the transaction of ``connection`` sees them."""
    described = tables.describe(connection, [table.oid for table in wanted])
    value_types = types.resolve(
        connection, {column.type_oid for table in described.values() for column in table.columns}
    )
    found = {}
    for table in wanted:
        if table.oid in described:
            relation = _as_relation(described[table.oid], table.columns)
            version = build(relation, described[table.oid], value_types, {})
            found[table.oid] = Described(version, of_description(described[table.oid]))
    return found


def resolve(connection: psycopg.Connection, relation: messages.Relation, xid: int) -> Table:
    """Build the version of a table that a Relation message in transaction ``xid`` tells of.

    The stream's word stands for names, types and the replica identity; the catalog, which may be further on already,
    adds what the message does not hold: what user-defined types are, names of types, nullability and the primary key
    under FULL. It is asked once the transaction can be seen; one that a synchronous standby holds up is not waited for
    beyond 2 seconds, since that standby may be waiting for us.
    """
    give_up = time.monotonic() + _VISIBLE_PATIENCE
    while transactions.is_open(connection, xid) and time.monotonic() < give_up:
        time.sleep(_STEP)
    described = tables.describe(connection, [relation.oid]).get(relation.oid)
    value_types = types.resolve(connection, {column.type_oid for column in relation.columns})
    names = types.names(connection, {(column.type_oid, column.type_modifier) for column in relation.columns})
    return build(relation, described, value_types, names)


def build(
    relation: messages.Relation,
    described: TableDescription | None,
    value_types: Mapping[int, ValueType],
    type_names: Mapping[tuple[int, int], str],
) -> Table:
    """Put a version of a table together; without a description the catalog's part is unknown."""
    known = {column.name: column for column in described.columns} if described else {}
    columns = []
    for column in relation.columns:
        match = known.get(column.name)
        kind = (column.type_oid, column.type_modifier)
        if match is not None and kind == (match.type_oid, match.type_modifier):
            type_name = match.type_name
        else:
            type_name = type_names.get(kind) or f"type {column.type_oid}"
        columns.append(
            Column(
                column.name,
                column.type_oid,
                column.type_modifier,
                type_name,
                value_types.get(column.type_oid, TEXT),
                match.attnum if match else None,
                match.nullable if match else None,
            )
        )
    key = _key(relation, list(known.values()))
    return Table(
        relation.oid, relation.namespace or "pg_catalog", relation.name, relation.replica_identity, tuple(columns), key
    )


def _key(relation: messages.Relation, known: Collection[ColumnDescription]) -> tuple[int, ...]:
    """Find the columns that identify a row; a key of which a column is not published identifies nothing."""
    names = [column.name for column in relation.columns]
    if relation.replica_identity == "n":
        return ()
    if relation.replica_identity == "f":
        primary = [column.name for column in known if column.in_primary_key]
        if primary and set(primary) <= set(names):
            return tuple(index for index, name in enumerate(names) if name in primary)
        return tuple(range(len(names)))
    by_index = relation.replica_identity == "i"
    unpublished = {
        column.name for column in known if (column.in_identity_index if by_index else column.in_primary_key)
    } - set(names)
    if unpublished:
        return ()
    return tuple(index for index, column in enumerate(relation.columns) if column.part_of_key)


def _as_relation(table: TableDescription, columns: Sequence[str]) -> messages.Relation:
    """Write the Relation message that pgoutput would send for the table as the catalog has it."""

    def in_identity(column: ColumnDescription) -> bool:
        match table.replica_identity:
            case "f":
                return True
            case "i":
                return column.in_identity_index
            case "d":
                return column.in_primary_key
            case _:
                return False

    wanted = set(columns)
    return messages.Relation(
        table.oid,
        table.schema,
        table.name,
        table.replica_identity,  # type: ignore[arg-type]
        tuple(
            messages.Column(in_identity(column), column.name, column.type_oid, column.type_modifier)
            for column in table.columns
            if column.name in wanted
        ),
    )


def same_definition(first: Table, second: Table) -> bool:
    """Tell whether two versions are the same for whoever reads rows: name, columns, types and key."""
    return _visible(first) == _visible(second)


def _visible(table: Table) -> tuple[object, ...]:
    columns = [(column.name, column.type_oid, column.type_modifier) for column in table.columns]
    return table.schema, table.name, table.replica_identity, columns, table.key


def remember(old: Table, new: Table) -> Table:
    """Fill in what the catalog has forgotten of columns that it knew when the version before was built.

    It does not know a column any more whose table was altered again by now, perhaps in the same transaction.
    """
    before = {(column.name, column.type_oid): column for column in old.columns}
    columns = []
    for column in new.columns:
        known = before.get((column.name, column.type_oid))
        if column.attnum is None and known is not None:
            column = column._replace(attnum=known.attnum, nullable=known.nullable)
        columns.append(column)
    return replace(new, columns=tuple(columns))


def diff(old: Table, new: Table) -> SchemaDiff:
    """Compare two versions of a table.

    A column of the same attnum is the same column, under whatever name. Where the catalog has moved on and knows the
    attnum no more, the name tells; a renamed column is a dropped and an added one then.
    """
    before = {column.name: column for column in old.columns}
    after = {column.name: column for column in new.columns}
    names = {column.attnum: column.name for column in old.columns if column.attnum is not None}
    origin = {
        column.name: names[column.attnum]
        for column in new.columns
        if column.attnum in names and names[column.attnum] != column.name
    }
    left = set(origin.values())
    retyped = []
    for column in new.columns:
        earlier = before.get(origin.get(column.name, column.name))
        known = column.name in origin or column.name not in left
        if known and earlier and (earlier.type_oid, earlier.type_modifier) != (column.type_oid, column.type_modifier):
            retyped.append(column.name)
    return SchemaDiff(
        added=tuple(name for name in after if name not in origin and (name not in before or name in left)),
        dropped=tuple(name for name in before if name not in left and (name not in after or name in origin)),
        renamed=tuple((before_name, name) for name, before_name in origin.items()),
        retyped=tuple(retyped),
    )
