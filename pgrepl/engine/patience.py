"""Patience with what is away for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psycopg

from pgrepl.connection import is_lost, one_line
from pgrepl.engine.run import Run
from pgrepl.errors import ConnectError

_RETRY = 0.5
_T = TypeVar("_T")


def in_store(run: Run, work: Callable[[], _T]) -> _T:
    """Do something in the store; one that is away is tried again for ``output_timeout`` seconds.

    The stream's connection is kept alive meanwhile, and nothing is confirmed. Raises what ``work`` raises.
    """
    give_up = time.monotonic() + run.options.output_timeout
    told = False
    while True:
        try:
            return work()
        except (psycopg.OperationalError, ConnectError) as error:
            if not is_lost(error) or time.monotonic() >= give_up:
                raise
            if not told:
                run.observer.warning(f"the store is away: {one_line(error)}; nothing is confirmed until it is back")
                told = True
        run.pause(_RETRY)
