"""What the checks look at: the connection and what was read through it, each thing once however many checks want it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from pgrepl.catalog import (
    activity,
    etl_schema,
    leaves,
    pipelines,
    provider,
    publications,
    replica_identity,
    roles,
    server,
    settings,
    slot_statistics,
    slots,
    standby,
    wal,
)
from pgrepl.catalog.leaves import Entry, Leaf
from pgrepl.catalog.publications import Publication, PublishedTable
from pgrepl.catalog.slots import Slot
from pgrepl.connection import connect_as_any
from pgrepl.doctor import providers
from pgrepl.doctor.findings import Fix
from pgrepl.errors import ConnectError, PgreplError
from pgrepl.names import apply_slot, parse_slot, pipeline_id, quote_ident
from pgrepl.replication.walsender import Walsender

if TYPE_CHECKING:
    import psycopg

    from pgrepl.conninfo import ConnectionTarget

# Long enough to tell a rate from noise, and about as long as the other checks take.
SAMPLE_SECONDS = 0.5


_CLOSED_SCHEMAS = """
SELECT n.nspname::text FROM pg_catalog.pg_namespace n
WHERE n.nspname = ANY (%s) AND NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE')
"""
# What the checks read of pg_settings.
SETTINGS = (
    "fsync",
    "full_page_writes",
    "idle_in_transaction_session_timeout",
    "idle_replication_slot_timeout",
    "lock_timeout",
    "logical_decoding_work_mem",
    "max_active_replication_origins",
    "max_connections",
    "max_logical_replication_workers",
    "max_replication_slots",
    "max_slot_wal_keep_size",
    "max_wal_senders",
    "max_worker_processes",
    "reserved_connections",
    "session_replication_role",
    "statement_timeout",
    "superuser_reserved_connections",
    "synchronous_commit",
    "tcp_keepalives_idle",
    "transaction_timeout",
    "wal_level",
    "wal_sender_timeout",
)


@dataclass(frozen=True)
class ConfiguredDatabase:
    """An entry of the configuration, which names a pipeline: ``identity`` is ``host/dbname`` as it is written."""

    name: str
    identity: str
    port: str


@dataclass(frozen=True)
class Wanted:
    """What is to be checked.

    Without ``publications`` all of the database are looked at, without ``role`` the connected one. ``slot`` is the
    one that is to be used, when it has a name already. ``probe`` lets a message run through a temporary slot, and
    ``upgrade`` asks what pg_upgrade would do. ``databases`` are all entries of the configuration.
    """

    publications: tuple[str, ...] = ()
    role: str | None = None
    store: str = "memory"
    slot: str | None = None
    provider: str = "auto"
    probe: bool = False
    upgrade: bool = False
    databases: tuple[ConfiguredDatabase, ...] = ()


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
        self._sampled: tuple[float, wal.Sample | None] | None = None
        self.walsender_timeout: float | None = None
        self.passing_pids: list[int] = []

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
    def session_settings(self) -> dict[str, settings.Setting]:
        """The settings as a client gets them who sets none itself, unlike this connection."""
        with self.another_connection() as connection:
            return settings.read(connection, SETTINGS)

    def another_connection(self) -> psycopg.Connection:
        """Open one more connection, for a moment, as any client gets it; what counts connections leaves it out."""
        connection = connect_as_any(self.target, "pgrepl doctor")
        self.passing_pids.append(connection.info.backend_pid)
        return connection

    @cached_property
    def role_settings(self) -> dict[str, settings.RoleSetting]:
        """What is set for sessions of the role that is to replicate."""
        return settings.of_role(self.conn, self.role.oid) if self.role else {}

    def setting_for_role(self, name: str) -> tuple[str, settings.RoleSetting | None] | None:
        """Give a setting as the role that is to replicate gets it, and what set it for it, if anything did.

        None when this version does not have it, or when only the role itself could tell.
        """
        own, session = self.role_settings.get(name), self.session_settings.get(name)
        if session is None:
            return None
        if own is not None and session.source not in ("client", "command line"):
            return own.value, own
        if not self.role_is_connected and session.source in ("user", "database user"):
            return None
        return session.value, None

    def amount_for_role(self, name: str) -> tuple[float, settings.RoleSetting | None] | None:
        """Give a setting that is a number in the unit of pg_settings, as ``setting_for_role`` does."""
        found = self.setting_for_role(name)
        if found is None:
            return None
        return settings.amount(found[0], self.session_settings[name].unit), found[1]

    def change(self, setting: str, value: str, *, restart: bool = True) -> tuple[Fix, ...]:
        """Change a setting of the server, given as an SQL literal, where this server lets it be changed."""
        found = self.session_settings.get(setting)
        if self.provider.settings is None and found is not None and found.source == "command line":
            return (
                Fix(
                    "action",
                    f"set {setting} = {value} where the server is started: it is on its command line, which wins over"
                    " ALTER SYSTEM (Patroni: patronictl edit-config)",
                ),
                Fix("action", self.provider.restart),
            )
        return self.provider.set(setting, value, restart=restart)

    def change_for_role(self, setting: str, value: str) -> tuple[Fix, ...]:
        """Change a setting for the sessions of the role that is to replicate."""
        session, own = self.session_settings.get(setting), self.role_settings.get(setting)
        if session is not None and session.source == "client":
            return (Fix("action", f"take {setting} out of the options of the connection string, or out of PGOPTIONS"),)
        where = f" IN DATABASE {quote_ident(self.server.database)}" if own and own.for_role and own.for_database else ""
        return (Fix("sql", f"ALTER ROLE {quote_ident(self.role_name)}{where} SET {setting} = {value};"),)

    def let_read_control_file(self) -> tuple[Fix, ...]:
        """Let the connected role read the identity of the server, as everyone may unless it was revoked."""
        return tuple(
            Fix("sql", f"GRANT EXECUTE ON FUNCTION pg_catalog.{name}() TO {quote_ident(self.server.user)};")
            for name in ("pg_control_system", "pg_control_checkpoint")
        )

    def let_read(self, tables: Iterable[str]) -> tuple[Fix, ...]:
        """Let the connected role read tables of state, given as ``schema.table``: no name of theirs needs quotes.

        One statement for each, so that checks which need the same ask for it in the same words; USAGE where it is
        missing.
        """
        names, user = list(tables), quote_ident(self.server.user)
        schemas = list(dict.fromkeys(name.partition(".")[0] for name in names))
        closed = [schema for (schema,) in self.conn.execute(_CLOSED_SCHEMAS, [schemas])]
        return (
            *(Fix("sql", f"GRANT USAGE ON SCHEMA {schema} TO {user};") for schema in closed),
            *(Fix("sql", f"GRANT SELECT ON {name} TO {user};") for name in names),
        )

    def let_see(self, monitor: str) -> tuple[Fix, ...]:
        """Let the connected role see what the members of a predefined role see."""
        return (Fix("sql", f"GRANT {monitor} TO {quote_ident(self.server.user)};"),)

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
                self.walsender_timeout = walsender.wal_sender_timeout()
            finally:
                walsender.close()
        except PgreplError as error:
            return error
        # Some services add columns of their own.
        return dict(zip(("system_identifier", "timeline", "wal_position", "database"), row, strict=False))

    @cached_property
    def slots(self) -> list[Slot]:
        """Every slot of the cluster, as it was before anything was tried on one."""
        return slots.all_of(self.conn)

    @cached_property
    def slot_statistics(self) -> dict[str, slot_statistics.SlotStatistics]:
        """What the server counts for each slot, by its name."""
        return {counted.name: counted for counted in slot_statistics.all_of(self.conn)}

    @cached_property
    def states(self) -> pipelines.States:
        """The state that pipelines keep in this database."""
        return pipelines.read(self.conn)

    @cached_property
    def pipeline_id(self) -> int | None:
        """The pipeline that is looked at: the slot's, else that of host and database, unless only another has state.

        None for a slot that is not named after a pipeline.
        """
        if self.wanted.slot is not None:
            return parse_slot(self.wanted.slot).pipeline_id
        derived = pipeline_id(self.target.pipeline_host(), self.server.database)
        if self.wanted.store == "postgres":
            stored = {found.pipeline_id for found in self.states.tables if found.source == pipelines.STATE}
            if len(stored) == 1 and derived not in stored:
                # A consumer elsewhere calls this host by another name.
                return stored.pop()
        return derived

    @cached_property
    def slot_name(self) -> str:
        """The slot that is looked at: the one that was named, else the pipeline's."""
        if self.wanted.slot is not None:
            return self.wanted.slot
        assert self.pipeline_id is not None
        return apply_slot(self.pipeline_id)

    @property
    def keeps_slot(self) -> bool:
        """Whether there is such a slot, or a run with this store would make it; the memory store's are temporary."""
        return self.slot is not None or self.wanted.slot is not None or self.wanted.store != "memory"

    @cached_property
    def slot(self) -> Slot | None:
        """That slot, None when it does not exist."""
        return next((slot for slot in self.slots if slot.name == self.slot_name), None)

    @cached_property
    def activity(self) -> activity.Activity:
        """The transactions and walsenders of this moment."""
        return activity.read(self.conn)

    @cached_property
    def replicas(self) -> standby.Replicas:
        """The settings about standbys."""
        return standby.read(self.conn)

    @cached_property
    def etl(self) -> etl_schema.EtlSchema:
        """Schema ``etl``. Raises OperationError when the connected role may not read what was migrated."""
        return etl_schema.read(self.conn)

    @cached_property
    def pg_wal(self) -> wal.Directory:
        """The files of WAL. Raises InsufficientPrivilege for a role that is no member of pg_monitor."""
        return wal.directory(self.conn)

    def begin_sampling(self) -> None:
        """Take the first of the two samples between which WAL is measured."""
        self._sampled = time.monotonic(), wal.sample(self.conn)

    @cached_property
    def wal_rate(self) -> wal.Rate | None:
        """How fast WAL grows; waits for what is left of the time between the samples. None where nothing is known."""
        if self._sampled is None:
            self.begin_sampling()
        assert self._sampled is not None
        began, first = self._sampled
        time.sleep(max(0.0, began + SAMPLE_SECONDS - time.monotonic()))
        second = wal.sample(self.conn)
        return None if first is None or second is None else wal.rate(first, second)

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
    def entries(self) -> list[Entry]:
        """What each publication in question says of each of its tables."""
        return leaves.entries(self.conn, [publication.oid for publication in self.publications])

    @cached_property
    def leaves(self) -> list[Leaf]:
        """Every table that holds published rows."""
        return leaves.read(self.conn, self.published_oids)

    def leaves_of(self, entry: Entry) -> Sequence[Leaf]:
        """The tables that hold the rows of one published table."""
        return self._leaves_by_root.get(entry.oid, [])

    @cached_property
    def _leaves_by_root(self) -> dict[int, list[Leaf]]:
        by_root: dict[int, list[Leaf]] = {}
        for leaf in self.leaves:
            by_root.setdefault(leaf.root_oid, []).append(leaf)
        return by_root

    def publication(self, name: str) -> Publication:
        """One of the publications in question."""
        return next(publication for publication in self.publications if publication.name == name)

    @cached_property
    def user_tables(self) -> list[replica_identity.UserTable]:
        """Every table that a publication could hold."""
        return replica_identity.user_tables(self.conn)

    @cached_property
    def publishable(self) -> list[replica_identity.UserTable]:
        """The tables that can be published without making the application's UPDATE and DELETE fail."""
        tables = self.user_tables
        identities = replica_identity.read(self.conn, [table.oid for table in tables])
        broken = {identity.root_oid for identity in identities if not identity.usable}
        return [table for table in tables if table.oid not in broken]
