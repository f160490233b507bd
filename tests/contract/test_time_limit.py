"""--timeout: whatever a command waits for, it ends, and leaves nothing running at the server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.command import eventually, pgrepl
from tests.servers.database import Database

RUNNING = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pgrepl%'"


@pytest.fixture
def locked(database18: Database) -> Iterator[Database]:
    """A database with a published table that nobody can look at, as during an ALTER TABLE."""
    # No catalog: new connections may wait for those, too.
    database18.psql("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE t")
    with database18.connect() as connection, connection.transaction():
        connection.execute("LOCK TABLE t")
        yield database18


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["doctor"], 4),
        (["doctor", "--json"], 4),
        # 2 would mean that the server is in danger.
        (["doctor", "--nagios"], 3),
        (["publications", "list"], 4),
        (["publications", "list", "--json"], 4),
    ],
)
def test_a_lock(arguments: list[str], code: int, locked: Database) -> None:
    began = time.monotonic()
    done = pgrepl(*arguments, "-d", locked.dsn(), "--timeout", "2s")
    assert time.monotonic() - began < 10
    if "--nagios" in arguments:
        assert (done.returncode, done.stdout) == (code, "PGREPL UNKNOWN: not done after 2 s\n")
    else:
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr == "pgrepl: error: not done after 2 s\nhint: --timeout sets the limit\n"
    # While the lock is still held: a query that nobody cancels waits on.
    with locked.connect() as connection:
        eventually(lambda: connection.execute(RUNNING).fetchone() is None)


def test_a_question() -> None:
    code = "import click; from pgrepl.cli.limit import time_limit\nwith time_limit(0.2): click.confirm('sure')"
    reader, writer = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], stdin=reader, capture_output=True, text=True, timeout=30, check=False
        )
    finally:
        os.close(reader)
        os.close(writer)
    assert "TimeLimitError: not done after 0.2 s" in done.stderr
