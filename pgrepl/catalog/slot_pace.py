"""How fast the WAL grows and a slot follows it, from what was seen of the slot at two times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgrepl.catalog.slots import Slot


@dataclass(frozen=True)
class Pace:
    """What happened to a slot in ``seconds``; what cannot be told is None, and all of it is for a lost slot.

    ``wal_rate`` is in bytes of WAL a second that the server wrote, ``consumption_rate`` in bytes a second by which the
    confirmed position advanced. If both go on so, the reader has caught up in ``catch_up_seconds``, None when it
    does not come nearer. ``lost_in_seconds`` is how long the slot has until it may be lost (max_slot_wal_keep_size) if
    the position from which it keeps WAL goes on as it did: None without a limit, or when it does not come nearer.
    """

    seconds: float
    wal_rate: float | None
    consumption_rate: float | None
    catch_up_seconds: float | None
    lost_in_seconds: float | None

    def document(self) -> dict[str, Any]:
        """Give the pace as members of a JSON object; rates and seconds are rounded to what they are good for."""
        return {
            "sample_seconds": _rounded(self.seconds, 3),
            "wal_bytes_per_second": _rounded(self.wal_rate),
            "consumed_bytes_per_second": _rounded(self.consumption_rate),
            "catch_up_seconds": _rounded(self.catch_up_seconds, 1),
            "lost_in_seconds": _rounded(self.lost_in_seconds, 1),
        }


def _rounded(value: float | None, digits: int | None = None) -> float | None:
    return None if value is None else round(value, digits)


def between(before: Slot | None, after: Slot) -> Pace:
    """Compare what was seen of a slot at two times; ``before`` is None when it was not there."""
    if before is None:
        return Pace(0.0, None, None, None, None)
    seconds = max((after.seen_at - before.seen_at).total_seconds(), 0.001)
    if after.lost or after.wal_end is None or before.wal_end is None:
        return Pace(seconds, None, None, None, None)
    wal_rate = (after.wal_end - before.wal_end) / seconds
    consumption = _advance(before.confirmed_flush_lsn, after.confirmed_flush_lsn, seconds)
    kept = _advance(before.restart_lsn, after.restart_lsn, seconds)
    return Pace(
        seconds, wal_rate, consumption, _catch_up(after, wal_rate, consumption), _lost_in(after, wal_rate, kept)
    )


def _advance(before: int | None, after: int | None, seconds: float) -> float | None:
    # A position that went back is another slot's of the same name.
    if before is None or after is None or after < before:
        return None
    return (after - before) / seconds


def _catch_up(slot: Slot, wal_rate: float, consumption: float | None) -> float | None:
    if slot.lag_bytes == 0:
        return 0.0
    if slot.lag_bytes is None or consumption is None or consumption <= wal_rate:
        return None
    return slot.lag_bytes / (consumption - wal_rate)


def _lost_in(slot: Slot, wal_rate: float, kept: float | None) -> float | None:
    if slot.safe_wal_size is None or kept is None:
        return None
    if slot.safe_wal_size <= 0:
        return 0.0
    return slot.safe_wal_size / (wal_rate - kept) if wal_rate > kept else None
