"""How the rows of tables are identified in UPDATE and DELETE, asked of the tables that hold them.

The server wants a replica identity of the table in which the row lies. A partitioned table holds no rows and hands
its own setting down to no partition, so that its leaves are what counts, also with publish_via_partition_root.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psycopg


@dataclass(frozen=True)
class TableIdentity:
    """The replica identity of one table with rows.

    ``root_oid`` is the table it was asked for: itself, or the partitioned table above it. ``setting`` is
    relreplident: d, n, f or i. ``usable`` says that it identifies a row: f does, d with a primary key, i with its
    index still there. A deferrable or invalid primary key is none: the server does not identify rows by it.
    ``candidate_index`` could serve with USING INDEX: unique, complete, immediate, over NOT NULL columns alone.
    """

    oid: int
    root_oid: int
    schema: str
    name: str
    setting: str
    usable: bool
    has_primary_key: bool
    candidate_index: str | None

    @property
    def is_partition(self) -> bool:
        """Whether it was asked for as a part of a partitioned table."""
        return self.oid != self.root_oid


@dataclass(frozen=True)
class UserTable:
    """A table that a publication could hold; a partitioned table stands for its partitions."""

    oid: int
    schema: str
    name: str
    partitioned: bool


_IDENTITIES = """
SELECT c.oid, leaf.root_oid, n.nspname::text, c.relname::text, c.relreplident::text,
       CASE c.relreplident WHEN 'f' THEN true WHEN 'd' THEN i.has_primary_key WHEN 'i' THEN i.has_identity_index
            ELSE false END,
       i.has_primary_key, i.candidate
FROM (SELECT r.oid AS root_oid, coalesce(t.relid, r.oid) AS oid
      FROM pg_catalog.pg_class r
      LEFT JOIN LATERAL pg_partition_tree(r.oid) t ON r.relkind = 'p'
      WHERE r.oid = ANY (%s::oid[]) AND (r.relkind = 'r' OR t.isleaf)) leaf
JOIN pg_catalog.pg_class c ON c.oid = leaf.oid AND c.relkind = 'r'
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
    SELECT coalesce(bool_or(x.indisprimary AND x.indimmediate AND x.indisvalid), false) AS has_primary_key,
           coalesce(bool_or(x.indisreplident AND x.indisvalid), false) AS has_identity_index,
           min(xc.relname::text) FILTER (WHERE x.indisunique AND x.indisvalid AND x.indimmediate AND NOT x.indisprimary
               AND x.indpred IS NULL AND x.indexprs IS NULL
               AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
                               WHERE a.attrelid = c.oid AND NOT a.attnotnull
                                 AND a.attnum = ANY ((x.indkey::int2[])[0:x.indnkeyatts - 1]))) AS candidate
    FROM pg_catalog.pg_index x JOIN pg_catalog.pg_class xc ON xc.oid = x.indexrelid
    WHERE x.indrelid = c.oid AND x.indislive) i
ORDER BY n.nspname, c.relname, c.oid
"""

_USER_TABLES = """
SELECT c.oid, n.nspname::text, c.relname::text, c.relkind = 'p'
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND NOT c.relispartition
  AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' AND n.nspname <> 'etl'
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                  WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY n.nspname, c.relname
"""


def read(conn: psycopg.Connection, tables: Sequence[int]) -> list[TableIdentity]:
    """Read the identity of every table with rows among or below these OIDs, by schema and name."""
    return [TableIdentity(*row) for row in conn.execute(_IDENTITIES, [list(tables)])]


def user_tables(conn: psycopg.Connection) -> list[UserTable]:
    """Read the tables of users that a publication could hold, by schema and name.

    Left out are tables of extensions, the state tables in ``etl`` (in their own stream they would feed themselves)
    and what is not in the WAL: temporary and unlogged tables.
    """
    return [UserTable(*row) for row in conn.execute(_USER_TABLES)]
