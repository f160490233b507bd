"""The migrations of supabase/etl's state store as published at revision ce88ba7, and what each leaves in the database.

Every object is a pair of texts: its name, and its definition as ``catalog.etl_schema`` reads it from the catalog.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

REVISION = "ce88ba7"

_ID = "bigint NOT NULL GENERATED ALWAYS AS IDENTITY"
_NOW = "timestamp with time zone NOT NULL DEFAULT now()"


@dataclass(frozen=True)
class Migration:
    """One migration: its version, its description, and the SHA-384 of its published file in hexadecimal.

    ``adds`` are the objects that it makes or changes, ``removes`` the names of those that are gone afterwards.
    """

    version: int
    description: str
    checksum: str
    adds: Mapping[str, str] = field(repr=False)
    removes: frozenset[str] = field(repr=False, default=frozenset())


def _identity_table(name: str, **columns: str) -> dict[str, str]:
    """List the columns of a table whose key is an identity column."""
    objects = {f"column etl.{name}.{column}": definition for column, definition in columns.items()}
    return {
        f"column etl.{name}.id": _ID,
        f"constraint {name}_pkey on etl.{name}": "PRIMARY KEY (id)",
        **objects,
    }


def _unique(name: str, table: str, columns: str) -> dict[str, str]:
    return {f"constraint {name} on etl.{table}": f"UNIQUE ({columns})"}


def _index(name: str, definition: str) -> dict[str, str]:
    return {f"index etl.{name}": definition}


_BASE = Migration(
    20250827000000,
    "base",
    "f9a851cc59b9777ef680c271ba52f060da848b31fa6cd77123b6205f9dcd99ff332981954dcadda62a784ce7aed1e881",
    {
        "type etl.table_state": "ENUM (init, data_sync, finished_copy, sync_done, ready, errored)",
        **_identity_table(
            "replication_state",
            pipeline_id="bigint NOT NULL",
            table_id="oid NOT NULL",
            state="etl.table_state NOT NULL",
            metadata="jsonb",
            prev="bigint",
            is_current="boolean NOT NULL DEFAULT true",
            created_at=_NOW,
            updated_at=_NOW,
        ),
        "constraint replication_state_prev_fkey on etl.replication_state": (
            "FOREIGN KEY (prev) REFERENCES etl.replication_state(id)"
        ),
        **_index(
            "uq_replication_state_current_true",
            "CREATE UNIQUE INDEX uq_replication_state_current_true ON etl.replication_state"
            " USING btree (pipeline_id, table_id) WHERE (is_current = true)",
        ),
        **_identity_table(
            "table_schemas",
            pipeline_id="bigint NOT NULL",
            table_id="oid NOT NULL",
            schema_name="text NOT NULL",
            table_name="text NOT NULL",
            created_at=_NOW,
            updated_at=_NOW,
        ),
        **_unique("table_schemas_pipeline_id_table_id_key", "table_schemas", "pipeline_id, table_id"),
        **_index(
            "idx_table_schemas_pipeline_table",
            "CREATE INDEX idx_table_schemas_pipeline_table ON etl.table_schemas USING btree (pipeline_id, table_id)",
        ),
        **_identity_table(
            "table_columns",
            table_schema_id="bigint NOT NULL",
            column_name="text NOT NULL",
            column_type="text NOT NULL",
            type_modifier="integer NOT NULL",
            nullable="boolean NOT NULL",
            primary_key="boolean NOT NULL",
            column_order="integer NOT NULL",
            created_at=_NOW,
        ),
        "constraint table_columns_table_schema_id_fkey on etl.table_columns": (
            "FOREIGN KEY (table_schema_id) REFERENCES etl.table_schemas(id) ON DELETE CASCADE"
        ),
        **_unique("table_columns_table_schema_id_column_name_key", "table_columns", "table_schema_id, column_name"),
        **_unique("table_columns_table_schema_id_column_order_key", "table_columns", "table_schema_id, column_order"),
        **_index(
            "idx_table_columns_order",
            "CREATE INDEX idx_table_columns_order ON etl.table_columns USING btree (table_schema_id)",
        ),
        **_identity_table(
            "table_mappings",
            pipeline_id="bigint NOT NULL",
            source_table_id="oid NOT NULL",
            destination_table_id="text NOT NULL",
            created_at=_NOW,
            updated_at=_NOW,
        ),
        **_unique("table_mappings_pipeline_id_source_table_id_key", "table_mappings", "pipeline_id, source_table_id"),
    },
)

_SCHEMA_STORAGE = Migration(
    20260415090000,
    "schema storage ddl support",
    "23248be3ed9b589315ca3b5eb693296f97f50a48e719212c432c7a9b20d4c7a3a67a32b66d45dd0cf194ae87f712efd0",
    {
        "column etl.table_schemas.snapshot_id": "pg_lsn NOT NULL DEFAULT '0/0'::pg_lsn",
        **_unique(
            "table_schemas_pipeline_id_table_id_snapshot_id_key", "table_schemas", "pipeline_id, table_id, snapshot_id"
        ),
        **_index(
            "idx_table_schemas_pipeline_table_snapshot_id",
            "CREATE INDEX idx_table_schemas_pipeline_table_snapshot_id ON etl.table_schemas"
            " USING btree (pipeline_id, table_id, snapshot_id DESC)",
        ),
        "column etl.table_columns.ordinal_position": "integer NOT NULL",
        "column etl.table_columns.primary_key_ordinal_position": "integer",
        **_unique(
            "table_columns_table_schema_id_column_order_key", "table_columns", "table_schema_id, ordinal_position"
        ),
        "type etl.destination_table_schema_status": "ENUM (applying, applied)",
        **_identity_table(
            "destination_tables_metadata",
            pipeline_id="bigint NOT NULL",
            table_id="oid NOT NULL",
            destination_table_id="text NOT NULL",
            snapshot_id="pg_lsn NOT NULL",
            previous_snapshot_id="pg_lsn",
            schema_status="etl.destination_table_schema_status NOT NULL",
            replication_mask="bytea NOT NULL",
            created_at=_NOW,
            updated_at=_NOW,
        ),
        **_unique(
            "destination_tables_metadata_pipeline_id_table_id_key",
            "destination_tables_metadata",
            "pipeline_id, table_id",
        ),
    },
    removes=frozenset(
        {
            "constraint table_schemas_pipeline_id_table_id_key on etl.table_schemas",
            "column etl.table_columns.column_order",
            "column etl.table_columns.primary_key",
            *(name for name in _BASE.adds if "etl.table_mappings" in name),
        }
    ),
)

_SCHEMA_CHANGE_MESSAGES = Migration(
    20260415100000,
    "schema change messages",
    "8f3ca7fc2c72d4d7beaf08f0d9df7c56f13f4d7ecfee61653820224d8b1b106a62117070898986bc5abc6dd17e38c6cb",
    {
        "function etl.describe_table_schema(p_table oid)": (
            "RETURNS TABLE(attname text, attnum integer, atttypid oid, typname text, formatted_type text,"
            " atttypmod integer, attnotnull boolean, atthasdef boolean, default_expression text, attidentity text,"
            " atthasmissing boolean) LANGUAGE sql STABLE STRICT SET search_path=pg_catalog"
        ),
        "function etl.describe_table_identity(p_table oid)": (
            "RETURNS jsonb LANGUAGE sql STABLE STRICT SET search_path=pg_catalog"
        ),
        "function etl.emit_schema_change_messages()": (
            "RETURNS event_trigger LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path=pg_catalog"
        ),
        "event trigger supabase_etl_ddl_message_trigger": (
            "ON ddl_command_end WHEN TAG IN (ALTER TABLE) EXECUTE FUNCTION etl.emit_schema_change_messages()"
        ),
    },
)

MIGRATIONS = (_BASE, _SCHEMA_STORAGE, _SCHEMA_CHANGE_MESSAGES)


def find(version: int) -> Migration | None:
    """Find the migration of a version, None for one that is not of this revision."""
    return next((migration for migration in MIGRATIONS if migration.version == version), None)


def objects_after(version: int) -> dict[str, str]:
    """List the objects that are there once the migrations up to and including ``version`` have run."""
    objects: dict[str, str] = {}
    for migration in MIGRATIONS:
        if migration.version <= version:
            objects = {name: what for name, what in objects.items() if name not in migration.removes}
            objects.update(migration.adds)
    return objects
