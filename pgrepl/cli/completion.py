"""Completion of names that only the server knows: publications and slots.

Each function is a ``shell_complete`` callback of click. It connects with what has been typed so far (``--dsn``,
``--config``, ``--database``) or stands in the environment, and gives nothing, silently, when no answer comes in time.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from pgrepl.errors import PgreplError

if TYPE_CHECKING:
    import psycopg
    from click.shell_completion import CompletionItem

    from pgrepl.conninfo import ConnectionTarget

# With the start of the program a person who pressed the tab key waits less than a second.
_SECONDS = 0.6


def complete_publications(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of one publication."""
    return [name for name, _ in _ask(ctx, _publications) if name.startswith(incomplete)]


def complete_publication_list(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the last name of publications that are separated by commas."""
    *typed, last = incomplete.split(",")
    names = [name for name, _ in _ask(ctx, _publications) if name.startswith(last) and name not in typed]
    return [",".join([*typed, name]) for name in names]


def complete_slots(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Complete the name of a slot, beside which shells that can do so show its verdict."""
    from click.shell_completion import CompletionItem

    typed = ctx.params.get(param.name or "") or ()
    return [
        CompletionItem(name, help=verdict)
        for name, verdict in _ask(ctx, _slots)
        if name.startswith(incomplete) and name not in typed
    ]


def complete_checks(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the id of a check."""
    from pgrepl.doctor import check_ids

    return [name for name in check_ids() if name.startswith(incomplete)]


def complete_databases(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of a configured database."""
    from pgrepl import config

    try:
        entries = config.load(ctx.params.get("config_path") or None).databases
    except PgreplError:
        return []
    return [entry.name for entry in entries if entry.name.startswith(incomplete) and entry.name.isprintable()]


def complete_files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Let the shell complete the path of a file."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def complete_directories(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Let the shell complete the path of a directory."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="dir")]


def complete_migrations(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Complete the version of a migration, beside which shells that can do so show what it is."""
    from click.shell_completion import CompletionItem

    from pgrepl.catalog.etl_manifest import MIGRATIONS

    known = [(str(migration.version), migration.description) for migration in MIGRATIONS]
    return [CompletionItem(version, help=text) for version, text in known if version.startswith(incomplete)]


def _publications(connection: psycopg.Connection) -> list[tuple[str, str]]:
    from pgrepl.catalog import publications

    return [(publication.name, "") for publication in publications.all_of(connection)]


def _slots(connection: psycopg.Connection) -> list[tuple[str, str]]:
    from pgrepl.catalog import slots

    return [(slot.name, slot.verdict.text) for slot in slots.all_of(connection)]


def _ask(ctx: click.Context, question: Callable[[psycopg.Connection], list[tuple[str, str]]]) -> list[tuple[str, str]]:
    """Ask the server in a process of its own, which can be ended at any time: a look-up of a host's name cannot."""
    try:
        target = _target(ctx)
    except PgreplError:
        return []
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, json.dumps(_answer(target, question)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    try:
        return [(name, text) for name, text in json.loads(_read(reading) or b"[]") if name.isprintable()]
    except ValueError:
        return []
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _target(ctx: click.Context) -> ConnectionTarget:
    from pgrepl.cli.diagnostics import Reporter
    from pgrepl.cli.options import Run

    typed = ctx.params
    run = Run(
        Reporter(verbosity=-1),
        "never",
        typed.get("dsn") or None,
        typed.get("config_path") or None,
        typed.get("database_name"),
    )
    return run.target


def _answer(
    target: ConnectionTarget, question: Callable[[psycopg.Connection], list[tuple[str, str]]]
) -> list[tuple[str, str]]:
    from pgrepl import connection

    with connection.connect(target, "pgrepl completion") as conn:
        return question(conn)


def _read(descriptor: int) -> bytes:
    """Read all that comes in time; what is not complete by then is nothing."""
    deadline = time.monotonic() + _SECONDS
    received = bytearray()
    while select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(descriptor, 1 << 16)
        if not part:
            return bytes(received)
        received += part
    return b""
