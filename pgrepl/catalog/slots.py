"""Replication slots: what the server says of each, and what that means."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pgrepl.catalog import blockers
from pgrepl.catalog.blockers import Blocker
from pgrepl.lsn import Lsn
from pgrepl.names import SlotKind, parse_slot
from pgrepl.units import duration_text, size_text

if TYPE_CHECKING:
    import psycopg

Level = Literal["ok", "warn", "fail"]

_MANY_BYTES = 1 << 30
_LONG = timedelta(hours=1)
_VERY_LONG = timedelta(days=1)
_OLD_XMIN = 50_000_000
_ANCIENT_XMIN = 1_000_000_000


class Verdict(NamedTuple):
    """How a slot fares, in one word for programs and one line for people."""

    level: Level
    text: str


@dataclass(frozen=True)
class Holder:
    """The session that uses a slot.

    ``client_addr`` is None over a socket; it and ``state``, the walsender's, are None also where the asker may not
    see them.
    """

    pid: int
    application_name: str | None
    client_addr: str | None
    state: str | None


@dataclass(frozen=True)
class Slot:
    """One replication slot.

    ``plugin`` and ``database`` are None for a physical slot. ``retained_bytes`` is the WAL kept because of
    ``restart_lsn``, ``lag_bytes`` what was written since ``confirmed_flush_lsn``, both up to the end of the flushed
    WAL, on a standby of the replayed WAL; both are None for a lost slot, which keeps nothing and can give nothing.
    ``safe_wal_size`` is how much may still be written before the slot may be lost: negative past the limit, None
    without one. ``invalidation_reason``, ``inactive_since``, ``inactive_for``, ``failover`` and ``synced`` are None
    below 17. ``on_standby`` says that the server is in recovery. ``wal_end`` is what the sizes were measured to, at
    ``seen_at`` of the server's clock; None on a standby that has replayed nothing.

    ``blockers`` are whom the creation of a slot that is not finished waits for. ``orphaned`` says whether a pipeline's
    slot belongs to none that is known, None where that cannot be told: see pgrepl.catalog.orphans.
    """

    name: str
    database: str | None
    plugin: str | None
    temporary: bool
    active: bool
    holder: Holder | None
    restart_lsn: Lsn | None
    confirmed_flush_lsn: Lsn | None
    retained_bytes: int | None
    lag_bytes: int | None
    wal_status: str | None
    safe_wal_size: int | None
    invalidation_reason: str | None
    inactive_since: datetime | None
    inactive_for: timedelta | None
    failover: bool | None
    synced: bool | None
    two_phase: bool | None
    catalog_xmin_age: int | None
    on_standby: bool
    wal_end: Lsn | None
    seen_at: datetime
    blockers: tuple[Blocker, ...] = ()
    orphaned: bool | None = None

    @property
    def physical(self) -> bool:
        """Whether this is a standby's or a backup's slot."""
        return self.plugin is None

    @property
    def kind(self) -> SlotKind:
        """Whose it is by its name: a pipeline's ``apply`` or ``table-sync`` slot, or ``other``."""
        return parse_slot(self.name).kind

    @property
    def pipeline_id(self) -> int | None:
        """The pipeline that its name holds, unsigned."""
        return parse_slot(self.name).pipeline_id

    @property
    def lost(self) -> bool:
        """Whether the server has given the slot up: no reader can ever use it again."""
        return self.wal_status == "lost" or self.invalidation_reason is not None

    @property
    def unfinished(self) -> bool:
        """Whether this is a logical slot whose creation has not come to its end, and may never come."""
        return not self.physical and not self.lost and self.confirmed_flush_lsn is None

    @property
    def verdict(self) -> Verdict:
        """What the state of the slot means for the person who looks at it."""
        return _judge(self)

    def document(self) -> dict[str, Any]:
        """Give the slot as a JSON object: LSNs and times as text, sizes in bytes, what is not known as null."""
        holder = self.holder
        return {
            "name": self.name,
            "kind": self.kind,
            "pipeline_id": self.pipeline_id,
            "database": self.database,
            "plugin": self.plugin,
            "temporary": self.temporary,
            "active": self.active,
            "holder": holder
            and {
                "pid": holder.pid,
                "application_name": holder.application_name,
                "client_addr": holder.client_addr,
                "state": holder.state,
            },
            "restart_lsn": _text(self.restart_lsn),
            "confirmed_flush_lsn": _text(self.confirmed_flush_lsn),
            "retained_bytes": self.retained_bytes,
            "lag_bytes": self.lag_bytes,
            "wal_status": self.wal_status,
            "safe_wal_size": self.safe_wal_size,
            "invalidation_reason": self.invalidation_reason,
            "inactive_since": self.inactive_since and self.inactive_since.isoformat(),
            "failover": self.failover,
            "synced": self.synced,
            "two_phase": self.two_phase,
            "catalog_xmin_age": self.catalog_xmin_age,
            "verdict": self.verdict._asdict(),
        }


def _text(lsn: Lsn | None) -> str | None:
    return None if lsn is None else str(lsn)


# Columns that not every version has are read from the row as JSON, so that one query serves them all. A lost slot
# keeps its old positions, from which nothing can be had any more: how far they are away would mean nothing.
_SLOTS = """
SELECT s.slot_name::text AS name, s.database::text, s.plugin::text, s.temporary, s.active,
       s.active_pid, a.application_name, a.client_addr::text, w.state,
       s.restart_lsn::text, s.confirmed_flush_lsn::text,
       CASE WHEN usable THEN pg_wal_lsn_diff(here.lsn, s.restart_lsn)::bigint END AS retained_bytes,
       CASE WHEN usable THEN pg_wal_lsn_diff(here.lsn, s.confirmed_flush_lsn)::bigint END AS lag_bytes,
       s.wal_status, s.safe_wal_size, newer.invalidation_reason,
       newer.inactive_since, clock_timestamp() - newer.inactive_since AS inactive_for,
       newer.failover, newer.synced, s.two_phase,
       age(s.catalog_xmin) AS catalog_xmin_age, here.standby AS on_standby, here.lsn::text AS wal_end,
       clock_timestamp() AS seen_at
FROM pg_catalog.pg_replication_slots s
CROSS JOIN LATERAL jsonb_to_record(to_jsonb(s)) AS newer
     (invalidation_reason text, inactive_since timestamptz, failover boolean, synced boolean)
CROSS JOIN LATERAL (SELECT s.wal_status IS DISTINCT FROM 'lost' AND newer.invalidation_reason IS NULL AS usable) u
CROSS JOIN (SELECT pg_is_in_recovery() AS standby,
                   CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                        ELSE pg_current_wal_flush_lsn() END AS lsn) here
LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid
LEFT JOIN pg_catalog.pg_stat_replication w ON w.pid = s.active_pid
ORDER BY s.slot_name COLLATE "C"
"""


def all_of(conn: psycopg.Connection) -> list[Slot]:
    """Read every slot of the cluster, by name; any role that can connect may."""
    from psycopg.rows import dict_row

    with conn.cursor(row_factory=dict_row) as cursor:
        found = [_slot(row) for row in cursor.execute(_SLOTS)]
    return [_with_blockers(conn, slot) for slot in found]


def _slot(row: dict[str, Any]) -> Slot:
    pid = row.pop("active_pid")
    session = Holder(pid, row.pop("application_name"), row.pop("client_addr"), row.pop("state"))
    names = ("restart_lsn", "confirmed_flush_lsn", "wal_end")
    positions = {name: Lsn.parse(row[name]) if row[name] else None for name in names}
    return Slot(**{**row, **positions}, holder=None if pid is None else session)


def _with_blockers(conn: psycopg.Connection, slot: Slot) -> Slot:
    if not slot.unfinished or slot.holder is None:
        return slot
    return replace(slot, blockers=tuple(blockers.of_backend(conn, slot.holder.pid)))


def _judge(slot: Slot) -> Verdict:
    if slot.lost:
        needed = "its standby must be made anew" if slot.physical else "its reader needs a new snapshot"
        return Verdict("fail", f"lost: {_why_lost(slot)}; drop it, {needed}")
    if slot.wal_status == "unreserved":
        over = f"{size_text(-slot.safe_wal_size)} " if slot.safe_wal_size is not None else ""
        return Verdict("warn", f"will be lost at the next checkpoint: {over}past max_slot_wal_keep_size")
    if slot.synced and slot.on_standby:
        ready = "not ready for a failover yet" if slot.temporary else "ready for a failover"
        return Verdict("warn" if slot.temporary else "ok", f"copied from the primary, {ready}")
    if slot.unfinished:
        return _being_created(slot)
    level, text = _in_use(slot) if slot.active else _idle(slot)
    dangers = [danger for danger in (_orphan(slot), _nearly_lost(slot), _old_xmin(slot)) if danger is not None]
    return Verdict(
        max([level, *(danger.level for danger in dangers)], key=("ok", "warn", "fail").index),
        "; ".join([text, *(danger.text for danger in dangers)]),
    )


def _being_created(slot: Slot) -> Verdict:
    if slot.holder is None:
        return Verdict("warn", "its creation was never finished: drop it")
    if slot.blockers:
        waits = f"waits for {'; '.join(map(str, slot.blockers))}"
    elif slot.on_standby:
        waits = "waits for the primary to log what runs there: SELECT pg_log_standby_snapshot() on the primary helps"
    else:
        waits = "waits until the transactions that run now have ended"
    return Verdict("warn", f"being created by pid {slot.holder.pid}, which {waits}")


def _orphan(slot: Slot) -> Verdict | None:
    if not slot.orphaned:
        return None
    return Verdict("warn", "orphaned: its pipeline is neither configured nor in etl.replication_state")


def _why_lost(slot: Slot) -> str:
    match slot.invalidation_reason:
        case "rows_removed":
            return "the primary removed rows of the system catalogs that it needs"
        case "wal_level_insufficient":
            return "wal_level on the primary is no longer logical"
        case "idle_timeout":
            return "it was idle for longer than idle_replication_slot_timeout"
        # 16 names no reason, but forgets the position only when the WAL there is gone.
        case None if slot.restart_lsn is not None:
            return "it stood in the way of what this standby had to replay"
        case _:
            return "the server removed WAL that it needs (max_slot_wal_keep_size)"


def _in_use(slot: Slot) -> Verdict:
    holder = slot.holder
    if holder is not None and holder.state == "streaming":
        doing = "streaming"
    elif holder is not None and holder.state == "catchup":
        doing = "catching up"
    else:
        doing = "in use"
    if slot.temporary:
        doing = f"temporary, goes with its session; {doing}"
    behind = slot.retained_bytes if slot.physical else slot.lag_bytes
    return Verdict("ok", doing if behind is None else f"{doing}, {size_text(behind)} behind")


def _idle(slot: Slot) -> Verdict:
    if slot.restart_lsn is None:
        return Verdict("ok", "never used, keeps no WAL")
    kept = slot.retained_bytes or 0
    duration = "inactive" if slot.inactive_for is None else f"inactive for {duration_text(slot.inactive_for)}"
    text = f"{duration}, keeps {size_text(kept)} of WAL"
    # Below 17 nothing tells since when, so that it may be long.
    if slot.inactive_for is not None and slot.inactive_for < _LONG and kept < _MANY_BYTES:
        return Verdict("ok", text)
    serious = slot.inactive_for is not None and slot.inactive_for >= _VERY_LONG and kept >= _MANY_BYTES
    return Verdict("fail" if serious else "warn", f"{text}: start its reader, or drop it")


def _nearly_lost(slot: Slot) -> Verdict | None:
    if slot.safe_wal_size is None or slot.retained_bytes is None:
        return None
    if slot.safe_wal_size * 4 >= slot.safe_wal_size + slot.retained_bytes:
        return None
    return Verdict("warn", f"will be lost after {size_text(slot.safe_wal_size)} more of WAL")


def _old_xmin(slot: Slot) -> Verdict | None:
    age = slot.catalog_xmin_age
    if age is None or age < _OLD_XMIN:
        return None
    text = f"keeps VACUUM from cleaning the system catalogs since {age:,} transactions"
    return Verdict("fail" if age >= _ANCIENT_XMIN else "warn", text)
