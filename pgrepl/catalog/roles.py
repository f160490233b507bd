"""What a role may do. Tables are asked for by OID, since by name it fails where the asker lacks USAGE on the schema."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psycopg

# Managed services keep the REPLICATION attribute to themselves and let these roles stand for it.
REPLICATION_ROLES = ("rds_replication", "rds_superuser", "mdb_replication")


@dataclass(frozen=True)
class RoleReplication:
    """A role, and by which right it may replicate.

    ``replication`` and ``superuser`` are its own attributes; ``through`` names the roles of a managed service that it
    is a member of and that stand for REPLICATION there.
    """

    oid: int
    name: str
    can_login: bool
    superuser: bool
    replication: bool
    bypass_rls: bool
    through: tuple[str, ...]

    @property
    def can_replicate(self) -> bool:
        """Whether the catalog says that it may open a replication connection and use slots."""
        return self.superuser or self.replication or bool(self.through)


@dataclass(frozen=True)
class TablePrivileges:
    """What a role may read of a table.

    ``unreadable_columns`` are those without SELECT, be it on the table or on the column; ``schema_usage`` is needed
    too.
    """

    oid: int
    schema_usage: bool
    unreadable_columns: tuple[str, ...]


_ROLE = """
SELECT r.oid, r.rolname::text, r.rolcanlogin, r.rolsuper, r.rolreplication, r.rolbypassrls,
       ARRAY(SELECT g.rolname::text FROM pg_catalog.pg_roles g
             WHERE g.rolname = ANY (%s) AND pg_has_role(r.oid, g.oid, 'MEMBER') ORDER BY 1)
FROM pg_catalog.pg_roles r
WHERE r.rolname = coalesce(%s::text, current_user)
"""

_PRIVILEGES = """
SELECT c.oid,
       has_schema_privilege(r.oid, c.relnamespace, 'USAGE'),
       CASE WHEN has_table_privilege(r.oid, c.oid, 'SELECT') THEN '{}'
            ELSE ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
                       WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                         AND NOT has_column_privilege(r.oid, c.oid, a.attnum, 'SELECT')
                       ORDER BY a.attnum) END
FROM pg_catalog.pg_class c, pg_catalog.pg_roles r
WHERE c.oid = ANY (%s::oid[]) AND r.oid = %s::oid
"""


def can_replicate(conn: psycopg.Connection, role: str | None = None) -> RoleReplication | None:
    """Read a role, by default the connected one, with its right to replicate; None when there is no such role."""
    row = conn.execute(_ROLE, [list(REPLICATION_ROLES), role]).fetchone()
    if row is None:
        return None
    oid, name, can_login, superuser, replication, bypass_rls, through = row
    return RoleReplication(oid, name, can_login, superuser, replication, bypass_rls, tuple(through))


def table_privileges(conn: psycopg.Connection, role_oid: int, tables: Sequence[int]) -> dict[int, TablePrivileges]:
    """Read what a role may read of tables, all given by OID; a table that is gone by now is left out."""
    rows = conn.execute(_PRIVILEGES, [list(tables), role_oid]).fetchall()
    return {oid: TablePrivileges(oid, usage, tuple(columns)) for oid, usage, columns in rows}


@dataclass(frozen=True)
class Account:
    """What a role may do in this database, and for how long.

    ``valid_for`` is in seconds from now, None for ever: it is its password that expires. ``connection_limit`` is -1
    for none; ``connections`` count those it has on the server. ``monitors`` says that it is in pg_monitor,
    ``bootstrap`` that initdb made it, so that it cannot be anything but a superuser.
    """

    connects: bool
    creates: bool
    valid_for: float | None
    connection_limit: int
    connections: int
    monitors: bool
    bootstrap: bool


_ACCOUNT = """
SELECT pg_catalog.has_database_privilege(r.oid, d.oid, 'CONNECT'),
       pg_catalog.has_database_privilege(r.oid, d.oid, 'CREATE'),
       CASE WHEN isfinite(r.rolvaliduntil)
            THEN extract(epoch FROM r.rolvaliduntil - pg_catalog.clock_timestamp())::float8 END,
       r.rolconnlimit,
       (SELECT count(*) FROM pg_catalog.pg_stat_activity a WHERE a.usesysid = r.oid),
       pg_catalog.pg_has_role(r.oid, 'pg_monitor', 'USAGE'),
       r.oid = 10
  FROM pg_catalog.pg_roles r, pg_catalog.pg_database d
 WHERE r.oid = %s::oid AND d.datname = current_database()
"""

_HIDDEN_ROWS = """
SELECT c.oid
  FROM pg_catalog.pg_class c, pg_catalog.pg_roles r
 WHERE c.oid = ANY (%s::oid[]) AND r.oid = %s::oid
   AND c.relrowsecurity AND NOT r.rolbypassrls AND NOT r.rolsuper
   AND (c.relforcerowsecurity OR NOT pg_catalog.pg_has_role(r.oid, c.relowner, 'USAGE'))
"""

_NOT_OWNED = """
SELECT c.oid FROM pg_catalog.pg_class c
 WHERE c.oid = ANY (%s::oid[]) AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE')
"""


def account(conn: psycopg.Connection, role_oid: int) -> Account | None:
    """Read what a role may do; None when it is gone."""
    row = conn.execute(_ACCOUNT, [role_oid]).fetchone()
    return None if row is None else Account(*row)


def tables_with_policies(conn: psycopg.Connection, role_oid: int, tables: Sequence[int]) -> set[int]:
    """Say of which tables row security shows a role only what policies let it see."""
    return {oid for (oid,) in conn.execute(_HIDDEN_ROWS, [list(tables), role_oid])}


def tables_of_others(conn: psycopg.Connection, tables: Sequence[int]) -> set[int]:
    """Say which tables the connected role does not own, so that it may not publish them."""
    return {oid for (oid,) in conn.execute(_NOT_OWNED, [list(tables)])}


@dataclass(frozen=True)
class TableInPublic:
    """A table in schema public, and what a role may do about it; ``writes`` is None when it is not there."""

    writes: bool | None
    creates: bool


_TABLE_IN_PUBLIC = """
SELECT (SELECT pg_catalog.has_schema_privilege(r.oid, n.oid, 'USAGE')
               AND pg_catalog.has_table_privilege(r.oid, c.oid, 'SELECT')
               AND pg_catalog.has_table_privilege(r.oid, c.oid, 'INSERT')
               AND pg_catalog.has_table_privilege(r.oid, c.oid, 'UPDATE')
               AND pg_catalog.has_table_privilege(r.oid, c.oid, 'DELETE')
          FROM pg_catalog.pg_class c WHERE c.relnamespace = n.oid AND c.relname = %s AND c.relkind IN ('r', 'p')),
       pg_catalog.has_schema_privilege(r.oid, n.oid, 'CREATE')
  FROM pg_catalog.pg_roles r, pg_catalog.pg_namespace n
 WHERE r.oid = %s::oid AND n.nspname = 'public'
"""


def table_in_public(conn: psycopg.Connection, role_oid: int, table: str) -> TableInPublic:
    """Ask whether a role may write a table in schema public, or make it."""
    row = conn.execute(_TABLE_IN_PUBLIC, [table, role_oid]).fetchone()
    return TableInPublic(*row) if row else TableInPublic(None, False)
