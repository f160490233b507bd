"""Messages of the stream to events, one at a time and without any I/O.

What a transaction is, how its changes are counted, which version of a table a row belongs to, and what an update left
out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pgrepl import events
from pgrepl.engine.relations import remember, same_definition
from pgrepl.errors import ProtocolError
from pgrepl.events import Event, Table, Transaction
from pgrepl.lsn import Lsn
from pgrepl.pgoutput import messages
from pgrepl.pgoutput.messages import UNCHANGED, TupleData

OWN_PREFIX = "pgrepl"
"""Logical messages with this prefix are pgrepl's own and never printed."""

_NOTHING: tuple[Event, ...] = ()


class Changes:
    """Follow the messages of one stream, protocol version 1.

    ``resolve`` builds a Table from a Relation message in a transaction. ``printed`` says whether a table's changes are
    wanted; those of other tables are counted all the same, so that ``seq`` does not depend on what is asked for.
    ``known`` are the versions that snapshots were read with. ``appeared`` is told of each table that is going to
    change, also when the server says again what it is.
    """

    def __init__(
        self,
        resolve: Callable[[messages.Relation, Transaction], Table],
        *,
        printed: Callable[[Table], bool],
        known: Mapping[int, Table],
        appeared: Callable[[Table], None] = lambda table: None,
    ) -> None:
        self._resolve = resolve
        self._printed = printed
        self._appeared = appeared
        self._known = dict(known)
        # None for a table whose changes are not wanted.
        self._tables: dict[int, tuple[messages.Relation, Table | None]] = {}
        self._transaction: Transaction | None = None
        self._seq = 0

    @property
    def transaction(self) -> Transaction | None:
        """The transaction in the middle of which the stream is; None between transactions."""
        return self._transaction

    @property
    def seq(self) -> int:
        """The number of the next change."""
        return self._seq

    def knows(self, table: Table) -> None:
        """Take note of the version that a snapshot was read with, unless the stream has told of the table already."""
        if table.oid not in self._tables or self._tables[table.oid][1] is None:
            self._known[table.oid] = table

    def broken_off(self) -> None:
        """Take note that the stream broke off; the next one tells of every relation again."""
        self._transaction = None
        self._tables.clear()

    def apply(self, start: Lsn, message: messages.AnyMessage) -> tuple[Event, ...]:
        """Take the next message, which came at ``start``, and give the events it means, none or some.

        Raises ProtocolError for a message that cannot stand there.
        """
        match message:
            case messages.Insert(oid, new):
                table = self._change(oid)
                if table is None:
                    return _NOTHING
                self._check_width(table, new)
                return (events.Insert(table, new, self._open(), start, self._seq - 1),)
            case messages.Update(oid, old_kind, old, new):
                table = self._change(oid)
                if table is None:
                    return _NOTHING
                self._check_width(table, new)
                if old is not None:
                    self._check_width(table, old)
                if UNCHANGED in new and old is not None:
                    new = _filled(new, old, None if old_kind == "full" else frozenset(table.key))
                return (events.Update(table, new, old, old_kind, self._open(), start, self._seq - 1),)
            case messages.Delete(oid, old_kind, old):
                table = self._change(oid)
                if table is None:
                    return _NOTHING
                self._check_width(table, old)
                return (events.Delete(table, old, old_kind, self._open(), start, self._seq - 1),)
            case messages.Begin(final_lsn, commit_time, xid):
                if self._transaction is not None:
                    raise ProtocolError(f"BEGIN of transaction {xid} inside transaction {self._transaction.xid}")
                self._transaction = Transaction(final_lsn, commit_time, xid)
                self._seq = 0
                return _NOTHING
            case messages.Commit(_, commit_lsn):
                transaction = self._open()
                if commit_lsn != transaction.commit_lsn:
                    raise ProtocolError(
                        f"COMMIT at {commit_lsn} of a transaction announced at {transaction.commit_lsn}"
                    )
                self._transaction = None
                return _NOTHING
            case messages.Relation():
                self._relation(message)
                return _NOTHING
            case messages.Truncate(oids, cascade, restart_identity):
                return self._truncate(start, oids, cascade, restart_identity)
            case messages.Message(transactional, lsn, prefix, content):
                if prefix == OWN_PREFIX:
                    return _NOTHING
                if not transactional:
                    return (events.Message(prefix, content, None, lsn, None),)
                return (events.Message(prefix, content, self._open(), lsn, self._seq),)
            case messages.Origin(_, name):
                self._open().origin = name
                return _NOTHING
            case messages.Type() | messages.StreamAbort():
                return _NOTHING

    def _open(self) -> Transaction:
        if self._transaction is None:
            raise ProtocolError("a change outside of a transaction")
        return self._transaction

    def _change(self, oid: int) -> Table | None:
        self._seq += 1
        try:
            return self._tables[oid][1]
        except KeyError:
            raise ProtocolError(f"a change of relation {oid}, of which the server has told nothing") from None

    @staticmethod
    def _check_width(table: Table, row: TupleData) -> None:
        if len(row) != len(table.columns):
            raise ProtocolError(f"a row of {table.qualified} with {len(row)} columns instead of {len(table.columns)}")

    def _relation(self, relation: messages.Relation) -> None:
        transaction = self._open()
        current = self._tables.get(relation.oid)
        if current is None or current[0] != relation:
            table = self._resolve(relation, transaction)
            current = (relation, self._version(table) if self._printed(table) else None)
            self._tables[relation.oid] = current
        if current[1] is not None:
            self._appeared(current[1])

    def _version(self, table: Table) -> Table:
        before = self._known.get(table.oid)
        if before is not None:
            table = remember(before, table)
            if same_definition(before, table):
                # The one that formats have prepared for already.
                return before
        self._known[table.oid] = table
        return table

    def _truncate(self, start: Lsn, oids: tuple[int, ...], cascade: bool, restart_identity: bool) -> tuple[Event, ...]:
        transaction = self._open()
        tables = [self._tables[oid][1] for oid in oids if oid in self._tables]
        if len(tables) != len(oids):
            raise ProtocolError("a TRUNCATE of a relation of which the server has told nothing")
        self._seq += 1
        wanted = tuple(table for table in tables if table is not None)
        if not wanted:
            return _NOTHING
        return (events.Truncate(wanted, cascade, restart_identity, transaction, start, self._seq - 1),)


def _filled(new: TupleData, old: TupleData, sent: frozenset[int] | None) -> TupleData:
    """Put into the new row what was left out of it as unchanged and stands in the old one.

    Of an old row that holds only the key (``sent`` are its columns) nothing else is known, although it reads as NULL.
    """
    return tuple(
        old[index] if value is UNCHANGED and (sent is None or index in sent) else value
        for index, value in enumerate(new)
    )
