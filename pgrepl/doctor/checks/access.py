"""Does the role get in, for how long, and may it make what has to be made?"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from pgrepl.catalog import roles
from pgrepl.catalog.origin import BOOKMARKS
from pgrepl.doctor.check import Check
from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status
from pgrepl.names import quote_ident

_DAY = 86400
_SOON_DAYS = 30
_NEEDED_CONNECTIONS = 2


def _account(context: Context) -> roles.Account | None:
    return roles.account(context.conn, context.role.oid) if context.role else None


class Connect(Check):
    """The role may log in, and connect to this database.

    PUBLIC has CONNECT on a new database; often it is revoked, and granted to some. pg_hba.conf has a say of its own,
    which only a connection as the role can try.

    Risk: the role is refused with SQLSTATE 28000 or 42501.

    Fix: give it LOGIN, and grant CONNECT.

    See: https://www.postgresql.org/docs/current/ddl-priv.html
    """

    id = "role.connect"
    title = "the role may connect"

    def run(self, context: Context) -> Iterator[Finding]:
        role, account, name = context.role, _account(context), context.role_name
        if role is None or account is None:
            yield self.finding(Status.SKIP, f"there is no role {name}")
            return
        evidence = {"login": role.can_login, "connect": account.connects}
        lacks, fix = [], []
        if not role.can_login:
            lacks.append("LOGIN")
            fix.append(Fix("sql", f"ALTER ROLE {quote_ident(name)} LOGIN;"))
        if not account.connects:
            database = context.server.database
            lacks.append(f"CONNECT on database {database}")
            fix.append(Fix("sql", f"GRANT CONNECT ON DATABASE {quote_ident(database)} TO {quote_ident(name)};"))
        if lacks:
            yield self.finding(Status.FAIL, f"{name} has no {' and no '.join(lacks)}", evidence, object=name, fix=fix)
        else:
            yield self.finding(Status.PASS, f"{name} may connect to {context.server.database}", evidence)


class Valid(Check):
    """The role's password does not expire soon, and the role may have the connections that it needs.

    VALID UNTIL makes the password expire, CONNECTION LIMIT bounds the connections. Replication connections count, and
    a stream with a snapshot needs two at least.

    Risk: at some reconnect the role is refused (SQLSTATE 28P01 or 53300), and its slot keeps WAL.

    Fix: a new date, or 'infinity'; a higher limit, or -1 for none.

    See: https://www.postgresql.org/docs/current/sql-createrole.html
    """

    id = "role.valid"
    title = "the role stays valid"

    def run(self, context: Context) -> Iterator[Finding]:
        account, name = _account(context), context.role_name
        if account is None:
            yield self.finding(Status.SKIP, f"there is no role {name}")
            return
        days = None if account.valid_for is None else account.valid_for / _DAY
        evidence = {
            "days_left": None if days is None else round(days, 1),
            "connection_limit": account.connection_limit,
            "connections": account.connections,
        }
        alter = f"ALTER ROLE {quote_ident(name)}"
        fine = True
        if days is not None and days < _SOON_DAYS:
            fine = False
            yield self.finding(
                Status.FAIL if days < 0 else Status.WARN,
                f"the password of {name} has expired"
                if days < 0
                else f"the password of {name} ends in {days:.0f} days",
                evidence,
                object=name,
                fix=[Fix("sql", f"{alter} VALID UNTIL 'infinity';")],
            )
        # The doctor's own connection will be gone by then.
        ours = 1 if context.role_is_connected else 0
        free = account.connection_limit - account.connections + ours
        if account.connection_limit >= 0 and free < _NEEDED_CONNECTIONS:
            fine = False
            yield self.finding(
                Status.FAIL if free < 1 else Status.WARN,
                f"{name} has CONNECTION LIMIT {account.connection_limit}, and {max(free, 0)} free",
                evidence,
                object=name,
                fix=[Fix("sql", f"{alter} CONNECTION LIMIT {account.connections + 10};")],
            )
        if fine:
            yield self.finding(Status.PASS, f"{name} has no end and connections enough", evidence)


class Create(Check):
    """The role may make what its store needs in this database.

    supabase/etl and tools made with it run ``CREATE SCHEMA IF NOT EXISTS etl`` and ``CREATE TABLE IF NOT EXISTS`` at
    every start, and PostgreSQL looks at the right to CREATE before it looks whether the schema exists. With
    ``--store memory`` pgrepl itself makes nothing, pgsense-rs makes the schema and two functions. The bookmarks store
    needs its table, or the right to make it.

    Risk: the start fails with SQLSTATE 42501, also when everything is there.

    Fix: grant CREATE on the database, and leave it granted.

    See: https://www.postgresql.org/docs/current/ddl-priv.html
    """

    id = "role.create"
    title = "the role may make what its store needs"

    def run(self, context: Context) -> Iterator[Finding]:
        account, name, store = _account(context), context.role_name, context.wanted.store
        if account is None:
            yield self.finding(Status.SKIP, f"there is no role {name}")
            return
        evidence = {"store": store, "create": account.creates}
        if store == "bookmarks":
            yield self._bookmarks(context)
        elif account.creates:
            yield self.finding(Status.PASS, f"{name} has CREATE on {context.server.database}", evidence)
        else:
            grant = f"GRANT CREATE ON DATABASE {quote_ident(context.server.database)} TO {quote_ident(name)};"
            yield self.finding(
                Status.FAIL if store == "postgres" else Status.INFO,
                f"{name} has no CREATE on database {context.server.database}"
                + ("" if store == "postgres" else ": pgrepl needs none, pgsense-rs does"),
                evidence,
                object=name,
                fix=[Fix("sql", grant)],
            )

    def _bookmarks(self, context: Context) -> Finding:
        assert context.role is not None
        name, table = context.role_name, roles.table_in_public(context.conn, context.role.oid, BOOKMARKS)
        evidence = {"store": "bookmarks", "table": BOOKMARKS, "writes": table.writes, "creates": table.creates}
        grantee, quoted = quote_ident(name), f"{quote_ident('public')}.{quote_ident(BOOKMARKS)}"
        if table.writes is None and not table.creates:
            return self.finding(
                Status.FAIL,
                f"there is no table {BOOKMARKS}, and {name} may not make it",
                evidence,
                object=name,
                fix=[Fix("sql", f"GRANT USAGE, CREATE ON SCHEMA public TO {grantee};")],
            )
        if table.writes is False:
            return self.finding(
                Status.FAIL,
                f"{name} may not read and write {BOOKMARKS}",
                evidence,
                object=name,
                fix=[
                    Fix("sql", f"GRANT USAGE ON SCHEMA public TO {grantee};"),
                    Fix("sql", f"GRANT SELECT, INSERT, UPDATE, DELETE ON {quoted} TO {grantee};"),
                ],
            )
        may = "read and write" if table.writes else "make"
        return self.finding(Status.PASS, f"{name} may {may} {BOOKMARKS}", evidence)


class Superuser(Check):
    """The role that replicates is no superuser.

    Some set-ups need a superuser once: an event trigger, a publication of all tables. What runs afterwards needs
    REPLICATION and SELECT.

    Risk: whoever gets hold of the reader's password owns the server.

    Fix: a role of its own, made with ``pgrepl setup --role``; or let setup grant what is needed, and then take
    SUPERUSER away, which initdb's own role keeps.

    See: https://www.postgresql.org/docs/current/role-attributes.html
    """

    id = "role.superuser"
    title = "the role is no superuser"

    def run(self, context: Context) -> Iterator[Finding]:
        role, account, name = context.role, _account(context), context.role_name
        if role is None or account is None:
            yield self.finding(Status.SKIP, f"there is no role {name}")
            return
        if not role.superuser:
            yield self.finding(Status.PASS, f"{name} is none", {"superuser": False})
            return
        fix = [Fix("command", "pgrepl setup --role cdc")]
        if not account.bootstrap:
            # Not as SQL that somebody pipes into psql: without the grants a stream that runs would break.
            taken = f"ALTER ROLE {quote_ident(name)} NOSUPERUSER REPLICATION"
            fix = [Fix("command", f"pgrepl setup --role {shlex.quote(name)}"), Fix("action", f"and then {taken}")]
        # Who only looks around as a superuser has not said that this is the role to stay.
        yield self.finding(
            Status.INFO if context.wanted.role is None else Status.WARN,
            f"{name} is a superuser; to replicate, less is enough",
            {"superuser": True, "bootstrap": account.bootstrap},
            object=name,
            fix=fix,
        )


class PublicationCreate(Check):
    """The connected role may make the publication that is missing.

    That takes CREATE on the database and the ownership of each table in it. A publication of all tables, or of the
    tables of a schema, takes a superuser; on Cloud SQL nobody is one, and tables are listed.

    Risk: ``pgrepl setup`` cannot make it, and prints a script for somebody who may.

    Fix: have the owner of the tables, or a superuser, run the statement of pub.exists.

    See: https://www.postgresql.org/docs/current/sql-createpublication.html
    """

    id = "role.pub_create"
    title = "the missing publication can be made by the connected role"

    def run(self, context: Context) -> Iterator[Finding]:
        present = {publication.name for publication in context.all_publications}
        missing = [name for name in context.wanted.publications if name not in present]
        if not missing:
            yield self.finding(Status.SKIP, "none is missing")
            return
        user = roles.can_replicate(context.conn)
        account = roles.account(context.conn, user.oid) if user else None
        assert user is not None
        assert account is not None
        others = roles.tables_of_others(context.conn, [table.oid for table in context.publishable])
        foreign = [f"{table.schema}.{table.name}" for table in context.publishable if table.oid in others]
        evidence = {"superuser": user.superuser, "create": account.creates, "tables_of_others": foreign}
        fix = []
        if not account.creates:
            database = quote_ident(context.server.database)
            fix.append(Fix("sql", f"GRANT CREATE ON DATABASE {database} TO {quote_ident(user.name)};"))
        if foreign:
            fix.append(Fix("action", "run the statement of pub.exists as the owner of the tables, or as a superuser"))
        if context.provider.lists_tables:
            fix.append(Fix("action", "list the tables: nobody here may publish all of them, or those of a schema"))
        if user.superuser or (account.creates and not foreign):
            yield self.finding(Status.PASS, f"{user.name} may make {', '.join(missing)}", evidence)
            return
        lacks = [] if account.creates else [f"has no CREATE on database {context.server.database}"]
        if foreign:
            lacks.append(f"does not own {len(foreign)} of the tables")
        yield self.finding(
            Status.WARN, f"{user.name} {' and '.join(lacks)}", evidence, object=", ".join(missing), fix=fix
        )


class Monitor(Check):
    """The connected role sees the sessions of others.

    pg_monitor shows what other roles' sessions do, and since when. Without it their state, transactions and queries
    are hidden.

    Risk: checks of long transactions, blockers and disk space are ``unknown``.

    Fix: grant pg_monitor, which lets it read statistics and nothing of the data.

    See: https://www.postgresql.org/docs/current/predefined-roles.html
    """

    id = "role.monitor"
    title = "the connected role sees other sessions"

    def run(self, context: Context) -> Iterator[Finding]:
        user = roles.can_replicate(context.conn)
        account = roles.account(context.conn, user.oid) if user else None
        assert user is not None
        assert account is not None
        if account.monitors:
            yield self.finding(Status.PASS, f"{user.name} has the rights of pg_monitor")
        else:
            yield self.finding(
                Status.INFO,
                f"{user.name} is not in pg_monitor: what other sessions do is hidden",
                fix=context.let_see("pg_monitor"),
            )
