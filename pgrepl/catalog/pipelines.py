"""The state that pipelines keep in this database, read without the stores: by whoever is allowed to, changing nothing.

The tables are those of supabase/etl, pgrepl's own beside them, and the table of bookmarks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pgrepl.errors import InputError
from pgrepl.lsn import Lsn
from pgrepl.names import parse_slot, unsigned_id

if TYPE_CHECKING:
    import psycopg

STATE = "etl.replication_state"
PROGRESS = "etl.replication_progress"
PIPELINES = "etl.pgrepl_pipelines"
BOOKMARKS = "public.faucet_state"
# A table without these columns has the name alone.
_COLUMNS: Mapping[str, frozenset[str]] = {
    STATE: frozenset(
        {"pipeline_id bigint", "table_id oid", "state etl.table_state", "metadata jsonb", "is_current boolean"}
    ),
    PROGRESS: frozenset({"pipeline_id bigint", "flush_lsn pg_lsn"}),
    PIPELINES: frozenset(
        {
            "pipeline_id bigint",
            "slot_name text",
            "position pg_lsn",
            "system_identifier text",
            "timeline integer",
        }
    ),
    BOOKMARKS: frozenset({"key text", "value jsonb"}),
}
_BOOKMARK = "pgrepl::"


@dataclass(frozen=True)
class TableState:
    """The state of one table in one pipeline, stored in ``source``; ``schema`` and ``name`` are None for a dropped one.

    ``pipeline_id`` is unsigned, None for a bookmark of a slot that is not named after a pipeline. ``details`` holds
    what is stored with the state: ``lsn``, ``reason``, ``solution``, ``retry_policy``.
    """

    source: str
    pipeline_id: int | None
    slot: str | None
    oid: int
    schema: str | None
    name: str | None
    state: str
    details: Mapping[str, Any] = field(repr=False)

    @property
    def label(self) -> str:
        """Its name, or the OID of a table that is gone."""
        return f"{self.schema}.{self.name}" if self.schema is not None else str(self.oid)

    @property
    def lsn(self) -> Lsn | None:
        """The position of a state that has one."""
        text = self.details.get("lsn")
        try:
            return Lsn.parse(text) if isinstance(text, str) else None
        except InputError:
            return None


@dataclass(frozen=True)
class StoredPosition:
    """Up to where a pipeline is done, by its own account; ``slot`` is None where only the pipeline is stored."""

    source: str
    pipeline_id: int | None
    slot: str | None
    position: Lsn
    system_identifier: str | None
    timeline: int | None


@dataclass(frozen=True)
class States:
    """Everything that could be read, from the tables in ``read``; those in ``unreadable`` are there, too."""

    tables: tuple[TableState, ...]
    positions: tuple[StoredPosition, ...]
    read: tuple[str, ...]
    unreadable: tuple[str, ...]

    def knows(self, pipeline_id: int) -> bool:
        """Whether there is any state of a pipeline."""
        known = {table.pipeline_id for table in self.tables} | {stored.pipeline_id for stored in self.positions}
        return pipeline_id in known


# Who lacks USAGE on the schema may not even name the table.
_PRESENT = """
SELECT n.nspname || '.' || c.relname, has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'),
       ARRAY(SELECT a.attname || ' ' || a.atttypid::regtype FROM pg_catalog.pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname || '.' || c.relname = ANY (%s) AND c.relkind IN ('r', 'p')
ORDER BY 1
"""
# Whoever wrote them, metadata is what counts; the state beside it is for people.
_STATE = """
SELECT s.pipeline_id, s.table_id, n.nspname::text, c.relname::text, coalesce(s.metadata->>'type', s.state::text),
       s.metadata
FROM etl.replication_state s
LEFT JOIN pg_catalog.pg_class c ON c.oid = s.table_id
LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE s.is_current
ORDER BY s.pipeline_id, n.nspname, c.relname, s.table_id
"""
_PROGRESS = "SELECT pipeline_id, flush_lsn::text FROM etl.replication_progress WHERE worker_type::text = 'apply'"
_PIPELINES = """
SELECT pipeline_id, slot_name, position::text, system_identifier, timeline
FROM etl.pgrepl_pipelines ORDER BY pipeline_id
"""
_BOOKMARKS = "SELECT key, value FROM public.faucet_state WHERE starts_with(key, %s) ORDER BY key"


def read(conn: psycopg.Connection) -> States:
    """Read whatever state of pipelines the connected role may read in this database, in at most five queries."""
    rows = conn.execute(_PRESENT, [list(_COLUMNS)]).fetchall()
    present = {name: readable for name, readable, columns in rows if _COLUMNS[name] <= set(columns)}
    tables: list[TableState] = []
    positions: list[StoredPosition] = []
    if present.get(STATE):
        for pipeline, oid, schema, name, state, metadata in conn.execute(_STATE):
            tables.append(TableState(STATE, unsigned_id(pipeline), None, oid, schema, name, state, metadata or {}))
    if present.get(PROGRESS):
        for pipeline, lsn in conn.execute(_PROGRESS):
            positions.append(StoredPosition(PROGRESS, unsigned_id(pipeline), None, Lsn.parse(lsn), None, None))
    if present.get(PIPELINES):
        for pipeline, slot, lsn, system_identifier, timeline in conn.execute(_PIPELINES):
            identity = system_identifier, timeline
            positions.append(StoredPosition(PIPELINES, unsigned_id(pipeline), slot, Lsn.parse(lsn), *identity))
    if present.get(BOOKMARKS):
        for key, value in conn.execute(_BOOKMARKS, [_BOOKMARK]):
            _bookmark(key.removeprefix(_BOOKMARK), value, tables, positions)
    return States(
        tuple(tables),
        tuple(positions),
        tuple(name for name, readable in present.items() if readable),
        tuple(name for name, readable in present.items() if not readable),
    )


def _bookmark(slot: str, value: Any, tables: list[TableState], positions: list[StoredPosition]) -> None:
    """Take from a bookmark what it says; anybody may have written it, and what makes no sense is passed over."""
    if not isinstance(value, dict):
        return
    pipeline = parse_slot(slot).pipeline_id
    text, timeline = value.get("position"), value.get("timeline")
    if isinstance(text, str):
        try:
            position = Lsn.parse(text)
        except InputError:
            return
        identity = value.get("system_identifier"), timeline if isinstance(timeline, int) else None
        positions.append(StoredPosition(BOOKMARKS, pipeline, slot, position, *identity))
    entries = value.get("tables")
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("oid"), int) and isinstance(entry.get("state"), str):
            details = {**(entry.get("metadata") or {}), **({"lsn": entry["lsn"]} if entry.get("lsn") else {})}
            names = entry.get("schema"), entry.get("table")
            tables.append(TableState(BOOKMARKS, pipeline, slot, entry["oid"], *names, entry["state"], details))
