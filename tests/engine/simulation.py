"""A small model of the world around the engine's core, driven by one seed, so that a failure can be played again.

The server has a WAL with interleaved transactions, a publication to which tables are added and from which they are
taken, snapshots, and a slot whose confirmed position goes back when the server crashes. The output is a file with a
sidecar, of which only what was synced is sure to survive, or a pipe. The store keeps what was committed to it. The
client is the engine's real core with the thinnest of drivers: a generator that can be dropped, which is a crash, at
every ``yield``.

Every change has a number of its own, so that at the end it can be told which are missing, doubled or out of order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pgrepl.engine.core import (
    Action,
    Confirm,
    Copy,
    Core,
    Decision,
    DropSpool,
    HandOver,
    MarkCopying,
    Phase,
    StoreCaughtUp,
    StorePosition,
    StoreReady,
    TableState,
)
from pgrepl.lsn import Lsn


class Violation(AssertionError):
    """A promise was broken."""


class Record(NamedTuple):
    """One line of the output: begin, read, end, or change."""

    kind: str
    table: int
    number: int
    commit_lsn: Lsn = Lsn(0)
    seq: int = -1


class Transaction(NamedTuple):
    """A committed transaction: (table, number) of each change, and whether the table was published then."""

    commit_lsn: Lsn
    end_lsn: Lsn
    changes: tuple[tuple[int, int, bool], ...]


@dataclass
class Server:
    """WAL, publication and slot."""

    dice: random.Random
    published: set[int] = field(default_factory=lambda: {1, 2, 3})
    wal: list[Transaction] = field(default_factory=list)
    end: int = 0x1000
    open: dict[int, list[tuple[int, int, bool]]] = field(default_factory=dict)
    slot: int | None = None
    saved_slot: int | None = None
    numbers: int = 0
    unpublished_since: dict[int, int] = field(default_factory=dict)
    crashes: int = 0

    def write(self) -> None:
        """Let one of the writers do something."""
        what = self.dice.random()
        if what < 0.55 or not self.open:
            session = self.dice.randrange(4)
            table = self.dice.randrange(1, 6)
            self.numbers += 1
            self.open.setdefault(session, []).append((table, self.numbers, table in self.published))
            self.end += 8
        elif what < 0.95:
            session = self.dice.choice(list(self.open))
            # The commit record often starts exactly where the one before ended: nothing in between.
            commit = self.end
            self.end += 8
            self.wal.append(Transaction(Lsn(commit), Lsn(self.end), tuple(self.open.pop(session))))
        else:
            self.open.pop(self.dice.choice(list(self.open)))
            self.end += 8

    def change_publication(self) -> None:
        """Add a table that never was in it, or take one out for good."""
        never = {4, 5} - self.published - self.unpublished_since.keys()
        if never and self.dice.random() < 0.6:
            self.published.add(self.dice.choice(sorted(never)))
        elif len(self.published) > 2:
            table = self.dice.choice(sorted(self.published))
            self.published.discard(table)
            self.unpublished_since[table] = self.end
        self.end += 8

    def build_slot(self) -> Iterator[Lsn | None]:
        """Make a slot: once all transactions that were open at its beginning have ended, give its consistent point."""
        waiting = [id(changes) for changes in self.open.values()]
        crashes = self.crashes
        while any(id(changes) in waiting for changes in self.open.values()) and crashes == self.crashes:
            yield None
        yield Lsn(self.end) if crashes == self.crashes else Lsn(0)

    def keep_slot(self, point: Lsn) -> None:
        """Let the persistent slot be there from now on."""
        if self.slot is not None:
            raise Violation("the slot is there already")
        self.slot = self.saved_slot = point

    def snapshot(self, table: int, point: Lsn) -> list[int]:
        """The rows that a snapshot consistent with ``point`` sees."""
        return [n for t in self.wal if t.commit_lsn < point for table_, n, _ in t.changes if table_ == table]

    def confirm(self, position: Lsn) -> None:
        """Take feedback."""
        assert self.slot is not None
        self.slot = max(self.slot, position)

    def checkpoint(self) -> None:
        """Save the slot, as a checkpoint does."""
        self.saved_slot = self.slot

    def crash(self) -> None:
        """Lose open transactions, and what the slot was told since the last checkpoint."""
        self.open.clear()
        self.slot = self.saved_slot
        self.crashes += 1

    def stream(self, start: Lsn) -> Iterator[tuple[str, Transaction | Lsn, int, int]]:
        """Send what START_REPLICATION sends: transactions in commit order, and keepalives beside them.

        Ends when the server crashes.
        """
        assert self.slot is not None
        position = max(start, self.slot)
        crashes = self.crashes
        index = 0
        while True:
            while index < len(self.wal):
                transaction = self.wal[index]
                index += 1
                changes = [change for change in transaction.changes if change[2]]
                if transaction.commit_lsn < position or not changes:
                    continue
                yield ("begin", transaction, 0, 0)
                for table, number, _ in changes:
                    if crashes != self.crashes:
                        return
                    yield ("change", transaction, table, number)
                if crashes != self.crashes:
                    return
                yield ("commit", transaction, 0, 0)
            if crashes != self.crashes:
                return
            yield ("keepalive", Lsn(self.end), 0, 0)

    def truth(self, table: int) -> list[int]:
        """Every committed change of a table, in commit order."""
        return [n for t in self.wal for table_, n, _ in t.changes if table_ == table]


@dataclass
class Store:
    """What was committed to it, and nothing else."""

    tables: dict[int, tuple[Phase, Lsn | None]] = field(default_factory=dict)
    position: Lsn | None = None
    copies: dict[int, int] = field(default_factory=dict)


@dataclass
class Output:
    """A file with its sidecar (offset and position), or with ``pipe`` something that keeps what it was given."""

    dice: random.Random
    pipe: bool
    content: list[Record] = field(default_factory=list)
    synced: int = 0
    sidecar: tuple[int, Lsn] = (0, Lsn(0))

    def crash(self) -> None:
        """Lose some of what was not synced."""
        if not self.pipe:
            del self.content[self.dice.randint(self.synced, len(self.content)) :]

    def recover(self) -> Lsn | None:
        """Cut the file to what its sidecar vouches for; give its position, of which a pipe knows nothing."""
        if self.pipe:
            return None
        offset, position = self.sidecar
        if offset > len(self.content):
            raise Violation("the sidecar vouches for more than is there")
        del self.content[offset:]
        self.synced = offset
        return position


class Client:
    """The engine's core with a driver for the model. ``run`` is one life of the process."""

    def __init__(
        self, server: Server, store: Store, output: Output, dice: random.Random, make_core: Callable[..., Core]
    ) -> None:
        self.server, self.store, self.output, self.dice = server, store, output, dice
        self.make_core = make_core
        self.clock = 0.0
        self.finishing = False
        self.spool: dict[int, list[Record]] = {}
        self.tasks: list[Generator[None, None, None]] = []
        self.seq = 0
        self.ended: list[int] = []
        self.removed: dict[int, Lsn] = {}
        # Where the output was between transactions: so many records, and everything before this position.
        self.mark: tuple[int, Lsn] = (0, Lsn(0))

    def run(self) -> Iterator[None]:
        """Start, and go on until dropped."""
        server, store = self.server, self.store
        position = store.position
        if server.slot is None:
            if position is not None:
                raise Violation("the slot is lost")
            while True:
                published = set(server.published)
                yield
                point = yield from self._slot()
                # A transaction may have written to a table before it was published and commit after the slot's point,
                # where neither snapshot nor stream have it. So tables must have been published before the slot was
                # begun.
                if published == server.published:
                    break
            server.keep_slot(point)
            yield
            for table in sorted(published):
                store.tables[table] = (Phase.DATA_SYNC, None)
            store.position = position = point
            yield
            core = self._core(position, fresh=True)
            task = self._copy(core, tuple(store.tables), point)
            for table in store.tables:
                self._act(core.copy_begins(table, point))
            self.tasks.append(task)
        else:
            if position is None:
                # It died between the slot and the store: the slot is taken over, the tables are copied as late ones.
                store.position = position = Lsn(server.slot)
                yield
            if server.slot > position:
                raise Violation(f"the slot is at {Lsn(server.slot)}, ahead of the store at {position}")
            core = self._core(position, fresh=False)
            yield from self._refresh(core)
        stream = server.stream(core.resume_position())
        while True:
            yield
            self.clock += self.dice.choice((0.01, 0.3))
            activity = self.dice.random()
            if activity < 0.6:
                message = next(stream, None)
                if message is None:
                    core.connection_lost()
                    stream = server.stream(core.resume_position())
                else:
                    yield from self._message(core, message)
            elif activity < 0.85 and self.tasks:
                task = self.dice.choice(self.tasks)
                try:
                    next(task)
                except StopIteration:
                    self.tasks.remove(task)
                while self.ended:
                    oid = self.ended.pop()
                    if oid in core.tables:
                        yield from self._perform(core, core.copy_ends(oid))
            elif activity < 0.95:
                if self.dice.random() < 0.7:
                    yield from self._sync()
                yield from self._perform(core, core.durable(self._durable(), self.clock, at_once=self.finishing))
            elif activity < 0.97 and not core.in_transaction:
                yield from self._refresh(core)
            elif activity < 0.98:
                core.connection_lost()
                stream = server.stream(core.resume_position())

    def _slot(self) -> Generator[None, None, Lsn]:
        while True:
            for point in self.server.build_slot():
                if point:
                    return point
                yield

    def _core(self, position: Lsn, *, fresh: bool) -> Core:
        tables = {}
        for oid, (phase, lsn) in self.store.tables.items():
            # A copy that was cut short begins anew.
            cut_short = phase is Phase.DATA_SYNC and not fresh
            tables[oid] = TableState(Phase.INIT if cut_short else phase, lsn)
        core = self.make_core(tables, position, self.output.recover())
        self.mark = (len(self.output.content), core.done)
        return core

    def _message(self, core: Core, message: tuple[str, Transaction | Lsn, int, int]) -> Iterator[None]:
        kind, subject, table, number = message
        if isinstance(subject, Lsn):
            actions = core.keepalive(subject)
        elif kind == "begin":
            core.begin(subject.commit_lsn)
            self.seq = 0
            return
        elif kind == "change":
            seq, self.seq = self.seq, self.seq + 1
            decision = core.decide(table, seq)
            record = Record("change", table, number, subject.commit_lsn, seq)
            if decision is Decision.EMIT:
                self.output.content.append(record)
            elif decision is Decision.SPOOL:
                self.spool.setdefault(table, []).append(record)
            return
        else:
            actions = core.commit(subject.end_lsn)
        self._boundary(core)
        yield from self._perform(core, actions)
        for oid, read_at in list(self.removed.items()):
            if core.stored >= read_at:
                del self.removed[oid]
                self.store.tables.pop(oid, None)
                yield
                yield from self._perform(core, core.forget(oid))

    def _boundary(self, core: Core) -> None:
        if core.at_boundary:
            self.mark = (len(self.output.content), core.done)

    def _refresh(self, core: Core) -> Iterator[None]:
        """Read the publication again."""
        published = self.server.published & {1, 2, 3, 4, 5}
        read_at = Lsn(self.server.end)
        for oid in core.tables_now(published):
            self.removed.setdefault(oid, read_at)
        yield from self._perform(core, core.copies_due())

    def _sync(self) -> Iterator[None]:
        if not self.output.pipe:
            offset, position = self.mark
            self.output.synced = max(self.output.synced, offset)
            yield
            if offset >= self.output.sidecar[0]:
                self.output.sidecar = (offset, max(position, self.output.sidecar[1]))
        yield

    def _durable(self) -> Lsn:
        return self.mark[1] if self.output.pipe else self.output.sidecar[1]

    def _perform(self, core: Core, actions: list[Action]) -> Iterator[None]:
        for action in actions:
            match action:
                case MarkCopying(tables):
                    for oid in tables:
                        self.store.tables[oid] = (Phase.DATA_SYNC, None)
                    yield
                case Copy(tables):
                    self.tasks.append(self._copy(core, tables, None))
                case DropSpool():
                    self._act([action])
                case HandOver(tables):
                    for oid in tables:
                        self.output.content.extend(self.spool.pop(oid, []))
                    self._boundary(core)
                    yield
                    yield from self._sync()
                    yield from self._perform(core, core.handed_over())
                case StoreReady(tables, position):
                    for oid in tables:
                        self.store.tables[oid] = (Phase.READY, None)
                    self.store.position = max(position, self.store.position or position)
                    yield
                    yield from self._perform(core, core.stored_at(position))
                case StoreCaughtUp(tables):
                    for oid in tables:
                        self.store.tables[oid] = (Phase.READY, None)
                    yield
                case StorePosition(position):
                    self.store.position = max(position, self.store.position or position)
                    yield
                    yield from self._perform(core, core.stored_at(position))
                case Confirm(position):
                    if self.store.position is None or position > self.store.position:
                        raise Violation("confirmed before it was stored")
                    self.server.confirm(position)
                    yield

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            assert isinstance(action, DropSpool)
            kept = [r for r in self.spool.get(action.table, []) if action.before and self._kept(r, action.before)]
            self.spool[action.table] = kept

    @staticmethod
    def _kept(record: Record, before: Lsn) -> bool:
        return record.commit_lsn >= before

    def _copy(self, core: Core, tables: tuple[int, ...], point: Lsn | None) -> Generator[None, None, None]:
        """Copy tables, a row a step; a crash of the server or bad luck loses the copy, and another follows."""
        crashes = self.server.crashes
        if point is None:
            point = yield from self._slot()
            crashes = self.server.crashes
            # The point is known on the server before it is known here.
            for _ in range(self.dice.randrange(4)):
                yield
            for oid in tables:
                if oid in core.tables:
                    self._act(core.copy_begins(oid, point))
        for oid in tables:
            if oid not in core.tables:
                continue
            attempt = self.store.copies[oid] = self.store.copies.get(oid, 0) + 1
            yield
            self.output.content.append(Record("begin", oid, attempt))
            for number in self.server.snapshot(oid, point):
                yield
                if oid not in core.tables:
                    break
                if crashes != self.server.crashes or self.dice.random() < 0.002:
                    self.tasks.append(self._again(core, oid))
                    break
                self.output.content.append(Record("read", oid, number))
            else:
                self.output.content.append(Record("end", oid, attempt))
                self.ended.append(oid)
        self._boundary(core)

    def _again(self, core: Core, oid: int) -> Generator[None, None, None]:
        if oid not in core.tables:
            return
        for action in core.copy_lost(oid):
            assert isinstance(action, Copy)
            yield from self._copy(core, action.tables, None)


def check(server: Server, output: Output) -> None:
    """Compare what a reader makes of the output with what the server has. Raises Violation."""
    rows: dict[int, list[int]] = {}
    whole: dict[int, bool] = {}
    last: dict[int, tuple[int, int]] = {}
    seen: set[tuple[int, int]] = set()
    for record in output.content:
        if record.kind == "begin":
            rows[record.table], whole[record.table] = [], False
            continue
        if record.kind == "end":
            whole[record.table] = True
            continue
        if record.kind == "change":
            place = (int(record.commit_lsn), record.seq)
            if place in seen:
                if not output.pipe:
                    raise Violation(f"{record} was printed twice")
                continue
            if place <= last.get(record.table, (0, -1)):
                raise Violation(f"{record} after {last[record.table]}")
            seen.add(place)
            last[record.table] = place
        rows.setdefault(record.table, []).append(record.number)
    for table in server.published:
        if not whole.get(table):
            raise Violation(f"the copy of table {table} never ended")
        have, want = rows.get(table, []), server.truth(table)
        if have != want:
            missing = [n for n in want if n not in have][:5]
            extra = [n for n in have if have.count(n) > 1][:5]
            raise Violation(f"table {table}: missing {missing}, twice {extra}, {len(have)} of {len(want)}")


def play(
    seed: int, *, pipe: bool = False, make_core: Callable[..., Core] = Core, client_type: type[Client] = Client
) -> None:
    """Run one schedule of writers and crashes on either side, and let all come to rest."""
    dice = random.Random(seed)
    server, store = Server(dice), Store()
    output = Output(dice, pipe)

    def start() -> tuple[Client, Iterator[None]]:
        client = client_type(server, store, output, dice, make_core)
        return client, client.run()

    client, life = start()
    for _ in range(dice.randint(50, 1200)):
        luck = dice.random()
        if luck < 0.35:
            server.write()
        elif luck < 0.36:
            server.checkpoint()
        elif luck < 0.363:
            server.crash()
        elif luck < 0.37:
            server.change_publication()
        elif luck < 0.38:
            life.close()  # type: ignore[attr-defined]
            output.crash()
            client, life = start()
        else:
            next(life)
    for session in list(server.open):
        server.open.pop(session)
    client.finishing = True
    for _ in range(60_000):
        next(life)
        if _at_rest(server, client, store, output):
            break
    else:
        raise Violation("it does not come to rest")
    life.close()  # type: ignore[attr-defined]
    output.crash()
    output.recover()
    check(server, output)


def _at_rest(server: Server, client: Client, store: Store, output: Output) -> bool:
    ready = {oid for oid, (phase, _) in store.tables.items() if phase is Phase.READY}
    last = server.wal[-1].end_lsn if server.wal else Lsn(0)
    return (
        not client.tasks
        and server.published <= ready
        and store.position is not None
        and store.position >= last
        and (output.pipe or output.sidecar == client.mark)
    )
