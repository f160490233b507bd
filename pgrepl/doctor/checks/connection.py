"""Can the server be reached, in both ways that replication needs?"""

from __future__ import annotations

from collections.abc import Iterator

from pgrepl.doctor.check import Check
from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status
from pgrepl.errors import PgreplError


class Sql(Check):
    """An ordinary connection can be made, and answers.

    Everything else is asked through it. When it fails, the text is libpq's own, with the address that was tried.

    Risk: nothing works, and nothing can be said.

    Fix: look at the host, the port, the password, pg_hba.conf and the TLS options, in this order. Some services have
    direct hosts with an IPv6 address only, which a network without IPv6 cannot reach.

    See: https://www.postgresql.org/docs/current/client-authentication-problems.html
    """

    id = "conn.sql"
    title = "the server can be reached"
    needs = ()

    def run(self, context: Context) -> Iterator[Finding]:
        if context.error is not None:
            hint = context.error.hint
            yield self.finding(
                Status.FAIL,
                str(context.error),
                {"sqlstate": context.error.sqlstate},
                fix=[Fix("action", hint)] if hint else [],
            )
            return
        server, info = context.server, context.conn.info
        where = info.host if info.host.startswith("/") else f"{info.host}:{info.port}"
        yield self.finding(
            Status.PASS,
            f"connected to {where}, database {server.database}, as {server.user}",
            {
                "host": info.host,
                "address": info.hostaddr or None,
                "port": info.port,
                "database": server.database,
                "user": server.user,
                "tls": bool(context.conn.pgconn.ssl_in_use),
            },
        )


class Replication(Check):
    """A replication connection to the database can be made, and IDENTIFY_SYSTEM is answered.

    This is the connection through which changes come. It needs the REPLICATION attribute (or the role that a service
    puts in its place) and a free walsender. In pg_hba.conf a logical replication connection is matched by its
    database's name, not by ``replication``.

    Risk: nothing can be streamed.

    Fix: give the role REPLICATION, free a walsender, add the line to pg_hba.conf, or go past a pooler, which passes no
    replication connections.

    See: https://www.postgresql.org/docs/current/protocol-replication.html
    """

    id = "conn.replication"
    title = "a replication connection can be made"

    def run(self, context: Context) -> Iterator[Finding]:
        if not context.role_is_connected:
            yield self.finding(
                Status.SKIP, f"only a connection as {context.role_name} could tell; this one is {context.server.user}'s"
            )
            return
        answer = context.replication
        if isinstance(answer, PgreplError):
            yield self.finding(Status.FAIL, str(answer), {"sqlstate": answer.sqlstate}, fix=self._fix(context, answer))
        else:
            yield self.finding(Status.PASS, "IDENTIFY_SYSTEM is answered", answer)

    @staticmethod
    def _fix(context: Context, error: PgreplError) -> tuple[Fix, ...]:
        # The server's text may be in any language; the catalog is not.
        if context.role is not None and not context.role.can_replicate:
            return context.provider.allow_replication(context.role_name)
        if context.server.free_wal_senders == 0:
            return (Fix("action", "free a walsender: see cfg.senders_free"),)
        return (Fix("action", error.hint or context.provider.direct),)
