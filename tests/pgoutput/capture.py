"""Capture what a real walsender sends for a rich scenario: ``python -m tests.pgoutput.capture DSN`` writes a file.

``captures/pgNN.jsonl`` holds one CopyData payload a line, as it came (hexadecimal), beside the message that it is; a
keepalive is left out, since when it comes depends on the clock. The DSN names an empty database.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
from psycopg import pq

from pgrepl.pgoutput.decoder import decode
from pgrepl.pgoutput.messages import Commit, Message
from pgrepl.pgoutput.walsender import XLogData, parse_copy_data

CAPTURES = Path(__file__).parent / "captures"
ORIGIN = "elsewhere"

_SCHEMA = """
    CREATE SCHEMA app;
    CREATE TYPE app.mood AS ENUM ('happy', 'sad');
    CREATE DOMAIN app.positive AS int CHECK (VALUE > 0);
    CREATE TABLE app.by_default (id int PRIMARY KEY, name text, body text);
    ALTER TABLE app.by_default ALTER body SET STORAGE EXTERNAL;
    CREATE TABLE app.by_index (a int, code varchar(20) NOT NULL UNIQUE, price numeric(12, 2));
    ALTER TABLE app.by_index REPLICA IDENTITY USING INDEX by_index_code_key;
    CREATE TABLE app.by_full (id int PRIMARY KEY, note text, body text);
    ALTER TABLE app.by_full ALTER body SET STORAGE EXTERNAL, REPLICA IDENTITY FULL;
    CREATE TABLE app.by_nothing (n int);
    ALTER TABLE app.by_nothing REPLICA IDENTITY NOTHING;
    CREATE TABLE app.typed (id int PRIMARY KEY, mood app.mood, size app.positive, moods app.mood[]);
    CREATE TABLE app.narrowed
        (id int PRIMARY KEY, gone text, kept text, doubled int GENERATED ALWAYS AS (id * 2) STORED);
    ALTER TABLE app.narrowed DROP gone;
    CREATE TABLE app.columnless ();
    CREATE SCHEMA "Mixed Case";
    CREATE TABLE "Mixed Case"."Täble ""1"" x" ("Id" int PRIMARY KEY, "ünïcode 🐘" text);
    CREATE PUBLICATION everything FOR ALL TABLES;
"""

# Each is one transaction.
_TRANSACTIONS = (
    "INSERT INTO app.by_default VALUES (1, 'one', repeat('x', 3000)), (2, NULL, '')",
    "UPDATE app.by_default SET name = 'uno' WHERE id = 1",
    "UPDATE app.by_default SET id = 3 WHERE id = 1",
    "DELETE FROM app.by_default WHERE id = 3",
    "INSERT INTO app.by_index VALUES (1, 'a', 1.50); UPDATE app.by_index SET a = 2; UPDATE app.by_index SET code = 'b';"
    " DELETE FROM app.by_index",
    "INSERT INTO app.by_full VALUES (1, NULL, repeat('y', 3000)); UPDATE app.by_full SET note = 'n';"
    " DELETE FROM app.by_full",
    "INSERT INTO app.by_nothing VALUES (1)",
    "INSERT INTO app.typed VALUES (1, 'happy', 5, '{sad,NULL}')",
    "INSERT INTO app.narrowed VALUES (1, 'k'); ALTER TABLE app.narrowed ADD added bool DEFAULT true;"
    " INSERT INTO app.narrowed VALUES (2, 'l'); ALTER TABLE app.narrowed DROP kept;"
    " INSERT INTO app.narrowed VALUES (3)",
    "INSERT INTO app.columnless DEFAULT VALUES",
    """INSERT INTO "Mixed Case"."Täble ""1"" x" VALUES (1, E'\\t"\\\\🐘')""",
    "INSERT INTO app.by_default VALUES (4, 'four', NULL); INSERT INTO app.by_nothing VALUES (2);"
    " TRUNCATE app.by_nothing; TRUNCATE app.by_default, app.by_full RESTART IDENTITY CASCADE;"
    " TRUNCATE app.typed CASCADE;"
    " TRUNCATE app.narrowed RESTART IDENTITY",
    "SELECT pg_logical_emit_message(true, 'greeting', 'hello 🐘'); SELECT pg_logical_emit_message(true, '', '')",
    "INSERT INTO app.by_nothing VALUES (3); SELECT pg_logical_emit_message(false, 'aside', '\\x00ff'::bytea);"
    " INSERT INTO app.by_nothing VALUES (4)",
)


def payloads(connection: psycopg.Connection, dsn: str) -> list[bytes]:
    """Run the scenario in an empty database and return what the walsender sent, but for its keepalives.

    ``connection`` is a superuser's, in autocommit mode, and ``dsn`` reaches the same database. Nothing stays
    on the server outside the database.
    """
    slot = f"capture_{connection.info.backend_pid}"
    connection.execute(_SCHEMA)
    connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
    try:
        for transaction in _TRANSACTIONS:
            connection.execute(transaction)
        _commit_from_elsewhere(connection)
        connection.execute("SELECT pg_logical_emit_message(true, 'end', '')")
        walsender = psycopg.connect(dsn, autocommit=True, replication="database", client_encoding="UTF8")
        with closing(walsender):
            return list(_receive(walsender.pgconn, slot))
    finally:
        held = "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots WHERE slot_name = %s"
        connection.execute(held, [slot])
        connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])


def _commit_from_elsewhere(connection: psycopg.Connection) -> None:
    connection.execute("SELECT pg_replication_origin_create(%s)", [ORIGIN])
    try:
        connection.execute("SELECT pg_replication_origin_session_setup(%s)", [ORIGIN])
        connection.execute(
            "SELECT pg_replication_origin_xact_setup('0/ABCDEF', '2026-01-31 12:30:00.5+00');"
            " INSERT INTO app.by_nothing VALUES (5)"
        )
        connection.execute("SELECT pg_replication_origin_session_reset()")
    finally:
        connection.execute("SELECT pg_replication_origin_drop(%s)", [ORIGIN])


def _receive(pgconn: pq.abc.PGconn, slot: str) -> Iterator[bytes]:
    options = "proto_version '1', publication_names 'everything', messages 'true', origin 'any'"
    result = pgconn.exec_(f'START_REPLICATION SLOT "{slot}" LOGICAL 0/0 ({options})'.encode())
    assert result.status == pq.ExecStatus.COPY_BOTH, result.error_message
    at_end = False
    while True:
        size, data = pgconn.get_copy_data(0)
        assert size > 0, pgconn.error_message
        payload = bytes(data)
        frame = parse_copy_data(payload)
        if isinstance(frame, XLogData):
            yield payload
            message = decode(frame.data)
            if at_end and isinstance(message, Commit):
                return
            at_end = at_end or (isinstance(message, Message) and message.prefix == "end")


def main(dsn: str) -> None:
    """Write the file of the server's version."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        target = CAPTURES / f"pg{connection.info.server_version // 10000}.jsonl"
        lines = [
            json.dumps({"payload": payload.hex(), "message": repr(decode(parse_copy_data(payload).data))})  # type: ignore[union-attr]
            for payload in payloads(connection, dsn)
        ]
    target.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
