"""``pgrepl setup``: get a server ready for logical replication."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import click

from pgrepl.cli.completion import complete_files, complete_publications
from pgrepl.cli.diagnostics import EXIT_CODES_HELP, ExitCode
from pgrepl.cli.options import DURATION, TABLE_NAME, Run, command_options, read_password_file
from pgrepl.errors import InputError, OperationError

_PASSWORD_VARIABLE = "PGREPL_ROLE_PASSWORD"  # noqa: S105  the variable's name


@click.command(epilog=EXIT_CODES_HELP)
@click.argument("publication", required=False, shell_complete=complete_publications)
@click.option("--role", metavar="NAME", help="The role that is to read the publication; made when it is not there.")
@click.option(
    "--password-file",
    metavar="FILE",
    help="Read a new role's password from a file; without it and --password-prompt from PGREPL_ROLE_PASSWORD.",
    shell_complete=complete_files,
)
@click.option("--password-prompt", is_flag=True, help="Ask for it.")
@click.option("--reset-password", is_flag=True, help="Set the password also of a role that exists.")
@click.option("--all-tables", is_flag=True, help="Publish every table but those of schema etl.")
@click.option("--literally-all", is_flag=True, help="Publish FOR ALL TABLES, whatever there is.")
@click.option("--table", "tables", type=TABLE_NAME, multiple=True, help="Publish this table; may be repeated.")
@click.option("--in-schema", "schemas", metavar="SCHEMA", multiple=True, help="Publish a schema; may be repeated.")
@click.option("--publish", metavar="OPS", help="Of insert,update,delete,truncate; default: all.")
@click.option(
    "--via-root/--no-via-root",
    default=None,
    help="Publish partitions under their root's name; default: yes in a new publication.",
)
@click.option("--skip-keyless", is_flag=True, help="Leave out tables without a usable replica identity.")
@click.option(
    "--store",
    type=click.Choice(["memory", "postgres", "bookmarks"]),
    help="Make what this store needs: functions for pgsense-rs, tables of schema etl, a table of bookmarks; default:"
    " what the configuration says, else nothing.  [env: PGREPL_STORE]",
)
@click.option(
    "--state-dsn",
    metavar="DSN",
    help="The database for the bookmarks; default: the configured one, else the same.  [env: PGREPL_STATE_DSN]",
)
@click.option(
    "--state-table",
    metavar="NAME",
    help="The table of bookmarks; default: the configured one, else faucet_state.  [env: PGREPL_STATE_TABLE]",
)
@click.option(
    "--only",
    type=click.Choice(["check", "role", "publication", "schema", "migrations"]),
    help="Do this part alone, after the checks.",
)
@click.option("--lock-timeout", type=DURATION, default="5s", show_default=True, help="Wait no longer for a lock.")
@click.option("--dry-run", is_flag=True, help="Print the SQL, change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask; needed without a terminal.")
@command_options(all_databases=True)
def setup(
    run: Run,
    publication: str | None,
    password_file: str | None,
    password_prompt: bool,
    publish: str | None,
    lock_timeout: float,
    dry_run: bool,
    yes: bool,
    state_dsn: str | None,
    state_table: str | None,
    **options: Any,
) -> int:
    """Get a server ready for logical replication: checks, a least-privileged role, a publication, a place for state.

    What exists stays and what is missing is added, all in one transaction; nothing is dropped or weakened. What the
    connected role may not do is left out and printed as a script for psql.

    \b
    Example: pgrepl setup orders_pub --role cdc --table shop.orders --table shop.items
    """
    from pgrepl import connection, provision
    from pgrepl.cli import plans as plans_output

    needs_consent = not dry_run and options["only"] != "check"
    if needs_consent and not yes and not sys.stdin.isatty():
        raise InputError(
            "setup changes the server, and there is no terminal to ask on", hint="give --yes, or --dry-run"
        )
    if options["role"] is None and (password_file or password_prompt):
        raise InputError("no role is named", hint="name it with --role")
    pipeline = run.pipeline(store=options.pop("store"), state_table=state_table)
    keeps_bookmarks = pipeline.store == "bookmarks"
    state = run.state_target(state_dsn) if keeps_bookmarks or state_dsn is not None else None
    wanted = provision.Wanted(
        publication=run.publication(publication) or provision.DEFAULT_PUBLICATION,
        password=_password(options["role"], password_file, password_prompt),
        tables=tuple(options.pop("tables")),
        schemas=tuple(map(_schema, options.pop("schemas"))),
        store=pipeline.store,
        # What is configured for another store than the one that is wanted is no contradiction; a flag is.
        state_table=pipeline.state_table if keeps_bookmarks or state_table is not None else provision.DEFAULT_BOOKMARKS,
        state_elsewhere=state is not None,
        publish=None if publish is None else tuple(part.strip() for part in publish.split(",") if part.strip()),
        **options,
    )
    with ExitStack() as connections:
        conn = connections.enter_context(connection.connect(run.target, "pgrepl setup"))
        other = None
        if state is not None and wanted.only in (None, "schema"):
            other = connections.enter_context(connection.connect(state, "pgrepl setup"))
            if provision.is_same_database(conn, other):
                wanted, other = replace(wanted, state_elsewhere=False), None
        plans = [(conn, provision.plan(conn, wanted))]
        if other is not None:
            plans.append((other, provision.plan_bookmarks(other, wanted, plans[0][1])))
        if needs_consent and not yes and any(plan.has_work for _, plan in plans):
            databases = " and ".join(plan.database for _, plan in plans)
            plans_output.preview(run, [plan for _, plan in plans])
            if not click.confirm(f"Set up database {databases} like this?", err=True):
                raise OperationError("not confirmed, nothing was changed")
        if not dry_run:
            plans = [(each, provision.apply(each, plan, lock_timeout=lock_timeout)) for each, plan in plans]
    done = [plan for _, plan in plans]
    plans_output.show(run, done, lock_timeout if dry_run else None)
    for note in [note for plan in done for note in plan.notes]:
        run.report.warning(note.text, hint=note.hint)
    if any(plan.left_out for plan in done):
        run.report.warning(
            "what the connected role may not do is left",
            hint="have the script run by psql as a superuser, then run setup again",
        )
        return ExitCode.FINDINGS
    return ExitCode.OK


def _password(role: str | None, file: str | None, prompt: bool) -> str | None:
    if file and prompt:
        raise InputError("--password-file and --password-prompt exclude each other")
    if file:
        return read_password_file(file)
    if prompt:
        if not sys.stdin.isatty():
            raise InputError(
                "--password-prompt needs a terminal", hint=f"use --password-file FILE or {_PASSWORD_VARIABLE}"
            )
        password: str = click.prompt(
            f"Password for role {role}", hide_input=True, confirmation_prompt="The same again", err=True
        )
        return password
    return os.environ.get(_PASSWORD_VARIABLE) if role is not None else None


def _schema(name: str) -> str:
    """Take a schema's name as it stands in the catalog, or in double quotes as SQL has it."""
    return name[1:-1].replace('""', '"') if len(name) > 2 and name[0] == name[-1] == '"' else name
