"""As many schedules of the simulation as wished, with fresh seeds, and the tests of tests/fault with larger numbers.

Run by ``./dev torture``.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from itertools import count

from tests.engine.simulation import play

SCHEDULES = 10_000
_TELL = 10.0


def main() -> int:
    """Torture; 1 when something broke."""
    parser = argparse.ArgumentParser(
        prog="./dev torture",
        allow_abbrev=False,
        description="Play schedules of the simulation with fresh seeds, then run tests/fault.",
        epilog="Other options go to pytest.",
    )
    what = f"N times {SCHEDULES} schedules, and N times the faults of the test suite (default 4)"
    parser.add_argument("--factor", type=float, default=4.0, metavar="N", help=what)
    parser.add_argument("--minutes", type=float, metavar="M", help="schedules alone, for M minutes")
    parser.add_argument("--seed", type=int, metavar="S", help="play this one schedule, and no other")
    options, rest = parser.parse_known_args()
    if options.seed is not None:
        return int(not _play([options.seed]))
    first = random.SystemRandom().randrange(1 << 32)
    print(f"schedules with the seeds from {first} on", flush=True)
    if options.minutes is not None:
        return int(not _play(_until(first, time.monotonic() + 60 * options.minutes)))
    if not _play(iter(range(first, first + round(SCHEDULES * options.factor)))):
        return 1
    environment = {**os.environ, "PGREPL_TORTURE_FACTOR": str(options.factor)}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "tests/fault", *rest], env=environment, check=False
    ).returncode


def _until(first: int, end: float) -> Iterator[int]:
    for seed in count(first):
        if time.monotonic() >= end:
            return
        yield seed


def _play(seeds: Iterator[int] | list[int]) -> bool:
    played, told = 0, time.monotonic()
    for seed in seeds:
        try:
            play(seed)
        except Exception:
            traceback.print_exc()
            print(f"the schedule of seed {seed} breaks a promise; ./dev torture --seed {seed} plays it again")
            return False
        played += 1
        if time.monotonic() - told >= _TELL:
            told = time.monotonic()
            print(f"{played} schedules", flush=True)
    print(f"{played} schedule{'s' * (played != 1)}, and every promise was kept", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
