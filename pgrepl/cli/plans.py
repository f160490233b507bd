"""How plans of ``setup``, ``teardown`` and ``publications`` are shown."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from pgrepl.cli.options import Run
    from pgrepl.provision import Plan, Step

_MARKS = {
    "created": ("+", "green"),
    "altered": ("~", "green"),
    "dropped": ("-", "green"),
    "exists": ("✓", "green"),
    "skipped": ("·", "yellow"),
    "planned": ("+", "cyan"),
    "needs_superuser": ("!", "red"),
}
# On a terminal; what is not a terminal gets every name.
_SHOWN_LENGTH = 160


def preview(run: Run, plans: Sequence[Plan]) -> None:
    """Show on stderr what would be done, before the question whether it may be."""
    from rich.console import Console

    from pgrepl.cli.diagnostics import use_color

    colored = use_color(run.color, sys.stderr.isatty())
    console = Console(stderr=True, highlight=False, markup=False, emoji=False, no_color=not colored)
    left = [step for plan in plans for step in plan.steps if step.status != "exists"]
    console.print(_table(_rows(run, left, terminal=True)))


def show(run: Run, plans: Sequence[Plan], dry_run_lock_timeout: float | None) -> None:
    """Print what was done and what is left, or of a dry run the script."""
    from pgrepl import provision
    from pgrepl.cli import output

    if dry_run_lock_timeout is not None and run.output_format == "table":
        run.print_script(provision.dry_run_script(*plans, lock_timeout=dry_run_lock_timeout))
        return
    needs = provision.needs_script(*plans)
    steps = [step for plan in plans for step in plan.steps]
    document = {"steps": [_step_document(step) for step in steps], "needs": needs}
    output.emit(
        document,
        output_format=run.output_format,
        color=run.color,
        table=lambda: _report(run, steps),
    )
    if needs and run.output_format == "table":
        # Not through the console: a line of SQL that is wrapped is another one when it is copied.
        sys.stdout.write(f"\n{needs}")
        sys.stdout.flush()


def _step_document(step: Step) -> dict[str, Any]:
    return {
        "step": step.name,
        "status": step.status,
        "object": step.object,
        "statements": [statement.text for statement in step.statements],
        "reason": step.summary if step.status == "skipped" else None,
    }


def _report(run: Run, steps: Sequence[Step]) -> RenderableType:
    terminal = sys.stdout.isatty()
    rows = _rows(run, steps, terminal=terminal)
    # A table pads every line to the longest one, which with all names shown can be very long.
    return _table(rows) if terminal else _lines(rows)


def _rows(run: Run, steps: Iterable[Step], *, terminal: bool) -> list[tuple[str, str, str, str, str]]:
    """One row for each step: style, mark, step, object, summary; statements below it when asked for."""
    rows: list[tuple[str, str, str, str, str]] = []
    for step in steps:
        mark, style = _MARKS[step.status]
        if step.status == "planned" and step.outcome == "dropped":
            mark, style = "-", "red"
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
