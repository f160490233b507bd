"""The demonstration shows every kind of change, and leaves nothing behind however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgrepl.sandbox.account import remove_directory, server_account, temporary_directory


@pytest.fixture
def scratch() -> Iterator[Path]:
    """The directory for temporary files, of which the demonstration must leave nothing, and no process that uses it."""
    path = temporary_directory("pgrepl-test-", server_account())
    yield path
    left = [path.name for path in path.iterdir()]
    processes = _processes_of(path)
    remove_directory(path)
    assert (left, processes) == ([], [])


def _processes_of(directory: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if os.fsencode(directory) in command:
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


def _demo(scratch: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pgrepl", "sandbox", "demo", *options]
    # What a user has set for other servers must not reach this one.
    environment = {**os.environ, "TMPDIR": str(scratch), "PGREPL_DSN": "host=nowhere", "PGPORT": "1"}
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_it_shows_a_snapshot_and_every_kind_of_change(scratch: Path) -> None:
    with _demo(scratch, "--for", "5s", "--rows", "30") as demo:
        printed, said = demo.communicate(timeout=60)
    assert demo.returncode == 0, said
    events = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    kinds = Counter(event["op"] for event in events)
    assert kinds["read"] == 30
    assert {"insert", "update", "delete", "truncate", "schema"} <= set(kinds)
    transactions = Counter(event["xid"] for event in events if event["op"] == "insert")
    assert max(transactions.values()) == 200
    assert "cfg.wal_level" in printed  # doctor
    assert "shop_pub" in printed  # setup
    assert f"30 rows copied, then {kinds['insert']} inserts" in said.splitlines()[-1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_cleanly(scratch: Path, number: signal.Signals, code: int) -> None:
    with _demo(scratch, "--for", "60s") as demo:
        assert demo.stdout is not None
        assert any('"op":"insert"' in line for line in demo.stdout)
        demo.send_signal(number)
        _, said = demo.communicate(timeout=30)
    assert demo.returncode == code
    assert "defect" not in said


def test_a_signal_while_the_server_starts_ends_it_cleanly(scratch: Path) -> None:
    with _demo(scratch, "--for", "60s") as demo:
        while not list(scratch.glob("*/sandbox/server/data/postmaster.pid")):
            assert demo.poll() is None
        demo.send_signal(signal.SIGINT)
        demo.communicate(timeout=30)
    assert demo.returncode == 130


def test_a_closed_pipe_ends_it_cleanly(scratch: Path) -> None:
    with _demo(scratch, "--for", "60s") as demo:
        assert demo.stdout is not None
        assert any('"op":"insert"' in line for line in demo.stdout)
        demo.stdout.close()
        assert demo.stderr is not None
        said = demo.stderr.read()
    assert demo.returncode == 141
    assert "error" not in said
