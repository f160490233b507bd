"""What is in schema ``etl``: the objects, what the tracker of migrations records, and how the two fit the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pgrepl.catalog.etl_manifest import MIGRATIONS, Migration, find, objects_after
from pgrepl.errors import OperationError

if TYPE_CHECKING:
    import psycopg

TRACKER = "_sqlx_migrations"

State = Literal["applied", "seeded", "missing", "checksum-mismatch", "objects-missing", "unknown"]


@dataclass(frozen=True)
class Recorded:
    """One row of the tracker; ``checksum`` in hexadecimal, ``execution_time`` in ns, 0 for a row that was seeded."""

    version: int
    description: str
    success: bool
    checksum: str
    execution_time: int


@dataclass(frozen=True)
class Difference:
    """An object that is not as a migration leaves it; ``found`` is None where it is not there at all."""

    version: int
    object: str
    expected: str
    found: str | None

    def __str__(self) -> str:
        return f"{self.object} is not there" if self.found is None else f"{self.object} is {self.found}"


@dataclass(frozen=True)
class MigrationStatus:
    """One version: how it stands, and the checksums that the tracker has and the manifest expects.

    ``objects_there`` says whether what it makes is in the database, be it recorded or not; None for an unknown
    version. ``failed`` is a record of a run that did not succeed, which stops whoever finds it.
    """

    version: int
    description: str
    state: State
    expected_checksum: str | None
    recorded_checksum: str | None
    objects_there: bool | None
    failed: bool = False

    @property
    def is_good(self) -> bool:
        """Whether supabase/etl would take it as done."""
        return self.state in ("applied", "seeded")

    def document(self) -> dict[str, Any]:
        """Give what is printed as JSON."""
        return {
            "version": self.version,
            "description": self.description,
            "expected_checksum": self.expected_checksum,
            "recorded_checksum": self.recorded_checksum,
            "state": self.state,
        }


@dataclass(frozen=True)
class EtlSchema:
    """Schema ``etl`` as it was found. ``owner`` is None when it is not there, ``recorded`` None without a tracker."""

    owner: str | None
    objects: Mapping[str, str]
    recorded: tuple[Recorded, ...] | None

    @property
    def level(self) -> int:
        """The newest version of which everything is there, with everything before it; 0 for none."""
        for migration in reversed(MIGRATIONS):
            if not _differences(self.objects, migration):
                return migration.version
        return 0

    def differences(self, version: int | None = None) -> list[Difference]:
        """Compare the objects with those after a version, by default the newest that is recorded or wholly there.

        What is there beyond them is no difference: nobody minds further objects in the schema.
        """
        migration = find(self._reached() if version is None else version)
        return [] if migration is None else _differences(self.objects, migration)

    def statuses(self) -> list[MigrationStatus]:
        """Say of each known and each recorded version how it stands, in their order."""
        recorded = {row.version: row for row in self.recorded or ()}
        versions = sorted({migration.version for migration in MIGRATIONS} | recorded.keys())
        level = self.level
        damaged = {difference.version for difference in self.differences()}
        return [self._status(version, recorded.get(version), level, damaged) for version in versions]

    def _status(self, version: int, row: Recorded | None, level: int, damaged: set[int]) -> MigrationStatus:
        migration = find(version)
        if migration is None:
            assert row is not None
            return MigrationStatus(version, row.description, "unknown", None, row.checksum, None, not row.success)
        there = version <= level or (version <= self._reached() and version not in damaged)
        state: State
        if row is None or not row.success:
            state = "missing"
        elif row.checksum != migration.checksum:
            state = "checksum-mismatch"
        elif not there:
            state = "objects-missing"
        else:
            state = "applied" if row.execution_time else "seeded"
        return MigrationStatus(
            version,
            migration.description,
            state,
            migration.checksum,
            row.checksum if row else None,
            there,
            failed=row is not None and not row.success,
        )

    def _reached(self) -> int:
        known = [row.version for row in self.recorded or () if row.success and find(row.version)]
        return max(self.level, *known) if known else self.level


def _differences(objects: Mapping[str, str], migration: Migration) -> list[Difference]:
    made_by = {name: m.version for m in MIGRATIONS if m.version <= migration.version for name in m.adds}
    return [
        Difference(made_by[name], name, expected, objects.get(name))
        for name, expected in objects_after(migration.version).items()
        if objects.get(name) != expected
    ]


_SCHEMA = """
SELECT n.oid, pg_catalog.pg_get_userbyid(n.nspowner)::text, has_schema_privilege(n.oid, 'USAGE'),
       c.oid, has_table_privilege(c.oid, 'SELECT')
FROM pg_catalog.pg_namespace n
LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = %s AND c.relkind = 'r'
WHERE n.nspname = 'etl'
"""

# Names are printed with their schema, since pgrepl's connections have an empty search_path.
# ENABLE ALWAYS makes a trigger fire in more cases, never in fewer.
_OBJECTS = """
SELECT 'type etl.' || t.typname, 'ENUM (' || string_agg(e.enumlabel, ', ' ORDER BY e.enumsortorder) || ')'
FROM pg_catalog.pg_type t JOIN pg_catalog.pg_enum e ON e.enumtypid = t.oid
WHERE t.typnamespace = %(schema)s
GROUP BY t.typname
UNION ALL
SELECT format('column etl.%%s.%%s', c.relname, a.attname),
       format_type(a.atttypid, a.atttypmod)
       || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
       || CASE a.attidentity WHEN 'a' THEN ' GENERATED ALWAYS AS IDENTITY'
                             WHEN 'd' THEN ' GENERATED BY DEFAULT AS IDENTITY' ELSE '' END
       || coalesce(' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid), '')
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = %(schema)s AND c.relkind = 'r'
UNION ALL
SELECT format('constraint %%s on etl.%%s', k.conname, c.relname), pg_get_constraintdef(k.oid)
FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
WHERE c.relnamespace = %(schema)s AND k.contype <> 'n'
UNION ALL
SELECT 'index etl.' || x.relname, pg_get_indexdef(x.oid)
FROM pg_catalog.pg_class x
WHERE x.relnamespace = %(schema)s AND x.relkind = 'i'
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conindid = x.oid AND k.contype IN ('p', 'u', 'x'))
UNION ALL
SELECT format('function etl.%%s(%%s)', p.proname, pg_get_function_arguments(p.oid)),
       'RETURNS ' || pg_get_function_result(p.oid) || ' LANGUAGE ' || l.lanname
       || CASE p.provolatile WHEN 'i' THEN ' IMMUTABLE' WHEN 's' THEN ' STABLE' ELSE ' VOLATILE' END
       || CASE WHEN p.proisstrict THEN ' STRICT' ELSE '' END
       || CASE WHEN p.prosecdef THEN ' SECURITY DEFINER' ELSE '' END
       || coalesce(' SET ' || array_to_string(p.proconfig, ' SET '), '')
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang
WHERE p.pronamespace = %(schema)s AND p.prokind = 'f'
UNION ALL
SELECT 'event trigger ' || t.evtname,
       'ON ' || t.evtevent
       || coalesce(' WHEN TAG IN (' || array_to_string(t.evttags, ', ') || ')', '')
       || format(' EXECUTE FUNCTION %%s.%%s()', n.nspname, p.proname)
       || CASE t.evtenabled WHEN 'D' THEN ', disabled' WHEN 'R' THEN ', on replicas only' ELSE '' END
FROM pg_catalog.pg_event_trigger t
JOIN pg_catalog.pg_proc p ON p.oid = t.evtfoid
JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
"""

_RECORDED = """
SELECT version, description, success, encode(checksum, 'hex'), execution_time
FROM etl._sqlx_migrations
ORDER BY version
"""


def read(conn: psycopg.Connection) -> EtlSchema:
    """Read schema ``etl``. Raises OperationError when the connected role may not read the tracker."""
    found = conn.execute(_SCHEMA, [TRACKER]).fetchone()
    schema, owner, usage, tracker, select = found or (None, None, False, None, False)
    objects: dict[str, str] = dict(conn.execute(_OBJECTS, {"schema": schema}).fetchall())
    recorded = None
    if tracker is not None:
        if not (usage and select):
            raise OperationError(
                f"etl.{TRACKER} cannot be read by the connected role",
                hint=f"it needs USAGE on schema etl and SELECT on etl.{TRACKER}",
                sqlstate="42501",
            )
        recorded = tuple(Recorded(*row) for row in conn.execute(_RECORDED))
    return EtlSchema(owner, objects, recorded)
