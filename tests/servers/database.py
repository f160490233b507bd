"""A database for one test, which leaves nothing behind on the server."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from pytest_postgresql.janitor import DatabaseJanitor

from tests.servers.server import Server


@dataclass(frozen=True)
class Database:
    """A database that one test has for itself."""

    server: Server
    name: str

    def dsn(self, user: str = Server.superuser, **parameters: Any) -> str:
        """Return a connection string for the socket, with further libpq parameters."""
        return self.server.dsn(self.name, user, **parameters)

    def connect(self, user: str = Server.superuser, **parameters: Any) -> psycopg.Connection:
        """Open a connection over the socket, in autocommit mode."""
        return self.server.connect(self.name, user, **parameters)

    def psql(self, script: str) -> str:
        """Run a script in psql and return what it prints."""
        return self.server.psql(script, self.name)


@contextmanager
def fresh_database(server: Server) -> Iterator[Database]:
    """Make a database; afterwards drop it with its slots and with the roles that were made meanwhile."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    janitor = DatabaseJanitor(user=server.superuser, host=server.host, port=server.port, dbname=name)
    with server.connect() as admin:
        roles = _roles(admin)
    janitor.init()
    try:
        yield Database(server, name)
    finally:
        with server.connect() as admin:
            _drop_slots(admin, name)
            janitor.drop()
            for role in _roles(admin) - roles:
                admin.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
                admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def _roles(admin: psycopg.Connection) -> set[str]:
    return {name for (name,) in admin.execute("SELECT rolname FROM pg_roles")}


def _drop_slots(admin: psycopg.Connection, dbname: str) -> None:
    """Drop the slots of a database, which would keep it from being dropped; whoever holds one is sent away first."""
    holders = "SELECT active_pid FROM pg_replication_slots WHERE database = %s AND active_pid IS NOT NULL"
    for (pid,) in admin.execute(holders, [dbname]).fetchall():
        admin.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
    # A temporary slot goes with its session.
    ours = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s AND NOT temporary"
    admin.execute(ours, [dbname])
