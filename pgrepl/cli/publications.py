"""``pgrepl publications``: what each publishes, whether that is enough, and changing it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from pgrepl.cli import plans
from pgrepl.cli.completion import complete_publications
from pgrepl.cli.diagnostics import EXIT_CODES_HELP, ExitCode
from pgrepl.cli.options import DURATION, SCHEMA_NAME, TABLE_NAME, Group, Run, command_options
from pgrepl.errors import InputError, OperationError
from pgrepl.units import size_text

if TYPE_CHECKING:
    import psycopg
    from rich.console import RenderableType
    from rich.table import Table

    from pgrepl.catalog.publications import Membership, Publication, PublishedTable
    from pgrepl.provision import Plan, Wanted
    from pgrepl.provision.coverage import Coverage, TableCoverage

_OPERATIONS = ("insert", "update", "delete", "truncate")
_IDENTITIES = {"d": "default", "n": "nothing", "f": "full", "i": "index"}
# On a terminal; what is not a terminal gets every name.
_SHOWN_NAMES = 5


def _epilog(example: str) -> str:
    return f"\b\nExample: {example}\n\n{EXIT_CODES_HELP}"


@click.group(cls=Group, epilog=_epilog("pgrepl publications list"))
def publications() -> None:
    """Show what publications publish, check that it is enough, make them, add to them and take out of them."""


@contextmanager
def _connection(run: Run) -> Iterator[psycopg.Connection]:
    from pgrepl import connection, provision

    with connection.connect(run.target, "pgrepl publications") as conn:
        provision.check_version(conn)
        yield conn


# list and show ------------------------------------------------------------------------------------------------------


@publications.command("list", epilog=_epilog("pgrepl publications list -d 'host=db1 dbname=orders'"))
@command_options(all_databases=True)
def list_(run: Run) -> None:
    """List the publications of the database, with what they publish and how many tables that is."""
    from pgrepl.catalog import publications as catalog
    from pgrepl.cli import output

    with _connection(run) as conn:
        found = catalog.all_of(conn)
        counts = catalog.table_counts(conn)
        database = conn.info.dbname
    if not found:
        run.report.notice(f"database {database} has no publication")
    if found or run.output_format != "table":
        output.emit(
            [{**_settings(each), "table_count": counts.get(each.name, 0)} for each in found],
            output_format=run.output_format,
            color=run.color,
            table=lambda: _list_table(found, counts),
        )


def _settings(publication: Publication) -> dict[str, Any]:
    return {
        "name": publication.name,
        "owner": publication.owner,
        "all_tables": publication.all_tables,
        "schemas": list(publication.schemas),
        "operations": list(publication.operations),
        "via_root": publication.via_root,
        "generated_columns": publication.generated_columns,
    }


def _list_table(found: Sequence[Publication], counts: dict[str, int]) -> Table:
    table = _quiet_table("name", "publishes", "operations", "partitions", "owner")
    table.add_column("tables", justify="right", no_wrap=True)
    for each in found:
        table.add_row(
            _printable(each.name),
            _scope(each),
            _operations(each.operations),
            "as their root" if each.via_root else "by themselves",
            _printable(each.owner),
            str(counts.get(each.name, 0)),
        )
    return table


def _quiet_table(*columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _scope(publication: Publication) -> str:
    if publication.all_tables:
        return "all tables"
    if publication.schemas:
        return _printable(f"schema{'s'[: len(publication.schemas) != 1]} {', '.join(publication.schemas)}")
    return "listed tables"


def _operations(operations: Sequence[str]) -> str:
    return "all" if tuple(operations) == _OPERATIONS else ", ".join(operations) or "none"


@publications.command("show", epilog=_epilog("pgrepl publications show orders_pub"))
@click.argument("name", shell_complete=complete_publications)
@command_options(all_databases=True)
def show(run: Run, name: str) -> None:
    """Show one publication and each table that it publishes, under the name that its changes come with."""
    from pgrepl import provision
    from pgrepl.catalog import publications as catalog
    from pgrepl.cli import output

    with _connection(run) as conn:
        publication = provision.find_publication(conn, name)
        tables = catalog.published_tables(conn, [name])
        memberships = catalog.memberships(conn, name)
    document = {
        **_settings(publication),
        "tables": [_table_document(table, memberships.get(table.oid)) for table in tables],
    }
    output.emit(
        document,
        output_format=run.output_format,
        color=run.color,
        table=lambda: _show(publication, tables, memberships),
    )


def _table_document(table: PublishedTable, membership: Membership | None) -> dict[str, Any]:
    root = membership.partition_of if membership else None
    return {
        "schema": table.schema,
        "table": table.name,
        "partitioned": table.relkind == "p",
        "partition_of": None if root is None else {"schema": root[0], "table": root[1]},
        "columns": list(table.columns),
        "left_out_columns": list(membership.left_out if membership else ()),
        "row_filter": table.row_filter,
        "replica_identity": _IDENTITIES[table.replica_identity],
        "identity_columns": list(table.identity_columns),
        "primary_key": list(table.primary_key),
        "rows": table.rows,
        "bytes": table.size,
    }


def _show(
    publication: Publication, tables: Sequence[PublishedTable], memberships: dict[int, Membership]
) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    facts = [
        f"publishes {_scope(publication)}",
        f"operations {_operations(publication.operations)}",
        f"partitions {'as their root' if publication.via_root else 'by themselves'}",
        f"owner {_printable(publication.owner)}",
    ]
    if publication.generated_columns == "stored":
        facts.insert(3, "with stored generated columns")
    head = Text.assemble((_printable(publication.name), "bold"), f": {', '.join(facts)}")
    if not tables:
        return Group(head, Text("no table is published", style="yellow"))
    return Group(head, Text(""), _tables_table(tables, memberships))


def _tables_table(tables: Sequence[PublishedTable], memberships: dict[int, Membership]) -> Table:
    """Draw a column only where one of the tables has something to say in it."""
    roots = {oid: ".".join(each.partition_of) for oid, each in memberships.items() if each.partition_of}
    left_out = {oid: ", ".join(each.left_out) for oid, each in memberships.items() if each.left_out}
    filters = {table.oid: table.row_filter for table in tables if table.row_filter}
    optional = {"partition of": roots, "without columns": left_out, "where": filters}
    shown = {name: values for name, values in optional.items() if values}
    drawn = _quiet_table("table", "replica identity", *shown)
    for name in ("rows", "size"):
        drawn.add_column(name, justify="right", no_wrap=True)
    for table in tables:
        drawn.add_row(
            _printable(table.qualified),
            _printable(_identity(table)),
            *(_printable(values.get(table.oid, "")) for values in shown.values()),
            "" if table.rows is None else f"{table.rows:,}",
            size_text(table.size),
        )
    return drawn


def _identity(table: PublishedTable) -> str:
    if table.replica_identity == "f":
        return "full"
    return ", ".join(table.identity_columns) or "none"


# coverage -----------------------------------------------------------------------------------------------------------


@publications.command(
    "coverage", epilog=_epilog("pgrepl publications coverage orders_pub --table shop.orders --table shop.items")
)
@click.argument("name", shell_complete=complete_publications)
@click.option("--table", "tables", type=TABLE_NAME, multiple=True, help="A table that is needed; may be repeated.")
@click.option("--publish", metavar="OPS", help="The operations that are needed; default: all four.")
@click.option("--ensure", is_flag=True, help="Close the gap, where the connected role may and nothing is in the way.")
@click.option("--lock-timeout", type=DURATION, default="5s", show_default=True, help="Wait no longer for a lock.")
@command_options(all_databases=True)
def coverage(
    run: Run, name: str, tables: tuple[tuple[str, str], ...], publish: str | None, ensure: bool, lock_timeout: float
) -> int:
    """Check that every change of some tables is streamed: exit code 1 unless it is.

    A partitioned table stands for all its partitions, and a table for those that inherit from it. Row filters, column
    lists and operations that are not published are gaps. --ensure adds tables and operations in one transaction, and
    makes a publication that is not there; it lifts no row filter and no column list.
    """
    from pgrepl.cli import output
    from pgrepl.provision import OPERATIONS
    from pgrepl.provision import coverage as library

    if not tables:
        raise InputError("no table is named", hint="--table SCHEMA.TABLE")
    operations = _wanted(name, publish, {}).publish or OPERATIONS
    applied: tuple[str, ...] = ()
    with _connection(run) as conn:
        if ensure:
            report, applied = library.ensure(conn, name, tables, operations=operations, lock_timeout=lock_timeout)
        else:
            report = library.inspect(conn, name, tables, operations=operations)
    output.emit(
        report.document(applied),
        output_format=run.output_format,
        color=run.color,
        table=lambda: _coverage_lines(report, applied),
    )
    if not report.exists:
        run.report.notice(f"there is no publication {name}")
    for note in report.plan.notes:
        run.report.warning(note.text, hint=note.hint)
    return ExitCode.OK if report.satisfied else ExitCode.FINDINGS


def _coverage_lines(report: Coverage, applied: Sequence[str]) -> RenderableType:
    from rich.text import Text

    rows = [("~", "green", "", statement) for statement in applied]
    rows += [("✓", "green", table.label, _published_as(table)) for table in report.present]
    rows += [("✗", "red", table.label, gap.text) for table in report.missing for gap in table.gaps]
    if report.missing_operations:
        rows.append(("✗", "red", "operations", f"{', '.join(report.missing_operations)} not published"))
    rows += [("!", "yellow", "", text) for text in report.blockers]
    width = max((len(_printable(label)) for _, _, label, _ in rows), default=0)
    lines = []
    for mark, style, label, text in rows:
        shown = f"{_printable(label).ljust(width)}  {_printable(text)}" if label else _printable(text)
        lines.append(Text.assemble((mark, style), f"  {shown.rstrip()}"))
    if report.remediation:
        lines.append(Text(f"\n{report.script().rstrip()}"))
    return Text("\n").join(lines)


def _published_as(table: TableCoverage) -> str:
    names = [".".join(name) for name in table.published_as]
    if names == [table.label]:
        return ""
    if not names:
        return "has no partition yet"
    if sys.stdout.isatty() and len(names) > _SHOWN_NAMES:
        names[_SHOWN_NAMES - 1 :] = [f"{len(names) - _SHOWN_NAMES + 1} more"]
    return f"as {', '.join(names)}"


# create, add and remove ---------------------------------------------------------------------------------------------


def _changing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every command that changes a publication."""
    for option in (
        click.option("--yes", is_flag=True, help="Do not ask; needed without a terminal."),
        click.option("--dry-run", is_flag=True, help="Print the SQL, change nothing."),
        click.option(
            "--lock-timeout", type=DURATION, default="5s", show_default=True, help="Wait no longer for a lock."
        ),
    ):
        function = option(function)
    return function


def _members(verb: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        schemas = click.option(
            "--in-schema", "schemas", type=SCHEMA_NAME, multiple=True, help=f"{verb} a schema; may be repeated."
        )
        tables = click.option(
            "--table", "tables", type=TABLE_NAME, multiple=True, help=f"{verb} this table; may be repeated."
        )
        return tables(schemas(function))

    return decorate


_SKIP_KEYLESS = click.option("--skip-keyless", is_flag=True, help="Leave out tables without a usable replica identity.")


@publications.command(
    "create", epilog=_epilog("pgrepl publications create orders_pub --table shop.orders --table shop.items")
)
@click.argument("name")
@_members("Publish")
@click.option("--all-tables", is_flag=True, help="Publish every table but those of schema etl.")
@click.option("--literally-all", is_flag=True, help="Publish FOR ALL TABLES, whatever there is.")
@click.option("--publish", metavar="OPS", help="Of insert,update,delete,truncate; default: all.")
@click.option(
    "--via-root/--no-via-root", default=None, help="Publish partitions under their root's name; default: yes."
)
@_SKIP_KEYLESS
@_changing
@command_options(all_databases=True)
def create(
    run: Run, name: str, publish: str | None, lock_timeout: float, dry_run: bool, yes: bool, **options: Any
) -> int:
    """Create a publication.

    Tables without a usable replica identity are refused while update or delete is published, since both would fail on
    them. What the connected role may not do is printed as a script for psql.
    """
    from pgrepl import provision

    wanted = _wanted(name, publish, options)
    if not wanted.names_tables:
        raise InputError(
            f"nothing is said to go into publication {name!r}",
            hint="--table SCHEMA.TABLE, --in-schema SCHEMA, --all-tables or --literally-all",
        )
    return _change(
        run,
        lambda conn: provision.plan_create(conn, wanted),
        f"Create publication {name}",
        lock_timeout=lock_timeout,
        dry_run=dry_run,
        yes=yes,
    )


@publications.command("add", epilog=_epilog("pgrepl publications add orders_pub --table shop.returns --dry-run"))
@click.argument("name", shell_complete=complete_publications)
@_members("Add")
@click.option("--all-tables", is_flag=True, help="Add every table but those of schema etl.")
@click.option("--publish", metavar="OPS", help="Publish these operations too.")
@click.option("--via-root", is_flag=True, help="Publish partitions under their root's name from now on.")
@_SKIP_KEYLESS
@_changing
@command_options(all_databases=True)
def add(
    run: Run,
    name: str,
    publish: str | None,
    via_root: bool,
    lock_timeout: float,
    dry_run: bool,
    yes: bool,
    **options: Any,
) -> int:
    """Add tables, schemas or operations to a publication; what is there already stays as it is.

    Tables without a usable replica identity are refused while update or delete is published. Of a new table the changes
    are streamed from then on, not the rows that are in it.
    """
    from pgrepl import provision

    wanted = _wanted(name, publish, {**options, "via_root": via_root or None})
    if not (wanted.names_tables or wanted.publish or wanted.via_root):
        raise InputError(
            f"nothing is said to be added to publication {name!r}",
            hint="--table SCHEMA.TABLE, --in-schema SCHEMA, --all-tables, --publish OPS or --via-root",
        )
    return _change(
        run,
        lambda conn: provision.plan_add(conn, wanted),
        f"Change publication {name}",
        lock_timeout=lock_timeout,
        dry_run=dry_run,
        yes=yes,
    )


@publications.command("remove", epilog=_epilog("pgrepl publications remove orders_pub --table shop.returns --yes"))
@click.argument("name", shell_complete=complete_publications)
@_members("Take out")
@click.option("--if-exists", is_flag=True, help="What is not in the publication is no error.")
@_changing
@command_options(all_databases=True)
def remove(
    run: Run,
    name: str,
    tables: tuple[tuple[str, str], ...],
    schemas: tuple[str, ...],
    if_exists: bool,
    lock_timeout: float,
    dry_run: bool,
    yes: bool,
) -> int:
    """Take tables or whole schemas out of a publication; their changes are not streamed from then on.

    With a table go those that inherit from it, as they came. The publication itself stays, even when nothing is left.
    """
    from pgrepl import provision

    if not (tables or schemas):
        raise InputError(
            f"nothing is said to be removed from publication {name!r}",
            hint="--table SCHEMA.TABLE or --in-schema SCHEMA",
        )
    return _change(
        run,
        lambda conn: provision.plan_remove(conn, name, tables=tables, schemas=schemas, if_exists=if_exists),
        f"Change publication {name}",
        lock_timeout=lock_timeout,
        dry_run=dry_run,
        yes=yes,
    )


def _wanted(name: str, publish: str | None, options: dict[str, Any]) -> Wanted:
    from pgrepl.provision import Wanted

    return Wanted(name, publish=_split(publish), **options)


def _split(publish: str | None) -> tuple[str, ...] | None:
    return None if publish is None else tuple(part.strip() for part in publish.split(",") if part.strip())


def _change(
    run: Run,
    make_plan: Callable[[psycopg.Connection], Plan],
    question: str,
    *,
    lock_timeout: float,
    dry_run: bool,
    yes: bool,
) -> int:
    from pgrepl import provision

    if not dry_run and not yes and not sys.stdin.isatty():
        raise InputError(
            "this changes the publication, and there is no terminal to ask on", hint="give --yes, or --dry-run"
        )
    with _connection(run) as conn:
        plan = make_plan(conn)
        if not dry_run and not yes and plan.has_work:
            plans.preview(run, [plan])
            if not click.confirm(f"{question} in database {plan.database} like this?", err=True):
                raise OperationError("not confirmed, nothing was changed")
        if not dry_run:
            plan = provision.apply(conn, plan, lock_timeout=lock_timeout)
    plans.show(run, [plan], lock_timeout if dry_run else None)
    for note in plan.notes:
        run.report.warning(note.text, hint=note.hint)
    if plan.left_out:
        run.report.warning(
            "what the connected role may not do is left",
            hint=f"have the script run by psql as a superuser, then run {plan.command} again",
        )
        return ExitCode.FINDINGS
    return ExitCode.OK


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
