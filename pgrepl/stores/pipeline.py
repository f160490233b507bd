"""What people see and mend of a stored pipeline: where it is, how its tables stand, and what they were before."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from pgrepl.catalog import server
from pgrepl.errors import OperationError
from pgrepl.lsn import Lsn
from pgrepl.names import apply_slot, unsigned_id
from pgrepl.stores.postgres import PostgresStore, kind_of, says_who_may
from pgrepl.stores.tables import PIPELINES


@dataclass(frozen=True)
class TableOverview:
    """How a table stands; ``since`` is when that state was stored, ``schema`` empty for a table that is gone.

    ``age`` is the time since then by the server's clock.
    """

    oid: int
    schema: str
    name: str
    state: str
    lsn: str | None
    reason: str | None
    since: datetime
    age: timedelta

    @property
    def qualified(self) -> str:
        """The name for people, ``schema.table``."""
        return f"{self.schema}.{self.name}" if self.schema else self.name


@dataclass(frozen=True)
class Overview:
    """A pipeline; what only pgrepl stores is None for one that it has never run.

    ``age`` is the time since the position was stored, at ``updated_at``, by the server's clock.
    """

    pipeline_id: int
    slot: str
    publications: tuple[str, ...]
    system_identifier: str | None
    timeline: int | None
    position: Lsn | None
    updated_at: datetime | None
    age: timedelta | None
    tables: list[TableOverview]


@dataclass(frozen=True)
class TableHistory:
    """One row of a table's history; ``metadata`` is JSON text."""

    id: int
    state: str
    metadata: str
    prev: int | None
    is_current: bool
    created_at: datetime


class StoredPipeline(PostgresStore):
    """The state of a pipeline, for those who look at it and repair it while it does not run."""

    @property
    def pipeline_id(self) -> int:
        """The id of the pipeline, unsigned."""
        return unsigned_id(self._id)

    @property
    def slot(self) -> str:
        """The name of the pipeline's slot."""
        return apply_slot(self._id)

    def slot_is_active(self) -> bool:
        """Whether somebody reads the slot just now."""
        query = "SELECT active FROM pg_catalog.pg_replication_slots WHERE slot_name = %s"
        return self._execute(query, [self.slot]).fetchone() == (True,)

    @says_who_may
    def overview(self) -> Overview:
        """Read where the pipeline is and how its tables stand."""
        row = None
        if self._has_pipelines():
            row = self._execute(
                "SELECT slot_name, publications, system_identifier, timeline, position::text, updated_at,"  # noqa: S608
                f" clock_timestamp() - updated_at FROM etl.{PIPELINES} WHERE pipeline_id = %s",
                [self._id],
            ).fetchone()
        tables = [
            TableOverview(
                oid,
                schema or "",
                name or str(oid),
                kind_of(metadata),
                metadata.get("lsn"),
                metadata.get("reason"),
                *when,
            )
            for oid, schema, name, metadata, *when in self._execute(
                "SELECT s.table_id, n.nspname, c.relname, coalesce(s.metadata, '{}'), s.created_at,"
                " clock_timestamp() - s.created_at"
                " FROM etl.replication_state s LEFT JOIN pg_catalog.pg_class c ON c.oid = s.table_id"
                " LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
                " WHERE s.pipeline_id = %s AND s.is_current ORDER BY n.nspname, c.relname, s.table_id",
                [self._id],
            )
        ]
        if row is None:
            return Overview(unsigned_id(self._id), self.slot, (), None, None, None, None, None, tables)
        slot, publications, system_identifier, timeline, position, updated_at, age = row
        return Overview(
            unsigned_id(self._id),
            slot,
            tuple(publications),
            system_identifier,
            timeline,
            Lsn.parse(position),
            updated_at,
            age,
            tables,
        )

    def _has_pipelines(self) -> bool:
        return self._execute("SELECT to_regclass(%s) IS NOT NULL", [f"etl.{PIPELINES}"]).fetchone() == (True,)

    def server_identity(self) -> tuple[str, int]:
        """Read the system identifier and timeline of the server as it is now. Raises OperationError when it may not."""
        facts = server.read(self._open())
        if facts.system_identifier is None or facts.timeline is None:
            raise OperationError("this role may not read the system identifier", hint="GRANT pg_monitor to it")
        return facts.system_identifier, facts.timeline

    @says_who_may
    def adopt(self, system_identifier: str, timeline: int) -> None:
        """Store that the state belongs to this server and timeline."""
        self._execute(
            f"UPDATE etl.{PIPELINES} SET system_identifier = %s, timeline = %s, updated_at = now()"  # noqa: S608
            " WHERE pipeline_id = %s",
            [system_identifier, timeline, self._id],
        )

    def find(self, table: str) -> TableOverview:
        """Find a table of the pipeline by ``schema.table`` or OID. Raises OperationError for an unknown one."""
        for known in self.overview().tables:
            if table in (known.qualified, str(known.oid)):
                return known
        raise OperationError(
            f"pipeline {unsigned_id(self._id)} has no state of {table}", hint="'pgrepl state show' lists its tables"
        )

    @says_who_may
    def history(self, table: int) -> list[TableHistory]:
        """Read the states that a table has been in, the current one first, then each one's predecessor."""
        rows = self._execute(
            "SELECT id, state::text, metadata::text, prev, is_current, created_at FROM etl.replication_state"
            " WHERE pipeline_id = %s AND table_id = %s ORDER BY is_current DESC, id DESC",
            [self._id, table],
        )
        return [TableHistory(*row) for row in rows]

    @says_who_may
    def rollback(self, table: int) -> None:
        """Make the state before the current one current again, and forget the one it leaves.

        Raises OperationError when there is none before it.
        """
        with self._open().transaction():
            current = self._execute(
                "SELECT id, prev FROM etl.replication_state WHERE pipeline_id = %s AND table_id = %s AND is_current"
                " FOR UPDATE",
                [self._id, table],
            ).fetchone()
            if current is None or current[1] is None:
                raise OperationError(f"table {table} has no state to go back to")
            self._execute("DELETE FROM etl.replication_state WHERE id = %s", [current[0]])
            self._execute(
                "UPDATE etl.replication_state SET is_current = true, updated_at = now() WHERE id = %s", [current[1]]
            )

    @says_who_may
    def reset(self, tables: Collection[int], *, position_too: bool) -> None:
        """Begin the history of tables anew with ``init``; their versions and the destination's metadata stay."""
        with self._open().transaction():
            for table in tables:
                self._execute(
                    "DELETE FROM etl.replication_state WHERE pipeline_id = %s AND table_id = %s", [self._id, table]
                )
                self._append(table, "init", {"type": "init"})
            # A pipeline that pgrepl has never run may not have the table.
            if position_too and self._has_pipelines():
                self._execute(f"DELETE FROM etl.{PIPELINES} WHERE pipeline_id = %s", [self._id])  # noqa: S608
