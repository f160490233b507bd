"""``pgrepl state``: how far a pipeline is, table by table, and the way back."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from pgrepl.cli import output
from pgrepl.cli.completion import complete_slots
from pgrepl.cli.diagnostics import EXIT_CODES_HELP, ExitCode
from pgrepl.cli.options import Group, Run, command_options
from pgrepl.errors import InputError, OperationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime, timedelta

    from rich.table import Table

    from pgrepl.stores.pipeline import StoredPipeline, TableHistory, TableOverview


@click.group(cls=Group, epilog=EXIT_CODES_HELP)
def state() -> None:
    """Show and repair the stored state of a pipeline (postgres store).

    \b
    Example: pgrepl state show
    """


@dataclass(frozen=True)
class _Which:
    """What the options of every command here say: the pipeline that is meant."""

    pipeline_id: int | None
    slot: str | None
    store: str | None

    def open(self, run: Run) -> StoredPipeline:
        """Open the store of the pipeline. Raises InputError when several could be meant."""
        from pgrepl import names
        from pgrepl.stores.pipeline import StoredPipeline

        if run.pipeline(store=self.store).store == "bookmarks":
            raise InputError("the state of the bookmarks store cannot be shown yet", hint="--store postgres")
        pipeline_id = self.pipeline_id
        if self.slot is not None:
            named = names.parse_slot(self.slot).pipeline_id
            if named is None:
                raise InputError(
                    f"{self.slot} is not the name of a pipeline's slot", hint="supabase_etl_apply_<pipeline id>"
                )
            if pipeline_id not in (None, named):
                raise InputError(f"{self.slot} is not the slot of pipeline {pipeline_id}", hint="say one of them")
            pipeline_id = named
        own = names.pipeline_id(run.target.pipeline_host(), run.target.database())
        store = StoredPipeline(run.target, own if pipeline_id is None else pipeline_id)
        store.check()
        if pipeline_id is None:
            others = store.other_pipelines()
            if len(others) > 1:
                raise InputError(
                    f"there is no pipeline {own} here, but {', '.join(map(str, others))}",
                    hint="choose one with --pipeline-id",
                )
            if others:
                store = StoredPipeline(run.target, others[0])
        return store


@dataclass(frozen=True)
class _Consent:
    """What the options of every command that writes say: whether it may. ``force`` is None where it cannot be."""

    dry_run: bool
    yes: bool
    force: bool | None = None

    def get(self, run: Run, store: StoredPipeline, what: str) -> None:
        """Say what is about to be written, and ask. Raises OperationError while the slot is active, unless forced."""
        if store.slot_is_active() and not self.force:
            raise OperationError(
                f"the slot {store.slot} is active: a running pipeline would not notice",
                hint="stop it first" if self.force is None else "stop it first, or --force",
            )
        run.report.notice(f"nothing is written; it would be: {what}" if self.dry_run else what)
        if self.dry_run or self.yes:
            return
        if not sys.stdin.isatty():
            raise InputError(
                "this writes state, and there is no terminal to ask on", hint="--yes goes on without asking"
            )
        click.confirm("Go on?", abort=True, err=True)


def _which(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which pipeline is meant; the command gets them as ``which``."""

    @functools.wraps(function)
    def call(*args: Any, pipeline_id: int | None, slot: str | None, store: str | None, **rest: Any) -> Any:
        return function(*args, which=_Which(pipeline_id, slot, store), **rest)

    for option in (
        click.option("--slot", metavar="NAME", help="The pipeline whose slot this is.", shell_complete=complete_slots),
        click.option(
            "--store",
            type=click.Choice(["postgres", "bookmarks"]),
            help="Where the state is (bookmarks: not yet); default the configured one, else postgres."
            "  [env: PGREPL_STORE]",
        ),
        click.option(
            "--pipeline-id",
            type=click.IntRange(0, 2**64 - 1),
            metavar="N",
            help="The pipeline; default the one of host/dbname, else the only one there is.",
        ),
    ):
        call = option(call)
    return call


def _writes(*, forced: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options of a command that writes, which gets them as ``consent``; ``forced`` adds --force."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, dry_run: bool, yes: bool, force: bool | None = None, **rest: Any) -> Any:
            return function(*args, consent=_Consent(dry_run, yes, force), **rest)

        if forced:
            call = click.option("--force", is_flag=True, help="Also while the slot is active.")(call)
        call = click.option("--yes", is_flag=True, help="Do not ask.")(call)
        return click.option("--dry-run", is_flag=True, help="Say what would be done.")(call)

    return decorate


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _shown(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")


def _seconds(age: timedelta | None) -> float | None:
    return None if age is None else age.total_seconds()


def _report(run: Run, store: StoredPipeline, action: str, consent: _Consent, **details: Any) -> int:
    """Print what was done, or would be, for programs; people have read it before they were asked."""
    done = {"pipeline_id": store.pipeline_id, "slot": store.slot, "action": action, "dry_run": consent.dry_run}
    if run.output_format != "table":
        output.emit(done | details, output_format=run.output_format, color=run.color, table=lambda: "")
    return ExitCode.OK


def _change(table: TableOverview, after: str) -> dict[str, Any]:
    return {"schema": table.schema, "table": table.name, "oid": table.oid, "from": table.state, "to": after}


@state.command(epilog=EXIT_CODES_HELP)
@_which
@command_options()
def show(run: Run, which: _Which) -> int:
    """Show where the pipeline is and how its tables stand.

    Exit code 1 when there is no state, or a table is errored.

    \b
    Example: pgrepl state show --json
    """
    opened = which.open(run)
    overview = opened.overview()
    document = {
        "pipeline_id": overview.pipeline_id,
        "slot": overview.slot,
        "publications": list(overview.publications),
        "system_identifier": overview.system_identifier,
        "timeline": overview.timeline,
        "position": str(overview.position) if overview.position is not None else None,
        "updated_at": _moment(overview.updated_at),
        "age_seconds": _seconds(overview.age),
        "tables": [
            {
                "schema": table.schema,
                "table": table.name,
                "oid": table.oid,
                "state": table.state,
                "lsn": table.lsn,
                "reason": table.reason,
                "since": _moment(table.since),
                "age_seconds": _seconds(table.age),
            }
            for table in overview.tables
        ],
    }

    def draw() -> Table:
        from rich import box
        from rich.table import Table

        from pgrepl.units import duration_text

        position = "no position of pgrepl's"
        if overview.position is not None and overview.age is not None:
            position = f"position {overview.position}, stored {duration_text(overview.age)} ago"
        title = f"pipeline {overview.pipeline_id}, {position}"
        drawn = Table("table", "state", "since", "age", "", box=box.SIMPLE_HEAD, title=title)
        for table in overview.tables:
            drawn.add_row(
                table.qualified,
                table.state,
                _shown(table.since),
                duration_text(table.age),
                table.reason or table.lsn or "",
            )
        return drawn

    output.emit(document, output_format=run.output_format, color=run.color, table=draw)
    errored = any(table.state == "errored" for table in overview.tables)
    return ExitCode.FINDINGS if errored or not overview.tables else ExitCode.OK


@state.command(epilog=EXIT_CODES_HELP)
@click.argument("table", metavar="TABLE")
@_which
@command_options()
def history(run: Run, table: str, which: _Which) -> int:
    """Show every state that a table has been in, the newest first. TABLE is schema.table or an OID.

    \b
    Example: pgrepl state history public.orders
    """
    opened = which.open(run)
    rows = opened.history(opened.find(table).oid)
    document = [_document(row) for row in rows]

    def draw() -> Table:
        from rich import box
        from rich.table import Table

        drawn = Table("id", "state", "current", "since", "metadata", box=box.SIMPLE_HEAD)
        for row in rows:
            drawn.add_row(str(row.id), row.state, "*" if row.is_current else "", _shown(row.created_at), row.metadata)
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
        "created_at": _moment(row.created_at),
    }


@state.command(epilog=EXIT_CODES_HELP)
@click.argument("table", metavar="TABLE")
@_which
@_writes(forced=True)
@command_options()
def rollback(run: Run, table: str, which: _Which, consent: _Consent) -> int:
    """Take a table back to the state before its current one, which is forgotten. TABLE is schema.table or an OID.

    \b
    Example: pgrepl state rollback public.orders
    """
    opened = which.open(run)
    found = opened.find(table)
    rows = opened.history(found.oid)
    before = next((row for row in rows if row.id == rows[0].prev), None)
    if before is None:
        raise OperationError(f"{table} has no state before {rows[0].state}")
    consent.get(run, opened, f"{table}: from {rows[0].state} back to {before.state}")
    if not consent.dry_run:
        opened.rollback(found.oid)
        run.report.notice(f"{table} is {before.state} again")
    return _report(run, opened, "rollback", consent, tables=[_change(found, before.state)])


@state.command(epilog=EXIT_CODES_HELP)
@click.argument("tables", metavar="TABLE…", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every table, and the position: the next run begins anew.")
@_which
@_writes(forced=True)
@command_options()
def reset(run: Run, tables: tuple[str, ...], everything: bool, which: _Which, consent: _Consent) -> int:
    """Make tables be copied again by the next run. TABLE is schema.table or an OID.

    With --all the position goes too, so a slot that is lost or gone can be made anew.

    \b
    Example: pgrepl state reset public.orders
             pgrepl state reset --all
    """
    if everything == bool(tables):
        raise click.UsageError("name tables, or say --all")
    opened = which.open(run)
    chosen = opened.overview().tables if everything else [opened.find(table) for table in tables]
    what = ", ".join(table.qualified for table in chosen) or "no table"
    consent.get(run, opened, f"copied again: {what}" + ("; the position is forgotten" if everything else ""))
    if not consent.dry_run:
        opened.reset([table.oid for table in chosen], position_too=everything)
        run.report.notice(f"reset: {what}")
    changes = [_change(table, "init") for table in chosen]
    return _report(run, opened, "reset", consent, tables=changes, position_forgotten=everything)


@state.command(epilog=EXIT_CODES_HELP)
@_which
@_writes(forced=True)
@command_options()
def adopt(run: Run, which: _Which, consent: _Consent) -> int:
    """Take the state for that of the server as it is now, after pg_upgrade, a restore or a failover.

    The position and the slot are shown first: whether they belong to this server's history only a person can tell.

    \b
    Example: pgrepl state adopt
    """
    opened = which.open(run)
    before = opened.overview()
    if before.position is None:
        raise OperationError(f"pipeline {before.pipeline_id} has no position of pgrepl's, so there is nothing to adopt")
    now = opened.server_identity()
    consent.get(
        run,
        opened,
        f"position {before.position} of slot {before.slot}: from server {before.system_identifier}, timeline"
        f" {before.timeline}, to server {now[0]}, timeline {now[1]}",
    )
    if not consent.dry_run:
        opened.adopt(*now)
        run.report.notice(f"the state belongs to server {now[0]}, timeline {now[1]}, now")
    return _report(
        run,
        opened,
        "adopt",
        consent,
        position=str(before.position),
        **{
            "from": {"system_identifier": before.system_identifier, "timeline": before.timeline},
            "to": {"system_identifier": now[0], "timeline": now[1]},
        },
    )


@state.command(epilog=EXIT_CODES_HELP)
@_which
@_writes(forced=False)
@command_options()
def release(run: Run, which: _Which, consent: _Consent) -> int:
    """Leave the slot where supabase/etl reads it right, before that tool goes on with the pipeline.

    It reads a slot from one byte further on, and would miss a transaction that commits exactly where the slot stands. A
    run of tail that ends well does the same by itself. Exit code 1 when one more transaction has to be tailed first.

    \b
    Example: pgrepl state release --yes
    """
    from pgrepl import connection
    from pgrepl.engine.release import release as release_slot

    opened = which.open(run)
    before = opened.overview()
    if before.position is None:
        raise OperationError(f"pipeline {before.pipeline_id} has no position of pgrepl's, so there is nothing to leave")
    consent.get(run, opened, f"slot {before.slot} is released at position {before.position}")
    released_at = None
    if not consent.dry_run:
        with connection.connect(run.target, "pgrepl state") as conn:
            released_at = release_slot(conn, before.slot, before.position, before.publications, opened.position)
        run.report.notice(f"slot {before.slot} stands at {released_at}: supabase/etl can go on from there")
    return _report(
        run,
        opened,
        "release",
        consent,
        position=str(before.position),
        released_at=None if released_at is None else str(released_at),
    )
