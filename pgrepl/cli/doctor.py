"""``pgrepl doctor``: what keeps logical replication from working, and how to mend it."""

from __future__ import annotations

import sys
import textwrap
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from pgrepl.cli.completion import complete_checks, complete_publications, complete_slots
from pgrepl.cli.diagnostics import EXIT_CODES_HELP, ExitCode
from pgrepl.cli.limit import TimeUp
from pgrepl.cli.options import Run, command_options
from pgrepl.errors import InputError, PgreplError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from pgrepl.doctor import Finding, Report
    from pgrepl.doctor.report import FailOn

_GROUPS = {
    "conn": "Connection",
    "server": "Server",
    "cfg": "Settings",
    "role": "Role",
    "pub": "Publication",
    "tbl": "Tables",
    "ddl": "Changes of tables",
    "slot": "Slots",
    "ha": "Standbys",
    "live": "At this moment",
    "etl": "Schema etl",
    "state": "State of tables",
    "up": "Upgrade",
}
_MARKS = {
    "pass": ("✓", "+", "green"),
    "info": ("i", "i", "cyan"),
    "warn": ("!", "!", "yellow"),
    "fail": ("✗", "x", "red"),
    "unknown": ("?", "?", "magenta"),
    "skip": ("-", "-", "dim"),
}
_FIX_INDENT = " " * 6
_VERBS = {"sql": "sql", "action": "do ", "command": "run"}
# On a terminal; what is not a terminal gets every object and every fix whole.
_SHOWN_OBJECTS = 5
_SHOWN_FIX = 600


@click.command(epilog=EXIT_CODES_HELP)
@click.argument("publication", required=False, shell_complete=complete_publications)
@click.option("--role", metavar="NAME", help="The role that is to replicate; default: the connected one.")
@click.option(
    "--store",
    type=click.Choice(["memory", "postgres", "bookmarks"]),
    help="Where the state is to be kept; default the configured one, else memory.  [env: PGREPL_STORE]",
)
@click.option(
    "--slot",
    metavar="NAME",
    help="The slot that is to be used; default: that of the pipeline of host and database.",
    shell_complete=complete_slots,
)
@click.option(
    "--provider",
    type=click.Choice(["auto", "self-hosted", "rds", "aurora", "cloudsql", "alloydb", "azure", "supabase", "neon"]),
    default="auto",
    show_default=True,
    help="Who runs the server: fixes differ.",
)
@click.option(
    "--only", metavar="ID", multiple=True, help="Run this check alone; may be repeated.", shell_complete=complete_checks
)
@click.option(
    "--skip", metavar="ID", multiple=True, help="Leave this check out; may be repeated.", shell_complete=complete_checks
)
@click.option(
    "--fail-on",
    type=click.Choice(["warn", "fail", "unknown", "never"]),
    default="fail",
    show_default=True,
    help="Which findings make the exit code 1; warn and unknown include fail.",
)
@click.option(
    "--probe", is_flag=True, help="Send a message through a temporary slot; nothing else here changes anything."
)
@click.option("--upgrade", is_flag=True, help="Ask also what pg_upgrade would do to the slots.")
@click.option("--fix-sql", is_flag=True, help="Print the fixes as a script for psql, and nothing else.")
@click.option(
    "--nagios",
    is_flag=True,
    help="Print one line with performance data, and exit with 0, 1, 2 or 3 as monitoring plugins do.",
)
@command_options(all_databases=True)
def doctor(
    run: Run,
    publication: str | None,
    role: str | None,
    store: str | None,
    slot: str | None,
    provider: str,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    fail_on: FailOn,
    probe: bool,
    upgrade: bool,
    fix_sql: bool,
    nagios: bool,
) -> int:
    """Find out what keeps logical replication from working, and print the fix. Changes nothing.

    Without PUBLICATION the configured one is looked at, else every publication of the database.

    \b
    Example: pgrepl doctor orders_pub --role cdc -d 'host=db1 dbname=orders'
    """
    from pgrepl.cli import output

    if fix_sql and run.output_format != "table":
        raise InputError(f"--fix-sql and --format {run.output_format} exclude each other")
    if nagios and (fix_sql or run.output_format != "table"):
        raise InputError("--nagios is a format of its own: no --format, --json or --fix-sql with it")
    if nagios and run.entry is not None:
        raise InputError("--nagios prints one line about one database", hint="name it with --database")
    choice = {
        "role": role,
        "store": run.pipeline(store=store).store or "memory",
        "slot": slot,
        "provider": provider,
        "only": only,
        "skip": skip,
        "probe": probe,
        "upgrade": upgrade,
    }
    if nagios:
        return _watch(run, publication, choice, fail_on)
    report = _examine(run, publication, choice)
    if fix_sql:
        run.print_script(report.fix_sql())
    elif run.output_format == "table":
        _print(output.console(run.color), report)
    else:
        output.emit(report.document(), output_format=run.output_format, color=run.color, table=lambda: "")
    if report.error is not None:
        run.report.exception(report.error)
        return ExitCode.CONNECT
    return ExitCode.FINDINGS if report.fails(fail_on) else ExitCode.OK


def _examine(run: Run, publication: str | None, choice: dict[str, Any]) -> Report:
    from pgrepl import doctor as library

    named = run.publication(publication)
    # Where a connection string says which server is meant, a configuration that lies about has nothing to say.
    entries = run.config.databases if run.database is not None or run.config_path is not None else ()
    databases = [
        library.ConfiguredDatabase(entry.name, entry.identity, str(entry.settings["port"].value)) for entry in entries
    ]
    return library.run(run.target, publications=() if named is None else (named,), databases=databases, **choice)


def _watch(run: Run, publication: str | None, choice: dict[str, Any], fail_on: FailOn) -> int:
    from pgrepl.cli import nagios

    try:
        report = _examine(run, publication, choice)
    except (PgreplError, TimeUp) as error:
        # A plugin that cannot do its work says so on stdout, and 2 would mean that the server is in danger.
        line, code = nagios.unknown(str(error))
    else:
        line, code = nagios.line(report, fail_on)
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
    return code


def _print(console: Console, report: Report) -> None:
    # Lines are broken here and not by rich, which would break a fix in the middle of a name, or cut it off.
    for line in _lines(report, console.width, terminal=sys.stdout.isatty(), unicode="utf" in console.encoding):
        console.print(line, soft_wrap=True)
    console.file.flush()


def _lines(report: Report, width: int, *, terminal: bool, unicode: bool) -> list[Text]:
    from rich.text import Text

    lines = [Text(line) for line in _wrap(_headline(report), width, "")]
    indent = " " * (6 + max((len(finding.id) for finding in report.findings), default=0))
    for prefix, group in groupby(report.findings, key=lambda finding: finding.id.split(".")[0]):
        lines += [Text(""), Text(_GROUPS.get(prefix, prefix), style="bold")]
        for check_id, same in groupby(group, key=lambda finding: finding.id):
            findings = list(same)
            shown = findings[:_SHOWN_OBJECTS] if terminal else findings
            for finding in shown:
                lines += _finding_lines(finding, indent, width, terminal=terminal, unicode=unicode)
            if len(shown) < len(findings):
                rest = f"and {len(findings) - len(shown)} more of {check_id}: --json or --fix-sql shows them all"
                lines += [Text(line, style="dim") for line in _wrap(indent + rest, width, indent)]
    return [*lines, Text(""), *_summary(report, width)]


def _headline(report: Report) -> str:
    server = report.server
    if server.version is None:
        return "no server"
    parts = [f"PostgreSQL {server.version} ({server.provider})", f"database {server.database}", f"role {report.role}"]
    if report.publications:
        several = "s" if len(report.publications) > 1 else ""
        parts.append(f"publication{several} {', '.join(report.publications)}")
    return _printable(", ".join(parts))


def _finding_lines(finding: Finding, indent: str, width: int, *, terminal: bool, unicode: bool) -> list[Text]:
    from rich.text import Text

    symbol, plain, style = _MARKS[finding.status.value]
    # An object that the summary names already need not stand there twice.
    subject = f"{finding.object}: " if finding.object and finding.object not in finding.summary.split() else ""
    head = f"  {symbol if unicode else plain} {finding.id}"
    wrapped = _wrap(f"{head:{len(indent)}}{_printable(subject + finding.summary)}", width, indent)
    lines = [Text(line, style="dim" if style == "dim" else "") for line in wrapped]
    lines[0].stylize(style, 2, len(head) if finding.status.value in ("fail", "warn", "unknown") else 3)
    for step in finding.fix:
        text = step.text if not terminal or len(step.text) <= _SHOWN_FIX else step.text[:_SHOWN_FIX] + " … (--fix-sql)"
        head = f"{_FIX_INDENT}{_VERBS[step.kind]}  "
        whole = head + _printable(text)
        # SQL and commands stay on one line, to be copied.
        broken = _wrap(whole, width, " " * len(head)) if step.kind == "action" else [whole]
        first, *rest = map(Text, broken)
        first.stylize("cyan", len(_FIX_INDENT), len(head))
        lines += [first, *rest]
    return lines


def _summary(report: Report, width: int) -> list[Text]:
    from rich.text import Text

    counts = {finding.status.value: report.count(finding.status) for finding in report.findings}
    words = {"pass": "passed", "info": "for information", "warn": "to look at", "fail": "failed", "skip": "skipped"}
    parts = [f"{counts[status]} {word}" for status, word in words.items() if status in counts]
    shown = [", ".join(parts)] if parts else []
    if report.unseen:
        shown.append(f"{len(report.unseen)} could not run: {', '.join(report.unseen)}")
    text = "; ".join(shown)
    if report.grants:
        text += f" ({_printable(' '.join(report.grants))} would let {'it' if len(report.unseen) == 1 else 'them'})"
    style = "bold red" if counts.get("fail") else "bold"
    return [Text(line, style=style) for line in _wrap(text, width, "")]


def _wrap(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        max(width, len(indent) + 30),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
        replace_whitespace=False,
    ) or [""]


def _printable(text: str) -> str:
    """Show what a terminal would obey as its escape: a name may hold anything."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
