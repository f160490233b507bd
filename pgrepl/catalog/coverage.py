"""Which tables a publication covers, also those that it does not name: by their schema, or as parts of others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psycopg


@dataclass(frozen=True)
class Partition:
    """A partition, and the partitioned table at the top, ``schema.table``."""

    schema: str
    name: str
    root: str


# Whatever is published, the tables above it in which a change may be written, and all their leaves below.
_COVERED = """
SELECT t.relid
  FROM pg_catalog.pg_publication p
 CROSS JOIN LATERAL pg_catalog.pg_get_publication_tables(p.pubname::text) g
 CROSS JOIN LATERAL (SELECT g.relid UNION SELECT x.relid FROM pg_catalog.pg_partition_tree(g.relid) x
                     UNION SELECT a.relid FROM pg_catalog.pg_partition_ancestors(g.relid) a) t
 WHERE p.oid = %s::oid
"""

_MISSING_PARTITIONS = """
WITH published AS (
    SELECT t.relid AS oid, pg_catalog.pg_partition_root(g.relid) AS root
      FROM pg_catalog.pg_publication p
     CROSS JOIN LATERAL pg_catalog.pg_get_publication_tables(p.pubname::text) g
     CROSS JOIN LATERAL (SELECT g.relid UNION SELECT x.relid FROM pg_catalog.pg_partition_tree(g.relid) x) t
     WHERE p.oid = %s::oid)
SELECT n.nspname::text, c.relname::text, rn.nspname || '.' || rc.relname
  FROM (SELECT DISTINCT root FROM published WHERE root IS NOT NULL) r
 CROSS JOIN LATERAL pg_catalog.pg_partition_tree(r.root) leaf
  JOIN pg_catalog.pg_class c ON c.oid = leaf.relid AND c.relkind = 'r' AND c.relpersistence = 'p'
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_class rc ON rc.oid = r.root
  JOIN pg_catalog.pg_namespace rn ON rn.oid = rc.relnamespace
 WHERE leaf.isleaf AND NOT EXISTS (SELECT FROM published x WHERE x.oid = leaf.relid)
 ORDER BY 1, 2
"""

_SCHEMAS = """
SELECT n.nspname::text FROM pg_catalog.pg_publication_namespace x JOIN pg_catalog.pg_namespace n ON n.oid = x.pnnspid
 WHERE x.pnpubid = %s::oid ORDER BY 1
"""


def covered(conn: psycopg.Connection, publication: int) -> set[int]:
    """List the tables whose changes, or some of them, a publication has, and the partitioned tables above them."""
    return {oid for (oid,) in conn.execute(_COVERED, [publication])}


def missing_partitions(conn: psycopg.Connection, publication: int) -> list[Partition]:
    """List the partitions that are not published while others of the same partitioned table are."""
    return [Partition(*row) for row in conn.execute(_MISSING_PARTITIONS, [publication])]


def schemas(conn: psycopg.Connection, publication: int) -> list[str]:
    """List the schemas whose tables a publication publishes as such."""
    return [name for (name,) in conn.execute(_SCHEMAS, [publication])]
