"""A released slot: whoever reads on from the byte after it, as supabase/etl does, misses nothing, nor does pgrepl."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from pgrepl import connection as sql_connection
from pgrepl import conninfo
from pgrepl.engine.release import release
from pgrepl.errors import OperationError, PositionError
from pgrepl.lsn import Lsn
from pgrepl.pgoutput import messages
from pgrepl.pgoutput.decoder import decode
from pgrepl.pgoutput.walsender import Keepalive, parse_copy_data
from pgrepl.replication.walsender import Walsender
from tests.command import eventually
from tests.servers.database import Database

TRIES = 50


class Shop:
    """A published table, a slot, and three sessions: of whoever releases, and of two writers."""

    def __init__(self, database: Database) -> None:
        self.target = conninfo.parse(database.dsn(), "the test")
        self.slot = f"{database.name}_slot"
        self.admin = sql_connection.connect(self.target)
        self.writer = database.connect()
        self.other = database.connect()
        self.other.autocommit = False
        self.admin.execute("CREATE TABLE public.t (id int)")
        self.admin.execute("CREATE TABLE public.quiet (id int)")
        self.admin.execute("CREATE PUBLICATION pub FOR TABLE public.t")
        self.create_slot()
        self.stored: list[tuple[Lsn, Lsn]] = []

    def create_slot(self, *, two_phase: bool = False) -> None:
        self.admin.execute(
            "SELECT pg_create_logical_replication_slot(%s, 'pgoutput', false, %s)", [self.slot, two_phase]
        )

    def close(self) -> None:
        for connection in (self.admin, self.writer, self.other):
            connection.close()

    @property
    def insert_lsn(self) -> Lsn:
        return self._lsn("SELECT pg_current_wal_insert_lsn()::text")

    @property
    def flushed(self) -> Lsn:
        return self._lsn("SELECT pg_current_wal_flush_lsn()::text")

    @property
    def confirmed(self) -> Lsn:
        return self._lsn(f"SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = '{self.slot}'")

    def _lsn(self, query: str) -> Lsn:
        row = self.admin.execute(query.encode()).fetchone()
        assert row is not None
        return Lsn.parse(row[0])

    def confirm_all(self) -> Lsn:
        """Let the slot stand at the end of all WAL, as a client leaves it that confirms what it has read."""
        self.writer.execute("INSERT INTO quiet VALUES (0)")
        end = self.insert_lsn
        eventually(lambda: self.flushed >= end)
        self.advance(end)
        return end

    def advance(self, position: Lsn) -> None:
        self.admin.execute("SELECT pg_replication_slot_advance(%s, %s)", [self.slot, str(position)])
        assert self.confirmed == position

    def release(self, position: Lsn, seconds: float = 10.0) -> Lsn:
        def store(stored: Lsn) -> None:
            self.stored.append((stored, self.confirmed))

        return release(self.admin, self.slot, position, ["pub"], store, seconds=seconds)

    def stream(self, start: Lsn) -> list[tuple[Lsn, int]]:
        """Read what a client is sent from a position up to the end of the WAL: commit LSN and id of each row."""
        end = self.flushed
        walsender = Walsender.open(self.target, "the test")
        found: list[tuple[Lsn, int]] = []
        commit = Lsn(0)
        give_up = time.monotonic() + 30
        try:
            walsender.start_replication(self.slot, start, ["pub"])
            while time.monotonic() < give_up:
                length, data = walsender.pgconn.get_copy_data(0)
                assert length > 0
                framed = parse_copy_data(bytes(data))
                if isinstance(framed, Keepalive):
                    if framed.wal_end >= end:
                        return found
                    continue
                message = decode(framed.data)
                if isinstance(message, messages.Begin):
                    commit = message.final_lsn
                if isinstance(message, messages.Insert):
                    value = message.new[0]
                    assert isinstance(value, (str, bytes))
                    found.append((commit, int(value)))
        finally:
            walsender.close()
            eventually(lambda: not self.active)
        raise AssertionError("the stream does not reach the end of the WAL")

    @property
    def active(self) -> bool:
        query = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"
        return self.admin.execute(query, [self.slot]).fetchone() == (True,)


@pytest.fixture
def shop(database: Database) -> Iterator[Shop]:
    shop = Shop(database)
    yield shop
    shop.close()


def undisturbed(attempt: Callable[[], bool]) -> None:
    """Try until no other session has written WAL in between."""
    assert any(attempt() for _ in range(TRIES))


def commit_at_the_position(shop: Shop, synchronous: str) -> Lsn:
    """Two transactions open together: the slot is confirmed to the end of the one, where the other commits."""
    position = Lsn(0)

    def attempt() -> bool:
        nonlocal position
        shop.other.execute(f"SET LOCAL synchronous_commit = {synchronous}".encode())
        shop.other.execute("INSERT INTO t VALUES (1)")
        position = shop.confirm_all()
        shop.other.commit()
        eventually(lambda: shop.flushed >= shop.insert_lsn)
        row = shop.admin.execute(
            "SELECT data FROM pg_logical_slot_peek_binary_changes(%s, NULL, NULL, 'proto_version', '1',"
            " 'publication_names', 'pub')",
            [shop.slot],
            binary=True,
        ).fetchone()
        assert row is not None
        begin = decode(row[0])
        assert isinstance(begin, messages.Begin)
        return begin.final_lsn == position

    undisturbed(attempt)
    return position


def test_a_transaction_that_commits_exactly_there_is_not_left_behind(shop: Shop) -> None:
    """From one byte further on the server does not send it: so the slot is not released, and nothing is changed."""
    position = commit_at_the_position(shop, "on")
    with pytest.raises(OperationError, match=f"commits exactly at {position}"):
        shop.release(position)
    assert (shop.confirmed, shop.stored) == (position, [])
    assert shop.stream(Lsn(position + 1)) == []


def test_a_commit_that_is_not_flushed_yet_is_seen(shop: Shop) -> None:
    """Nothing seems to be pending before it is: the message comes after the commit, and the peek sees both."""
    lost: list[Lsn] = []

    def attempt() -> bool:
        shop.other.execute("SET LOCAL synchronous_commit = off")
        shop.other.execute("INSERT INTO t VALUES (1)")
        position = shop.confirm_all()
        shop.other.commit()
        unflushed = shop.flushed == position
        with suppress(OperationError):
            at = shop.release(position)
            if [number for _, number in shop.stream(Lsn(at + 1))] != [1]:
                lost.append(position)
            return False
        return unflushed

    undisturbed(attempt)
    assert lost == []


def test_what_follows_a_record_that_is_no_commit_is_safe(shop: Shop) -> None:
    position = Lsn(0)

    def attempt() -> bool:
        nonlocal position
        shop.other.rollback()
        position = shop.confirm_all()
        shop.other.execute("INSERT INTO t VALUES (1)")
        # Its commit flushes the record at the position.
        shop.writer.execute("INSERT INTO t VALUES (2)")
        return shop.confirmed == position

    undisturbed(attempt)
    assert shop.release(position) == shop.confirmed == position
    assert shop.stored == []
    shop.other.commit()
    assert [number for _, number in shop.stream(Lsn(position + 1))] == [2, 1]


def test_where_nothing_is_pending_the_slot_is_left_inside_a_message(shop: Shop) -> None:
    """What commits right behind the message comes from there, from the byte after, and from the stored position."""

    def attempt() -> bool:
        shop.stored.clear()
        shop.other.execute("INSERT INTO t VALUES (2)")
        position = shop.confirm_all()
        at = shop.release(position)
        if not shop.stored:
            shop.other.rollback()
            return False
        ((stored, confirmed_then),) = shop.stored
        # Stored before the slot was moved.
        assert confirmed_then == position
        assert at == shop.confirmed == stored - 1
        shop.other.commit()
        eventually(lambda: shop.flushed >= shop.insert_lsn)
        found = shop.stream(Lsn(at + 1))
        assert [number for _, number in found] == [2]
        assert found == shop.stream(at) == shop.stream(stored)
        return found[0][0] == stored

    undisturbed(attempt)


def test_a_slot_behind_the_position_is_moved_into_the_record_before_it(shop: Shop) -> None:
    """No message is needed then, and doing it again changes nothing."""
    shop.writer.execute("INSERT INTO t VALUES (1)")
    position = shop.insert_lsn
    before = shop.insert_lsn
    assert shop.release(position) == shop.confirmed == position - 1
    assert shop.release(position) == shop.confirmed == position - 1
    assert shop.stored == []
    messages_written = shop.admin.execute(
        "SELECT count(*) FROM pg_logical_slot_peek_binary_changes(%s, NULL, NULL, 'proto_version', '1',"
        " 'publication_names', 'pub', 'messages', 'true')",
        [shop.slot],
    ).fetchone()
    assert (messages_written, before) == ((0,), position)


def test_a_message_of_somebody_else_is_not_skipped(shop: Shop) -> None:
    """It stands where ours would: the slot stays, and whoever reads from the position still gets it."""

    def attempt() -> bool:
        shop.stored.clear()
        position = shop.confirm_all()
        shop.writer.execute("SELECT pg_logical_emit_message(false, 'app', 'hello')")
        assert shop.release(position) == shop.confirmed == position
        assert shop.stored == []
        return True

    undisturbed(attempt)


def test_what_cannot_be_released(shop: Shop) -> None:
    position = shop.confirm_all()
    walsender = Walsender.open(shop.target, "the test")
    walsender.start_replication(shop.slot, position, ["pub"])
    with pytest.raises(OperationError, match="is active"):
        shop.release(position, seconds=0.1)
    walsender.close()
    eventually(lambda: not shop.active)
    with pytest.raises(PositionError, match="one byte beyond the stored position"):
        shop.release(Lsn(position - 1))
    with pytest.raises(PositionError, match="a gap"):
        shop.release(Lsn(position - 8))
    shop.admin.execute("SELECT pg_drop_replication_slot(%s)", [shop.slot])
    with pytest.raises(PositionError, match="is gone"):
        shop.release(position)
    shop.create_slot(two_phase=True)
    with pytest.raises(OperationError, match="two-phase"):
        shop.release(shop.confirm_all())


def test_it_takes_no_longer_than_it_may(shop: Shop) -> None:
    """An open transaction makes the server decode again what was read long ago; that is broken off."""
    shop.other.execute("INSERT INTO t VALUES (1)")
    shop.writer.execute("INSERT INTO t SELECT generate_series(1, 500000)")
    position = shop.confirm_all()
    shop.writer.execute("INSERT INTO quiet VALUES (1)")
    with pytest.raises(OperationError, match="more WAL than can be decoded"):
        shop.release(position, seconds=0.02)
    assert (shop.confirmed, shop.stored) == (position, [])


def test_who_may_not_use_the_slot_is_told_so(shop: Shop, database: Database) -> None:
    shop.admin.execute("CREATE ROLE plain LOGIN")
    position = shop.confirm_all()
    with database.connect("plain") as plain, pytest.raises(OperationError, match="cannot be released: permission"):
        release(plain, shop.slot, position, ["pub"], lambda _: None)
    assert shop.confirmed == position
