"""May the role do what replication needs?"""

from __future__ import annotations

from collections.abc import Iterator

from pgrepl.catalog import roles
from pgrepl.catalog.roles import table_privileges
from pgrepl.doctor.check import Check
from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status
from pgrepl.errors import PgreplError
from pgrepl.names import quote_ident


class Replication(Check):
    """The role has REPLICATION, is a superuser, or is a member of what a service puts in the place of both.

    On RDS and Aurora the attribute stays false, and rds_replication is granted instead. When a replication connection
    of this role worked, that counts more than what the catalog says.

    Risk: without it neither a replication connection nor a slot can be had (SQLSTATE 42501).

    Fix: give it REPLICATION, or the role of the provider.

    See: https://www.postgresql.org/docs/current/logical-replication-security.html
    """

    id = "role.replication"
    title = "the role may replicate"

    def run(self, context: Context) -> Iterator[Finding]:
        role, name = context.role, context.role_name
        if role is None:
            yield self.finding(
                Status.FAIL, f"there is no role {name}", object=name, fix=context.provider.create_role(name)
            )
            return
        evidence = {"superuser": role.superuser, "replication": role.replication, "member_of": list(role.through)}
        if role.superuser:
            yield self.finding(Status.PASS, f"{name} is a superuser", evidence)
        elif role.replication:
            yield self.finding(Status.PASS, f"{name} has REPLICATION", evidence)
        elif role.through:
            yield self.finding(Status.PASS, f"{name} is a member of {', '.join(role.through)}", evidence)
        elif context.role_is_connected and not isinstance(context.replication, PgreplError):
            yield self.finding(Status.PASS, f"a replication connection as {name} works", evidence)
        else:
            yield self.finding(
                Status.FAIL,
                f"{name} has no right to replicate",
                evidence,
                object=name,
                fix=context.provider.allow_replication(name),
            )


class Select(Check):
    """The role may read every published table: USAGE on its schema, SELECT on it or on its published columns.

    The snapshot needs this. The stream does not: a role with REPLICATION receives the changes of tables that it may
    not read.

    Risk: the snapshot of the table fails (SQLSTATE 42501).

    Fix: grant it. Default privileges do the same for tables made later.

    See: https://www.postgresql.org/docs/current/logical-replication-security.html
    """

    id = "role.select"
    title = "the role may read the published tables"
    needs = ("conn.sql", "server.version")

    def run(self, context: Context) -> Iterator[Finding]:
        role, name = context.role, context.role_name
        if role is None:
            yield self.finding(Status.SKIP, f"there is no role {name}")
            return
        if not context.published_oids:
            yield self.finding(Status.SKIP, "no published table to read")
            return
        privileges = table_privileges(context.conn, role.oid, context.published_oids)
        at_fault: set[int] = set()
        for table in (table for tables in context.published.values() for table in tables):
            granted = privileges.get(table.oid)
            if granted is None or table.oid in at_fault:
                continue
            columns = [column for column in table.columns if column in granted.unreadable_columns]
            if granted.schema_usage and not columns:
                continue
            at_fault.add(table.oid)
            missing, fix = [], []
            grantee = quote_ident(name)
            if not granted.schema_usage:
                missing.append(f"USAGE on schema {table.schema}")
                fix.append(Fix("sql", f"GRANT USAGE ON SCHEMA {quote_ident(table.schema)} TO {grantee};"))
            if columns:
                missing.append("SELECT" if len(columns) == len(table.columns) else f"SELECT on {', '.join(columns)}")
                relation = f"{quote_ident(table.schema)}.{quote_ident(table.name)}"
                fix.append(Fix("sql", f"GRANT SELECT ON {relation} TO {grantee};"))
            yield self.finding(
                Status.FAIL,
                f"{name} has no {' and no '.join(missing)}",
                {"schema_usage": granted.schema_usage, "unreadable_columns": columns},
                object=table.qualified,
                fix=fix,
            )
        if not at_fault:
            count = len(privileges)
            tables = "the published table" if count == 1 else f"all {count} published tables"
            yield self.finding(Status.PASS, f"{name} may read {tables}", {"tables": count})


class RowSecurity(Check):
    """Row security hides no row of the published tables from the role.

    Policies hold for everyone but superusers, roles with BYPASSRLS and the table's owner, and for the owner, too,
    where row security is forced. Computed from the catalog, so that it can be asked for any role.

    Risk: a snapshot would hold only the rows that the policies let the role see, without a word; pgrepl sets
    ``row_security`` off, so that its snapshot fails instead. The stream is not filtered.

    Fix: give the role BYPASSRLS, which a superuser must do.

    See: https://www.postgresql.org/docs/current/ddl-rowsecurity.html
    """

    id = "role.rls"
    title = "row security hides nothing from the role"
    needs = ("conn.sql", "server.version")

    def run(self, context: Context) -> Iterator[Finding]:
        role, name = context.role, context.role_name
        if role is None or not context.published_oids:
            missing = "no published table to read" if role else f"there is no role {name}"
            yield self.finding(Status.SKIP, missing)
            return
        hidden = roles.tables_with_policies(context.conn, role.oid, context.published_oids)
        shown: set[int] = set()
        for table in (table for tables in context.published.values() for table in tables):
            if table.oid in hidden - shown:
                shown.add(table.oid)
                yield self.finding(
                    Status.FAIL,
                    f"its policies hold for {name}: a snapshot would not have all rows",
                    {"bypass_rls": role.bypass_rls},
                    object=table.qualified,
                    fix=[Fix("sql", f"ALTER ROLE {quote_ident(name)} BYPASSRLS;")],
                )
        if not hidden:
            yield self.finding(Status.PASS, f"{name} sees every row")
