"""Patience with what is away for a while: the store, a disk that is full."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

import psycopg

from pgrepl.connection import is_lost, one_line
from pgrepl.errors import ConnectError, OperationError, OutputError, SyncError

if TYPE_CHECKING:
    from pgrepl.engine.run import Run

# Neither a disk nor a server says when it is back.
_RETRY = 0.5
_TOO_MANY_CONNECTIONS = "53300"
_T = TypeVar("_T")


class Patience(Protocol):
    """Whoever does something for others, again if it must be; what is done may be tried again as it is."""

    def __call__(self, work: Callable[[], _T], /) -> _T: ...


class StoreAway(OperationError):
    """The store has been away for longer than the run is to wait."""


def at_once(work: Callable[[], _T], /) -> _T:
    """Do something without patience."""
    return work()


def in_store(run: Run, work: Callable[[], _T]) -> _T:
    """Do something in the store; one that is away is tried again for ``output_timeout`` seconds.

    The stream's connection is kept alive meanwhile, and nothing is confirmed. Raises StoreAway, End when the run is to
    stop, and what else ``work`` raises.
    """

    def may_pass(error: Exception) -> bool:
        return is_lost(error) or getattr(error, "sqlstate", None) == _TOO_MANY_CONNECTIONS

    try:
        return _patiently(run, work, may_pass, "the store is away: ", "the store is back")
    except (psycopg.OperationalError, ConnectError) as error:
        if not may_pass(error):
            raise
        raise StoreAway(
            f"the store is away: {one_line(error)}",
            hint="what was printed is not lost: the next run goes on from the stored position",
        ) from None


def in_output(run: Run, work: Callable[[], _T]) -> _T:
    """Write; what fails is tried again for ``output_timeout`` seconds, as ``in_store`` does.

    Raises OutputError, SyncError at once since trying again proves nothing, and End when the run is to stop.
    """

    def may_pass(error: Exception) -> bool:
        return isinstance(error, OutputError) and not isinstance(error, SyncError)

    return _patiently(run, work, may_pass, "", "writing works again")


def _patiently(
    run: Run, work: Callable[[], _T], may_pass: Callable[[Exception], bool], failed: str, works_again: str
) -> _T:
    give_up = time.monotonic() + run.options.output_timeout
    told = False
    while True:
        try:
            result = work()
        except (psycopg.OperationalError, ConnectError, OutputError) as error:
            if not may_pass(error) or time.monotonic() >= give_up:
                raise
            if not told:
                run.observer.warning(f"{failed}{one_line(error)}; nothing is confirmed until it works again")
                told = True
            if run.stop:
                run.check_end()
            if run.ending() is not None:
                # An end by the clock would pass for a good one.
                raise
        else:
            if told:
                run.observer.notice(works_again)
            return result
        time.sleep(_RETRY)
