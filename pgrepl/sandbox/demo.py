"""The demonstration: pgrepl's own commands on a sample database, whose server is thrown away afterwards."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import psycopg
from psycopg.conninfo import make_conninfo

from pgrepl.errors import OperationError
from pgrepl.sandbox import workload
from pgrepl.sandbox.account import remove_directory, server_account, temporary_directory
from pgrepl.sandbox.instance import Sandbox

PUBLICATION = "shop_pub"
ROLE = "shop_reader"
_CHANGE_EVERY = 0.5
# Of the time that there is, so that also a short demonstration shows every kind of change.
_SHARE_OF_A_DAY = 0.6
_PATIENCE = 10
_PIPE_CLOSED = 128 + signal.SIGPIPE


@dataclass(frozen=True)
class Summary:
    """How many events of each kind were printed, and in how many seconds."""

    events: Counter[str]
    seconds: float


def run(duration: float, rows: int, *, output: BinaryIO, say: Callable[[str], None]) -> Summary:
    """Show doctor, setup and tail on a sample database of ``rows`` rows, tail for ``duration`` seconds.

    What tail prints goes to ``output``; doctor and setup write to stdout themselves. However it ends, no process and
    no file is left. Raises OperationError when one of the commands fails, BrokenPipeError when stdout has no reader.
    """
    account = server_account()
    directory = temporary_directory("pgrepl-demo-", account)
    try:
        sandbox = Sandbox(directory / "sandbox", durable=False)
        try:
            status = sandbox.start()
            assert status.dsn is not None
            say(f"PostgreSQL {status.version} runs as {account.name if account else 'you'} in {directory}")
            with psycopg.connect(status.dsn) as connection:
                workload.create(connection, rows)
            commands = _Commands(status.dsn, directory)
            commands.show(say, "doctor")
            tables = [option for table in workload.TABLES for option in ("--table", table)]
            commands.show(say, "setup", PUBLICATION, "--role", ROLE, *tables, "--yes")
            return commands.tail(say, duration, output)
        finally:
            with _undisturbed():
                sandbox.destroy()
    finally:
        remove_directory(directory)


def _op_shown(line: bytes) -> str:
    """Find the op at the beginning of a line for people, behind its colour."""
    return re.sub(r"\x1b\[\d+m", "", line.decode()).split(" ", 1)[0]


class _Commands:
    """pgrepl's commands, run as anyone would run them, on one server and with none of the user's settings."""

    def __init__(self, dsn: str, directory: Path) -> None:
        settings = directory / "pgrepl.toml"
        settings.touch()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "PGREPL_"))}
        self._dsn = dsn
        self._environment = {**kept, "PGREPL_DSN": dsn, "PGREPL_CONFIG": str(settings)}

    def show(self, say: Callable[[str], None], *arguments: str) -> None:
        """Run a command to its end; it prints to our own stdout. Raises OperationError, BrokenPipeError."""
        with self._started(say, arguments, stdout=None) as process:
            process.wait()
        _check(arguments[0], process.returncode)

    def tail(self, say: Callable[[str], None], duration: float, output: BinaryIO) -> Summary:
        """Run tail as the role that setup made, while the shop is at work, and count what it prints."""
        self._environment["PGREPL_DSN"] = make_conninfo(self._dsn, user=ROLE)
        arguments: tuple[str, ...] = ("tail", PUBLICATION, "--for", f"{duration:g}s")
        at_terminal = output.isatty()
        if at_terminal:
            # tail writes to us and so would not know; its live line would stand between the lines.
            arguments += (
                "--no-progress",
                "--format",
                "pretty",
                "--color",
                "never" if os.environ.get("NO_COLOR") else "always",
            )
        events: Counter[str] = Counter()
        started = time.monotonic()
        with self._started(say, arguments, stdout=subprocess.PIPE) as process, self._shop_at_work(duration):
            assert process.stdout is not None
            for line in process.stdout:
                events[_op_shown(line) if at_terminal else json.loads(line)["op"]] += 1
                output.write(line)
                output.flush()
            process.wait()
        _check("tail", process.returncode)
        return Summary(events, time.monotonic() - started)

    @contextmanager
    def _started(
        self, say: Callable[[str], None], arguments: tuple[str, ...], *, stdout: int | None
    ) -> Iterator[subprocess.Popen[bytes]]:
        say(f"$ pgrepl {' '.join(arguments)}")
        # In a session of its own, so that Ctrl-C reaches us alone, who then end it.
        process = subprocess.Popen(
            [sys.executable, "-m", "pgrepl", *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            start_new_session=True,
        )
        with process:
            try:
                yield process
            finally:
                process.terminate()
                try:
                    process.wait(_PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()

    @contextmanager
    def _shop_at_work(self, duration: float) -> Iterator[None]:
        closing_time = threading.Event()
        pause = min(_CHANGE_EVERY, duration * _SHARE_OF_A_DAY / workload.CHANGES_A_DAY)
        with ThreadPoolExecutor(max_workers=1) as executor:
            shop: Future[None] = executor.submit(self._work, closing_time, pause)
            try:
                yield
            finally:
                closing_time.set()
            shop.result()

    def _work(self, closing_time: threading.Event, pause: float) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            streaming = "SELECT FROM pg_stat_replication WHERE state = 'streaming'"
            while connection.execute(streaming).fetchone() is None:
                if closing_time.wait(0.05):
                    return
            for change in workload.changes():
                if closing_time.wait(pause):
                    return
                connection.execute(change.encode())


def _check(command: str, code: int) -> None:
    if code == _PIPE_CLOSED:
        raise BrokenPipeError
    if code != 0:
        raise OperationError(f"pgrepl {command} ended with exit code {code}")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no second Ctrl-C end the cleaning up."""
    held = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in held}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
