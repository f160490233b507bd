"""`pgrepl tail` at a terminal: what it shows there is read, and answers are typed; its data go to a file."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

from tests.tail.running import PATIENCE, ROOT

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class TerminalTail:
    """A running ``pgrepl tail`` whose stdin and stderr are a terminal; leave its ``with`` block and it is gone."""

    def __init__(self, *arguments: str, dsn: str, stdout: Path, columns: int = 120) -> None:
        self._master, terminal = pty.openpty()
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "PYTHONPATH": str(ROOT),
            "TERM": "xterm",
            "COLUMNS": str(columns),
            "PGREPL_DSN": dsn,
        }
        try:
            with stdout.open("wb") as file:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "pgrepl", "tail", *arguments],
                    stdin=terminal,
                    stdout=file,
                    stderr=terminal,
                    cwd=ROOT,
                    env=environment,
                )
        finally:
            os.close(terminal)
        self._arrived = threading.Condition()
        self._data = b""
        self._over = False
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def __enter__(self) -> TerminalTail:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reading.join()
        os.close(self._master)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:
                # The last one that had the terminal open has gone.
                data = b""
            with self._arrived:
                self._data += data
                self._over = not data
                self._arrived.notify_all()
            if not data:
                return

    @property
    def shown(self) -> str:
        """All that was written to the terminal so far, without the codes that move the cursor and the line breaks."""
        with self._arrived:
            text = self._data.decode(errors="replace")
        return " ".join(_CONTROL.sub("", text).split())

    def until_shown(self, pattern: str) -> str:
        """Wait until the terminal has shown what the pattern matches, and give that."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._over or re.search(pattern, self.shown), PATIENCE)
        found = re.search(pattern, self.shown)
        assert found, f"{pattern!r} was not shown: {self.shown[-2000:]}"
        return found[0]

    def type(self, text: str) -> None:
        """Type something."""
        os.write(self._master, text.encode())

    def stop(self) -> int:
        """End it with SIGTERM, and give its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self.finish()

    def finish(self) -> int:
        """Wait for its end, and give its exit code."""
        code = self._process.wait(PATIENCE)
        self._reading.join(PATIENCE)
        return code
