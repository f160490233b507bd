"""Carrying out what the doctor prints, and states of slots to be found by it."""

from __future__ import annotations

import re
import shlex
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from pgrepl.cli.main import cli
from pgrepl.conninfo import parse
from pgrepl.doctor import Finding, Report
from pgrepl.lsn import Lsn
from pgrepl.replication.walsender import Walsender
from tests.command import pgrepl
from tests.doctor.conftest import examine, of, one
from tests.servers.database import Database

_ASKING = ("slots drop", "state reset")


def ask(check_id: str, database: Database, *publications: str, **options: Any) -> Finding:
    """Run one check, with those that it needs, and return its only finding."""
    return one(examine(database, *publications, only=[check_id], **options), check_id)


def ask_about(check_id: str, name: str, database: Database, *publications: str, **options: Any) -> Finding:
    """Run one check and return its only finding about one object; other tests' slots are on the same server."""
    return about(examine(database, *publications, only=[check_id], **options), check_id, name)


def is_silent(check_id: str, name: str, database: Database, *publications: str, **options: Any) -> bool:
    """Whether a check has nothing to say about an object."""
    findings = of(examine(database, *publications, only=[check_id], **options), check_id)
    assert findings
    return all(finding.object != name for finding in findings)


def about(report: Report, check_id: str, name: str) -> Finding:
    """The only finding of a check about one object."""
    (finding,) = [finding for finding in of(report, check_id) if finding.object == name]
    return finding


def sql_of(finding: Finding) -> list[str]:
    """The SQL of a fix."""
    return [step.text for step in finding.fix if step.kind == "sql"]


def commands_of(finding: Finding) -> list[str]:
    """The commands of a fix; those of pgrepl are ones that it takes."""
    commands = [step.text for step in finding.fix if step.kind == "command"]
    for command in commands:
        words = shlex.split(command)
        if words[0] == "pgrepl":
            check_command(words[1:])
        else:
            assert words[0] == "psql"
    return commands


def check_command(words: list[str]) -> None:
    """Fail unless the command line takes these words; the bookmarks store is in its contract, and still to come."""
    command: click.Command = cli
    rest = list(words)
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), rest.pop(0))
        assert found is not None, words
        command = found
    command.make_context("pgrepl", [word.replace("bookmarks", "postgres") for word in rest])


def in_actions(finding: Finding) -> list[str]:
    """The SQL that the actions of a fix name."""
    actions = [step.text for step in finding.fix if step.kind == "action"]
    return [sql for text in actions for sql in re.findall(r"(?:SELECT|COMMIT|ROLLBACK|DELETE)\b[^;]*;", text)]


def run_sql(database: Database, finding: Finding) -> None:
    """Run the SQL of a fix in psql, as it is printed."""
    assert sql_of(finding)
    database.psql("\n".join(sql_of(finding)))


def run_command(database: Database, command: str) -> None:
    """Run a command as it is printed, on this database; one that asks is told yes."""
    words = shlex.split(command)
    if words[0] == "psql":
        program = str(database.server.bindir / "psql")
        done = subprocess.run([program, *words[1:]], capture_output=True, text=True, check=False)
    else:
        assert words[0] == "pgrepl"
        yes = ["--yes"] if " ".join(words[1:3]) in _ASKING and "--dry-run" not in words else []
        done = pgrepl(*words[1:], "-d", database.dsn(), *yes)
    assert done.returncode == 0, done.stderr


def fresh_name() -> str:
    """A name for a slot that no other test uses: slots belong to the whole server."""
    return f"s_{uuid.uuid4().hex[:12]}"


def make_slot(database: Database, name: str, plugin: str = "pgoutput", *, two_phase: bool = False) -> None:
    """Create a logical slot."""
    with database.connect() as conn:
        conn.execute("SELECT pg_create_logical_replication_slot(%s, %s, false, %s)", [name, plugin, two_phase])


def write_wal(database: Database, segments: int) -> None:
    """Fill some segments of WAL, of 16 MB each."""
    with database.connect() as conn:
        for _ in range(segments):
            conn.execute("SELECT pg_logical_emit_message(false, 'filler', 'x')")
            conn.execute("SELECT pg_switch_wal()")


@contextmanager
def reading(database: Database, name: str) -> Iterator[Walsender]:
    """Stream a slot without ever reading, as ``somebody``."""
    walsender = Walsender.open(parse(database.dsn(application_name="somebody"), "the test"), "unused")
    try:
        walsender.start_replication(name, Lsn(0), ["p"])
        yield walsender
    finally:
        walsender.close()
