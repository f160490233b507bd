"""What is no file: nothing is written twice or left out, however the reader takes it."""

from __future__ import annotations

import os
import select
import threading
from pathlib import Path

import pytest

from pgrepl.errors import InputError
from pgrepl.sinks.file import FileSink
from pgrepl.sinks.opening import open_output
from pgrepl.sinks.stream import StreamSink
from tests.command import eventually

LINES = b"".join(b"line %d\n" % number for number in range(100_000))


def test_a_reader_that_waits_on_a_pipe_that_does_not_block() -> None:
    """Whoever shares it may have made it so: it is waited for as if it did block."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    received = b""

    def read() -> None:
        nonlocal received
        eventually(lambda: not select.select((), (writer,), (), 0)[1])
        while data := os.read(reader, 1 << 20):
            received += data

    thread = threading.Thread(target=read)
    thread.start()
    try:
        StreamSink(writer).write(LINES)
    finally:
        os.close(writer)
        thread.join()
        os.close(reader)
    assert received == LINES


def test_a_reader_that_goes_away_ends_the_wait() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def leave() -> None:
        eventually(lambda: not select.select((), (writer,), (), 0)[1])
        os.close(reader)

    thread = threading.Thread(target=leave)
    thread.start()
    with pytest.raises(BrokenPipeError):
        StreamSink(writer).write(LINES)
    thread.join()
    os.close(writer)


def test_what_is_a_file_and_what_is_not(tmp_path: Path) -> None:
    """A link to a file is one, wherever it is; a name of a descriptor is none, whatever that is."""
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    target_of_descriptor = tmp_path / "descriptor"
    with target_of_descriptor.open("w") as file:
        number = file.fileno()
        for path, kind in [
            (str(tmp_path / "new"), FileSink),
            (str(link), FileSink),
            (str(target), FileSink),
            ("/dev/null", StreamSink),
            ("/dev/stdout", StreamSink),
            (f"/dev/fd/{number}", StreamSink),
            (f"/proc/self/fd/{number}", StreamSink),
        ]:
            sink = open_output(path, existing="refuse", interval=3600)
            assert type(sink) is kind, path
            sink.write(b"one\n" if path != "/dev/stdout" else b"")
            sink.close()
    assert target.read_bytes() == b"one\n" * 2
    assert target_of_descriptor.read_bytes() == b"one\n" * 2
    for unfit in (tmp_path, tmp_path / "new" / "below", tmp_path / "absent" / "below"):
        with pytest.raises(InputError, match="cannot write"):
            open_output(str(unfit), existing="refuse", interval=3600)
