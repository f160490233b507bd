"""Tables and messages made by hand."""

from __future__ import annotations

from pgrepl.events import Column, Table, Transaction
from pgrepl.lsn import Lsn
from pgrepl.pgoutput import messages
from pgrepl.pgoutput.types import Kind, ValueType

INT4, TEXT = 23, 25
_KINDS = {INT4: (ValueType(Kind.NUMBER), "integer"), TEXT: (ValueType(Kind.TEXT), "text")}


def column(name: str, type_oid: int = TEXT, attnum: int | None = None, modifier: int = -1) -> Column:
    """A column of a table."""
    value_type, type_name = _KINDS[type_oid]
    return Column(name, type_oid, modifier, type_name, value_type, attnum, True)


def table(name: str, *columns: Column, key: tuple[int, ...] = (0,), oid: int = 1, identity: str = "d") -> Table:
    """A table of schema ``s``."""
    return Table(oid, "s", name, identity, columns, key)


def relation(
    oid: int, *names: str, name: str | None = None, identity: messages.ReplicaIdentity = "d"
) -> messages.Relation:
    """A Relation message of a table with text columns, of which the first one is the key."""
    columns = tuple(messages.Column(number == 0, name, TEXT, -1) for number, name in enumerate(names))
    return messages.Relation(oid, "s", name or f"t{oid}", identity, columns)


def as_table(message: messages.Relation, _transaction: Transaction) -> Table:
    """What the catalog would make of a Relation message."""
    columns = [column(part.name, part.type_oid, number) for number, part in enumerate(message.columns, 1)]
    key = tuple(number for number, part in enumerate(message.columns) if part.part_of_key)
    return Table(message.oid, message.namespace, message.name, message.replica_identity, tuple(columns), key)


def begin(number: int) -> messages.Begin:
    """The beginning of a transaction that commits at ``number``."""
    return messages.Begin(Lsn(number), number * 1_000_000, number)


def commit(number: int) -> messages.Commit:
    """The end of that transaction."""
    return messages.Commit(0, Lsn(number), Lsn(number + 8), number * 1_000_000)
