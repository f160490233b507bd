"""A pipeline as supabase/etl leaves it: its slots, the rows as it writes them, and what it needs to go on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg.types.json import Jsonb

from pgrepl import conninfo, migrations, names
from pgrepl.catalog.etl_manifest import MIGRATIONS
from pgrepl.lsn import Lsn
from tests.servers.database import Database

REASON = "[SourceSchemaError] Primary key not found: Table 'public.t' has no primary key"
SOLUTION = "Update the Postgres database schema to resolve compatibility issues."
_KNOWN = {"init", "data_sync", "finished_copy", "sync_done", "ready", "errored"}

State = dict[str, Any]
INIT, DATA_SYNC, FINISHED_COPY, READY = ({"type": kind} for kind in ("init", "data_sync", "finished_copy", "ready"))


def sync_done(lsn: Lsn) -> State:
    return {"type": "sync_done", "lsn": str(lsn)}


def errored(**policy: str) -> State:
    return {"type": "errored", "reason": REASON, "solution": SOLUTION, "retry_policy": policy}


def tried_again(moment: datetime) -> State:
    """An error of a kind that is tried again by itself, with the nine digits that are written there."""
    return errored(type="timed_retry", next_retry=f"{moment:%Y-%m-%dT%H:%M:%S.%f}000Z")


def from_now(**delta: float) -> datetime:
    return datetime.now(UTC) + timedelta(**delta)


class Upstream:
    """The pipeline of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        target = conninfo.parse(database.dsn(), "the test")
        self.id = names.pipeline_id(target.pipeline_host(), target.database())
        self._signed = names.signed_id(self.id)
        self.slot = names.apply_slot(self.id)
        with database.connect() as connection:
            migrations.apply(connection)
            connection.execute("UPDATE etl._sqlx_migrations SET execution_time = 5359744")

    def query(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._database.connect() as connection:
            cursor = connection.execute(query.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def oid(self, table: str) -> int:
        ((oid,),) = self.query("SELECT %s::regclass::oid", table)
        assert isinstance(oid, int)
        return oid

    def make_slot(self, name: str | None = None) -> None:
        self.query("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", name or self.slot)

    def make_copy_slot(self, table: str) -> str:
        name = names.table_sync_slot(self.id, self.oid(table))
        self.make_slot(name)
        return name

    def leave(self, table: str, *states: State) -> None:
        """Write the history of a table, its version, and what the destination keeps of it."""
        oid = self.oid(table)
        for state in states:
            # One statement, as it is written there; every row points to the one before it.
            self.query(
                "WITH old AS (UPDATE etl.replication_state SET is_current = false, updated_at = now()"
                " WHERE pipeline_id = %s AND table_id = %s AND is_current RETURNING id)"
                " INSERT INTO etl.replication_state (pipeline_id, table_id, state, metadata, prev, is_current)"
                " SELECT %s, %s, %s::etl.table_state, %s, (SELECT id FROM old), true",
                self._signed,
                oid,
                self._signed,
                oid,
                state["type"],
                Jsonb(state),
            )
        if len(states) > 1:
            self.query(
                "WITH version AS (INSERT INTO etl.table_schemas (pipeline_id, table_id, schema_name, table_name)"
                " VALUES (%s, %s, 'public', %s) RETURNING id)"
                " INSERT INTO etl.table_columns (table_schema_id, column_name, column_type, type_modifier, nullable,"
                " ordinal_position, primary_key_ordinal_position)"
                " SELECT id, 'id', 'INT4', -1, false, 1, 1 FROM version",
                self._signed,
                oid,
                table,
            )
            self.query(
                "INSERT INTO etl.destination_tables_metadata (pipeline_id, table_id, destination_table_id, snapshot_id,"
                " schema_status, replication_mask) VALUES (%s, %s, %s, '0/0', 'applied', '\\x01')",
                self._signed,
                oid,
                f"public_{table}",
            )

    def history(self, table: str) -> list[str]:
        """List the states of a table in their order, by following the chain from the current one."""
        rows = self.query(
            "WITH RECURSIVE chain AS (SELECT id, prev, metadata, 1 AS place FROM etl.replication_state"
            " WHERE pipeline_id = %s AND table_id = %s AND is_current UNION ALL SELECT s.id, s.prev, s.metadata,"
            " place + 1 FROM chain JOIN etl.replication_state s ON s.id = chain.prev)"
            " SELECT metadata->>'type' FROM chain ORDER BY place DESC",
            self._signed,
            self.oid(table),
        )
        return [kind for (kind,) in rows]

    def destination(self) -> list[tuple[Any, ...]]:
        """Read what the destination keeps, down to where each row lies."""
        return self.query("SELECT xmin::text, ctid::text, m.* FROM etl.destination_tables_metadata m ORDER BY 1, 2")

    def slots(self) -> list[str]:
        rows = self.query("SELECT slot_name FROM pg_replication_slots WHERE database = current_database() ORDER BY 1")
        return [name for (name,) in rows]

    def confirmed(self) -> Lsn:
        ((text,),) = self.query(
            "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s", self.slot
        )
        return Lsn.parse(text)

    def wal_end(self) -> Lsn:
        ((text,),) = self.query("SELECT pg_current_wal_insert_lsn()::text")
        return Lsn.parse(text)

    def must_go_on(self) -> None:
        """Check everything that stops supabase/etl at its start, or at the next change of a table."""
        start = Lsn(self.confirmed() + 1)
        tracker = self.query("SELECT version, encode(checksum, 'hex'), success FROM etl._sqlx_migrations ORDER BY 1")
        assert tracker == [(migration.version, migration.checksum, True) for migration in MIGRATIONS]
        current = self.query(
            "SELECT table_id, metadata, state::text FROM etl.replication_state WHERE pipeline_id = %s AND is_current",
            self._signed,
        )
        for oid, metadata, state in current:
            assert metadata["type"] in _KNOWN
            assert state == metadata["type"]
            if metadata["type"] == "errored":
                assert isinstance(metadata["reason"], str)
                assert metadata["retry_policy"]["type"] in ("no_retry", "manual_retry", "timed_retry")
            if metadata["type"] == "sync_done":
                assert Lsn.parse(metadata["lsn"]) <= start
            if metadata["type"] in ("finished_copy", "sync_done", "ready"):
                versions = self.query(
                    "SELECT (SELECT count(*) FROM etl.table_columns c WHERE c.table_schema_id = s.id)"
                    " FROM etl.table_schemas s WHERE pipeline_id = %s AND table_id = %s AND snapshot_id <= %s",
                    self._signed,
                    oid,
                    str(start),
                )
                assert versions
                assert all(columns > 0 for (columns,) in versions)
            if metadata["type"] == "finished_copy":
                assert names.table_sync_slot(self.id, oid) in self.slots()
