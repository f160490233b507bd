"""``pgrepl slots peek``: the next changes of a slot, which stay in it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from pgrepl.cli.completion import complete_publications, complete_slots
from pgrepl.cli.diagnostics import epilog
from pgrepl.cli.options import Run, command_options
from pgrepl.errors import InputError, OperationError

if TYPE_CHECKING:
    import psycopg

    from pgrepl.engine.peek import Peeked
    from pgrepl.formats import Format

_LIMIT = 100


@click.command("peek", epilog=epilog("pgrepl slots peek orders_slot --limit 5"))
@click.argument("name", shell_complete=complete_slots)
@click.option(
    "--publication",
    metavar="NAME",
    shell_complete=complete_publications,
    help="The publication to decode with; default: the configured one, else the only one of the database.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", default=_LIMIT, show_default=True, help="Show N events at most."
)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["json", "pretty"]),
    help="How events are printed; default pretty on a terminal, else json.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@command_options(formats=False)
def peek(run: Run, name: str, publication: str | None, limit: int, output_format: str | None, as_json: bool) -> None:
    """Print the next changes of a slot that nobody reads at the moment; they stay in it.

    They are printed as tail prints them. The slot is in use meanwhile, after which inactive_since begins anew. The
    server decodes from where the slot stands, which takes long when there is much WAL: --timeout ends it. A slot is of
    one database: so there is no --all-databases.
    """
    from pgrepl import connection
    from pgrepl.engine import peek as engine

    if as_json and output_format not in (None, "json"):
        raise click.UsageError("--json and --format contradict each other")
    chosen = "json" if as_json else output_format or ("pretty" if sys.stdout.isatty() else "json")
    with connection.connect(run.target, "pgrepl slots") as conn:
        slot = engine.readable(conn, name)
        wanted = run.publication(publication) or _only_publication(conn)
        if slot.inactive_since is not None:
            run.report.warning(
                f"looking into {name} resets its inactive_since, which was {slot.inactive_since:%Y-%m-%d %H:%M:%S} UTC"
            )
        found = engine.peek(conn, run.target, name, [wanted], limit)
    if found.skipped is not None:
        run.report.warning(
            f"changes from before publication {wanted} was there are left out",
            hint="create publications before slots",
        )
    _print(run, chosen, found)
    if not found.events:
        run.report.notice(f"there is no change of publication {wanted} in slot {name}")
    elif found.more:
        run.report.notice(f"there are more than these {len(found.events)}: --limit shows more of them")


def _print(run: Run, chosen: str, found: Peeked) -> None:
    from pgrepl.cli.diagnostics import use_color
    from pgrepl.formats.json import JsonLines
    from pgrepl.formats.pretty import Pretty

    encoder: Format = JsonLines() if chosen == "json" else Pretty(color=use_color(run.color, sys.stdout.isatty()))
    for event in found.events:
        sys.stdout.buffer.write(encoder.encode(event))
    sys.stdout.flush()


def _only_publication(conn: psycopg.Connection) -> str:
    from pgrepl.catalog import publications

    names = [publication.name for publication in publications.all_of(conn)]
    if not names:
        raise OperationError(f"database {conn.info.dbname} has no publication to decode with")
    if len(names) > 1:
        raise InputError(
            f"database {conn.info.dbname} has several publications",
            hint=f"choose one with --publication: {', '.join(names)}",
        )
    return names[0]
