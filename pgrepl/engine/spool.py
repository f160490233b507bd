"""Undecoded messages that have to wait, on local disk: of tables that are being copied, of transactions going on.

Nothing here is ever synced. A spool lives as long as the run that made it: after a crash the server sends everything
again, since nothing in it was confirmed as done, and the next run removes the files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import Final, NamedTuple, cast

from pgrepl.engine.patience import Patience, at_once
from pgrepl.errors import InputError, OperationError, OutputError
from pgrepl.lsn import Lsn

MEMORY_BYTES: Final = 8 << 20
"""How much a spool keeps in memory, over all keys, before it writes files."""

_SEGMENT_BYTES = 4 << 20
_PREFIX = "spool-"
_LOCK = "lock"

# Order, start, xid and length, then the payload; the length once more, so that it can be read from the end.
_HEADER: Final = Struct(">QQII")
_TRAILER: Final = Struct(">I")
_OVERHEAD: Final = _HEADER.size + _TRAILER.size

# An unsigned 64-bit number is always an LSN, so the check of the constructor would be paid for nothing.
_lsn: Final = cast(Callable[[int], Lsn], partial(int.__new__, Lsn))


def default_directory() -> Path:
    """Say where spools belong unless somebody wants them elsewhere: ``$XDG_STATE_HOME/pgrepl``."""
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path("~/.local/state").expanduser()) / "pgrepl"


class Entry(NamedTuple):
    """One message that waits; what ``order`` means is the caller's, it never goes back within a key."""

    order: int
    start: Lsn
    xid: int
    payload: bytes


class Spool:
    """Keep sequences of messages, one for each key, in ``directory``, and give them back in order.

    Up to ``memory_bytes`` of all keys together stay in memory; then the largest go to files of this run, and the
    directory is made. ``full`` is reached at ``limit_bytes``, memory and files together: then stop feeding it. What has
    been received has to go somewhere, so a full spool still takes it.

    For one thread. Every method raises OutputError when the disk is full or fails; ``append`` has then done nothing
    and may be tried again. ``patiently`` may try each access to the disk again before that.
    """

    def __init__(
        self, directory: Path, limit_bytes: int, memory_bytes: int = MEMORY_BYTES, *, patiently: Patience = at_once
    ) -> None:
        self._patiently = patiently
        self._parent = directory
        self._limit = limit_bytes
        self._memory_limit = memory_bytes
        self._memory = 0
        self._on_disk = 0
        self._sequences: dict[Hashable, _Sequence] = {}
        self._directory: _RunDirectory | None = None
        remove_abandoned(directory)

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def used(self) -> int:
        """How many bytes wait, in memory and on disk."""
        return self._memory + self._on_disk

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self._memory + self._on_disk >= self._limit

    def append(self, key: Hashable, payload: bytes, *, order: int = 0, start: int = 0, xid: int = 0) -> None:
        """Put a message at the end of the sequence of ``key``."""
        size = _OVERHEAD + len(payload)
        if self._memory and self._memory + size > self._memory_limit:
            self._write_largest()
        sequence = self._sequences.get(key)
        if sequence is None:
            sequence = self._sequences[key] = _Sequence()
        sequence.last_order = order
        sequence.memory += _HEADER.pack(order, start, xid, len(payload))
        sequence.memory += payload
        sequence.memory += _TRAILER.pack(len(payload))
        self._memory += size

    def take(self, key: Hashable) -> Iterator[Entry]:
        """Give the messages of a key in order, and let go of them on the way; at the end there are none.

        At most one segment, some MB, is in memory at a time. Other keys may be used meanwhile.
        """
        sequence = self._sequences.get(key)
        if sequence is None:
            return
        while sequence.segments:
            # Gone before anything of it is given: what is written meanwhile must not be added to it.
            segment = sequence.segments[0]
            data = self._patiently(partial(self._read, segment))
            self._patiently(partial(self._unlink, segment))
            sequence.segments.popleft()
            yield from _entries(data, sequence.first_order)
        data = bytes(sequence.memory)
        self.drop(key)
        yield from _entries(data, sequence.first_order)

    def drop(self, key: Hashable) -> None:
        """Forget a key."""
        sequence = self._sequences.pop(key, None)
        if sequence is not None:
            self._memory -= len(sequence.memory)
            for segment in sequence.segments:
                self._patiently(partial(self._unlink, segment))

    def drop_before(self, key: Hashable, order: int) -> None:
        """Forget the messages of a key with a lower ``order``."""
        sequence = self._sequences.get(key)
        if sequence is None:
            return
        if sequence.last_order < order:
            self.drop(key)
            return
        sequence.first_order = max(sequence.first_order, order)
        while sequence.segments and sequence.segments[0].last_order < order:
            self._patiently(partial(self._unlink, sequence.segments[0]))
            sequence.segments.popleft()

    def drop_subtransaction(self, key: Hashable, xid: int) -> None:
        """Forget from the end what was written under ``xid`` or one given out later.

        When a subtransaction is rolled back, all that its transaction wrote since it got its xid is rolled back with
        it: its own changes, those of subtransactions in it, and, when it had been released into another that is rolled
        back now, those of that one too. So the changes are at the end. In that last case some of them have the xid of
        the outer one, which stops this call short; they and what is before them go with the call for the outer one.
        """
        sequence = self._sequences.get(key)
        if sequence is None:
            return
        kept = _without_end(sequence.memory, xid)
        self._memory -= len(sequence.memory) - kept
        del sequence.memory[kept:]
        while not sequence.memory and sequence.segments:
            segment = sequence.segments[-1]
            kept = _without_end(self._patiently(partial(self._read, segment)), xid)
            if kept:
                self._patiently(partial(self._cut, segment, kept))
                return
            self._patiently(partial(self._unlink, segment))
            sequence.segments.pop()

    def close(self) -> None:
        """Forget everything and remove the files."""
        self._sequences.clear()
        self._memory = self._on_disk = 0
        if self._directory is not None:
            self._directory.remove()
            self._directory = None

    def _write_largest(self) -> None:
        if self._directory is None:
            self._directory = self._patiently(lambda: _RunDirectory(self._parent))
        # Down to half, so that many small sequences are not written one by one each time.
        largest = sorted(self._sequences.values(), key=lambda sequence: len(sequence.memory), reverse=True)
        for sequence in largest:
            if self._memory <= self._memory_limit // 2:
                break
            self._patiently(partial(self._write, sequence, self._directory))

    def _write(self, sequence: _Sequence, directory: _RunDirectory) -> None:
        if not sequence.segments or sequence.segments[-1].size >= _SEGMENT_BYTES:
            segment = _Segment(directory.next_path())
        else:
            segment = sequence.segments[-1]
        with _failing("write", segment.path):
            file = os.open(segment.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                with memoryview(sequence.memory) as data:
                    written = 0
                    # At the place where it belongs: an attempt that failed may have left something there.
                    while written < len(data):
                        written += os.pwrite(file, data[written:], segment.size + written)
            except OSError:
                # Others need the room, too, before the next attempt.
                with contextlib.suppress(OSError):
                    os.ftruncate(file, segment.size)
                    if not segment.size:
                        segment.path.unlink()
                raise
            finally:
                os.close(file)
        if not segment.size:
            sequence.segments.append(segment)
        segment.size += len(sequence.memory)
        segment.last_order = sequence.last_order
        self._on_disk += len(sequence.memory)
        self._memory -= len(sequence.memory)
        sequence.memory.clear()

    def _read(self, segment: _Segment) -> bytes:
        with _failing("read", segment.path):
            data = segment.path.read_bytes()
        # A failed attempt to write may have left more than counts.
        if len(data) < segment.size:
            raise OperationError(f"the spool file {segment.path} has lost {segment.size - len(data)} bytes")
        return data[: segment.size]

    def _cut(self, segment: _Segment, size: int) -> None:
        with _failing("truncate", segment.path):
            os.truncate(segment.path, size)
        self._on_disk -= segment.size - size
        segment.size = size

    def _unlink(self, segment: _Segment) -> None:
        with _failing("remove", segment.path):
            # An attempt that failed may have got as far as this.
            segment.path.unlink(missing_ok=True)
        self._on_disk -= segment.size


class _Segment:
    """A file with some MB of one sequence; no message in it has a higher order than ``last_order``."""

    __slots__ = ("last_order", "path", "size")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.last_order = 0


class _Sequence:
    """The messages of one key: those in files, then those in memory, without those below ``first_order``."""

    __slots__ = ("first_order", "last_order", "memory", "segments")

    def __init__(self) -> None:
        self.segments: deque[_Segment] = deque()
        self.memory = bytearray()
        self.first_order = 0
        self.last_order = 0


class _RunDirectory:
    """A directory for the files of one run, locked as long as the run lives."""

    def __init__(self, parent: Path) -> None:
        with _failing("make", parent):
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # So that nobody takes the directory for abandoned before it is locked.
            with _locked(parent / _LOCK):
                self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
                self._lock = (self.path / _LOCK).open("w")
                fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._files = 0

    def next_path(self) -> Path:
        self._files += 1
        return self.path / f"{self._files}.segment"

    def remove(self) -> None:
        # What cannot be removed now is removed by the next run.
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def check_directory(directory: Path) -> None:
    """Make the directory, and check that files can be made in it. Raises InputError."""
    try:
        _RunDirectory(directory).remove()
    except OutputError as error:
        raise InputError(str(error), hint=error.hint) from None


def remove_abandoned(parent: Path) -> None:
    """Remove the files of runs that did not end in order."""
    with _failing("clean", parent):
        if not any(parent.glob(f"{_PREFIX}*")):
            return
        with _locked(parent / _LOCK):
            for directory in parent.glob(f"{_PREFIX}*"):
                if _is_abandoned(directory):
                    shutil.rmtree(directory)


def _is_abandoned(directory: Path) -> bool:
    try:
        with (directory / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except (BlockingIOError, PermissionError):
        # In use, or another user's.
        return False
    return True


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _failing(doing: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot {doing} the spool {error.filename or path}: {error.strerror}",
            hint="the spool needs a local disk with room; --spool-dir DIRECTORY names another place",
        ) from None


def _entries(data: bytes, first_order: int) -> Iterator[Entry]:
    offset, end = 0, len(data)
    unpack = _HEADER.unpack_from
    while offset < end:
        order, start, xid, size = unpack(data, offset)
        offset += _HEADER.size
        if order >= first_order:
            yield Entry(order, _lsn(start), xid, data[offset : offset + size])
        offset += size + _TRAILER.size


def _without_end(data: bytes | bytearray, xid: int) -> int:
    """Say how many bytes are left without the messages at the end whose xid is ``xid`` or a later one."""
    end = len(data)
    while end:
        start = end - _OVERHEAD - _TRAILER.unpack_from(data, end - _TRAILER.size)[0]
        # Xids begin again at the end of 32 bits: of two, the later is the one less than 2^31 ahead.
        if (_HEADER.unpack_from(data, start)[2] - xid) & 0xFFFFFFFF >= 0x80000000:
            break
        end = start
    return end
