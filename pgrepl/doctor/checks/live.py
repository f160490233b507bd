"""What happens on the server at this moment that a stream would feel?"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from pgrepl.catalog.activity import Transaction
from pgrepl.doctor.check import Check
from pgrepl.doctor.checks.slot import drop
from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status
from pgrepl.units import duration_text, size_text

_LONG_SECONDS = 60.0
_TIMES_MAX_WAL = 3
_MANY_READERS = 4


class LongXact(Check):
    """No transaction that writes has been open for longer than a minute.

    A new logical slot waits until every transaction that has written something has ended, and restart_lsn of the
    slots that are there cannot pass the oldest of them. Other roles' sessions show only to members of
    pg_read_all_stats.

    Risk: a snapshot does not start, WAL is kept, and after a restart of the reader all of it is decoded again.

    Fix: let the application commit. Cancelling ends a statement; a session that is idle in its transaction has to be
    terminated. idle_in_transaction_session_timeout does that by itself.

    See: https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-IDLE-IN-TRANSACTION-SESSION-TIMEOUT
    """

    id = "live.long_xact"
    title = "no writing transaction stays open"
    needs = ("conn.sql", "server.version")
    grant = "pg_monitor"

    def run(self, context: Context) -> Iterator[Finding]:
        activity = context.activity
        long = [found for found in activity.transactions if found.seconds >= _LONG_SECONDS]
        for found in long:
            query = " ".join((found.query or "").split())[:80]
            who = ", ".join(part for part in (found.user, found.application, found.state) if part)
            age = duration_text(timedelta(seconds=found.seconds))
            yield self.finding(
                Status.WARN,
                f"pid {found.pid} ({who}) has been in a transaction that writes for {age}"
                + (f": {query}" if query else ""),
                {
                    "pid": found.pid,
                    "user": found.user,
                    "database": found.database,
                    "application_name": found.application,
                    "state": found.state,
                    "seconds": round(found.seconds),
                },
                object=f"pid {found.pid}",
                fix=[_end(found)],
            )
        if activity.hidden:
            yield self.finding(
                Status.UNKNOWN,
                f"{activity.hidden} session{'s'[: activity.hidden != 1]} of other roles cannot be looked into by"
                f" {context.server.user}",
                {"hidden_sessions": activity.hidden},
                fix=context.let_see("pg_monitor"),
            )
        elif not long:
            running = len(activity.transactions)
            text = "none does" if not running else f"{running} open, none for as long as {_LONG_SECONDS:.0f} s"
            yield self.finding(Status.PASS, text, {"open": running})


class Prepared(Check):
    """No prepared transaction waits for its commit.

    PREPARE TRANSACTION leaves a transaction open that belongs to no session, survives a restart, and waits for its
    COMMIT PREPARED. It holds up new slots like an open session, and shows in pg_blocking_pids only as pid 0. One that
    is younger than a minute is a transaction manager at work; an older one was forgotten, as a rule.

    Risk: no slot can be made, restart_lsn stands still, its locks stay, and VACUUM cannot clean up.

    Fix: decide whether it is to be committed or rolled back, in its database, as its owner or a superuser.

    See: https://www.postgresql.org/docs/current/sql-prepare-transaction.html
    """

    id = "live.prepared"
    title = "no prepared transaction is forgotten"
    needs = ("conn.sql", "server.version")

    def run(self, context: Context) -> Iterator[Finding]:
        prepared = context.activity.prepared
        for found in prepared:
            literal = "'" + found.gid.replace("'", "''") + "'"
            old = found.seconds >= _LONG_SECONDS
            yield self.finding(
                Status.WARN if old else Status.INFO,
                f"prepared by {found.owner} in database {found.database}"
                f" {duration_text(timedelta(seconds=found.seconds))} ago",
                {"owner": found.owner, "database": found.database, "seconds": round(found.seconds)},
                object=found.gid,
                fix=[
                    Fix(
                        "action",
                        f"in database {found.database}: COMMIT PREPARED {literal}; or ROLLBACK PREPARED {literal};",
                    )
                ],
            )
        if not prepared:
            yield self.finding(Status.PASS, "there is none")


class WalRate(Check):
    """How fast the server writes WAL, on a standby how fast it replays it.

    Measured between two looks half a second apart, while the other checks run. Every logical slot decodes all of it,
    whatever its publication says, and an idle slot keeps all of it.

    Risk: none by itself. It says how long the disk, or max_slot_wal_keep_size, lasts when a reader is away.

    Fix: nothing to mend.

    See: https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-WAL-VIEW
    """

    id = "live.wal_rate"
    title = "how fast WAL is written"
    needs = ("conn.sql", "server.version")
    samples = True

    def run(self, context: Context) -> Iterator[Finding]:
        rate = context.wal_rate
        if rate is None:
            yield self.finding(Status.SKIP, "this standby has replayed nothing yet")
            return
        doing = "replayed" if context.server.in_recovery else "written"
        yield self.finding(
            Status.INFO,
            f"{size_text(round(rate.written))}/s {doing}, measured over {rate.seconds:.1f} s",
            {"bytes_per_second": round(rate.written), "seconds": round(rate.seconds, 3)},
        )


class Disk(Check):
    """pg_wal is not much larger than max_wal_size.

    Between checkpoints it stays about as large as max_wal_size. More is kept for a slot, for wal_keep_size, or for
    an archive_command that fails. From three times max_wal_size on this is worth a look. How much room the disk has
    left no SQL tells. The directory shows only to members of pg_monitor.

    Risk: when the disk is full the server stops, and it does not start before there is room.

    Fix: start the reader of the slot that keeps the WAL, or drop the slot; mend the archiving.

    See: https://www.postgresql.org/docs/current/wal-configuration.html
    """

    id = "live.disk"
    title = "pg_wal is of its usual size"
    needs = ("conn.sql", "server.version")
    grant = "pg_monitor"

    def run(self, context: Context) -> Iterator[Finding]:
        found = context.pg_wal
        keeping = [slot for slot in context.slots if slot.retained_bytes]
        first = max(keeping, key=lambda slot: slot.retained_bytes or 0, default=None)
        evidence = {
            "bytes": found.size,
            "files": found.files,
            "max_wal_size": found.max_wal_size,
            "wal_keep_size": found.wal_keep_size,
            "slot": first and first.name,
            "slot_retained_bytes": first and first.retained_bytes,
            "archiving_failed": found.archiving_failed,
        }
        text = f"pg_wal holds {size_text(found.size)}, max_wal_size is {size_text(found.max_wal_size)}"
        if found.size <= _TIMES_MAX_WAL * found.max_wal_size + found.wal_keep_size:
            yield self.finding(Status.PASS, text, evidence)
            return
        fix: list[Fix] = []
        if found.archiving_failed:
            text += f"; archiving fails at {found.archiving_failed}"
            fix.append(Fix("action", "mend archive_command: the server's log says why it fails"))
        if first is not None:
            text += f"; slot {first.name} keeps {size_text(first.retained_bytes or 0)} of it"
            fix += [Fix("action", "start the slot's reader, or if there will be none:"), drop(first)]
        fix.append(Fix("action", "make sure that the disk has room: no SQL tells"))
        yield self.finding(Status.WARN, text, evidence, fix=fix)


class SlotCount(Check):
    """Not more than four logical slots are read at a time.

    Each reader has a walsender that decodes the whole WAL of the cluster for itself, the changes of other databases
    and of unpublished tables included, and leaves out afterwards what is not published.

    Risk: the server decodes everything many times over; readers fall behind.

    Fix: let several tables, or several consumers, share one slot.

    See: https://www.postgresql.org/docs/current/logicaldecoding-explanation.html
    """

    id = "live.slot_count"
    title = "few logical slots are read at a time"
    needs = ("conn.sql", "server.version")

    def run(self, context: Context) -> Iterator[Finding]:
        read = [slot.name for slot in context.slots if slot.active and not slot.physical]
        evidence = {"active_logical_slots": read}
        if len(read) > _MANY_READERS:
            yield self.finding(
                Status.WARN,
                f"{len(read)} logical slots are read, and each decodes all WAL",
                evidence,
                fix=[Fix("action", "let consumers share a slot, or stop those that are not needed")],
            )
        else:
            yield self.finding(Status.PASS, f"{len(read)} at this moment", evidence)


def _end(found: Transaction) -> Fix:
    function = "pg_cancel_backend" if found.state == "active" else "pg_terminate_backend"
    return Fix("action", f"let the application commit, or end it: SELECT {function}({found.pid});")
