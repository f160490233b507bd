"""Slots of pipelines that nobody knows any more: renamed or removed databases leave them behind, and they keep WAL."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pgrepl.names import unsigned_id

if TYPE_CHECKING:
    import psycopg

    from pgrepl.catalog.slots import Slot


@dataclass(frozen=True)
class KnownPipelines:
    """The unsigned ids of the pipelines that are known of in one database.

    ``configured`` come from the configuration, None when no database is configured; ``recorded`` have rows in
    etl.replication_state, None when there is no such table. ``unreadable`` says that there is one whose rows the role
    may not see, or not all of them.
    """

    configured: frozenset[int] | None
    recorded: frozenset[int] | None
    unreadable: bool

    @property
    def enough(self) -> bool:
        """Whether enough is known to call a slot orphaned."""
        return not self.unreadable and (self.configured is not None or self.recorded is not None)

    def __contains__(self, pipeline: int) -> bool:
        return pipeline in (self.configured or ()) or pipeline in (self.recorded or ())


# Whoever lacks USAGE on the schema may not even name the table.
_READABLE = """
SELECT has_schema_privilege(n.oid, 'USAGE') AND has_column_privilege(c.oid, 'pipeline_id', 'SELECT')
       AND NOT pg_catalog.row_security_active(c.oid)
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = 'pipeline_id' AND NOT a.attisdropped
WHERE n.nspname = 'etl' AND c.relname = 'replication_state' AND c.relkind IN ('r', 'p')
"""


def known_pipelines(conn: psycopg.Connection, configured: Collection[int]) -> KnownPipelines:
    """Gather which pipelines are known in the connected database; ``configured`` are those of the configuration."""
    ids = frozenset(configured) or None
    row = conn.execute(_READABLE).fetchone()
    if row is None or not row[0]:
        return KnownPipelines(ids, None, unreadable=row is not None)
    recorded = conn.execute("SELECT DISTINCT pipeline_id FROM etl.replication_state").fetchall()
    return KnownPipelines(ids, frozenset(unsigned_id(pipeline) for (pipeline,) in recorded), unreadable=False)


def mark(slots: Sequence[Slot], database: str, known: KnownPipelines) -> list[Slot]:
    """Say of each slot whether it is an orphan, as far as that can be told from this database.

    An orphan is inactive, named as a slot of a pipeline is, of this database, and of a pipeline that is not known.
    """
    return [replace(slot, orphaned=_orphaned(slot, database, known)) for slot in slots]


def _orphaned(slot: Slot, database: str, known: KnownPipelines) -> bool | None:
    if slot.pipeline_id is None or slot.active or slot.pipeline_id in known:
        return False
    return True if slot.database == database and known.enough else None
