"""Whether a stored state, a slot and a server fit together, and from where to go on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pgrepl.errors import PositionError
from pgrepl.lsn import WAL_ALIGNMENT, Lsn
from pgrepl.stores import Identity, StoredState


@dataclass(frozen=True)
class SlotFacts:
    """What the server says of the persistent slot."""

    confirmed: Lsn | None
    lost: bool
    reason: str | None


@dataclass(frozen=True)
class Resume:
    """How to begin.

    ``fresh``: make the slot, copy all tables from its snapshot. ``take_over``: the slot is there and no position is
    stored; go on from its confirmed position. ``resume``: go on from the stored position.
    """

    how: Literal["fresh", "take_over", "resume"]
    position: Lsn | None


def decide(
    state: StoredState,
    slot: SlotFacts | None,
    server: Identity,
    wal_end: Lsn,
    *,
    accept_slot_position: bool = False,
) -> Resume:
    """Say how to begin. Raises PositionError where going on would lose changes, with what a person can do.

    ``server`` is the identity as it is now, ``wal_end`` how far the server's WAL is flushed.
    """
    stored = state.identity
    if stored is not None and stored.system_identifier != server.system_identifier:
        raise PositionError(
            f"the state belongs to the server {stored.system_identifier}, and this one is {server.system_identifier}",
            hint="connect to that server, or begin anew: reset the state and take a new snapshot",
        )
    past_init = [oid for oid, table in state.tables.items() if table.phase != "init"]
    if slot is None:
        if past_init or state.position is not None:
            raise PositionError(
                f"the slot {server.slot} is gone, and changes after {state.position or 'its last position'} with it",
                hint="reset the state of all tables ('pgrepl state reset --all') and take a new snapshot",
            )
        return Resume("fresh", None)
    if slot.lost or slot.confirmed is None:
        raise PositionError(
            f"the slot {server.slot} is lost: {slot.reason or 'the server has removed WAL that it needs'}",
            hint=f"drop it ('pgrepl slots drop {server.slot}'), reset the state of all tables and take a new snapshot",
        )
    if state.position is None:
        return Resume("take_over", slot.confirmed)
    if stored is not None and stored.timeline != server.timeline and slot.confirmed > state.position:
        raise PositionError(
            f"timeline {server.timeline} now, {stored.timeline} in the state, and the slot is ahead of the state",
            hint="the slot did not survive the failover as it was: reset the state and take a new snapshot",
        )
    if slot.confirmed > state.position and not accept_slot_position:
        raise PositionError(ahead(server.slot, slot.confirmed, state.position), hint=_AHEAD_HINT)
    if slot.confirmed > state.position:
        return Resume("resume", slot.confirmed)
    if state.position > wal_end:
        raise PositionError(
            f"the stored position {state.position} lies beyond the server's WAL, which ends at {wal_end}",
            hint="the server was restored to an earlier time: reset the state and take a new snapshot",
        )
    return Resume("resume", state.position)


_AHEAD_HINT = (
    "was another consumer on this slot? --accept-slot-position goes on from the slot without what lies between;"
    " a new snapshot loses nothing"
)


def taken_over(slot: str, confirmed: Lsn) -> str:
    """Say that a slot without a stored position is read on from where it stands."""
    going_on = f"slot {slot} is there and no position is stored: going on from {confirmed}"
    past = confirmed % WAL_ALIGNMENT
    if past in (0, WAL_ALIGNMENT - 1):
        return going_on
    # The last byte of a record is where a slot was released; the first ones are left by a start without any new WAL.
    return (
        f"{going_on}, {_bytes(past)} beyond {Lsn(confirmed - past)}: supabase/etl was started on a quiet server, which"
        " skips a transaction that commits exactly there"
    )


def ahead(slot: str, confirmed: Lsn, stored: Lsn) -> str:
    """Say that a slot is ahead of the stored position, and who may have moved it."""
    distance = confirmed - stored
    if distance < WAL_ALIGNMENT:
        # Nobody else confirms what is no start of a record.
        return (
            f"the slot {slot} is at {confirmed}, {_bytes(distance)} beyond the stored position {stored}:"
            " supabase/etl was started in between, and the server skips a transaction that commits exactly there"
        )
    return f"the slot {slot} is at {confirmed}, {distance} bytes beyond the stored position {stored}: a gap"


def _bytes(number: int) -> str:
    return "one byte" if number == 1 else f"{number} bytes"
