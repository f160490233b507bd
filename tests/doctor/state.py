"""State of pipelines as the stores write it, by hand: this is what the tools beside pgrepl leave."""

from __future__ import annotations

import json
from typing import Any

from pgrepl import connection, migrations
from pgrepl.conninfo import parse
from pgrepl.names import signed_id
from tests.servers.database import Database


def state_table(database: Database) -> None:
    """Make the tables of supabase/etl's state, if they are not there."""
    with connection.connect(parse(database.dsn(), "the test"), "the test") as conn:
        if conn.execute("SELECT to_regclass('etl.replication_state')").fetchone() == (None,):
            migrations.apply(conn)


def state(database: Database, table: str, name: str, *, pipeline: int, **details: Any) -> int:
    """Put a table of schema public, made if need be, into a state; return its OID."""
    state_table(database)
    with database.connect() as conn:
        conn.execute(f'CREATE TABLE IF NOT EXISTS public."{table}" (a int PRIMARY KEY)'.encode())
        (oid,) = conn.execute("SELECT %s::regclass::oid", [f'public."{table}"']).fetchall()[0]
        conn.execute(
            "UPDATE etl.replication_state SET is_current = false WHERE pipeline_id = %s AND table_id = %s",
            [signed_id(pipeline), oid],
        )
        metadata = json.dumps({"type": name, **details})
        row = [signed_id(pipeline), oid, name, metadata]
        conn.execute(
            "INSERT INTO etl.replication_state (pipeline_id, table_id, state, metadata) VALUES (%s, %s, %s, %s)", row
        )
    return int(oid)


def pipelines_row(database: Database, pipeline: int, slot: str, position: str) -> None:
    """Store the position of a pipeline as pgrepl's postgres store does."""
    with database.connect() as conn:
        conn.execute("CREATE SCHEMA IF NOT EXISTS etl")
        conn.execute(
            "CREATE TABLE IF NOT EXISTS etl.pgrepl_pipelines (pipeline_id bigint PRIMARY KEY, slot_name text NOT NULL,"
            " publications text[] NOT NULL, system_identifier text NOT NULL, timeline integer NOT NULL,"
            " position pg_lsn NOT NULL, attempts jsonb NOT NULL DEFAULT '{}', told jsonb NOT NULL DEFAULT '{}',"
            " updated_at timestamptz NOT NULL DEFAULT now())"
        )
        conn.execute("DELETE FROM etl.pgrepl_pipelines WHERE pipeline_id = %s", [signed_id(pipeline)])
        conn.execute(
            "INSERT INTO etl.pgrepl_pipelines (pipeline_id, slot_name, publications, system_identifier, timeline,"
            " position) SELECT %s, %s, '{p}', system_identifier::text, 1, %s FROM pg_control_system()",
            [signed_id(pipeline), slot, position],
        )


def bookmark(database: Database, slot: str, position: str, *tables: dict[str, Any]) -> None:
    """Store the state of a slot as the bookmarks store does."""
    value = {"pgrepl_state": 1, "slot": slot, "position": position, "tables": list(tables), "timeline": 1}
    with database.connect() as conn:
        conn.execute(
            "CREATE TABLE IF NOT EXISTS public.faucet_state (key text PRIMARY KEY, value jsonb NOT NULL,"
            " updated_at timestamptz NOT NULL DEFAULT now())"
        )
        conn.execute(
            "INSERT INTO public.faucet_state (key, value) VALUES (%s, %s)"
            " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            [f"pgrepl::{slot}", json.dumps(value)],
        )
