"""Transactions that come in blocks, put together: protocol version 2 in, protocol version 1 out.

The server sends a large transaction in blocks while it is still going on, between blocks of others and whole
transactions. Here each waits in the spool until it commits, and is then given as if it had come whole; what its
subtransactions rolled back is gone by then.

Relation messages. The server keeps in mind, for each table, whether whole transactions have been told of it, and which
of the transactions in blocks have. So each transaction in blocks is complete in itself: its first change of a table has
a Relation before it, inside its blocks, and so has the first one after the table's definition may have changed, and
after a rollback of any of its subtransactions (which may have taken the Relation with it). Such a Relation shows the
table as that transaction sees it, with its own ALTER TABLE; nobody else may believe it before the commit. With the
commit the server takes it for known to whole transactions too, unless the definition may have changed since, and does
not repeat it for them. A change that does not wait for the transaction's locks (ALTER PUBLICATION, ALTER SCHEMA …
RENAME) can bring a newer Relation in a whole transaction first; then that one remains valid for whole transactions,
although the older one is given after it. In short: what whole transactions go by is the Relation that *arrived* last,
of those whose transaction has committed. Where the order of giving is another one, it is repeated here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Final, TypeAlias

from pgrepl.engine.spool import Spool
from pgrepl.errors import ProtocolError
from pgrepl.lsn import Lsn
from pgrepl.pgoutput.decoder import StreamDecoder, decode, head, without_xid
from pgrepl.pgoutput.messages import Message, StreamAbort, StreamCommit, StreamStart, StreamStop, Truncate

Given: TypeAlias = tuple[Lsn, bytes]
"""The ``start`` of an XLogData, and a message of protocol version 1."""

_begin: Final = Struct(">cQqI").pack
_commit: Final = Struct(">cBQQq").pack
_RELATION, _TRUNCATE, _MESSAGE = b"RTM"
_STREAM: Final = frozenset(b"SEcA")
_CHANGES: Final = frozenset(b"IUDT")


class StreamingOff(Exception):
    """The stream has to be read again from its position with streaming off."""


class NotStreamable(StreamingOff):
    """A transaction that came in blocks has to be read again with streaming off, from the position before it.

    A logical message in a block does not say which subtransaction wrote it. When a subtransaction is rolled back after
    it, nobody can tell whether the message was rolled back too. Nothing of the transaction has been given.
    """

    def __init__(self, commit: StreamCommit) -> None:
        super().__init__(
            f"transaction {commit.xid}, which commits at {commit.commit_lsn}, has logical messages and then a savepoint"
            " that was rolled back"
        )
        self.commit = commit


class StreamedTransactions:
    """Put together what one connection sends in protocol version 2 with ``streaming 'on'``.

    The transactions that are going on wait in ``spool`` under ``("xid", xid)``. A new connection sends them from their
    beginning, and needs a new object; ``close`` forgets what the old one had spooled.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._decoder = StreamDecoder()
        self._transactions: dict[int, _Transaction] = {}
        self._block: _Transaction | None = None
        # The one that is being given; what of it was not taken is still in the spool.
        self._giving: _Transaction | None = None
        # Relation messages are numbered as they arrive. Of each table the one that whole transactions go by.
        self._arrived = 0
        self._valid: dict[int, tuple[int, bytes]] = {}
        # The tables of which another one was given last.
        self._outdated: set[int] = set()

    @property
    def in_progress(self) -> int:
        """How many transactions have come in part."""
        return len(self._transactions)

    def feed(self, start: Lsn, data: bytes) -> Iterable[Given]:
        """Take the next message and give what it makes ready: none, itself, or with the commit a whole transaction.

        A whole one is read from the spool lazily: take it all before the next call. It begins with Begin, at the start
        of its first block, and ends with Commit, also when nothing is left of it; an Origin in it has no LSN. Raises
        NotStreamable, OperationError when the spool fails (the message may then be fed again), and ProtocolError.
        """
        assert self._giving is None, "the last transaction has not been taken whole"
        block = self._block
        tag, xid, oid = head(data, block is not None)
        if block is not None and tag not in _STREAM:
            return self._in_block(block, start, tag, xid, data)
        if tag in _STREAM:
            return self._control(start, data)
        if tag == _RELATION:
            assert oid is not None
            self._arrived += 1
            self._valid[oid] = (self._arrived, data)
            self._outdated.discard(oid)
        elif self._outdated and tag in _CHANGES:
            return (*self._repeated(data, oid), (start, data))
        return ((start, data),)

    def close(self) -> None:
        """Forget the transactions that are going on, and the rest of one that is being given."""
        given = (self._giving,) if self._giving is not None else ()
        for transaction in (*self._transactions.values(), *given):
            self._spool.drop(transaction.key)
        self._transactions.clear()

    def _in_block(
        self, transaction: _Transaction, start: Lsn, tag: int, xid: int | None, data: bytes
    ) -> Iterable[Given]:
        if xid is None:
            # Origin, which is the whole transaction's.
            xid = transaction.xid
        else:
            data = without_xid(data)
        if tag == _MESSAGE:
            message = decode(data)
            assert isinstance(message, Message)
            if not message.transactional:
                return ((start, data),)
            transaction.has_messages = True
        if transaction.not_streamable:
            return ()
        arrived = self._arrived + (tag == _RELATION)
        self._spool.append(transaction.key, data, order=arrived, start=start, xid=xid)
        self._arrived = arrived
        return ()

    def _control(self, start: Lsn, data: bytes) -> Iterable[Given]:
        _, message = self._decoder.decode(data)
        match message:
            case StreamStart(xid, first_segment):
                if first_segment == (xid in self._transactions):
                    raise ProtocolError(f"{'another' if first_segment else 'no'} first block of transaction {xid}")
                if first_segment:
                    self._transactions[xid] = _Transaction(xid, start)
                self._block = self._transactions[xid]
            case StreamStop():
                self._block = None
            case StreamAbort(xid, subxid):
                # PostgreSQL 18 also sends it of what it found rolled back before anything had been sent.
                if xid in self._transactions:
                    self._abort(self._transactions[xid], subxid)
            case StreamCommit(xid):
                if xid not in self._transactions:
                    raise ProtocolError(f"the end of transaction {xid}, of which no block has come")
                transaction = self._transactions[xid]
                if transaction.not_streamable:
                    raise NotStreamable(message)
                del self._transactions[xid]
                self._giving = transaction
                return self._whole(start, transaction, message)
        return ()

    def _abort(self, transaction: _Transaction, subxid: int) -> None:
        if subxid == transaction.xid:
            self._spool.drop(transaction.key)
            del self._transactions[subxid]
        elif transaction.has_messages:
            # Read again if it commits, so nothing of it is needed.
            transaction.not_streamable = True
            self._spool.drop(transaction.key)
        else:
            self._spool.drop_subtransaction(transaction.key, subxid)

    def _whole(self, start: Lsn, transaction: _Transaction, commit: StreamCommit) -> Iterator[Given]:
        yield transaction.start, _begin(b"B", commit.commit_lsn, commit.commit_time, commit.xid)
        for arrived, entry_start, _, data in self._spool.take(transaction.key):
            if data[0] == _RELATION:
                self._give_relation(arrived, data)
            yield entry_start, data
        self._giving = None
        yield start, _commit(b"C", commit.flags, commit.commit_lsn, commit.end_lsn, commit.commit_time)

    def _give_relation(self, arrived: int, data: bytes) -> None:
        _, _, oid = head(data)
        assert oid is not None
        valid = self._valid.get(oid)
        if valid is None or valid[0] < arrived:
            self._valid[oid] = (arrived, data)
            self._outdated.discard(oid)
        elif valid[1] != data:
            self._outdated.add(oid)
        else:
            self._outdated.discard(oid)

    def _repeated(self, data: bytes, oid: int | None) -> Iterator[Given]:
        """Give the valid Relation messages of the tables that a change concerns, where others were given last."""
        if oid is None:
            truncate = decode(data)
            assert isinstance(truncate, Truncate)
            oids = truncate.relation_oids
        else:
            oids = (oid,)
        for each in oids:
            if each in self._outdated:
                self._outdated.discard(each)
                yield Lsn(0), self._valid[each][1]


class _Transaction:
    """A transaction that comes in blocks; ``start`` is that of the first."""

    __slots__ = ("has_messages", "key", "not_streamable", "start", "xid")

    def __init__(self, xid: int, start: Lsn) -> None:
        self.xid = xid
        self.key = ("xid", xid)
        self.start = start
        self.has_messages = False
        self.not_streamable = False
