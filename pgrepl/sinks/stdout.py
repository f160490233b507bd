"""The standard output: durable as soon as it is written."""

from __future__ import annotations

import os

from pgrepl.errors import OutputError
from pgrepl.lsn import Lsn


class StdoutSink:
    """Write to a file descriptor, without a buffer of its own: what was written is with the reader's pipe.

    Raises BrokenPipeError when the reader is gone, and OutputError when a write fails; nothing that failed to be
    written is ever reported durable.
    """

    def __init__(self, fd: int = 1) -> None:
        self._fd = fd
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
                self._taken += os.write(self._fd, memoryview(data)[self._taken :])
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write the standard output: {error.strerror}") from None
        self._taken = 0

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
