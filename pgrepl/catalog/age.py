"""Whether a publication was there when the changes were made that a slot will still decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pgrepl.names import quote_ident

if TYPE_CHECKING:
    import psycopg

# A row that was frozen long ago keeps its xmin, whose age then says nothing any more.
_AGES = """
SELECT p.oid, CASE WHEN pg_catalog.age(p.xmin) BETWEEN 0 AND 1000000000 THEN pg_catalog.age(p.xmin) END
  FROM pg_catalog.pg_publication p WHERE p.oid = ANY (%s::oid[])
"""
_PEEK = """
SELECT count(*)
  FROM pg_catalog.pg_logical_slot_peek_binary_changes(%s, NULL, 1, 'proto_version', '1', 'publication_names', %s)
"""
_SECONDS = 2


def of_publications(conn: psycopg.Connection, publications: Sequence[int]) -> dict[int, int | None]:
    """Count the transactions since each publication was made or last altered; None when that is too long ago."""
    return {row[0]: row[1] for row in conn.execute(_AGES, [list(publications)])}


def peek(conn: psycopg.Connection, slot: str, publication: str) -> str | None:
    """Decode the first change of a slot, consume nothing, and return what the server says against the publication.

    Raises psycopg's QueryCanceled after 2 s, InsufficientPrivilege, and ObjectInUse when the slot has a reader.
    """
    import psycopg

    said: list[str] = []

    def listen(diagnostic: psycopg.errors.Diagnostic) -> None:
        # PostgreSQL 18 goes on without a publication that was not there, and warns.
        if diagnostic.sqlstate == "55000" and diagnostic.message_primary:
            said.append(diagnostic.message_primary)

    conn.add_notice_handler(listen)
    try:
        with conn.transaction():
            conn.execute(f"SET LOCAL statement_timeout = '{_SECONDS}s'".encode())
            conn.execute("SET LOCAL client_min_messages = warning")
            conn.execute(_PEEK, [slot, quote_ident(publication)])
    except psycopg.errors.UndefinedObject as error:
        return error.diag.message_primary
    finally:
        conn.remove_notice_handler(listen)
    return said[0] if said else None
