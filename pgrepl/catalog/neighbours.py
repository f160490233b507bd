"""What stands beside published tables and is not in the stream: other kinds of relations, children, sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psycopg


@dataclass(frozen=True)
class PassedBy:
    """A relation in the reach of a publication that cannot be published; ``partition``: a part of a published table."""

    schema: str
    name: str
    kind: str
    partition: bool


@dataclass(frozen=True)
class Child:
    """A table that inherits, other than as a partition, from a published one and is not published itself."""

    oid: int
    schema: str
    name: str
    parent: str
    publication: str


@dataclass(frozen=True)
class UsedSequence:
    """A sequence that belongs to a column; ``last_value`` is None where it was never used, or may not be read."""

    schema: str
    name: str
    last_value: int | None


_PASSED_BY = """
WITH RECURSIVE p AS (SELECT * FROM pg_catalog.pg_publication WHERE oid = ANY (%s::oid[])),
below AS (
    SELECT r.prrelid AS oid FROM p JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid
  UNION
    SELECT i.inhrelid FROM below JOIN pg_catalog.pg_inherits i ON i.inhparent = below.oid
      JOIN pg_catalog.pg_class k ON k.oid = i.inhrelid AND k.relispartition)
SELECT n.nspname::text, c.relname::text,
       CASE WHEN c.relkind = 'f' THEN 'foreign table' WHEN c.relkind = 'm' THEN 'materialised view'
            ELSE 'unlogged table' END,
       c.relispartition
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE (c.relkind IN ('f', 'm') OR c.relkind = 'r' AND c.relpersistence = 'u')
   AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
   AND (EXISTS (SELECT FROM p WHERE p.puballtables)
        OR EXISTS (SELECT FROM p JOIN pg_catalog.pg_publication_namespace x ON x.pnpubid = p.oid
                    WHERE x.pnnspid = c.relnamespace)
        OR c.oid IN (SELECT oid FROM below))
 ORDER BY 1, 2
"""

_CHILDREN = """
WITH RECURSIVE published AS (
    SELECT p.oid AS publication, p.pubname::text, g.relid
      FROM pg_catalog.pg_publication p
     CROSS JOIN LATERAL pg_catalog.pg_get_publication_tables(p.pubname::text) g
     WHERE p.oid = ANY (%s::oid[])),
below AS (
    SELECT publication, pubname, relid AS parent, relid AS oid FROM published
  UNION
    SELECT b.publication, b.pubname, b.parent, i.inhrelid
      FROM below b
      JOIN pg_catalog.pg_inherits i ON i.inhparent = b.oid
      JOIN pg_catalog.pg_class k ON k.oid = i.inhrelid
     WHERE NOT k.relispartition)
SELECT DISTINCT ON (n.nspname, c.relname, b.pubname)
       c.oid, n.nspname::text, c.relname::text, pn.nspname || '.' || pc.relname, b.pubname
  FROM below b
  JOIN pg_catalog.pg_class c ON c.oid = b.oid AND c.relkind = 'r' AND c.relpersistence = 'p'
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_class pc ON pc.oid = b.parent
  JOIN pg_catalog.pg_namespace pn ON pn.oid = pc.relnamespace
 WHERE NOT EXISTS (SELECT FROM published x WHERE x.publication = b.publication AND x.relid = b.oid)
 ORDER BY n.nspname, c.relname, b.pubname
"""

# An owned sequence of a serial column, or an identity column's.
_SEQUENCES = """
SELECT n.nspname::text, c.relname::text,
       CASE WHEN pg_catalog.has_sequence_privilege(c.oid, 'USAGE, SELECT')
            THEN pg_catalog.pg_sequence_last_value(c.oid) END
  FROM pg_catalog.pg_depend d
  JOIN pg_catalog.pg_class c ON c.oid = d.objid AND c.relkind = 'S'
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass
   AND d.refobjid = ANY (%s::oid[]) AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
 ORDER BY 1, 2
"""


def passed_by(conn: psycopg.Connection, publications: Sequence[int]) -> list[PassedBy]:
    """List what publications, given by OID, would have if it could be published."""
    return [PassedBy(*row) for row in conn.execute(_PASSED_BY, [list(publications)])]


def unpublished_children(conn: psycopg.Connection, publications: Sequence[int]) -> list[Child]:
    """List the children that were left out."""
    return [Child(*row) for row in conn.execute(_CHILDREN, [list(publications)])]


def sequences(conn: psycopg.Connection, tables: Sequence[int]) -> list[UsedSequence]:
    """List the sequences of columns of these tables."""
    return [UsedSequence(*row) for row in conn.execute(_SEQUENCES, [list(tables)])]
