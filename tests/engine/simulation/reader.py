"""What a reader makes of the output, compared with what the server has."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from pgrepl.catalog.definitions import of_description
from pgrepl.engine.core import Phase
from pgrepl.lsn import Lsn
from tests.engine.simulation.server import Message, Row, Server, Told
from tests.engine.simulation.surroundings import Record, Sink, Store
from tests.engine.simulation.violation import Violation


@dataclass
class _Table:
    rows: list[int] = field(default_factory=list)
    whole: bool = False
    snapshot_lsn: Lsn = Lsn()  # noqa: RUF009
    attempt: int = 0
    # None for a table of which nothing has been said.
    columns: tuple[str, ...] | None = None
    places: set[tuple[int, int]] = field(default_factory=set)
    last: tuple[int, int] = (0, -1)


class Reader:
    """Read an output from its beginning, holding it to the promises. Raises Violation."""

    def __init__(self, server: Server, *, exactly_once: bool) -> None:
        self._server = server
        self._exactly_once = exactly_once
        self._definitions = {
            step.number: step.definition.shown
            for transaction in server.wal
            for step in transaction.steps
            if isinstance(step, Row)
        }
        self.tables: defaultdict[int, _Table] = defaultdict(_Table)
        self.messages: list[int] = []
        self._frame: Record | None = None
        self._in_frame = 0

    def read(self, content: list[Record]) -> None:
        """Read all of it."""
        for record in content:
            match record.kind:
                case "life":
                    self._frame = None
                case "inherited":
                    (oid,), point = record.tables, Lsn(record.place[0])
                    rows = self._server.rows_at(oid, point)
                    self.tables[oid] = _Table(rows, whole=True, snapshot_lsn=point)
                case "begin" | "read" | "end":
                    self._copied(record, self.tables[record.tables[0]])
                case "open" | "close":
                    self._framed(record)
                case "message":
                    self._message(record)
                case "schema":
                    self._told(record, self.tables[record.tables[0]])
                case _:
                    self._changed(record)

    def _told(self, record: Record, table: _Table) -> None:
        if self._exactly_once and record.columns == table.columns:
            raise Violation(f"{record} tells nothing new")
        table.columns = record.columns

    def _copied(self, record: Record, table: _Table) -> None:
        match record.kind:
            case "begin":
                if record.number <= table.attempt:
                    raise Violation(f"{record} after attempt {table.attempt}")
                self.tables[record.tables[0]] = _Table(
                    snapshot_lsn=Lsn(record.place[0]), attempt=record.number, columns=record.columns
                )
            case "end":
                if record.number != table.attempt or table.whole:
                    raise Violation(f"{record} ends attempt {table.attempt}")
                table.whole = True
            case _:
                if table.whole or record.place[0] != table.snapshot_lsn:
                    raise Violation(f"{record} is no row of the copy at {table.snapshot_lsn}")
                self._shown(record, table)
                table.rows.append(record.number)

    def _framed(self, record: Record) -> None:
        if record.kind == "open":
            if self._frame is not None and self._exactly_once:
                raise Violation(f"{record} inside {self._frame}")
            self._frame, self._in_frame = record, 0
            return
        if self._exactly_once and (
            self._frame is None or self._frame.place != record.place or self._in_frame != record.number
        ):
            raise Violation(f"{record} ends {self._frame} with {self._in_frame} changes")
        self._frame = None

    def _message(self, record: Record) -> None:
        if record.number in self.messages:
            if self._exactly_once:
                raise Violation(f"{record} was printed twice")
            return
        self.messages.append(record.number)

    def _changed(self, record: Record) -> None:
        self._in_frame += 1
        if self._exactly_once and self._frame is not None and self._frame.place[0] != record.place[0]:
            raise Violation(f"{record} inside {self._frame}")
        for oid in record.tables:
            table = self.tables[oid]
            if record.place in table.places:
                if self._exactly_once:
                    raise Violation(f"{record} was printed twice")
                continue
            if record.place <= table.last:
                raise Violation(f"{record} after {table.last}")
            table.places.add(record.place)
            table.last = record.place
            if record.kind == "truncate":
                table.rows.clear()
            else:
                self._shown(record, table)
                table.rows.append(record.number)

    def _shown(self, record: Record, table: _Table) -> None:
        if record.columns != table.columns and table.columns is not None:
            raise Violation(f"{record} although the version of the table is {table.columns}")
        if record.kind == "row" and record.columns != self._definitions.get(record.number):
            raise Violation(f"{record}, which was written as {self._definitions.get(record.number)}")
        table.columns = record.columns


def check(
    server: Server, sink: Sink, start: Lsn, *, left_out: set[int], stayed: dict[int, Lsn], noticed: dict[int, Lsn]
) -> None:
    """Compare an output with the server. Raises Violation.

    ``start`` is where the stream began. Of tables in ``left_out`` nothing is expected, since they could not be copied.
    ``stayed`` are tables that were ready when they left the publication at that LSN. Tables in ``noticed`` came back
    after they had been seen to be away at that LSN.
    """
    reader = Reader(server, exactly_once=not sink.pipe)
    reader.read(sink.content)
    for oid in sorted(server.published - left_out):
        table = reader.tables[oid]
        if not table.whole:
            raise Violation(f"the copy of table {oid} never ended")
        if table.snapshot_lsn < noticed.get(oid, 0):
            raise Violation(f"table {oid} was away at {noticed[oid]} and is not copied again")
        snapshot = server.rows_at(oid, table.snapshot_lsn)
        # Of a table that has come back, changes of meanwhile are not the publication's.
        partly = oid in server.left
        _compare(oid, table, server.rows_after(snapshot, oid, table.snapshot_lsn, only_published=partly))
    for oid, left_at in stayed.items():
        table = reader.tables[oid]
        snapshot = server.rows_at(oid, table.snapshot_lsn)
        want = server.rows_after(snapshot, oid, table.snapshot_lsn, left_at)
        # Of transactions that wrote to it before it left and committed afterwards nothing is promised.
        if table.rows not in server.states_after(want, oid, left_at):
            _compare(oid, table, want)
    sent = [
        step.number if isinstance(step, Message) else -step.lsn
        for transaction in server.wal
        if transaction.commit_lsn >= start
        for step in transaction.steps
        if isinstance(step, Message | Told)
    ]
    if reader.messages != sent:
        raise Violation(f"the messages {reader.messages} are not {sent}")


def check_versions(server: Server, store: Store) -> None:
    """Check that a reader who takes over at the stored position finds the version of each table. Raises Violation."""
    position = store.position
    if position is None:
        return
    for oid, (phase, _) in store.tables.items():
        # Of tables that are not published the event trigger says nothing.
        unsaid = oid not in server.published or oid in server.left
        if unsaid or phase is not Phase.READY or server.is_being_altered(oid, position):
            continue
        versions = store.versions.get(oid, {})
        newest = max((lsn for lsn in versions if lsn <= position), default=None)
        want = of_description(server.definition_at(oid, position).described())
        if newest is None or versions[newest] != want:
            raise Violation(f"a reader from {position} takes version {newest} of table {oid}, and it is {want}")


def _compare(oid: int, table: _Table, want: list[int]) -> None:
    if sorted(table.rows) != sorted(want):
        missing = sorted(set(want) - set(table.rows))[:5]
        extra = sorted(number for number in set(table.rows) if table.rows.count(number) > want.count(number))[:5]
        raise Violation(f"table {oid}: missing {missing}, too much {extra}, {len(table.rows)} of {len(want)} rows")
    if table.rows != want:
        raise Violation(f"table {oid}: its rows are out of order")
