"""Types that are not built in: which of the known kinds their text follows."""

from __future__ import annotations

from collections.abc import Collection

import psycopg

from pgrepl.pgoutput.types import BUILTIN, FIRST_UNSTABLE_OID, TEXT, Kind, ValueType

# A domain is its base type; an array is what some type names as its array type, which int2vector for one is not.
_RESOLVE = """
WITH RECURSIVE wanted (oid) AS (
    SELECT unnest(%s::oid[])
  UNION
    SELECT next.oid
      FROM wanted w
      JOIN pg_catalog.pg_type t ON t.oid = w.oid
     CROSS JOIN LATERAL (
           SELECT t.typbasetype AS oid WHERE t.typtype = 'd'
            UNION ALL
           SELECT e.oid FROM pg_catalog.pg_type e WHERE e.typarray = t.oid) next
)
SELECT t.oid, CASE WHEN t.typtype = 'd' THEN t.typbasetype END, e.oid, e.typdelim::text
  FROM wanted w
  JOIN pg_catalog.pg_type t ON t.oid = w.oid
  LEFT JOIN pg_catalog.pg_type e ON e.typarray = t.oid
"""


def resolve(connection: psycopg.Connection, oids: Collection[int]) -> dict[int, ValueType]:
    """Say of each type what its text means; a type that is gone from the catalog is text."""
    unknown = [oid for oid in set(oids) if oid >= FIRST_UNSTABLE_OID]
    rows = connection.execute(_RESOLVE, [unknown]).fetchall() if unknown else []
    catalog = {oid: (base, element, delimiter) for oid, base, element, delimiter in rows}

    def value_type(oid: int) -> ValueType:
        if oid < FIRST_UNSTABLE_OID:
            return BUILTIN.get(oid, TEXT)
        base, element, delimiter = catalog.get(oid, (None, None, None))
        if base is not None:
            return value_type(base)
        if element is not None:
            return ValueType(Kind.ARRAY, value_type(element), delimiter)
        return TEXT

    return {oid: value_type(oid) for oid in oids}


def names(connection: psycopg.Connection, kinds: Collection[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """Give the SQL names of types with their modifiers, such as ``numeric(12,2)``; types that are gone are absent."""
    oids, modifiers = [oid for oid, _ in kinds], [modifier for _, modifier in kinds]
    rows = connection.execute(
        """
        SELECT w.oid, w.modifier, pg_catalog.format_type(w.oid, w.modifier)
          FROM unnest(%s::oid[], %s::int4[]) AS w (oid, modifier)
          JOIN pg_catalog.pg_type t ON t.oid = w.oid
        """,
        [oids, modifiers],
    )
    return {(oid, modifier): name for oid, modifier, name in rows}
