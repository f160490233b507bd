"""A pipeline that has run once, and what must not change when the next run refuses to go on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from pgrepl import migrations
from pgrepl.stores.tables import CREATE_PIPELINES
from tests.command import eventually
from tests.servers.database import Database
from tests.tail.running import Finished, Tail, run_tail

SLOTS = """
    SELECT slot_name::text, confirmed_flush_lsn::text FROM pg_replication_slots
     WHERE database = current_database() ORDER BY 1
"""
_PIPELINES = (
    "SELECT pipeline_id, slot_name, system_identifier, timeline, position::text, attempts FROM etl.pgrepl_pipelines"
)
_STATES = "SELECT id, pipeline_id, table_id, metadata, is_current FROM etl.replication_state ORDER BY id"
POSTGRES = ("pub", "--store", "postgres")


def everything(connection: psycopg.Connection) -> list[Any]:
    """Read the slots with their positions, and all that is stored."""
    return [connection.execute(query).fetchall() for query in (SLOTS, _PIPELINES, _STATES)]


def prepare(database: Database) -> None:
    """Make a table with one row, its publication, and the schema of the state."""
    database.psql("""
        CREATE TABLE t (id int PRIMARY KEY, filler text);
        INSERT INTO t VALUES (1);
        CREATE PUBLICATION pub FOR TABLE t;
    """)
    with database.connect() as connection:
        migrations.apply(connection)
        connection.execute(CREATE_PIPELINES)


def ran_once(database: Database, *options: str) -> str:
    """Prepare a database and let a pipeline come to the end of its first run; gives the name of its slot."""
    prepare(database)
    finished = run_tail(*POSTGRES, "--until-lsn", "now", *options, dsn=database.dsn())
    assert finished.code == 0, finished.stderr
    return slot_of(database)


def slot_of(database: Database) -> str:
    """Name the one slot of a database."""
    with database.connect() as connection:
        ((name, _),) = connection.execute(SLOTS).fetchall()
    return str(name)


def refused(finished: Finished, code: int, message: str, hint: str) -> None:
    """Check that the run ended with one error line that holds ``message``, and a hint that holds ``hint``."""
    errors = [line for line in finished.stderr.splitlines() if "pgrepl: error: " in line]
    hints = finished.stderr.splitlines()[-1:]
    assert finished.code == code, finished.stderr
    assert len(errors) == 1, finished.stderr
    assert message in errors[0]
    assert hints[0].startswith("hint: "), finished.stderr
    assert hint in hints[0]
    assert "Traceback" not in finished.stderr


def refuses(database: Database, *arguments: str, code: int, message: str, hint: str, **more: Any) -> Finished:
    """Run tail, check that it refuses, prints nothing, and leaves slots and state as they were."""
    with database.connect() as connection:
        before = everything(connection)
        finished = run_tail(*arguments, **{"dsn": database.dsn(), **more})
        refused(finished, code, message, hint)
        assert finished.stdout == ""
        assert everything(connection) == before
    return finished


@contextmanager
def frozen(tail: Tail, database: Database, slot: str) -> Iterator[psycopg.Connection]:
    """Hold a tail still, with its replication connection ended, while something happens to its slot or server."""
    tail.send(signal.SIGSTOP)
    try:
        with database.connect() as connection:
            cut(connection, slot)
            yield connection
    finally:
        tail.send(signal.SIGCONT)


def cut(connection: psycopg.Connection, slot: str) -> None:
    """End the walsender of a slot, and wait until it is gone."""
    end = "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots WHERE slot_name = %s AND active"
    connection.execute(end, [slot])
    active = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"
    eventually(lambda: connection.execute(active, [slot]).fetchone() != (True,))
