"""Outlive the tests: when their process is gone, however it ended, stop the servers that it left, remove their files.

``python watchdog.py DIRECTORY``, with a pipe as stdin whose other end the tests hold open.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path


def main(directory: Path) -> None:
    """Wait for the end of stdin, then clean up whatever is still there."""
    sys.stdin.buffer.read()
    for pid_file in directory.glob("*/data/postmaster.pid"):
        pid = int(pid_file.read_text(encoding="utf-8").split("\n", 1)[0])
        try:
            os.kill(pid, signal.SIGQUIT)
            for _ in range(100):
                os.kill(pid, 0)
                time.sleep(0.1)
        except ProcessLookupError:
            continue
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
