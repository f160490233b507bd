"""``pgrepl setup``: get a server ready for logical replication."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from pgrepl.cli.completion import complete_files, complete_publications
from pgrepl.cli.diagnostics import EXIT_CODES_HELP, ExitCode
from pgrepl.cli.options import DURATION, TABLE_NAME, Run, command_options, read_password_file
from pgrepl.errors import InputError, OperationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Group, RenderableType
    from rich.table import Table
    from rich.text import Text

    from pgrepl.provision import Plan, Step

_PASSWORD_VARIABLE = "PGREPL_ROLE_PASSWORD"  # noqa: S105  the variable's name
_MARKS = {
    "created": ("+", "green"),
    "altered": ("~", "green"),
    "exists": ("✓", "green"),
    "skipped": ("-", "yellow"),
    "planned": ("+", "cyan"),
    "needs_superuser": ("!", "red"),
}
# On a terminal; what is not a terminal gets every name.
_SHOWN_LENGTH = 160


@click.command(epilog=EXIT_CODES_HELP)
@click.argument("publication", required=False, shell_complete=complete_publications)
@click.option("--role", metavar="NAME", help="The role that is to read the publication; made when it is not there.")
@click.option(
    "--password-file",
    metavar="FILE",
    help="Read a new role's password from a file.",
    shell_complete=complete_files,
)
@click.option("--password-prompt", is_flag=True, help="Ask for it.  [env: PGREPL_ROLE_PASSWORD]")
@click.option("--reset-password", is_flag=True, help="Set the password also of a role that exists.")
@click.option("--all-tables", is_flag=True, help="Publish every table but those of schema etl.")
@click.option("--literally-all", is_flag=True, help="Publish FOR ALL TABLES, whatever there is.")
@click.option("--table", "tables", type=TABLE_NAME, multiple=True, help="Publish this table; may be repeated.")
@click.option("--in-schema", "schemas", metavar="SCHEMA", multiple=True, help="Publish a schema; may be repeated.")
@click.option("--publish", metavar="OPS", help="Of insert,update,delete,truncate; default: all.")
@click.option(
    "--via-root/--no-via-root",
    default=None,
    help="Publish partitions under their root's name; default: yes in a new publication.",
)
@click.option("--skip-keyless", is_flag=True, help="Leave out tables without a usable replica identity.")
@click.option(
    "--only", type=click.Choice(["check", "role", "publication"]), help="Do this part alone, after the checks."
)
@click.option("--lock-timeout", type=DURATION, default="5s", show_default=True, help="Wait no longer for a lock.")
@click.option("--dry-run", is_flag=True, help="Print the SQL, change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask; needed without a terminal.")
@command_options(all_databases=True)
def setup(
    run: Run,
    publication: str | None,
    password_file: str | None,
    password_prompt: bool,
    publish: str | None,
    lock_timeout: float,
    dry_run: bool,
    yes: bool,
    **options: Any,
) -> int:
    """Get a server ready for logical replication: checks, a role with the least privileges, a publication.

    What exists stays and what is missing is added, all in one transaction; nothing is dropped or weakened. What the
    connected role may not do is left out and printed as a script for psql.

    \b
    Example: pgrepl setup orders_pub --role cdc --table shop.orders --table shop.items
    """
    from pgrepl import connection, provision

    needs_consent = not dry_run and options["only"] != "check"
    if needs_consent and not yes and not sys.stdin.isatty():
        raise InputError(
            "setup changes the server, and there is no terminal to ask on", hint="give --yes, or --dry-run"
        )
    if options["role"] is None and (password_file or password_prompt):
        raise InputError("no role is named", hint="name it with --role")
    wanted = provision.Wanted(
        publication=run.publication(publication) or provision.DEFAULT_PUBLICATION,
        password=_password(options["role"], password_file, password_prompt),
        tables=tuple(options.pop("tables")),
        schemas=tuple(map(_schema, options.pop("schemas"))),
        publish=None if publish is None else tuple(part.strip() for part in publish.split(",") if part.strip()),
        **options,
    )
    with connection.connect(run.target, "pgrepl setup") as conn:
        plan = provision.plan(conn, wanted)
        if needs_consent and not yes and plan.has_work:
            _ask(run, plan)
        if not dry_run:
            plan = provision.apply(conn, plan, lock_timeout=lock_timeout)
    _print(run, plan, lock_timeout if dry_run else None)
    for note in plan.notes:
        run.report.warning(note.text, hint=note.hint)
    if plan.left_out:
        run.report.warning(
            "what the connected role may not do is left",
            hint="have the script run by psql as a superuser, then run setup again",
        )
        return ExitCode.FINDINGS
    return ExitCode.OK


def _password(role: str | None, file: str | None, prompt: bool) -> str | None:
    if file and prompt:
        raise InputError("--password-file and --password-prompt exclude each other")
    if file:
        return read_password_file(file)
    if prompt:
        if not sys.stdin.isatty():
            raise InputError(
                "--password-prompt needs a terminal", hint=f"use --password-file FILE or {_PASSWORD_VARIABLE}"
            )
        password: str = click.prompt(
            f"Password for role {role}", hide_input=True, confirmation_prompt="The same again", err=True
        )
        return password
    return os.environ.get(_PASSWORD_VARIABLE) if role is not None else None


def _schema(name: str) -> str:
    """Take a schema's name as it stands in the catalog, or in double quotes as SQL has it."""
    return name[1:-1].replace('""', '"') if len(name) > 2 and name[0] == name[-1] == '"' else name


def _ask(run: Run, plan: Plan) -> None:
    from rich.console import Console

    from pgrepl.cli.diagnostics import use_color

    colored = use_color(run.color, sys.stderr.isatty())
    console = Console(stderr=True, highlight=False, markup=False, emoji=False, no_color=not colored)
    console.print(_table(_rows(run, [step for step in plan.steps if step.status != "exists"], terminal=True)))
    if not click.confirm(f"Set up database {plan.database} like this?", err=True):
        raise OperationError("not confirmed, nothing was changed")


def _print(run: Run, plan: Plan, dry_run_lock_timeout: float | None) -> None:
    from pgrepl import provision
    from pgrepl.cli import output

    needs = provision.needs_script(plan)
    if dry_run_lock_timeout is not None and run.output_format == "table":
        run.print_script(provision.dry_run_script(plan, lock_timeout=dry_run_lock_timeout))
        return
    document = {"steps": [_step_document(step) for step in plan.steps], "needs": needs}
    output.emit(
        document,
        output_format=run.output_format,
        color=run.color,
        table=lambda: _report(run, plan, needs),
    )


def _step_document(step: Step) -> dict[str, Any]:
    return {
        "step": step.name,
        "status": step.status,
        "object": step.object,
        "statements": [statement.text for statement in step.statements],
    }


def _report(run: Run, plan: Plan, needs: str | None) -> Group:
    from rich.console import Group
    from rich.text import Text

    terminal = sys.stdout.isatty()
    rows = _rows(run, plan.steps, terminal=terminal)
    # A table pads every line to the longest one, which with all names shown can be very long.
    parts: list[RenderableType] = [_table(rows) if terminal else _lines(rows)]
    if needs:
        parts += [Text(""), Text(needs.rstrip("\n"))]
    return Group(*parts)


def _rows(run: Run, steps: Iterable[Step], *, terminal: bool) -> list[tuple[str, str, str, str, str]]:
    """One row for each step: style, mark, step, object, summary; statements below it when asked for."""
    rows: list[tuple[str, str, str, str, str]] = []
    for step in steps:
        mark, style = _MARKS[step.status]
        summary = step.summary
        if terminal and run.report.verbosity < 1 and len(summary) > _SHOWN_LENGTH:
            summary = f"{summary[:_SHOWN_LENGTH].rsplit(', ', 1)[0]}, …"
        rows.append((style, mark, step.name, step.object, summary))
        if run.report.verbosity >= 1:
            rows += [("dim", "", "", "", statement.text) for statement in step.statements]
    return rows


def _table(rows: Sequence[tuple[str, str, str, str, str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_column(overflow="fold", ratio=1)
    for style, mark, name, target, summary in rows:
        grid.add_row(Text(mark, style), name, Text(target), Text(summary, style if style == "dim" else ""))
    return grid


def _lines(rows: Sequence[tuple[str, str, str, str, str]]) -> Text:
    from rich.text import Text

    widths = [max((len(row[column]) for row in rows), default=0) for column in (1, 2, 3)]
    lines = []
    for style, mark, name, target, summary in rows:
        cells = "  ".join(cell.ljust(width) for cell, width in zip((mark, name, target), widths, strict=True))
        lines.append(Text.assemble((cells[: len(mark)], style), f"{cells[len(mark) :]}  {summary}"))
    return Text("\n").join(lines)
