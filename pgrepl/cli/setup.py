"""``pgrepl setup``: get a server ready for logical replication."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from pgrepl.cli import plans
from pgrepl.cli.completion import complete_files, complete_publications
from pgrepl.cli.diagnostics import EXIT_CODES_HELP
from pgrepl.cli.options import DURATION, TABLE_NAME, Run, command_options, read_password_file
from pgrepl.errors import InputError

_PASSWORD_VARIABLE = "PGREPL_ROLE_PASSWORD"  # noqa: S105  the variable's name


@click.command(epilog=EXIT_CODES_HELP)
@click.argument("publication", required=False, shell_complete=complete_publications)
@click.option("--role", metavar="NAME", help="The role that is to read the publication; made when it is not there.")
@click.option(
    "--password-file",
    metavar="FILE",
    help="Read a new role's password from a file.",
    shell_complete=complete_files,
)
@click.option("--password-prompt", is_flag=True, help="Ask for it.  [env: PGREPL_ROLE_PASSWORD]")
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
    "--only", type=click.Choice(["check", "role", "publication"]), help="Do this part alone, after the checks."
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
    **options: Any,
) -> int:
    """Get a server ready for logical replication: checks, a role with the least privileges, a publication.

    What exists stays and what is missing is added, all in one transaction; nothing is dropped or weakened. What the
    connected role may not do is left out and printed as a script for psql.

    \b
    Example: pgrepl setup orders_pub --role cdc --table shop.orders --table shop.items
    """
    from pgrepl import connection, provision

    needs_consent = not dry_run and options["only"] != "check"
    if needs_consent and not yes and not sys.stdin.isatty():
        raise InputError(
            "setup changes the server, and there is no terminal to ask on", hint="give --yes, or --dry-run"
        )
    if options["role"] is None and (password_file or password_prompt):
        raise InputError("no role is named", hint="name it with --role")
    wanted = provision.Wanted(
        publication=run.publication(publication) or provision.DEFAULT_PUBLICATION,
        password=_password(options["role"], password_file, password_prompt),
        tables=tuple(options.pop("tables")),
        schemas=tuple(map(_schema, options.pop("schemas"))),
        publish=None if publish is None else tuple(part.strip() for part in publish.split(",") if part.strip()),
        **options,
    )
    with connection.connect(run.target, "pgrepl setup") as conn:
        plan = provision.plan(conn, wanted)
        if needs_consent and not yes and plan.has_work:
            plans.ask(run, [plan], f"Set up database {plan.database} like this?")
        if not dry_run:
            plan = provision.apply(conn, plan, lock_timeout=lock_timeout)
    return plans.emit(run, [plan], command="setup", dry_run_lock_timeout=lock_timeout if dry_run else None)


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
