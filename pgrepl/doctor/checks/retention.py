"""How much WAL does the server keep for slots, for how long, and is it there after a crash?"""

from __future__ import annotations

from collections.abc import Iterator

from pgrepl.doctor.check import Check
from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status
from pgrepl.units import size_text

_MB = 1 << 20
_GB = 1 << 30
_LEAST_SECONDS = 600
_DAY = 86400
_SMALLEST_LIMIT = 10 * _GB
_LARGEST_LIMIT = 50 * _GB
_SHORT_IDLE = 300

# Since the statistics were reset: a longer look than any that two samples give.
_WAL_RATE = """
SELECT w.wal_bytes::bigint,
       greatest(extract(epoch FROM pg_catalog.clock_timestamp() - w.stats_reset), 1)::float8
  FROM pg_catalog.pg_stat_wal w
"""


class KeepSize(Check):
    """The WAL that slots keep has a bound, and one that leaves time to act.

    max_slot_wal_keep_size says how much WAL a slot may keep; beyond it the slot is lost. Without a bound (-1, the
    default) WAL is kept until the disk is full. What the server writes on average is taken from pg_stat_wal.

    Risk: without a bound a reader that is gone fills the disk, and the server stops. With one that is too small a
    reader that is away for minutes loses its slot and needs a new snapshot. 0 loses slots at any checkpoint.

    Fix: set it to what the disk can spare, and to no less than what slots keep now: a smaller bound loses them at the
    next checkpoint. On Azure it cannot be set.

    See: https://www.postgresql.org/docs/current/runtime-config-replication.html#GUC-MAX-SLOT-WAL-KEEP-SIZE
    """

    id = "cfg.keep_size"
    title = "the WAL that slots keep has a fitting bound"

    def run(self, context: Context) -> Iterator[Finding]:
        megabytes = context.server.max_slot_wal_keep_size_mb
        row = context.conn.execute(_WAL_RATE).fetchone()
        written, seconds = row or (0, 1.0)
        rate = written / seconds
        kept = max((slot.retained_bytes or 0 for slot in context.slots), default=0)
        wanted = max(_SMALLEST_LIMIT, min(int(rate * _DAY), _LARGEST_LIMIT), 2 * kept)
        evidence = {
            "max_slot_wal_keep_size_mb": megabytes,
            "wal_bytes_per_second": round(rate),
            "most_kept_by_a_slot": kept,
        }
        if megabytes < 0:
            status, summary = Status.WARN, "no bound: a slot without a reader keeps WAL until the disk is full"
        elif megabytes == 0:
            status, summary = Status.FAIL, "max_slot_wal_keep_size is 0: any checkpoint may lose a slot"
        elif megabytes * _MB < min(written, rate * _LEAST_SECONDS):
            minutes = megabytes * _MB / rate / 60
            status = Status.WARN
            summary = f"{size_text(megabytes * _MB)} are written in {minutes:.1f} minutes on average"
        else:
            yield self.finding(Status.PASS, size_text(megabytes * _MB), evidence)
            return
        text = f"'{-(-wanted // _GB)}GB'"
        fix = context.change("max_slot_wal_keep_size", text, restart=False)
        if "max_slot_wal_keep_size" not in context.provider.fixed:
            fix = (*fix, Fix("action", "choose less if the disk has less to spare, but not less than slots keep now"))
        yield self.finding(status, summary, evidence, fix=fix)


class IdleSlotTimeout(Check):
    """A reader may be away for a while without losing its slot to idle_replication_slot_timeout.

    From 18 on the server invalidates, at a checkpoint, slots that nobody has used for so long. 0, the default, is
    never.

    Risk: a maintenance window that is longer than that costs the slot, and a new snapshot.

    Fix: 0, or longer than any planned downtime of the reader.

    See: https://www.postgresql.org/docs/current/runtime-config-replication.html#GUC-IDLE-REPLICATION-SLOT-TIMEOUT
    """

    id = "cfg.idle_slot_timeout"
    title = "an idle slot is not lost too soon"

    def run(self, context: Context) -> Iterator[Finding]:
        setting = context.session_settings.get("idle_replication_slot_timeout")
        if setting is None:
            yield self.finding(Status.SKIP, "there is no such limit below 18")
            return
        seconds = setting.number
        evidence = {"idle_replication_slot_timeout_s": seconds}
        if seconds == 0:
            yield self.finding(Status.PASS, "slots may be idle for ever", evidence)
        elif seconds <= _SHORT_IDLE:
            yield self.finding(
                Status.WARN,
                f"a slot is lost after {seconds} s without a reader",
                evidence,
                fix=context.change("idle_replication_slot_timeout", "'1d'", restart=False),
            )
        else:
            yield self.finding(
                Status.PASS if seconds >= _DAY else Status.INFO,
                f"a slot is lost after {seconds // 60} minutes without a reader",
                evidence,
            )


class Durable(Check):
    """What was committed and sent is there after a crash.

    A reader gets changes as soon as their commit is in the WAL. With fsync off the WAL may not be on the disk yet;
    with full_page_writes off a page may be torn; with synchronous_commit off a commit is reported before its WAL is
    flushed, though it is sent only after.

    Risk: after a crash of the machine the reader has changes that the server has not, or the server is corrupt.

    Fix: turn them on. It is a reload, no restart.

    See: https://www.postgresql.org/docs/current/runtime-config-wal.html#GUC-FSYNC
    """

    id = "cfg.fsync"
    title = "what was sent is there after a crash"

    def run(self, context: Context) -> Iterator[Finding]:
        found = context.session_settings
        values = {name: found[name].value for name in ("fsync", "full_page_writes", "synchronous_commit")}
        off = [name for name, value in values.items() if value == "off"]
        for name in off:
            lost = name == "synchronous_commit"
            yield self.finding(
                Status.INFO if lost else Status.WARN,
                "synchronous_commit is off: a crash loses the last commits, which were not sent either"
                if lost
                else f"{name} is off: after a crash readers may have what the server has not",
                values,
                object=name,
                fix=context.change(name, "on", restart=False),
            )
        if not off:
            yield self.finding(Status.PASS, "fsync, full_page_writes and synchronous_commit are on", values)
