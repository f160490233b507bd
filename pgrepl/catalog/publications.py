"""Publications and what they publish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from pgrepl.errors import OperationError


@dataclass(frozen=True)
class Publication:
    """One row of pg_publication.

    ``generated`` says how generated columns are published, ``none`` or ``stored``, and is None below 18.
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
    generated: str | None


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
       CASE to_jsonb(p)->>'pubgencols' WHEN 'n' THEN 'none' WHEN 's' THEN 'stored' END
  FROM pg_catalog.pg_publication p
"""


def find(connection: psycopg.Connection, name: str) -> Publication | None:
    """Read one publication, None when there is none of that name."""
    row = connection.execute(_PUBLICATIONS + " WHERE p.pubname = %s", [name]).fetchone()
    return Publication(*row) if row else None


def all_of(connection: psycopg.Connection) -> list[Publication]:
    """Read all publications of the database, by name."""
    return [Publication(*row) for row in connection.execute(_PUBLICATIONS + " ORDER BY p.pubname")]


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
         FROM pg_catalog.pg_class l
        WHERE l.oid = c.oid AND c.relkind <> 'p'
           OR c.relkind = 'p'
              AND l.oid IN (SELECT t.relid FROM pg_catalog.pg_partition_tree(c.oid) t WHERE t.isleaf)) s
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
