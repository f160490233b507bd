"""What the role may read: CONNECT, USAGE on the schemas, SELECT on the published tables and on no other."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from pgrepl.names import quote_ident
from pgrepl.provision.inventory import Session, Table, Tables
from pgrepl.provision.publication import Content
from pgrepl.provision.steps import Statement, Step

if TYPE_CHECKING:
    import psycopg

# A role that is yet to be made can do what PUBLIC can.
_PUBLIC = "public"

_ROLE_OID = "SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = %s"
_CONNECT = "SELECT has_database_privilege(%s::name, current_database(), 'CONNECT')"
_USAGE = """
SELECT n.oid, has_schema_privilege(%s::name, n.oid, 'USAGE'), has_schema_privilege(n.oid, 'USAGE WITH GRANT OPTION')
FROM pg_catalog.pg_namespace n WHERE n.oid = ANY (%s::oid[])
"""
_SELECT = """
SELECT c.oid, has_table_privilege(%s::name, c.oid, 'SELECT'), has_table_privilege(c.oid, 'SELECT WITH GRANT OPTION')
FROM pg_catalog.pg_class c WHERE c.oid = ANY (%s::oid[])
"""
_DEFAULTS = """
SELECT pg_catalog.pg_get_userbyid(d.defaclrole)::text, d.defaclnamespace
FROM pg_catalog.pg_default_acl d, aclexplode(d.defaclacl) a
WHERE d.defaclobjtype = 'r' AND a.privilege_type = 'SELECT' AND a.grantee IN (0, %s::oid)
"""


def grant_steps(
    conn: psycopg.Connection, session: Session, role: str, *, role_comes: bool, content: Content, tables: Tables
) -> list[Step]:
    """Plan the grants on what the publication will cover.

    ``role_comes`` is whether the role is there, or will be by the steps before; if not, all of this is for somebody
    else.
    Where whole schemas are published, future tables of every owner who has one there now are readable, too.
    """
    row = conn.execute(_ROLE_OID, [role]).fetchone()
    role_oid = row[0] if row else None
    who = role if row else _PUBLIC
    published = content.published(tables)
    steps = [_connect(conn, session, role, who, role_comes)]
    steps += _usage(conn, role, who, published, role_comes)
    steps += _select(conn, role, who, published, role_comes)
    if content.all_tables or content.schemas:
        future = [table for table in published if content.all_tables or table.schema_oid in content.schemas]
        steps += _defaults(conn, session, role, role_oid, future, role_comes)
    return steps


def _connect(conn: psycopg.Connection, session: Session, role: str, who: str, role_comes: bool) -> Step:
    has = conn.execute(_CONNECT, [who]).fetchone()
    statement = f"GRANT CONNECT ON DATABASE {quote_ident(session.database)} TO {quote_ident(role)}"
    return grant_step(
        bool(has and has[0]),
        session.grants_connect and role_comes,
        session.database,
        "CONNECT on the database",
        statement,
    )


def _usage(conn: psycopg.Connection, role: str, who: str, published: list[Table], role_comes: bool) -> list[Step]:
    schemas = {table.schema_oid: table.schema for table in published}
    return [
        grant_step(
            has,
            may_grant and role_comes,
            schemas[oid],
            "USAGE on the schema",
            f"GRANT USAGE ON SCHEMA {quote_ident(schemas[oid])} TO {quote_ident(role)}",
        )
        for oid, has, may_grant in sorted(
            conn.execute(_USAGE, [who, list(schemas)]).fetchall(), key=lambda row: schemas[row[0]]
        )
    ]


def _select(conn: psycopg.Connection, role: str, who: str, published: list[Table], role_comes: bool) -> list[Step]:
    state = {oid: (has, may) for oid, has, may in conn.execute(_SELECT, [who, [table.oid for table in published]])}
    steps = []
    # Tables come by schema; one step for each schema and state keeps the list short.
    for schema, in_schema in groupby(published, key=lambda table: table.schema):
        by_state: dict[tuple[bool, bool], list[Table]] = {}
        for table in in_schema:
            has, may = state.get(table.oid, (False, False))
            by_state.setdefault((has, has or (may and role_comes)), []).append(table)
        for (has, may), group in by_state.items():
            names = ", ".join(table.qualified for table in group)
            steps.append(
                grant_step(
                    has,
                    may,
                    schema,
                    "SELECT on " + ", ".join(table.name for table in group),
                    f"GRANT SELECT ON TABLE {names} TO {quote_ident(role)}",
                )
            )
    return steps


def _defaults(
    conn: psycopg.Connection, session: Session, role: str, role_oid: int | None, tables: list[Table], role_comes: bool
) -> list[Step]:
    given = set(conn.execute(_DEFAULTS, [role_oid or 0]).fetchall())
    places = {(table.schema, table.owner): table for table in tables if table.owner != role}
    return [
        grant_step(
            (owner, table.schema_oid) in given or (owner, 0) in given,
            (session.superuser or table.owned) and role_comes,
            schema,
            f"SELECT on future tables of {owner}",
            f"ALTER DEFAULT PRIVILEGES FOR ROLE {quote_ident(owner)} IN SCHEMA {quote_ident(schema)}"
            f" GRANT SELECT ON TABLES TO {quote_ident(role)}",
        )
        for (schema, owner), table in sorted(places.items())
    ]


def grant_step(has: bool, may: bool, where: str, summary: str, statement: str) -> Step:
    """Make a step of one grant: there already, or planned, or for somebody else."""
    if has:
        return Step("grant", "exists", where, summary)
    return Step("grant", "planned" if may else "needs_superuser", where, summary, (Statement(statement),))
