"""Slots of a test's database, and readers that hold them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pgrepl.catalog import slots
from pgrepl.catalog.slots import Slot
from pgrepl.conninfo import parse
from pgrepl.lsn import Lsn
from pgrepl.replication.walsender import Walsender
from tests.servers.database import Database


@pytest.fixture
def name() -> str:
    """A name for a slot that no other test uses: slots belong to the whole server."""
    return f"s_{uuid.uuid4().hex[:12]}"


def make(database: Database, name: str) -> None:
    """Create a logical slot, and a publication to read it with."""
    with database.connect() as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS t (a int PRIMARY KEY)")
        if conn.execute("SELECT 1 FROM pg_publication WHERE pubname = 'p'").fetchone() is None:
            conn.execute("CREATE PUBLICATION p FOR TABLE t")
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [name])


def look(database: Database, name: str) -> Slot | None:
    """Read one slot."""
    with database.connect() as conn:
        return next((slot for slot in slots.all_of(conn) if slot.name == name), None)


def seen(database: Database, name: str) -> Slot:
    """Read a slot that is there."""
    slot = look(database, name)
    assert slot is not None
    return slot


@contextmanager
def reader(database: Database, name: str) -> Iterator[Walsender]:
    """Stream a slot without ever reading, as ``somebody``."""
    walsender = Walsender.open(parse(database.dsn(application_name="somebody"), "the test"), "unused")
    try:
        walsender.start_replication(name, Lsn(0), ["p"])
        yield walsender
    finally:
        walsender.close()


def keep_state(database: Database, *pipelines: int) -> None:
    """Make etl.replication_state, as far as it matters here, with a row of each pipeline."""
    with database.connect() as conn:
        conn.execute("CREATE SCHEMA etl")
        conn.execute("CREATE TABLE etl.replication_state (pipeline_id bigint NOT NULL, table_id oid NOT NULL)")
        for pipeline in pipelines:
            conn.execute("INSERT INTO etl.replication_state VALUES (%s, 1)", [pipeline])


def configuration(directory: Path, *identities: str) -> str:
    """Write a configuration file with a database for each ``host/dbname``."""
    path = directory / "pgrepl.toml"
    entries = [
        f'[[databases]]\nname = "d{number}"\nhost = "{host}"\ndbname = "{dbname}"\n'
        for number, (host, dbname) in enumerate(identity.split("/") for identity in identities)
    ]
    path.write_text("".join(entries), encoding="utf-8")
    return str(path)
