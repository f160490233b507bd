"""What a role lacks of what it needs on schema ``etl`` to keep its state there."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import psycopg

# supabase/etl creates what is there already, at each start, if it does not exist: that needs CREATE all the same.
_NEEDED = [
    ("replication_state", "SELECT, INSERT, UPDATE, DELETE"),
    ("table_schemas", "SELECT, INSERT, UPDATE, DELETE"),
    ("table_columns", "SELECT, INSERT, UPDATE, DELETE"),
    ("destination_tables_metadata", "SELECT, INSERT, UPDATE, DELETE"),
    ("_sqlx_migrations", "SELECT"),
    ("pgrepl_pipelines", "SELECT, INSERT, UPDATE, DELETE"),
]
_FUNCTIONS = ["describe_table_schema", "describe_table_identity"]


class Missing(NamedTuple):
    """Privileges that a role has not got, and on what; both as GRANT writes them."""

    privileges: str
    object: str


_MISSING = """
SELECT string_agg(p, ', ' ORDER BY o), on_what
FROM (SELECT p, o, 'SCHEMA etl' AS on_what, 0 AS place, has_schema_privilege(%(role)s::oid, n.oid, p) AS granted
      FROM pg_catalog.pg_namespace n, unnest(ARRAY['USAGE', 'CREATE']) WITH ORDINALITY AS needed (p, o)
      WHERE n.nspname = 'etl'
      UNION ALL
      SELECT p, o, 'etl.' || c.relname, needed.place::int, has_table_privilege(%(role)s::oid, c.oid, p)
      FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relkind = 'r'
      JOIN unnest(%(tables)s::text[], %(privileges)s::text[]) WITH ORDINALITY AS needed (name, privileges, place)
           ON needed.name = c.relname
      CROSS JOIN unnest(string_to_array(needed.privileges, ', ')) WITH ORDINALITY AS each (p, o)
      WHERE n.nspname = 'etl'
      UNION ALL
      SELECT 'EXECUTE', 1, format('FUNCTION etl.%%I(%%s)', f.proname, pg_get_function_identity_arguments(f.oid)), 1000,
             has_function_privilege(%(role)s::oid, f.oid, 'EXECUTE')
      FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_proc f ON f.pronamespace = n.oid
      WHERE n.nspname = 'etl' AND f.proname = ANY (%(functions)s)) needs
WHERE NOT granted
GROUP BY place, on_what
ORDER BY place, on_what
"""


def missing(conn: psycopg.Connection, role_oid: int) -> list[Missing]:
    """List what the role with this OID lacks on what is there; any role that can connect may ask."""
    parameters = {
        "role": role_oid,
        "tables": [name for name, _ in _NEEDED],
        "privileges": [privileges for _, privileges in _NEEDED],
        "functions": _FUNCTIONS,
    }
    return [Missing(*row) for row in conn.execute(_MISSING, parameters)]
