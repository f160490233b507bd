"""From which server the stored positions are: what pgrepl's stores keep beside them in the same database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgrepl.names import parse_slot, quote_ident, signed_id

if TYPE_CHECKING:
    import psycopg

PIPELINES = "pgrepl_pipelines"
BOOKMARKS = "faucet_state"


@dataclass(frozen=True)
class Origin:
    """The server of a slot's stored positions, as far as the store ``postgres`` or ``bookmarks`` knows it."""

    store: str
    slot: str
    system_identifier: str
    timeline: int | None


@dataclass(frozen=True)
class Stored:
    """What is stored for one slot; ``unreadable`` names the tables that the role may not read, each with its schema."""

    origins: tuple[Origin, ...]
    unreadable: tuple[tuple[str, str], ...]


# By OID: by name the look-up itself fails for who lacks USAGE on the schema.
_TABLES = """
SELECT n.nspname::text, c.relname::text,
       pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT')
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND (c.relname = %s AND n.nspname = 'etl' OR c.relname = %s AND n.nspname = 'public')
 ORDER BY 1, 2
"""

_IN_PIPELINES = "SELECT p.system_identifier::text, p.timeline FROM {} p WHERE p.pipeline_id = %s"
_IN_BOOKMARKS = "SELECT b.value->>'system_identifier', b.value->>'timeline' FROM {} b WHERE b.key = %s"


def stored(conn: psycopg.Connection, slot: str) -> Stored:
    """Look for the origin of a slot's positions in the tables of this database."""
    pipeline = parse_slot(slot).pipeline_id
    origins, unreadable = [], []
    for schema, table, readable in conn.execute(_TABLES, [PIPELINES, BOOKMARKS]).fetchall():
        if not readable:
            unreadable.append((schema, table))
            continue
        name = f"{quote_ident(schema)}.{quote_ident(table)}"
        if table == PIPELINES:
            query = _IN_PIPELINES.format(name)
            rows = conn.execute(query.encode(), [None if pipeline is None else signed_id(pipeline)])
            origins += [Origin("postgres", slot, *row) for row in rows]
        else:
            query = _IN_BOOKMARKS.format(name)
            rows = conn.execute(query.encode(), [f"pgrepl::{slot}"])
            origins += [Origin("bookmarks", slot, row[0], row[1] and int(row[1])) for row in rows if row[0]]
    return Stored(tuple(origins), tuple(unreadable))
