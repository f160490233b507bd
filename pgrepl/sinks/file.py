"""A file of lines: durable once the file system says so, and exactly once with a sidecar beside it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Literal

from pgrepl.errors import InputError, OperationError, PositionError
from pgrepl.lsn import Lsn
from pgrepl.sinks import sidecar
from pgrepl.sinks.sidecar import Sidecar

FSYNC_INTERVAL = 1.0

Existing = Literal["refuse", "append", "overwrite"]


class FileSink:
    """Write lines to a file and sync it every ``interval`` seconds.

    The file is opened at once, so that one that cannot be written is an InputError before anything is changed anywhere.
    Raises OperationError when a write or a sync fails; the bytes of a write that failed half-way are cut off again.

    ``adopt`` puts a sidecar beside the file. From then on each sync is followed by a new sidecar, and a run that begins
    where another was killed cuts the file to what the sidecar vouches for: so the file holds every change once.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, existing: Existing = "append", interval: float = FSYNC_INTERVAL
    ) -> None:
        self._path = Path(path)
        self._interval = interval
        self._existing = existing
        self._sidecar: Sidecar | None = None
        self._marked: tuple[int, Lsn] = (0, Lsn(0))
        self._durable = Lsn(0)
        self._dirty = False
        try:
            self._fd = self._open()
            self._regular = self._path.is_file()
            self._start = os.fstat(self._fd).st_size if self._regular else 0
        except OSError as error:
            raise InputError(f"cannot write {self._path}: {error.strerror}") from None
        self._written = 0
        self._synced = time.monotonic()

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    @property
    def is_empty(self) -> bool:
        """Whether nothing stands in the file yet."""
        return self._start == 0

    def begin(self) -> None:
        """Make the file ready for a run that keeps nothing: appended to, emptied, or refused with what stands in it.

        Raises InputError.
        """
        if self._existing == "overwrite":
            self._cut(0)
            sidecar.path_of(self._path).unlink(missing_ok=True)
        elif self._existing == "refuse" and not self.is_empty:
            raise InputError(
                f"{self._path} is not empty", hint="--append writes on at its end, --overwrite begins it anew"
            )

    def holds_until(self) -> Lsn:
        """Up to which position the file holds everything, by its sidecar; 0/0 for a file that begins anew."""
        found = None if self._existing == "overwrite" or self.is_empty else sidecar.read(self._path)
        return Lsn(0) if found is None else found.position

    def adopt(self, system_identifier: str, slot: str, format_name: str) -> Sidecar:
        """Make the file ready for a run that goes on from a stored state, and give what it holds.

        A new or emptied file has the position 0/0. Raises InputError for a file that is another's, and PositionError
        for one that is shorter than its sidecar says.
        """
        found = None if self._existing == "overwrite" else sidecar.read(self._path)
        if self._existing == "overwrite":
            self._cut(0)
        if found is not None and self.is_empty and found.offset > 0:
            # The file was moved away or emptied by its owner: it begins anew.
            found = None
        if found is None:
            if not self.is_empty and self._existing != "append":
                raise InputError(
                    f"{self._path} is not empty and has no sidecar that says what it holds",
                    hint="--append writes on at its end, --overwrite begins it anew",
                )
            found = Sidecar(self._start, Lsn(0), system_identifier, slot, format_name)
        elif (found.slot, found.format) != (slot, format_name):
            raise InputError(
                f"{self._path} holds {found.format} of slot {found.slot}, not {format_name} of slot {slot}",
                hint="write to another file, or begin this one anew with --overwrite",
            )
        elif found.system_identifier != system_identifier:
            raise PositionError(
                f"{self._path} was written from server {found.system_identifier}, and this is {system_identifier}",
                hint="write to another file, or begin this one anew with --overwrite",
            )
        elif self._start < found.offset:
            raise PositionError(
                f"{self._path} has {self._start} bytes, and {found.offset} had been written and synced",
                hint="part of the file is lost: restore it, or begin anew with --overwrite and a new snapshot",
            )
        self._cut(found.offset)
        self._sidecar = found
        self._marked = (0, found.position)
        self._durable = found.position
        sidecar.write(self._path, found)
        return found

    def _cut(self, size: int) -> None:
        try:
            if self._regular:
                os.ftruncate(self._fd, size)
                os.fsync(self._fd)
        except OSError as error:
            raise OperationError(f"cannot truncate {self._path}: {error.strerror}") from None
        self._start = size

    def write(self, data: bytes) -> None:
        """Append all of it."""
        before = os.fstat(self._fd).st_size
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            if self._regular:
                os.ftruncate(self._fd, before)
            raise OperationError(f"cannot write {self._path}: {error.strerror}") from None
        self._written += len(data)
        self._dirty = True

    def mark(self, written: int, position: Lsn) -> None:
        """Take note of a boundary; sync when it is due."""
        self._marked = (written, position)
        self.tick()

    def durable(self) -> Lsn:
        """The last mark that was followed by a sync, and with a sidecar by a new one."""
        return self._durable

    def tick(self) -> None:
        """Sync when it is due."""
        if self._fd >= 0 and self._pending() and time.monotonic() - self._synced >= self._interval:
            self.sync()

    def _pending(self) -> bool:
        return self._dirty or self._marked[1] > self._durable

    def sync(self) -> None:
        """Make everything up to the last mark durable."""
        if not self._pending():
            return
        marked, position = self._marked
        try:
            if self._regular and self._dirty:
                os.fdatasync(self._fd)
        except OSError as error:
            raise OperationError(f"cannot sync {self._path}: {error.strerror}") from None
        self._synced = time.monotonic()
        self._dirty = self._written > marked
        if self._sidecar is not None:
            self._sidecar.offset = self._start + marked
            self._sidecar.position = position
            sidecar.write(self._path, self._sidecar)
        self._durable = position

    def close(self) -> None:
        """Sync and close; a second call does nothing."""
        if self._fd < 0:
            return
        try:
            self.sync()
            if self._regular and self._dirty:
                os.fdatasync(self._fd)
        except OSError as error:
            raise OperationError(f"cannot sync {self._path}: {error.strerror}") from None
        finally:
            os.close(self._fd)
            self._fd = -1
