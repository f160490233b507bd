"""The command as a user starts it: a process of its own, with its two outputs apart."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable

from tests import schemas


def pgrepl(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m pgrepl`` without a terminal, and with no configuration of the developer's.

    JSON that it prints is held to the schema of the command.
    """
    done = subprocess.run(
        [sys.executable, "-m", "pgrepl", *arguments],
        env={**os.environ, "PGREPL_CONFIG": "", "XDG_CONFIG_HOME": "/nonexistent", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    schemas.check_call(arguments, done.stdout)
    return done


def eventually(condition: Callable[[], bool], seconds: float = 15) -> None:
    """Wait until something holds; fail when it does not come about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        # Not instead of the condition, which alone decides; only so that asking does not take the whole processor.
        time.sleep(0.01)


def pgrepl_at_terminal(*arguments: str, typed: str) -> subprocess.CompletedProcess[str]:
    """Run it with a terminal as standard input, on which ``typed`` is typed; its outputs are pipes."""
    keyboard, terminal = pty.openpty()
    try:
        os.write(keyboard, typed.encode())
        return subprocess.run(
            [sys.executable, "-m", "pgrepl", *arguments],
            env={**os.environ, "PGREPL_CONFIG": "", "XDG_CONFIG_HOME": "/nonexistent"},
            stdin=terminal,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(keyboard)
        os.close(terminal)
