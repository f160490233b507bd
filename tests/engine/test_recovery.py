"""The pause between a failed sync and the next attempt, and ends that fall into it."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from pgrepl.conninfo import ConnectionTarget
from pgrepl.engine.linespool import LineSpool
from pgrepl.engine.output import Output
from pgrepl.engine.pipeline import _Recovery
from pgrepl.engine.run import End, Options, Run
from pgrepl.errors import SyncError
from pgrepl.formats.json import JsonLines
from pgrepl.lsn import Lsn
from pgrepl.sinks.file import FileSink
from pgrepl.stores.memory import MemoryStore
from tests.engine.in_memory import Listener


@pytest.fixture
def observer() -> Listener:
    return Listener()


@pytest.fixture
def run(tmp_path: Path, observer: Listener) -> Run:
    sink = FileSink(tmp_path / "out")
    sink.adopt("1", "slot", "json")
    target, options = ConnectionTarget({}, "the test"), Options(("pub",), slot="slot")
    return Run(target, options, Output(JsonLines(), sink), sink, observer, MemoryStore(), LineSpool(tmp_path / "spool"))


@pytest.fixture
def error(run: Run, monkeypatch: pytest.MonkeyPatch) -> SyncError:
    """A sync that has failed."""

    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    run.sink.write(b"one\n")
    run.sink.mark(4, Lsn(16))
    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fail)
        with pytest.raises(SyncError) as failed:
            run.sink.sync()
    return failed.value


def test_another_attempt_follows_the_pause(run: Run, observer: Listener, error: SyncError) -> None:
    _Recovery(run).after(error)
    assert observer.warnings == [f"{error}; going back to 0/0, up to where all of it is synced"]


def test_the_clock_makes_no_good_end_of_it(run: Run, error: SyncError) -> None:
    """What may be lost is not vouched for, and exit code 0 would say that the run has done all it should."""
    run.deadline = time.monotonic()
    with pytest.raises(SyncError):
        _Recovery(run).after(error)


def test_a_signal_is_an_end_of_its_own(run: Run, error: SyncError) -> None:
    run.stop = True
    with pytest.raises(End) as end:
        _Recovery(run).after(error)
    assert end.value.reason == "stopped"
