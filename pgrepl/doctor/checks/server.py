"""Is the server one that pgrepl works with?"""

from __future__ import annotations

from collections.abc import Iterator

from pgrepl.doctor.check import Check
from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status

_OLDEST = 16
_NEWEST_TESTED = 18


class Version(Check):
    """The server is PostgreSQL 16 or newer.

    Below 16 a slot does not say why it was invalidated, a standby cannot decode, and protocol version 4 is missing;
    pgrepl refuses such servers rather than to be right only now and then. Versions newer than those that pgrepl was
    tested with are used, and named.
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
