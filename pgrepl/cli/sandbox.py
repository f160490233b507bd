"""``pgrepl sandbox``: an embedded PostgreSQL to try things on, and the demonstration."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from pgrepl.cli.diagnostics import EXIT_CODES_HELP
from pgrepl.cli.options import DURATION, Group, Run, command_options

if TYPE_CHECKING:
    from rich.table import Table

    from pgrepl.sandbox import Status


@click.group(
    cls=Group,
    epilog=f"""\b
Example: pgrepl sandbox start && eval "$(pgrepl sandbox env)" && pgrepl doctor

{EXIT_CODES_HELP}""",
)
def sandbox() -> None:
    """Run an embedded PostgreSQL 18 to try things on (needs the extra: pip install 'pgrepl[sandbox]')."""


def _epilog(example: str) -> str:
    return f"\b\nExample: {example}\n\n{EXIT_CODES_HELP}"


@sandbox.command(epilog=_epilog("pgrepl sandbox start"))
@command_options(connects=False, formats=False)
def start(run: Run) -> None:
    """Start the sandbox in the user's data directory, made first if need be."""
    from pgrepl.sandbox import Sandbox

    status = Sandbox().start()
    run.report.notice(f"PostgreSQL {status.version} runs in {status.directory}")
    run.report.notice('use it: eval "$(pgrepl sandbox env)"')


@sandbox.command(epilog=_epilog("pgrepl sandbox stop"))
@command_options(connects=False, formats=False)
def stop(run: Run) -> None:
    """Stop the sandbox; its data stay for the next start."""
    from pgrepl.sandbox import Sandbox

    Sandbox().stop()
    run.report.notice("the sandbox is stopped")


@sandbox.command(epilog=_epilog("pgrepl sandbox status --json"))
@command_options(connects=False)
def status(run: Run) -> None:
    """Say whether the sandbox is there and runs, and how to reach it."""
    from pgrepl.cli.output import emit
    from pgrepl.sandbox import Sandbox

    found = Sandbox().status()
    emit(asdict(found), output_format=run.output_format, color=run.color, table=lambda: _status_table(found))


def _status_table(status: Status) -> Table:
    from rich.table import Table

    table = Table(box=None, show_header=False)
    for name, value in asdict(status).items():
        shown = {None: "", True: "yes", False: "no"}.get(value, str(value))
        table.add_row(name.replace("_", " "), shown)
    return table


@sandbox.command(epilog=_epilog('eval "$(pgrepl sandbox env)"'))
@command_options(connects=False, formats=False)
def env(run: Run) -> None:
    """Print shell commands that make every other command use the sandbox."""
    from pgrepl.sandbox import Sandbox

    for name, value in Sandbox().env().items():
        print(f"export {name}={shlex.quote(value)}")


@sandbox.command(
    context_settings={"ignore_unknown_options": True}, epilog=_epilog("pgrepl sandbox psql -- -c 'SELECT version()'")
)
@click.argument("arguments", metavar="[-- PSQL OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@command_options(connects=False, formats=False, timeout=False)
def psql(run: Run, arguments: tuple[str, ...]) -> None:
    """Open psql on the sandbox."""
    from pgrepl.sandbox import Sandbox

    command, environment = Sandbox().psql(list(arguments))
    os.execve(command[0], command, environment)  # noqa: S606  psql takes our place


@sandbox.command(epilog=_epilog("pgrepl sandbox destroy --yes"))
@click.option("--yes", is_flag=True, help="Do not ask.")
@command_options(connects=False, formats=False)
def destroy(run: Run, yes: bool) -> None:
    """Stop the sandbox and remove all its data."""
    from pgrepl.errors import InputError
    from pgrepl.sandbox import Sandbox

    found = Sandbox()
    if not found.directory.exists():
        run.report.notice("there is no sandbox")
        return
    if not yes:
        if not sys.stdin.isatty():
            raise InputError(f"destroying the sandbox in {found.directory} needs a yes", hint="add --yes")
        click.confirm(f"Remove the sandbox in {found.directory} with all its data?", abort=True, err=True)
    found.destroy()
    run.report.notice(f"removed {found.directory}")


@sandbox.command(epilog=_epilog("pgrepl sandbox demo --for 20s"))
@click.option("--for", "duration", type=DURATION, default="20s", show_default=True, help="How long changes are shown.")
@click.option("--rows", type=click.IntRange(1, 1_000_000), default=20, show_default=True, help="Rows in the snapshot.")
@command_options(connects=False, formats=False)
def demo(run: Run, duration: float, rows: int) -> None:
    """Show doctor, setup and tail on a sample database that is thrown away afterwards."""
    from pgrepl.sandbox import demo

    with _ended_by_signals():
        summary = demo.run(duration, rows, output=sys.stdout.buffer, say=run.report.notice)
    run.report.notice(f"{_counted(summary.events)} in {summary.seconds:.0f} s; server and files are removed")


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """End by the exception way, which cleans up, instead of at once."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    previous = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _counted(events: Counter[str]) -> str:
    kinds = [("read", "row"), ("insert", "insert"), ("update", "update"), ("delete", "delete")]
    kinds += [("truncate", "truncate"), ("schema", "schema change")]
    named = [f"{events[op]} {word}{'' if events[op] == 1 else 's'}" for op, word in kinds]
    return f"{named[0]} copied, then {', '.join(named[1:])}"
