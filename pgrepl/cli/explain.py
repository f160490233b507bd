"""``pgrepl explain``: the documentation of a check."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import click

from pgrepl.cli.completion import complete_checks
from pgrepl.cli.diagnostics import EXIT_CODES_HELP
from pgrepl.cli.options import Run, command_options

if TYPE_CHECKING:
    from rich.text import Text

    from pgrepl.doctor import Explanation

_LONGEST_LINE = 100


@click.command(epilog=EXIT_CODES_HELP)
@click.argument("check_id", metavar="ID", shell_complete=complete_checks)
@command_options(connects=False, timeout=False)
def explain(run: Run, check_id: str) -> None:
    """Print what is behind a check of the doctor: cause, risk, fix and where to read more. Needs no server.

    \b
    Example: pgrepl explain cfg.wal_level
    """
    from pgrepl.cli import output
    from pgrepl.doctor import explain as explanation_of

    explanation = explanation_of(check_id)
    console = output.console(run.color)
    if run.output_format == "table":
        for line in _lines(explanation, min(console.width, _LONGEST_LINE)):
            console.print(line, soft_wrap=True)
        console.file.flush()
    else:
        output.emit(explanation.document(), output_format=run.output_format, color=run.color, table=lambda: "")


def _lines(explanation: Explanation, width: int) -> list[Text]:
    from rich.text import Text

    lines = [Text(f"{explanation.id}: {explanation.title}", style="bold")]
    for label, text in (("Cause", explanation.cause), ("Risk", explanation.risk), ("Fix", explanation.fix)):
        lines += [Text(""), Text(label, style="cyan")]
        for number, paragraph in enumerate(text.split("\n\n")):
            lines += [Text("")] if number else []
            wrapped = textwrap.wrap(paragraph, width - 2, break_long_words=False, break_on_hyphens=False)
            lines += [Text(f"  {line}") for line in wrapped]
    return [*lines, Text(""), Text("See", style="cyan"), *(Text(f"  {link}") for link in explanation.links)]
