"""What ``-o`` names: a file with its promises, or something else, which is written to as the standard output is."""

from __future__ import annotations

import os
from pathlib import Path

from pgrepl.errors import InputError
from pgrepl.sinks import Sink
from pgrepl.sinks.file import Existing, FileSink
from pgrepl.sinks.stream import StreamSink


def open_output(path: str, *, existing: Existing, interval: float) -> Sink:
    """Open an output: a regular file or a new one as FileSink, anything else as StreamSink.

    Waits for the reader of a FIFO. Raises InputError for what cannot be written.
    """
    try:
        if _is_stream(Path(path)):
            return StreamSink(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_CLOEXEC), path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}",
            hint="FILE is a regular one, a FIFO or a device, and not a directory",
        ) from None
    return FileSink(path, existing=existing, interval=interval)


def _is_stream(path: Path) -> bool:
    return path.exists() and (not path.is_file() or _is_descriptor(path))


def _is_descriptor(path: Path) -> bool:
    """Say whether a path is a name of a descriptor, as /dev/stdout is: nothing can stand beside that file."""
    descriptors = os.path.realpath("/dev/fd")
    while (directory := os.path.realpath(path.parent)) != descriptors:
        if not path.is_symlink():
            return False
        path = Path(directory, path.readlink())
    return True
