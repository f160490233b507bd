"""The spool against a list in memory, and what it does to the disk."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pgrepl.engine.spool import Entry, Spool, default_directory
from pgrepl.errors import OperationError
from pgrepl.lsn import Lsn

ROOT = Path(__file__).parents[2]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state" / "pgrepl"


def files(directory: Path) -> list[Path]:
    return [path for path in directory.glob("spool-*/*") if path.name != "lock"]


def payloads(spool: Spool, key: object) -> list[bytes]:
    return [entry.payload for entry in spool.take(key)]


class Model(RuleBasedStateMachine):
    """Do the same to a spool that has next to no memory and to lists."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.gettempdir()) / f"pgrepl-test-{uuid.uuid4().hex}"
        self.spool = Spool(self.directory, 1 << 40, memory_bytes=300)
        self.expected: dict[int, list[Entry]] = {}
        self.order = 0
        # The subtransactions that are going on, the innermost last, of each key; xids near the end of 32 bits.
        self.open: dict[int, list[int]] = {}
        self.next_xid = 2**32 - 8

    def teardown(self) -> None:
        try:
            for key, expected in self.expected.items():
                assert list(self.spool.take(key)) == expected
            assert self.spool.used == 0
            self.spool.close()
            assert list(self.directory.glob("spool-*")) == []
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    keys = st.integers(0, 2)

    @rule(key=keys, payload=st.binary(max_size=150), step=st.integers(0, 2))
    def append(self, key: int, payload: bytes, step: int) -> None:
        self.order += step
        xid = self._xids(key)[-1]
        start = Lsn(self.order + 7)
        self.spool.append(key, payload, order=self.order, start=start, xid=xid)
        self.expected.setdefault(key, []).append(Entry(self.order, start, xid, payload))

    def _xids(self, key: int) -> list[int]:
        if key not in self.open:
            self.open[key] = [self._new_xid()]
        return self.open[key]

    def _new_xid(self) -> int:
        self.next_xid += 1
        return self.next_xid % 2**32

    @rule(key=keys)
    def savepoint(self, key: int) -> None:
        self._xids(key).append(self._new_xid())

    @rule(key=keys)
    def release(self, key: int) -> None:
        if len(self._xids(key)) > 1:
            self._xids(key).pop()

    @rule(key=keys, data=st.data())
    def roll_back(self, key: int, data: st.DataObject) -> None:
        xids = self._xids(key)
        if len(xids) == 1:
            return
        level = data.draw(st.integers(1, len(xids) - 1))
        outermost = xids[level]
        del xids[level:]

        def follows(xid: int) -> bool:
            return (xid - outermost) % 2**32 < 2**31

        # The server names every subtransaction that wrote something since, inner ones first.
        gone = {entry.xid for entry in self.expected.get(key, []) if follows(entry.xid)}
        for xid in sorted(gone - {outermost}, key=lambda xid: (xid - outermost) % 2**32):
            self.spool.drop_subtransaction(key, xid)
        if outermost in gone:
            self.spool.drop_subtransaction(key, outermost)
        self.expected[key] = [entry for entry in self.expected.get(key, []) if entry.xid not in gone]

    @rule(key=keys)
    def drop(self, key: int) -> None:
        self.spool.drop(key)
        self.expected.pop(key, None)

    @rule(key=keys, back=st.integers(-1, 6))
    def drop_before(self, key: int, back: int) -> None:
        order = max(0, self.order - back)
        self.spool.drop_before(key, order)
        self.expected[key] = [entry for entry in self.expected.get(key, []) if entry.order >= order]

    @rule(key=keys, other=keys, payload=st.binary(min_size=100, max_size=150))
    def take(self, key: int, other: int, payload: bytes) -> None:
        taken = []
        expected = self.expected.pop(key, [])
        for entry in self.spool.take(key):
            taken.append(entry)
            # Other keys are written meanwhile, and push what is in memory to the disk.
            if other != key:
                self.append(other, payload, 0)
        assert taken == expected

    @invariant()
    def accounts(self) -> None:
        wanted = sum(28 + len(entry.payload) for entries in self.expected.values() for entry in entries)
        assert self.spool.used >= wanted
        assert sum(path.stat().st_size for path in files(self.directory)) <= self.spool.used


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def test_it_gives_back_in_order(directory: Path) -> None:
    with Spool(directory, 1 << 40, memory_bytes=10_000) as spool:
        for number in range(3000):
            spool.append(number % 3, b"%d" % number, order=number, start=number * 2, xid=number % 7)
        assert list(spool.take(1)) == [
            Entry(number, Lsn(number * 2), number % 7, b"%d" % number) for number in range(1, 3000, 3)
        ]
        assert list(spool.take(1)) == []
        assert str(next(spool.take(0)).start) == "0/0"


def test_what_is_small_touches_no_disk(directory: Path) -> None:
    with Spool(directory, 1 << 40) as spool:
        spool.append("a", b"x" * 1000)
        assert payloads(spool, "a") == [b"x" * 1000]
    assert not directory.exists()


def test_files_are_private_and_go_with_the_run(directory: Path) -> None:
    with Spool(directory, 1 << 40, memory_bytes=1000) as spool:
        for _ in range(10):
            spool.append("a", b"x" * 400)
        written = files(directory)
        assert written
        for path in (directory, written[0].parent):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert stat.S_IMODE(written[0].stat().st_mode) == 0o600
    assert list(directory.glob("spool-*")) == []
    spool.close()


def test_full_is_at_the_limit_and_taking_makes_room(directory: Path) -> None:
    with Spool(directory, 10_000, memory_bytes=3000) as spool:
        fullness = []
        for _ in range(20):
            fullness.append(spool.full)
            spool.append("a", b"x" * 472, order=1)
        assert fullness == [False] * 20
        assert (spool.full, spool.used) == (True, 10_000)
        # What has been received already still finds room.
        spool.append("b", b"y")
        taking = spool.take("a")
        next(taking)
        assert (spool.full, spool.used < 9_000) == (False, True)
        assert len(list(taking)) == 19
        assert payloads(spool, "b") == [b"y"]
        assert spool.used == 0


def test_what_lies_before_a_position_gives_its_room_back(directory: Path) -> None:
    """Whole files go at once; without that a full spool would stay full although its messages are not needed."""
    payload = b"x" * (1 << 20)
    with Spool(directory, 1 << 40, memory_bytes=2 << 20) as spool:
        for number in range(40):
            spool.append("a", payload, order=number)
        before = spool.used
        spool.drop_before("a", 30)
        assert spool.used < before * 0.45
        assert [entry.order for entry in spool.take("a")] == list(range(30, 40))
        spool.append("a", payload, order=50)
        spool.drop_before("a", 51)
        assert spool.used == 0


def test_a_subtransaction_gives_its_room_back(directory: Path) -> None:
    payload = b"x" * (1 << 20)
    with Spool(directory, 1 << 40, memory_bytes=2 << 20) as spool:
        spool.append("a", b"kept", xid=10)
        for _ in range(30):
            spool.append("a", payload, xid=11)
        assert files(directory)
        spool.drop_subtransaction("a", 11)
        assert spool.used < 100
        assert sum(path.stat().st_size for path in files(directory)) < 100
        assert payloads(spool, "a") == [b"kept"]


_CHILD = """
import sys
from pathlib import Path
from pgrepl.engine.spool import Spool
spool = Spool(Path(sys.argv[1]), 1 << 40, memory_bytes=1000)
for _ in range(100):
    spool.append("a", b"x" * 400)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def child(directory: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _CHILD, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_files_of_dead_runs_are_removed_and_those_of_others_stay(directory: Path, child: subprocess.Popen[str]) -> None:
    theirs = files(directory)
    assert theirs
    with Spool(directory, 1 << 40):
        assert files(directory) == theirs
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert files(directory) == theirs
    with Spool(directory, 1 << 40):
        assert list(directory.glob("spool-*")) == []


def test_a_full_disk_is_an_operation_error_and_can_be_tried_again(directory: Path) -> None:
    """The limit on the size of a file stands for the disk; what was written in part does no harm."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Spool(directory, 1 << 40, memory_bytes=20_000) as spool:
        expected = []

        def append(payload: bytes) -> None:
            spool.append("a", payload)
            expected.append(payload)

        for number in range(100):
            append(b"%d" % number * 100)
        (path,) = files(directory)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5000, before[1]))
            with pytest.raises(OperationError, match=r"cannot write the spool .*segment: File too large") as error:  # noqa: PT012
                for _ in range(1000):
                    append(b"y" * 300)
            assert str(path) in str(error.value)
            used = spool.used
            for _ in range(3):
                with pytest.raises(OperationError):
                    append(b"z" * 300)
            assert spool.used == used
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        append(b"z" * 300)
        assert payloads(spool, "a") == expected


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Spool(tmp_path / "file" / "pgrepl", 1 << 40, memory_bytes=10) as spool:
        spool.append("a", b"x")
        with pytest.raises(OperationError, match=r"cannot make the spool .*file"):
            spool.append("a", b"x")
        assert payloads(spool, "a") == [b"x"]


def test_a_file_that_was_damaged(directory: Path) -> None:
    with Spool(directory, 1 << 40, memory_bytes=1000) as spool:
        for _ in range(10):
            spool.append("a", b"x" * 400)
        os.truncate(files(directory)[0], 100)
        with pytest.raises(OperationError, match="has lost"):
            list(spool.take("a"))


def test_default_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert default_directory() == Path("/somewhere/pgrepl")
    monkeypatch.setenv("XDG_STATE_HOME", "")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_directory() == Path("/home/somebody/.local/state/pgrepl")
