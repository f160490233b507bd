"""The messages of pgoutput, protocol versions 1 and 2.

Names and fields are those of PostgreSQL documentation, Logical Replication Message Formats. LSNs are ``Lsn``, times are
microseconds since 2000-01-01 00:00 UTC (``POSTGRES_EPOCH_US`` turns them into Unix time), OIDs and xids are unsigned.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal, NamedTuple, TypeAlias

from pgrepl.lsn import Lsn

POSTGRES_EPOCH_US: Final = 946_684_800_000_000
"""2000-01-01 00:00 UTC in microseconds since 1970: add it to a time of a message to get Unix time."""


class Unchanged(Enum):
    """The type of ``UNCHANGED``; an enum of one member, so that ``is UNCHANGED`` narrows the type of a column."""

    UNCHANGED = "unchanged"

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED: Final = Unchanged.UNCHANGED
"""A TOASTed value that the update did not change and the server did not send; it is not NULL."""

TupleData: TypeAlias = tuple[bytes | Unchanged | None, ...]
"""The columns of a row in the order of the ``Relation``: text in the client encoding, None for NULL, or UNCHANGED."""

OldKind: TypeAlias = Literal["key", "full"]
"""Whether an old row holds only the columns of the replica identity (the others None) or, with FULL, all columns."""

ReplicaIdentity: TypeAlias = Literal["d", "n", "f", "i"]
"""``pg_class.relreplident``: default (primary key), nothing, full, or using an index."""


class Begin(NamedTuple):
    """Begin a transaction; ``final_lsn`` is where its commit record starts, the ``commit_lsn`` of its Commit."""

    final_lsn: Lsn
    commit_time: int
    xid: int


class Commit(NamedTuple):
    """End a transaction; confirming ``end_lsn`` (where the next record starts) tells the server that it is done."""

    flags: int
    commit_lsn: Lsn
    end_lsn: Lsn
    commit_time: int


class Origin(NamedTuple):
    """Name the replication origin of the transaction; stands directly after Begin."""

    commit_lsn: Lsn
    """The LSN of the commit on the origin server."""
    name: str


class Type(NamedTuple):
    """Name a type that is not built in, ahead of the Relation that uses it; a domain has its base type's name."""

    oid: int
    namespace: str
    name: str


class Column(NamedTuple):
    """One published column of a Relation; ``type_modifier`` is ``pg_attribute.atttypmod`` (-1 for none)."""

    part_of_key: bool
    """In the replica identity; with FULL every column is."""
    name: str
    type_oid: int
    type_modifier: int


class Relation(NamedTuple):
    """Describe a table before its first change in the session, and again after each change of its definition."""

    oid: int
    namespace: str
    name: str
    replica_identity: ReplicaIdentity
    columns: tuple[Column, ...]


class Insert(NamedTuple):
    """Insert a row."""

    relation_oid: int
    new: TupleData


class Update(NamedTuple):
    """Update a row; without a change of the key and without FULL nothing of the old row is sent (both None)."""

    relation_oid: int
    old_kind: OldKind | None
    old: TupleData | None
    new: TupleData


class Delete(NamedTuple):
    """Delete a row."""

    relation_oid: int
    old_kind: OldKind
    old: TupleData


class Truncate(NamedTuple):
    """Truncate tables, one message for a statement."""

    relation_oids: tuple[int, ...]
    cascade: bool
    restart_identity: bool


class Message(NamedTuple):
    """Carry the bytes of ``pg_logical_emit_message``.

    One that is not transactional stands where it arrives, between transactions or inside one.
    """

    transactional: bool
    lsn: Lsn
    prefix: str
    content: bytes


class StreamStart(NamedTuple):
    """Begin a block of changes of a transaction that has not ended; blocks are not nested, and hold no other's changes.

    ``xid`` is the top-level transaction's, ``first_segment`` says that it is the transaction's first block.
    """

    xid: int
    first_segment: bool


class StreamStop(NamedTuple):
    """End a block."""


class StreamCommit(NamedTuple):
    """End a transaction that was sent in blocks, after the last of them; the fields are those of Begin and Commit."""

    xid: int
    flags: int
    commit_lsn: Lsn
    end_lsn: Lsn
    commit_time: int


class StreamAbort(NamedTuple):
    """Take back a subtransaction of a transaction that is sent in blocks, or with ``subxid == xid`` all of it.

    Each subtransaction that was released into one that is rolled back has a message of its own. PostgreSQL 18 sends it
    in protocol version 1 as well, between transactions, when it had put a large subtransaction on its disk and finds
    out that it has been rolled back; it means nothing there.
    """

    xid: int
    subxid: int


AnyMessage: TypeAlias = (
    Begin | Commit | Origin | Type | Relation | Insert | Update | Delete | Truncate | Message | StreamAbort
)
"""What may come in protocol version 1."""

StreamMessage: TypeAlias = StreamStart | StreamStop | StreamCommit
"""What comes in protocol version 2 only."""
