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
