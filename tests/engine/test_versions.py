"""What the output was told of each table: a schema event comes before the first change in another version, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pgrepl import events
from pgrepl.engine.core import Core, Phase, TableState
from pgrepl.engine.linespool import LineSpool
from pgrepl.engine.routing import Router
from pgrepl.engine.versions import Versions
from pgrepl.events import Event, SchemaChange, SchemaDiff, Table, Transaction
from pgrepl.lsn import Lsn
from tests.engine.tables import column, table

NARROW = table("t1", column("id", attnum=1), column("a", attnum=2))
WIDE = table("t1", column("id", attnum=1), column("a", attnum=2), column("b", attnum=3))
WIDER = table("t1", *WIDE.columns, column("c", attnum=4))


def transaction(commit_lsn: int) -> Transaction:
    return Transaction(Lsn(commit_lsn), 0, commit_lsn)


def insert(version: Table, commit_lsn: int, seq: int = 0) -> events.Insert:
    return events.Insert(version, (b"1",) * len(version.columns), transaction(commit_lsn), Lsn(commit_lsn), seq)


def test_a_version_is_told_once_and_before_its_first_change() -> None:
    versions = Versions()
    assert versions.before(insert(NARROW, 100)) == []
    (change,) = versions.before(insert(WIDE, 200, 3))
    assert change.diff == SchemaDiff(("b",), (), (), ())
    assert (change.transaction.xid, change.seq) == (200, 3)
    assert versions.before(insert(WIDE, 200, 4)) == []
    again = table("t1", *WIDE.columns)
    assert versions.before(insert(again, 300)) == []
    truncate = events.Truncate((WIDER,), False, False, transaction(400), Lsn(400), 0)
    assert [change.diff.added for change in versions.before(truncate)] == [("c",)]


def test_a_copy_tells_of_its_version() -> None:
    versions = Versions()
    versions.copied(WIDE, Lsn(150))
    assert versions.before(insert(WIDE, 160)) == []
    versions.copied(WIDER, Lsn(170))
    assert versions.before(insert(WIDER, 180)) == []


def test_what_an_earlier_run_has_told_is_compared() -> None:
    assert Versions({1: WIDE}).before(insert(table("t1", *WIDE.columns), 100)) == []
    (change,) = Versions({1: NARROW}).before(insert(WIDE, 100))
    assert change.diff.added == ("b",)


def test_a_version_is_stored_with_the_first_position_after_it() -> None:
    versions = Versions()
    versions.copied(NARROW, Lsn(100))
    versions.before(insert(WIDE, 200))
    versions.before(insert(WIDER, 300))
    # Until that is done: it may not succeed.
    for _ in range(2):
        assert versions.not_stored(Lsn(200)) == [NARROW]
    versions.stored(Lsn(200))
    assert versions.not_stored(Lsn(200)) == []
    assert versions.not_stored(Lsn(301)) == [WIDE, WIDER]


class _Collected:
    """An output whose lines are the events, by name."""

    full = False

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.lines: list[bytes] = []

    def emit(self, event: Event) -> None:
        self.add(self.format(event))

    def add(self, line: bytes) -> None:
        self.lines.append(line)

    @staticmethod
    def format(event: Event) -> bytes:
        if isinstance(event, SchemaChange):
            return b"schema +" + b",".join(name.encode() for name in event.diff.added)
        return type(event).__name__.encode()


def handed_over(copied: Table, snapshot_lsn: int, *found: events.Insert) -> list[bytes]:
    """Spool changes, hear of the copy then, and print all."""
    core = Core({1: TableState(Phase.DATA_SYNC)}, Lsn(1))
    output: Any = _Collected()
    spool, versions = LineSpool(Path("/nonexistent")), Versions()
    router = Router(core, output, spool, versions, frames=False, printed=lambda: None)
    for event in found:
        core.begin(event.transaction.commit_lsn)
        router.begin(event.transaction)
        router.route(event)
        router.commit(Lsn(event.transaction.commit_lsn + 8))
        core.commit(Lsn(event.transaction.commit_lsn + 8))
    versions.copied(copied, Lsn(snapshot_lsn))
    core.copy_begins(1, 0, Lsn(snapshot_lsn))
    spool.drop(1, Lsn(snapshot_lsn))
    router.hand_over(1)
    return list(output.lines)


def test_spooled_changes_are_compared_with_the_copy() -> None:
    """With which version the copy was made is known only after changes have been spooled."""
    changes = insert(NARROW, 100), insert(WIDE, 200), insert(WIDE, 300), insert(WIDER, 400)
    told = [b"Insert", b"schema +b", b"Insert", b"Insert", b"schema +c", b"Insert"]
    assert handed_over(NARROW, 50, *changes) == told
    assert handed_over(NARROW, 150, *changes) == told[1:]
    assert handed_over(WIDE, 150, *changes) == told[2:]
    assert handed_over(WIDE, 300, *changes) == told[3:]
    assert handed_over(NARROW, 300, *changes) == [b"schema +b", *told[3:]]
    assert handed_over(WIDER, 500, *changes) == []
