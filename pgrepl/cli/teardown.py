"""``pgrepl teardown``: take back what setup made."""

from __future__ import annotations

import sys

import click

from pgrepl.cli.completion import complete_publications
from pgrepl.cli.diagnostics import EXIT_CODES_HELP, ExitCode
from pgrepl.cli.options import DURATION, Run, command_options
from pgrepl.errors import InputError, OperationError


@click.command(epilog=EXIT_CODES_HELP)
@click.argument("publication", required=False, shell_complete=complete_publications)
@click.option("--role", metavar="NAME", help="Take the role away, too, with what setup granted to it.")
@click.option(
    "--all", "everything", is_flag=True, help="Take the tables and functions of schema etl away, of everybody."
)
@click.option("--state-table", metavar="NAME", help="The table of bookmarks; default: faucet_state.")
@click.option("--lock-timeout", type=DURATION, default="5s", show_default=True, help="Wait no longer for a lock.")
@click.option("--dry-run", is_flag=True, help="Print the SQL, change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask; needed without a terminal.")
@command_options()
def teardown(
    run: Run,
    publication: str | None,
    role: str | None,
    everything: bool,
    state_table: str | None,
    lock_timeout: float,
    dry_run: bool,
    yes: bool,
) -> int:
    """Take back what setup made: the pipeline's slots, its state, the publication, grants and the role.

    A slot in use is refused. A role that owns or may do more than setup gives stays, and so does what somebody else put
    into schema etl. Everything is shown first; on a terminal the publication's name must be typed.

    \b
    Example: pgrepl teardown orders_pub --role cdc --all
    """
    from pgrepl import connection, provision
    from pgrepl.cli import plans
    from pgrepl.names import pipeline_id
    from pgrepl.stores.tables import check_bookmarks_name

    if not dry_run and not yes and not sys.stdin.isatty():
        raise InputError(
            "what is dropped cannot be had back, and there is no terminal to ask on", hint="give --yes, or --dry-run"
        )
    name = run.publication(publication) or provision.DEFAULT_PUBLICATION
    table = check_bookmarks_name(provision.DEFAULT_BOOKMARKS if state_table is None else state_table)
    with connection.connect(run.target, "pgrepl teardown") as conn:
        pipeline = pipeline_id(run.target.pipeline_host(), conn.info.dbname)
        unwanted = provision.Unwanted(name, pipeline, role=role, everything=everything, state_table=table)
        plan = provision.plan_teardown(conn, unwanted)
        if not dry_run and plan.has_work:
            if not yes:
                plans.preview(run, [plan])
                typed = click.prompt(f"Type {name} to go on", default="", show_default=False, err=True)
                if typed.strip() != name:
                    raise OperationError("not confirmed, nothing was changed")
            plan = provision.apply(conn, plan, lock_timeout=lock_timeout)
    plans.show(run, [plan], lock_timeout if dry_run else None)
    for note in plan.notes:
        run.report.warning(note.text, hint=note.hint)
    if plan.left_out:
        run.report.warning(
            "what the connected role may not do is left",
            hint="have the script run by psql as a superuser, then run teardown again",
        )
        return ExitCode.FINDINGS
    if not plan.steps:
        run.report.notice("nothing to do")
    return ExitCode.OK
