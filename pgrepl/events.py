"""What the engine gives: rows of a snapshot, changes in commit order, and what happens to tables in between.

Rows are tuples of PostgreSQL text (bytes in UTF-8), None for NULL, in the order of ``Table.columns``; an update's
``new`` may hold UNCHANGED for a TOASTed value that the server did not send. Formats turn them into bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from pgrepl.lsn import Lsn
from pgrepl.pgoutput.messages import OldKind, TupleData
from pgrepl.pgoutput.types import ValueType


class Column(NamedTuple):
    """One published column.

    ``type_name`` is the SQL name with its modifier, such as ``numeric(12,2)``. ``attnum`` and ``nullable`` are None
    where the catalog no longer knows the column.
    """

    name: str
    type_oid: int
    type_modifier: int
    type_name: str
    value_type: ValueType
    attnum: int | None
    nullable: bool | None


@dataclass(frozen=True)
class Table:
    """A published table in one version of its definition.

    ``key`` holds the indexes of the columns that identify a row, in column order: the primary key, with REPLICA
    IDENTITY USING INDEX that index, with FULL and no primary key all columns; empty where nothing identifies one.
    """

    oid: int
    schema: str
    name: str
    replica_identity: str
    columns: tuple[Column, ...]
    key: tuple[int, ...]
    # What a format prepares for the table, by the format's own name for it; no part of the table's identity.
    prepared: dict[object, object] = field(default_factory=dict, compare=False, repr=False)

    @property
    def qualified(self) -> str:
        """The name for people, ``schema.table``."""
        return f"{self.schema}.{self.name}"


class SchemaDiff(NamedTuple):
    """What changed from one version of a table to the next, by column name."""

    added: tuple[str, ...]
    dropped: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]
    retyped: tuple[str, ...]


@dataclass(slots=True, eq=False)
class Transaction:
    """The transaction that changes belong to; ``commit_time`` is in microseconds since 2000-01-01 UTC."""

    commit_lsn: Lsn
    commit_time: int
    xid: int
    origin: str | None = None
    # As Table.prepared.
    prepared: dict[object, object] = field(default_factory=dict, repr=False)


class Read(NamedTuple):
    """A row of a snapshot that is consistent with ``snapshot_lsn``."""

    table: Table
    new: TupleData
    snapshot_lsn: Lsn


class SnapshotBegin(NamedTuple):
    """The rows of a table's snapshot follow: what was known of the table is to be forgotten."""

    table: Table
    attempt: int
    snapshot_lsn: Lsn


class SnapshotEnd(NamedTuple):
    """All ``rows`` of the table have been given."""

    table: Table
    attempt: int
    rows: int
    snapshot_lsn: Lsn


class Insert(NamedTuple):
    """A new row."""

    table: Table
    new: TupleData
    transaction: Transaction
    start_lsn: Lsn
    seq: int


class Update(NamedTuple):
    """A changed row; ``old`` is what the server sent of the row before, if anything."""

    table: Table
    new: TupleData
    old: TupleData | None
    old_kind: OldKind | None
    transaction: Transaction
    start_lsn: Lsn
    seq: int


class Delete(NamedTuple):
    """A row that is gone."""

    table: Table
    old: TupleData
    old_kind: OldKind
    transaction: Transaction
    start_lsn: Lsn
    seq: int


class Truncate(NamedTuple):
    """One TRUNCATE of one or more tables."""

    tables: tuple[Table, ...]
    cascade: bool
    restart_identity: bool
    transaction: Transaction
    start_lsn: Lsn
    seq: int


class Message(NamedTuple):
    """A logical message; ``transaction`` and ``seq`` (of the next change) are None unless it is transactional."""

    prefix: str
    content: bytes
    transaction: Transaction | None
    start_lsn: Lsn
    seq: int | None


class SchemaChange(NamedTuple):
    """The table has a new definition from here on."""

    table: Table
    diff: SchemaDiff
    transaction: Transaction
    seq: int


class Begin(NamedTuple):
    """A transaction of which something is printed begins."""

    transaction: Transaction


class Commit(NamedTuple):
    """The transaction ends; the next WAL record starts at ``end_lsn``, and ``rows`` data events were given."""

    transaction: Transaction
    end_lsn: Lsn
    rows: int


Change: TypeAlias = Insert | Update | Delete
RowEvent: TypeAlias = Read | Insert | Update | Delete
Event: TypeAlias = (
    Read | SnapshotBegin | SnapshotEnd | Insert | Update | Delete | Truncate | Message | SchemaChange | Begin | Commit
)


def key_values(event: RowEvent) -> TupleData | None:
    """Give what identifies the row now (for a delete: before), in the order of ``Table.key``; None if nothing does.

    A key column that an update did not send is taken from the old row, where the server has put it then.
    """
    key = event.table.key
    if not key:
        return None
    row = event.old if isinstance(event, Delete) else event.new
    return tuple(row[index] for index in key)
