"""Transactions that come in blocks, put together, against the same ones whole."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import psycopg
import pytest

from pgrepl.engine.spool import Spool
from pgrepl.engine.streamed import NotStreamable, StreamedTransactions
from pgrepl.errors import OperationError, ProtocolError
from pgrepl.lsn import Lsn
from pgrepl.pgoutput.decoder import decode
from pgrepl.pgoutput.messages import (
    AnyMessage,
    Begin,
    Column,
    Commit,
    Delete,
    Insert,
    Message,
    Origin,
    Relation,
    StreamAbort,
    Truncate,
    Type,
    Update,
)
from tests.pgoutput.capture_streamed import FILL
from tests.pgoutput.encode import encode
from tests.pgoutput.reading import Reader, copy_of, new_slot
from tests.servers.database import Database

ROOT = Path(__file__).parents[2]


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """A spool with so little memory that nearly everything goes to disk."""
    with Spool(tmp_path / "spool", 1 << 40, memory_bytes=2000) as spool:
        yield spool


# What was given, comparable: rows with the Relation by which they are to be read, Relation messages themselves left
# out, since the server repeats them more often in blocks.


class Change(NamedTuple):
    start: Lsn
    message: AnyMessage
    relations: tuple[Relation, ...]


class Transaction(NamedTuple):
    begin: Begin
    changes: list[Change | str]
    commit: tuple[Lsn, Commit]


Delivered: TypeAlias = tuple[Lsn, bytes]


def transactions(given: Iterable[tuple[Lsn, bytes]]) -> list[Transaction | Change]:
    relations: dict[int, Relation] = {}
    done: list[Transaction | Change] = []
    begin: Begin | None = None
    changes: list[Change | str] = []
    for start, data in given:
        match decode(data):
            case Begin() as message:
                assert begin is None
                begin, changes = message, []
            case Commit() as message:
                assert begin is not None
                assert (message.commit_lsn, message.commit_time) == (begin.final_lsn, begin.commit_time)
                # A transaction of which nothing is published is sent in blocks, but not whole.
                if changes:
                    done.append(Transaction(begin, changes, (start, message)))
                begin = None
            case Relation() as message:
                assert begin is not None
                relations[message.oid] = message
            case Type():
                assert begin is not None
            case StreamAbort():
                assert begin is None
            case Origin(_, name):
                assert changes == []
                changes.append(name)
            case Message(transactional) as message:
                if transactional:
                    assert begin is not None
                    changes.append(Change(start, message, ()))
                else:
                    done.append(Change(start, message, ()))
            case Truncate(oids) as message:
                assert begin is not None
                changes.append(Change(start, message, tuple(relations[oid] for oid in oids)))
            case Insert(oid) | Update(oid) | Delete(oid) as message:
                assert begin is not None
                changes.append(Change(start, message, (relations[oid],)))
    assert begin is None
    return done


def assembled(messages: Iterable[tuple[Lsn, bytes]], spool: Spool) -> Iterator[tuple[Lsn, bytes]]:
    streamed = StreamedTransactions(spool)
    for start, data in messages:
        yield from streamed.feed(start, data)
    assert streamed.in_progress == 0
    assert spool.used == 0


# Made up.

_COMMIT = b"c" + bytes([0, 0, 0, 9, 0]) + (500).to_bytes(8) + (600).to_bytes(8) + (700).to_bytes(8)
_STOP = b"E"


def start(xid: int, *, first: bool = True) -> bytes:
    return b"S" + xid.to_bytes(4) + bytes([first])


def inside(xid: int, message: AnyMessage) -> bytes:
    data = encode(message)
    return data[:1] + xid.to_bytes(4) + data[1:]


def abort(xid: int, subxid: int) -> bytes:
    return encode(StreamAbort(xid, subxid))


def table(*columns: str, oid: int = 1) -> Relation:
    return Relation(oid, "public", f"t{oid}", "d", tuple(Column(False, column, 25, -1) for column in columns))


def insert(*values: bytes, oid: int = 1) -> Insert:
    return Insert(oid, values)


def plain(xid: int, *changes: AnyMessage) -> list[bytes]:
    begin, commit = Begin(Lsn(xid), 0, xid), Commit(0, Lsn(xid), Lsn(xid + 1), 0)
    return [encode(message) for message in (begin, *changes, commit)]


def given(spool: Spool, *messages: bytes) -> list[AnyMessage]:
    """Feed messages, each at its number, and return what is given but for Begin and Commit."""
    streamed = StreamedTransactions(spool)
    given = [decode(each) for number, data in enumerate(messages) for _, each in streamed.feed(Lsn(number), data)]
    assert given.count(Commit(0, Lsn(500), Lsn(600), 700)) == messages.count(_COMMIT)
    return [message for message in given if not isinstance(message, (Begin, Commit))]


def test_a_transaction_in_blocks_has_the_form_of_a_whole_one(spool: Spool) -> None:
    streamed = StreamedTransactions(spool)
    origin = encode(Origin(Lsn(0), "elsewhere"))
    messages = [start(9), origin, inside(9, table("a")), inside(10, insert(b"1")), _STOP]
    messages += [start(9, first=False), inside(9, insert(b"2")), _STOP]
    for number, data in enumerate(messages, 100):
        assert list(streamed.feed(Lsn(number), data)) == []
    assert streamed.in_progress == 1
    assert [(int(at), decode(data)) for at, data in streamed.feed(Lsn(200), _COMMIT)] == [
        (100, Begin(Lsn(500), 700, 9)),
        (101, Origin(Lsn(0), "elsewhere")),
        (102, table("a")),
        (103, insert(b"1")),
        (106, insert(b"2")),
        (200, Commit(0, Lsn(500), Lsn(600), 700)),
    ]
    assert (streamed.in_progress, spool.used) == (0, 0)


def test_a_large_transaction_is_not_held_in_memory_while_it_is_given(spool: Spool) -> None:
    streamed = StreamedTransactions(spool)
    list(streamed.feed(Lsn(0), start(9)))
    for number in range(1000):
        list(streamed.feed(Lsn(number), inside(9, insert(b"x" * 100))))
    list(streamed.feed(Lsn(0), _STOP))
    used = spool.used
    taking = iter(streamed.feed(Lsn(0), _COMMIT))
    next(taking)
    assert spool.used == used
    with pytest.raises(AssertionError, match="not been taken whole"):
        streamed.feed(Lsn(0), start(11))
    assert sum(1 for _ in taking) == 1001


@pytest.mark.parametrize("taken", [1, 30, 1000])
def test_what_is_given_in_part_is_forgotten_with_the_connection(taken: int, spool: Spool) -> None:
    """The next one sends the transaction from its beginning, with the same xid."""
    messages = [start(9), inside(9, table("a")), *(inside(9, insert(b"%d" % n)) for n in range(1000)), _STOP]
    for _ in range(2):
        streamed = StreamedTransactions(spool)
        for data in messages:
            assert not list(streamed.feed(Lsn(0), data))
        giving = iter(streamed.feed(Lsn(0), _COMMIT))
        assert len([data for _, data in zip(range(taken), giving, strict=False)]) == taken
        streamed.close()
        assert spool.used == 0
    assert given(spool, *messages, _COMMIT) == [table("a"), *(insert(b"%d" % n) for n in range(1000))]


def test_what_is_rolled_back_is_gone(spool: Spool) -> None:
    first = [start(9), inside(9, table("a")), inside(9, insert(b"1"))]
    # 12 is in 11, which is in 10; 11 wrote again after 12 was released.
    rest = [
        inside(10, insert(b"2")),
        inside(11, insert(b"3")),
        inside(12, insert(b"4")),
        inside(11, insert(b"5")),
        _STOP,
    ]
    last = [start(9, first=False), inside(13, insert(b"6")), _STOP, _COMMIT]
    block = [*first, *rest]
    rows = {
        "none": ([], b"123456"),
        "11 with 12": ([abort(9, 12), abort(9, 11)], b"126"),
        "10 with all": ([abort(9, 11), abort(9, 12), abort(9, 10)], b"16"),
    }
    for aborts, expected in rows.values():
        inserts = [message for message in given(spool, *block, *aborts, *last) if isinstance(message, Insert)]
        assert inserts == [insert(bytes([digit])) for digit in expected]
    assert given(spool, *block, abort(9, 9)) == []
    assert spool.used == 0


def test_an_abort_of_what_was_never_sent_is_nothing(spool: Spool) -> None:
    assert given(spool, abort(20, 21), *plain(5, table("a"), insert(b"1"))) == [table("a"), insert(b"1")]


def test_a_relation_is_believed_when_its_transaction_commits(spool: Spool) -> None:
    before, after = table("a"), table("a", "b")
    block = [start(9), inside(9, after), inside(9, insert(b"1", b"2")), _STOP]
    one, two = insert(b"1"), insert(b"1", b"2")
    # Others go on with what they know; after the commit they know the new one, and the server does not repeat it.
    assert given(spool, *plain(5, before, one), *block, *plain(6, one), _COMMIT, *plain(7, two)) == (
        [before, one, one, after, two, two]
    )
    # Nobody has seen what was rolled back.
    assert given(spool, *plain(5, before, one), *block, *plain(6, one), abort(9, 9), *plain(7, one)) == (
        [before, one, one, one]
    )


@pytest.mark.parametrize("change", [insert(b"1"), Update(1, None, None, (b"1",)), Delete(1, "key", (b"1",))])
def test_a_relation_that_arrived_later_is_repeated_after_an_older_one(spool: Spool, change: AnyMessage) -> None:
    older, newer, other = table("a", "b"), table("a"), table("x", oid=2)
    block = [start(9), inside(9, older), inside(9, insert(b"1", b"2")), inside(9, other), _STOP]
    after = [insert(b"z", oid=2), change, change]
    assert given(spool, *block, *plain(5, newer, change), _COMMIT, *plain(6, *after)) == (
        [newer, change, older, insert(b"1", b"2"), other, insert(b"z", oid=2), newer, change, change]
    )
    # The server may say so itself, and a TRUNCATE concerns several.
    assert given(spool, *block, *plain(5, newer, change), _COMMIT, *plain(6, newer, change)) == (
        [newer, change, older, insert(b"1", b"2"), other, newer, change]
    )
    truncate = Truncate((2, 1), False, False)
    assert given(spool, *block, *plain(5, newer, change), _COMMIT, *plain(6, truncate, change)) == (
        [newer, change, older, insert(b"1", b"2"), other, newer, truncate, change]
    )


@pytest.mark.parametrize("first", [8, 9])
def test_of_two_transactions_in_blocks_the_later_relation_is_valid(spool: Spool, first: int) -> None:
    older, newer = table("a", "b"), table("a")
    blocks = [start(8), inside(8, older), _STOP, start(9), inside(9, newer), _STOP]
    commits = {xid: b"c" + xid.to_bytes(4) + _COMMIT[5:] for xid in (8, 9)}
    streamed = StreamedTransactions(spool)
    seen = []
    for data in [*blocks, commits[first], commits[17 - first], *plain(5, insert(b"1"))]:
        seen += [decode(each) for _, each in streamed.feed(Lsn(0), data)]
    assert [message for message in seen if isinstance(message, Relation)][-1] == newer


def test_messages_in_blocks(spool: Spool) -> None:
    kept, aside = Message(True, Lsn(1), "p", b""), Message(False, Lsn(2), "p", b"")
    block = [start(9), inside(9, kept), inside(9, aside), inside(10, insert(b"1")), _STOP]
    assert given(spool, *block, _COMMIT) == [aside, kept, insert(b"1")]
    # A message after the rollback stands; one before it may have been rolled back, and whoever it was needs no room.
    later = [start(9, first=False), inside(9, kept), _STOP]
    assert given(spool, start(9), inside(10, insert(b"1")), _STOP, abort(9, 10), *later, _COMMIT) == [kept]
    with pytest.raises(NotStreamable):
        given(spool, *block, abort(9, 10), start(9, first=False), inside(11, insert(b"2")), _STOP, _COMMIT)
    assert spool.used == 0
    assert given(spool, *block, abort(9, 10), abort(9, 9)) == [aside]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([_COMMIT], "no block"),
        ([start(9, first=False)], "no first block of transaction 9"),
        ([start(9), _STOP, start(9)], "another first block of transaction 9"),
        ([start(9), _COMMIT], "inside a block"),
        ([start(9), inside(9, Message(True, Lsn(0), "p", b""))[:-2]], "truncated"),
        ([_STOP], "outside of one"),
    ],
)
def test_what_cannot_be(spool: Spool, messages: list[bytes], reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        given(spool, *messages)


def test_a_message_may_be_fed_again_when_the_spool_failed(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("not a directory")
    with Spool(tmp_path / "spool", 1 << 40, memory_bytes=200) as spool:
        streamed = StreamedTransactions(spool)
        messages = [start(9), inside(9, table("a")), *(inside(9, insert(b"%d" % n)) for n in range(20)), _STOP, _COMMIT]
        rows = []
        failed = 0
        for data in messages:
            try:
                got = list(streamed.feed(Lsn(0), data))
            except OperationError:
                failed += 1
                (tmp_path / "spool").unlink()
                got = list(streamed.feed(Lsn(0), data))
            rows += [decode(each) for _, each in got]
    assert failed == 1
    assert rows[1:-1] == [table("a"), *(insert(b"%d" % n) for n in range(20))]


# Against servers.

_SCHEMA = """
    CREATE TABLE filler (id int);
    CREATE TABLE a (id serial PRIMARY KEY, name text);
    CREATE TABLE b (id serial PRIMARY KEY, name text);
    CREATE TABLE shared (id serial PRIMARY KEY, writer int, name text);
    CREATE TABLE parted (id serial, part int, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
    CREATE TABLE parted_0 PARTITION OF parted FOR VALUES IN (0);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
    CREATE TABLE emptied (id int);
    CREATE PUBLICATION shown FOR TABLE a, b, shared, parted, emptied WITH (publish_via_partition_root);
"""


class Writer:
    """A session that writes at random; ``table`` is its own, which it alters."""

    def __init__(self, connection: psycopg.Connection, number: int, table: str, *, large: bool) -> None:
        self._connection = connection
        self._dice = random.Random(number)
        self._number = number
        self._table = table
        self._large = large
        self._columns = 0
        self._seen = 0

    def run(self, count: int) -> None:
        for _ in range(count):
            if self._large:
                self._large_transaction()
            else:
                self._execute(self._change())

    def _execute(self, statement: str) -> None:
        self._connection.execute(statement)

    def _change(self) -> str:
        roll = self._dice.random()
        name = f"repeat('{self._number}', {self._dice.randint(1, 60)})"
        if roll < 0.4:
            return f"INSERT INTO shared (writer, name) SELECT {self._number}, {name} FROM generate_series(1, 20)"
        if roll < 0.5:
            return f"UPDATE shared SET name = {name} WHERE writer = {self._number} AND id % 7 = 0"
        if roll < 0.6:
            return f"DELETE FROM shared WHERE writer = {self._number} AND id % 5 = 0"
        if roll < 0.7:
            return f"INSERT INTO parted (part) SELECT i % 2 FROM generate_series(1, {self._dice.randint(1, 30)}) i"
        if roll < 0.9 and self._large:
            return f"INSERT INTO {self._table} (name) SELECT {name} FROM generate_series(1, 20)"
        return "INSERT INTO emptied VALUES (1)"

    def _large_transaction(self) -> None:
        self._execute("BEGIN")
        depth = 0
        altered = False
        if self._dice.random() < 0.3:
            # A message and a savepoint do not go together: see the test of it.
            self._execute("SELECT pg_logical_emit_message(true, 'note', 'in a large transaction')")
            for _ in range(10):
                self._execute(self._change())
                self._execute(FILL)
        else:
            for _ in range(self._dice.randint(5, 40)):
                roll = self._dice.random()
                if roll < 0.2:
                    self._execute(f"SAVEPOINT s{depth}")
                    depth += 1
                elif roll < 0.35 and depth:
                    depth = self._dice.randrange(depth)
                    self._execute(f"ROLLBACK TO s{depth}")
                    if self._dice.random() < 0.5:
                        self._execute(f"RELEASE s{depth}")
                    else:
                        depth += 1
                elif roll < 0.45 and depth:
                    depth = self._dice.randrange(depth)
                    self._execute(f"RELEASE s{depth}")
                elif roll < 0.55 and not altered:
                    # A second one, after the first was rolled back, is more than the server can do with streaming on:
                    # "could not map filenumber".
                    altered = True
                    self._columns += 1
                    self._execute(f"ALTER TABLE {self._table} ADD c{self._columns} int DEFAULT {self._columns}")
                elif roll < 0.75:
                    self._execute(FILL)
                else:
                    self._execute(self._change())
        self._execute("ROLLBACK" if self._dice.random() < 0.15 else "COMMIT")


def end(connection: psycopg.Connection) -> None:
    connection.execute("SELECT pg_logical_emit_message(true, 'end', '')")


def test_random_transactions_are_what_protocol_1_gives(database: Database, spool: Spool) -> None:
    """Nested savepoints, tables altered and not, other writers: read while they write, and again from a copied slot."""
    with database.connect() as connection:
        connection.execute(_SCHEMA)
        slot = new_slot(connection)
        copy = copy_of(connection, slot)
        with Reader(database.dsn(), slot, ["shown"], protocol=2, streaming=True) as reader:
            sessions = [database.connect() for _ in range(4)]
            writers = [
                Writer(session, number, "ab"[number % 2], large=number < 2) for number, session in enumerate(sessions)
            ]
            threads = [
                threading.Thread(target=writer.run, args=(20 if number < 2 else 150,))
                for number, writer in enumerate(writers)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for session in sessions:
                session.close()
            end(connection)
            blocks = reader.all()
        with Reader(database.dsn(), copy, ["shown"]) as reader:
            plain = reader.all()
    tags = [data[:1] for _, data in blocks]
    assert min(tags.count(tag) for tag in (b"S", b"A", b"c")) >= 10
    expected = transactions(plain)
    assert transactions(assembled(blocks, spool)) == expected
    widths = {
        len(change.relations[0].columns)
        for each in expected
        if isinstance(each, Transaction)
        for change in each.changes
        if isinstance(change, Change) and change.relations
    }
    assert len(widths) >= 5
    # And read afterwards, when the server knows already what has been rolled back.
    with database.connect() as connection:
        connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
        again = copy_of(connection, copy)
    with Reader(database.dsn(), again, ["shown"], protocol=2, streaming=True) as reader:
        late = reader.all()
    assert transactions(assembled(late, spool)) == expected


def read_both_ways(database: Database, slot: str, blocks: Reader) -> tuple[list[Delivered], list[Delivered]]:
    """Wait for the end, and read the slot again in protocol 1."""
    messages = blocks.all()
    blocks.close()
    with database.connect() as connection, Reader(database.dsn(), copy_of(connection, slot), ["shown"]) as plain:
        return messages, plain.all()


def test_a_savepoint_that_was_rolled_back_before_it_was_read(database: Database, spool: Spool) -> None:
    """PostgreSQL 18 says that it is aborted without ever having sent anything of it, in protocol 1 as well."""
    with database.connect() as connection:
        connection.execute(_SCHEMA)
        slot = new_slot(connection)
        connection.execute(f"BEGIN; INSERT INTO emptied VALUES (1); SAVEPOINT s; {FILL}; ROLLBACK")
        connection.execute("INSERT INTO emptied VALUES (2)")
        end(connection)
        with Reader(database.dsn(), slot, ["shown"], protocol=2, streaming=True) as reader:
            blocks, plain = read_both_ways(database, slot, reader)
    expected = transactions(plain)
    assert len(expected) == 2
    assert transactions(assembled(blocks, spool)) == expected


def test_a_message_before_a_rollback_to_a_savepoint_is_read_again(database: Database, spool: Spool) -> None:
    with database.connect() as connection:
        connection.execute(_SCHEMA)
        slot = new_slot(connection)
        with Reader(database.dsn(), slot, ["shown"], protocol=2, streaming=True) as reader:
            connection.execute(f"BEGIN; INSERT INTO a VALUES (1); SAVEPOINT s; INSERT INTO a VALUES (2); {FILL}")
            connection.execute("SELECT pg_logical_emit_message(true, 'in', 'the savepoint')")
            connection.execute(f"{FILL}; SELECT pg_logical_emit_message(false, 'flush', '')")
            with database.connect() as other:
                # What is rolled back before it has been sent is never sent.
                other.execute("INSERT INTO emptied VALUES (1)")
                reader.wait_for_commits(1)
            connection.execute(f"ROLLBACK TO s; INSERT INTO a VALUES (3); {FILL}")
            connection.execute("COMMIT")
            end(connection)
            blocks, plain = read_both_ways(database, slot, reader)
    given: list[Delivered] = []
    streamed = StreamedTransactions(spool)
    with pytest.raises(NotStreamable, match="savepoint that was rolled back") as error:  # noqa: PT012
        for start, data in blocks:
            given += streamed.feed(start, data)
    # The one before it, and nothing of its own.
    expected = transactions(plain)
    assert transactions(given) == expected[:2]
    third = expected[2]
    assert isinstance(third, Transaction)
    assert error.value.commit.commit_lsn == third.begin.final_lsn
    assert len(third.changes) == 2
    streamed.close()
    assert spool.used == 0


def test_an_older_relation_that_is_given_late_is_not_believed_by_others(database: Database, spool: Spool) -> None:
    """ALTER PUBLICATION does not wait for the transaction: whole ones are told of it first, and only once."""
    with database.connect() as connection, database.connect() as other:
        connection.execute(_SCHEMA)
        slot = new_slot(connection)
        with Reader(database.dsn(), slot, ["shown"], protocol=2, streaming=True) as reader:
            connection.execute(f"BEGIN; INSERT INTO a VALUES (1, 'x'); {FILL}")
            other.execute("INSERT INTO a VALUES (2, 'y')")
            reader.wait_for_commits(1)
            other.execute("ALTER PUBLICATION shown SET TABLE a (id), emptied, filler")
            other.execute("INSERT INTO a VALUES (3, 'z')")
            connection.execute("COMMIT")
            other.execute("INSERT INTO a VALUES (4, 'z')")
            other.execute("INSERT INTO emptied VALUES (1)")
            other.execute("TRUNCATE emptied, a")
            end(connection)
            blocks = reader.all()
    widths = []
    for each in transactions(assembled(blocks, spool)):
        for change in each.changes if isinstance(each, Transaction) else []:
            if isinstance(change, Change) and isinstance(change.message, Insert) and change.relations[0].name == "a":
                widths.append((change.message.new[0], len(change.message.new), len(change.relations[0].columns)))
    assert widths == [(b"2", 2, 2), (b"3", 1, 1), (b"1", 2, 2), (b"4", 1, 1)]


def test_origins_and_messages(database: Database, spool: Spool) -> None:
    with database.connect() as connection:
        connection.execute(_SCHEMA)
        connection.execute("SELECT pg_replication_origin_create(current_database())")
        slot = new_slot(connection)
        with Reader(database.dsn(), slot, ["shown"], protocol=2, streaming=True) as reader:
            connection.execute("SELECT pg_replication_origin_session_setup(current_database())")
            connection.execute("BEGIN; SELECT pg_replication_origin_xact_setup('0/ABCDEF', '2026-01-31 12:30:00+00')")
            connection.execute(f"INSERT INTO a VALUES (1); {FILL}; SELECT pg_logical_emit_message(false, 'aside', '')")
            connection.execute(f"SELECT pg_logical_emit_message(true, 'in', 'side'); {FILL}; COMMIT")
            connection.execute("SELECT pg_replication_origin_session_reset()")
            connection.execute("SELECT pg_replication_origin_drop(current_database())")
            end(connection)
            blocks, plain = read_both_ways(database, slot, reader)
    expected = transactions(plain)
    aside, first = expected[:2]
    assert isinstance(aside, Change)
    assert isinstance(first, Transaction)
    assert first.changes[0] == database.name
    assert transactions(assembled(blocks, spool)) == expected


_ONE_MILLION = """
import resource, sys, threading
from pathlib import Path
import psycopg
from psycopg import pq
from pgrepl.engine.spool import Spool
from pgrepl.engine.streamed import StreamedTransactions
from pgrepl.lsn import Lsn
from pgrepl.pgoutput.decoder import decode
from pgrepl.pgoutput.walsender import XLogData, parse_copy_data
from pgrepl.replication.walsender import Walsender

dsn, slot, directory = sys.argv[1:]
walsender = Walsender(psycopg.connect(dsn, autocommit=True, replication="database"))
walsender.start_replication(slot, Lsn(0), ["shown"], protocol=2, streaming=True)
walsender.pgconn.consume_input()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = 0
with Spool(Path(directory), 1 << 40) as spool:
    streamed = StreamedTransactions(spool)
    done = False
    while not done:
        size, payload = walsender.pgconn.get_copy_data(0)
        assert size > 0, walsender.pgconn.error_message
        frame = parse_copy_data(bytes(payload))
        if isinstance(frame, XLogData):
            for start, data in streamed.feed(frame.start, frame.data):
                rows += data[:1] == b"I"
                done = done or data[:1] == b"C" and rows > 1
    spooled = spool.used
print(rows, spooled, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_flat_for_a_million_rows(database18: Database, tmp_path: Path) -> None:
    """Three parts of five are rolled back, by savepoints that are nested and not."""
    with database18.connect() as connection:
        connection.execute("CREATE TABLE t (id bigint PRIMARY KEY, name text); CREATE PUBLICATION shown FOR TABLE t")
        slot = new_slot(connection)
        command = [sys.executable, "-c", _ONE_MILLION, database18.dsn(), slot, str(tmp_path / "spool")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            fill = "INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series({}, {}) i"
            connection.execute("BEGIN; " + fill.format(1, 200_000))
            connection.execute("SAVEPOINT a; " + fill.format(200_001, 400_000))
            connection.execute("ROLLBACK TO a; SAVEPOINT b; " + fill.format(400_001, 600_000))
            connection.execute("SAVEPOINT c; " + fill.format(600_001, 800_000))
            connection.execute("RELEASE c; ROLLBACK TO b; " + fill.format(800_001, 1_000_000) + "; COMMIT")
            output, _ = process.communicate(timeout=120)
    rows, spooled, grown_kb = map(int, output.split())
    assert rows == 400_000
    assert spooled == 0
    # The spool's memory, and as much again where it is written and read.
    assert grown_kb < 60_000
