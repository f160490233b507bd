"""Is the server one that pgrepl works with, and the one that it was?"""

from __future__ import annotations

import time
from collections.abc import Iterator

from pgrepl.catalog import origin
from pgrepl.doctor.check import Check
from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status

_OLDEST = 16
_NEWEST_TESTED = 18
_CLOCK_SECONDS = 5


class Version(Check):
    """The server is PostgreSQL 16 or newer.

    Versions newer than those that pgrepl was tested with are used, and named.

    Risk: below 16 a slot does not say why it was invalidated, a standby cannot decode, and protocol version 4 is
    missing; pgrepl refuses such servers rather than to be right only now and then.

    Fix: upgrade the server.

    See: https://www.postgresql.org/support/versioning/
    """

    id = "server.version"
    title = f"PostgreSQL is {_OLDEST} or newer"

    def run(self, context: Context) -> Iterator[Finding]:
        server = context.server
        evidence = {"version": server.version, "version_num": server.version_num}
        if server.major < _OLDEST:
            yield self.finding(
                Status.FAIL,
                f"PostgreSQL {server.version} is too old: slots and protocol lack what pgrepl relies on",
                evidence,
                fix=[Fix("action", f"upgrade the server to PostgreSQL {_OLDEST} or newer")],
            )
        elif server.major > _NEWEST_TESTED:
            yield self.finding(
                Status.INFO,
                f"PostgreSQL {server.version} is newer than {_NEWEST_TESTED}, the newest that pgrepl was tested with",
                evidence,
            )
        else:
            yield self.finding(Status.PASS, f"PostgreSQL {server.version}", evidence)


class Encoding(Check):
    """The text of the database is UTF-8, or can be turned into it.

    The server turns text into the encoding that a client asks for; pgrepl asks for UTF-8. In SQL_ASCII the server
    knows of no encoding: it passes bytes on as they were written.

    Risk: text in SQL_ASCII may be in any encoding, so that JSON cannot be made of it, and ``pgrepl tail`` refuses such
    a database unless it is told the encoding. With another encoding than UTF-8 every reader must ask for a conversion.

    Fix: dump the database, and restore it into one that was made with ENCODING 'UTF8'.

    See: https://www.postgresql.org/docs/current/multibyte.html
    """

    id = "server.encoding"
    title = "the text of the database is UTF-8"

    def run(self, context: Context) -> Iterator[Finding]:
        encoding = context.server.encoding
        evidence = {"encoding": encoding}
        move = Fix("action", "dump the database and restore it into one made with ENCODING 'UTF8' TEMPLATE template0")
        if encoding == "SQL_ASCII":
            yield self.finding(
                Status.FAIL, "SQL_ASCII: its text may be in any encoding, and in several", evidence, fix=[move]
            )
        elif encoding != "UTF8":
            yield self.finding(
                Status.WARN,
                f"the database is in {encoding}: each reader has to ask for UTF8, as pgrepl does",
                evidence,
                fix=[Fix("action", "have each client connect with client_encoding=UTF8"), move],
            )
        else:
            yield self.finding(Status.PASS, "UTF8", evidence)


class Recovery(Check):
    """The server is a primary.

    A standby replays the WAL of its primary. From 16 on it can decode that WAL, too, but nothing can be made there:
    no publication, no role and no state.

    Risk: ``pgrepl setup`` and ``pgrepl tail`` refuse a standby. A slot there is lost when the primary removes rows of
    the system catalogs that it needs, or stops to write what logical decoding needs.

    Fix: connect to the primary, for instance with ``target_session_attrs=read-write``.

    See: https://www.postgresql.org/docs/current/logicaldecoding-explanation.html#LOGICALDECODING-REPLICATION-SLOTS
    """

    id = "server.recovery"
    title = "the server is a primary"

    def run(self, context: Context) -> Iterator[Finding]:
        server = context.server
        evidence = {"in_recovery": server.in_recovery}
        if not server.in_recovery:
            yield self.finding(Status.PASS, "it is not in recovery", evidence)
            return
        yield self.finding(
            Status.FAIL if server.major < _OLDEST else Status.INFO,
            "this is a standby: pgrepl sets up and streams from a primary",
            evidence,
            fix=[
                Fix("action", "connect to the primary (target_session_attrs=read-write finds it among several hosts)")
            ],
        )


class Identity(Check):
    """The server is the one whose positions are stored.

    initdb gives a server its system identifier, and each promotion and each restore to a point in time a new
    timeline. Both stand beside the positions that the postgres and the bookmarks store keep in this database. The
    tables of supabase/etl do not hold them.

    Risk: on another server the stored positions mean other changes. On a new timeline the last changes of the old one
    may never have happened.

    Fix: point at the right server; or, once slot and position were looked at, ``pgrepl state adopt``. When in doubt
    copy the tables anew with ``pgrepl tail --resnapshot``.

    See: https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-TIMELINES
    """

    id = "server.identity"
    title = "the server is the one whose positions are stored"
    needs = ("conn.sql", "server.version")

    def run(self, context: Context) -> Iterator[Finding]:
        stored = origin.stored(context.conn, context.slot_name)
        if stored.unreadable:
            names = [f"{schema}.{table}" for schema, table in stored.unreadable]
            yield self.finding(
                Status.UNKNOWN,
                f"this role may not read {', '.join(names)}",
                {"tables": names},
                fix=context.let_read(names),
            )
            return
        if not stored.origins:
            yield self.finding(Status.SKIP, "no position of this pipeline is stored in this database")
            return
        server = context.server
        if server.system_identifier is None:
            yield self.finding(
                Status.UNKNOWN, "this role may not read the control file", fix=context.let_read_control_file()
            )
            return
        for kept in stored.origins:
            evidence = {
                "stored": {"system_identifier": kept.system_identifier, "timeline": kept.timeline},
                "found": {"system_identifier": server.system_identifier, "timeline": server.timeline},
            }
            if kept.system_identifier != server.system_identifier:
                summary = f"the positions of {kept.slot} are of server {kept.system_identifier}, and this is"
                summary += f" {server.system_identifier}"
            elif kept.timeline != server.timeline:
                summary = f"the positions of {kept.slot} are of timeline {kept.timeline}, and this is {server.timeline}"
            else:
                yield self.finding(Status.PASS, f"system identifier {server.system_identifier}", evidence)
                continue
            yield self.finding(
                Status.FAIL,
                summary,
                evidence,
                object=kept.slot,
                fix=[
                    Fix("action", "if this is the wrong server, connect to the right one; else look at the position"),
                    Fix("command", f"pgrepl state show --store {kept.store} --slot {kept.slot}"),
                    Fix("command", f"pgrepl state adopt --store {kept.store} --slot {kept.slot}"),
                ],
            )


class Clock(Check):
    """The clocks of the server and of this machine agree.

    Changes carry the server's time of their commit. pgrepl compares no clocks where it matters; people do.

    Risk: lag that is measured as a time is off by the difference.

    Fix: have both machines synchronise their clocks.

    See: https://www.postgresql.org/docs/current/functions-datetime.html#FUNCTIONS-DATETIME-CURRENT
    """

    id = "server.clock"
    title = "the clocks agree"

    def run(self, context: Context) -> Iterator[Finding]:
        asked = time.time()
        row = context.conn.execute("SELECT extract(epoch FROM pg_catalog.clock_timestamp())::float8").fetchone()
        answered = time.time()
        assert row is not None
        # The server looked at its clock some time between the question and the answer.
        ahead = row[0] - min(max(row[0], asked), answered)
        evidence = {"server_ahead_seconds": round(ahead, 1)}
        if abs(ahead) > _CLOCK_SECONDS:
            yield self.finding(
                Status.INFO,
                f"the server's clock is {abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}:"
                " lag that is measured as a time is off by that",
                evidence,
                fix=[Fix("action", "synchronise the clocks of both machines")],
            )
        else:
            yield self.finding(Status.PASS, f"they differ by less than {_CLOCK_SECONDS} s", evidence)
