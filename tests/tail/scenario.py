"""A tail that streams while a test changes the database, and gives what each change printed."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import LiteralString

import psycopg

from tests.servers.database import Database
from tests.tail.running import PATIENCE, Event, Tail

_READY = """
    SELECT 1 FROM pg_catalog.pg_replication_slots
     WHERE slot_name LIKE %s AND confirmed_flush_lsn IS NOT NULL
"""
_MARK = "test mark"


class Stream:
    """``changes`` runs SQL and gives the events that it brought about; ``before`` are the events before all that."""

    def __init__(
        self, tail: Tail, connection: psycopg.Connection, marks: Iterator[int], before: list[Event], seen: int
    ) -> None:
        self.tail = tail
        self.before = before
        self._connection = connection
        self._marks = marks
        self._seen = seen

    def changes(self, *transactions: LiteralString) -> list[Event]:
        """Run SQL, each string as a transaction of its own, and give the events that were printed for it."""
        for transaction in transactions:
            self._connection.execute(transaction)
        events = _until_mark(self.tail, self._connection, self._marks)[self._seen :]
        self._seen += len(events)
        return [event for event in events[:-1] if not _is_mark(event)]


@contextmanager
def streaming(database: Database, *options: str, publication: str = "pub", user: str = "postgres") -> Iterator[Stream]:
    """Tail a publication, from the moment at which its changes are seen."""
    with (
        database.connect() as connection,
        Tail(publication, *options, dsn=database.dsn(user)) as tail,
    ):
        wait_for_slot(connection, tail)
        if "never" not in options:
            # The stream runs beside the copies, whose rows are not to be taken for what a change brought about.
            said = tail.until_stderr("snapshot: ")
            tables = re.search(r"snapshot: (\d+) ", said)
            assert tables is not None
            tail.until_op("snapshot_end", int(tables[1]))
        marks = count(1)
        before = _until_mark(tail, connection, marks)[:-1]
        seen = len(before) + 1
        # Tables are copied side by side, and come in any order.
        before = sorted(
            (event for event in before if not _is_mark(event)),
            key=lambda event: (event.get("schema"), event.get("table")),
        )
        yield Stream(tail, connection, marks, before, seen)


def wait_for_slot(connection: psycopg.Connection, tail: Tail, seconds: float = PATIENCE) -> None:
    """Wait until the tail's slot is there, from which on all that is committed is printed."""
    deadline = time.monotonic() + seconds
    while not connection.execute(_READY, [f"pgrepl\\_tmp\\_{tail.pid}\\_%"]).fetchone():
        assert tail.running, f"it ended\n{tail.stderr}"
        assert time.monotonic() < deadline, f"no slot\n{tail.stderr}"
        time.sleep(0.01)


def _until_mark(tail: Tail, connection: psycopg.Connection, marks: Iterator[int]) -> list[Event]:
    mark = str(next(marks))
    # Not transactional, so that no frame is around it; the xid makes the commit flush it.
    connection.execute("SELECT pg_logical_emit_message(false, %s, %s), pg_current_xact_id()", [_MARK, mark])
    return tail.until(lambda event: _is_mark(event) and event["content"] == mark)


def _is_mark(event: Event) -> bool:
    return (event["op"], event.get("prefix")) == ("message", _MARK)
