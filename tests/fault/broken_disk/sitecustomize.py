"""A disk that fails a sync, for a process that has this directory on its PYTHONPATH.

No real disk does that on demand. When the file that BROKEN_DISK names is there, the next fdatasync fails with EIO, and
what was written since the last good one is gone, while every later sync succeeds: as Linux does it.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

_trigger = Path(os.environ["BROKEN_DISK"])
_fdatasync = os.fdatasync
_synced: dict[int, int] = {}


def _failing_fdatasync(fd: int) -> None:
    size = os.fstat(fd).st_size
    if _trigger.exists() and fd in _synced:
        lost = size - _synced[fd]
        if lost > 0:
            _trigger.unlink()
            # The file itself is open for appending only.
            disk = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)
            os.pwrite(disk, bytes(lost), _synced[fd])
            os.close(disk)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
    _fdatasync(fd)
    _synced[fd] = size


setattr(os, "fdatasync", _failing_fdatasync)  # noqa: B010
