"""``pgrepl slots``: which replication slots there are, how they fare, and dropping them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from pgrepl.cli.completion import complete_slots
from pgrepl.cli.diagnostics import EXIT_CODES_HELP, ExitCode
from pgrepl.cli.options import Group, Run, command_options
from pgrepl.errors import InputError, OperationError, PgreplError
from pgrepl.units import duration_text, size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from pgrepl.catalog.slots import Holder, Slot

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
# Below this the columns would break every name; each slot gets a paragraph of its own instead.
_TABLE_WIDTH = 150


def _epilog(example: str) -> str:
    return f"\b\nExample: {example}\n\n{EXIT_CODES_HELP}"


@click.group(cls=Group, epilog=_epilog("pgrepl slots list"))
def slots() -> None:
    """Show replication slots with a verdict on each, and drop them."""


@slots.command("list", epilog=_epilog("pgrepl slots list --all -d 'host=db1 dbname=orders'"))
@click.option("--all", "everything", is_flag=True, help="Those of all databases, and physical ones too.")
@command_options(all_databases=True)
def list_(run: Run, everything: bool) -> None:
    """List the logical slots of this database: who uses them, what WAL they keep, and what that means.

    kind is apply or table-sync for slots that are named as a pipeline of supabase/etl names them. Sizes in JSON are
    in bytes, what is not known is null.
    """
    from pgrepl import connection
    from pgrepl.catalog import slots as catalog
    from pgrepl.cli import output

    with connection.connect(run.target, "pgrepl slots") as conn:
        database = conn.info.dbname
        found = [slot for slot in catalog.all_of(conn) if everything or slot.database == database]
    if not found:
        run.report.notice("there is no slot" if everything else f"database {database} has no logical slot")
    width = output.console(run.color).width
    if found or run.output_format != "table":
        output.emit(
            [slot.document() for slot in found],
            output_format=run.output_format,
            color=run.color,
            table=lambda: _table(found, everything) if width >= _TABLE_WIDTH else _paragraphs(found, everything),
        )


def _table(found: Sequence[Slot], everything: bool) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    if everything:
        table.add_column("database", overflow="fold")
    table.add_column("active", overflow="fold")
    table.add_column("wal_status", no_wrap=True)
    for name in ("retained", "lag", "safe", "inactive for"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("failover", no_wrap=True)
    table.add_column("verdict", overflow="fold", min_width=30)
    for slot in found:
        verdict = slot.verdict
        table.add_row(
            slot.name,
            _kind(slot),
            *([_printable(slot.database or "")] if everything else []),
            _holder(slot.holder) if slot.holder else "no",
            slot.wal_status or "",
            _size(slot.retained_bytes),
            _size(slot.lag_bytes),
            _size(slot.safe_wal_size),
            _inactive_for(slot),
            "" if slot.failover is None else "yes" if slot.failover else "no",
            Text(verdict.text, style=_STYLES[verdict.level]),
        )
    return table


def _paragraphs(found: Sequence[Slot], everything: bool) -> RenderableType:
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    parts: list[RenderableType] = []
    for slot in found:
        verdict = slot.verdict
        facts = [
            (
                "",
                f"{_kind(slot)} slot"
                + (f" of database {_printable(slot.database)}" if everything and slot.database else ""),
            ),
            ("wal_status", slot.wal_status),
            ("keeps", _size(slot.retained_bytes)),
            ("lag", _size(slot.lag_bytes)),
            ("safe", _size(slot.safe_wal_size)),
            ("failover", "yes" if slot.failover else None),
            ("used by", _holder(slot.holder) if slot.holder else None),
        ]
        line = ", ".join(f"{name} {value}".strip() for name, value in facts if value)
        parts += [
            Text(slot.name, style="bold"),
            Padding(Text(verdict.text, style=_STYLES[verdict.level]), (0, 0, 0, 2)),
            Padding(Text(line, style="dim"), (0, 0, 0, 2)),
        ]
    return Group(*parts)


def _kind(slot: Slot) -> str:
    return "physical" if slot.physical else slot.kind


def _holder(holder: Holder) -> str:
    text = f"pid {holder.pid}"
    if holder.application_name:
        text += f" {_printable(holder.application_name)}"
    return f"{text} from {holder.client_addr}" if holder.client_addr else text


def _size(size: int | None) -> str:
    return "" if size is None else size_text(size)


def _inactive_for(slot: Slot) -> str:
    return "" if slot.active or slot.inactive_for is None else duration_text(slot.inactive_for)


@slots.command("drop", epilog=_epilog("pgrepl slots drop old_slot other_slot --yes"))
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_slots)
@click.option("--if-exists", is_flag=True, help="A slot that is not there is no error.")
@click.option("--terminate", is_flag=True, help="End the session that holds the slot; without it a slot in use stays.")
@click.option("--dry-run", is_flag=True, help="Print the SQL, drop nothing.")
@click.option("--yes", is_flag=True, help="Do not ask; needed without a terminal.")
@command_options(all_databases=True)
def drop(run: Run, names: tuple[str, ...], if_exists: bool, terminate: bool, dry_run: bool, yes: bool) -> int:
    """Drop replication slots, after showing what is lost with them.

    A slot that is in use, or from which its reader could still go on, is dropped after its name was typed. Without
    NAME the inactive slots of this database are offered. Nothing is dropped when one of the slots cannot be.
    """
    from pgrepl import connection
    from pgrepl.catalog import slots as catalog

    terminal = sys.stdin.isatty()
    if names and run.entry is not None:
        # The same name may be another slot on another server.
        raise click.UsageError("a slot's NAME and --all-databases exclude each other: choose with --database")
    if not names and not terminal:
        raise InputError("no slot is named, and there is no terminal to choose on", hint="name the slots to drop")
    if not dry_run and not yes and not terminal:
        raise InputError(
            "a dropped slot cannot be had back, and there is no terminal to ask on", hint="give --yes, or --dry-run"
        )
    with connection.connect(run.target, "pgrepl slots") as conn:
        present = {slot.name: slot for slot in catalog.all_of(conn)}
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
    _print(run, results, [_sql(slot, terminate) for slot in found] if dry_run else None)
    return ExitCode.FINDINGS if any(result["status"] == "failed" for result in results) else ExitCode.OK


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
        holders = ", ".join(f"{slot.name} by {_holder(slot.holder)}" for slot in held if slot.holder)
        raise OperationError(
            f"in use, nothing was dropped: {holders}",
            hint="stop the client, or give --terminate, which ends its session",
            sqlstate="55006",
        )


def _loss(slot: Slot) -> str:
    where = f" of database {_printable(slot.database)}" if slot.database else ""
    head = f"{'' if _kind(slot) == 'other' else f'{_kind(slot)} '}slot {slot.name}{where}"
    if slot.lost:
        return f"{head}: lost already, nobody can use it"
    if slot.holder is not None:
        head += f", in use by {_holder(slot.holder)}"
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
        sys.stdout.write("".join(f"{result['status']} {result['name']}\n" for result in results))
        sys.stdout.flush()
    else:
        output.emit(results, output_format=run.output_format, color=run.color, table=lambda: "")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
