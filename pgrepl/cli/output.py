"""Data on stdout: one document as a table for people or as JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pgrepl.cli.diagnostics import use_color

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

# The documents of a command that is called for several databases.
_array: list[Any] | None = None

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
    if _array is not None and output_format == "json":
        _array.append(document)
        return
    if output_format == "json":
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    elif output_format == "jsonl":
        for element in document if isinstance(document, list) else [document]:
            sys.stdout.write(json.dumps(element, ensure_ascii=False, separators=(",", ":")) + "\n")
    else:
        console(color).print(table())
    sys.stdout.flush()


@contextmanager
def one_array(output_format: str) -> Iterator[list[Any]]:
    """Gather what is printed as JSON, and print it as one array at the end, also when that comes early."""
    global _array
    documents: list[Any] = []
    _array = documents
    try:
        yield documents
    finally:
        _array = None
        if output_format == "json":
            emit(documents, output_format=output_format, color="never", table=lambda: "")


def heading(text: str) -> None:
    """Print of which database the following is, so that psql takes it for a comment."""
    sys.stdout.write(f"-- {''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)}\n")
    sys.stdout.flush()
