"""What publications say of each table, and the tables whose rows they publish: the leaves of partitioned tables.

PostgreSQL looks at the replica identity, the row filter and the column list when a row of a leaf is changed, so that
they must fit each other there, also when the leaf is published under the name of a table above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgrepl.names import quote_ident

if TYPE_CHECKING:
    import psycopg


@dataclass(frozen=True)
class Root:
    """A partitioned table, by OID and name."""

    oid: int
    schema: str
    name: str


@dataclass(frozen=True)
class Entry:
    """One table as one publication publishes it.

    ``explicit`` is false where it is in the publication by its schema, as a partition, or because all tables are.
    ``listed`` is the column list, None without one; ``row_filter`` is SQL, and ``filter_columns`` what it looks at.
    ``root`` is the topmost table above it that is in the publication as well, None where there is none.
    """

    publication: str
    oid: int
    schema: str
    name: str
    relkind: str
    explicit: bool
    listed: tuple[str, ...] | None
    filter_columns: tuple[str, ...]
    row_filter: str | None
    root: Root | None

    @property
    def qualified(self) -> str:
        """The name for people."""
        return f"{self.schema}.{self.name}"

    def sql(self, listed: Sequence[str] | None) -> str:
        """Write the entry as it stands in ADD TABLE and SET TABLE, with this column list."""
        text = f"{quote_ident(self.schema)}.{quote_ident(self.name)}"
        if listed is not None:
            text += f" ({', '.join(map(quote_ident, listed))})"
        return text if self.row_filter is None else f"{text} WHERE ({self.row_filter})"


@dataclass(frozen=True)
class Column:
    """A column of a leaf.

    ``generated`` is ``s`` for stored, ``v`` for virtual, else empty. ``toastable`` says that a long value of it may be
    stored out of line. ``type_class`` is ``composite``, ``enum``, ``domain``, ``range``, ``extension`` or ``base``.
    """

    name: str
    not_null: bool
    generated: str
    toastable: bool
    type_name: str
    type_class: str


@dataclass(frozen=True)
class IdentityIndex:
    """The index that identifies the rows: the chosen one, or with the default setting the primary key's."""

    name: str
    primary: bool
    valid: bool
    immediate: bool
    partial: bool
    nullable_columns: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether the server uses it."""
        return self.valid and self.immediate and not self.partial and not self.nullable_columns


@dataclass(frozen=True)
class Leaf:
    """A table that holds published rows, itself published or through ``root_oid``; foreign partitions are in it, too.

    ``identity`` is relreplident, ``identity_columns`` what it amounts to, for FULL every column. ``toast_bytes`` are
    what lies out of line; ``updates`` and ``deletes`` count since the statistics were reset.
    """

    oid: int
    root_oid: int
    schema: str
    name: str
    relkind: str
    persistence: str
    identity: str
    identity_columns: tuple[str, ...]
    identity_index: IdentityIndex | None
    has_primary_key: bool
    toast_bytes: int
    updates: int
    deletes: int
    columns: tuple[Column, ...]

    @property
    def qualified(self) -> str:
        """The name for people."""
        return f"{self.schema}.{self.name}"

    @property
    def quoted(self) -> str:
        """The name in SQL."""
        return f"{quote_ident(self.schema)}.{quote_ident(self.name)}"


# The filter's columns are the variables of its stored form; their names come from the catalog, never from its text.
_ENTRIES = """
SELECT p.pubname::text, c.oid, n.nspname::text, c.relname::text, c.relkind::text, r.oid IS NOT NULL,
       CASE WHEN r.prattrs IS NOT NULL THEN
            ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
                   WHERE a.attrelid = c.oid AND a.attnum = ANY (r.prattrs::int2[]) ORDER BY a.attnum) END,
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                AND EXISTS (SELECT FROM regexp_matches(g.qual::text, ':varattno (\\d+)', 'g') AS v (number)
                             WHERE v.number[1]::int IN (0, a.attnum)) ORDER BY a.attnum),
       pg_catalog.pg_get_expr(g.qual, c.oid),
       root.oid, root.schema, root.name
  FROM pg_catalog.pg_publication p
 CROSS JOIN LATERAL pg_catalog.pg_get_publication_tables(p.pubname::text) g
  JOIN pg_catalog.pg_class c ON c.oid = g.relid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = g.relid
  LEFT JOIN LATERAL (
       SELECT u.oid, un.nspname::text AS schema, u.relname::text AS name
         FROM pg_catalog.pg_partition_ancestors(c.oid) WITH ORDINALITY AS up (oid, distance)
         JOIN pg_catalog.pg_class u ON u.oid = up.oid
         JOIN pg_catalog.pg_namespace un ON un.oid = u.relnamespace
        WHERE up.oid <> c.oid
          AND (p.puballtables
            OR EXISTS (SELECT FROM pg_catalog.pg_publication_rel x WHERE x.prpubid = p.oid AND x.prrelid = up.oid)
            OR EXISTS (SELECT FROM pg_catalog.pg_publication_namespace x
                        WHERE x.pnpubid = p.oid AND x.pnnspid = u.relnamespace))
        ORDER BY up.distance DESC LIMIT 1) root ON c.relispartition
 WHERE p.oid = ANY (%s::oid[])
 ORDER BY p.pubname, n.nspname, c.relname
"""

_LEAVES = """
SELECT c.oid, l.root_oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text,
       c.relreplident::text,
       CASE c.relreplident
         WHEN 'n' THEN '{}'
         ELSE ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
                     WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                       AND (c.relreplident = 'f' OR a.attnum = ANY (i.key)) ORDER BY a.attnum) END,
       i.name, i.indisprimary, i.indisvalid, i.indimmediate, i.partial,
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = c.oid AND a.attnum = ANY (i.key) AND NOT a.attnotnull ORDER BY a.attnum),
       EXISTS (SELECT FROM pg_catalog.pg_index k WHERE k.indrelid = c.oid AND k.indisprimary),
       coalesce(pg_catalog.pg_relation_size(nullif(c.reltoastrelid, 0)), 0),
       pg_catalog.pg_stat_get_tuples_updated(c.oid), pg_catalog.pg_stat_get_tuples_deleted(c.oid)
  FROM (SELECT DISTINCT coalesce(t.relid, r.oid) AS oid, r.oid AS root_oid
          FROM pg_catalog.pg_class r
          LEFT JOIN LATERAL pg_catalog.pg_partition_tree(r.oid) t ON r.relkind = 'p'
         WHERE r.oid = ANY (%(oids)s::oid[]) AND (r.relkind <> 'p' OR t.isleaf)) l
  JOIN pg_catalog.pg_class c ON c.oid = l.oid AND c.relkind IN ('r', 'f')
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN LATERAL (
       SELECT x.relname::text AS name, k.indisprimary, k.indisvalid, k.indimmediate, k.indpred IS NOT NULL AS partial,
              (k.indkey::int2[])[0:k.indnkeyatts - 1] AS key
         FROM pg_catalog.pg_index k JOIN pg_catalog.pg_class x ON x.oid = k.indexrelid
        WHERE k.indrelid = c.oid
          AND CASE c.relreplident WHEN 'd' THEN k.indisprimary WHEN 'i' THEN k.indisreplident ELSE false END) i ON true
 ORDER BY n.nspname, c.relname, c.oid
"""

_COLUMNS = """
SELECT a.attrelid, a.attname::text, a.attnotnull, a.attgenerated::text,
       a.attlen = -1 AND a.attstorage IN ('x', 'e', 'm'),
       pg_catalog.format_type(a.atttypid, a.atttypmod),
       CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_depend d
                          WHERE d.classid = 'pg_catalog.pg_type'::regclass AND d.objid = e.oid AND d.deptype = 'e')
            THEN 'extension'
            ELSE CASE e.typtype WHEN 'c' THEN 'composite' WHEN 'e' THEN 'enum' WHEN 'd' THEN 'domain'
                                WHEN 'r' THEN 'range' WHEN 'm' THEN 'range' ELSE 'base' END END
  FROM pg_catalog.pg_attribute a
  JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
  JOIN pg_catalog.pg_type e ON e.oid = CASE WHEN t.typcategory = 'A' AND t.typelem <> 0 THEN t.typelem ELSE t.oid END
 WHERE a.attrelid = ANY (%s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attrelid, a.attnum
"""


def entries(conn: psycopg.Connection, publications: Sequence[int]) -> list[Entry]:
    """Read what these publications, given by OID, say of each table, by publication and name."""
    return [_entry(row) for row in conn.execute(_ENTRIES, [list(publications)])]


def read(conn: psycopg.Connection, published: Sequence[int]) -> list[Leaf]:
    """Read every leaf among or below these published tables, by schema and name; two queries for them all."""
    rows = conn.execute(_LEAVES, {"oids": list(published)}).fetchall()
    columns: dict[int, list[Column]] = {}
    for oid, *column in conn.execute(_COLUMNS, [[row[0] for row in rows]]):
        columns.setdefault(oid, []).append(Column(*column))
    return [_leaf(row, columns.get(row[0], [])) for row in rows]


def _entry(row: Sequence[Any]) -> Entry:
    publication, oid, schema, name, relkind, explicit, listed, filter_columns, row_filter, *root = row
    return Entry(
        publication,
        oid,
        schema,
        name,
        relkind,
        explicit,
        None if listed is None else tuple(listed),
        tuple(filter_columns),
        row_filter,
        None if root[0] is None else Root(*root),
    )


def _leaf(row: Sequence[Any], columns: Sequence[Column]) -> Leaf:
    oid, root, schema, name, kind, persistence, identity, identity_columns = row[:8]
    index, primary, valid, immediate, partial, nullable = row[8:14]
    has_primary_key, toast_bytes, updates, deletes = row[14:]
    return Leaf(
        oid,
        root,
        schema,
        name,
        kind,
        persistence,
        identity,
        tuple(identity_columns),
        None if index is None else IdentityIndex(index, primary, valid, immediate, partial, tuple(nullable)),
        has_primary_key,
        toast_bytes,
        updates,
        deletes,
        tuple(columns),
    )
