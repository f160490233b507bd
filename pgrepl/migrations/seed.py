"""Recording migrations whose objects are there, so that supabase/etl takes the database as one that it migrated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgrepl.catalog import etl_schema
from pgrepl.catalog.etl_manifest import MIGRATIONS, REVISION
from pgrepl.catalog.etl_schema import TRACKER
from pgrepl.connection import server_error
from pgrepl.errors import OperationError
from pgrepl.migrations import scripts
from pgrepl.migrations.apply import locked_script, transaction
from pgrepl.migrations.lock import DEFAULT_LOCK_TIMEOUT, locked, timeout_setting
from pgrepl.migrations.plan import refuse_unknown

if TYPE_CHECKING:
    import psycopg

# What the migrations are recorded with unless somebody says otherwise: the published checksums.
PINNED: Mapping[int, str] = {migration.version: migration.checksum for migration in MIGRATIONS}


@dataclass(frozen=True)
class SeedPlan:
    """The versions that are to be recorded, and the statements that do it in one transaction."""

    database: str
    versions: tuple[int, ...]
    statements: tuple[str, ...]

    @property
    def script(self) -> str:
        """The same as a script for psql."""
        if not self.versions:
            return "-- nothing to do\n"
        return locked_script(self.database, transaction(self.statements))


def accept(checksums: Mapping[int, str], *, any_revision: bool = False) -> Mapping[int, str]:
    """Return checksums (SHA-384 in hexadecimal, by version) that can be recorded.

    Raises OperationError for those of another revision unless ``any_revision``, and in any case for a set of versions
    that is not this revision's: what they make cannot be compared with anything.
    """
    if checksums.keys() != PINNED.keys():
        strange = sorted(checksums.keys() - PINNED.keys())
        raise OperationError(
            f"version {strange[0]} is not of revision {REVISION}: what it makes is not known"
            if strange
            else f"there is no file of version {min(PINNED.keys() - checksums.keys())}"
        )
    for version, checksum in checksums.items():
        if checksum != PINNED[version] and not any_revision:
            raise OperationError(
                f"the file of version {version} is not that of revision {REVISION}: its SHA-384 is {checksum}",
                hint="line ends changed by git count; --accept-revision takes the files as they are",
            )
    return checksums


def plan_seed(conn: psycopg.Connection, checksums: Mapping[int, str] = PINNED) -> SeedPlan:
    """Find out which versions are not recorded yet.

    Raises OperationError when the objects of one are not there, or one is recorded with another checksum.
    """
    schema = etl_schema.read(conn)
    statuses = schema.statuses()
    refuse_unknown(statuses)
    for status in statuses:
        if status.recorded_checksum not in (None, checksums[status.version]):
            raise OperationError(
                f"version {status.version} is recorded with another checksum: {status.recorded_checksum}",
                hint="pgrepl migrations verify compares it with files",
            )
    newest = MIGRATIONS[-1].version
    lacking = schema.differences(newest)
    if lacking:
        first = min(found.version for found in lacking)
        raise OperationError(
            f"version {first} cannot be recorded: " + "; ".join(str(f) for f in lacking if f.version == first),
            hint="make what is missing with: pgrepl migrations apply"
            if all(status.recorded_checksum for status in statuses if status.version < first)
            else f"make what is missing with the SQL of: pgrepl migrations sql {first}",
        )
    missing = [migration for migration in MIGRATIONS if _is_missing(schema, migration.version)]
    statements = () if schema.recorded is not None else (scripts.CREATE_TRACKER,)
    records = [scripts.record_seeded(migration, checksums[migration.version]) for migration in missing]
    return SeedPlan(
        conn.info.dbname, tuple(migration.version for migration in missing), (*statements, *records) if records else ()
    )


def seed(
    conn: psycopg.Connection,
    checksums: Mapping[int, str] = PINNED,
    *,
    lock_timeout: float = DEFAULT_LOCK_TIMEOUT,
) -> tuple[int, ...]:
    """Record what is there and not recorded, all of it or nothing; return the versions that were.

    ``conn`` is in autocommit mode. Raises OperationError, also for what ``plan_seed`` refuses.
    """
    import psycopg

    with locked(conn, conn.info.dbname, lock_timeout):
        planned = plan_seed(conn, checksums)
        try:
            with conn.transaction():
                conn.execute(timeout_setting(lock_timeout).encode())
                for statement in planned.statements:
                    conn.execute(statement.encode())
        except psycopg.Error as error:
            raise server_error(error, f"etl.{TRACKER} cannot be written, nothing was changed") from None
    return planned.versions


def _is_missing(schema: etl_schema.EtlSchema, version: int) -> bool:
    return version not in {row.version for row in schema.recorded or ()}
