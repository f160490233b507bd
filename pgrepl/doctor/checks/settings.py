"""Is the server set up for logical replication, with room for one stream more?"""

from __future__ import annotations

from collections.abc import Iterator

from pgrepl.catalog import slots
from pgrepl.doctor.check import Check
from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status

_DEFAULT_MAXIMUM = 10
_HEADROOM = 5


class WalLevel(Check):
    """The WAL holds what logical decoding needs: wal_level is logical.

    With less no logical slot can be made (SQLSTATE 55000); CREATE PUBLICATION only warns. The change needs a restart
    of the server and makes it write a little more WAL. From PostgreSQL 19 on the server switches by itself when the
    first logical slot is made and wal_level is replica; effective_wal_level shows where it stands.
    """

    id = "cfg.wal_level"
    title = "wal_level is logical"

    def run(self, context: Context) -> Iterator[Finding]:
        server = context.server
        evidence: dict[str, object] = {"wal_level": server.wal_level}
        if server.effective_wal_level is not None:
            evidence["effective_wal_level"] = server.effective_wal_level
        if server.decodes:
            yield self.finding(Status.PASS, f"wal_level is {server.wal_level}", evidence)
            return
        pending = "wal_level" in server.pending_restart
        yield self.finding(
            Status.FAIL,
            f"wal_level is {server.wal_level}" + (", its new value waits for a restart" if pending else ""),
            {**evidence, "pending_restart": pending},
            fix=[Fix("action", context.provider.restart)] if pending else context.provider.set_wal_level(),
        )


class SlotsFree(Check):
    """A replication slot can be made: max_replication_slots is not used up.

    All slots of the cluster count, physical, inactive and lost ones too. When none is free, making one fails with
    SQLSTATE 53400. Slots that nobody needs are better dropped, since they also keep WAL; else raise the limit, which
    needs a restart. A slot that is to be used and exists already needs no place.
    """

    id = "cfg.slots_free"
    title = "a replication slot is free"

    def run(self, context: Context) -> Iterator[Finding]:
        server = context.server
        all_slots = slots.all_of(context.conn)
        evidence = {"max_replication_slots": server.max_replication_slots, "used": len(all_slots)}
        free = server.max_replication_slots - len(all_slots)
        if context.wanted.slot in {slot.name for slot in all_slots}:
            yield self.finding(Status.PASS, f"slot {context.wanted.slot} exists already", evidence)
            return
        if free > 1:
            yield self.finding(Status.PASS, f"{free} of {server.max_replication_slots} are free", evidence)
            return
        lost = [slot.name for slot in all_slots if slot.lost]
        raised = max(_DEFAULT_MAXIMUM, len(all_slots) + _HEADROOM)
        yield self.finding(
            Status.WARN if free == 1 else Status.FAIL,
            f"{'only one' if free == 1 else 'none'} of {server.max_replication_slots} is free",
            {**evidence, "lost": lost},
            fix=[
                *(Fix("command", f"pgrepl slots drop {name}") for name in lost),
                Fix("command", "pgrepl slots list --all"),
                *context.provider.set("max_replication_slots", str(raised)),
            ],
        )


class SendersFree(Check):
    """A replication connection more can be served: max_wal_senders is not used up.

    Standbys, backups and every reader of a slot use one each. When none is free, connecting fails with SQLSTATE
    53300. With fewer walsenders than slots not all slots can be read at a time. The change needs a restart.
    """

    id = "cfg.senders_free"
    title = "a walsender is free"

    def run(self, context: Context) -> Iterator[Finding]:
        server = context.server
        free = server.free_wal_senders
        evidence = {
            "max_wal_senders": server.max_wal_senders,
            "used": server.used_wal_senders,
            "max_replication_slots": server.max_replication_slots,
        }
        raised = max(_DEFAULT_MAXIMUM, server.used_wal_senders + _HEADROOM, server.max_replication_slots)
        fix = context.provider.set("max_wal_senders", str(raised))
        if free <= 1:
            yield self.finding(
                Status.WARN if free == 1 else Status.FAIL,
                f"{'only one' if free == 1 else 'none'} of {server.max_wal_senders} is free",
                evidence,
                fix=fix,
            )
        elif server.max_wal_senders < server.max_replication_slots:
            yield self.finding(
                Status.WARN,
                f"max_wal_senders is {server.max_wal_senders}, fewer than max_replication_slots with"
                f" {server.max_replication_slots}: not all slots can be read at a time",
                evidence,
                fix=fix,
            )
        else:
            yield self.finding(Status.PASS, f"{free} of {server.max_wal_senders} are free", evidence)
