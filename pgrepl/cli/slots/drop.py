"""``pgrepl slots drop``: dropping slots, after showing what is lost with them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from pgrepl.cli.completion import complete_slots
from pgrepl.cli.diagnostics import ExitCode, epilog
from pgrepl.cli.options import Run, command_options
from pgrepl.cli.slots.drawing import holder, kind, printable
from pgrepl.errors import InputError, OperationError, PgreplError
from pgrepl.units import size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

    from pgrepl.catalog.slots import Slot


@click.command("drop", epilog=epilog("pgrepl slots drop old_slot other_slot --yes"))
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_slots)
@click.option(
    "--orphans",
    is_flag=True,
    help="Inactive slots of pipelines that are neither configured nor in etl.replication_state.",
)
@click.option("--if-exists", is_flag=True, help="A slot that is not there is no error.")
@click.option("--terminate", is_flag=True, help="End the session that holds the slot; without it a slot in use stays.")
@click.option("--dry-run", is_flag=True, help="Print the SQL, drop nothing.")
@click.option("--yes", is_flag=True, help="Do not ask; needed without a terminal.")
@command_options(all_databases=True)
def drop(
    run: Run, names: tuple[str, ...], orphans: bool, if_exists: bool, terminate: bool, dry_run: bool, yes: bool
) -> int:
    """Drop replication slots, after showing what is lost with them.

    A slot that is in use, or from which its reader could still go on, is dropped after its name was typed. Without
    NAME the inactive slots of this database are offered. Nothing is dropped when one of the slots cannot be.

    --orphans drops slots of this database that are named as a pipeline of supabase/etl names them, whose pipeline is
    none of the configured [[databases]] and has no rows in etl.replication_state here. Such slots of other databases
    are listed only.
    """
    from pgrepl import connection
    from pgrepl.catalog import slots as catalog

    terminal = sys.stdin.isatty()
    if orphans and (names or terminate):
        raise click.UsageError(f"--orphans excludes {'NAME' if names else '--terminate: an orphan is not in use'}")
    if names and run.entry is not None:
        # The same name may be another slot on another server.
        raise click.UsageError("a slot's NAME and --all-databases exclude each other: choose with --database")
    if not names and not orphans and not terminal:
        raise InputError("no slot is named, and there is no terminal to choose on", hint="name the slots to drop")
    if not dry_run and not yes and not terminal:
        raise InputError(
            "a dropped slot cannot be had back, and there is no terminal to ask on", hint="give --yes, or --dry-run"
        )
    with connection.connect(run.target, "pgrepl slots") as conn:
        present = {slot.name: slot for slot in catalog.all_of(conn)}
        elsewhere: list[Slot] = []
        if orphans:
            chosen, elsewhere = _orphans(run, conn, list(present.values()))
        else:
            chosen = list(dict.fromkeys(names)) or _choose(conn.info.dbname, present)
        missing = [name for name in chosen if name not in present]
        if missing and not if_exists:
            raise OperationError(
                f"there is no slot {', '.join(missing)}", hint="pgrepl slots list --all shows those there are"
            )
        found = [present[name] for name in chosen if name in present]
        _refuse_held(found, terminate)
        for slot in found:
            run.report.notice(_loss(slot))
        if not dry_run and not yes:
            _confirm(found)
        results = [_result(name, None, "missing") for name in missing]
        for slot in found:
            results.append(_result(slot.name, slot, "planned") if dry_run else _drop(run, conn, slot, terminate))
    results += [_result(slot.name, slot, "elsewhere") for slot in elsewhere]
    _print(run, results, [_sql(slot, terminate) for slot in found] if dry_run else None)
    return ExitCode.FINDINGS if any(result["status"] == "failed" for result in results) else ExitCode.OK


def _orphans(run: Run, conn: psycopg.Connection, present: Sequence[Slot]) -> tuple[list[str], list[Slot]]:
    """Find the orphans of this database, and the slots of other databases that may be some."""
    from pgrepl.catalog import orphans
    from pgrepl.cli.slots.known import configured_pipelines

    database = conn.info.dbname
    known = orphans.known_pipelines(conn, configured_pipelines(run))
    if not known.enough:
        if known.unreadable:
            reason = f"{conn.info.user} may not read all of etl.replication_state in database {database}"
            hint = "use a role with SELECT on it that row security does not restrict"
        else:
            reason = f"no database is configured, and database {database} has no etl.replication_state"
            hint = "name the configuration with --config, or the slots themselves"
        raise InputError(f"it cannot be told which slots are orphaned: {reason}", hint=hint)
    marked = orphans.mark(present, database, known)
    found = [slot.name for slot in marked if slot.orphaned]
    elsewhere = [slot for slot in marked if slot.orphaned is None]
    if not found:
        run.report.notice(f"database {printable(database)} has no orphaned slot")
    for slot in elsewhere:
        run.report.notice(
            f"slot {slot.name} of database {printable(slot.database or '')} is of a pipeline that is not known here,"
            " and is left: connect to that database"
        )
    return found, elsewhere


def _choose(database: str, present: dict[str, Slot]) -> list[str]:
    offered = [slot for slot in present.values() if slot.database == database and not slot.active]
    if not offered:
        raise OperationError(f"database {database} has no inactive slot")
    for number, slot in enumerate(offered, 1):
        click.echo(f"{number:3}  {slot.name}: {slot.verdict.text}", err=True)
    answer = click.prompt("Drop which (numbers or names; nothing: none)", default="", show_default=False, err=True)
    by_number = {str(number): slot.name for number, slot in enumerate(offered, 1)}
    chosen = [by_number.get(part, part) for part in answer.replace(",", " ").split()]
    if not chosen:
        raise OperationError("nothing chosen, nothing was dropped")
    return chosen


def _refuse_held(found: Sequence[Slot], terminate: bool) -> None:
    held = [slot for slot in found if slot.holder is not None]
    if held and not terminate:
        holders = ", ".join(f"{slot.name} by {holder(slot.holder)}" for slot in held if slot.holder)
        raise OperationError(
            f"in use, nothing was dropped: {holders}",
            hint="stop the client, or give --terminate, which ends its session",
            sqlstate="55006",
        )


def _loss(slot: Slot) -> str:
    where = f" of database {printable(slot.database)}" if slot.database else ""
    head = f"{'' if kind(slot) == 'other' else f'{kind(slot)} '}slot {slot.name}{where}"
    if slot.lost:
        return f"{head}: lost already, nobody can use it"
    if slot.holder is not None:
        head += f", in use by {holder(slot.holder)}"
    freed = "" if slot.retained_bytes is None else f"; frees {size_text(slot.retained_bytes)} of WAL"
    if slot.physical:
        return f"{head}: its standby or backup may need to be made anew{freed}"
    if slot.confirmed_flush_lsn is None:
        return f"{head}: not finished yet{freed}"
    return f"{head}: its reader loses its place at {slot.confirmed_flush_lsn} and needs a new snapshot{freed}"


def _confirm(found: Sequence[Slot]) -> None:
    for slot in found:
        if slot.active or (not slot.lost and slot.retained_bytes is not None):
            typed = click.prompt(f"Type {slot.name} to drop it", default="", show_default=False, err=True)
            if typed.strip() != slot.name:
                raise OperationError("not confirmed, nothing was dropped")


def _drop(run: Run, conn: Any, slot: Slot, terminate: bool) -> dict[str, Any]:
    from pgrepl.replication.slots import drop_slot

    try:
        ended = drop_slot(conn, slot.name, terminate=terminate)
    except PgreplError as error:
        # The others go on: each slot is a matter of its own.
        run.report.exception(error)
        return _result(slot.name, slot, "failed")
    return _result(slot.name, slot, "dropped", ended)


def _result(name: str, slot: Slot | None, status: str, terminated: Sequence[int] = ()) -> dict[str, Any]:
    return {
        "name": name,
        "status": status,
        "database": slot and slot.database,
        "retained_bytes": slot and slot.retained_bytes,
        "lag_bytes": slot and slot.lag_bytes,
        "terminated": list(terminated),
    }


def _sql(slot: Slot, terminate: bool) -> str:
    # A slot's name has nothing in it that would need quoting.
    script = f"SELECT pg_drop_replication_slot('{slot.name}');\n"
    if slot.holder is None or not terminate:
        return script
    held = f"FROM pg_replication_slots WHERE slot_name = '{slot.name}' AND active"
    end = f"SELECT pg_terminate_backend(active_pid, 10000) {held};\n"
    # A temporary slot goes with its session.
    return end if slot.temporary else end + script


def _print(run: Run, results: list[dict[str, Any]], scripts: list[str] | None) -> None:
    from pgrepl.cli import output

    if run.output_format == "table":
        if scripts is not None:
            run.print_script("".join(scripts))
            return
        done = [result for result in results if result["status"] != "elsewhere"]
        sys.stdout.write("".join(f"{result['status']} {result['name']}\n" for result in done))
        sys.stdout.flush()
    else:
        output.emit(results, output_format=run.output_format, color=run.color, table=lambda: "")
