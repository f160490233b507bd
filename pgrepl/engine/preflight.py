"""What must hold before a slot is made, asked of the catalog: nothing is changed on a server that is not fit."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from pgrepl.catalog import publications, roles, server
from pgrepl.catalog.publications import PublishedTable
from pgrepl.catalog.server import Server
from pgrepl.engine.selection import Selection
from pgrepl.errors import OperationError

OLDEST_MAJOR = 16


def check_server(connection: psycopg.Connection, *, slots: int = 1) -> Server:
    """Check that the server can stream to this role, with so many more slots. Raises OperationError."""
    facts = server.read(connection)
    if facts.major < OLDEST_MAJOR:
        raise OperationError(
            f"the server is PostgreSQL {facts.version}; pgrepl needs 16 or newer", hint="upgrade the server"
        )
    if facts.in_recovery:
        raise OperationError("the server is a standby", hint="connect to the primary", sqlstate="25006")
    if facts.encoding == "SQL_ASCII":
        raise OperationError(
            f"database {facts.database} has the encoding SQL_ASCII, so its text may be in any encoding",
            hint="JSON is UTF-8: dump the database and restore it into one with ENCODING UTF8",
        )
    if not facts.decodes:
        raise OperationError(
            f"wal_level is {facts.wal_level}, which has no logical decoding",
            hint="set wal_level = logical and restart the server; 'pgrepl doctor' knows your provider's way",
        )
    role = roles.can_replicate(connection)
    if role is None or not role.can_replicate:
        raise OperationError(
            f"role {facts.user} may not replicate", hint=f'ALTER ROLE "{facts.user}" REPLICATION, run by a superuser'
        )
    if facts.free_slots < slots:
        raise OperationError(
            f"all {facts.max_replication_slots} replication slots are in use",
            hint="drop one that is not needed (pgrepl slots list), or raise max_replication_slots and restart",
        )
    if not facts.free_wal_senders:
        raise OperationError(
            f"all {facts.max_wal_senders} walsenders are in use",
            hint="raise max_wal_senders and restart the server",
            sqlstate="53300",
        )
    return facts


def check_publications(
    connection: psycopg.Connection, names: Sequence[str], selection: Selection
) -> list[PublishedTable]:
    """Read the wanted tables.

    Raises OperationError when a publication is missing or empty, InputError for a table that is not in it.
    """
    return selection.of(published(connection, names), names)


def published(connection: psycopg.Connection, names: Sequence[str]) -> list[PublishedTable]:
    """Read the tables of the publications, wanted or not. Raises OperationError when one is missing."""
    existing = {publication.name for publication in publications.all_of(connection)}
    missing = [name for name in names if name not in existing]
    if missing:
        there = ", ".join(sorted(existing))
        raise OperationError(
            f"publication {', '.join(missing)} does not exist",
            hint=f"this database has {there}" if there else "this database has none: 'pgrepl setup' makes one",
        )
    return publications.published_tables(connection, names)


def published_oids(connection: psycopg.Connection, names: Sequence[str]) -> set[int]:
    """List the tables of the publications, wanted or not."""
    return {table.oid for table in publications.published_tables(connection, names)}


def check_readable(connection: psycopg.Connection, tables: Sequence[PublishedTable]) -> None:
    """Check that the role may read every published column, as a copy must. Raises OperationError naming the tables."""
    role = roles.can_replicate(connection)
    assert role is not None
    granted = roles.table_privileges(connection, role.oid, [table.oid for table in tables])
    refused = [
        table.qualified
        for table in tables
        if table.oid in granted
        and (not granted[table.oid].schema_usage or set(granted[table.oid].unreadable_columns) & set(table.columns))
    ]
    if refused:
        shown = ", ".join(refused[:5]) + (f" and {len(refused) - 5} more" if len(refused) > 5 else "")
        raise OperationError(
            f"role {role.name} may not read {shown}",
            hint="GRANT USAGE ON SCHEMA … and GRANT SELECT ON …, or print changes only: --snapshot never",
            sqlstate="42501",
        )
