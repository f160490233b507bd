"""A pipe, a terminal or a device, and the standard output whatever it is: durable as soon as it is written."""

from __future__ import annotations

import os
import select

from pgrepl.errors import OutputError
from pgrepl.lsn import Lsn


class StreamSink:
    """Write to a file descriptor, without a buffer of its own: what was written is with the reader.

    Raises BrokenPipeError when the reader is gone, and OutputError when a write fails; nothing that failed to be
    written is ever reported durable. ``name`` is what errors call it.
    """

    def __init__(self, fd: int = 1, name: str = "the standard output") -> None:
        self._fd = fd
        self._name = name
        self._position = Lsn(0)
        # How much of the data of an attempt that failed has been written.
        self._taken = 0

    @property
    def can_go_back(self) -> bool:
        """What was read by others stays read."""
        return False

    def write(self, data: bytes) -> None:
        """Write all of it, however long the reader takes; given again after an error, the rest of it."""
        try:
            while self._taken < len(data):
                try:
                    self._taken += os.write(self._fd, memoryview(data)[self._taken :])
                except BlockingIOError:
                    self._wait_for_room()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write {self._name}: {error.strerror}") from None
        self._taken = 0

    def _wait_for_room(self) -> None:
        """Wait as a write that blocks does: any program that shares the descriptor may have made it non-blocking."""
        room = select.poll()
        room.register(self._fd, select.POLLOUT)
        room.poll()

    def mark(self, written: int, position: Lsn) -> None:
        """Take note that everything before ``position`` has been written."""
        self._position = position

    def durable(self) -> Lsn:
        """The last mark."""
        return self._position

    def sync(self) -> None:
        """Nothing is left to do."""

    def reopen(self) -> None:
        """There is nothing to open."""

    def tick(self) -> None:
        """Nothing is ever due."""

    def close(self) -> None:
        """Leave the descriptor to the process."""
