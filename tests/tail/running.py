"""`pgrepl tail` as a process of its own: start it, read its lines while it runs, end it, ask how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30.0
"""Seconds after which a wait has failed, far more than any of them should take."""

Event = dict[str, Any]


class Finished(NamedTuple):
    """A run that has ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def events(self) -> list[Event]:
        """The lines of stdout, parsed."""
        return [json.loads(line) for line in self.stdout.splitlines()]

    @property
    def complaints(self) -> list[str]:
        """The lines of stderr that are not notices."""
        return [line for line in self.stderr.splitlines() if not _is_notice(line)]


class Tail:
    """A running ``pgrepl tail``; leave its ``with`` block and it is gone.

    stdout and stderr are read all the time by threads of their own, unless ``read=False`` leaves stdout alone until
    ``read_on`` is called. The environment is empty but for PATH, HOME and ``env``, and so is no one's configuration
    found.
    """

    def __init__(
        self,
        *arguments: str,
        dsn: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = ROOT,
        read: bool = True,
        command: str = "tail",
    ) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "error",
            **({"PGREPL_DSN": dsn} if dsn is not None else {}),
            **(env or {}),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pgrepl", command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=environment,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self.pipe: IO[bytes] = self._process.stdout
        """The reading end of stdout, for who has said ``read=False``; it may be closed."""
        self._arrived = threading.Condition()
        self._reads = threading.Event()
        self._reads.set()
        self._stdout: list[bytes] = []
        self._stderr: list[bytes] = []
        self._reading = [threading.Thread(target=self._read, args=(self._process.stderr, self._stderr), daemon=True)]
        self._reading[0].start()
        self._open = 1
        if read:
            self.read_on()

    def __enter__(self) -> Tail:
        return self

    def kill(self) -> None:
        """Kill it, as kill -9 does."""
        self._process.kill()
        self._process.wait()

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._reads.set()
        for thread in self._reading:
            thread.join()
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def hold(self) -> None:
        """Read no more of stdout, but for the line that comes next."""
        self._reads.clear()

    def go_on(self) -> None:
        """Read stdout again after ``hold``."""
        self._reads.set()

    def read_on(self) -> None:
        """Begin to read stdout."""
        thread = threading.Thread(target=self._read, args=(self.pipe, self._stdout), daemon=True)
        self._reading.append(thread)
        self._open += 1
        thread.start()

    def _read(self, pipe: IO[bytes], lines: list[bytes]) -> None:
        for line in pipe:
            if pipe is self.pipe:
                self._reads.wait()
            with self._arrived:
                lines.append(line)
                self._arrived.notify_all()
        with self._arrived:
            self._open -= 1
            self._arrived.notify_all()

    @property
    def lines(self) -> list[bytes]:
        """The lines of stdout so far, with their line ends."""
        with self._arrived:
            return list(self._stdout)

    @property
    def events(self) -> list[Event]:
        """The lines of stdout so far, parsed."""
        return [json.loads(line) for line in self.lines]

    @property
    def stderr(self) -> str:
        """What stderr has said so far."""
        with self._arrived:
            return b"".join(self._stderr).decode()

    def until(self, wanted: Callable[[Event], bool], seconds: float = PATIENCE) -> list[Event]:
        """Wait for an event; give all events up to and with the first one that is wanted."""
        parsed: list[Event] = []
        found = False

        def there() -> bool:
            nonlocal found
            while not found and len(parsed) < len(self._stdout):
                parsed.append(json.loads(self._stdout[len(parsed)]))
                found = wanted(parsed[-1])
            return found

        self._wait_for(there, "the event", seconds)
        return parsed

    def until_op(self, op: str, count: int = 1, seconds: float = PATIENCE) -> list[Event]:
        """Wait for the ``count``-th event of a kind; give all events up to and with it."""
        left = iter(range(count - 1, -1, -1))
        return self.until(lambda event: event["op"] == op and next(left) == 0, seconds)

    def until_stderr(self, text: str, seconds: float = PATIENCE) -> str:
        """Wait until stderr holds a text; give all of stderr."""
        self._wait_for(lambda: text.encode() in b"".join(self._stderr), f"{text!r} on stderr", seconds)
        return self.stderr

    def _wait_for(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        with self._arrived:
            self._arrived.wait_for(lambda: condition() or self._open == 0, seconds)
            met = condition()
        assert met, f"{what} did not come\nstdout: {self.lines[-20:]}\nstderr: {self.stderr}"

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def finish(self, seconds: float = PATIENCE) -> Finished:
        """Wait for the end."""
        if len(self._reading) == 1 and not self.pipe.closed:
            self.read_on()
        with self._arrived:
            ended = self._arrived.wait_for(lambda: self._open == 0, seconds)
        assert ended, f"it does not end\nstdout: {self.lines[-20:]}\nstderr: {self.stderr}"
        code = self._process.wait(seconds)
        return Finished(code, b"".join(self.lines).decode(), self.stderr)

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = PATIENCE) -> Finished:
        """Send a signal and wait for the end."""
        self.send(number)
        return self.finish(seconds)


def run_tail(
    *arguments: str,
    dsn: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | Path = ROOT,
    command: str = "tail",
) -> Finished:
    """Run ``pgrepl tail``, which ends by itself."""
    with Tail(*arguments, dsn=dsn, env=env, cwd=cwd, command=command) as tail:
        return tail.finish()


def _is_notice(line: str) -> bool:
    # What is neither error nor warning nor hint has only a time before it.
    return line[:1].isdigit() and not ("pgrepl: warning: " in line or "pgrepl: error: " in line)
