"""Whether a stored state, a slot and a server fit together, and from where to go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pgrepl.errors import InputError, PositionError
from pgrepl.lsn import WAL_ALIGNMENT, Lsn
from pgrepl.stores import Identity, StoredState


@dataclass(frozen=True)
class SlotFacts:
    """What the server says of the persistent slot; ``lost`` is why nobody can read it any more, None when one can."""

    confirmed: Lsn | None
    lost: str | None


@dataclass(frozen=True)
class Here:
    """The server as it is now.

    ``wal_end`` is how far its WAL is flushed, ``history`` where each earlier timeline was left on the way to its own,
    asked only when that differs from the stored one.
    """

    identity: Identity
    wal_end: Lsn
    history: Mapping[int, Lsn] = field(default_factory=dict)


@dataclass(frozen=True)
class Resume:
    """How to begin.

    ``fresh``: make the slot, copy all tables from its snapshot. ``take_over``: the slot is there and no position is
    stored; go on from its confirmed position, or from the one that was asked for. ``resume``: go on from ``position``.
    ``notice`` is what a person should know about it.
    """

    how: Literal["fresh", "take_over", "resume"]
    position: Lsn | None
    notice: str | None = None


def decide(
    state: StoredState,
    slot: SlotFacts | None,
    here: Here,
    *,
    accept_slot_position: bool = False,
    from_lsn: Lsn | None = None,
    output: Lsn | None = None,
) -> Resume:
    """Say how to begin. Raises PositionError where going on would lose changes, with what a person can do.

    ``from_lsn`` is the position that was asked for, ``output`` up to where the output holds everything, None where
    it cannot tell. Raises InputError for other publications than those of the state, and for a ``from_lsn`` beyond the
    WAL.
    """
    now = here.identity
    stored = state.identity
    if stored is not None and stored.system_identifier != now.system_identifier:
        raise PositionError(
            f"the state belongs to the server {stored.system_identifier}, and this one is {now.system_identifier}",
            hint=f"connect to that server; 'pgrepl state adopt --slot {now.slot}' after pg_upgrade,"
            f" or 'pgrepl state reset --all --slot {now.slot}' and a new snapshot",
        )
    if stored is not None and set(stored.publication.split(",")) != set(now.publication.split(",")):
        raise InputError(
            f"the state is that of publication {stored.publication}, not {now.publication}",
            hint=f"name {stored.publication}, or take another --pipeline-id;"
            f" 'pgrepl state reset --all --slot {now.slot}' begins anew",
        )
    kept = stored is not None or bool(state.tables)
    if output is not None and output > here.wal_end:
        again = anew(now.slot, there=slot is not None, kept=kept)
        raise PositionError(
            f"the output holds changes up to {output}, and the server's WAL ends at {here.wal_end}",
            hint=f"the server was restored to an earlier time: {again}; write to another file",
        )
    past_init = [oid for oid, table in state.tables.items() if table.phase != "init"]
    if slot is None:
        if past_init or state.position is not None:
            raise PositionError(_gone(state, now), hint=anew(now.slot, there=False, kept=True))
        return Resume("fresh", None)
    if slot.lost is not None or slot.confirmed is None:
        raise PositionError(
            f"the slot {now.slot} is {slot.lost or 'not finished, its creation was broken off'}",
            hint=anew(now.slot, there=True, kept=kept),
        )
    moved = stored is not None and stored.timeline != now.timeline
    if stored is not None and moved:
        check_timeline(stored.timeline, now, max(state.position or Lsn(0), output or Lsn(0)), here.history)
        if state.position is not None and slot.confirmed > state.position:
            raise PositionError(
                f"timeline {now.timeline} now, {stored.timeline} in the state, and the slot {now.slot} is at"
                f" {slot.confirmed}, beyond the stored position {state.position}",
                hint=f"the slot did not come along as it was: {anew(now.slot, there=True, kept=True)}",
            )
    if from_lsn is not None:
        return _asked_for(from_lsn, state, slot.confirmed, here)
    if state.position is None:
        return Resume(
            "take_over",
            slot.confirmed,
            taken_over(now.slot, slot.confirmed),
        )
    if slot.confirmed > state.position:
        if not accept_slot_position:
            raise PositionError(ahead(now.slot, slot.confirmed, state.position), hint=_AHEAD_HINT)
        return Resume("resume", slot.confirmed)
    if state.position > here.wal_end:
        raise PositionError(
            f"the stored position {state.position} lies beyond the server's WAL, which ends at {here.wal_end}",
            hint=f"the server was restored to an earlier time: {anew(now.slot, there=True, kept=True)}",
        )
    notice = came_along(stored.timeline, now, state.position) if stored is not None and moved else None
    return Resume("resume", state.position, notice)


def anew(slot: str, *, there: bool, kept: bool) -> str:
    """Say what to run for a new slot and a new snapshot; ``kept`` says that there is a stored state."""
    commands = [f"'pgrepl slots drop {slot}'"] if there else []
    if kept:
        commands.append(f"'pgrepl state reset --all --slot {slot}'")
    first = f"{' and '.join(commands)}, then " if commands else ""
    again = "start again" if kept else f"start again with --keep-slot --slot {slot}"
    return f"{first}{again}: a new slot and a new snapshot are made"


def check_timeline(before: int, now: Identity, position: Lsn, history: Mapping[int, Lsn]) -> None:
    """Make sure that ``position`` of an earlier timeline lies in this server's history too. Raises PositionError."""
    left_at = history.get(before)
    if left_at is None:
        raise PositionError(
            f"the server is on timeline {now.timeline}, which does not come from timeline {before}",
            hint=f"another history: connect to the server of timeline {before}, or"
            f" {anew(now.slot, there=True, kept=True)}",
        )
    if position > left_at:
        raise PositionError(
            f"timeline {now.timeline} left timeline {before} at {left_at}, and there changes up to {position} were"
            " read",
            hint="this server never had the last of them, and what it wrote instead would be passed over:"
            f" {anew(now.slot, there=True, kept=True)}; synchronized_standby_slots keeps readers behind a standby",
        )


def came_along(before: int, now: Identity, position: Lsn) -> str:
    """Say that the slot has survived a failover."""
    return (
        f"timeline {now.timeline} now, {before} before: slot {now.slot} came along in the failover,"
        f" going on from {position}"
    )


def _gone(state: StoredState, now: Identity) -> str:
    text = f"the slot {now.slot} is gone, and changes after {state.position or 'its last position'} with it"
    before = state.identity.timeline if state.identity is not None else now.timeline
    if before != now.timeline:
        text += f"; it did not come along in the failover from timeline {before} to {now.timeline}"
    return text


def _asked_for(wanted: Lsn, state: StoredState, confirmed: Lsn, here: Here) -> Resume:
    slot = here.identity.slot
    if wanted < confirmed:
        raise PositionError(
            f"--from-lsn {wanted} lies before {confirmed}, where the slot {slot} stands:"
            f" {confirmed - wanted} bytes that it cannot give any more",
            hint=f"--from-lsn {confirmed} is the earliest; only a new snapshot has what was before",
        )
    if wanted > here.wal_end:
        raise InputError(
            f"--from-lsn {wanted} lies beyond the server's WAL, which ends at {here.wal_end}",
            hint="the server would skip what it writes until then without a word",
        )
    before = confirmed if state.position is None else state.position
    left_out = f"; {wanted - before} bytes of WAL from {before} on are left out" if wanted > before else ""
    return Resume("take_over" if state.position is None else "resume", wanted, f"going on from {wanted}{left_out}")


_AHEAD_HINT = (
    "somebody else read this slot, or made it anew: --accept-slot-position goes on from there without what lies"
    " between, with --resnapshot all after a copy of every table, so that nothing is missing"
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
