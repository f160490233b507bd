"""Was the publication there before the slot?"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import psycopg

from pgrepl.catalog import age
from pgrepl.catalog.publications import Publication
from pgrepl.catalog.slots import Slot
from pgrepl.doctor.check import Check
from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status
from pgrepl.names import quote_ident
from pgrepl.units import size_text

_MOST_BYTES = 64 << 20


class NewerThanSlot(Check):
    """What the slot will still decode was written when the publication was there.

    A slot decodes each change with the catalog as it was then. No time stands in the catalog; but when the
    publication's row is older than the oldest transaction that the slot remembers, all is well. Otherwise one change
    is peeked at, which takes the slot for a moment and resets its inactive_since: only where it is inactive, at most
    64 MB are unread and no idle_replication_slot_timeout is set, and for 2 s at most.

    Risk: up to 17 the stream fails at such a change (SQLSTATE 42704); 18 warns ("skipped loading publication") and
    leaves changes out without a word.

    Fix: drop the slot and make it anew, now that the publication is there; then copy the tables again.

    See: https://www.postgresql.org/docs/current/logical-replication-publication.html
    """

    id = "pub.newer_than_slot"
    title = "the publication is older than what the slot decodes"
    needs = ("conn.sql", "server.version", "pub.exists")

    def run(self, context: Context) -> Iterator[Finding]:
        slot = context.slot
        if slot is None:
            yield self.finding(Status.SKIP, f"there is no slot {context.slot_name}")
            return
        if slot.lost or slot.database != context.server.database or slot.plugin != "pgoutput":
            yield self.finding(Status.SKIP, f"slot {slot.name} cannot be read in this database with pgoutput")
            return
        if not context.publications:
            yield self.finding(Status.SKIP, "no publication to look for")
            return
        ages = age.of_publications(context.conn, [publication.oid for publication in context.publications])
        for publication in context.publications:
            yield self._judge(context, slot, publication, ages.get(publication.oid))

    def _judge(self, context: Context, slot: Slot, publication: Publication, old: int | None) -> Finding:
        evidence = {"slot": slot.name, "publication_age": old, "catalog_xmin_age": slot.catalog_xmin_age}
        if old is not None and slot.catalog_xmin_age is not None and old > slot.catalog_xmin_age:
            return self.finding(Status.PASS, f"{publication.name} is older than slot {slot.name}", evidence)
        timeout = context.session_settings.get("idle_replication_slot_timeout")
        if slot.active:
            reason = "the slot is in use"
        elif slot.lag_bytes is None or slot.lag_bytes > _MOST_BYTES:
            reason = f"{size_text(slot.lag_bytes or 0)} are unread"
        elif timeout is not None and timeout.number:
            reason = "a peek would reset what idle_replication_slot_timeout counts from"
        elif context.server.in_recovery:
            reason = "the server is a standby"
        else:
            try:
                complaint = age.peek(context.conn, slot.name, publication.name)
            except psycopg.errors.QueryCanceled:
                reason = "the peek took too long"
            except psycopg.errors.InsufficientPrivilege:
                grant = f"ALTER ROLE {quote_ident(context.server.user)} REPLICATION;"
                return self.finding(
                    Status.UNKNOWN,
                    f"{context.server.user} may not read slots",
                    evidence,
                    object=publication.name,
                    fix=[Fix("sql", grant)],
                )
            except psycopg.errors.ObjectInUse:
                reason = "the slot is in use"
            else:
                if complaint is None:
                    return self.finding(Status.PASS, f"slot {slot.name} decodes {publication.name}", evidence)
                return self.finding(
                    Status.FAIL,
                    f"slot {slot.name} has changes from before {publication.name}: {complaint}",
                    evidence,
                    object=publication.name,
                    fix=[
                        Fix("command", f"pgrepl slots drop {slot.name}"),
                        Fix("command", f"pgrepl slots create {slot.name} --publication {_word(publication.name)}"),
                        Fix("action", "copy the tables again: changes up to now are not in the new slot"),
                    ],
                )
        return self.finding(
            Status.UNKNOWN,
            f"whether slot {slot.name} is older than {publication.name} cannot be seen: {reason}",
            evidence,
            object=publication.name,
            fix=[Fix("command", f"pgrepl slots peek {slot.name} --publication {_word(publication.name)} --limit 1")],
        )


def _word(name: str) -> str:
    return shlex.quote(name)
