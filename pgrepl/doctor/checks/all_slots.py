"""What do the slots of the cluster, whoever they belong to, cost the server?"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from pgrepl.catalog import blockers
from pgrepl.catalog.slots import Slot
from pgrepl.doctor.check import Check
from pgrepl.doctor.checks.slot import copy_again, drop
from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status
from pgrepl.names import quote_ident
from pgrepl.units import duration_text, size_text

_GB = 1 << 30
_MANY_BYTES, _VERY_MANY_BYTES = 10 * _GB, 100 * _GB
# Shares of what max_slot_wal_keep_size lets a slot keep; below the first the rate of half a second says nothing.
_MEASURED, _HALF, _FULL, _NEARLY_LOST = 0.25, 0.5, 0.75, 0.9
_SOON, _VERY_SOON = timedelta(hours=1), timedelta(minutes=10)

_LONG, _VERY_LONG = timedelta(hours=1), timedelta(days=1)
_WORTH_A_FAILURE = _GB

_OLD_XMIN, _ANCIENT_XMIN = 50_000_000, 1_000_000_000

_SPILLED_A_DAY = 10 * _GB
_DAY = timedelta(days=1)

_WORST = (Status.PASS, Status.INFO, Status.WARN, Status.FAIL)


class Valid(Check):
    """No slot has been given up by the server.

    A lost slot can never be read again; its reader gets SQLSTATE 55000. The server gives a slot up when its reader
    falls further behind than max_slot_wal_keep_size, and from 18 on when nobody reads it for longer than
    idle_replication_slot_timeout; a standby does so when what it replays removes rows of the catalogs that the slot
    needs, or when wal_level on the primary is no longer logical. Before the loss wal_status says unreserved: it then
    happens at the next checkpoint.

    Risk: the changes from the slot's position on are lost to its reader. A lost slot keeps no WAL, but a place.

    Fix: drop it and let the reader copy its tables again; then give the slots more room, or the reader less to do.

    See: https://www.postgresql.org/docs/current/runtime-config-replication.html#GUC-MAX-SLOT-WAL-KEEP-SIZE
    """

    id = "slot.valid"
    title = "no slot is lost"
    needs = ("conn.sql", "server.version")

    def run(self, context: Context) -> Iterator[Finding]:
        good = True
        for slot in context.slots:
            evidence = {
                "wal_status": slot.wal_status,
                "invalidation_reason": slot.invalidation_reason,
                "safe_wal_size": slot.safe_wal_size,
            }
            if slot.lost:
                good = False
                ours = slot.name == context.slot_name
                again = (copy_again(context),) if ours and context.wanted.store != "memory" else ()
                yield self.finding(
                    Status.FAIL if ours else Status.WARN,
                    slot.verdict.text,
                    evidence,
                    object=slot.name,
                    fix=[drop(slot), *again],
                )
            elif slot.wal_status == "unreserved":
                good = False
                yield self.finding(
                    Status.WARN,
                    slot.verdict.text,
                    evidence,
                    object=slot.name,
                    fix=[
                        Fix("action", "start its reader at once, or let slots keep more:"),
                        *_more_room(context, slot),
                    ],
                )
            elif slot.wal_status == "extended":
                good = False
                yield self.finding(Status.INFO, "it keeps more WAL than max_wal_size", evidence, object=slot.name)
        if good:
            yield self.finding(Status.PASS, _all_of(context.slots, "valid"), {"slots": len(context.slots)})


class Lag(Check):
    """No slot is so far behind that it fills the disk, or is about to be lost.

    restart_lsn is where the WAL begins that is kept for the slot, and confirmed_flush_lsn how far its reader says it
    is; a long transaction keeps the first one back while the second goes on. Looked at are 10 GB and 100 GB of WAL
    kept; with a max_slot_wal_keep_size also three quarters and nine tenths of it, and, once a quarter is used, whether
    the slot would be lost within an hour at the rate of this moment, once half is used within ten minutes.

    Risk: without max_slot_wal_keep_size the disk fills, and the server stops; with it the slot is lost.

    Fix: start the reader, or make it faster. Drop a slot that nobody reads any more.

    See: https://www.postgresql.org/docs/current/view-pg-replication-slots.html
    """

    id = "slot.lag"
    title = "no slot is far behind"
    needs = ("conn.sql", "server.version")
    samples = True

    def run(self, context: Context) -> Iterator[Finding]:
        keeping = [slot for slot in context.slots if slot.retained_bytes is not None]
        rate = context.wal_rate
        good = True
        for slot in keeping:
            growth = None if rate is None else rate.falling_behind.get(slot.name)
            status, left = judge_lag(slot, growth)
            if status is Status.PASS:
                continue
            good = False
            yield self.finding(
                status,
                _lag_text(slot, left),
                {
                    "retained_bytes": slot.retained_bytes,
                    "lag_bytes": slot.lag_bytes,
                    "safe_wal_size": slot.safe_wal_size,
                    "falling_behind_bytes_per_second": None if growth is None else round(growth),
                    "seconds_left": None if left is None else round(left.total_seconds()),
                },
                object=slot.name,
                fix=_catch_up(slot),
            )
        if good:
            furthest = max(keeping, key=lambda slot: slot.retained_bytes or 0, default=None)
            text = (
                "no slot keeps WAL" if furthest is None else f"{furthest.name} keeps most: {_lag_text(furthest, None)}"
            )
            yield self.finding(Status.PASS, text, {"slots": len(keeping)})


class Inactive(Check):
    """Every slot is read by somebody, now and then.

    A slot that nobody reads keeps WAL from where it stands, and the rows of the system catalogs that decoding from
    there would need. From PostgreSQL 17 on the server says since when; a restart of the server counts as a use.
    Slots that a standby has copied, and physical ones that were never used, are left out. After an hour this is worth
    a look, after a day with 1 GB of WAL a failure.

    Risk: the disk fills; VACUUM cannot clean the catalogs.

    Fix: start the reader, or drop the slot if there will be none.

    See: https://www.postgresql.org/docs/current/warm-standby.html#STREAMING-REPLICATION-SLOTS
    """

    id = "slot.inactive"
    title = "no slot is left alone"
    needs = ("conn.sql", "server.version")

    def run(self, context: Context) -> Iterator[Finding]:
        good = True
        for slot in context.slots:
            if slot.active or slot.lost or slot.restart_lsn is None or (slot.synced and slot.on_standby):
                continue
            status = _judge_idle(slot)
            if status is Status.PASS:
                continue
            good = False
            since = (
                "since when is not known before 17" if slot.inactive_for is None else duration_text(slot.inactive_for)
            )
            yield self.finding(
                status,
                f"{slot.name} is not read by anybody ({since}), and keeps {size_text(slot.retained_bytes or 0)} of WAL",
                {
                    "inactive_since": slot.inactive_since and slot.inactive_since.isoformat(),
                    "retained_bytes": slot.retained_bytes,
                    "database": slot.database,
                },
                object=slot.name,
                fix=_start_or_drop(slot),
            )
        if good:
            yield self.finding(Status.PASS, "none, for as long as can be told", {"slots": len(context.slots)})


class Building(Check):
    """No slot has been waiting for transactions to end since it began to be made.

    A logical slot begins at a point where every transaction that was running has ended. Until then its creator waits,
    without a word. What holds it up is named: a session that is idle in a transaction, a long query that writes, or a
    prepared transaction that was forgotten. On a standby the primary has to say which transactions run.

    Risk: the snapshot does not start, and the slot keeps WAL meanwhile.

    Fix: end what it waits for; on a standby SELECT pg_log_standby_snapshot() on the primary.

    See: https://www.postgresql.org/docs/current/logicaldecoding-explanation.html
    """

    id = "slot.building"
    title = "no slot waits to be made"
    needs = ("conn.sql", "server.version")

    def run(self, context: Context) -> Iterator[Finding]:
        good = True
        for slot in context.slots:
            if slot.physical or slot.lost or slot.confirmed_flush_lsn is not None or (slot.synced and slot.on_standby):
                continue
            good = False
            if slot.holder is None:
                yield self.finding(
                    Status.WARN,
                    f"the creation of {slot.name} was never finished",
                    {"blockers": []},
                    object=slot.name,
                    fix=[drop(slot)],
                )
                continue
            found = blockers.of_backend(context.conn, slot.holder.pid)
            waits = "; ".join(map(str, found)) or "the transactions that run now"
            yield self.finding(
                Status.WARN,
                f"{slot.name} is being made by pid {slot.holder.pid}, which waits for {waits}",
                {"pid": slot.holder.pid, "blockers": [{"pid": other.pid, "gid": other.gid} for other in found]},
                object=slot.name,
                fix=[*map(_end, found)] or [_let_it_begin(context)],
            )
        if good:
            yield self.finding(Status.PASS, "none does")


class Xmin(Check):
    """No slot keeps VACUUM from its work for long.

    catalog_xmin of a logical slot is the oldest transaction whose dead rows in the system catalogs decoding may still
    need. xmin of a physical slot is what a standby with hot_standby_feedback reads, and concerns all tables. From 50
    million transactions on this is worth a look, from a billion on a failure: the server stops taking writes when its
    oldest row is two billion old.

    Risk: bloated catalogs make everything slow, and in the end the server refuses to write.

    Fix: let the reader go on, or drop the slot; VACUUM does the rest.

    See: https://www.postgresql.org/docs/current/routine-vacuuming.html#VACUUM-FOR-WRAPAROUND
    """

    id = "slot.xmin"
    title = "no slot keeps VACUUM from cleaning up"
    needs = ("conn.sql", "server.version")

    def run(self, context: Context) -> Iterator[Finding]:
        good = True
        oldest = 0
        for slot in context.slots:
            counted = context.slot_statistics.get(slot.name)
            if counted is None or slot.lost:
                continue
            age = max(counted.xmin_age or 0, counted.catalog_xmin_age or 0)
            oldest = max(oldest, age)
            if age < _OLD_XMIN:
                continue
            good = False
            yield self.finding(
                Status.FAIL if age >= _ANCIENT_XMIN else Status.WARN,
                f"{slot.name} keeps VACUUM from removing rows that died in the last {age:,} transactions",
                {"xmin_age": counted.xmin_age, "catalog_xmin_age": counted.catalog_xmin_age},
                object=slot.name,
                fix=_start_or_drop(slot),
            )
        if good:
            yield self.finding(Status.PASS, f"the oldest is {oldest:,} transactions back", {"oldest": oldest})


class Orphans(Check):
    """Every slot that is named as supabase/etl names them belongs to a pipeline that is known here.

    The names hold the number of a pipeline, made of the host and the database as its configuration writes them. A
    host that gets another name makes another number, and leaves the old slot behind. A pipeline is known when any
    state table of this database has a row of it; with the memory store there is none, so that its slots show here
    whenever nobody reads them. Slots of other databases are not judged.

    Risk: an orphan keeps WAL for ever.

    Fix: look at the list, then drop what nobody will read again.

    See: https://www.postgresql.org/docs/current/logicaldecoding-explanation.html
    """

    id = "slot.orphans"
    title = "every pipeline's slot has a pipeline"
    needs = ("conn.sql", "server.version")

    def run(self, context: Context) -> Iterator[Finding]:
        named = [slot for slot in context.slots if slot.pipeline_id is not None and not slot.active]
        here = [slot for slot in named if slot.database == context.server.database]
        # What was named is what somebody wants.
        candidates = [slot for slot in here if slot.name != context.wanted.slot]
        if not candidates:
            elsewhere = {"other_databases": len(named) - len(here)}
            yield self.finding(Status.PASS, "no slot without a reader has the name of a pipeline", elsewhere)
            return
        states = context.states
        unknown = [slot for slot in candidates if slot.pipeline_id is None or not states.knows(slot.pipeline_id)]
        evidence = {"state_tables": list(states.read), "other_databases": len(named) - len(here)}
        if unknown and states.unreadable:
            unreadable = list(states.unreadable)
            yield self.finding(
                Status.UNKNOWN,
                f"whether {len(unknown)} slot{'s'[: len(unknown) != 1]} belong{'s'[: len(unknown) == 1]} to a pipeline"
                f" is in {' and '.join(unreadable)}, which {context.server.user} may not read",
                {**evidence, "slots": [slot.name for slot in unknown]},
                fix=context.let_read(unreadable),
            )
            return
        for slot in unknown:
            yield self.finding(
                Status.WARN,
                f"{slot.name} is read by nobody, and "
                + ("no state table knows its pipeline" if states.read else "there is no state of any pipeline here"),
                {**evidence, "pipeline_id": slot.pipeline_id, "retained_bytes": slot.retained_bytes},
                object=slot.name,
                fix=[Fix("command", "pgrepl slots drop --orphans --dry-run"), drop(slot)],
            )
        if not unknown:
            yield self.finding(Status.PASS, "all that nobody reads have one", evidence)


class Spill(Check):
    """Transactions are decoded in memory.

    What is larger than logical_decoding_work_mem is written to disk while it is decoded, and read again at its
    commit, once for each slot. A reader that asks for streaming gets such transactions before their end instead.

    Risk: a large transaction arrives later, and writes its size to the data directory's disk.

    Fix: give the role that reads more memory, or let the reader stream; then reset the counters. The memory is used
    once for each slot.

    See: https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-REPLICATION-SLOTS-VIEW
    """

    id = "slot.spill"
    title = "transactions are decoded in memory"
    needs = ("conn.sql", "server.version")

    def run(self, context: Context) -> Iterator[Finding]:
        good = True
        for slot in context.slots:
            counted = context.slot_statistics.get(slot.name)
            if counted is None or not counted.spilled_transactions:
                continue
            good = False
            days = None if counted.counted_for is None else max(counted.counted_for / _DAY, 1.0)
            a_day = None if days is None else counted.spilled_bytes / days
            since = "" if counted.counted_for is None else f" in {duration_text(counted.counted_for)}"
            many = counted.spilled_transactions != 1
            yield self.finding(
                Status.WARN if a_day is not None and a_day > _SPILLED_A_DAY else Status.INFO,
                f"decoding for {slot.name} wrote {counted.spilled_transactions} transaction{'s'[:many]} with"
                f" {size_text(counted.spilled_bytes)} to disk{since}",
                {
                    "spill_txns": counted.spilled_transactions,
                    "spill_bytes": counted.spilled_bytes,
                    "stream_txns": counted.streamed_transactions,
                    "stats_reset": counted.reset_at and counted.reset_at.isoformat(),
                },
                object=slot.name,
                fix=[
                    Fix("sql", f"ALTER ROLE {quote_ident(context.role_name)} SET logical_decoding_work_mem = '256MB';"),
                    Fix("action", "start the slot's reader again, which takes the new value when it connects"),
                    Fix("sql", f"SELECT pg_stat_reset_replication_slot('{slot.name}');"),
                ],
            )
        if good:
            yield self.finding(Status.PASS, "no slot has written any to disk")


def judge_lag(slot: Slot, growth: float | None) -> tuple[Status, timedelta | None]:
    """Say how bad it is that a slot keeps its WAL, and when it is lost when it falls behind by ``growth`` bytes/s."""
    kept, safe = slot.retained_bytes or 0, slot.safe_wal_size
    status = Status.FAIL if kept >= _VERY_MANY_BYTES else Status.WARN if kept >= _MANY_BYTES else Status.PASS
    if safe is None:
        return status, None
    used = kept / max(kept + safe, 1) if safe > 0 else 1.0
    left = timedelta(seconds=safe / growth) if growth is not None and growth > 0 and safe > 0 else None
    share = Status.FAIL if used >= _NEARLY_LOST else Status.WARN if used >= _FULL else Status.PASS
    soon = Status.PASS
    if left is not None and left < _SOON and used >= _MEASURED:
        soon = Status.FAIL if left < _VERY_SOON and used >= _HALF else Status.WARN
    return max(status, share, soon, key=_WORST.index), left


def _lag_text(slot: Slot, left: timedelta | None) -> str:
    parts = [f"{size_text(slot.retained_bytes or 0)} of WAL kept"]
    if slot.lag_bytes is not None:
        parts.append(f"{size_text(slot.lag_bytes)} of it not confirmed yet")
    if slot.safe_wal_size is not None:
        parts.append(
            f"lost after {size_text(slot.safe_wal_size)} more"
            if slot.safe_wal_size > 0
            else "past its limit: about to be lost"
        )
    if left is not None:
        parts.append(f"in {duration_text(left)} at the rate of now")
    return ", ".join(parts)


def _judge_idle(slot: Slot) -> Status:
    much = (slot.retained_bytes or 0) >= _WORTH_A_FAILURE
    if slot.inactive_for is None:
        return Status.WARN if much else Status.INFO
    if slot.inactive_for >= _VERY_LONG and much:
        return Status.FAIL
    return Status.WARN if slot.inactive_for >= _LONG else Status.PASS


def _more_room(context: Context, slot: Slot) -> tuple[Fix, ...]:
    kept = (slot.retained_bytes or 0) >> 20
    raised = 2 * max(context.server.max_slot_wal_keep_size_mb, kept)
    return context.change("max_slot_wal_keep_size", f"'{raised}MB'", restart=False)


def _catch_up(slot: Slot) -> list[Fix]:
    if slot.active:
        return [
            Fix("command", f"pgrepl slots lag {slot.name}"),
            Fix("action", "find out what its reader waits for; a long transaction keeps the slot back, too"),
        ]
    return _start_or_drop(slot)


def _start_or_drop(slot: Slot) -> list[Fix]:
    if slot.active:
        return [Fix("action", "let its reader catch up, and end the long transactions that it waits for")]
    return [Fix("action", "start its reader, or if there will be none:"), drop(slot)]


def _end(blocker: blockers.Blocker) -> Fix:
    if blocker.gid is not None:
        literal = "'" + blocker.gid.replace("'", "''") + "'"
        return Fix(
            "action",
            f"decide about the prepared transaction, in its database: COMMIT PREPARED {literal};"
            f" or ROLLBACK PREPARED {literal};",
        )
    return Fix("action", f"end that transaction: SELECT pg_terminate_backend({blocker.pid});")


def _let_it_begin(context: Context) -> Fix:
    if context.server.in_recovery:
        return Fix("action", "on the primary: SELECT pg_log_standby_snapshot();")
    return Fix("action", "wait, and look again")


def _all_of(slots: list[Slot], what: str) -> str:
    return f"all {len(slots)} are {what}" if len(slots) > 1 else f"it is {what}" if slots else "there is none"
