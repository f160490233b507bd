"""The end of a command that takes too long."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import click

from pgrepl.errors import TimeLimitError


class TimeUp(KeyboardInterrupt):
    """The time limit ran out.

    An interrupt and no error, so that nobody takes it for one that can be dealt with, and psycopg cancels the query
    that is running: the server would go on with it, and hold its locks, for as long as it takes.
    """


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise TimeUp in the block, and TimeLimitError out of it, after so many seconds."""
    if seconds is None:
        yield
        return
    over = TimeUp(f"not done after {seconds:g} s")

    def expire(_signal: int, _frame: object) -> None:
        raise over

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    except TimeUp:
        raise TimeLimitError(str(over), hint="--timeout sets the limit") from None
    except click.Abort as abort:
        # What click makes of an interrupt at a question.
        if abort.__context__ is not over:
            raise
        raise TimeLimitError(str(over), hint="--timeout sets the limit") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
