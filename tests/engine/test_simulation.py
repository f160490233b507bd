"""The promises of docs/engine.md on random schedules with crashes; and that breaking a rule breaks a promise."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pgrepl import events
from pgrepl.engine.changes import Changes
from pgrepl.engine.core import Action, Confirm, Core, Decision, DropSpool, HandOver, MarkCopying, Phase, StorePosition
from pgrepl.engine.routing import Router
from pgrepl.engine.versions import Versions
from pgrepl.events import SchemaChange, Table, Transaction
from pgrepl.lsn import Lsn
from pgrepl.pgoutput import messages
from tests.engine.simulation import Parts, Violation, play
from tests.engine.simulation.client import Client

ROOT = Path(__file__).parents[2]
SCHEDULES = 4000
PARTS = 5


def _play_all(seeds: Iterable[int], parts: Parts | None = None) -> None:
    for seed in seeds:
        try:
            play(seed, parts)
        except Exception as error:
            raise AssertionError(f"./dev torture --seed {seed} plays it again: {error!r}") from error


@pytest.mark.parametrize("part", range(PARTS))
def test_promises_hold_on_any_schedule(part: int) -> None:
    _play_all(range(part, SCHEDULES, PARTS))


def test_a_failure_says_how_to_play_it_again() -> None:
    with pytest.raises(AssertionError, match=r"^\./dev torture --seed [0-9]+ plays it again: Violation\(") as failure:
        _play_all(range(SCHEDULES), Parts(core=_ConfirmsEarly))
    seed = str(failure.value).split()[3]
    with pytest.raises(AssertionError) as again:
        _play_all([int(seed)], Parts(core=_ConfirmsEarly))
    assert str(again.value) == str(failure.value)


def test_one_schedule_can_be_played_alone() -> None:
    command = [sys.executable, "-m", "tests.torture", "--seed", "7"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == "1 schedule, and every promise was kept\n"


def test_a_seed_is_the_same_schedule_every_time() -> None:
    """In another process as well, whatever its hashes are, and a failure fails in the same way."""

    def elsewhere(hashes: str) -> str:
        code = "from tests.engine.simulation import play; print(*(play(seed) for seed in range(20)))"
        environment = {**os.environ, "PYTHONHASHSEED": hashes}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout

    here = [play(seed) for seed in range(20)]
    assert len(set(here)) == 20
    assert elsewhere("1").split() == elsewhere("2").split() == here

    def failure(seed: int) -> str:
        try:
            play(seed, Parts(core=_SkipsAtItsPosition))
        except (Violation, AssertionError) as violation:
            return str(violation)
        return ""

    failures = [failure(seed) for seed in range(50)]
    assert any(failures)
    assert [failure(seed) for seed in range(50)] == failures


# The rules that issue nothing but positions.


class _ConfirmsEarly(Core):
    """Takes what was printed for durable."""

    def durable(self, position: Lsn, now: float, *, at_once: bool = False) -> list[Action]:
        return super().durable(self.done, now, at_once=at_once)


class _StoresBehindItsBack(Core):
    """Confirms what it is about to store."""

    def durable(self, position: Lsn, now: float, *, at_once: bool = False) -> list[Action]:
        actions = super().durable(position, now, at_once=at_once)
        return [
            a for action in actions if isinstance(action, StorePosition) for a in self.stored_at(action.position)
        ] + actions


class _ResumesOneFurther(Core):
    def resume_position(self) -> Lsn:
        return Lsn(super().resume_position() + 1)


class _SkipsAtItsPosition(Core):
    def _already_printed(self, commit_lsn: Lsn) -> bool:
        return commit_lsn <= self._printed_until


class _ForgetsWhatItPrinted(Core):
    """Begins a transaction again whose first part it has dealt with."""

    def connection_lost(self) -> None:
        self._commit_lsn = None


# The hand-over between copy and stream.


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


class _SaysTooEarlyThatItCaughtUp(Core):
    """Stores that a table which was ahead is ready when the stream has reached it, before the position is stored."""

    def _settle(self) -> list[Action]:
        stored, self.stored = self.stored, self.done
        actions = [action for action in self.stored_at(Lsn(0)) if not isinstance(action, Confirm)]
        self.stored = stored
        return actions + super()._settle()


class _HandsOverInTheMiddle(Core):
    @property
    def at_boundary(self) -> bool:
        return self._commit_lsn is None


class _HandsOverBeforeTheStreamIsThere(Core):
    """Does not wait for the stream to reach the snapshot."""

    def _settle(self) -> list[Action]:
        done, self.done = self.done, Lsn(1 << 60)
        actions = super()._settle()
        self.done = done
        return actions


class _TakesTheConsistentPointForTheSnapshot(Core):
    @staticmethod
    def _in_snapshot(commit_lsn: Lsn, snapshot_lsn: Lsn) -> bool:
        return commit_lsn <= snapshot_lsn


class _KeepsWhatTheSnapshotHas(Core):
    def copy_begins(self, table: int, number: int, snapshot_lsn: Lsn) -> list[Action]:
        super().copy_begins(table, number, snapshot_lsn)
        return []


class _DropsOneTooManyFromTheSpool(Core):
    """Drops what is not beyond the consistent point."""

    def copy_begins(self, table: int, number: int, snapshot_lsn: Lsn) -> list[Action]:
        return [
            DropSpool(action.table, Lsn(action.before + 1))
            if isinstance(action, DropSpool) and action.before
            else action
            for action in super().copy_begins(table, number, snapshot_lsn)
        ]


class _KeepsNothingBeforeItsSnapshot(Core):
    """Lets go of what came since a copy was seen to wait, too."""

    def copy_waits(self, table: int, number: int, received: Lsn) -> list[Action]:
        return super().copy_waits(table, number, self.received)


class _CopiesBeforeItSaysSo(Core):
    """Begins a copy without storing it before."""

    def _copy(self, tables: tuple[int, ...]) -> list[Action]:
        return [action for action in super()._copy(tables) if not isinstance(action, MarkCopying)]


class _ListensToAnyCopy(Core):
    """Takes what an earlier copy of a table tells for the later one's."""

    def is_copying(self, table: int, number: int) -> bool:
        return table in self.tables and self.tables[table].phase is Phase.DATA_SYNC


# Tables that another tool has left ahead of its slot.


class _TakesAllOfWhatIsAhead(Core):
    def _owner(self, table: int, commit_lsn: Lsn) -> Decision:
        state = self.tables.get(table)
        ahead = state is not None and state.phase is Phase.SYNC_DONE
        return Decision.EMIT if ahead else super()._owner(table, commit_lsn)


class _SkipsWhereItWasAhead(Core):
    def _owner(self, table: int, commit_lsn: Lsn) -> Decision:
        state = self.tables.get(table)
        exactly = state is not None and state.phase is Phase.SYNC_DONE and state.sync_lsn == commit_lsn
        return Decision.SKIP if exactly else super()._owner(table, commit_lsn)


# Tables that come and go.


class _NeverCopiesWhatComesBack(Core):
    def tables_now(self, published: Any, read_at: Lsn) -> list[Action]:
        published = set(published)
        for oid in published & self._left.keys():
            del self._left[oid]
        return super().tables_now(published, read_at)


class _ForgetsAtOnce(Core):
    """Forgets a table when it has left, although the stream still has changes of before."""

    def table_left(self, table: int, read_at: Lsn) -> None:
        super().table_left(table, Lsn(0))


# Versions of tables.


class _KeepsTheFirstVersion(Changes):
    def _version(self, table: Table) -> Table:
        return self._known.setdefault(table.oid, table)


class _AsksTheCatalogAlone(Client):
    """Takes the version of now for the one that a row was written in."""

    def _resolve(self, relation: messages.Relation, transaction: Transaction) -> Table:
        now = self._server.catalog.get(relation.oid)
        return super()._resolve(now.relation() if now else relation, transaction)


class _NeverTells(Versions):
    def changed(self, table: Table, transaction: Transaction, seq: int) -> SchemaChange | None:
        super().changed(table, transaction, seq)
        return None


class _ForgetsWhatItTold(Versions):
    """Knows nothing of what an earlier life has told."""

    def __init__(self, _told: Mapping[int, Table], _not_stored: Mapping[int, Table]) -> None:
        super().__init__()


class _ForgetsWhatTheFileKnows(Versions):
    """Knows nothing of what a file was told of after the stored position."""

    def __init__(self, told: Mapping[int, Table], _not_stored: Mapping[int, Table]) -> None:
        super().__init__(told)


class _TellsTooEarly(Versions):
    """Stores a version with a position before the transaction that tells of it."""

    def _tell(self, table: Table, since: Lsn) -> None:
        super()._tell(table, Lsn(0))


class _TellsWhatItSpools(Router):
    """Prints a schema event when the stream comes to it, although the rows wait in the spool."""

    def _to_spool(self, table: Table, event: events.Change | events.Truncate) -> None:
        self._tell(table, event.transaction, event.seq)
        super()._to_spool(table, event)


class _SpoolsNoVersions(Router):
    def hand_over(self, table: int) -> None:
        for versions in self._spooled_versions.values():
            versions[:] = [versions[0]] * len(versions)
        super().hand_over(table)


class _StoresWhatItSpools(Client):
    """Stores the event trigger's versions at once, also those of tables that are being copied."""

    def _defined(self, lsn: Lsn, content: bytes) -> Generator[None, None, None]:
        whose, self._core.whose = self._core.whose, lambda table: Decision.EMIT  # type: ignore[method-assign]
        yield from super()._defined(lsn, content)
        self._core.whose = whose  # type: ignore[method-assign]


class _DropsWhatItSpools(Client):
    """Stores no version of a table that is being copied."""

    def _defined(self, lsn: Lsn, content: bytes) -> Generator[None, None, None]:
        if self._core.whose(_oid(content)) is Decision.EMIT:
            yield from super()._defined(lsn, content)


# Snapshots.


class _TakesAnyPublication(Client):
    @staticmethod
    def _differs(before: Any, inside: Any) -> bool:
        return False


class _TakesAnySnapshot(Client):
    """Reads tables that were truncated or rewritten after the snapshot."""

    def _is_usable(self, tables: Any, point: Lsn) -> bool:
        return True


def _oid(content: bytes) -> int:
    from pgrepl.catalog.definitions import of_message

    return of_message(content).oid


def _broken() -> dict[str, Parts]:
    found = {}
    for one in list(globals().values()):
        if isinstance(one, type) and one.__module__ == __name__ and one.__name__.startswith("_"):
            kinds = {"core": Core, "changes": Changes, "router": Router, "versions": Versions, "client": Client}
            part = next(part for part, kind in kinds.items() if issubclass(one, kind))
            found[one.__name__.strip("_")] = Parts(**{part: one})
    return found


@pytest.mark.parametrize("rule", _broken())
def test_every_broken_rule_is_found(rule: str) -> None:
    parts = _broken()[rule]

    def found() -> bool:
        for seed in range(2 * SCHEDULES):
            try:
                play(seed, parts)
            except Exception:
                return True
        return False

    assert found()
