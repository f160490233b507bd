"""Publications and what they publish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from pgrepl.errors import OperationError


@dataclass(frozen=True)
class Publication:
    """One row of pg_publication.

    ``schemas`` are those that it publishes whole. ``generated_columns`` is what publish_generated_columns says (none or
    stored), None before 18, which has no such thing.
    """

    oid: int
    name: str
    owner: str
    all_tables: bool
    insert: bool
    update: bool
    delete: bool
    truncate: bool
    via_root: bool
    schemas: tuple[str, ...]
    generated_columns: str | None

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations that it publishes, as its option ``publish`` names them."""
        flags = {"insert": self.insert, "update": self.update, "delete": self.delete, "truncate": self.truncate}
        return tuple(name for name, published in flags.items() if published)


@dataclass(frozen=True)
class PublishedTable:
    """One table as a set of publications publishes it.

    ``columns`` are the published ones in the order of the table. ``row_filter`` is SQL over the table's own columns,
    None for every row. ``replica_identity`` is relreplident (d, n, f or i) and ``identity_columns`` what it amounts
    to: with d and no primary key, or n, or i and no index left, nothing. ``primary_key`` is in key order. ``rows`` is
    the planner's estimate, None when the table was never analysed; ``size`` is in bytes without indexes; both count
    all leaves of a partitioned table.
    """

    oid: int
    schema: str
    name: str
    relkind: str
    columns: tuple[str, ...]
    row_filter: str | None
    replica_identity: str
    identity_columns: tuple[str, ...]
    primary_key: tuple[str, ...]
    rows: int | None
    size: int

    @property
    def qualified(self) -> str:
        """The name for people, ``schema.table``."""
        return f"{self.schema}.{self.name}"


_PUBLICATIONS = """
SELECT p.oid, p.pubname, pg_catalog.pg_get_userbyid(p.pubowner), p.puballtables,
       p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, p.pubviaroot,
       ARRAY(SELECT n.nspname FROM pg_catalog.pg_publication_namespace s
               JOIN pg_catalog.pg_namespace n ON n.oid = s.pnnspid
              WHERE s.pnpubid = p.oid ORDER BY n.nspname)::text[],
       CASE to_jsonb(p) ->> 'pubgencols' WHEN 'n' THEN 'none' WHEN 's' THEN 'stored' END
  FROM pg_catalog.pg_publication p
"""


def find(connection: psycopg.Connection, name: str) -> Publication | None:
    """Read one publication, None when there is none of that name."""
    row = connection.execute(_PUBLICATIONS + " WHERE p.pubname = %s", [name]).fetchone()
    return _publication(row) if row else None


def all_of(connection: psycopg.Connection) -> list[Publication]:
    """Read all publications of the database, by name."""
    return [_publication(row) for row in connection.execute(_PUBLICATIONS + " ORDER BY p.pubname")]


def _publication(row: Sequence[Any]) -> Publication:
    *columns, schemas, generated_columns = row
    return Publication(*[*columns, tuple(schemas), generated_columns])


_COUNTS = """
SELECT p.pubname, count(g.relid)
  FROM pg_catalog.pg_publication p
  LEFT JOIN LATERAL pg_catalog.pg_get_publication_tables(p.pubname::text) g ON true
 GROUP BY p.pubname
"""


def table_counts(connection: psycopg.Connection) -> dict[str, int]:
    """Count the tables under whose names each publication of the database publishes, in one query."""
    return dict(connection.execute(_COUNTS).fetchall())


# With several publications the function drops partitions whose root is published via another one, as pgoutput does.
_PUBLISHED = """
SELECT c.oid, n.nspname, c.relname, c.relkind, c.relreplident,
       ARRAY(SELECT a.attname FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = c.oid AND a.attnum = ANY (g.attrs) ORDER BY a.attnum)::text[],
       pg_catalog.pg_get_expr(g.qual, c.oid),
       CASE c.relreplident
         WHEN 'f' THEN ARRAY(SELECT a.attname FROM pg_catalog.pg_attribute a
                              WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum)
         WHEN 'n' THEN '{}'
         ELSE ARRAY(SELECT a.attname
                      FROM pg_catalog.pg_index i,
                           unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
                      JOIN pg_catalog.pg_attribute a ON a.attnum = k.attnum
                     WHERE i.indrelid = c.oid AND a.attrelid = c.oid AND k.place <= i.indnkeyatts
                       AND CASE c.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END
                     ORDER BY k.place)
       END::text[],
       ARRAY(SELECT a.attname
               FROM pg_catalog.pg_index i,
                    unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
               JOIN pg_catalog.pg_attribute a ON a.attnum = k.attnum
              WHERE i.indrelid = c.oid AND a.attrelid = c.oid AND i.indisprimary AND k.place <= i.indnkeyatts
              ORDER BY k.place)::text[],
       s.rows, coalesce(s.size, 0)
  FROM pg_catalog.pg_get_publication_tables(VARIADIC %s::text[]) g
  JOIN pg_catalog.pg_class c ON c.oid = g.relid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  CROSS JOIN LATERAL (
       SELECT sum(l.reltuples) FILTER (WHERE l.reltuples >= 0)::bigint AS rows,
              sum(pg_catalog.pg_table_size(l.oid))::bigint AS size
         FROM (SELECT c.oid WHERE c.relkind <> 'p'
               UNION ALL
               SELECT t.relid FROM pg_catalog.pg_partition_tree(c.oid) t WHERE c.relkind = 'p' AND t.isleaf) leaf
         JOIN pg_catalog.pg_class l ON l.oid = leaf.oid) s
 ORDER BY n.nspname, c.relname, c.oid
"""


def published_tables(connection: psycopg.Connection, names: Sequence[str]) -> list[PublishedTable]:
    """Read what the publications publish together, by schema and name, in one query.

    Filters of several publications are joined by OR, and one without a filter lifts it, as the server does it. Raises
    OperationError for a publication that does not exist, and when the column lists of a table differ, which no stream
    can carry.
    """
    try:
        rows = connection.execute(_PUBLISHED, [list(names)]).fetchall()
    except psycopg.errors.UndefinedObject as error:
        raise OperationError(
            f"{error.diag.message_primary}", hint="CREATE PUBLICATION … FOR TABLE …", sqlstate=error.sqlstate
        ) from None
    tables: dict[int, PublishedTable] = {}
    for oid, schema, name, relkind, identity, columns, row_filter, identity_columns, key, estimate, size in rows:
        table = PublishedTable(
            oid,
            schema,
            name,
            relkind,
            tuple(columns),
            row_filter,
            identity,
            tuple(identity_columns),
            tuple(key),
            estimate,
            size,
        )
        seen = tables.get(oid)
        tables[oid] = table if seen is None else _both(seen, table)
    return list(tables.values())


def _both(first: PublishedTable, second: PublishedTable) -> PublishedTable:
    if first.columns != second.columns:
        raise OperationError(
            f"the publications have different column lists for {first.qualified}",
            hint="give the table the same column list in each of them",
        )
    if first.row_filter is None or second.row_filter is None:
        joined = None
    elif first.row_filter == second.row_filter:
        joined = first.row_filter
    else:
        joined = f"({first.row_filter}) OR ({second.row_filter})"
    return PublishedTable(**{**first.__dict__, "row_filter": joined})


@dataclass(frozen=True)
class Membership:
    """What ``published_tables`` does not say of a published table.

    ``partition_of`` is the partitioned table at the top of the tree that it is a part of, as ``(schema, name)``.
    ``left_out`` are the columns that a column list leaves out; generated ones are not among them, since which of those
    are published is a matter of the server's version and of publish_generated_columns.
    """

    partition_of: tuple[str, str] | None
    left_out: tuple[str, ...]


_MEMBERSHIPS = """
SELECT c.oid, n.nspname, r.relname,
       ARRAY(SELECT a.attname FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
                AND a.attnum <> ALL (g.attrs) ORDER BY a.attnum)::text[]
  FROM pg_catalog.pg_get_publication_tables(%s::text) g
  JOIN pg_catalog.pg_class c ON c.oid = g.relid
  LEFT JOIN pg_catalog.pg_class r ON c.relispartition AND r.oid = pg_catalog.pg_partition_root(c.oid)
  LEFT JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace
"""


def memberships(connection: psycopg.Connection, name: str) -> dict[int, Membership]:
    """Read what more there is to say of each table of one publication, by OID, in one query."""
    return {
        oid: Membership(None if root is None else (schema, root), tuple(left_out))
        for oid, schema, root, left_out in connection.execute(_MEMBERSHIPS, [name])
    }


@dataclass(frozen=True)
class Restriction:
    """A row filter or a column list, as it is written down for a table, and what of the table's identity it misses.

    ``filter_beyond_identity`` are the columns that the row filter reads and the replica identity does not hold,
    ``identity_beyond_list`` those of the identity that the column list leaves out. Where either holds anything, UPDATE
    and DELETE of the table fail once they are published (PostgreSQL documentation, CREATE PUBLICATION, Notes).
    """

    oid: int
    schema: str
    name: str
    filter_beyond_identity: tuple[str, ...]
    identity_beyond_list: tuple[str, ...]


# No function tells which columns an expression reads, but its text does (pg_node_tree).
_RESTRICTIONS = """
SELECT c.oid, n.nspname, c.relname,
       ARRAY(SELECT a.attname FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = c.oid AND a.attnum <> ALL (i.identity)
                AND a.attnum IN (SELECT m[1]::int2 FROM regexp_matches(r.prqual::text, ':varattno (\\d+)', 'g') m)
              ORDER BY a.attnum)::text[],
       ARRAY(SELECT a.attname FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = c.oid AND a.attnum = ANY (i.identity) AND a.attnum <> ALL (r.prattrs::int2[])
              ORDER BY a.attnum)::text[]
  FROM pg_catalog.pg_publication_rel r
  JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  CROSS JOIN LATERAL (
       SELECT CASE c.relreplident
                WHEN 'f' THEN ARRAY(SELECT a.attnum FROM pg_catalog.pg_attribute a
                                     WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
                ELSE ARRAY(SELECT unnest((x.indkey::int2[])[0:x.indnkeyatts - 1])
                             FROM pg_catalog.pg_index x
                            WHERE x.indrelid = c.oid
                              AND CASE c.relreplident WHEN 'd' THEN x.indisprimary WHEN 'i' THEN x.indisreplident END)
              END AS identity) i
 WHERE r.prpubid = %s AND (r.prqual IS NOT NULL OR r.prattrs IS NOT NULL)
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication_namespace s
                    WHERE s.pnpubid = r.prpubid AND s.pnnspid = c.relnamespace)
 ORDER BY n.nspname, c.relname
"""


def restrictions(connection: psycopg.Connection, publication: int) -> list[Restriction]:
    """Read the row filters and column lists that one publication, given by its OID, applies; in one query."""
    return [
        Restriction(oid, schema, name, tuple(beyond), tuple(missing))
        for oid, schema, name, beyond, missing in connection.execute(_RESTRICTIONS, [publication])
    ]


def owned(connection: psycopg.Connection, publication: int) -> bool:
    """Say whether the connected role may do with a publication, given by its OID, what its owner may."""
    query = "SELECT pg_has_role(p.pubowner, 'USAGE') FROM pg_catalog.pg_publication p WHERE p.oid = %s"
    row = connection.execute(query, [publication]).fetchone()
    return row is not None and bool(row[0])
