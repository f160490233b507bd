"""Where an event goes: to the output, to the spool of a table that is still being copied, or nowhere.

Lines are formatted once, whichever way they go. With frames each transaction has one in the output, and in the spool
one for each table, since the spool of a table is printed by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from pgrepl import events
from pgrepl.engine.core import Core, Decision
from pgrepl.engine.output import Output
from pgrepl.events import Event, Transaction
from pgrepl.lsn import Lsn


class LineSpool(Protocol):
    """Lines of tables that are being copied, in order."""

    def append(self, table: int, commit_lsn: Lsn, line: bytes) -> None: ...

    def drop(self, table: int, before: Lsn | None) -> None: ...

    def lines(self, table: int) -> Iterator[bytes]: ...


class _Frame:
    """How much of a transaction went one way."""

    __slots__ = ("begun", "rows")

    def __init__(self) -> None:
        self.begun = False
        self.rows = 0


class _Between:
    """The messages and the tables of schema events that were dealt with since change ``seq - 1``."""

    __slots__ = ("messages", "schemas", "seq")

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self.messages = 0
        self.schemas: set[int] = set()


class Router:
    """Send the events of one transaction after the other where they belong.

    ``frames`` asks for Begin and Commit around what is printed. ``printed`` is told of each row event that is printed.
    """

    def __init__(
        self, core: Core, output: Output, spool: LineSpool, *, frames: bool, printed: Callable[[Event], None]
    ) -> None:
        self._core = core
        self._output = output
        self._spool = spool
        self._frames = frames
        self._printed = printed
        self._transaction: Transaction | None = None
        self._main = _Frame()
        self._spooled: dict[int, _Frame] = {}
        # They carry the seq of the next change, which does not say whether they came before a connection was lost.
        self._dealt = _Between(0)
        # How many messages with that seq have come over this connection.
        self._messages = (0, 0)
        # A transaction that broke off: its frame has been begun already when it comes again.
        self._broken: tuple[Lsn, _Frame, dict[int, _Frame]] | None = None

    def begin(self, transaction: Transaction) -> None:
        """Begin a transaction."""
        self._transaction = transaction
        if self._broken is not None and self._broken[0] == transaction.commit_lsn:
            _, self._main, self._spooled = self._broken
        else:
            self._main, self._spooled, self._dealt = _Frame(), {}, _Between(0)
        self._messages = (0, 0)
        self._broken = None

    def broken_off(self) -> None:
        """Take note that the stream broke off, perhaps in the middle of a transaction."""
        if self._transaction is not None:
            self._broken = (self._transaction.commit_lsn, self._main, self._spooled)
        self._transaction = None

    def route(self, event: Event) -> None:
        """Send one event where it belongs."""
        match event:
            case events.Insert() | events.Update() | events.Delete():
                decision = self._core.decide(event.table.oid, event.seq)
                if decision is Decision.EMIT:
                    self._open(self._main, None)
                    self._main.rows += 1
                    self._output.emit(event)
                    self._printed(event)
                elif decision is Decision.SPOOL:
                    self._to_spool(event.table.oid, event, 1)
            case events.Truncate(tables):
                self._truncate(event, {table.oid: self._core.decide(table.oid, event.seq) for table in tables})
            case events.SchemaChange(table, _, _, seq):
                decision = self._core.whose(table.oid)
                if self._is_repeated_schema(table.oid, seq):
                    return
                if decision is Decision.EMIT:
                    self._open(self._main, None)
                    self._output.emit(event)
                elif decision is Decision.SPOOL:
                    self._to_spool(table.oid, event, 0)
            case events.Message(_, _, transaction, _, seq):
                if transaction is None:
                    self._output.emit(event)
                elif seq is not None and not self._is_repeated_message(seq):
                    self._open(self._main, None)
                    self._output.emit(event)
            case _:
                self._output.emit(event)

    def _is_repeated_message(self, seq: int) -> bool:
        """Say whether a message was dealt with before a lost connection; else take note of it."""
        if self._core.is_replayed(seq):
            return True
        at, count = self._messages
        count = count + 1 if at == seq else 1
        self._messages = (seq, count)
        dealt = self._dealt_at(seq)
        repeated = count <= dealt.messages
        dealt.messages = max(dealt.messages, count)
        return repeated

    def _is_repeated_schema(self, table: int, seq: int) -> bool:
        """Say the same of a schema event."""
        if self._core.is_replayed(seq):
            return True
        dealt = self._dealt_at(seq)
        repeated = table in dealt.schemas
        dealt.schemas.add(table)
        return repeated

    def _dealt_at(self, seq: int) -> _Between:
        if self._dealt.seq != seq:
            self._dealt = _Between(seq)
        return self._dealt

    def commit(self, end_lsn: Lsn) -> None:
        """End the transaction."""
        assert self._transaction is not None
        if self._frames:
            if self._main.begun:
                self._output.emit(events.Commit(self._transaction, end_lsn, self._main.rows))
            for table, frame in self._spooled.items():
                if self._core.whose(table) is not Decision.SPOOL:
                    # Dropped meanwhile, since the snapshot has it.
                    continue
                line = self._output.format(events.Commit(self._transaction, end_lsn, frame.rows))
                self._spool.append(table, self._transaction.commit_lsn, line)
        self._transaction = None

    def _truncate(self, event: events.Truncate, decisions: dict[int, Decision]) -> None:
        now = tuple(table for table in event.tables if decisions[table.oid] is Decision.EMIT)
        if now:
            self._open(self._main, None)
            self._main.rows += 1
            self._output.emit(event._replace(tables=now))
        for table in event.tables:
            if decisions[table.oid] is Decision.SPOOL:
                self._to_spool(table.oid, event._replace(tables=(table,)), 1)

    def _to_spool(self, table: int, event: Event, rows: int) -> None:
        assert self._transaction is not None
        frame = self._spooled.setdefault(table, _Frame())
        self._open(frame, table)
        frame.rows += rows
        self._spool.append(table, self._transaction.commit_lsn, self._output.format(event))

    def _open(self, frame: _Frame, table: int | None) -> None:
        if frame.begun or not self._frames:
            return
        frame.begun = True
        assert self._transaction is not None
        line = self._output.format(events.Begin(self._transaction))
        if table is None:
            self._output.add(line)
        else:
            self._spool.append(table, self._transaction.commit_lsn, line)
