"""From what is in the database to what is left to run, and whether the connected role may. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgrepl.catalog import etl_schema
from pgrepl.catalog.etl_manifest import MIGRATIONS, Migration
from pgrepl.catalog.etl_schema import TRACKER, EtlSchema, MigrationStatus
from pgrepl.errors import OperationError
from pgrepl.migrations import scripts
from pgrepl.names import quote_ident

if TYPE_CHECKING:
    import psycopg

# Below, event triggers cannot tell what is a valid boolean; pgrepl refuses such servers anyway.
_OLDEST = 16


@dataclass(frozen=True)
class Step:
    """A version that is to be applied, in one transaction: ``statements``, ``event_trigger``, ``record``.

    Whether the connected role may make the event trigger shows only when it tries, unless it is a superuser.
    ``obstacle`` is why it may not run the step at all.
    """

    migration: Migration
    statements: tuple[str, ...]
    event_trigger: tuple[str, ...]
    record: str
    obstacle: str | None = None


@dataclass(frozen=True)
class Plan:
    """The steps in their order, up to the version that was asked for."""

    database: str
    role: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class _Session:
    """The connected role; ``schema_create`` and ``tracker_insert`` are None where the object is not there."""

    role: str
    superuser: bool
    database: str
    standby: bool
    database_create: bool
    schema_create: bool | None
    tracker_insert: bool | None


_SESSION = """
SELECT r.rolname::text, r.rolsuper, current_database()::text, pg_is_in_recovery(),
       has_database_privilege(current_database(), 'CREATE'),
       has_schema_privilege(n.oid, 'USAGE') AND has_schema_privilege(n.oid, 'CREATE'),
       has_table_privilege(t.oid, 'INSERT')
FROM pg_catalog.pg_roles r
LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = 'etl'
LEFT JOIN pg_catalog.pg_class t ON t.relnamespace = n.oid AND t.relname = %s
WHERE r.rolname = current_user
"""

# What a version alters or replaces must belong to whoever runs it.
_FOREIGN = """
SELECT 'etl.' || c.relname
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'etl' AND c.relname = ANY (%(names)s) AND c.relkind = 'r'
  AND NOT pg_has_role(c.relowner, 'USAGE')
UNION ALL
SELECT 'etl.' || p.proname
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname = 'etl' AND p.proname = ANY (%(names)s)
  AND NOT pg_has_role(p.proowner, 'USAGE')
ORDER BY 1
"""
_ALTERED = {
    20260415090000: ["table_schemas", "table_columns", "table_mappings"],
    20260415100000: ["describe_table_schema", "describe_table_identity", "emit_schema_change_messages"],
}


def plan(conn: psycopg.Connection, *, to: int | None = None) -> Plan:
    """Find out which versions are missing, up to and including ``to``, and what of them the connected role may run.

    Raises InputError for an unknown version, and OperationError for a database on which nothing can be built: an
    unknown version or another checksum is recorded, objects are gone, or are there without a record.
    """
    last = MIGRATIONS[-1].version if to is None else scripts.known(to).version
    row = conn.execute(_SESSION, [TRACKER]).fetchone()
    assert row is not None
    session = _Session(*row)
    if conn.info.server_version < _OLDEST * 10000:
        raise OperationError(
            f"the server is PostgreSQL {conn.info.server_version // 10000}, too old for pgrepl",
            hint=f"{_OLDEST} or newer is needed",
        )
    if session.standby:
        raise OperationError("the server is a standby and read-only", hint="connect to its primary")
    schema = etl_schema.read(conn)
    missing = [status.version for status in _sound(schema, schema.statuses(), last) if status.state == "missing"]
    steps: list[Step] = []
    for migration in MIGRATIONS:
        if migration.version in missing:
            steps.append(_step(conn, session, schema, migration, steps))
    return Plan(session.database, session.role, tuple(steps))


def refuse_unknown(statuses: Sequence[MigrationStatus]) -> None:
    """Raise OperationError where somebody recorded what is not of this revision, or a run that failed."""
    for status in statuses:
        if status.state == "unknown":
            raise OperationError(
                f"etl.{TRACKER} records version {status.version}, which is not of this revision",
                hint="a newer supabase/etl migrated this database: go on with that one",
            )
        if status.failed:
            raise OperationError(
                f"etl.{TRACKER} records version {status.version} as failed",
                hint="look what it left, then delete its row",
            )


def _sound(schema: EtlSchema, statuses: list[MigrationStatus], last: int) -> list[MigrationStatus]:
    """Return the statuses up to ``last`` if more can be built on them."""
    refuse_unknown(statuses)
    for status in statuses:
        if status.state == "checksum-mismatch":
            raise OperationError(
                f"version {status.version} is recorded with another checksum: {status.recorded_checksum}",
                hint="pgrepl migrations verify compares it with files",
            )
        if status.state == "objects-missing":
            damage = [str(found) for found in schema.differences() if found.version == status.version]
            raise OperationError(
                f"version {status.version} is recorded, but {'; '.join(damage)}",
                hint=f"pgrepl migrations sql {status.version} shows what belongs there",
            )
        if status.state == "missing" and status.objects_there:
            raise OperationError(
                f"what version {status.version} makes is there, but not recorded",
                hint="record it with: pgrepl migrations seed",
            )
    return [status for status in statuses if status.version <= last]


def _step(
    conn: psycopg.Connection, session: _Session, schema: EtlSchema, migration: Migration, before: list[Step]
) -> Step:
    statements = scripts.statements(migration.version)
    if not before:
        statements = (*_preparation(schema), *statements)
    statements += _grants(schema, migration)
    event_trigger = scripts.event_trigger(migration.version)
    if all(schema.objects.get(name) == what for name, what in migration.adds.items() if name.startswith("event ")):
        event_trigger = ()
    return Step(
        migration,
        statements,
        event_trigger,
        scripts.record(migration),
        _obstacle(conn, session, schema, migration, before),
    )


def _preparation(schema: EtlSchema) -> tuple[str, ...]:
    """Make what is not there; CREATE … IF NOT EXISTS asks for the right to make also what is."""
    statements = []
    if schema.owner is None:
        statements.append(scripts.CREATE_SCHEMA)
    if schema.recorded is None:
        statements.append(scripts.CREATE_TRACKER)
    return tuple(statements)


def _grants(schema: EtlSchema, migration: Migration) -> tuple[str, ...]:
    """Let the owner of the schema, who runs the pipeline, use functions also where somebody else makes them."""
    functions = [name.removeprefix("function ") for name in migration.adds if name.startswith("function etl.describe")]
    if not functions or schema.owner is None:
        return ()
    return (f"GRANT EXECUTE ON FUNCTION {', '.join(functions)} TO {quote_ident(schema.owner)}",)


def _obstacle(
    conn: psycopg.Connection, session: _Session, schema: EtlSchema, migration: Migration, before: list[Step]
) -> str | None:
    if before and before[-1].obstacle:
        return f"version {before[-1].migration.version} comes first"
    if schema.owner is None:
        return None if session.database_create else f"CREATE on database {session.database} is needed"
    if not session.schema_create:
        return "USAGE and CREATE on schema etl are needed"
    if session.tracker_insert is False:
        return f"INSERT on etl.{TRACKER} is needed"
    names = _ALTERED.get(migration.version, [])
    foreign = [name for (name,) in conn.execute(_FOREIGN, {"names": names})]
    return f"{', '.join(foreign)} must belong to {session.role}" if foreign else None
