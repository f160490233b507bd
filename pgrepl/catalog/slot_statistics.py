"""What the server counts for each slot, and what of a slot only decides about its fate."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psycopg


@dataclass(frozen=True)
class SlotStatistics:
    """One slot.

    ``spilled_bytes`` of ``spilled_transactions`` were written to disk while decoding, since they did not fit into
    logical_decoding_work_mem, and ``streamed_transactions`` were sent before their end instead; counted for
    ``counted_for``, None when nobody ever reset the counters. ``xmin_age`` and ``catalog_xmin_age`` are transactions.
    """

    name: str
    xmin_age: int | None
    catalog_xmin_age: int | None
    spilled_transactions: int
    spilled_bytes: int
    streamed_transactions: int
    reset_at: datetime | None
    counted_for: timedelta | None


_STATISTICS = """
SELECT s.slot_name::text, age(s.xmin), age(s.catalog_xmin), coalesce(t.spill_txns, 0), coalesce(t.spill_bytes, 0),
       coalesce(t.stream_txns, 0), t.stats_reset, clock_timestamp() - t.stats_reset
FROM pg_catalog.pg_replication_slots s
LEFT JOIN pg_catalog.pg_stat_replication_slots t ON t.slot_name = s.slot_name
ORDER BY s.slot_name COLLATE "C"
"""


def all_of(conn: psycopg.Connection) -> list[SlotStatistics]:
    """Read the statistics of every slot of the cluster, by name; any role that can connect may."""
    return [SlotStatistics(*row) for row in conn.execute(_STATISTICS)]
