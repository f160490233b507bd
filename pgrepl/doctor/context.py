"""What the checks look at: the connection and what was read through it, each thing once however many checks want it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from pgrepl.catalog import provider, publications, replica_identity, roles, server
from pgrepl.catalog.publications import Publication, PublishedTable
from pgrepl.doctor import providers
from pgrepl.errors import ConnectError, PgreplError
from pgrepl.replication.walsender import Walsender

if TYPE_CHECKING:
    import psycopg

    from pgrepl.conninfo import ConnectionTarget


@dataclass(frozen=True)
class Wanted:
    """What is to be checked.

    Without ``publications`` all of the database are looked at, without ``role`` the connected one. ``slot`` is the
    one that is to be used, when it has a name already.
    """

    publications: tuple[str, ...] = ()
    role: str | None = None
    store: str = "memory"
    slot: str | None = None
    provider: str = "auto"


class Context:
    """The facts of one run. ``connection`` is None when none could be made, and then ``error`` says why."""

    def __init__(
        self,
        target: ConnectionTarget,
        wanted: Wanted,
        connection: psycopg.Connection | None,
        error: ConnectError | None = None,
    ) -> None:
        self.target = target
        self.wanted = wanted
        self.connection = connection
        self.error = error

    @property
    def conn(self) -> psycopg.Connection:
        """The SQL connection; every check that uses it needs ``conn.sql``."""
        assert self.connection is not None
        return self.connection

    @cached_property
    def server(self) -> server.Server:
        """The server."""
        return server.read(self.conn)

    @cached_property
    def provider(self) -> providers.Provider:
        """Who runs the server: as told, else as its traces say."""
        if self.wanted.provider != "auto":
            return providers.PROVIDERS[self.wanted.provider]
        return providers.detect(provider.traces(self.conn), self.conn.info.host)

    @property
    def role_name(self) -> str:
        """The role that is to replicate."""
        return self.wanted.role or self.server.user

    @property
    def role_is_connected(self) -> bool:
        """Whether that role is the one of this connection, so that what it can do can be tried."""
        return self.role_name == self.server.user

    @cached_property
    def role(self) -> roles.RoleReplication | None:
        """The role that is to replicate, None when it does not exist."""
        return roles.can_replicate(self.conn, self.role_name)

    @cached_property
    def replication(self) -> dict[str, str | None] | PgreplError:
        """What IDENTIFY_SYSTEM answers on a replication connection, or why there is no answer."""
        try:
            walsender = Walsender.open(self.target, "pgrepl doctor")
            try:
                (row,) = walsender.query("IDENTIFY_SYSTEM")
            finally:
                walsender.close()
        except PgreplError as error:
            return error
        # Some services add columns of their own.
        return dict(zip(("system_identifier", "timeline", "wal_position", "database"), row, strict=False))

    @cached_property
    def all_publications(self) -> list[Publication]:
        """Every publication of the database."""
        return publications.all_of(self.conn)

    @cached_property
    def publications(self) -> list[Publication]:
        """Those of the publications in question that exist."""
        wanted = self.wanted.publications
        return [found for found in self.all_publications if not wanted or found.name in wanted]

    @cached_property
    def published(self) -> dict[str, list[PublishedTable]]:
        """The published tables of each existing publication in question, by its name."""
        return {
            publication.name: publications.published_tables(self.conn, [publication.name])
            for publication in self.publications
        }

    @cached_property
    def published_oids(self) -> list[int]:
        """The OIDs of all published tables, each once."""
        return sorted({table.oid for tables in self.published.values() for table in tables})

    @cached_property
    def identities(self) -> list[replica_identity.TableIdentity]:
        """The replica identity of every table whose rows are published."""
        return replica_identity.read(self.conn, self.published_oids)

    @cached_property
    def publishable(self) -> list[replica_identity.UserTable]:
        """The tables that can be published without making the application's UPDATE and DELETE fail."""
        tables = replica_identity.user_tables(self.conn)
        identities = replica_identity.read(self.conn, [table.oid for table in tables])
        broken = {identity.root_oid for identity in identities if not identity.usable}
        return [table for table in tables if table.oid not in broken]
