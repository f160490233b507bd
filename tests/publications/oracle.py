"""What a publication really streams: changes are made, and pgoutput says which of them it would send."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import psycopg

from tests.servers.database import Database

CHANGES = {"I": "insert", "U": "update", "D": "delete", "T": "truncate"}


def streamed(database: Database, publication: str, statements: Sequence[str]) -> Counter[str]:
    """Run statements, and count the inserts, updates, deletes and truncates that the publication streams of them.

    A change without one of the columns of its table counts as none: it tells less than what happened.
    """
    slot = f"{database.name}_oracle"
    with database.connect() as conn:
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
        try:
            for statement in statements:
                conn.execute(statement.encode())
            if conn.execute("SELECT 1 FROM pg_publication WHERE pubname = %s", [publication]).fetchone() is None:
                return Counter()
            names = psycopg.sql.Identifier(publication).as_string(conn)
            rows = conn.execute(
                "SELECT data FROM pg_logical_slot_get_binary_changes("
                "%s, NULL, NULL, 'proto_version', '1', 'publication_names', %s)",
                [slot, names],
            ).fetchall()
        finally:
            conn.execute("SELECT pg_drop_replication_slot(%s)", [slot])
    return Counter(CHANGES[chr(data[0])] for (data,) in rows if chr(data[0]) in CHANGES)


def catalog(database: Database) -> list[tuple[object, ...]]:
    """Everything about the publications of a database."""
    with database.connect() as conn:
        return conn.execute(
            """SELECT p.pubname, p.pubowner, p.puballtables, p.pubviaroot, p.pubinsert, p.pubupdate, p.pubdelete,
                      p.pubtruncate,
                      ARRAY(SELECT (r.prrelid, r.prqual::text, r.prattrs)::text FROM pg_publication_rel r
                             WHERE r.prpubid = p.oid ORDER BY r.prrelid),
                      ARRAY(SELECT n.pnnspid FROM pg_publication_namespace n WHERE n.pnpubid = p.oid ORDER BY 1)
                 FROM pg_publication p ORDER BY p.pubname"""
        ).fetchall()
