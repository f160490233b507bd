"""The standard output: durable as soon as it is written."""

from __future__ import annotations

import os

from pgrepl.lsn import Lsn


class StdoutSink:
    """Write to a file descriptor, without a buffer of its own: what was written is with the reader's pipe.

    Raises BrokenPipeError when the reader is gone; nothing that failed to be written is ever reported durable.
    """

    def __init__(self, fd: int = 1) -> None:
        self._fd = fd
        self._position = Lsn(0)

    def write(self, data: bytes) -> None:
        """Write all of it, however long the reader takes."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def mark(self, written: int, position: Lsn) -> None:
        """Take note that everything before ``position`` has been written."""
        self._position = position

    def durable(self) -> Lsn:
        """The last mark."""
        return self._position

    def sync(self) -> None:
        """Nothing is left to do."""

    def tick(self) -> None:
        """Nothing is ever due."""

    def close(self) -> None:
        """Leave the descriptor to the process."""
