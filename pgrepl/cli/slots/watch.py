"""The same picture again and again: a live table on a terminal, elsewhere one after the other."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from pgrepl.cli.diagnostics import ExitCode
from pgrepl.cli.options import DURATION
from pgrepl.errors import ConnectError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pgrepl.cli.options import Run

_SHORTEST = 0.1


@dataclass(frozen=True)
class Picture:
    """What there is to see: JSON objects, how they are drawn, and what is said when there are none."""

    documents: list[dict[str, Any]]
    draw: Callable[[], RenderableType]
    nothing: str


def _interval(_ctx: click.Context, _param: click.Parameter, value: float | None) -> float | None:
    if value is not None and value < _SHORTEST:
        raise click.BadParameter(f"look at most every {_SHORTEST * 1000:.0f}ms")
    return value


WATCH = click.option("--watch", type=DURATION, callback=_interval, help="Look again every DURATION, until interrupted.")


def forbid_watching_all(run: Run, interval: float | None) -> None:
    """Refuse to watch several databases in turn, which would never come to the second."""
    if interval is not None and run.entry is not None:
        raise click.UsageError("--watch and --all-databases exclude each other: choose with --database")


def show(run: Run, look: Callable[[], Picture], interval: float | None) -> Picture:
    """Print what ``look`` sees, with an interval for ever; without one give it back."""
    from pgrepl.cli import output

    if interval is None:
        picture = look()
        if not picture.documents:
            run.report.notice(picture.nothing)
        if picture.documents or run.output_format != "table":
            output.emit(picture.documents, output_format=run.output_format, color=run.color, table=picture.draw)
        return picture
    with _lost_connection(), _terminated():
        if run.output_format == "table" and sys.stdout.isatty():
            _live(run, look, interval)
        while True:
            _print(run, look())
            # What --watch asks for; a signal ends it at once.
            time.sleep(interval)


def _print(run: Run, picture: Picture) -> None:
    from pgrepl.cli import output

    if run.output_format == "json":
        sys.stdout.write(json.dumps(picture.documents, ensure_ascii=False, separators=(",", ":")) + "\n")
        sys.stdout.flush()
        return
    if run.output_format == "table":
        sys.stdout.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}\n")
        if not picture.documents:
            sys.stdout.write(f"{picture.nothing}\n")
    if picture.documents:
        output.emit(picture.documents, output_format=run.output_format, color=run.color, table=picture.draw)
    sys.stdout.flush()


def _live(run: Run, look: Callable[[], Picture], interval: float) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from pgrepl.cli import output

    with Live(console=output.console(run.color), auto_refresh=False, redirect_stderr=False) as live:
        while True:
            picture = look()
            head = Text(f"{datetime.now(UTC):%H:%M:%S} UTC, every {interval:g} s, ^C ends", style="dim")
            body = picture.draw() if picture.documents else Text(picture.nothing)
            live.update(Group(head, Text(), body), refresh=True)
            time.sleep(interval)


@contextmanager
def _lost_connection() -> Iterator[None]:
    import psycopg

    from pgrepl.connection import is_lost, one_line

    try:
        yield
    except psycopg.OperationalError as error:
        if not is_lost(error):
            raise
        raise ConnectError(f"the connection was lost: {one_line(error)}", sqlstate=error.sqlstate) from None


@contextmanager
def _terminated() -> Iterator[None]:
    """Let SIGTERM end it with the cursor put back."""

    def end(_signal: int, _frame: object) -> None:
        raise click.exceptions.Exit(ExitCode.TERMINATED)

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
