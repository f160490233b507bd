"""Data on stdout: one document as a table for people or as JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pgrepl.cli.diagnostics import use_color

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

# What is not a terminal gets lines as long as they need be: nothing is cut and nothing is wrapped.
_UNLIMITED = 100_000


def console(color: str) -> Console:
    """Open a console on stdout for tables and text, coloured and as wide as the terminal where there is one."""
    from rich.console import Console

    class Stdout(Console):
        def on_broken_pipe(self) -> None:
            # rich would end the program here, with exit code 1.
            raise

    terminal = sys.stdout.isatty()
    colored = use_color(color, terminal)
    return Stdout(
        file=sys.stdout,
        width=None if terminal else _UNLIMITED,
        force_terminal=colored,
        no_color=not colored,
        color_system="auto" if terminal else "standard" if colored else None,
        highlight=False,
        soft_wrap=not terminal,
        emoji=False,
        markup=False,
        legacy_windows=False,
    )


def emit(document: Any, *, output_format: str, color: str, table: Callable[[], RenderableType]) -> None:
    """Print a document: ``json`` whole, ``jsonl`` an element a line, else what ``table`` draws."""
    if output_format == "json":
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    elif output_format == "jsonl":
        for element in document if isinstance(document, list) else [document]:
            sys.stdout.write(json.dumps(element, ensure_ascii=False, separators=(",", ":")) + "\n")
    else:
        console(color).print(table())
    sys.stdout.flush()
