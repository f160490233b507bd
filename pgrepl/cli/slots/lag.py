"""``pgrepl slots lag``: how far slots are behind, how fast they catch up, and how long they have."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from pgrepl.cli.completion import complete_slots
from pgrepl.cli.diagnostics import ExitCode, epilog, known_error
from pgrepl.cli.options import SIZE, Run, command_options
from pgrepl.cli.slots.watch import WATCH, forbid_watching_all
from pgrepl.errors import InputError, OperationError
from pgrepl.units import duration_text, size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg
    from rich.console import RenderableType

    from pgrepl.catalog.slot_pace import Pace
    from pgrepl.catalog.slots import Level, Slot
    from pgrepl.cli.nagios import PluginCode

_BETWEEN_SAMPLES = 1.0
# The longest name, and the figures beside it.
_TABLE_WIDTH = 150


@dataclass(frozen=True)
class _Limits:
    warning: int | None
    critical: int | None

    def exceeded(self, slot: Slot) -> int | None:
        """Give the threshold that the larger of the two lags is above, the critical one first."""
        behind = max(slot.retained_bytes or 0, slot.lag_bytes or 0)
        return next((limit for limit in (self.critical, self.warning) if limit is not None and behind > limit), None)

    def level(self, slot: Slot) -> Level:
        """Judge a slot; one that is lost, or will be at once, is beyond any limit."""
        exceeded = self.exceeded(slot)
        if slot.lost or (exceeded is not None and exceeded == self.critical):
            return "fail"
        return "warn" if slot.wal_status == "unreserved" or exceeded is not None else "ok"


@click.command("lag", epilog=epilog("pgrepl slots lag orders_slot -w 1GB -c 10GB"))
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_slots)
@click.option("-w", "--warning", type=SIZE, help="Exit 1 above this lag; with --nagios a warning.")
@click.option("-c", "--critical", type=SIZE, help="Exit 1 above this lag; with --nagios critical.")
@WATCH
@click.option(
    "--nagios",
    is_flag=True,
    help="Print one line with performance data, and exit with 0, 1, 2 or 3 as monitoring plugins do.",
)
@command_options(all_databases=True, short_config=False)
def lag(
    run: Run, names: tuple[str, ...], warning: int | None, critical: int | None, watch: float | None, nagios: bool
) -> int:
    """Measure how far slots are behind, twice, and tell from it how they fare; default: all of this database.

    restart lag is the WAL that is kept because of the slot, confirmed lag what its reader has not confirmed. Until lost
    is the time until max_slot_wal_keep_size is reached if all goes on as it did between the two looks, 1 second apart
    or, with --watch, that long. Above a threshold, of either lag, the exit code is 1; a lost slot, whose lag is not
    known, is above any, as is one that will be lost at the next checkpoint. -c is no --config here.
    """
    from pgrepl import connection

    if warning is not None and critical is not None and warning > critical:
        raise InputError("the warning threshold is above the critical one")
    if nagios and (watch is not None or run.output_format != "table" or run.entry is not None):
        raise InputError("--nagios excludes --watch, --format, --json and --all-databases")
    forbid_watching_all(run, watch)
    limits = _Limits(warning, critical)
    if nagios:
        return _plugin(run, names, limits)
    with connection.connect(run.target, "pgrepl slots") as conn:
        looks = _Looks(conn, names)
        from pgrepl.cli.slots.watch import Picture, show

        def look() -> Picture:
            found = looks.next(_BETWEEN_SAMPLES if watch is None else 0.0)
            return Picture(
                [{**slot.document(), **pace.document()} for slot, pace in found],
                lambda: _draw(run, found, limits),
                f"database {conn.info.dbname} has no logical slot",
            )

        show(run, look, watch)
        exceeded = any(limits.level(slot) != "ok" for slot in looks.last)
    return ExitCode.FINDINGS if exceeded else ExitCode.OK


class _Looks:
    """Look at the slots that are meant, each time with what happened since the time before."""

    def __init__(self, conn: psycopg.Connection, names: Sequence[str]) -> None:
        self._conn = conn
        self._names = list(dict.fromkeys(names))
        self._before: dict[str, Slot] | None = None
        self.last: list[Slot] = []

    def next(self, between: float) -> list[tuple[Slot, Pace]]:
        """Look, ``between`` seconds after the time before, or now and then for the first time."""
        from pgrepl.catalog.slot_pace import between as compare

        if self._before is None:
            self._before = {slot.name: slot for slot in self._look()}
            between = between or _BETWEEN_SAMPLES
        if between:
            time.sleep(between)
        before, self.last = self._before, self._look()
        self._before = {slot.name: slot for slot in self.last}
        return [(slot, compare(before.get(slot.name), slot)) for slot in self.last]

    def _look(self) -> list[Slot]:
        from pgrepl.catalog import slots

        present = {slot.name: slot for slot in slots.all_of(self._conn)}
        if not self._names:
            return [slot for slot in present.values() if slot.database == self._conn.info.dbname]
        missing = [name for name in self._names if name not in present]
        if missing:
            raise OperationError(
                f"there is no slot {', '.join(missing)}",
                hint="pgrepl slots list --all shows those there are",
                sqlstate="42704",
            )
        return [present[name] for name in self._names]


def _draw(run: Run, found: Sequence[tuple[Slot, Pace]], limits: _Limits) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from pgrepl.cli import output
    from pgrepl.cli.slots.drawing import STYLES, printable

    rows = [(slot, _figures(slot, pace, limits), STYLES[limits.level(slot)]) for slot, pace in found]
    if output.console(run.color).width < _TABLE_WIDTH:
        parts: list[RenderableType] = []
        for slot, figures, style in rows:
            state = figures.pop("state")
            line = ", ".join([state, *(f"{name} {value}" for name, value in figures.items() if value)])
            parts += [Text(slot.name, style="bold"), Padding(Text(line, style=style), (0, 0, 0, 2))]
        return Group(*parts)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("name", no_wrap=True)
    for name in _FIGURES:
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=name != "state")
    for slot, figures, style in rows:
        *numbers, state = (printable(figures[name]) for name in _FIGURES)
        table.add_row(slot.name, *numbers, Text(state, style=style))
    return table


_FIGURES = ("restart lag", "confirmed lag", "WAL written", "consumed", "caught up in", "lost in", "state")


def _figures(slot: Slot, pace: Pace, limits: _Limits) -> dict[str, str]:
    state = "lost" if slot.lost else "in use" if slot.active else "inactive"
    if slot.wal_status and not slot.lost:
        state += f", {slot.wal_status}"
    exceeded = limits.exceeded(slot)
    if exceeded is not None:
        state += f", more than {size_text(exceeded)} behind"
    values = (
        _size(slot.retained_bytes),
        _size(slot.lag_bytes),
        _rate(pace.wal_rate),
        _rate(pace.consumption_rate),
        _time(pace.catch_up_seconds),
        _time(pace.lost_in_seconds),
        state,
    )
    return dict(zip(_FIGURES, values, strict=True))


def _size(value: int | None) -> str:
    return "" if value is None else size_text(value)


def _rate(value: float | None) -> str:
    return "" if value is None else f"{size_text(round(value))}/s"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    try:
        return duration_text(timedelta(seconds=seconds))
    except OverflowError:
        return ""


def _plugin(run: Run, names: Sequence[str], limits: _Limits) -> int:
    from pgrepl import connection
    from pgrepl.cli import nagios

    try:
        with connection.connect(run.target, "pgrepl slots") as conn:
            line, code = _answer(_Looks(conn, names).next(_BETWEEN_SAMPLES), limits)
    except Exception as error:
        ours = known_error(error)
        if ours is None:
            raise
        if ours.sqlstate == "42704":
            # Whose slot is watched and gone has lost its place.
            line, code = f"PGREPL CRITICAL: {ours}", nagios.PluginCode.CRITICAL
        else:
            line, code = nagios.unknown(str(ours))
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
    return code


def _answer(found: Sequence[tuple[Slot, Pace]], limits: _Limits) -> tuple[str, PluginCode]:
    from pgrepl.cli.nagios import PluginCode

    codes = {"ok": PluginCode.OK, "warn": PluginCode.WARNING, "fail": PluginCode.CRITICAL}
    code = max((codes[limits.level(slot)] for slot, _ in found), default=PluginCode.OK)
    named = [slot for slot, _ in found if codes[limits.level(slot)] == code] if code else []
    parts = [f"{slot.name} {_state(slot)}" for slot in named] or [f"{len(found)} within limits"]
    data = [item for slot, pace in found for item in _performance(slot, pace, limits)]
    return f"PGREPL {code.name}: {'; '.join(parts)}{' | ' if data else ''}{' '.join(data)}", code


def _state(slot: Slot) -> str:
    if slot.lost:
        return "is lost"
    sizes = (("restart lag", slot.retained_bytes), ("confirmed lag", slot.lag_bytes))
    known = ", ".join(f"{name} {size_text(size)}" for name, size in sizes if size is not None)
    return f"{slot.wal_status}, {known}" if slot.wal_status == "unreserved" else known


def _performance(slot: Slot, pace: Pace, limits: _Limits) -> list[str]:
    """Give a slot's figures as ``label=value[unit];warn;crit;min``; U is a value that is not known."""
    bounds = ";".join("" if limit is None else str(limit) for limit in (limits.warning, limits.critical))

    def item(name: str, value: float | None, unit: str = "", bounds: str = ";") -> str:
        return f"{slot.name}_{name}={'U' if value is None else f'{value}{unit}'};{bounds};0"

    figures: dict[str, Any] = pace.document()
    return [
        item("restart_lag", slot.retained_bytes, "B", bounds),
        item("confirmed_lag", slot.lag_bytes, "B", bounds),
        item("consumed", figures["consumed_bytes_per_second"]),
    ]
