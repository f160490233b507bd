"""What is around the engine and survives a crash, or a part of it: the store, and the output with its lines."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple

from pgrepl import events
from pgrepl.catalog.definitions import DDL_PREFIX, Definition
from pgrepl.engine.core import Phase
from pgrepl.engine.versions import Versions
from pgrepl.events import Event, Table
from pgrepl.lsn import Lsn
from pgrepl.stores import Identity, StoredState, StoredTable, told
from tests.engine.simulation.violation import Violation

IDENTITY = Identity("7000000000000000001", 1, "supabase_etl_apply_1", "app")

Kind = Literal["life", "inherited", "begin", "read", "end", "schema", "row", "truncate", "message", "open", "close"]


class Record(NamedTuple):
    """One line of the output.

    ``place`` is (commit_lsn, seq) of what belongs to a transaction, for begin and read the LSN of the snapshot.
    ``number`` is that of the row or message, the attempt of a copy, or how many rows a frame has. ``columns`` is the
    version as the line shows it, after the table's name. A ``life`` is no line: it says that another process writes
    from here on. Neither is ``inherited``: it stands for what another tool has copied before.
    """

    kind: Kind
    tables: tuple[int, ...] = ()
    number: int = 0
    place: tuple[int, int] = (0, -1)
    columns: tuple[str, ...] = ()


class Lines:
    """A format whose lines stand for records; all lines are equally long."""

    WIDTH = 8

    def __init__(self) -> None:
        self.records: list[Record] = []

    def encode(self, event: Event) -> bytes:
        """Give the line of an event."""
        self.records.append(_record(event))
        return b"%07d\n" % (len(self.records) - 1)

    def of(self, data: bytes) -> list[Record]:
        """Read lines again."""
        return [self.records[int(line)] for line in data.splitlines()]


def _record(event: Event) -> Record:
    match event:
        case events.SnapshotBegin(table, attempt, lsn):
            return Record("begin", (table.oid,), attempt, (lsn, -1), _columns(table))
        case events.Read(table, row, lsn):
            return Record("read", (table.oid,), _number(row), (lsn, -1), _shown(table, row))
        case events.SnapshotEnd(table, attempt):
            return Record("end", (table.oid,), attempt)
        case events.SchemaChange(table, _, transaction, seq):
            return Record("schema", (table.oid,), 0, (transaction.commit_lsn, seq), _columns(table))
        case events.Insert(table, row, transaction, _, seq):
            return Record("row", (table.oid,), _number(row), (transaction.commit_lsn, seq), _shown(table, row))
        case events.Truncate(tables, _, _, transaction, _, seq):
            return Record("truncate", tuple(table.oid for table in tables), 0, (transaction.commit_lsn, seq))
        case events.Message(prefix, content, transaction, start_lsn, seq):
            assert transaction is not None
            assert seq is not None
            number = -start_lsn if prefix == DDL_PREFIX else int(content)
            return Record("message", (), number, (transaction.commit_lsn, seq))
        case events.Begin(transaction):
            return Record("open", (), 0, (transaction.commit_lsn, -1))
        case events.Commit(transaction, _, rows):
            return Record("close", (), rows, (transaction.commit_lsn, -1))
        case _:
            raise AssertionError(f"no writer of the model makes {event}")


def _columns(table: events.Table) -> tuple[str, ...]:
    return (table.name, *(f"{column.name}:{column.type_oid}" for column in table.columns))


def _number(row: tuple[object, ...]) -> int:
    assert isinstance(row[0], bytes)
    return int(row[0])


def _shown(table: events.Table, row: tuple[object, ...]) -> tuple[str, ...]:
    """The version that a row is shown in. Raises Violation when its values are of another one."""
    columns = _columns(table)
    values = tuple(value.decode() for value in row[1:] if isinstance(value, bytes))
    if values != columns[2:]:
        raise Violation(f"a row of table {table.oid} with {values} is shown as one of {columns}")
    return columns


@dataclass
class Store:
    """What was committed to it, and nothing else. While it is ``away`` nothing can be."""

    tables: dict[int, tuple[Phase, Lsn | None]] = field(default_factory=dict)
    position: Lsn | None = None
    copies: dict[int, int] = field(default_factory=dict)
    # What the output was told of each table, and the versions of each by the LSN of their message.
    told: dict[int, str] = field(default_factory=dict)
    versions: dict[int, dict[Lsn, Definition]] = field(default_factory=dict)
    # The first position that was ever stored.
    start: Lsn | None = None
    away: bool = False

    def load(self) -> StoredState:
        """Give what a new process finds."""
        tables = {oid: StoredTable(phase.value, lsn) for oid, (phase, lsn) in self.tables.items()}
        identity = IDENTITY if self.position is not None else None
        versions = {oid: told.from_json(oid, json.loads(text)) for oid, text in self.told.items()}
        return StoredState(identity, self.position, tables, dict(self.copies), versions)

    def copying(self, tables: Collection[int]) -> None:
        """Store that tables are being copied, each once more than before."""
        for oid in tables:
            self.tables[oid] = (Phase.DATA_SYNC, None)
            self.copies[oid] = self.copies.get(oid, 0) + 1

    def ready(self, tables: Collection[int]) -> None:
        """Store that tables are ready."""
        for oid in tables:
            self.tables[oid] = (Phase.READY, None)

    def moves(self, position: Lsn, versions: Collection[Table] = ()) -> None:
        """Store the position, and what the output has been told of before it."""
        self.told.update({table.oid: json.dumps(told.to_json(table)) for table in versions})
        self.position = max(position, self.position or position)
        self.start = self.start if self.start is not None else position

    def forget(self, tables: Collection[int]) -> None:
        """Remove tables; how often they were copied stays known."""
        for oid in tables:
            self.tables.pop(oid, None)
            self.told.pop(oid, None)
            self.versions.pop(oid, None)

    def schema(self, definition: Definition) -> None:
        """Store the version of a table that it is copied with, and forget all others."""
        self.versions[definition.oid] = {Lsn(0): definition}

    def version(self, definition: Definition, lsn: Lsn) -> None:
        """Store the version that a message tells of."""
        self.versions.setdefault(definition.oid, {})[lsn] = definition

    def prune(self, position: Lsn) -> None:
        """Remove versions older than the newest before a position."""
        for versions in self.versions.values():
            newest = max((lsn for lsn in versions if lsn <= position), default=Lsn(0))
            for lsn in [lsn for lsn in versions if lsn < newest]:
                del versions[lsn]


class Sidecar(NamedTuple):
    """How many lines of a file hold everything before a position, and what else is known of it.

    ``copies`` is how often each table was copied, ``told`` the versions it was told of that are not stored yet.
    """

    offset: int = 0
    position: Lsn = Lsn()
    copies: Mapping[int, int] = MappingProxyType({})
    told: Mapping[int, str] = MappingProxyType({})


@dataclass
class Sink:
    """A file with its sidecar, of which only what was synced is sure to survive, or a pipe, which keeps what it got.

    It takes lines of equal length; offsets are numbers of lines. While it is ``away`` nothing can be written to it.
    """

    dice: random.Random
    lines: Lines
    pipe: bool
    away: bool = False
    content: list[Record] = field(default_factory=list)
    sidecar: Sidecar = field(default_factory=lambda: Sidecar())
    _synced: int = 0
    _start: int = 0
    _marked: tuple[int, Lsn] = (0, Lsn(0))
    _durable: Lsn = Lsn(0)  # noqa: RUF009
    _unsure: int | None = None

    def inherit(self, records: list[Record], position: Lsn) -> None:
        """Begin with what another tool has left."""
        self.content.extend(records)
        self._synced = len(records)
        self.sidecar = Sidecar(len(records), position)

    def crash(self) -> None:
        """Lose some of what was not synced; of a pipe what the last write, which may not have ended, did not bring."""
        keep = self._unsure if self.pipe else self._synced
        if keep is not None:
            del self.content[self.dice.randint(min(keep, len(self.content)), len(self.content)) :]
        self._unsure = None

    def adopt(self) -> Sidecar:
        """Begin another life: cut a file to what its sidecar vouches for."""
        offset, position = self.sidecar.offset, self.sidecar.position
        if not self.pipe:
            if offset > len(self.content):
                raise Violation("the sidecar vouches for more than is there")
            del self.content[offset:]
            self._synced = offset
        self.content.append(Record("life"))
        self._start = len(self.content)
        self._marked, self._durable = (self._start, position), position
        return self.sidecar

    @property
    def position(self) -> Lsn | None:
        """Up to where it holds everything, of which a pipe knows nothing."""
        return None if self.pipe else self.sidecar.position

    @property
    def is_synced(self) -> bool:
        """Whether everything that was marked is durable."""
        return self._durable == self._marked[1] and (self.pipe or self.sidecar.offset == self._marked[0])

    # What the engine's output calls.

    def write(self, data: bytes) -> None:
        """Take lines."""
        assert not self.away
        self._unsure = len(self.content)
        self.content.extend(self.lines.of(data))

    def written(self) -> None:
        """Let the last write come to its end."""
        self._unsure = None

    def mark(self, written: int, position: Lsn) -> None:
        """Take note of a boundary."""
        self._marked = (self._start + written // Lines.WIDTH, position)
        if self.pipe:
            self._durable = position

    def durable(self) -> Lsn:
        """The position of the last mark that survives."""
        return self._durable

    def sync(self) -> None:
        """Make the lines durable; the sidecar follows."""
        self._synced = len(self.content)

    def write_sidecar(self, copies: dict[int, int], versions: Versions) -> None:
        """Vouch for what was synced."""
        offset, position = self._marked
        if not self.pipe and offset <= self._synced:
            new = {table.oid: json.dumps(told.to_json(table)) for table in versions.not_stored(position)}
            self.sidecar = Sidecar(offset, position, dict(copies), new)
            self._durable = position

    can_go_back = False

    def reopen(self) -> None:
        """No file is renamed here."""

    def tick(self) -> None:
        """Nothing is due by itself here."""

    def close(self) -> None:
        """Nothing is held here."""
