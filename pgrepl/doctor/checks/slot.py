"""Is the slot that is to be used fit for it?

Which slot: the one that is named, else that of the pipeline that host and database give, as long as it exists or the
store keeps one.
"""

from __future__ import annotations

import re
import shlex
from abc import abstractmethod
from collections.abc import Iterator, Mapping

from psycopg.conninfo import make_conninfo

from pgrepl.catalog import pipelines
from pgrepl.catalog.pipelines import StoredPosition, TableState
from pgrepl.catalog.slots import Slot
from pgrepl.doctor.check import Check
from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status
from pgrepl.lsn import WAL_ALIGNMENT, Lsn
from pgrepl.names import quote_ident
from pgrepl.units import size_text

PLUGIN = "pgoutput"
_PLAIN = re.compile(r"[^.\"\s]+\.[^.\"\s]+")
_SOURCES: Mapping[str, tuple[str, ...]] = {
    "postgres": (pipelines.PIPELINES, pipelines.PROGRESS),
    "bookmarks": (pipelines.BOOKMARKS,),
}


class SlotCheck(Check):
    """A check of the slot that is to be used; without one it is skipped."""

    needs = ("conn.sql", "server.version", "slot.exists")

    def run(self, context: Context) -> Iterator[Finding]:
        slot = context.slot
        if slot is None:
            yield self.finding(Status.SKIP, "there is no slot yet")
        else:
            yield from self.judge(context, slot)

    @abstractmethod
    def judge(self, context: Context, slot: Slot) -> Iterator[Finding]:
        """Look at the slot."""


class Exists(Check):
    """The slot from which the pipeline is to go on is there, is a logical one, and does not go with a session.

    A pipeline that has state and no slot has lost its place: the changes since then cannot be had any more, and its
    tables must be copied again. Without state a missing slot is nothing bad, since the first run makes it. Slots are
    lost by DROP, by a failover to a standby without them, by a restored backup (which never holds slots), and by
    pg_upgrade from 16 or older.

    Risk: supabase/etl refuses to start with such a state, and a tool that silently makes a new slot skips every
    change between the two.

    Fix: reset the state of the tables, so that the next run makes the slot and copies them.

    See: https://www.postgresql.org/docs/current/logicaldecoding-explanation.html
    """

    id = "slot.exists"
    title = "the slot exists"
    needs = ("conn.sql", "server.version")

    def run(self, context: Context) -> Iterator[Finding]:
        name, slot = context.slot_name, context.slot
        if not context.keeps_slot:
            yield self.finding(Status.SKIP, "no slot is named, and the memory store makes one for each run")
            return
        if slot is None:
            yield self._missing(context, name)
            return
        evidence = {"kind": slot.kind, "plugin": slot.plugin, "database": slot.database, "temporary": slot.temporary}
        if slot.physical:
            yield self.finding(
                Status.FAIL,
                f"{name} is a physical slot, which no changes can be read from",
                evidence,
                object=name,
                fix=[Fix("action", "name a logical slot with --slot")],
            )
        elif slot.temporary and not slot.synced:
            yield self.finding(
                Status.FAIL,
                f"{name} is temporary: only the session that made it can read it, and it goes with that session",
                evidence,
                object=name,
                fix=[Fix("action", "name another slot with --slot, or wait until that session has ended")],
            )
        else:
            yield self.finding(Status.PASS, f"{name} exists", evidence)

    def _missing(self, context: Context, name: str) -> Finding:
        saved = _saved(context, name)
        store = context.wanted.store
        evidence = {"saved_tables": [table.label for table in saved]}
        unreadable = _unreadable(context)
        if unreadable:
            return self.finding(
                Status.UNKNOWN,
                f"there is no slot {name}; whether it should be there is in {' and '.join(unreadable)}, which"
                f" {context.server.user} may not read",
                evidence,
                object=name,
                fix=context.let_read(unreadable),
            )
        if saved or _positions(context, name):
            return self.finding(
                Status.FAIL,
                f"there is no slot {name}, and the {store} store has state of it: its place in the WAL is lost",
                evidence,
                object=name,
                fix=[copy_again(context)],
            )
        publications = context.wanted.publications or tuple(found.name for found in context.publications[:1])
        create = Fix("command", shlex.join(["pgrepl", "slots", "create", name, "--publication", *publications[:1]]))
        return self.finding(
            Status.INFO,
            f"there is no slot {name} yet" + ("" if store == "memory" else ": the first run makes it"),
            evidence,
            object=name,
            fix=[create] if store == "memory" and publications else [],
        )


class Database(SlotCheck):
    """The slot belongs to the database that is connected to.

    A logical slot decodes one database. Reading it from another fails with SQLSTATE 55000, "was not created in this
    database". Two databases of one server whose pipelines have the same id come to this as well.

    Risk: the stream cannot start.

    Fix: connect to the slot's database, or take a slot of this one.

    See: https://www.postgresql.org/docs/current/view-pg-replication-slots.html
    """

    id = "slot.database"
    title = "the slot is of this database"

    def judge(self, context: Context, slot: Slot) -> Iterator[Finding]:
        here = context.server.database
        evidence = {"slot_database": slot.database, "database": here}
        if slot.database == here:
            yield self.finding(Status.PASS, f"it is of {here}", evidence)
        else:
            yield self.finding(
                Status.FAIL,
                f"{slot.name} is of database {slot.database}, and this is {here}",
                evidence,
                object=slot.name,
                fix=[Fix("action", f"connect to database {slot.database}, or name a slot of {here} with --slot")],
            )


class Plugin(SlotCheck):
    """The slot was made for pgoutput, the output plugin that PostgreSQL's own subscriptions use.

    The plugin of a slot is fixed when it is made. With wal2json, test_decoding or decoderbufs the changes come in
    another format, and the options that START_REPLICATION gives are refused.

    Risk: the stream cannot start.

    Fix: make another slot. The one that is there has a reader of its own, as a rule; drop it only when it has none.

    See: https://www.postgresql.org/docs/current/logicaldecoding-output-plugin.html
    """

    id = "slot.plugin"
    title = f"the slot uses {PLUGIN}"

    def judge(self, context: Context, slot: Slot) -> Iterator[Finding]:
        evidence = {"plugin": slot.plugin}
        if slot.plugin == PLUGIN:
            yield self.finding(Status.PASS, f"its plugin is {PLUGIN}", evidence)
        else:
            yield self.finding(
                Status.FAIL,
                f"the plugin of {slot.name} is {slot.plugin}",
                evidence,
                object=slot.name,
                fix=[
                    Fix("action", "name another slot with --slot; or, if nobody reads this one, drop it:"),
                    drop(slot),
                ],
            )


class Holder(SlotCheck):
    """Who reads the slot at this moment.

    One client at a time can. A second one fails with SQLSTATE 55006, "is active for PID". That is well when the
    reader is the one that should be there, and in the way when it should not, or when the server has not noticed yet
    that a client is gone, which takes as long as wal_sender_timeout.

    Risk: two consumers that take turns at one slot each get a part of the changes.

    Fix: stop the client. Ending its session alone does not help when it comes back.

    See: https://www.postgresql.org/docs/current/view-pg-replication-slots.html
    """

    id = "slot.holder"
    title = "who reads the slot"

    def judge(self, context: Context, slot: Slot) -> Iterator[Finding]:
        holder = slot.holder
        if holder is None:
            yield self.finding(Status.PASS, "nobody: it is free")
            return
        known = [holder.application_name, holder.client_addr and f"from {holder.client_addr}", holder.state]
        who = ", ".join(part for part in known if part)
        yield self.finding(
            Status.INFO,
            f"{slot.name} is read by pid {holder.pid}" + (f" ({who})" if who else ""),
            {
                "pid": holder.pid,
                "application_name": holder.application_name,
                "client_addr": holder.client_addr,
                "state": holder.state,
            },
            object=slot.name,
            fix=[
                Fix(
                    "action",
                    "to read it yourself stop that client; a session whose client is gone ends with"
                    f" SELECT pg_terminate_backend({holder.pid});",
                )
            ],
        )


class TwoPhase(SlotCheck):
    """The slot sends a prepared transaction when it is prepared only if its reader knows what that means.

    A slot with two_phase gives PREPARE TRANSACTION and COMMIT PREPARED as messages of their own to readers that ask
    for them with protocol version 3. The mark stays: before PostgreSQL 18 it cannot be taken off. supabase/etl speaks
    version 1, and cannot be handed such a slot.

    Risk: what was sent at PREPARE is not sent again at COMMIT PREPARED, so that the next reader, which does not ask
    for prepared transactions, may never see it.

    Fix: on 18 ALTER_REPLICATION_SLOT takes the mark off while nobody reads the slot; else make the slot anew.

    See: https://www.postgresql.org/docs/current/logicaldecoding-two-phase-commits.html
    """

    id = "slot.two_phase"
    title = "the slot leaves prepared transactions to their commit"

    def judge(self, context: Context, slot: Slot) -> Iterator[Finding]:
        evidence = {"two_phase": slot.two_phase}
        if not slot.two_phase:
            yield self.finding(Status.PASS, "its two_phase is off", evidence)
            return
        shared = context.wanted.store == "postgres"
        fix: tuple[Fix, ...] = ()
        if shared and context.server.major >= 18:
            fix = (*_stop_reader(slot), alter_slot(context, slot.name, "TWO_PHASE false"))
        elif shared:
            fix = (Fix("action", "make the slot anew without two_phase once its reader has caught up:"), drop(slot))
        yield self.finding(
            Status.WARN if shared else Status.INFO,
            f"{slot.name} sends prepared transactions at PREPARE"
            + (": supabase/etl cannot go on from it" if shared else ""),
            evidence,
            object=slot.name,
            fix=fix,
        )


class StateMatch(SlotCheck):
    """The slot stands where the pipeline's state says that it is done, or before it.

    A slot behind the stored position is as it should be: what lies between is sent again, and passed over. A slot
    ahead of it has been read by somebody else, or the state comes from a backup. Few bytes ahead, supabase/etl was
    started in between on a quiet server; the server then skips a transaction whose commit record starts at the stored
    position. A stored position beyond the end of the WAL is one of another history: of another server, or from before
    a restore. A table that is sync_done ahead of the slot stops supabase/etl at the table's next change.

    Risk: the changes between the two are in neither, and nothing else says so.

    Fix: copy the tables again, or go on from the slot's position with --accept-slot-position when another tool has
    processed what lies between.

    See: https://www.postgresql.org/docs/current/protocol-replication.html
    """

    id = "slot.state_match"
    title = "slot and stored position fit"

    def judge(self, context: Context, slot: Slot) -> Iterator[Finding]:
        here = slot.confirmed_flush_lsn
        unreadable = _unreadable(context)
        if unreadable:
            yield self.finding(
                Status.UNKNOWN,
                f"{' and '.join(unreadable)} cannot be read by {context.server.user}",
                fix=context.let_read(unreadable),
            )
            return
        positions = _positions(context, slot.name)
        ahead = [table for table in _saved(context, slot.name) if _is_ahead(table.state, table.lsn, slot)]
        if slot.lost or here is None or not (positions or ahead or here % WAL_ALIGNMENT):
            why = "the slot has no position" if slot.lost or here is None else "no position is stored"
            yield self.finding(Status.SKIP, f"{why}, so that there is nothing to compare")
            return
        for stored in positions:
            yield self._compare(context, slot, here, stored)
        past = here % WAL_ALIGNMENT
        if not positions and past not in (0, WAL_ALIGNMENT - 1):
            # The last byte of a record is where pgrepl leaves a slot that supabase/etl is to read.
            yield self.finding(
                Status.INFO,
                f"{slot.name} stands {past} bytes past {Lsn(here - past)}: supabase/etl was started on a quiet server,"
                " which skips a transaction that commits exactly there",
                {"confirmed_flush_lsn": str(slot.confirmed_flush_lsn)},
                object=slot.name,
            )
        for table in ahead:
            yield self.finding(
                Status.WARN,
                f"{table.label} is sync_done at {table.lsn}, ahead of the slot at {here}: supabase/etl stops at its"
                " next change",
                {"state": table.state, "lsn": str(table.lsn), "confirmed_flush_lsn": str(here)},
                object=table.label,
                fix=[reset(context, table)],
            )

    def _compare(self, context: Context, slot: Slot, here: int, stored: StoredPosition) -> Finding:
        end = context.server.wal_position
        gap = here - stored.position
        evidence = {
            "source": stored.source,
            "position": str(stored.position),
            "confirmed_flush_lsn": str(slot.confirmed_flush_lsn),
            "gap_bytes": gap,
        }
        if end is not None and stored.position > end:
            return self.finding(
                Status.FAIL,
                f"{stored.source} says {stored.position}, which is beyond the end of this server's WAL at {end}:"
                " the state is of another server, or of this one before a restore",
                {**evidence, "wal_end": str(end)},
                object=slot.name,
                fix=[copy_again(context)],
            )
        if gap <= 0:
            text = (
                "where the state says" if gap == 0 else f"{size_text(-gap)} before the stored position, which is well"
            )
            return self.finding(Status.PASS, f"it stands {text}", evidence)
        if gap < WAL_ALIGNMENT:
            far = "one byte" if gap == 1 else f"{gap} bytes"
            text = (
                f"{slot.name} stands {far} past the stored position {stored.position}: supabase/etl was started in"
                " between, and a transaction that commits exactly there would be skipped"
            )
        else:
            text = (
                f"{slot.name} stands at {slot.confirmed_flush_lsn}, {size_text(gap)} past the stored position"
                f" {stored.position}: those changes went to somebody else, or to nobody"
            )
        return self.finding(Status.FAIL, text, evidence, object=slot.name, fix=_close_gap(context))


class Failover(SlotCheck):
    """A failover does not lose the slot: it is marked for copying to the standbys, or there are none.

    From PostgreSQL 17 on a standby that synchronizes slots copies those with failover. The standby streams through a
    physical slot, and needs the settings of ha.slotsync. Before 17 only tools such as Patroni or the extension
    pg_failover_slots keep slots over a failover. Standbys without a slot of their own show only to members of
    pg_monitor.

    Risk: after a failover the slot is not there, its place in the WAL is lost, and everything is copied again.

    Fix: mark the slot while nobody reads it.

    See: https://www.postgresql.org/docs/current/logical-replication-failover.html
    """

    id = "slot.failover"
    title = "the slot survives a failover"
    grant = "pg_monitor"

    def judge(self, context: Context, slot: Slot) -> Iterator[Finding]:
        physical = [other.name for other in context.slots if other.physical and not other.temporary]
        evidence = {"failover": slot.failover, "synced": slot.synced, "physical_slots": physical}
        if context.server.in_recovery:
            yield self._on_standby(slot, evidence)
            return
        if slot.failover:
            yield self.finding(Status.PASS, "it is a failover slot", evidence)
            return
        reading = {other.holder.pid for other in context.slots if other.holder and not other.physical}
        others = [sender for sender in context.activity.senders if sender.pid not in reading]
        standbys = [sender for sender in others if sender.state in ("streaming", "catchup")]
        if not physical and not standbys:
            if any(sender.state is None for sender in others):
                yield self.finding(
                    Status.UNKNOWN,
                    f"whether there are standbys does not show to {context.server.user}",
                    evidence,
                    fix=context.let_see("pg_monitor"),
                )
            else:
                yield self.finding(Status.PASS, "there is no standby to fail over to", evidence)
            return
        text = f"{slot.name} is lost at a failover"
        if context.server.major < 17:
            yield self.finding(
                Status.INFO,
                f"{text}: PostgreSQL {context.server.major} does not copy slots to standbys",
                evidence,
                object=slot.name,
                fix=[Fix("action", "let Patroni (its slots: setting) or pg_failover_slots keep it, or upgrade to 17")],
            )
            return
        yield self.finding(
            Status.WARN,
            f"{text}: it has no failover mark, and there are standbys",
            evidence,
            object=slot.name,
            fix=[*_stop_reader(slot), alter_slot(context, slot.name, "FAILOVER true")],
        )

    def _on_standby(self, slot: Slot, evidence: Mapping[str, object]) -> Finding:
        if not slot.synced:
            return self.finding(Status.SKIP, "it is this standby's own, and stays here", evidence)
        if not slot.temporary:
            return self.finding(Status.PASS, "it is a copy of the primary's, ready for a failover", evidence)
        return self.finding(
            Status.WARN,
            f"{slot.name} is a copy of the primary's that is not ready for a failover yet",
            evidence,
            object=slot.name,
            fix=[Fix("action", "let its reader on the primary go on: the copy is ready when the two have met")],
        )


def drop(slot: Slot) -> Fix:
    """Drop a slot."""
    return Fix("command", f"pgrepl slots drop {slot.name}")


def copy_again(context: Context) -> Fix:
    """Forget the state of all tables, so that the next run copies them."""
    return Fix("command", shlex.join(["pgrepl", "state", "reset", "--all", *_which_state(context)]))


def reset(context: Context, table: TableState) -> Fix:
    """Forget the state of one table, where it is stored."""
    options = ["--store", "bookmarks", "--slot", table.slot or ""]
    if table.source == pipelines.STATE:
        options = ["--store", "postgres"]
        stored = {found.pipeline_id for found in context.states.tables if found.source == pipelines.STATE}
        if len(stored) > 1 or table.pipeline_id != context.pipeline_id:
            options += ["--pipeline-id", str(table.pipeline_id)]
    # A name with a full stop or a quote in it is told apart only by its OID.
    name = table.label if _PLAIN.fullmatch(table.label) else str(table.oid)
    return Fix("command", shlex.join(["pgrepl", "state", "reset", name, *options]))


def alter_slot(context: Context, name: str, option: str) -> Fix:
    """Change a slot, which only a command of the replication protocol can."""
    info = context.conn.info
    conninfo = make_conninfo(host=info.host, port=info.port, user=info.user, dbname=info.dbname, replication="database")
    return Fix(
        "command", shlex.join(["psql", conninfo, "-c", f"ALTER_REPLICATION_SLOT {quote_ident(name)} ({option})"])
    )


def _which_state(context: Context) -> list[str]:
    store = context.wanted.store
    options = [] if store == "memory" else ["--store", store]
    return [*options, "--slot", context.slot_name] if context.wanted.slot else options


def _stop_reader(slot: Slot) -> tuple[Fix, ...]:
    return (Fix("action", f"stop its reader for the moment (pid {slot.holder.pid})"),) if slot.holder else ()


def _close_gap(context: Context) -> tuple[Fix, ...]:
    store = context.wanted.store
    publications = ",".join(context.wanted.publications or [found.name for found in context.publications])
    fix = [Fix("action", "if those changes matter, copy the tables again:"), copy_again(context)]
    if publications:
        options = ["--store", store, *(["--slot", context.slot_name] if context.wanted.slot else [])]
        command = ["pgrepl", "tail", publications, *options, "--accept-slot-position"]
        fix += [
            Fix("action", "if another tool has processed them, go on from where the slot stands:"),
            Fix("command", shlex.join(command)),
        ]
    return tuple(fix)


def _saved(context: Context, name: str) -> list[TableState]:
    """The tables past their beginning in the state that goes with a slot."""
    source = {"postgres": pipelines.STATE, "bookmarks": pipelines.BOOKMARKS}.get(context.wanted.store)
    return [
        table
        for table in context.states.tables
        if table.source == source and table.state != "init" and _is_of(context, name, table.slot, table.pipeline_id)
    ]


def _unreadable(context: Context) -> list[str]:
    sources = _SOURCES.get(context.wanted.store, ())
    if context.wanted.store == "postgres":
        sources = (*sources, pipelines.STATE)
    return [name for name in sources if name in context.states.unreadable]


def _positions(context: Context, name: str) -> list[StoredPosition]:
    sources = _SOURCES.get(context.wanted.store, ())
    return [
        stored
        for stored in context.states.positions
        if stored.source in sources and _is_of(context, name, stored.slot, stored.pipeline_id)
    ]


def _is_of(context: Context, name: str, slot: str | None, pipeline: int | None) -> bool:
    if slot is not None:
        return slot == name
    return pipeline is not None and pipeline == context.pipeline_id


def _is_ahead(state: str, lsn: int | None, slot: Slot) -> bool:
    here = slot.confirmed_flush_lsn
    return state == "sync_done" and lsn is not None and here is not None and lsn > here
