"""The file sink by itself: what an attempt that failed leaves, and what the next one makes of it."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pgrepl.errors import OutputError
from pgrepl.lsn import Lsn
from pgrepl.sinks.file import FileSink

LINES = b"".join(b"line %d\n" % number for number in range(1000))


@contextmanager
def full(size: int) -> Iterator[None]:
    """Let no file become larger, for a while."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[FileSink]:
    sink = FileSink(tmp_path / "out", interval=3600)
    sink.adopt("1", "slot", "json")
    yield sink
    sink.close()


def test_the_rest_of_what_was_written_in_part(sink: FileSink, tmp_path: Path) -> None:
    """Whole lines stay, half a line goes, and nothing is written twice, however often it fails."""
    output = tmp_path / "out"
    for size in (1000, 1000, 1007, 1008, 3333):
        with full(size), pytest.raises(OutputError, match="File too large"):
            sink.write(LINES)
        left = output.read_bytes()
        assert size - 9 < len(left) <= size
        assert left.endswith(b"\n")
    sink.write(LINES)
    sink.write(b"last\n")
    assert output.read_bytes() == LINES + b"last\n"


def test_a_sidecar_that_failed_is_written_by_the_next_sync(sink: FileSink, tmp_path: Path) -> None:
    """Also when the data has been synced, and the position is the one of before."""
    in_the_way = tmp_path / "out.pgrepl.new"
    for data in (b"one\n", b"two\n"):
        sink.write(data)
        written = (tmp_path / "out").stat().st_size
        sink.mark(written, Lsn(16))
        in_the_way.mkdir()
        with pytest.raises(OutputError, match="Is a directory"):
            sink.sync()
        in_the_way.rmdir()
        sink.sync()
        assert json.loads((tmp_path / "out.pgrepl").read_text())["offset"] == written
        assert sink.durable() == Lsn(16)


def test_a_sink_that_cannot_be_closed_can_be_closed_later(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "out", interval=3600)
    sink.adopt("1", "slot", "json")
    sink.write(b"one\n")
    sink.mark(4, Lsn(16))
    in_the_way = tmp_path / "out.pgrepl.new"
    in_the_way.mkdir()
    with pytest.raises(OutputError):
        sink.close()
    in_the_way.rmdir()
    sink.close()
    assert sink.durable() == Lsn(16)
    assert json.loads((tmp_path / "out.pgrepl").read_text())["offset"] == 4


def test_what_a_fifo_did_not_take_comes_later(tmp_path: Path) -> None:
    """Nothing can be cut off there, so the next attempt goes on where the last one stopped."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sink = FileSink(path)
    os.set_blocking(sink._fd, False)  # A pipe that takes only part is the one way to make such a write fail.
    data = LINES * 100
    with pytest.raises(OutputError):
        sink.write(data)
    received = b""
    written = False
    while not written:
        received += os.read(reader, 1 << 20)
        try:
            sink.write(data)
            written = True
        except OutputError:
            continue
    received += os.read(reader, 1 << 20)
    sink.close()
    os.close(reader)
    assert received == data
