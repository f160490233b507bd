"""The state in schema ``etl`` of the source database, as supabase/etl keeps it, and one table of pgrepl's own.

Table states, their history and the versions of tables are rows that both tools read and write. Where the stream is,
and what it belongs to, stands in ``etl.pgrepl_pipelines``, which other tools ignore (docs/state.md).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Concatenate, ParamSpec, TypeVar

import psycopg
from psycopg.types.json import Jsonb

from pgrepl import connection as sql_connection
from pgrepl.catalog import etl_manifest, etl_types
from pgrepl.catalog.definitions import Definition
from pgrepl.catalog.etl_schema import TRACKER
from pgrepl.conninfo import ConnectionTarget
from pgrepl.errors import InputError, OperationError, PositionError
from pgrepl.events import Table
from pgrepl.lsn import Lsn
from pgrepl.names import quote_ident, signed_id, unsigned_id
from pgrepl.stores import Identity, StoredState, StoredTable
from pgrepl.stores.tables import CREATE_PIPELINES, PIPELINES
from pgrepl.stores.told import from_json, to_json

_STATE_TABLES = ("replication_state", "table_schemas", "table_columns", "destination_tables_metadata")
_P = ParamSpec("_P")
_T = TypeVar("_T")
_S = TypeVar("_S", bound="PostgresStore")
_NO_SOLUTION = (
    "There is no single prescribed solution for this error. The issue may still be recoverable with manual intervention"
    " based on the specific context."
)


# By OID: by name the look-up itself fails for who lacks USAGE on the schema.
_REFUSED = """
SELECT c.relname::text, pg_catalog.pg_get_userbyid(c.relowner)::text,
       ARRAY(SELECT p FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) WITH ORDINALITY w (p, place)
             WHERE NOT has_table_privilege(c.oid, p) ORDER BY place)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'etl' AND c.relname = ANY (%s)
ORDER BY 2, 1
"""
_SCHEMA_REFUSED = """
SELECT pg_catalog.pg_get_userbyid(n.nspowner)::text FROM pg_catalog.pg_namespace n
WHERE n.nspname = 'etl' AND NOT has_schema_privilege(n.oid, 'USAGE')
"""


def says_who_may(method: Callable[Concatenate[_S, _P], _T]) -> Callable[Concatenate[_S, _P], _T]:
    """Have what the role may not do say whose it is, and the GRANT."""

    @functools.wraps(method)
    def called(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return method(self, *args, **kwargs)
        except psycopg.errors.InsufficientPrivilege as error:
            raise self._refused(error) from None

    return called


class PostgresStore:
    """Keep the state of one pipeline in schema ``etl``.

    Each method is one transaction. A connection that was lost is opened again by the next call; the call that lost it
    raises psycopg's error.
    """

    def __init__(self, target: ConnectionTarget, pipeline_id: int) -> None:
        self._target = target
        self._id = signed_id(pipeline_id)
        self._connection: psycopg.Connection | None = None

    def _open(self) -> psycopg.Connection:
        if self._connection is None or self._connection.closed:
            self._connection = sql_connection.connect(self._target, "pgrepl state")
            # What is confirmed to the slot rests on these commits, which must survive a crash as the slot may.
            self._connection.execute(
                "SELECT set_config('synchronous_commit', 'on', false)"
                " WHERE current_setting('synchronous_commit') = 'off'"
            )
        return self._connection

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    @says_who_may
    def check(self) -> None:
        """Make sure that the schema is there. Raises OperationError with what to run when it is not."""
        connection = self._open()
        missing = [
            name
            for name in _STATE_TABLES
            if connection.execute("SELECT to_regclass(%s) IS NULL", [f"etl.{name}"]).fetchone() == (True,)
        ]
        if missing:
            raise OperationError(
                f"the state store is not there: etl.{', etl.'.join(missing)} missing",
                hint="pgrepl migrations apply, or pgrepl setup --store postgres",
            )

    def _check_published(self) -> None:
        changed = [version for version, checksum in self._recorded() if not _is_published(version, checksum)]
        if changed:
            raise OperationError(
                f"etl.{TRACKER} records another checksum for {', '.join(map(str, changed))} than the published one:"
                " supabase/etl refuses such a database, and nobody knows what its tables are like",
                hint="'pgrepl doctor --store postgres --only etl.checksums' says how to set it right",
            )

    def _recorded(self) -> list[tuple[int, str]]:
        """Read the versions and checksums of the tracker, where there is one."""
        connection = self._open()
        if connection.execute("SELECT to_regclass(%s) IS NULL", [f"etl.{TRACKER}"]).fetchone() == (True,):
            return []
        try:
            query = f"SELECT version, encode(checksum, 'hex') FROM etl.{TRACKER} ORDER BY version"  # noqa: S608
            return connection.execute(query).fetchall()
        except psycopg.errors.InsufficientPrivilege:
            raise OperationError(
                f"role {connection.info.user} may not read etl.{TRACKER}",
                hint=f"run as its owner: GRANT SELECT ON etl.{TRACKER} TO {quote_ident(connection.info.user)}",
                sqlstate="42501",
            ) from None

    def prepare(self) -> None:
        """Make sure that the migrations are there as published, and make the table of pgrepl's own where it is missing.

        Raises OperationError with what to run when the migrations are missing, when another checksum is recorded for
        one of them, and when the role may not make the table.
        """
        self.check()
        self._check_published()
        connection = self._open()
        if connection.execute("SELECT to_regclass(%s) IS NULL", [f"etl.{PIPELINES}"]).fetchone() == (True,):
            try:
                connection.execute(CREATE_PIPELINES)
            except (psycopg.errors.DuplicateTable, psycopg.errors.UniqueViolation):
                # Another pipeline has made it just now.
                pass
            except psycopg.errors.InsufficientPrivilege:
                user = connection.info.user
                script = " ".join(CREATE_PIPELINES.split())
                grant = f"GRANT SELECT, INSERT, UPDATE, DELETE ON etl.{PIPELINES} TO {quote_ident(user)}"
                raise OperationError(
                    f"role {user} may not make the table etl.{PIPELINES}",
                    hint=f"run as the owner of schema etl: {script}; {grant}",
                    sqlstate="42501",
                ) from None

    @says_who_may
    def other_pipelines(self) -> list[int]:
        """List the ids of pipelines that have states here, when this one has none."""
        rows = self._open().execute(
            "SELECT DISTINCT pipeline_id FROM etl.replication_state WHERE is_current ORDER BY 1"
        )
        ids = [pipeline for (pipeline,) in rows]
        return [] if self._id in ids else [unsigned_id(pipeline) for pipeline in ids]

    @says_who_may
    def load(self) -> StoredState:
        """Read everything that is stored of the pipeline. Raises OperationError for metadata that is not understood."""
        connection = self._open()
        with connection.transaction():
            pipeline = connection.execute(
                f"SELECT slot_name, publications, system_identifier, timeline, position::text, attempts, told"  # noqa: S608
                f" FROM etl.{PIPELINES} WHERE pipeline_id = %s",
                [self._id],
            ).fetchone()
            states = connection.execute(
                "SELECT table_id, metadata FROM etl.replication_state WHERE pipeline_id = %s AND is_current", [self._id]
            ).fetchall()
        tables = {oid: _stored_table(oid, metadata) for oid, metadata in states}
        if pipeline is None:
            return StoredState(tables=tables)
        slot, publications, system_identifier, timeline, position, attempts, told = pipeline
        identity = Identity(system_identifier, timeline, slot, ",".join(publications))
        copies = {int(oid): int(count) for oid, count in attempts.items()}
        versions = {int(oid): from_json(int(oid), version) for oid, version in told.items()}
        return StoredState(identity, Lsn.parse(position), tables, copies, versions)

    def begin(self, identity: Identity, position: Lsn, tables: Collection[int]) -> None:
        """Store where the stream begins, and that these tables are being copied."""
        with self._open().transaction():
            self._execute(
                f"INSERT INTO etl.{PIPELINES} AS p"  # noqa: S608
                " (pipeline_id, slot_name, publications, system_identifier, timeline, position)"
                " VALUES (%s, %s, %s, %s, %s, %s)"
                " ON CONFLICT (pipeline_id) DO UPDATE SET slot_name = excluded.slot_name,"
                " publications = excluded.publications, system_identifier = excluded.system_identifier,"
                " timeline = excluded.timeline, position = excluded.position, updated_at = now()",
                [
                    self._id,
                    identity.slot,
                    identity.publication.split(","),
                    identity.system_identifier,
                    identity.timeline,
                    str(position),
                ],
            )
            for table in tables:
                if self._state_of(table) is None:
                    self._append(table, "init", {"type": "init"})
                self._append(table, "data_sync", {"type": "data_sync"})
            self._count_copies(tables)

    def copying(self, tables: Collection[int]) -> None:
        """Store that tables are being copied, each once more than before."""
        with self._open().transaction():
            for table in tables:
                if self._state_of(table) is None:
                    self._append(table, "init", {"type": "init"})
                self._append(table, "data_sync", {"type": "data_sync"})
            self._count_copies(tables)

    def ready(self, tables: Collection[int], position: Lsn, told: Collection[Table] = ()) -> None:
        """Store that copied tables are handed over at ``position``, and the position."""
        with self._open().transaction():
            for table in tables:
                self._append(table, "finished_copy", {"type": "finished_copy"})
                self._append(table, "sync_done", {"type": "sync_done", "lsn": str(position)})
                self._append(table, "ready", {"type": "ready"})
            self._move(position)
            self._tell(told)

    def caught_up(self, tables: Collection[int]) -> None:
        """Store that tables which another tool had left in sync_done are ready."""
        with self._open().transaction():
            for table in tables:
                self._append(table, "ready", {"type": "ready"})

    def errored(self, table: int, reason: str, solution: str | None) -> None:
        """Store that a table cannot be copied until a person has seen to it."""
        with self._open().transaction():
            metadata = {
                "type": "errored",
                "reason": " ".join(reason.split()),
                "solution": solution or _NO_SOLUTION,
                "retry_policy": {"type": "manual_retry"},
            }
            self._append(table, "errored", metadata)

    def position(self, position: Lsn, told: Collection[Table] = ()) -> None:
        """Store the position, and the versions of tables that the output has been told of since the last one."""
        with self._open().transaction():
            self._move(position)
            self._tell(told)

    def _tell(self, told: Collection[Table]) -> None:
        if told:
            self._execute(
                f"UPDATE etl.{PIPELINES} SET told = told || %s WHERE pipeline_id = %s",  # noqa: S608
                [Jsonb({str(table.oid): to_json(table) for table in told}), self._id],
            )

    def schema(self, definition: Definition) -> None:
        """Store the version of a table that it is copied with; what was known of it before is forgotten with it."""
        with self._open().transaction():
            self._execute(
                "DELETE FROM etl.table_schemas WHERE pipeline_id = %s AND table_id = %s", [self._id, definition.oid]
            )
            self._store_version(definition, Lsn(0))

    def version(self, definition: Definition, lsn: Lsn) -> None:
        """Store what a message of the event trigger says about a table; one that comes again replaces itself."""
        with self._open().transaction():
            self._execute(
                "DELETE FROM etl.table_schemas WHERE pipeline_id = %s AND table_id = %s AND snapshot_id = %s",
                [self._id, definition.oid, str(lsn)],
            )
            self._store_version(definition, lsn)

    def prune(self, position: Lsn) -> None:
        """Remove versions that no reader needs who begins at ``position``: older ones than the newest before it.

        What supabase/etl has applied to its destination (``destination_tables_metadata``) is kept, too.
        """
        self._execute(
            """
            DELETE FROM etl.table_schemas s USING (
                SELECT v.table_id, max(v.snapshot_id) AS newest
                  FROM etl.table_schemas v
                  LEFT JOIN etl.destination_tables_metadata d USING (pipeline_id, table_id)
                 WHERE v.pipeline_id = %(id)s
                   AND v.snapshot_id <= least(%(position)s::pg_lsn, d.snapshot_id, d.previous_snapshot_id)
                 GROUP BY v.table_id
            ) needed
             WHERE s.pipeline_id = %(id)s AND s.table_id = needed.table_id AND s.snapshot_id < needed.newest
            """,
            {"id": self._id, "position": str(position)},
        )

    def forget(self, table: int) -> None:
        """Remove everything of a table that has left the publication."""
        with self._open().transaction():
            for name in ("destination_tables_metadata", "table_schemas", "replication_state"):
                self._execute(
                    f"DELETE FROM etl.{name} WHERE pipeline_id = %s AND table_id = %s",  # noqa: S608
                    [self._id, table],
                )
            self._execute(
                f"UPDATE etl.{PIPELINES} SET told = told - %s WHERE pipeline_id = %s",  # noqa: S608
                [str(table), self._id],
            )

    def _refused(self, error: psycopg.errors.InsufficientPrivilege) -> OperationError:
        connection = self._open()
        user = quote_ident(connection.info.user)
        owners: set[str] = set()
        what, grants = [], []
        for (owner,) in connection.execute(_SCHEMA_REFUSED).fetchall():
            owners.add(owner)
            what.append(f"schema etl of {owner}")
            grants.append(f"GRANT USAGE ON SCHEMA etl TO {user}")
        for name, owner, lacking in connection.execute(_REFUSED, [[*_STATE_TABLES, PIPELINES]]).fetchall():
            if lacking:
                owners.add(owner)
                what.append(f"etl.{name} of {owner}")
                grants.append(f"GRANT {', '.join(lacking)} ON etl.{name} TO {user}")
        if not grants:
            return sql_connection.server_error(error, "the state store refused")
        return OperationError(
            f"role {connection.info.user} may not use the state store: it lacks privileges on {', '.join(what)}",
            hint=f"run as {' and as '.join(sorted(owners))}, or as a superuser: {'; '.join(grants)}",
            sqlstate=error.sqlstate,
        )

    def _execute(self, query: str, values: Sequence[Any] | Mapping[str, Any]) -> psycopg.Cursor:
        return self._open().execute(query, values)

    def _state_of(self, table: int) -> int | None:
        row = self._execute(
            "SELECT id FROM etl.replication_state WHERE pipeline_id = %s AND table_id = %s AND is_current",
            [self._id, table],
        ).fetchone()
        return row[0] if row else None

    def _append(self, table: int, state: str, metadata: dict[str, Any]) -> None:
        """Put a state behind the current one, which becomes history."""
        self._execute(
            "WITH before AS ("
            " UPDATE etl.replication_state SET is_current = false, updated_at = now()"
            " WHERE pipeline_id = %(pipeline)s AND table_id = %(table)s AND is_current RETURNING id)"
            " INSERT INTO etl.replication_state (pipeline_id, table_id, state, metadata, prev, is_current)"
            " SELECT %(pipeline)s, %(table)s, %(state)s::etl.table_state, %(metadata)s, (SELECT id FROM before), true",
            {"pipeline": self._id, "table": table, "state": state, "metadata": Jsonb(metadata)},
        )

    def _count_copies(self, tables: Collection[int]) -> None:
        for table in tables:
            self._execute(
                f"UPDATE etl.{PIPELINES} SET attempts = jsonb_set(attempts, ARRAY[%s::text],"  # noqa: S608
                " to_jsonb(coalesce((attempts ->> %s::text)::int, 0) + 1)), updated_at = now() WHERE pipeline_id = %s",
                [str(table), str(table), self._id],
            )

    def _move(self, position: Lsn) -> None:
        moved = self._execute(
            f"UPDATE etl.{PIPELINES} SET position = greatest(position, %s::pg_lsn), updated_at = now()"  # noqa: S608
            " WHERE pipeline_id = %s",
            [str(position), self._id],
        )
        if moved.rowcount != 1:
            # A position that is not stored must never be confirmed.
            raise PositionError(
                f"the state of pipeline {unsigned_id(self._id)} is gone: it was reset meanwhile, or another server"
                " answers at its address"
            )

    def _store_version(self, table: Definition, snapshot: Lsn) -> None:
        row = self._execute(
            "INSERT INTO etl.table_schemas (pipeline_id, table_id, schema_name, table_name, snapshot_id)"
            " VALUES (%s, %s, %s, %s, %s) RETURNING id",
            [self._id, table.oid, table.schema, table.name, str(snapshot)],
        ).fetchone()
        assert row is not None
        types = etl_types.names(self._open(), [column.type_oid for column in table.columns])
        for column in table.columns:
            self._execute(
                "INSERT INTO etl.table_columns (table_schema_id, column_name, column_type, type_modifier, nullable,"
                " ordinal_position, primary_key_ordinal_position) VALUES (%s, %s, %s, %s, %s, %s, %s)",
                [
                    row[0],
                    column.name,
                    types[column.type_oid],
                    column.type_modifier,
                    column.nullable,
                    column.attnum,
                    column.primary_key_place,
                ],
            )


def _is_published(version: int, checksum: str) -> bool:
    """Whether a recorded checksum is the published one; a version that nobody has published is not judged here."""
    migration = etl_manifest.find(version)
    return migration is None or migration.checksum == checksum


def kind_of(metadata: Any) -> str:
    """Name the state that stored metadata stands for, ``unknown`` where it names none."""
    kind = metadata.get("type") if isinstance(metadata, dict) else None
    return kind if isinstance(kind, str) else "unknown"


def _stored_table(oid: int, metadata: Any) -> StoredTable:
    try:
        match kind_of(metadata):
            case "init" | "data_sync" | "finished_copy" | "ready" as phase:
                return StoredTable(phase)
            case "sync_done":
                return StoredTable("sync_done", Lsn.parse(metadata["lsn"]))
            case "errored":
                return StoredTable("errored", None, metadata.get("reason"), _retry_at(metadata.get("retry_policy")))
    except (InputError, KeyError, TypeError, ValueError, AttributeError):
        pass
    raise OperationError(
        f"the stored state of table {oid} is not understood: {json.dumps(metadata)}",
        hint="pgrepl state reset makes the table be copied again",
    )


def _retry_at(policy: dict[str, str] | None) -> datetime | None:
    """Read when a table is to be tried again; None for a policy that leaves it to a person."""
    if policy is None or policy["type"] != "timed_retry":
        return None
    moment = datetime.fromisoformat(policy["next_retry"])
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
