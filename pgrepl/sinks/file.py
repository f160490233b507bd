"""A file of lines: durable once the file system says so, and exactly once with a sidecar beside it."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pgrepl.errors import InputError, OutputError, PositionError, SyncError
from pgrepl.lsn import Lsn
from pgrepl.sinks import sidecar
from pgrepl.sinks.sidecar import Sidecar

FSYNC_INTERVAL = 1.0

Existing = Literal["refuse", "append", "overwrite"]


class FileSink:
    """Write lines to a file and sync it every ``interval`` seconds.

    The file is opened at once, so that one that cannot be written is an InputError before anything is changed anywhere.

    ``adopt`` puts a sidecar beside the file. From then on each sync is followed by a new sidecar, and a run that begins
    where another was killed cuts the file to what the sidecar vouches for: so the file holds every change once. After a
    SyncError ``adopt`` does the same for a run that goes on; until then nothing is synced, since a later sync succeeds
    whatever the failed one has lost.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, existing: Existing = "append", interval: float = FSYNC_INTERVAL
    ) -> None:
        self._path = Path(path)
        self._interval = interval
        self._existing = existing
        self._sidecar: Sidecar | None = None
        # What has been marked, and the last mark that was made durable.
        self._marked: tuple[int, Lsn] = (0, Lsn(0))
        self._vouched: tuple[int, Lsn] = (0, Lsn(0))
        self._dirty = False
        # The sync that failed, until what it may have lost is cut off.
        self._failed: SyncError | None = None
        try:
            self._fd = self._open()
            # Where in the file the bytes of this run begin.
            self._base = self._size()
        except OSError as error:
            raise InputError(
                f"cannot write {self._path}: {error.strerror}",
                hint="FILE is made in a directory that exists, and that may be written to",
            ) from None
        self._written = 0
        # How much of the data of an attempt to write that failed stands in the file.
        self._taken = 0
        self._synced = time.monotonic()
        self.told: Callable[[Lsn], dict[int, dict[str, Any]]] = lambda position: {}
        """Asked for what goes into the sidecar of each sync."""
        self.moved: str | None = None
        """What there is to say about a file that was renamed while nobody wrote to it."""

    def _open(self) -> int:
        # It is read too, for the sidecar.
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise InputError(f"{self._path} is not a regular file")
        return fd

    def _size(self) -> int:
        return os.fstat(self._fd).st_size

    def _inode(self) -> int:
        return os.fstat(self._fd).st_ino

    @property
    def can_go_back(self) -> bool:
        """A sidecar says to where."""
        return self._sidecar is not None

    def begin(self) -> None:
        """Make the file ready for a run that keeps nothing: appended to, emptied, or refused with what stands in it.

        Raises InputError.
        """
        if self._existing == "overwrite":
            self._empty()
        elif os.path.lexists(sidecar.path_of(self._path)):
            raise InputError(
                f"{self._path} is the file of a slot that is kept, says {sidecar.path_of(self._path)}: the next run"
                " with that would cut off what this one appends",
                hint="write to another file, or begin this one anew with --overwrite",
            )
        elif self._existing == "refuse" and self._size():
            raise InputError(
                f"{self._path} is not empty", hint="--append writes on at its end, --overwrite begins it anew"
            )

    def _empty(self) -> None:
        # In this order: a sidecar without its file would say that the file was moved away.
        sidecar.path_of(self._path).unlink(missing_ok=True)
        self._cut(0)

    def check(self, system_identifier: str, slot: str, format_name: str) -> Lsn:
        """Find out whether ``adopt`` can be called, and change nothing.

        Gives up to which position the file, and those that it was before, hold everything; 0/0 for a new one. Raises
        InputError for a file that is another's, or has no room for a sidecar beside it, and PositionError for one that
        is not what its sidecar says.
        """
        if not os.access(self._path.parent, os.W_OK | os.X_OK):
            raise InputError(
                f"no sidecar can be written beside {self._path}: its directory is not writable",
                hint="write to a file in another directory",
            )
        found = self._find(system_identifier, slot, format_name)
        return Lsn(0) if found is None else found.position

    def adopt(self, system_identifier: str, slot: str, format_name: str) -> Sidecar:
        """Make the file ready for a run that goes on from a persistent slot, and give what it holds.

        A new or emptied file has the position 0/0; one whose predecessor was renamed goes on where that one ends.
        Raises what ``check`` raises, and OutputError.
        """
        found = self._find(system_identifier, slot, format_name)
        if self._existing == "overwrite":
            self._empty()
        if found is None:
            found = Sidecar(self._size(), Lsn(0), system_identifier, slot, format_name)
        elif self._begins_anew(found):
            self._follow_rename(found)
            found.offset = 0
        self._cut(found.offset)
        self._sidecar = found
        self._marked = self._vouched = (self._written, found.position)
        self._describe(self._fd)
        # Only the first time: a run that goes back to its last sync has written the file itself.
        self._existing = "refuse"
        return found

    def _find(self, system_identifier: str, slot: str, format_name: str) -> Sidecar | None:
        """Read the sidecar, and hold it against the file."""
        if self._existing == "overwrite":
            return None
        found = sidecar.read(self._path)
        if found is None:
            if self._existing == "refuse" and self._size():
                raise InputError(
                    f"{self._path} is not empty and has no sidecar that says what it holds",
                    hint="--append writes on at its end, --overwrite begins it anew",
                )
            return None
        self._check_owner(found, system_identifier, slot, format_name)
        if not self._begins_anew(found):
            self._check_content(found)
        return found

    def _begins_anew(self, found: Sidecar) -> bool:
        return self._size() == 0 and (found.offset > 0 or found.inode != self._inode())

    def _check_owner(self, found: Sidecar, system_identifier: str, slot: str, format_name: str) -> None:
        if (found.slot, found.format) != (slot, format_name):
            raise InputError(
                f"{self._path} holds {found.format} of slot {found.slot}, not {format_name} of slot {slot}",
                hint="write to another file, or begin this one anew with --overwrite",
            )
        if found.system_identifier != system_identifier:
            raise PositionError(
                f"{self._path} was written from server {found.system_identifier}, and this is {system_identifier}",
                hint="write to another file, or begin this one anew with --overwrite",
            )

    def _check_content(self, found: Sidecar) -> None:
        size = self._size()
        hint = "part of the file is lost: restore it, or begin anew with --overwrite and a new snapshot"
        if size < found.offset:
            raise PositionError(
                f"{self._path} has {size} bytes, and {found.offset} had been written and synced", hint=hint
            )
        if found.contradicts(self._fd):
            raise PositionError(f"{self._path} is not the file that had been written", hint=hint)

    def _follow_rename(self, found: Sidecar) -> None:
        """Cut off of the file that was this one what will come again, since this one goes on at the same position."""
        begins = f"{self._path} begins anew at {found.position}"
        if found.inode == self._inode():
            self.moved = f"{begins}: it was emptied"
            return
        try:
            old = found.find(self._path.parent)
            if old is not None:
                self.moved = f"{begins}, where {old} ends"
                fd = os.open(old, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.ftruncate(fd, found.offset)
                    os.fsync(fd)
                finally:
                    os.close(fd)
                return
        except OSError as error:
            raise OutputError(f"cannot truncate the file that {self._path} was: {error.strerror}") from None
        self.moved = (
            f"{begins}; the file that it was is not beside it:"
            f" what that one holds beyond byte {found.offset} comes again"
        )

    def _cut(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
            os.fsync(self._fd)
        except OSError as error:
            raise OutputError(f"cannot truncate {self._path}: {error.strerror}") from None
        self._base = size - self._written
        self._taken = 0
        self._dirty = False
        self._failed = None

    def write(self, data: bytes) -> None:
        """Append all of it; given again after an error, the rest of it."""
        if self._sidecar is not None and not self._sidecar.head:
            # Before the file holds anything, so that it is known again whatever becomes of it.
            self._describe(self._fd, data)
        try:
            while self._taken < len(data):
                self._taken += os.write(self._fd, memoryview(data)[self._taken :])
        except OSError as error:
            self._keep_whole_lines(data)
            raise OutputError(
                f"cannot write {self._path}: {error.strerror}", hint="make room, and it goes on by itself"
            ) from None
        self._taken = 0
        self._written += len(data)
        self._dirty = True

    def _keep_whole_lines(self, data: bytes) -> None:
        """Cut off the beginning of a line, which nobody should find in the file while the rest cannot be written.

        Where even that fails, the next attempt goes on in the middle of the line.
        """
        end = self._base + self._written + self._taken
        surplus = self._taken - (data.rfind(b"\n", 0, self._taken) + 1)
        with contextlib.suppress(OSError):
            if surplus and self._size() == end:
                os.ftruncate(self._fd, end - surplus)
                self._taken -= surplus

    def mark(self, written: int, position: Lsn) -> None:
        """Take note of a boundary; sync when it is due."""
        self._marked = (written, position)
        self.tick()

    def durable(self) -> Lsn:
        """The last mark that was followed by a sync, and with a sidecar by a new one."""
        return self._vouched[1]

    def tick(self) -> None:
        """Sync when it is due."""
        if self._fd >= 0 and self._pending() and time.monotonic() - self._synced >= self._interval:
            self.sync()

    def _pending(self) -> bool:
        return self._dirty or self._marked != self._vouched

    def sync(self) -> None:
        """Make everything up to the last mark durable. Raises SyncError."""
        if not self._pending():
            return
        marked, position = self._marked
        self._sync_data()
        self._dirty = self._written > marked
        if self._sidecar is not None:
            self._sidecar.offset = self._base + marked
            self._sidecar.position = position
            self._sidecar.told = self.told(position)
            sidecar.write(self._path, self._sidecar)
        self._vouched = (marked, position)
        self._synced = time.monotonic()

    def _describe(self, fd: int, coming: bytes = b"") -> None:
        assert self._sidecar is not None
        try:
            self._sidecar.describe(fd, coming)
        except OSError as error:
            raise OutputError(f"cannot read {self._path}: {error.strerror}") from None
        try:
            sidecar.write(self._path, self._sidecar)
        except OutputError:
            # So that the next attempt does it again.
            self._sidecar.head = 0
            raise

    def _sync_data(self) -> None:
        if self._failed is not None:
            raise self._failed
        try:
            if self._dirty:
                os.fdatasync(self._fd)
        except OSError as error:
            self._failed = SyncError(
                f"cannot sync {self._path}: {error.strerror}",
                hint=f"what was written after {self._vouched[1]} may not be on the disk",
            )
            raise self._failed from None

    def reopen(self) -> None:
        """Go on in a new file of the same name, when the old one has been renamed.

        Everything in the old one must be marked. Raises InputError when there is no fit file, and the old one stays.
        """
        self.sync()
        try:
            fd = self._open()
        except OSError as error:
            raise InputError(f"cannot open {self._path} anew: {error.strerror}") from None
        taken_over = False
        try:
            new, old = os.fstat(fd), os.fstat(self._fd)
            if (new.st_dev, new.st_ino) == (old.st_dev, old.st_ino):
                return
            if new.st_size and self._existing != "append":
                raise InputError(f"{self._path} is not empty, it cannot be the new file")
            if self._sidecar is not None:
                self._sidecar.offset = new.st_size
                self._describe(fd)
            taken_over = True
        finally:
            os.close(self._fd if taken_over else fd)
        self._fd = fd
        self._base = new.st_size - self._written

    def close(self) -> None:
        """Sync and close; a second call does nothing. What a failed sync may have lost is left to the next run."""
        if self._fd < 0:
            return
        if self._failed is None:
            self.sync()
            # Also what follows the last mark.
            self._sync_data()
            self._dirty = False
        os.close(self._fd)
        self._fd = -1
