"""Do the slots survive a failover, and can this standby decode?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pgrepl.doctor.check import Check
from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status
from pgrepl.names import quote_ident

_SYNC = "sync_replication_slots"
_WAITED_FOR = "synchronized_standby_slots"


class Slotsync(Check):
    """A standby copies the failover slots of its primary, and no reader gets ahead of the standby.

    From PostgreSQL 17 on. The standby needs four settings: sync_replication_slots, hot_standby_feedback, a
    primary_slot_name, and a dbname in primary_conninfo; when one is missing its log says so and no slot is copied.
    The primary should name the standby's physical slot in synchronized_standby_slots, so that no logical reader gets
    what the standby has not got yet. primary_conninfo shows only to members of pg_read_all_settings.

    Risk: after a failover the slots are not there; or they are, and readers know changes that the new primary has not.

    Fix: the settings, each on its own server; they need no restart.

    See: https://www.postgresql.org/docs/current/logicaldecoding-explanation.html#LOGICALDECODING-REPLICATION-SLOTS-SYNCHRONIZATION
    """

    id = "ha.slotsync"
    title = "failover slots are copied"
    needs = ("conn.sql", "server.version")
    grant = "pg_monitor"

    def run(self, context: Context) -> Iterator[Finding]:
        if context.server.major < 17:
            yield self.finding(Status.SKIP, f"PostgreSQL {context.server.major} has no failover slots")
        elif context.server.in_recovery:
            yield from self._on_standby(context)
        else:
            yield self._on_primary(context)

    def _on_standby(self, context: Context) -> Iterator[Finding]:
        replicas = context.replicas
        evidence = {
            _SYNC: replicas.sync_replication_slots,
            "hot_standby_feedback": replicas.hot_standby_feedback,
            "primary_slot_name": replicas.primary_slot_name,
            "primary_conninfo_dbname": replicas.conninfo_dbname,
        }
        lacking: list[str] = []
        fix: list[Fix] = []
        if not replicas.primary_slot_name:
            lacking.append("primary_slot_name is empty")
            fix += [
                Fix("action", "on the primary: SELECT pg_create_physical_replication_slot('standby1');"),
                *context.change("primary_slot_name", "'standby1'", restart=False),
            ]
        if not replicas.hot_standby_feedback:
            lacking.append("hot_standby_feedback is off")
            fix += context.change("hot_standby_feedback", "on", restart=False)
        if replicas.conninfo_dbname == "":
            lacking.append("primary_conninfo names no database")
            fix.append(Fix("action", "add dbname=postgres to primary_conninfo, which holds a password, and reload"))
        if not replicas.sync_replication_slots:
            lacking.append(f"{_SYNC} is off")
            fix += context.change(_SYNC, "on", restart=False)
        if lacking:
            yield self.finding(Status.WARN, f"no slot is copied here: {', '.join(lacking)}", evidence, fix=fix)
        elif replicas.conninfo_dbname is None:
            yield self.finding(
                Status.UNKNOWN,
                f"whether primary_conninfo names a database does not show to {context.server.user}",
                evidence,
                fix=context.let_see("pg_monitor"),
            )
        else:
            copied = [slot.name for slot in context.slots if slot.synced]
            yield self.finding(Status.PASS, f"{len(copied)} copied", {**evidence, "slots": copied})

    def _on_primary(self, context: Context) -> Finding:
        marked = [slot.name for slot in context.slots if slot.failover]
        physical = [slot.name for slot in context.slots if slot.physical and not slot.temporary and not slot.lost]
        named = context.replicas.synchronized_standby_slots
        evidence = {"failover_slots": marked, "physical_slots": physical, _WAITED_FOR: named}
        if not marked:
            return self.finding(Status.PASS, "no slot is to be copied", evidence)
        if named:
            return self.finding(Status.PASS, f"readers wait for {', '.join(named)}", evidence)
        in_use = [slot.name for slot in context.slots if slot.name in physical and slot.active]
        return self.finding(
            Status.WARN,
            f"the readers of {', '.join(marked)} can get ahead of the standby: {_WAITED_FOR} is empty",
            evidence,
            fix=context.change(_WAITED_FOR, _list(in_use), restart=False)
            if in_use
            else [Fix("action", f"let the standby stream through a physical slot, and name that in {_WAITED_FOR}")],
        )


class SyncSlotsMissing(Check):
    """Every slot in synchronized_standby_slots is there, and its standby streams.

    From PostgreSQL 17 on. The readers of failover slots get no change that the standbys behind these slots have not
    confirmed. A name of which there is no slot, or whose standby is gone, stops them all; the server's log tells,
    and the reader sees nothing but silence.

    Risk: every reader of a failover slot stands still, and its slot keeps WAL.

    Fix: bring the standby back, or take its name off the list.

    See: https://www.postgresql.org/docs/current/runtime-config-replication.html#GUC-SYNCHRONIZED-STANDBY-SLOTS
    """

    id = "ha.sync_slots_missing"
    title = "no reader waits for a standby that is gone"
    needs = ("conn.sql", "server.version")

    def run(self, context: Context) -> Iterator[Finding]:
        named = context.replicas.synchronized_standby_slots
        if named is None:
            yield self.finding(Status.SKIP, f"PostgreSQL {context.server.major} has no {_WAITED_FOR}")
            return
        if context.server.in_recovery or not named:
            yield self.finding(Status.PASS, "readers wait for none", {_WAITED_FOR: list(named)})
            return
        present = {slot.name: slot for slot in context.slots}
        wrong: dict[str, str] = {}
        for name in named:
            slot = present.get(name)
            if slot is None:
                wrong[name] = "does not exist"
            elif not slot.physical:
                wrong[name] = "is a logical slot"
            elif slot.lost:
                wrong[name] = "is lost"
            elif not slot.active:
                wrong[name] = "is not in use"
        marked = [slot.name for slot in context.slots if slot.failover]
        rest = [name for name in named if name not in wrong]
        for name, why in wrong.items():
            waiting = (
                f"the readers of {', '.join(marked)} wait for it" if marked else "a failover slot would wait for it"
            )
            yield self.finding(
                Status.FAIL if marked else Status.WARN,
                f"{name} in {_WAITED_FOR} {why}: {waiting}",
                {_WAITED_FOR: list(named), "failover_slots": marked},
                object=name,
                fix=[
                    Fix("action", "let its standby stream again; or take it off the list, if it is gone for good:"),
                    *context.change(_WAITED_FOR, _list(rest), restart=False),
                ],
            )
        if not wrong:
            yield self.finding(Status.PASS, f"{', '.join(named)} in use", {_WAITED_FOR: list(named)})


class StandbyDecode(Check):
    """This standby can decode: the primary keeps what it needs, and tells it which transactions run.

    A logical slot on a standby (16 and newer) needs wal_level = logical on the primary, and hot_standby_feedback with
    a physical slot, without which the primary removes rows of the catalogs and the standby gives the slot up. Making
    one waits until the primary logs its running transactions, which it does when something happens there.

    Risk: the slot is invalidated while its reader is away; making one stands still.

    Fix: the settings here; on the primary SELECT pg_log_standby_snapshot() lets a slot that is being made go on.

    See: https://www.postgresql.org/docs/current/logicaldecoding-explanation.html#LOGICALDECODING-REPLICATION-SLOTS
    """

    id = "ha.standby_decode"
    title = "this standby can decode"
    needs = ("conn.sql", "server.version")

    def run(self, context: Context) -> Iterator[Finding]:
        replicas = context.replicas
        evidence: dict[str, object] = {
            "hot_standby_feedback": replicas.hot_standby_feedback,
            "primary_slot_name": replicas.primary_slot_name,
        }
        if not context.server.in_recovery:
            yield self.finding(Status.SKIP, "this is no standby")
            return
        lacking: list[str] = []
        fix: list[Fix] = []
        if not replicas.hot_standby_feedback:
            lacking.append("hot_standby_feedback is off")
            fix += context.change("hot_standby_feedback", "on", restart=False)
        if not replicas.primary_slot_name:
            lacking.append("it streams through no physical slot")
            fix += [
                Fix("action", "on the primary: SELECT pg_create_physical_replication_slot('standby1');"),
                *context.change("primary_slot_name", "'standby1'", restart=False),
            ]
        if lacking:
            text = f"the primary may remove what a slot here needs: {', '.join(lacking)}"
            yield self.finding(Status.WARN, text, evidence, fix=fix)
        else:
            yield self.finding(Status.PASS, "the primary keeps what slots here need", evidence)


def _list(names: Sequence[str]) -> str:
    quoted = ", ".join(quote_ident(name) for name in names)
    return "'" + quoted.replace("'", "''") + "'"
