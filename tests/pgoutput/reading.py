"""Read the messages of a slot from a real server, in a thread of its own."""

from __future__ import annotations

import select
import threading
import uuid
from collections.abc import Sequence

import psycopg
from psycopg import pq

from pgrepl.lsn import Lsn
from pgrepl.pgoutput.messages import POSTGRES_EPOCH_US
from pgrepl.pgoutput.walsender import Keepalive, XLogData, parse_copy_data, status_update
from pgrepl.replication.walsender import Walsender

Message = tuple[Lsn, bytes]

PATIENCE = 30.0


def new_slot(connection: psycopg.Connection) -> str:
    """Make a slot with a name of its own."""
    name = f"read_{uuid.uuid4().hex[:12]}"
    connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [name])
    return name


def copy_of(connection: psycopg.Connection, slot: str) -> str:
    """Copy a slot, for another look at the same WAL."""
    name = f"read_{uuid.uuid4().hex[:12]}"
    connection.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", [slot, name])
    return name


class Reader:
    """Read a slot, with 64 kB for the decoder, so that a transaction is large early; ``messages`` is what has come.

    It ends with the block or after the commit of a transaction that holds a logical message with the prefix ``end``.
    """

    def __init__(
        self, dsn: str, slot: str, publications: Sequence[str], *, protocol: int = 1, streaming: bool = False
    ) -> None:
        self._dsn = dsn
        connection = psycopg.connect(
            dsn, autocommit=True, replication="database", options="-c logical_decoding_work_mem=64kB"
        )
        self._walsender = Walsender(connection)
        self._walsender.start_replication(slot, Lsn(0), publications, protocol=protocol, streaming=streaming)
        self.messages: list[Message] = []
        self._change = threading.Condition()
        self._ended = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, and with it the thread."""
        if self._walsender.pgconn.status != pq.ConnStatus.OK:
            return
        with psycopg.connect(self._dsn) as connection:
            connection.execute("SELECT pg_terminate_backend(%s, 10000)", [self._walsender.pid])
        self._thread.join(PATIENCE)
        self._walsender.close()

    def wait_for_commits(self, count: int) -> None:
        """Wait until so many transactions have come whole."""

        def there() -> bool:
            return self._ended or sum(data[:1] == b"C" for _, data in self.messages) >= count

        with self._change:
            done = self._change.wait_for(there, PATIENCE)
        assert done, "the messages did not come"
        assert not self._ended, self._failure

    def all(self) -> list[Message]:
        """Wait for the end and return everything."""
        with self._change:
            assert self._change.wait_for(lambda: self._ended, PATIENCE), "the end did not come"
        assert self._failure is None, self._failure
        return self.messages

    def _run(self) -> None:
        try:
            self._receive()
        except BaseException as error:
            self._failure = error
        with self._change:
            self._ended = True
            self._change.notify_all()

    def _receive(self) -> None:
        pgconn = self._walsender.pgconn
        at_end = False
        while True:
            # Blocking calls of libpq would hold up the other threads.
            size, data = pgconn.get_copy_data(1)
            if size == 0:
                select.select([pgconn.socket], [], [])
                pgconn.consume_input()
                continue
            if size < 0:
                result = pgconn.get_result()
                raise AssertionError(result.error_message if result is not None else "the stream ended")
            frame = parse_copy_data(bytes(data))
            if isinstance(frame, Keepalive):
                if frame.reply_requested:
                    pgconn.put_copy_data(status_update(Lsn(0), Lsn(0), Lsn(0), -POSTGRES_EPOCH_US))
                    pgconn.flush()
                continue
            assert isinstance(frame, XLogData)
            with self._change:
                self.messages.append((frame.start, frame.data))
                self._change.notify_all()
            if at_end and frame.data[:1] == b"C":
                return
            at_end = at_end or (frame.data[:1] == b"M" and frame.data[10:14] == b"end\0")
