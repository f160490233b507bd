"""A file that lines are appended to: durable once the file system says so."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pgrepl.errors import InputError, OperationError
from pgrepl.lsn import Lsn

FSYNC_INTERVAL = 1.0


class FileSink:
    """Append to a file and sync it every ``interval`` seconds.

    The file is opened at once, so that one that cannot be written is an InputError before anything is changed anywhere.
    Raises OperationError when a write or a sync fails; the bytes of a write that failed half-way are cut off again.
    """

    def __init__(self, path: str | os.PathLike[str], interval: float = FSYNC_INTERVAL) -> None:
        self._path = Path(path)
        self._interval = interval
        self._written = self._durable = Lsn(0)
        self._dirty = False
        try:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            self._regular = self._path.is_file()
        except OSError as error:
            raise InputError(f"cannot write {self._path}: {error.strerror}") from None
        self._synced = time.monotonic()

    def write(self, data: bytes) -> None:
        """Append all of it."""
        start = os.fstat(self._fd).st_size
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            if self._regular:
                os.ftruncate(self._fd, start)
            raise OperationError(f"cannot write {self._path}: {error.strerror}") from None
        self._dirty = True

    def position(self, lsn: Lsn) -> None:
        """Mark that everything before ``lsn`` has been written."""
        self._written = lsn
        if self._fd >= 0:
            self.tick()

    def durable(self) -> Lsn:
        """The last mark that was followed by a sync."""
        return self._durable

    def tick(self) -> None:
        """Sync when it is due."""
        if not self._dirty:
            self._durable = self._written
        elif time.monotonic() - self._synced >= self._interval:
            self._sync()

    def close(self) -> None:
        """Sync and close; a second call does nothing."""
        if self._fd < 0:
            return
        try:
            if self._dirty:
                self._sync()
            self._durable = self._written
        finally:
            os.close(self._fd)
            self._fd = -1

    def _sync(self) -> None:
        if self._regular:
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                raise OperationError(f"cannot sync {self._path}: {error.strerror}") from None
        self._synced = time.monotonic()
        self._dirty = False
        self._durable = self._written
