"""The receiving end of a stream: reads the socket and answers the server, whatever the output is doing.

A thread of its own owns the connection. It reads while there is room, and sends status updates in any case, so that a
reader of the output who blocks for an hour does not cost the connection. What it has read waits in batches, bounded in
bytes; when they are full it stops reading, and TCP makes the walsender wait.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections import deque
from typing import NoReturn

from psycopg import Error, pq

from pgrepl.errors import PgreplError, PositionError
from pgrepl.lsn import Lsn
from pgrepl.pgoutput.messages import POSTGRES_EPOCH_US
from pgrepl.pgoutput.walsender import Keepalive, parse_copy_data, status_update
from pgrepl.replication.verdicts import ConnectionLost, result_error
from pgrepl.replication.walsender import Walsender, lost_connection

BUFFER_BYTES = 16 << 20
_BATCH_BYTES = 256 << 10
_PROGRESS_INTERVAL = 1.0
_LONGEST_SILENCE = 10.0
_KEEPALIVE = 0x6B
_WAL_END = slice(9, 17)
_PING_INTERVAL = 0.1


class Receiver:
    """Receive the CopyData of a walsender that streams, and report the confirmed position to it.

    ``confirm`` and ``batches`` are for the consuming thread, everything else happens in the receiver's own. ``guard``
    is an idle ordinary connection to the same server: when the server shuts down it ends that one at once, while it
    waits for a walsender's client to confirm all it was sent; the receiver hangs up then, so that no shutdown ever
    waits for us.
    """

    def __init__(
        self, walsender: Walsender, start: Lsn, *, wal_sender_timeout: float, guard: pq.abc.PGconn | None = None
    ) -> None:
        self._walsender = walsender
        self._pgconn = walsender.pgconn
        self._guard = guard
        self._confirmed = start
        self._sent = start
        self._received = start
        self._lock = threading.Condition()
        self._batches: deque[tuple[list[bytes], int]] = deque()
        self._bytes = 0
        self._failure: PgreplError | None = None
        self._ended = False
        self._closing = False
        self._ping = False
        self._nudged = False
        self._last_status = time.monotonic()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._interval = min(_LONGEST_SILENCE, wal_sender_timeout / 3) if wal_sender_timeout else _LONGEST_SILENCE
        self._thread = threading.Thread(target=self._run, name="pgrepl receiver", daemon=True)

    @property
    def received(self) -> Lsn:
        """The highest WAL position that the server has mentioned."""
        return self._received

    def start(self) -> None:
        """Begin to receive."""
        self._thread.start()

    def confirm(self, position: Lsn) -> None:
        """Say that everything before ``position`` is durable; it never goes back."""
        if position > self._confirmed:
            news = self._confirmed == self._sent
            self._confirmed = position
            if news:
                # It may be waiting for bytes, for as long as nothing was to be reported.
                self._wake()

    def nudge(self) -> None:
        """Make ``batch`` return early, for something else that the consumer has to see to."""
        with self._lock:
            self._nudged = True
            self._lock.notify_all()

    def ask_for_keepalives(self) -> None:
        """Ask the server again and again how far it has read, for a consumer that waits for a position."""
        self._ping = True
        self._wake()

    def batch(self, timeout: float) -> list[bytes] | None:
        """Take the next batch of CopyData payloads; None when none came in ``timeout`` seconds.

        Raises what ended the stream, after everything received before has been taken: ConnectionLost, PositionError,
        or OperationError.
        """
        with self._lock:
            self._lock.wait_for(lambda: self._batches or self._ended or self._nudged, timeout)
            self._nudged = False
            if self._batches:
                payloads, size = self._batches.popleft()
                full = self._bytes >= BUFFER_BYTES
                self._bytes -= size
                if full and self._bytes < BUFFER_BYTES:
                    self._wake()
                return payloads
            if self._failure is not None:
                raise self._failure
            if self._ended:
                raise ConnectionLost("the server ended the stream")
            return None

    def check(self) -> None:
        """Raise what ended the stream, if it has ended, whether or not everything received has been taken."""
        if self._failure is not None:
            raise self._failure

    def close(self, timeout: float = 5.0) -> None:
        """Report the confirmed position a last time and end the stream; the connection is closed afterwards."""
        self._closing = True
        self._wake()
        if self._thread.is_alive():
            self._thread.join(timeout)
        self._walsender.close()
        if not self._thread.is_alive():
            self._wake_reader.close()
            self._wake_writer.close()

    def _wake(self) -> None:
        # A full pipe wakes as well, and a closed one has nobody to wake.
        with contextlib.suppress(OSError):
            self._wake_writer.send(b"x", socket.MSG_DONTWAIT)

    # The receiver's own thread.

    def _run(self) -> None:
        failure: PgreplError | None = None
        try:
            with lost_connection():
                self._pgconn.nonblocking = 1
                self._receive()
        except PgreplError as error:
            failure = error
        except Exception as error:
            failure = PgreplError(f"the receiver failed: {type(error).__name__}: {error}")
        if failure is not None:
            # Hung up here and now: the consumer may be blocked for long, and the server may be waiting for us.
            self._walsender.close()
        with self._lock:
            self._failure = failure
            self._ended = True
            self._lock.notify_all()

    def _receive(self) -> None:
        last_ping = 0.0
        idle = False
        while not self._closing:
            now = time.monotonic()
            wait = self._last_status + self._interval - now
            if self._confirmed > self._sent:
                wait = min(wait, self._last_status + _PROGRESS_INTERVAL - now)
            if self._ping:
                wait = min(wait, last_ping + _PING_INTERVAL - now)
            if wait <= 0:
                self._send_status(reply_requested=self._ping)
                last_ping = self._last_status
                continue
            with self._lock:
                reading = self._bytes < BUFFER_BYTES
            # The socket knows nothing of what libpq has read already, for instance together with the answer to
            # START_REPLICATION, nor of what TLS has decrypted: so wait only after a read that found nothing.
            if idle or not reading:
                self._wait(reading, wait)
            idle = reading and not self._read()
        self._send_status(reply_requested=False)
        self._drain_output(time.monotonic() + 2.0)

    def _wait(self, reading: bool, timeout: float) -> None:
        poll = select.poll()
        poll.register(self._wake_reader, select.POLLIN)
        # Without POLLIN a hang-up is still reported by poll, and would make this loop spin: so the socket is not there
        # at all.
        events = (select.POLLIN if reading else 0) | (select.POLLOUT if self._pgconn.flush() == 1 else 0)
        if events:
            poll.register(self._pgconn.socket, events)
        if self._guard is not None:
            poll.register(self._guard.socket, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(timeout * 1000)}
        if self._wake_reader.fileno() in ready:
            self._wake_reader.recv(4096)
        if self._guard is not None and self._guard.socket in ready:
            self._check_guard(self._guard)

    def _check_guard(self, guard: pq.abc.PGconn) -> None:
        # Nothing is ever asked on this connection, so what arrives is a notice, a changed setting, or its end.
        try:
            guard.consume_input()
            ended = guard.status != pq.ConnStatus.OK
        except Error:
            ended = True
        if ended:
            raise ConnectionLost("the server ended our connections: it is shutting down, or was told to end them")

    def _read(self) -> bool:
        """Take what has arrived; True when there was something."""
        pgconn = self._pgconn
        found = False
        pgconn.consume_input()
        payloads: list[bytes] = []
        size = 0
        while True:
            length, data = pgconn.get_copy_data(1)
            if self._walsender.skipped_publication is not None:
                # What comes behind the notice must not be taken: a later position would hide what was skipped.
                self._hand_over(payloads, size)
                self._skipped(self._walsender.skipped_publication)
            if length > 0:
                found = True
                payload = bytes(data)
                payloads.append(payload)
                size += length
                if payload[0] == _KEEPALIVE:
                    self._keepalive(payload)
                if size >= _BATCH_BYTES:
                    self._hand_over(payloads, size)
                    payloads, size = [], 0
            elif length == 0:
                break
            else:
                self._hand_over(payloads, size)
                self._end_of_stream()
        self._hand_over(payloads, size)
        return found

    @staticmethod
    def _skipped(notice: str) -> NoReturn:
        raise PositionError(f"the server skips changes that are older than the publication: {notice}", sqlstate="55000")

    def _keepalive(self, payload: bytes) -> None:
        message = parse_copy_data(payload)
        assert isinstance(message, Keepalive)
        if message.wal_end > self._received:
            self._received = message.wal_end
        if message.reply_requested:
            self._send_status(reply_requested=False)

    def _hand_over(self, payloads: list[bytes], size: int) -> None:
        if not payloads:
            return
        if payloads[-1][0] != _KEEPALIVE:
            # Relation and Type come with position 0, which the maximum ignores.
            self._received = max(self._received, Lsn(int.from_bytes(payloads[-1][_WAL_END])))
        with self._lock:
            self._batches.append((payloads, size))
            self._bytes += size
            self._lock.notify_all()

    def _end_of_stream(self) -> None:
        result = self._pgconn.get_result()
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            raise result_error(result, "the server ended the stream")
        raise ConnectionLost("the server ended the stream")

    def _send_status(self, *, reply_requested: bool) -> None:
        confirmed = self._confirmed
        written = max(self._received, confirmed)
        now = time.time_ns() // 1000 - POSTGRES_EPOCH_US
        self._pgconn.put_copy_data(status_update(written, confirmed, confirmed, now, reply_requested))
        self._pgconn.flush()
        self._sent = confirmed
        self._last_status = time.monotonic()

    def _drain_output(self, deadline: float) -> None:
        while self._pgconn.flush() == 1 and time.monotonic() < deadline:
            select.select([], [self._pgconn.socket], [], 0.1)
