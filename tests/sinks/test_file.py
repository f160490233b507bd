"""The file sink by itself: what an attempt that failed leaves, and what the next one makes of it."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pgrepl.engine.output import Output
from pgrepl.errors import OutputError, SyncError
from pgrepl.formats.json import JsonLines
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


def test_after_a_failed_sync_nothing_is_vouched_for_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No later sync proves anything, one that is due or that at the end; the next run cuts off what may be lost."""
    output = tmp_path / "out"
    sink = FileSink(output, interval=0)
    sink.adopt("1", "slot", "json")
    sink.write(b"one\n")
    sink.mark(4, Lsn(16))
    sink.write(b"two\n")
    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fail)
        with pytest.raises(SyncError):
            sink.mark(8, Lsn(32))
    for again in (sink.tick, sink.sync, sink.reopen, lambda: sink.mark(8, Lsn(48))):
        with pytest.raises(SyncError):
            again()
    sink.close()
    assert sink.durable() == Lsn(16)
    assert output.read_bytes() == b"one\ntwo\n"

    sink = FileSink(output)
    assert sink.adopt("1", "slot", "json").position == Lsn(16)
    assert output.read_bytes() == b"one\n"
    sink.close()


def test_a_run_that_goes_back_vouches_again(sink: FileSink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the sidecar could not be written when it went back, and the run ends there."""
    output, in_the_way = tmp_path / "out", tmp_path / "out.pgrepl.new"
    sink.write(b"one\n")
    sink.mark(4, Lsn(16))
    sink.sync()
    sink.write(b"two\n")
    sink.mark(8, Lsn(32))
    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fail)
        with pytest.raises(SyncError):
            sink.sync()
    in_the_way.mkdir()
    with pytest.raises(OutputError, match="Is a directory"):
        sink.adopt("1", "slot", "json")
    in_the_way.rmdir()
    sink.sync()
    assert sink.durable() == Lsn(16)
    assert sink.adopt("1", "slot", "json").position == Lsn(16)
    sink.write(b"too\n")
    sink.mark(12, Lsn(32))
    sink.sync()
    assert sink.durable() == Lsn(32)
    assert output.read_bytes() == b"one\ntoo\n"


def test_an_attempt_that_is_forgotten_leaves_the_last_boundary(sink: FileSink, tmp_path: Path) -> None:
    """What was written after it is not vouched for, and the position does not go back to the beginning."""
    output = Output(JsonLines(), sink)
    output.add(b"one\n")
    output.boundary(Lsn(16))
    output.add(b"beyond\n")
    output.write()
    output.discard()
    output.close()
    document = json.loads((tmp_path / "out.pgrepl").read_text())
    assert (document["offset"], document["position"]) == (4, "0/10")


def fail(_fd: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))
