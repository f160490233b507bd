"""``pgrepl state``: how far a pipeline is, table by table, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pgrepl.cli import output
from pgrepl.cli.diagnostics import EXIT_CODES_HELP, ExitCode
from pgrepl.cli.options import Group, Run, command_options
from pgrepl.errors import InputError, OperationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from pgrepl.stores.postgres import PostgresStore, TableHistory


@click.group(cls=Group, epilog=EXIT_CODES_HELP)
def state() -> None:
    """Show and repair the stored state of a pipeline (postgres store).

    \b
    Example: pgrepl state show
    """


def _pipeline(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option("--slot", metavar="NAME", help="The pipeline whose slot this is.")(function)
    function = click.option(
        "--store",
        type=click.Choice(["postgres", "bookmarks"]),
        help="Where the state is (bookmarks: not yet); default the configured one, else postgres.",
    )(function)
    return click.option(
        "--pipeline-id",
        type=click.IntRange(0, 2**64 - 1),
        metavar="N",
        help="The pipeline; default the one of host/dbname, else the only one there is.",
    )(function)


def _writing(function: Callable[..., Any]) -> Callable[..., Any]:
    return _asking(click.option("--force", is_flag=True, help="Also while the slot is active.")(function))


def _asking(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option("--yes", is_flag=True, help="Do not ask.")(function)
    return click.option("--dry-run", is_flag=True, help="Say what would be done.")(function)


def _open(run: Run, pipeline_id: int | None, slot: str | None, store_name: str | None) -> PostgresStore:
    """Open the store of the pipeline that is meant. Raises InputError when several could be."""
    from pgrepl import names
    from pgrepl.stores.postgres import PostgresStore

    if run.pipeline(store=store_name).store == "bookmarks":
        raise InputError("the state of the bookmarks store cannot be shown yet", hint="--store postgres")
    if slot is not None:
        named = names.parse_slot(slot).pipeline_id
        if named is None:
            raise InputError(f"{slot} is not the name of a pipeline's slot", hint="supabase_etl_apply_<pipeline id>")
        if pipeline_id not in (None, named):
            raise InputError(f"{slot} is not the slot of pipeline {pipeline_id}", hint="say one of them")
        pipeline_id = named
    own = names.pipeline_id(run.target.pipeline_host(), run.target.database())
    store = PostgresStore(run.target, own if pipeline_id is None else pipeline_id)
    store.check()
    if pipeline_id is None:
        others = store.other_pipelines()
        if len(others) > 1:
            raise InputError(
                f"there is no pipeline {own} here, but {', '.join(map(str, others))}",
                hint="choose one with --pipeline-id",
            )
        if others:
            store = PostgresStore(run.target, others[0])
    return store


@state.command(epilog=EXIT_CODES_HELP)
@_pipeline
@command_options()
def show(run: Run, pipeline_id: int | None, slot: str | None, store: str | None) -> int:
    """Show where the pipeline is and how its tables stand.

    Exit code 1 when there is no state, or a table is errored.

    \b
    Example: pgrepl state show --json
    """
    opened = _open(run, pipeline_id, slot, store)
    overview = opened.overview()
    document = {
        "pipeline_id": overview.pipeline_id,
        "slot": overview.slot,
        "publications": list(overview.publications),
        "system_identifier": overview.system_identifier,
        "timeline": overview.timeline,
        "position": str(overview.position) if overview.position is not None else None,
        "updated_at": overview.updated_at,
        "tables": [
            {
                "schema": table.schema,
                "table": table.name,
                "oid": table.oid,
                "state": table.state,
                "lsn": table.lsn,
                "reason": table.reason,
                "since": table.since,
            }
            for table in overview.tables
        ],
    }

    def draw() -> Table:
        from rich import box
        from rich.table import Table

        position = overview.position if overview.position is not None else "no position of pgrepl's"
        drawn = Table(
            "table", "state", "since", "", box=box.SIMPLE_HEAD, title=f"pipeline {overview.pipeline_id}, {position}"
        )
        for table in overview.tables:
            drawn.add_row(table.qualified, table.state, table.since[:19], table.reason or table.lsn or "")
        return drawn

    output.emit(document, output_format=run.output_format, color=run.color, table=draw)
    errored = any(table.state == "errored" for table in overview.tables)
    return ExitCode.FINDINGS if errored or not overview.tables else ExitCode.OK


@state.command(epilog=EXIT_CODES_HELP)
@click.argument("table", metavar="TABLE")
@_pipeline
@command_options()
def history(run: Run, table: str, pipeline_id: int | None, slot: str | None, store: str | None) -> int:
    """Show every state that a table has been in, the newest first. TABLE is schema.table or an OID.

    \b
    Example: pgrepl state history public.orders
    """
    opened = _open(run, pipeline_id, slot, store)
    rows = opened.history(opened.find(table))
    document = [_document(row) for row in rows]

    def draw() -> Table:
        from rich import box
        from rich.table import Table

        drawn = Table("id", "state", "current", "since", "metadata", box=box.SIMPLE_HEAD)
        for row in rows:
            drawn.add_row(str(row.id), row.state, "*" if row.is_current else "", row.created_at[:19], row.metadata)
        return drawn

    output.emit(document, output_format=run.output_format, color=run.color, table=draw)
    return ExitCode.OK


def _document(row: TableHistory) -> dict[str, Any]:
    import json

    return {
        "id": row.id,
        "state": row.state,
        "metadata": json.loads(row.metadata),
        "prev": row.prev,
        "is_current": row.is_current,
        "created_at": row.created_at,
    }


@state.command(epilog=EXIT_CODES_HELP)
@click.argument("table", metavar="TABLE")
@_pipeline
@_writing
@command_options(formats=False)
def rollback(
    run: Run,
    table: str,
    pipeline_id: int | None,
    slot: str | None,
    store: str | None,
    dry_run: bool,
    yes: bool,
    force: bool,
) -> int:
    """Take a table back to the state before its current one, which is forgotten. TABLE is schema.table or an OID.

    \b
    Example: pgrepl state rollback public.orders
    """
    opened = _open(run, pipeline_id, slot, store)
    oid = opened.find(table)
    rows = opened.history(oid)
    before = next((row for row in rows if row.id == rows[0].prev), None)
    if before is None:
        raise OperationError(f"{table} has no state before {rows[0].state}")
    _consent(
        run, opened, f"{table}: from {rows[0].state} back to {before.state}", dry_run=dry_run, yes=yes, force=force
    )
    if not dry_run:
        opened.rollback(oid)
        run.report.notice(f"{table} is {before.state} again")
    return ExitCode.OK


@state.command(epilog=EXIT_CODES_HELP)
@click.argument("tables", metavar="TABLE…", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every table, and the position: the next run begins anew.")
@_pipeline
@_writing
@command_options(formats=False)
def reset(
    run: Run,
    tables: tuple[str, ...],
    everything: bool,
    pipeline_id: int | None,
    slot: str | None,
    store: str | None,
    dry_run: bool,
    yes: bool,
    force: bool,
) -> int:
    """Make tables be copied again by the next run. TABLE is schema.table or an OID.

    With --all the position goes too, so a slot that is lost or gone can be made anew.

    \b
    Example: pgrepl state reset public.orders
             pgrepl state reset --all
    """
    if everything == bool(tables):
        raise click.UsageError("name tables, or say --all")
    opened = _open(run, pipeline_id, slot, store)
    known = {table.oid: table.qualified for table in opened.overview().tables}
    oids = list(known) if everything else [opened.find(table) for table in tables]
    what = ", ".join(known[oid] for oid in oids) or "no table"
    _consent(
        run,
        opened,
        f"copied again: {what}" + ("; the position is forgotten" if everything else ""),
        dry_run=dry_run,
        yes=yes,
        force=force,
    )
    if not dry_run:
        opened.reset(oids, position_too=everything)
        run.report.notice(f"reset: {what}")
    return ExitCode.OK


@state.command(epilog=EXIT_CODES_HELP)
@_pipeline
@_writing
@command_options(formats=False)
def adopt(
    run: Run,
    pipeline_id: int | None,
    slot: str | None,
    store: str | None,
    dry_run: bool,
    yes: bool,
    force: bool,
) -> int:
    """Take the state for that of the server as it is now, after pg_upgrade, a restore or a failover.

    The position and the slot are shown first: whether they belong to this server's history only a person can tell.

    \b
    Example: pgrepl state adopt
    """
    opened = _open(run, pipeline_id, slot, store)
    before = opened.overview()
    if before.position is None:
        raise OperationError(f"pipeline {before.pipeline_id} has no position of pgrepl's, so there is nothing to adopt")
    now = opened.server_identity()
    _consent(
        run,
        opened,
        f"position {before.position} of slot {before.slot}: from server {before.system_identifier}, timeline"
        f" {before.timeline}, to server {now[0]}, timeline {now[1]}",
        dry_run=dry_run,
        yes=yes,
        force=force,
    )
    if not dry_run:
        opened.adopt(*now)
        run.report.notice(f"the state belongs to server {now[0]}, timeline {now[1]}, now")
    return ExitCode.OK


@state.command(epilog=EXIT_CODES_HELP)
@_pipeline
@_asking
@command_options(formats=False)
def release(run: Run, pipeline_id: int | None, slot: str | None, store: str | None, dry_run: bool, yes: bool) -> int:
    """Leave the slot where supabase/etl reads it right, before that tool goes on with the pipeline.

    It reads a slot from one byte further on, and would miss a transaction that commits exactly where the slot stands. A
    run of tail that ends well does the same by itself. Exit code 1 when one more transaction has to be tailed first.

    \b
    Example: pgrepl state release --yes
    """
    from pgrepl import connection
    from pgrepl.engine.release import release as release_slot

    opened = _open(run, pipeline_id, slot, store)
    before = opened.overview()
    if before.position is None:
        raise OperationError(f"pipeline {before.pipeline_id} has no position of pgrepl's, so there is nothing to leave")
    what = f"slot {before.slot} is released at position {before.position}"
    _consent(run, opened, what, dry_run=dry_run, yes=yes, force=None)
    if not dry_run:
        with connection.connect(run.target, "pgrepl state") as conn:
            at = release_slot(conn, before.slot, before.position, before.publications, opened.position)
        run.report.notice(f"slot {before.slot} stands at {at}: supabase/etl can go on from there")
    return ExitCode.OK


def _consent(run: Run, store: PostgresStore, what: str, *, dry_run: bool, yes: bool, force: bool | None) -> None:
    """Say what is about to be written, and ask.

    Raises OperationError while the slot is active, unless ``force``; None is for a command that cannot be forced.
    """
    import sys

    active = store.slot_is_active()
    if active and not force:
        raise OperationError(
            f"the slot {store.slot} is active: a running pipeline would not notice",
            hint="stop it first" if force is None else "stop it first, or --force",
        )
    run.report.notice(what)
    if dry_run or yes:
        return
    if not sys.stdin.isatty():
        raise InputError("this writes state, and there is no terminal to ask on", hint="--yes goes on without asking")
    click.confirm("Go on?", abort=True, err=True)
