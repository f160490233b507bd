"""``pgrepl migrations``: the tables and functions that supabase/etl and what is built on it keep in schema ``etl``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from pgrepl.cli.completion import complete_directories, complete_migrations
from pgrepl.cli.diagnostics import EXIT_CODES_HELP, ExitCode
from pgrepl.cli.options import Run, command_options
from pgrepl.errors import OperationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from pgrepl.migrations import MigrationStatus, Mismatch

_STYLES = {"applied": "green", "seeded": "green", "missing": "yellow"}


def _epilog(example: str) -> str:
    return f"\b\nExample: {example}\n\n{EXIT_CODES_HELP}"


@click.group(epilog=_epilog("pgrepl migrations status"))
def migrations() -> None:
    """Make, check and record the etl schema that supabase/etl and pgsense-rs keep their state in."""


@migrations.command(epilog=_epilog("pgrepl migrations status --json -d 'host=db1 dbname=orders'"))
@command_options()
def status(run: Run) -> int:
    """Say how each migration stands.

    Exit code 1 unless all are applied or seeded. checksum-mismatch and unknown are what supabase/etl refuses to start
    on; objects-missing is recorded, but not there.
    """
    from pgrepl import connection
    from pgrepl import migrations as library

    with connection.connect(run.target, "pgrepl migrations") as conn:
        statuses = library.status(conn)
    _print_statuses(run, statuses)
    for found in statuses:
        if not found.is_good:
            run.report.notice(f"version {found.version}: {_advice(found)}")
    return ExitCode.OK if all(found.is_good for found in statuses) else ExitCode.FINDINGS


@migrations.command(epilog=_epilog("pgrepl migrations apply --dry-run | psql -d orders"))
@click.option(
    "--to", type=int, metavar="VERSION", help="Go no further than this version.", shell_complete=complete_migrations
)
@click.option("--dry-run", is_flag=True, help="Print the SQL, change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask on a terminal.")
@command_options()
def apply(run: Run, to: int | None, dry_run: bool, yes: bool) -> int:
    """Run and record the migrations that are missing.

    Each runs in a transaction of its own and is recorded as supabase/etl does. The data of a database that stopped at
    an earlier version are kept. What the connected role may not do, as a rule the event trigger of the third version,
    is printed as a script for psql.
    """
    from pgrepl import connection
    from pgrepl import migrations as library

    with connection.connect(run.target, "pgrepl migrations") as conn:
        if dry_run or (not yes and sys.stdin.isatty()):
            planned = library.plan(conn, to=to)
            if dry_run:
                script = library.dry_run_script(planned)
                _print_result(run, library.status(conn), (), None, script)
                return ExitCode.FINDINGS if any(step.obstacle for step in planned.steps) else ExitCode.OK
            _ask(planned.database, "Apply", [step.migration.version for step in planned.steps])
        outcome = library.apply(conn, to=to)
        _print_result(run, library.status(conn), outcome.applied, outcome.needs, None)
    for step in outcome.left:
        run.report.warning(f"version {step.migration.version} is left: {step.obstacle or 'the one before it is'}")
    if outcome.left:
        run.report.warning("nothing of it was changed", hint="have the script run by psql as a superuser")
        return ExitCode.FINDINGS
    return ExitCode.OK


@migrations.command(epilog=_epilog("pgrepl migrations seed --checksums ./etl/migrations"))
@click.option(
    "--checksums",
    "source",
    is_flag=False,
    flag_value="pinned",
    default="pinned",
    metavar="[SOURCE]",
    help="'pinned', which is the default: the published checksums; or a directory of supabase/etl's .sql files.",
    shell_complete=complete_directories,
)
@click.option("--accept-revision", is_flag=True, help="Take the directory's checksums also if they are others.")
@click.option("--dry-run", is_flag=True, help="Print the SQL, change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask on a terminal.")
@command_options()
def seed(run: Run, source: str, accept_revision: bool, dry_run: bool, yes: bool) -> int:
    """Record migrations whose objects are there.

    supabase/etl and pgsense-rs then accept the database. Refused, with nothing written, when something is missing or
    recorded with another checksum.
    """
    from pgrepl import connection
    from pgrepl import migrations as library
    from pgrepl.migrations import files

    if source == "pinned":
        if accept_revision:
            raise click.UsageError("--accept-revision goes with a directory: --checksums DIR")
        checksums = library.PINNED
    else:
        checksums = library.accept(files.checksums(source), any_revision=accept_revision)
    with connection.connect(run.target, "pgrepl migrations") as conn:
        if dry_run or (not yes and sys.stdin.isatty()):
            planned = library.plan_seed(conn, checksums)
            if dry_run:
                _print_result(run, library.status(conn), (), None, planned.script)
                return ExitCode.OK
            _ask(planned.database, "Record", planned.versions)
        recorded = library.seed(conn, checksums)
        _print_result(run, library.status(conn), recorded, None, None)
    return ExitCode.OK


@migrations.command(epilog=_epilog("pgrepl migrations verify ./etl/migrations"))
@click.argument("directory", required=False, metavar="[DIR]", shell_complete=complete_directories)
@command_options()
def verify(run: Run, directory: str | None) -> int:
    """Compare records, published checksums, files and catalog.

    DIR holds supabase/etl's own .sql files. Exit code 1 on any difference.
    """
    from pgrepl import connection
    from pgrepl import migrations as library
    from pgrepl.catalog.etl_manifest import REVISION
    from pgrepl.cli import output
    from pgrepl.migrations import files

    checksums = files.checksums(directory) if directory is not None else None
    with connection.connect(run.target, "pgrepl migrations") as conn:
        found = library.verify(conn, checksums)
    document = {
        "revision": REVISION,
        "migrations": [status.document() for status in found.statuses],
        "differences": [mismatch.document() for mismatch in found.mismatches],
    }
    if not found.mismatches:
        run.report.notice("no difference")
    if found.mismatches or run.output_format != "table":
        output.emit(
            document, output_format=run.output_format, color=run.color, table=lambda: _mismatches(found.mismatches)
        )
    return ExitCode.FINDINGS if found.mismatches else ExitCode.OK


@migrations.command(epilog=_epilog("pgrepl migrations sql 20260415100000"))
@click.argument("version", type=int, required=False, metavar="[VERSION]", shell_complete=complete_migrations)
@command_options(connects=False, formats=False, timeout=False)
def sql(run: Run, version: int | None) -> None:
    """Print the SQL for somebody else to run.

    It is that of one migration, or of all, in pgrepl's own words; no server is needed. It records nothing: pgrepl
    migrations seed does, afterwards.
    """
    from pgrepl import migrations as library

    sys.stdout.write(library.sql(version))


def _advice(status: MigrationStatus) -> str:
    if status.failed:
        return "recorded as failed: look what it left, then delete its row"
    if status.state == "unknown":
        return "of another revision; supabase/etl at this one would not start"
    if status.state == "missing":
        if status.objects_there:
            return "there, but not recorded: pgrepl migrations seed"
        return "missing: pgrepl migrations apply"
    return "not as published: pgrepl migrations verify shows what differs"


def _ask(database: str, what: str, versions: Sequence[int]) -> None:
    if versions and not click.confirm(f"{what} {', '.join(map(str, versions))} in database {database}?", err=True):
        raise OperationError("not confirmed, nothing was changed")


def _print_statuses(run: Run, statuses: Sequence[MigrationStatus]) -> None:
    from pgrepl.cli import output

    output.emit(_document(statuses), output_format=run.output_format, color=run.color, table=lambda: _table(statuses))


def _print_result(
    run: Run, statuses: Sequence[MigrationStatus], done: Sequence[int], needs: str | None, script: str | None
) -> None:
    """Print what was done and how things stand now; of a dry run, and of what is left, the script."""
    from pgrepl.cli import output

    if run.output_format != "table":
        document = {**_document(statuses), "done": list(done), "needs": needs, "script": script}
        output.emit(document, output_format=run.output_format, color=run.color, table=lambda: "")
    elif script is not None:
        sys.stdout.write(script)
    else:
        _print_statuses(run, statuses)
        if needs is not None:
            sys.stdout.write("\n" + needs)
        if done or needs is None:
            run.report.notice(f"done: {', '.join(map(str, done))}" if done else "nothing to do")


def _document(statuses: Sequence[MigrationStatus]) -> dict[str, Any]:
    from pgrepl.catalog.etl_manifest import REVISION

    return {"revision": REVISION, "migrations": [status.document() for status in statuses]}


def _table(statuses: Sequence[MigrationStatus]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("version", "description", "state"):
        table.add_column(name, no_wrap=name != "description")
    table.add_column("checksum", overflow="fold")
    for status in statuses:
        expected, recorded = status.expected_checksum, status.recorded_checksum
        if expected == recorded:
            checksum = f"{expected}"
        else:
            checksum = f"recorded {recorded or 'none'}\nexpected {expected or 'none'}"
        style = _STYLES.get(status.state, "bold red")
        table.add_row(str(status.version), status.description, Text(status.state, style), checksum)
    return table


def _mismatches(mismatches: Sequence[Mismatch]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("version", "what"):
        table.add_column(name, no_wrap=name == "version", overflow="fold")
    for name in ("expected", "found"):
        table.add_column(name, overflow="fold", ratio=1)
    for mismatch in mismatches:
        what = mismatch.object or mismatch.subject
        table.add_row(str(mismatch.version), what, mismatch.expected or "none", mismatch.found or "none")
    return table
