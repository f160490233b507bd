"""What the tests of the migrations ask a database: the shape of schema etl, everything in it, and who may what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg

from pgrepl import connection
from pgrepl.conninfo import parse
from pgrepl.pgoutput.decoder import decode
from pgrepl.pgoutput.messages import AnyMessage, Message
from tests.servers.database import Database
from tests.servers.server import Server

BASE, STORAGE, MESSAGES = VERSIONS = (20250827000000, 20260415090000, 20260415100000)
_HERE = Path(__file__).parent
_SHAPE = (_HERE / "shape.sql").read_text(encoding="utf-8")


def connect(database: Database, user: str = Server.superuser) -> psycopg.Connection:
    """Connect as pgrepl does."""
    return connection.connect(parse(database.dsn(user), "a test"))


def shape(database: Database) -> dict[str, Any]:
    """Describe schema etl, but for the tracker."""
    with database.connect() as conn:
        row = conn.execute(_SHAPE.encode()).fetchone()
    assert row is not None
    found: dict[str, Any] = row[0]
    return found


def expected_shape(version: int) -> dict[str, Any]:
    """What ``shape`` is after a version."""
    expected: dict[str, Any] = json.loads((_HERE / f"shape_{version}.json").read_text(encoding="utf-8"))
    return expected


def tracker(database: Database) -> list[tuple[Any, ...]]:
    """Read the tracker's rows; None where there is no tracker."""
    with database.connect() as conn:
        rows = conn.execute(
            "SELECT version, description, success, encode(checksum, 'hex'), execution_time"
            " FROM etl._sqlx_migrations ORDER BY version"
        )
        return rows.fetchall()


def everything(database: Database) -> dict[str, Any]:
    """Read the shape and every row of every table in schema etl, down to where each row lies (xmin, ctid)."""
    content: dict[str, Any] = {"shape": shape(database)}
    with database.connect() as conn:
        tables = conn.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace('etl') AND relkind = 'r' ORDER BY 1"
        ).fetchall()
        for (table,) in tables:
            content[table] = conn.execute(
                f'SELECT xmin::text, ctid::text, t::text FROM etl."{table}" t ORDER BY 3'.encode()
            ).fetchall()
    return content


class Stream:
    """What pgoutput sends of a publication, read through a slot from where it was left."""

    def __init__(self, conn: psycopg.Connection, publication: str = "pub") -> None:
        self._conn = conn
        self._publication = publication
        self._slot = f"{conn.info.dbname}_ddl"
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [self._slot])

    def read(self) -> list[AnyMessage]:
        """Consume what was committed since the last call."""
        rows = self._conn.execute(
            "SELECT data FROM pg_logical_slot_get_binary_changes(%s, NULL, NULL, 'proto_version', '1',"
            " 'publication_names', %s, 'messages', 'true')",
            [self._slot, self._publication],
        )
        return [decode(data) for (data,) in rows]

    def ddl(self) -> list[dict[str, Any]]:
        """Consume, and return the documents of the DDL messages."""
        messages = [message for message in self.read() if isinstance(message, Message)]
        assert all(message.transactional and message.prefix == "supabase_etl_ddl" for message in messages)
        return [json.loads(message.content.decode()) for message in messages]
