"""``pgrepl config``: what is configured, where each value comes from, and changing one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgrepl.cli.completion import complete_files
from pgrepl.cli.diagnostics import EXIT_CODES_HELP, ExitCode
from pgrepl.cli.options import Group, Run, command_options
from pgrepl.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pgrepl.config import Setting


def _epilog(example: str) -> str:
    return f"\b\nExample: {example}\n\n{EXIT_CODES_HELP}"


@click.group(cls=Group, epilog=_epilog("pgrepl config show"))
def config() -> None:
    """Show what is configured and where each value comes from, and change it."""


@config.command(epilog=_epilog("pgrepl config show --json | jq '.[] | select(.origin != \"default\")'"))
@command_options()
def show(run: Run) -> None:
    """Print each configured value with its origin, passwords masked.

    The origin is the flag, the environment variable, the file with its line, or "default". A flag comes before
    PGREPL_ variables, those before PGSENSE__ variables, and these before the file.
    """
    from pgrepl.cli import output

    settings = [*_from_flags(run), *_chosen(run)]
    output.emit(
        [{"key": each.key, "value": each.shown, "origin": each.origin} for each in settings],
        output_format=run.output_format,
        color=run.color,
        table=lambda: _table(settings),
    )


def _from_flags(run: Run) -> list[Setting]:
    from pgrepl.config import Setting

    found = []
    if run.config.path is not None:
        origin = "--config" if "config_path" in run.flags else "PGREPL_CONFIG" if run.config_path else "default"
        found.append(Setting("config", str(run.config.path), origin))
    if run.database_name is not None:
        found.append(Setting("database", run.database_name, "--database"))
    if run.dsn is not None:
        run.target  # noqa: B018  a connection string that cannot be read is an error here too
        found.append(Setting("dsn", run.dsn, run.dsn_origin))
    return found


def _chosen(run: Run) -> list[Setting]:
    """All settings, or with --database those of that entry alone."""
    if run.database_name is None:
        return list(run.config.settings)
    entry = run.database
    assert entry is not None
    general = [each for each in run.config.settings if not each.key.startswith("databases.")]
    return [*general, *(each for each in entry.settings.values() if each in run.config.settings)]


def _table(settings: list[Setting]) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("key", overflow="fold")
    table.add_column("value", overflow="fold")
    table.add_column("origin", overflow="fold")
    for each in settings:
        style = "dim" if each.origin == "default" else ""
        table.add_row(*(Text(_printable(part), style) for part in (each.key, _written(each.shown), each.origin)))
    return table


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


_FILE = click.option(
    "-c",
    "--config",
    "config_path",
    metavar="FILE",
    envvar="PGREPL_CONFIG",
    shell_complete=complete_files,
    help="Configuration file; default ./pgrepl.toml, then the user's.  [env: PGREPL_CONFIG]",
)


@config.command("set", epilog=_epilog("pgrepl config set databases.orders.name orders databases.orders.host db1"))
@click.argument("pairs", metavar="KEY VALUE [KEY VALUE]...", nargs=-1, required=True)
@_FILE
@command_options(connects=False, formats=False)
def set_(run: Run, pairs: tuple[str, ...], config_path: str | None) -> None:
    """Set values in the configuration file, and keep its comments.

    KEY is like pipeline.store, databases.orders.host, databases.orders.password.file or databases.orders.tls.enabled,
    where orders is the name of an entry, or its host/dbname; databases.orders.name orders adds it. Nothing is written
    unless the whole file is valid then. Without a file one is made in the user's configuration directory.
    """
    from pgrepl import config as library
    from pgrepl.config import edit

    if len(pairs) % 2:
        raise click.UsageError("every KEY needs a VALUE")
    changes = list(zip(pairs[::2], pairs[1::2], strict=True))
    path = library.find(config_path or None) or edit.new_file()
    edit.set_values(path, changes)
    run.report.notice(f"{'' if len(changes) == 1 else f'{len(changes)} values '}written to {path}".strip())
    if any(key.endswith(".password") for key, _ in changes):
        run.report.warning(
            "a password on the command line can be seen in the process list and in the shell's history",
            hint="put it in a file of its own and set password.file",
        )
    _warn_of_stronger(run, path, [key for key, _ in changes])


def _warn_of_stronger(run: Run, path: Path, keys: list[str]) -> None:
    """A value in the file has no effect while a variable says something else."""
    from pgrepl import config as library

    settings = {each.key: each for each in library.load(path).settings}
    for key in keys:
        if key in settings and not settings[key].origin.startswith(f"{path}:"):
            run.report.warning(f"{settings[key].origin} in the environment wins over {key} in the file")


@config.command(epilog=_epilog('"$EDITOR" "$(pgrepl config path)"'))
@_FILE
@command_options(connects=False, formats=False)
def path(run: Run, config_path: str | None) -> int:
    """Print the path of the configuration file that is used. Exit code 1 when there is none."""
    from pgrepl import config as library

    found = library.find(config_path or None)
    if found is None:
        looked = ", ".join(str(place) for place in library.places())
        run.report.error("there is no configuration file", hint=f"looked for: {looked}")
        return ExitCode.FINDINGS
    if not os.path.lexists(found):
        raise InputError(f"there is no configuration file {found}")
    sys.stdout.write(f"{found.absolute()}\n")
    return ExitCode.OK
