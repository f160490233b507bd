"""Tables as a stream needs to know them: their columns with types, keys and numbers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import psycopg


@dataclass(frozen=True)
class ColumnDescription:
    """One column of a table; ``attnum`` stays its own through every rename."""

    name: str
    attnum: int
    type_oid: int
    type_modifier: int
    type_name: str
    nullable: bool
    in_identity_index: bool
    # Its place in the primary key, from 1; None for a column that is not in it.
    primary_key_place: int | None
    generated: bool

    @property
    def in_primary_key(self) -> bool:
        """Whether the column is part of the primary key."""
        return self.primary_key_place is not None


@dataclass(frozen=True)
class TableDescription:
    """A table with its columns in the order of attnum, dropped ones left out."""

    oid: int
    schema: str
    name: str
    relkind: str
    replica_identity: str
    columns: tuple[ColumnDescription, ...]


_DESCRIBE = """
SELECT c.oid, n.nspname, c.relname, c.relkind, c.relreplident,
       a.attname, a.attnum, a.atttypid, a.atttypmod, pg_catalog.format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
       coalesce(a.attnum = ANY (r.key), false), pg_catalog.array_position(p.key, a.attnum),
       a.attgenerated <> ''
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  LEFT JOIN LATERAL (SELECT (i.indkey::int2[])[0:i.indnkeyatts - 1] AS key FROM pg_catalog.pg_index i
                      WHERE i.indrelid = c.oid AND i.indisprimary) p ON true
  LEFT JOIN LATERAL (SELECT (i.indkey::int2[])[0:i.indnkeyatts - 1] AS key FROM pg_catalog.pg_index i
                      WHERE i.indrelid = c.oid AND i.indisreplident) r ON true
 WHERE c.oid = ANY (%s::oid[])
 ORDER BY c.oid, a.attnum
"""


def describe(connection: psycopg.Connection, oids: Collection[int]) -> dict[int, TableDescription]:
    """Describe the tables with these OIDs, in one query; one that does not exist is absent."""
    found: dict[int, tuple[tuple[str, str, str, str], list[ColumnDescription]]] = {}
    for row in connection.execute(_DESCRIBE, [list(oids)]):
        _, columns = found.setdefault(row[0], (tuple(row[1:5]), []))
        if row[5] is not None:
            columns.append(ColumnDescription(*row[5:]))
    return {oid: TableDescription(oid, *head, tuple(columns)) for oid, (head, columns) in found.items()}


_REPLACED = """
SELECT DISTINCT w.oid
  FROM unnest(%s::oid[]) AS w (oid)
 CROSS JOIN LATERAL (
       SELECT w.oid AS leaf UNION SELECT t.relid FROM pg_catalog.pg_partition_tree(w.oid) t) l
  LEFT JOIN pg_catalog.pg_class c ON c.oid = l.leaf
  LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid IS NULL
    OR c.relkind IN ('r', 't', 'm') AND c.relfilenode IS DISTINCT FROM pg_catalog.pg_relation_filenode(l.leaf)
    OR l.leaf = w.oid
       AND pg_catalog.to_regclass(pg_catalog.format('%%I.%%I', n.nspname, c.relname))::oid IS DISTINCT FROM w.oid
"""


def replaced_since_snapshot(connection: psycopg.Connection, oids: Collection[int]) -> list[int]:
    """List those of the tables whose rows the snapshot of this transaction cannot give any more.

    TRUNCATE and rewriting ALTERs put a new file in place of the old one, for every snapshot at once. ``pg_class`` is
    read as the snapshot sees it, ``pg_relation_filenode`` tells the file of now; where they differ, for the table or
    any of its partitions, an older snapshot would silently read an empty or a changed table. So would one that reads by
    name, which ``to_regclass`` looks up as of now, when another table has taken it. Only a lock on the table held
    before makes the answer last (PostgreSQL documentation, MVCC Caveats).
    """
    return [oid for (oid,) in connection.execute(_REPLACED, [list(oids)])]


def lockable(connection: psycopg.Connection, oids: Collection[int]) -> set[int]:
    """Say which tables the role may LOCK in ACCESS SHARE mode: SELECT on columns alone is not enough."""
    return {
        oid
        for (oid,) in connection.execute(
            "SELECT w.oid FROM unnest(%s::oid[]) AS w (oid) WHERE pg_catalog.has_table_privilege(w.oid, 'SELECT')",
            [list(oids)],
        )
    }


@dataclass(frozen=True)
class Leaf:
    """A table that holds rows: a published table or a partition of it; ``readable`` by SELECT on all of it."""

    table: int
    oid: int
    schema: str
    name: str
    blocks: int
    readable: bool


_LEAVES = """
SELECT w.oid, c.oid, n.nspname, c.relname,
       coalesce(pg_catalog.pg_relation_size(c.oid), 0) / current_setting('block_size')::int,
       pg_catalog.has_table_privilege(c.oid, 'SELECT') AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
  FROM unnest(%s::oid[]) AS w (oid)
 CROSS JOIN LATERAL (
       SELECT w.oid AS leaf UNION SELECT t.relid FROM pg_catalog.pg_partition_tree(w.oid) t WHERE t.isleaf) l
  JOIN pg_catalog.pg_class c ON c.oid = l.leaf AND c.relkind = 'r'
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 ORDER BY w.oid, c.oid
"""


def leaves(connection: psycopg.Connection, oids: Collection[int]) -> list[Leaf]:
    """List the tables that hold the rows of these, by table and OID, with their sizes of now."""
    return [Leaf(*row) for row in connection.execute(_LEAVES, [list(oids)])]
