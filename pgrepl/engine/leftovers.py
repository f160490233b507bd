"""What another tool, or another store, has left of the same pipeline."""

from __future__ import annotations

from collections.abc import Collection

import psycopg

from pgrepl.catalog import pipelines, slots
from pgrepl.engine.run import Observer
from pgrepl.errors import OperationError
from pgrepl.names import parse_slot
from pgrepl.replication.slots import drop_slot


def sweep(connection: psycopg.Connection, slot: str, keep: Collection[int], observer: Observer) -> None:
    """Drop the slots through which supabase/etl copied tables of the pipeline that reads ``slot``.

    It makes one for each table and leaves it behind when it dies; nobody ever reads it again, and it holds WAL. To be
    called when ``slot`` is ours and the tables' states say that they are copied anew: a table in finished_copy without
    its slot would stop there. The slots of tables in ``keep`` stay.
    """
    pipeline = parse_slot(slot).pipeline_id
    for found in slots.all_of(connection):
        name = parse_slot(found.name)
        if name.kind != "table-sync" or name.pipeline_id != pipeline or name.table_oid in keep:
            continue
        if found.active or found.database != connection.info.dbname:
            continue
        try:
            drop_slot(connection, found.name)
        except OperationError as error:
            observer.warning(f"slot {found.name} is left from a copy and cannot be dropped: {error}", hint=error.hint)
        else:
            observer.notice(f"slot {found.name}, left from a copy by supabase/etl, is dropped")


def state_elsewhere(connection: psycopg.Connection, pipeline_id: int, own: str | None) -> str | None:
    """Say which store other than one's ``own`` has state of a pipeline, and how far that is; None when none has."""
    states = pipelines.read(connection)
    for name, tables in _STORES.items():
        if name == own:
            continue
        positions = [p.position for p in states.positions if p.source in tables and p.pipeline_id == pipeline_id]
        known = any(table.source in tables and table.pipeline_id == pipeline_id for table in states.tables)
        if positions:
            return f"the {name} store has state of this pipeline, up to {max(positions)}"
        if known:
            return f"the {name} store has state of this pipeline"
    return None


_STORES = {
    "postgres": (pipelines.STATE, pipelines.PROGRESS, pipelines.PIPELINES),
    "bookmarks": (pipelines.BOOKMARKS,),
}
