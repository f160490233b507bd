"""What is there before setup: what the connected role may do, and the tables that could be published."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgrepl.catalog import provider
from pgrepl.errors import OperationError
from pgrepl.names import quote_ident

if TYPE_CHECKING:
    import psycopg

# Where supabase/etl keeps its state: published, the state's own changes would be changes to keep state about.
STATE_SCHEMA = "etl"

_SESSION = """
SELECT r.rolname::text, r.rolsuper, r.rolcreaterole, r.rolreplication, current_database()::text,
       has_database_privilege(current_database(), 'CREATE'),
       has_database_privilege(current_database(), 'CONNECT WITH GRANT OPTION'),
       has_database_privilege(current_database(), 'CREATE WITH GRANT OPTION'),
       current_setting('createrole_self_grant') ~ 'set'
FROM pg_catalog.pg_roles r
WHERE r.rolname = current_user
"""

_PROVIDER_ROLE = """
SELECT g.rolname::text, pg_has_role(g.oid, 'MEMBER WITH ADMIN OPTION')
FROM pg_catalog.pg_roles g
WHERE g.rolname = ANY (%s)
ORDER BY g.rolname DESC
"""


@dataclass(frozen=True)
class Session:
    """The connected role and what it may do.

    ``provider_role`` is the role of a managed service that stands for REPLICATION, and ``grants_provider_role`` whether
    the connected role may make others its members. ``becomes_new_roles`` is whether it may SET ROLE to what it creates.
    ``managed`` is whether this is a managed service's server.
    """

    role: str
    superuser: bool
    create_role: bool
    replication: bool
    database: str
    create_in_database: bool
    grants_connect: bool
    grants_create: bool
    becomes_new_roles: bool
    provider_role: str | None
    grants_provider_role: bool
    managed: bool

    @property
    def creates_replication_roles(self) -> bool:
        """Whether it may give others what lets them replicate.

        Since 16 that takes CREATEROLE and REPLICATION itself (PostgreSQL documentation, CREATE ROLE).
        """
        if self.superuser:
            return True
        if self.provider_role is not None:
            return self.grants_provider_role
        return self.create_role and self.replication


def session(conn: psycopg.Connection) -> Session:
    """Read what the connected role may do."""
    row = conn.execute(_SESSION).fetchone()
    assert row is not None
    found = conn.execute(_PROVIDER_ROLE, [list(provider.REPLICATION_ROLES.values())]).fetchone()
    return Session(*row, *(found or (None, False)), *[provider.traces(conn).managed])


_WHERE = """
SELECT d.oid, d.datname::text, pg_postmaster_start_time()::text
FROM pg_catalog.pg_database d WHERE d.datname = current_database()
"""


@dataclass(frozen=True)
class Place:
    """A database, and by the moment at which it started its server, which everybody may see."""

    database_oid: int
    database: str
    server: str


def place(conn: psycopg.Connection) -> Place:
    """Read which database this is: two connection strings may mean the same one."""
    row = conn.execute(_WHERE).fetchone()
    assert row is not None
    return Place(*row)


def is_same_database(one: psycopg.Connection, other: psycopg.Connection) -> bool:
    """Whether two connections lead to the same database, whatever their connection strings say."""
    return place(one) == place(other)


@dataclass(frozen=True, eq=False)
class Table:
    """A permanent table that can be published; a partition knows the table that it is a part of in ``parent``.

    ``owned`` is whether the connected role may do what its owner may. ``has_identity`` is whether updates and deletes
    of it can be published; if not, ``remedy`` is the ALTER TABLE that would change that. ``children`` are the tables
    that inherit from it; its partitions are not among them.
    """

    oid: int
    schema_oid: int
    schema: str
    name: str
    partitioned: bool
    parent: int | None
    owner: str
    owned: bool
    has_identity: bool
    remedy: str
    children: Sequence[int]

    @property
    def qualified(self) -> str:
        """The name in SQL."""
        return f"{quote_ident(self.schema)}.{quote_ident(self.name)}"

    @property
    def label(self) -> str:
        """The name for people."""
        return f"{self.schema}.{self.name}"


# What can be published: PostgreSQL documentation, CREATE PUBLICATION. OIDs below 16384 are those of initdb.
# A usable replica identity is a valid, not deferrable index that relreplident chooses, or the whole row.
_TABLES = """
SELECT c.oid, n.oid, n.nspname::text, c.relname::text, c.relkind = 'p',
       CASE WHEN c.relispartition THEN
            (SELECT i.inhparent FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid AND NOT i.inhdetachpending) END,
       pg_catalog.pg_get_userbyid(c.relowner)::text, pg_has_role(c.relowner, 'USAGE'),
       c.relreplident = 'f' OR EXISTS (
            SELECT FROM pg_catalog.pg_index i
            WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
              AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END),
       format('ALTER TABLE %I.%I REPLICA IDENTITY %s', n.nspname, c.relname, coalesce(
            (SELECT CASE WHEN i.indisprimary THEN 'DEFAULT' ELSE format('USING INDEX %I', x.relname) END
             FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
             WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate
               AND i.indpred IS NULL AND i.indexprs IS NULL
               AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
                               WHERE a.attrelid = c.oid AND NOT a.attnotnull
                                 AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
             ORDER BY i.indisprimary DESC, i.indnkeyatts, x.relname LIMIT 1), 'FULL')),
       ARRAY(SELECT i.inhrelid FROM pg_catalog.pg_inherits i
             JOIN pg_catalog.pg_class h ON h.oid = i.inhrelid WHERE i.inhparent = c.oid AND NOT h.relispartition)
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND c.oid >= 16384
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
ORDER BY n.nspname, c.relname
"""

_SCHEMAS = """
SELECT n.oid, n.nspname::text FROM pg_catalog.pg_namespace n
WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
ORDER BY n.nspname
"""

_KINDS = """
SELECT w.schema, w.name, n.oid, c.relkind::text, c.relpersistence::text
FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY AS w (schema, name, place)
LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
ORDER BY w.place
"""


class Tables:
    """Every table that can be published, found by OID or name."""

    def __init__(self, tables: Iterable[Table], schemas: dict[str, int]) -> None:
        self.by_oid = {table.oid: table for table in tables}
        self.by_name = {(table.schema, table.name): table for table in self.by_oid.values()}
        self.schemas = schemas
        self._partitions: dict[int, list[Table]] = {}
        for table in self.by_oid.values():
            if table.parent is not None:
                self._partitions.setdefault(table.parent, []).append(table)

    def __iter__(self) -> Iterator[Table]:
        return iter(self.by_oid.values())

    def ancestors(self, table: Table) -> Iterator[Table]:
        """Give the partitioned tables above a partition, the nearest first."""
        while table.parent is not None and table.parent in self.by_oid:
            table = self.by_oid[table.parent]
            yield table

    def leaves(self, table: Table) -> Iterator[Table]:
        """Give the tables that hold the rows: the partitions at the ends of the tree, or the table itself."""
        if not table.partitioned:
            yield table
        for partition in self._partitions.get(table.oid, ()):
            yield from self.leaves(partition)

    def with_children(self, table: Table) -> Iterator[Table]:
        """Give a table and all that inherit from it, which a publication of it takes along."""
        yield table
        for child in table.children:
            if child in self.by_oid:
                yield from self.with_children(self.by_oid[child])


def tables(conn: psycopg.Connection) -> Tables:
    """Read every table that can be published, and the schemas, in two queries."""
    schemas = {name: oid for oid, name in conn.execute(_SCHEMAS)}
    return Tables((Table(*row) for row in conn.execute(_TABLES)), schemas)


_UNFIT = {
    "v": ("is a view", "publish the tables that it reads"),
    "m": ("is a materialized view", "publish the tables that it reads"),
    "f": ("is a foreign table", "publish the table on the server where its rows are"),
    "S": ("is a sequence", "sequences are not replicated"),
}


def named(conn: psycopg.Connection, known: Tables, names: Sequence[tuple[str, str]]) -> list[Table]:
    """Find tables by schema and name, each once, in the order given.

    Raises OperationError for what does not exist and for what cannot be published, saying why.
    """
    for problem in unfit(conn, known, names).values():
        raise problem
    found = (known.by_name[name] for name in names)
    return list({table.oid: table for table in found}.values())


def unfit(
    conn: psycopg.Connection, known: Tables, names: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], OperationError]:
    """Say of each name that is no table which could be published what is wrong with it."""
    unknown = [name for name in names if name not in known.by_name]
    rows = conn.execute(_KINDS, [[schema for schema, _ in unknown], [name for _, name in unknown]]).fetchall()
    return {(row[0], row[1]): _unfit(*row) for row in rows}


def _unfit(schema: str, name: str, schema_oid: int | None, kind: str | None, persistence: str | None) -> OperationError:
    label = f"{schema}.{name}"
    if schema_oid is None:
        return OperationError(
            f"there is no schema {schema!r} for table {label}", hint="names are taken as they stand in the catalog"
        )
    if kind is None:
        return OperationError(f"there is no table {label}", hint="names are taken as they stand in the catalog")
    if kind in ("r", "p"):
        match persistence:
            case "u":
                why, hint = "is unlogged", f"ALTER TABLE {quote_ident(schema)}.{quote_ident(name)} SET LOGGED"
            case "t":
                why, hint = "is a temporary table", "publish a permanent one"
            case _:
                why, hint = "is a table of the system", "publish tables of your own"
    else:
        why, hint = _UNFIT.get(kind, ("is not a table", "publish a table"))
    return OperationError(f"{label} {why} and cannot be published", hint=hint)
