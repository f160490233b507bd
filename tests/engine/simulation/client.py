"""One life of the engine on the model: its core, changes, router, spool and output are the real ones.

What opens connections, waits and retries is a generator here, which is carried on one step at a time and may be dropped
at each: that is a crash.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pgrepl import events
from pgrepl.catalog.definitions import DDL_PREFIX, of_description, of_message
from pgrepl.engine import resume
from pgrepl.engine.changes import Changes
from pgrepl.engine.copying import Begins, Ends, Failed, Gone, Lost, News, Rows, Waits
from pgrepl.engine.core import (
    Action,
    Confirm,
    Copy,
    Core,
    Decision,
    DropSpool,
    Forget,
    HandOver,
    MarkCopying,
    Phase,
    StoreCaughtUp,
    StorePosition,
    StoreReady,
    TableState,
)
from pgrepl.engine.linespool import LineSpool
from pgrepl.engine.output import Output
from pgrepl.engine.relations import build
from pgrepl.engine.routing import Router
from pgrepl.engine.versions import Versions
from pgrepl.errors import OperationError, PositionError
from pgrepl.events import Table, Transaction
from pgrepl.lsn import Lsn
from pgrepl.pgoutput import messages
from pgrepl.stores import StoredState
from pgrepl.stores.told import from_json
from tests.engine.simulation.server import Definition, Server
from tests.engine.simulation.surroundings import IDENTITY, Lines, Sink, Store
from tests.engine.simulation.violation import Violation

Steps = Generator[None, None, None]


@dataclass(frozen=True)
class Parts:
    """The classes under test, one of which may be broken on purpose."""

    core: Callable[..., Core] = Core
    changes: Callable[..., Changes] = Changes
    router: Callable[..., Router] = Router
    versions: Callable[..., Versions] = Versions
    client: Callable[..., Client] | None = None


@dataclass
class World:
    """Everything that is not the engine.

    ``away`` are tables that this life has seen to be out of the publication, and the LSN; ``noticed`` those that it has
    seen to be back.
    """

    dice: random.Random
    server: Server
    store: Store
    lines: Lines
    sink: Sink
    frames: bool
    store_interval: float
    idle_bytes: int
    # How likely a step is one that looks at what copies tell.
    attention: float
    away: dict[int, Lsn] = field(default_factory=dict)
    noticed: dict[int, Lsn] = field(default_factory=dict)


class _Prepared(NamedTuple):
    point: Lsn
    definitions: dict[int, Definition]
    crashes: int
    hold: object


class Client:
    """One life of the process; ``run`` goes on until it is dropped, or until ``stopping`` has it end in order."""

    def __init__(self, world: World, parts: Parts) -> None:
        self._world, self._parts = world, parts
        self._dice, self._server, self._store, self._sink = world.dice, world.server, world.store, world.sink
        self.finishing = False
        self.stopping = False
        self._clock = 0.0
        self._output = Output(world.lines, world.sink)
        self._spool = LineSpool(Path("/nonexistent"))
        self._inbox: deque[News] = deque()
        self._tasks: list[Steps] = []
        self._copies: dict[int, int] = {}
        self._refresh_due = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing is on its way."""
        return not self._tasks and not self._inbox and self._sink.is_synced

    def copies_again(self, table: int) -> bool:
        """Whether this life is about to copy a table that the store may still call ready."""
        core = getattr(self, "_core", None)
        return core is not None and table in core.tables and core.tables[table].phase is not Phase.READY

    def run(self) -> Steps:
        """Start, and go on."""
        world = self._world
        while not (yield from self._start()):
            self._inbox.clear()
        stream = self._connect()
        while True:
            yield
            if self.stopping:
                yield from self._close()
                return
            self._clock += self._dice.choice((0.01, 0.3))
            activity = self._dice.random()
            if activity < 0.6:
                item = next(stream, None)
                if item is None:
                    stream = self._reconnect()
                elif isinstance(item, Lsn):
                    if not self._core.in_transaction:
                        yield from self._perform(self._core.keepalive(item))
                        self._done()
                else:
                    yield from self._message(*item)
            elif activity < 0.85 and self._tasks:
                task = self._dice.choice(self._tasks)
                try:
                    next(task)
                except StopIteration:
                    self._tasks.remove(task)
            elif activity < 0.85 + world.attention:
                while self._inbox:
                    yield from self._news(self._inbox.popleft())
                    self._done()
            elif activity < 0.97:
                yield from self._settle()
            elif activity < 0.98:
                self._refresh_due = True
            elif activity < 0.985:
                stream = self._reconnect()

    # The start, in the order of engine/starting.py.

    def _start(self) -> Generator[None, None, bool]:
        server, store = self._server, self._store
        published = server.published
        before = {oid: server.catalog[oid] for oid in published}
        yield
        state = store.load()
        slot = resume.SlotFacts(Lsn(server.slot.confirmed), None) if server.slot else None
        here = resume.Here(IDENTITY, Lsn(server.flushed))
        try:
            how = resume.decide(state, slot, here, output=self._sink.position)
        except PositionError as error:
            raise Violation(str(error)) from None
        if how.how == "fresh":
            return (yield from self._start_fresh(before))
        assert how.position is not None
        if how.how == "take_over":
            yield from self._stored(lambda: store.moves(how.position or Lsn(0)))
        return (yield from self._resume(how.position, state, before))

    def _start_fresh(self, before: dict[int, Definition]) -> Generator[None, None, bool]:
        server, store = self._server, self._store
        point = yield from self._slot()
        if point is None:
            return False
        server.keep_slot(point)
        yield
        prepared = yield from self._prepare(point, server.crashes, None)
        if prepared is None or self._differs(before, prepared.definitions):
            server.holds.clear()
            server.drop_slot()
            yield
            return False

        def begin() -> None:
            store.copying(prepared.definitions)
            store.moves(point)

        yield from self._stored(begin)
        known = {oid: definition.table() for oid, definition in prepared.definitions.items()}
        self._make(point, {oid: TableState(Phase.DATA_SYNC) for oid in known}, known, {})
        for oid in known:
            yield from self._perform(self._core.copy_begins(oid, 0, point))
        self._tasks.append(self._copy(prepared, 0))
        return True

    @staticmethod
    def _differs(before: dict[int, Definition], inside: dict[int, Definition]) -> bool:
        # A transaction may have written to a table before it was published and commit after the slot's point, where
        # neither snapshot nor stream have it. So tables must have been published before the slot was begun.
        return {oid: (d.name, d.shown) for oid, d in before.items()} != {
            oid: (d.name, d.shown) for oid, d in inside.items()
        }

    def _resume(self, position: Lsn, state: StoredState, published: Collection[int]) -> Generator[None, None, bool]:
        states = {}
        for oid, stored in state.tables.items():
            phase = Phase(stored.phase)
            # A copy that was cut short begins anew.
            states[oid] = TableState(Phase.INIT if phase is Phase.DATA_SYNC else phase, stored.lsn)
            if phase is Phase.ERRORED and self._dice.random() < 0.5:
                # Its time to be tried again has come.
                states[oid].retry_at = self._clock
        removed = sorted(states.keys() - set(published))
        for oid in removed:
            if states[oid].phase is Phase.INIT:
                # There is nothing left to copy.
                states[oid] = TableState(Phase.ERRORED)
        for oid in published:
            states.setdefault(oid, TableState(Phase.INIT))
        self._copies.update(state.copies)
        self._make(position, states, {}, state.told)
        read_at = Lsn(self._server.end)
        for oid in removed:
            self._world.away[oid] = read_at
            self._core.table_left(oid, read_at)
        yield from self._perform(self._core.copies_due())
        yield from self._perform(self._core.retries_due(self._clock))
        return True

    def _make(
        self, position: Lsn, tables: dict[int, TableState], known: Mapping[int, Table], told: Mapping[int, Table]
    ) -> None:
        sidecar = self._sink.adopt()
        for oid, count in sidecar.copies.items():
            self._copies[oid] = max(self._copies.get(oid, 0), count)
        self._core = self._parts.core(
            tables,
            position,
            self._sink.position,
            store_interval=self._world.store_interval,
            idle_bytes=self._world.idle_bytes,
        )
        self._changes = self._parts.changes(
            self._resolve, printed=lambda table: True, known=known, appeared=self._appeared
        )
        not_stored = {oid: from_json(oid, json.loads(version)) for oid, version in sidecar.told.items()}
        self._versions = self._parts.versions(told, not_stored)
        self._router = self._parts.router(
            self._core,
            self._output,
            self._spool,
            self._versions,
            frames=self._world.frames,
            printed=lambda: None,
        )
        self._done()

    def _resolve(self, relation: messages.Relation, _transaction: Transaction) -> Table:
        """Build a version as engine/relations.py does, with a catalog that may be further on, or back after a crash."""
        now = self._server.catalog.get(relation.oid)
        return build(relation, now.described() if now else None, {}, {})

    def _appeared(self, table: Table) -> None:
        if table.oid not in self._core.tables:
            self._refresh_due = True

    # The stream.

    def _connect(self) -> Iterator[tuple[Lsn, messages.AnyMessage] | Lsn]:
        return self._server.stream(self._core.resume_position())

    def _reconnect(self) -> Iterator[tuple[Lsn, messages.AnyMessage] | Lsn]:
        self._changes.broken_off()
        self._router.broken_off()
        self._core.connection_lost()
        return self._connect()

    def _message(self, start: Lsn, message: messages.AnyMessage) -> Steps:
        found = self._changes.apply(start, message)
        if isinstance(message, messages.Begin):
            self._core.begin(message.final_lsn)
            assert self._changes.transaction is not None
            self._router.begin(self._changes.transaction)
        for event in found:
            self._router.route(event)
        if isinstance(message, messages.Message) and message.prefix == DDL_PREFIX:
            yield from self._defined(start, message.content)
        if isinstance(message, messages.Commit):
            self._router.commit(message.end_lsn)
            actions = self._core.commit(message.end_lsn)
            self._done()
            yield from self._perform(actions)

    def _defined(self, lsn: Lsn, content: bytes) -> Steps:
        """Store the version that the event trigger tells of, or keep it for the hand-over."""
        definition = of_message(content)
        decision = self._core.whose(definition.oid)
        if decision is Decision.EMIT:
            yield from self._stored(lambda: self._store.version(definition, lsn))
        elif decision is Decision.SPOOL:
            assert self._changes.transaction is not None
            self._spool.append_definition(definition.oid, self._changes.transaction.commit_lsn, lsn, content)

    def _done(self) -> None:
        if self._core.at_boundary:
            self._output.boundary(self._core.done)

    def _settle(self) -> Steps:
        yield from self._write()
        if self._dice.random() < 0.7:
            yield from self._sync()
        durable = self._output.durable()
        yield from self._perform(self._core.durable(durable, self._clock, at_once=self.finishing))
        yield from self._perform(self._core.forget_left())
        if self._core.confirmed:
            self._store.prune(self._core.confirmed)
        if not self._core.in_transaction and (self._refresh_due or self.finishing):
            self._refresh_due = False
            yield from self._refresh()

    def _refresh(self) -> Steps:
        """Read the publication again."""
        published = self._server.published
        yield
        read_at = Lsn(self._server.end)
        for oid in self._core.tables.keys() - published:
            self._world.away.setdefault(oid, read_at)
        back = {oid: self._world.away.pop(oid) for oid in self._world.away.keys() & published}
        yield from self._perform(self._core.tables_now(published, read_at))
        yield from self._perform(self._core.copies_due())
        # From here on it is stored.
        self._world.noticed.update(back)

    def _close(self) -> Steps:
        """End in order, also in the middle of a transaction."""
        yield from self._write()
        yield from self._sync()
        yield from self._perform(self._core.durable(self._output.durable(), self._clock, at_once=True))

    # The output and the store, which may be away for a while.

    def _write(self) -> Steps:
        while self._sink.away:
            yield
        self._output.write()
        yield
        self._sink.written()

    def _sync(self) -> Steps:
        yield from self._write()
        while self._sink.away:
            yield
        self._sink.sync()
        yield
        self._sink.write_sidecar(self._copies, self._versions)
        yield

    def _stored(self, work: Callable[[], None]) -> Steps:
        yield
        if self._store.away and self._dice.random() < 0.3:
            # It was committed, but the answer is lost.
            work()
        while self._store.away:
            yield
        work()
        yield

    def _perform(self, actions: list[Action]) -> Steps:
        core, store = self._core, self._store
        for action in actions:
            match action:
                case MarkCopying(tables):
                    yield from self._stored(lambda tables=tables: store.copying(tables))  # type: ignore[misc]
                case Copy(tables, number):
                    self._tasks.append(self._late(tables, number))
                case DropSpool(table, before):
                    self._spool.drop(table, before)
                case Forget(tables):
                    yield from self._stored(lambda tables=tables: store.forget(tables))  # type: ignore[misc]
                case HandOver(tables):
                    yield from self._hand_over(tables)
                case StoreReady(tables, position):
                    told = self._versions.not_stored(position)

                    def ready(
                        tables: tuple[int, ...] = tables, position: Lsn = position, told: list[Table] = told
                    ) -> None:
                        store.ready(tables)
                        store.moves(position, told)

                    yield from self._stored(ready)
                    self._versions.stored(position)
                    yield from self._perform(core.stored_at(position))
                case StoreCaughtUp(tables):
                    yield from self._stored(lambda tables=tables: store.ready(tables))  # type: ignore[misc]
                case StorePosition(position):
                    told = self._versions.not_stored(position)
                    yield from self._stored(lambda p=position, t=told: store.moves(p, t))  # type: ignore[misc]
                    self._versions.stored(position)
                    yield from self._perform(core.stored_at(position))
                case Confirm(position):
                    if store.position is None or position > store.position:
                        raise Violation("confirmed before it was stored")
                    self._server.confirm(position)
                    yield

    def _hand_over(self, tables: tuple[int, ...]) -> Steps:
        for oid in tables:
            self._router.hand_over(oid)
        self._output.boundary(self._core.done)
        yield from self._sync()
        for oid in tables:
            for lsn, content in self._spool.definitions(oid):
                definition = of_message(content)
                yield from self._stored(lambda d=definition, at=lsn: self._store.version(d, at))  # type: ignore[misc]
        yield from self._perform(self._core.handed_over())

    # Copies.

    def _news(self, news: News) -> Steps:
        core = self._core
        match news:
            case Waits(oids, number, received):
                for oid in oids:
                    yield from self._perform(core.copy_waits(oid, number, received))
            case Begins(table, definition, number, snapshot_lsn):
                if core.is_copying(table.oid, number):
                    attempt = self._copies[table.oid] = self._copies.get(table.oid, 0) + 1
                    self._changes.knows(table)
                    self._versions.copied(table, snapshot_lsn)
                    yield from self._perform(core.copy_begins(table.oid, number, snapshot_lsn))
                    yield from self._stored(lambda: self._store.schema(definition))
                    self._output.emit(events.SnapshotBegin(table, attempt, snapshot_lsn))
            case Rows(oid, number, lines, _):
                if core.is_copying(oid, number):
                    self._output.add(lines)
            case Ends(table, number, snapshot_lsn, rows):
                if core.is_copying(table.oid, number):
                    self._output.emit(events.SnapshotEnd(table, self._copies[table.oid], rows, snapshot_lsn))
                    yield from self._perform(core.copy_ends(table.oid, number))
            case Lost(oids, number, _):
                yield from self._perform(core.copy_lost(oids, number))
            case Gone(oids, number):
                for oid in oids:
                    yield from self._perform(core.copy_gone(oid, number))
                self._refresh_due = True
            case Failed(oid, number, _):
                if core.is_copying(oid, number):
                    yield from self._stored(lambda: self._errored(oid))
                    yield from self._perform(core.copy_failed(oid, number))

    def _errored(self, oid: int) -> None:
        self._store.tables[oid] = (Phase.ERRORED, None)

    def _slot(self, waits: Callable[[], None] = lambda: None) -> Generator[None, None, Lsn | None]:
        for point in self._server.build_slot():
            if point is not None:
                return point
            if self._dice.random() < 0.3:
                waits()
            yield
        return None

    def _late(self, oids: tuple[int, ...], number: int) -> Steps:
        """Copy tables out of a snapshot of their own."""

        def waits() -> None:
            self._inbox.append(Waits(oids, number, self._core.received))

        while True:
            crashes = self._server.crashes
            point = yield from self._slot(waits)
            prepared = None
            if point is not None:
                prepared = yield from self._prepare(point, crashes, oids)
            if prepared is not None:
                break
            if self._dice.random() < 0.5:
                self._inbox.append(Lost(oids, number, ""))
                return
            # It will pass, and then the same copy tries again.
            waits()
            yield
        gone = tuple(sorted(set(oids) - prepared.definitions.keys()))
        if gone:
            self._inbox.append(Gone(gone, number))
        yield from self._copy(prepared, number)

    def _prepare(
        self, point: Lsn, crashes: int, wanted: Collection[int] | None
    ) -> Generator[None, None, _Prepared | None]:
        """Import a snapshot and hold its tables; None when it is no use."""
        server = self._server
        for _ in range(self._dice.randrange(4)):
            yield
        tables = sorted(oid for oid in server.published_at(point) if wanted is None or oid in wanted)
        patience = self._dice.randrange(30)
        while any(server.is_held(oid) for oid in tables) and patience:
            patience -= 1
            yield
        if crashes != server.crashes or any(server.is_held(oid) for oid in tables):
            return None
        if not self._is_usable(tables, point):
            return None
        hold = object()
        server.holds[hold] = set(tables)
        return _Prepared(point, {oid: server.definition_at(oid, point) for oid in tables}, crashes, hold)

    def _is_usable(self, tables: Collection[int], point: Lsn) -> bool:
        return not any(self._server.rewritten_since(oid, point) for oid in tables)

    def _copy(self, prepared: _Prepared, number: int) -> Steps:
        """Copy tables side by side, a row a step; a crash of the server or bad luck loses what is left."""
        server, dice, point = self._server, self._dice, prepared.point
        left: dict[int, Iterator[int]] = {}
        counts = dict.fromkeys(prepared.definitions, 0)
        tables = {oid: definition.table() for oid, definition in prepared.definitions.items()}
        todo = sorted(tables)
        while todo or left:
            yield
            if prepared.crashes != server.crashes or dice.random() < 0.002:
                self._inbox.append(Lost((*todo, *left), number, ""))
                break
            if todo and (not left or dice.random() < 0.2):
                oid = todo.pop(0)
                if dice.random() < 0.01:
                    self._inbox.append(Failed(oid, number, OperationError("it cannot be copied")))
                    continue
                left[oid] = iter(server.read(oid, point))
                definition = of_description(prepared.definitions[oid].described())
                self._inbox.append(Begins(tables[oid], definition, number, point))
                continue
            oid = dice.choice(list(left))
            row = next(left[oid], None)
            if row is None:
                del left[oid]
                self._inbox.append(Ends(tables[oid], number, point, counts[oid]))
            else:
                counts[oid] += 1
                event = events.Read(tables[oid], prepared.definitions[oid].row(row), point)
                self._inbox.append(Rows(oid, number, self._output.format(event), 1))
        server.holds.pop(prepared.hold, None)
