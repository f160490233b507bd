"""The promises of docs/engine.md on random schedules with crashes; and that breaking a rule breaks a promise."""

from __future__ import annotations

import pytest

from pgrepl.engine.core import Action, Core, DropSpool, HandOver, StorePosition
from pgrepl.lsn import Lsn
from tests.engine.simulation import Violation, play

SCHEDULES = 1000


@pytest.mark.parametrize("pipe", [False, True], ids=["file", "pipe"])
def test_promises_hold_on_any_schedule(pipe: bool) -> None:
    for seed in range(SCHEDULES):
        try:
            play(seed, pipe=pipe)
        except Violation as violation:
            raise AssertionError(f"seed {seed}, to be played again by play({seed}, pipe={pipe}): {violation}") from None


class _ConfirmsEarly(Core):
    def durable(self, position: Lsn, now: float, *, at_once: bool = False) -> list[Action]:
        return super().durable(self.done, now, at_once=at_once)


class _ResumesOneFurther(Core):
    def resume_position(self) -> Lsn:
        return Lsn(super().resume_position() + 1)


class _SkipsAtItsPosition(Core):
    def _already_printed(self, commit_lsn: Lsn) -> bool:
        return commit_lsn <= self._printed_until


class _TakesTheConsistentPointForTheSnapshot(Core):
    @staticmethod
    def _in_snapshot(commit_lsn: Lsn, snapshot_lsn: Lsn) -> bool:
        return commit_lsn <= snapshot_lsn


class _DropsOneTooManyFromTheSpool(Core):
    def copy_begins(self, table: int, snapshot_lsn: Lsn) -> list[Action]:
        return [
            DropSpool(action.table, Lsn(action.before + 1))
            if isinstance(action, DropSpool) and action.before
            else action
            for action in super().copy_begins(table, snapshot_lsn)
        ]


class _HandsOverBeforeItsSpoolIsDurable(Core):
    """Stores that tables are ready first, and prints their spooled changes afterwards."""

    def _settle(self) -> list[Action]:
        actions = super()._settle()
        over = [action for action in actions if isinstance(action, HandOver)]
        if not over:
            return actions
        early = self.handed_over()
        self._handing_over = ()
        return [action for action in actions if action not in over] + early + over


class _HandsOverInTheMiddle(Core):
    @property
    def at_boundary(self) -> bool:
        return self._commit_lsn is None


class _StoresBehindItsBack(Core):
    """Confirms what it is about to store."""

    def durable(self, position: Lsn, now: float, *, at_once: bool = False) -> list[Action]:
        actions = super().durable(position, now, at_once=at_once)
        return [
            a for action in actions if isinstance(action, StorePosition) for a in self.stored_at(action.position)
        ] + actions


class _ForgetsWhatItPrinted(Core):
    def connection_lost(self) -> None:
        self._commit_lsn = None


@pytest.mark.parametrize(
    "broken",
    [
        _ConfirmsEarly,
        _ResumesOneFurther,
        _SkipsAtItsPosition,
        _TakesTheConsistentPointForTheSnapshot,
        _DropsOneTooManyFromTheSpool,
        _HandsOverBeforeItsSpoolIsDurable,
        _HandsOverInTheMiddle,
        _StoresBehindItsBack,
        _ForgetsWhatItPrinted,
    ],
)
def test_every_broken_rule_is_found(broken: type[Core]) -> None:
    def found() -> bool:
        for seed in range(3 * SCHEDULES):
            try:
                play(seed, make_core=broken)
            except (Violation, AssertionError):
                return True
        return False

    assert found()
