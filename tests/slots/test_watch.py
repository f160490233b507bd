"""``--watch``: a live table on a terminal, elsewhere one picture after the other."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl

import pytest

from pgrepl.replication.slots import drop_slot
from tests.command import pgrepl
from tests.servers.database import Database
from tests.slots.conftest import make

ENVIRONMENT = {**os.environ, "PGREPL_CONFIG": "", "XDG_CONFIG_HOME": "/nonexistent", "TERM": "xterm-256color"}


@contextmanager
def watching(*arguments: str, stdout: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "pgrepl", "slots", *arguments],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("command", ["list", "lag"])
def test_json_is_an_array_a_line(database18: Database, name: str, command: str) -> None:
    make(database18, name)
    with watching(command, "--watch", "200ms", "--json", "-d", database18.dsn()) as process:
        assert process.stdout is not None
        rounds = [json.loads(process.stdout.readline()) for _ in range(3)]
        with database18.connect() as conn:
            drop_slot(conn, name)
        while rounds[-1]:
            rounds.append(json.loads(process.stdout.readline()))
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 130
    assert [slot["name"] for slot in rounds[0]] == [name]
    if command == "lag":
        assert 0.15 < rounds[2][0]["sample_seconds"] < 5


def test_tables_have_their_time(database18: Database, name: str) -> None:
    make(database18, name)
    with watching("list", "--watch", "0.2", "-d", database18.dsn()) as process:
        assert process.stdout is not None
        text = "".join(process.stdout.readline() for _ in range(8))
        process.terminate()
        assert process.wait(15) == 143
    assert len(re.findall(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", text, re.MULTILINE)) == 2
    assert text.count(name) == 2
    assert "\x1b" not in text


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("command", ["list", "lag"])
def test_a_terminal_has_one_table_that_changes(database18: Database, name: str, command: str, columns: int) -> None:
    make(database18, name)
    keyboard, terminal = pty.openpty()
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    try:
        with watching(command, "--watch", "200ms", "-d", database18.dsn(), stdout=terminal) as process:
            os.close(terminal)
            shown = _read(keyboard, 3, name)
            process.send_signal(signal.SIGTERM if command == "lag" else signal.SIGINT)
            shown += _read(keyboard, 1, "\x1b[?25h")
            assert process.wait(15) == (143 if command == "lag" else 130)
    finally:
        os.close(keyboard)
    # The cursor goes away, up for the next picture, and comes back.
    assert "\x1b[?25l" in shown
    assert "\x1b[1A" in shown
    for line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).replace("\r", "\n").splitlines():
        assert len(line) <= columns, line


def _read(keyboard: int, count: int, text: str) -> str:
    """Read from the terminal until a text has come so often."""
    shown = ""
    deadline = time.monotonic() + 20
    while shown.count(text) < count:
        assert time.monotonic() < deadline, shown
        if select.select([keyboard], [], [], 1)[0]:
            shown += os.read(keyboard, 1 << 16).decode()
    return shown


def test_a_lost_connection_ends_it(database18: Database, name: str) -> None:
    make(database18, name)
    with watching("list", "--watch", "200ms", "--json", "-d", database18.dsn(application_name=name)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with database18.connect() as conn:
            conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s", [name])
        assert process.wait(15) == 3


def test_what_cannot_be_watched(database18: Database) -> None:
    assert pgrepl("slots", "list", "--watch", "0", "-d", database18.dsn()).returncode == 2
    assert pgrepl("slots", "lag", "--watch", "1", "--nagios", "-d", database18.dsn()).returncode == 2
