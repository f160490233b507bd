"""``pgrepl teardown``: take back what setup made."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from pgrepl.cli.completion import complete_publications
from pgrepl.cli.diagnostics import EXIT_CODES_HELP, ExitCode
from pgrepl.cli.options import DURATION, Run, command_options
from pgrepl.errors import InputError, OperationError, PgreplError

if TYPE_CHECKING:
    import psycopg

    from pgrepl.provision import Plan


@click.command(epilog=EXIT_CODES_HELP)
@click.argument("publication", required=False, shell_complete=complete_publications)
@click.option("--role", metavar="NAME", help="Take the role away, too, with what setup granted to it.")
@click.option(
    "--all", "everything", is_flag=True, help="Take the tables and functions of schema etl away, of everybody."
)
@click.option(
    "--state-dsn",
    metavar="DSN",
    help="The database of the bookmarks; default: the configured one, else the same.  [env: PGREPL_STATE_DSN]",
)
@click.option(
    "--state-table",
    metavar="NAME",
    help="The table of bookmarks; default: the configured one, else faucet_state.  [env: PGREPL_STATE_TABLE]",
)
@click.option("--lock-timeout", type=DURATION, default="5s", show_default=True, help="Wait no longer for a lock.")
@click.option("--dry-run", is_flag=True, help="Print the SQL, change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask; needed without a terminal.")
@command_options()
def teardown(
    run: Run,
    publication: str | None,
    role: str | None,
    everything: bool,
    state_dsn: str | None,
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
    from pgrepl.cli import plans as plans_output
    from pgrepl.names import pipeline_id
    from pgrepl.stores.tables import check_bookmarks_name

    if not dry_run and not yes and not sys.stdin.isatty():
        raise InputError(
            "what is dropped cannot be had back, and there is no terminal to ask on", hint="give --yes, or --dry-run"
        )
    name = run.publication(publication) or provision.DEFAULT_PUBLICATION
    pipeline = run.pipeline(state_table=state_table)
    table = check_bookmarks_name(pipeline.state_table)
    # What is configured for bookmarks counts unless another store is configured; there is no --store to say so here.
    elsewhere = state_dsn is not None or pipeline.store in (None, "bookmarks")
    target = run.state_target(state_dsn) if elsewhere else None
    with ExitStack() as connections:
        conn = connections.enter_context(connection.connect(run.target, "pgrepl teardown"))
        state = connections.enter_context(connection.connect(target, "pgrepl teardown")) if target else None
        own = pipeline_id(run.target.pipeline_host(), conn.info.dbname)
        unwanted = provision.Unwanted(name, own, role=role, everything=everything, state_table=table)
        plans = provision.plan_teardown(conn, unwanted, state)
        if not dry_run and any(plan.has_work for plan in plans):
            if not yes:
                plans_output.preview(run, plans)
                typed = click.prompt(f"Type {name} to go on", default="", show_default=False, err=True)
                if typed.strip() != name:
                    raise OperationError("not confirmed, nothing was changed")
            plans = _apply(run, [conn] if len(plans) == 1 or state is None else [state, conn], plans, lock_timeout)
    plans_output.show(run, plans, lock_timeout if dry_run else None)
    for plan in plans:
        for note in plan.notes:
            run.report.warning(note.text, hint=note.hint)
        for step in plan.skipped:
            run.report.warning(f"{step.name} {step.object} {step.summary}")
    if any(plan.left_out for plan in plans):
        run.report.warning(
            "what the connected role may not do is left",
            hint="have the script run by psql as a superuser, then run teardown again",
        )
        return ExitCode.FINDINGS
    if not any(plan.steps for plan in plans):
        run.report.notice("nothing to do")
    return ExitCode.OK


def _apply(
    run: Run, connections: Sequence[psycopg.Connection], plans: Sequence[Plan], lock_timeout: float
) -> tuple[Plan, ...]:
    """Run each plan in its database; the first stands when the second fails."""
    from pgrepl import provision

    done: list[Plan] = []
    try:
        for conn, plan in zip(connections, plans, strict=True):
            done.append(provision.apply(conn, plan, lock_timeout=lock_timeout))
    except PgreplError:
        for plan in done:
            run.report.warning(f"what was to go in database {plan.database} is gone", hint="run teardown again")
        raise
    return tuple(done)
