"""What was changed of tables while a slot was being built, which PostgreSQL's decoding may never learn."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import psycopg


@dataclass(frozen=True)
class Change:
    """A table, type or publication that was changed; without ``definition`` a table was truncated or rewritten."""

    what: str
    definition: bool


def next_xid(connection: psycopg.Connection) -> str:
    """Read the transaction id from which on all are given out later, as a number of 64 bits."""
    row = connection.execute("SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text").fetchone()
    assert row is not None
    return str(row[0])


# A frozen row keeps its old xmin, which may look younger than it is: then its age is below zero.
_CHANGED = """
WITH RECURSIVE leaves (oid) AS (
       SELECT w FROM unnest(%(oids)s::oid[]) w
        UNION
       SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN leaves l ON i.inhparent = l.oid),
     types (oid) AS (
       SELECT a.atttypid FROM pg_catalog.pg_attribute a JOIN leaves l ON a.attrelid = l.oid WHERE a.attnum > 0
        UNION
       SELECT x.oid FROM types s JOIN pg_catalog.pg_type t ON t.oid = s.oid
        CROSS JOIN LATERAL (
              SELECT t.typelem UNION ALL SELECT t.typbasetype
               UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
               UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a
                          WHERE a.attrelid = t.typrelid AND a.attnum > 0) x (oid)
        WHERE x.oid <> 0)
SELECT DISTINCT f.what, f.definition
  FROM (SELECT pg_catalog.format('%%I.%%I', n.nspname, c.relname), false, c.xmin
          FROM leaves l JOIN pg_catalog.pg_class c ON c.oid = l.oid
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         UNION ALL
        SELECT a.attrelid::regclass::text, true, a.xmin
          FROM leaves l JOIN pg_catalog.pg_attribute a ON a.attrelid = l.oid WHERE a.attnum > 0
         UNION ALL
        SELECT i.indrelid::regclass::text, true, i.xmin
          FROM leaves l JOIN pg_catalog.pg_index i ON i.indrelid = l.oid AND (i.indisprimary OR i.indisreplident)
         UNION ALL
        SELECT t.oid::regtype::text, true, e.xmin
          FROM types t JOIN pg_catalog.pg_enum e ON e.enumtypid = t.oid
         UNION ALL
        SELECT t.oid::regtype::text, true, a.xmin
          FROM types t JOIN pg_catalog.pg_type y ON y.oid = t.oid
          JOIN pg_catalog.pg_attribute a ON a.attrelid = y.typrelid WHERE a.attnum > 0
         UNION ALL
        SELECT pg_catalog.format('publication %%I', p.pubname), true, p.xmin
          FROM pg_catalog.pg_publication p WHERE p.pubname = ANY (%(publications)s)
         UNION ALL
        SELECT pg_catalog.format('publication %%I', p.pubname), true, r.xmin
          FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
         WHERE p.pubname = ANY (%(publications)s)
         UNION ALL
        SELECT pg_catalog.format('publication %%I', p.pubname), true, s.xmin
          FROM pg_catalog.pg_publication_namespace s JOIN pg_catalog.pg_publication p ON p.oid = s.pnpubid
         WHERE p.pubname = ANY (%(publications)s)) f (what, definition, xmin)
 WHERE pg_catalog.age(f.xmin) BETWEEN 0 AND pg_catalog.age(%(since)s::xid8::xid)
 ORDER BY 1
"""


def changed_since(
    connection: psycopg.Connection, since: str, publications: Collection[str], oids: Collection[int]
) -> list[Change]:
    """Find tables, types of their columns and publications that transactions from ``since`` on have changed.

    With a table its partitions count. A transaction may be decoded with the catalog as it was before such a change, if
    the change was made while the slot was being built (docs/engine.md).
    """
    parameters = {"since": since, "publications": list(publications), "oids": list(oids)}
    return [Change(*row) for row in connection.execute(_CHANGED, parameters)]
