"""What would pg_upgrade do to the slots?"""

from __future__ import annotations

from collections.abc import Iterator

from pgrepl.doctor.check import Check
from pgrepl.doctor.checks.slot import drop
from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status
from pgrepl.units import size_text

_KEEPS_SLOTS = 17


class PgUpgrade(Check):
    """Every logical slot would survive pg_upgrade.

    With --upgrade alone. From 17 on pg_upgrade carries logical slots over, and refuses to run when one is lost, or
    has not been read to the end of the WAL; the new server needs wal_level = logical and a place for each. From 16 and
    older no slot is carried over. Physical slots never are, and temporary ones do not count.

    Risk: the upgrade stops; or it succeeds, and the slots are gone with their places in the WAL.

    Fix: drop what is lost; stop the writers, wait for the readers, then stop the server. From 16, let the readers
    come to the end, upgrade, and make the slots anew before anybody writes.

    See: https://www.postgresql.org/docs/current/pgupgrade.html
    """

    id = "up.pg_upgrade"
    title = "slots survive pg_upgrade"
    needs = ("conn.sql", "server.version")

    def run(self, context: Context) -> Iterator[Finding]:
        if not context.wanted.upgrade:
            yield self.finding(Status.SKIP, "only with --upgrade")
            return
        logical = [slot for slot in context.slots if not slot.physical and not slot.temporary]
        good = True
        for slot in logical:
            evidence = {"database": slot.database, "wal_status": slot.wal_status, "lag_bytes": slot.lag_bytes}
            if slot.lost:
                text, fix = f"{slot.name} is lost, and pg_upgrade refuses to run while it is there", drop(slot)
            elif context.server.major < _KEEPS_SLOTS:
                text = f"{slot.name} is not carried over from PostgreSQL {context.server.major}"
                fix = Fix(
                    "action",
                    "stop the writers, let its reader come to the end, upgrade, and make the slot anew before anybody"
                    " writes",
                )
            elif slot.lag_bytes is None or slot.lag_bytes > 0:
                lag = "of unknown length" if slot.lag_bytes is None else size_text(slot.lag_bytes)
                text = f"{slot.name} has WAL that nobody has read ({lag}), and pg_upgrade refuses to run with that"
                fix = Fix("action", "stop the writers, let its reader come to the end, and then stop the server")
            else:
                continue
            good = False
            yield self.finding(Status.WARN, text, evidence, object=slot.name, fix=[fix])
        if good:
            needed = f"the new server needs max_replication_slots of {len(logical)} or more, and wal_level = logical"
            yield self.finding(
                Status.PASS, f"all {len(logical)}; {needed}" if logical else "there is none", {"slots": len(logical)}
            )
