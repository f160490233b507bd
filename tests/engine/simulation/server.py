"""A small model of PostgreSQL: WAL, catalog, publication, snapshots, and slots that go back in a crash."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from pgrepl.catalog.definitions import DDL_PREFIX
from pgrepl.catalog.tables import ColumnDescription, TableDescription
from pgrepl.engine.relations import build
from pgrepl.events import Table
from pgrepl.lsn import Lsn
from pgrepl.pgoutput import messages
from tests.engine.simulation.violation import Violation

INT4, INT8 = 23, 20


class Column(NamedTuple):
    """A column; the attnum stays its own through every rename."""

    name: str
    attnum: int
    type_oid: int

    @property
    def shown(self) -> str:
        """What stands in the rows for it, so that a row tells the version it was written in."""
        return f"{self.name}:{self.type_oid}"


class Definition(NamedTuple):
    """One version of a table. The first column holds the number of the row and is the key."""

    oid: int
    name: str
    columns: tuple[Column, ...]
    next_attnum: int

    @property
    def shown(self) -> tuple[str, ...]:
        """The name and the columns as rows show them."""
        return (self.name, *(column.shown for column in self.columns))

    def relation(self) -> messages.Relation:
        """The Relation message of this version."""
        columns = tuple(messages.Column(c.attnum == 1, c.name, c.type_oid, -1) for c in self.columns)
        return messages.Relation(self.oid, "public", self.name, "d", columns)

    def described(self) -> TableDescription:
        """What the catalog says of this version."""
        columns = tuple(
            ColumnDescription(
                c.name, c.attnum, c.type_oid, -1, "int", c.attnum > 1, False, 1 if c.attnum == 1 else None, False
            )
            for c in self.columns
        )
        return TableDescription(self.oid, "public", self.name, "r", "d", columns)

    def table(self) -> Table:
        """The version as a snapshot describes it."""
        return build(self.relation(), self.described(), {}, {})

    def row(self, number: int) -> tuple[bytes, ...]:
        """A row in this version."""
        return (b"%d" % number, *(column.shown.encode() for column in self.columns[1:]))


class Row(NamedTuple):
    """A row is inserted; ``published`` says whether the table was in the publication then."""

    table: int
    number: int
    definition: Definition
    published: bool


class Truncated(NamedTuple):
    """Tables are emptied in one statement; those in ``published`` are in the publication."""

    tables: tuple[Definition, ...]
    published: frozenset[int]


class Altered(NamedTuple):
    """A table has another version from here on; ``rewrites`` is an ALTER that gives it a new file."""

    table: int
    definition: Definition
    rewrites: bool


class Told(NamedTuple):
    """The event trigger's message about the version before it; ``lsn`` is where it ends."""

    table: int
    definition: Definition
    lsn: Lsn

    @property
    def content(self) -> bytes:
        """What the message says, as far as it is read."""
        columns = [
            {
                "attname": c.name,
                "attnum": c.attnum,
                "atttypid": c.type_oid,
                "atttypmod": -1,
                "attnotnull": c.attnum == 1,
            }
            for c in self.definition.columns
        ]
        return json.dumps(
            {
                "oid": self.table,
                "nspname": "public",
                "relname": self.definition.name,
                "identity": {"primary_key_attnums": [1]},
                "columns": columns,
            }
        ).encode()


class Created(NamedTuple):
    """A table is created, and published with the transaction's commit."""

    table: int
    definition: Definition
    published: bool


class Dropped(NamedTuple):
    """A table is gone."""

    table: int


class Message(NamedTuple):
    """A transactional logical message."""

    number: int
    lsn: Lsn


Step: TypeAlias = Row | Truncated | Altered | Told | Created | Dropped | Message


class Transaction(NamedTuple):
    """A committed transaction; ``first_lsn`` is where its first record starts."""

    first_lsn: Lsn
    commit_lsn: Lsn
    end_lsn: Lsn
    xid: int
    steps: tuple[Step, ...]


@dataclass
class _Open:
    first_lsn: Lsn
    xid: int
    steps: list[Step] = field(default_factory=list)

    def touches(self, table: int) -> bool:
        return any(table in tables_of(step) for step in self.steps)

    def holds(self, table: int) -> bool:
        """Whether nobody else may use the table before this transaction ends."""
        return any(table in tables_of(step) for step in self.steps if not isinstance(step, Row))

    def definition(self, table: int) -> Definition | None:
        """The version that only this transaction sees."""
        for step in reversed(self.steps):
            if isinstance(step, Altered | Created) and step.table == table:
                return step.definition
        return None


def tables_of(step: Step) -> tuple[int, ...]:
    """Name the tables that a step is about."""
    match step:
        case Truncated(tables):
            return tuple(definition.oid for definition in tables)
        case Message():
            return ()
        case _:
            return (step.table,)


class SlotPositions(NamedTuple):
    """Where decoding has to begin, and before which commit record nothing is sent."""

    restart: int
    confirmed: int


@dataclass(frozen=True)
class Habits:
    """What the writers of one schedule are like: probabilities of what they do, mostly to their favourite table."""

    favourite: int
    favour: float
    commit: float
    ddl: float
    truncate: float
    create: float
    message: float
    lazy_commit: float
    trigger: bool


class Server:
    """WAL, catalog, publication and slot."""

    def __init__(self, dice: random.Random, habits: Habits) -> None:
        self._dice = dice
        self._habits = habits
        self.wal: list[Transaction] = []
        self.end = 0x1000
        self.flushed = self.end
        self.slot: SlotPositions | None = None
        self._saved_slot: SlotPositions | None = None
        # WAL before this has been removed.
        self._removed = 0
        self._open: dict[int, _Open] = {}
        self._xid = 700
        self._numbers = 0
        self._oids = 5
        self.crashes = 0
        # What each copy holds in ACCESS SHARE mode.
        self.holds: dict[object, set[int]] = {}
        self._versions: list[tuple[Lsn, int, Definition | None]] = []
        self.catalog: dict[int, Definition] = {}
        for oid in range(1, 6):
            self._version(Lsn(0), oid, Definition(oid, f"t{oid}", (Column("id", 1, INT8), Column("a", 2, INT4)), 3))
        # Tables that have ever been out of the publication after they were in it.
        self.left: set[int] = set()
        self._publications: list[tuple[Lsn, frozenset[int]]] = [(Lsn(0), frozenset({1, 2, 3}))]

    @property
    def published(self) -> frozenset[int]:
        """What the publication has now."""
        return self._publications[-1][1]

    def published_at(self, point: Lsn) -> frozenset[int]:
        """What the publication has for a snapshot that is consistent with ``point``."""
        return next(tables for lsn, tables in reversed(self._publications) if lsn < point)

    def definition_at(self, table: int, point: Lsn) -> Definition:
        """The version of a table that a snapshot sees."""
        found = next(d for lsn, oid, d in reversed(self._versions) if oid == table and lsn < point)
        assert found is not None
        return found

    def _version(self, lsn: Lsn, oid: int, definition: Definition | None) -> None:
        self._versions.append((lsn, oid, definition))
        if definition is None:
            self.catalog.pop(oid, None)
        else:
            self.catalog[oid] = definition

    def _advance(self) -> Lsn:
        start = self.end
        self.end += 8
        return Lsn(start)

    # Writers.

    def write(self) -> None:
        """Let one of the writers do something."""
        what = self._dice.random()
        if what < 0.95 - self._habits.commit or not self._open:
            self._change(self._dice.randrange(4))
        elif what < 0.95:
            self._commit(self._dice.choice(list(self._open)))
        else:
            self._open.pop(self._dice.choice(list(self._open)))
            self._advance()

    def _change(self, session: int) -> None:
        habits, dice = self._habits, self._dice
        own = self._open.get(session) or _Open(Lsn(self.end), self._xid + 1)
        steps: list[Step] = []
        what = dice.random()
        if what < habits.message:
            self._numbers += 1
            steps.append(Message(self._numbers, Lsn(self.end)))
        elif what < habits.message + habits.create:
            steps = self._create(session, own)
        else:
            visible = sorted({*self.catalog, *(s.table for s in own.steps if isinstance(s, Created))})
            is_favourite = habits.favourite in visible and dice.random() < habits.favour
            table = habits.favourite if is_favourite else dice.choice(visible)
            definition = own.definition(table) or self.catalog[table]
            if any(isinstance(step, Dropped) and step.table == table for step in own.steps):
                return
            if what < habits.message + habits.create + habits.ddl:
                if self._is_free(table, session, exclusively=True):
                    steps = [altered := self._alter(definition)]
                    if habits.trigger and table in self._seen_published(own):
                        self._advance()
                        steps.append(Told(table, altered.definition, Lsn(self.end + 8)))
            elif what < habits.message + habits.create + habits.ddl + habits.truncate:
                also = dice.choice(visible)
                tables = sorted({table, also} if also in self.catalog and dice.random() < 0.3 else {table})
                if all(self._is_free(each, session, exclusively=True) for each in tables) and not any(
                    isinstance(step, Dropped) for step in own.steps
                ):
                    versions = tuple(own.definition(each) or self.catalog[each] for each in tables)
                    steps = [Truncated(versions, self._seen_published(own) & frozenset(tables))]
            elif self._is_free(table, session, exclusively=False):
                self._numbers += 1
                steps = [Row(table, self._numbers, definition, table in self._seen_published(own))]
        if not steps:
            return
        if session not in self._open:
            self._open[session] = own
            self._xid += 1
        own.steps.extend(steps)
        self._advance()

    def _seen_published(self, own: _Open) -> frozenset[int]:
        return self.published | {s.table for s in own.steps if isinstance(s, Created) and s.published}

    def _is_free(self, table: int, session: int, *, exclusively: bool) -> bool:
        if exclusively and any(table in held for held in self.holds.values()):
            return False
        others = [transaction for other, transaction in self._open.items() if other != session]
        return not any(other.touches(table) if exclusively else other.holds(table) for other in others)

    def is_held(self, table: int) -> bool:
        """Whether a copy has to wait for somebody who alters the table."""
        return any(transaction.holds(table) for transaction in self._open.values())

    def _alter(self, before: Definition) -> Altered:
        oid, name, columns, attnum = before
        others = columns[1:]
        what = self._dice.choice(["nothing", "add", "add", "drop", "rename", "retype", "move"])
        rewrites = False
        if what == "add" or not others:
            columns, attnum = (*columns, Column(f"c{self.end:x}", attnum, INT4)), attnum + 1
        elif what == "move":
            name = f"t{oid}_{self.end:x}"
        elif what != "nothing":
            chosen = self._dice.choice(others)
            place = columns.index(chosen)
            new: tuple[Column, ...] = ()
            if what == "rename":
                new = (chosen._replace(name=f"r{self.end:x}"),)
            elif what == "retype":
                new = (chosen._replace(type_oid=INT4 + INT8 - chosen.type_oid),)
                rewrites = True
            columns = (*columns[:place], *new, *columns[place + 1 :])
        return Altered(oid, Definition(oid, name, columns, attnum), rewrites)

    def _create(self, session: int, own: _Open) -> list[Step]:
        """Create a table, perhaps in place of one that has its name; a publication FOR ALL TABLES has it at once."""
        self._oids += 1
        name, steps = f"t{self._oids}", list[Step]()
        droppable = sorted(oid for oid in self.catalog if not own.touches(oid))
        if len(droppable) > 3:
            table = self._dice.choice(droppable)
            if self._is_free(table, session, exclusively=True):
                name = self.catalog[table].name
                steps.append(Dropped(table))
        columns = (Column("id", 1, INT8), Column("a", 2, INT4))
        steps.append(Created(self._oids, Definition(self._oids, name, columns, 3), self._dice.random() < 0.5))
        return steps

    def _commit(self, session: int) -> None:
        own = self._open.pop(session)
        # The commit record often starts exactly where the one before ended: nothing in between.
        commit_lsn = self._advance()
        transaction = Transaction(own.first_lsn, commit_lsn, Lsn(self.end), own.xid, tuple(own.steps))
        self.wal.append(transaction)
        published = self.published
        for step in transaction.steps:
            match step:
                case Altered(table, definition):
                    self._version(commit_lsn, table, definition)
                case Created(table, definition, at_once):
                    self._version(commit_lsn, table, definition)
                    published = published | {table} if at_once else published
                case Dropped(table):
                    self._version(commit_lsn, table, None)
                    published = published - {table}
        if published != self.published:
            self.left |= self.published - published
            self._publications.append((commit_lsn, published))
        if self._dice.random() >= self._habits.lazy_commit:
            self.flushed = self.end

    def change_publication(self) -> int | None:
        """Add a table, one that was in it before as well, or take one out, which is named."""
        absent = sorted(self.catalog.keys() - self.published)
        removed = None
        if absent and self._dice.random() < 0.6:
            tables = self.published | {self._dice.choice(absent)}
        elif len(self.published) > 2:
            removed = self._dice.choice(sorted(self.published))
            tables = self.published - {removed}
            self.left.add(removed)
        else:
            return None
        self._publications.append((self._advance(), tables))
        self.flushed = self.end
        return removed

    def end_writing(self) -> None:
        """Let all writers go home; what they had begun is rolled back. The server goes on to write now and then."""
        self._open.clear()
        self.end += 0x1000
        self.flushed = self.end

    def is_being_altered(self, table: int, position: Lsn) -> bool:
        """Whether the event trigger's message about a version lies before a position, and the commit does not."""
        return any(
            isinstance(step, Told) and step.table == table and step.lsn <= position
            for transaction in self.wal
            if transaction.commit_lsn >= position
            for step in transaction.steps
        ) or any(transaction.holds(table) for transaction in self._open.values())

    # Slots and snapshots.

    def build_slot(self) -> Iterator[Lsn | None]:
        """Make a slot and give its consistent point.

        Twice the transactions that are open must have ended: those that began before the snapshot is built, so that the
        others are seen whole, and those that began before it is full. Ends without a point when the server crashes.
        """
        crashes = self.crashes
        for _ in range(2):
            waiting = {transaction.xid for transaction in self._open.values()}
            while any(transaction.xid in waiting for transaction in self._open.values()):
                yield None
                if crashes != self.crashes:
                    return
            self._advance()
        self.flushed = self.end
        yield Lsn(self.end)

    def keep_slot(self, point: Lsn) -> None:
        """Let the persistent slot be there from now on."""
        if self.slot is not None:
            raise Violation("the slot is there already")
        first = [transaction.first_lsn for transaction in self._open.values()]
        self.slot = self._saved_slot = SlotPositions(min([*first, point]), point)

    def drop_slot(self) -> None:
        """Drop the persistent slot."""
        self.slot = self._saved_slot = None

    def confirm(self, position: Lsn) -> None:
        """Take feedback; the restart position follows when it happens to."""
        assert self.slot is not None
        if position > self.flushed:
            raise Violation(f"{position} is confirmed, and the WAL ends at {Lsn(self.flushed)}")
        restart, confirmed = self.slot.restart, max(self.slot.confirmed, position)
        if self._dice.random() < 0.5:
            pending = [t.first_lsn for t in self.wal if t.commit_lsn >= confirmed]
            restart = max(restart, min([*pending, *(t.first_lsn for t in self._open.values()), confirmed]))
        self.slot = SlotPositions(restart, confirmed)

    def checkpoint(self) -> None:
        """Save the slot and remove the WAL that it does not need."""
        self._saved_slot = self.slot
        self.flushed = self.end
        if self.slot is not None:
            self._removed = self.slot.restart

    def crash(self) -> None:
        """Lose what was not flushed, all that is open, and what the slot was told since the last checkpoint."""
        self._open.clear()
        self.holds.clear()
        self.crashes += 1
        self.slot = self._saved_slot
        self.end = self.flushed
        self.wal = [transaction for transaction in self.wal if transaction.end_lsn <= self.end]
        self._publications = [change for change in self._publications if change[0] < self.end]
        versions = [version for version in self._versions if version[0] < self.end]
        self._versions = []
        self.catalog.clear()
        for version in versions:
            self._version(*version)
        # A new start writes a checkpoint record.
        self._advance()

    def rewritten_since(self, table: int, point: Lsn) -> bool:
        """Whether the file of a table is another one than a snapshot knows, or the table is gone or renamed."""
        for transaction in reversed(self.wal):
            if transaction.commit_lsn < point:
                break
            for step in transaction.steps:
                if table in tables_of(step) and (
                    isinstance(step, Truncated | Dropped) or (isinstance(step, Altered) and step.rewrites)
                ):
                    return True
        then, now = self.definition_at(table, point), self.catalog[table]
        return then.name != now.name or not {c.name for c in then.columns} <= {c.name for c in now.columns}

    def rows_at(self, table: int, point: Lsn) -> list[int]:
        """The rows of a table that a snapshot consistent with ``point`` sees, if the table has its file of then."""
        return self.rows_after([], table, Lsn(0), point, only_published=False)

    def read(self, table: int, point: Lsn) -> list[int]:
        """The rows that a COPY with that snapshot gives now."""
        return [] if self.rewritten_since(table, point) else self.rows_at(table, point)

    def rows_after(
        self, rows: list[int], table: int, start: Lsn, end: Lsn | None = None, *, only_published: bool = True
    ) -> list[int]:
        """Carry out on ``rows`` the changes of transactions that commit in [start, end)."""
        *_, last = self.states_after(rows, table, start, end, only_published=only_published)
        return last

    def states_after(
        self, rows: list[int], table: int, start: Lsn, end: Lsn | None = None, *, only_published: bool = True
    ) -> Iterator[list[int]]:
        """Give ``rows``, and what they become with each change of transactions that commit in [start, end)."""
        yield rows
        for transaction in self.wal:
            if transaction.commit_lsn < start or (end is not None and transaction.commit_lsn >= end):
                continue
            for step in transaction.steps:
                if isinstance(step, Row) and step.table == table and (step.published or not only_published):
                    rows = [*rows, step.number]
                    yield rows
                elif isinstance(step, Truncated) and table in (step.published if only_published else tables_of(step)):
                    rows = []
                    yield rows

    # The stream.

    def stream(self, start: Lsn) -> Iterator[tuple[Lsn, messages.AnyMessage] | Lsn]:
        """Send what START_REPLICATION sends: transactions in commit order, and keepalives beside them.

        Ends when the server crashes.
        """
        if self.slot is None:
            raise Violation("the slot is lost")
        if self.slot.restart < self._removed:
            raise Violation("the server has removed WAL that the slot needs")
        restart, position = self.slot.restart, max(start, Lsn(self.slot.confirmed))
        crashes = self.crashes
        sent: dict[int, Definition] = {}
        index = 0
        while crashes == self.crashes:
            while index < len(self.wal) and self.wal[index].end_lsn <= self.flushed:
                transaction = self.wal[index]
                index += 1
                # Of a transaction that began before the restart position the beginning is not read.
                if transaction.commit_lsn < position or transaction.first_lsn < restart:
                    continue
                for item in self._decode(transaction, sent):
                    yield item
                    if crashes != self.crashes:
                        return
            yield Lsn(self.flushed)

    def _decode(
        self, transaction: Transaction, sent: dict[int, Definition]
    ) -> Iterator[tuple[Lsn, messages.AnyMessage]]:
        start, begun = transaction.first_lsn, False
        for step in transaction.steps:
            found: list[messages.AnyMessage] = []
            match step:
                case Row(_, number, definition, True):
                    found = [*self._told([definition], sent), messages.Insert(step.table, definition.row(number))]
                case Truncated(tables, published) if published:
                    told = [definition for definition in tables if definition.oid in published]
                    oids = tuple(definition.oid for definition in told)
                    found = [*self._told(told, sent), messages.Truncate(oids, False, False)]
                case Told(_, _, lsn):
                    start, found = lsn, [messages.Message(True, lsn, DDL_PREFIX, step.content)]
                case Message(number, lsn):
                    found = [messages.Message(True, lsn, "app", b"%d" % number)]
                case Altered():
                    sent.pop(step.table, None)
            if found and not begun:
                begun = True
                yield start, messages.Begin(transaction.commit_lsn, 0, transaction.xid)
            for message in found:
                yield start, message
        if begun:
            yield transaction.end_lsn, messages.Commit(0, transaction.commit_lsn, transaction.end_lsn, 0)

    def _told(self, definitions: list[Definition], sent: dict[int, Definition]) -> Iterator[messages.Relation]:
        for definition in definitions:
            # A change of the publication, or of what is no part of the definition, makes the server say it again.
            if sent.get(definition.oid) != definition or self._dice.random() < 0.03:
                sent[definition.oid] = definition
                yield definition.relation()
