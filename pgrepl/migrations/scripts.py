"""pgrepl's own SQL of the migrations, as statements for whoever runs it and as text for whoever reads it."""

from __future__ import annotations

from importlib import resources

from pgrepl.catalog.etl_manifest import MIGRATIONS, Migration, find
from pgrepl.errors import InputError

_FILES = {
    20250827000000: ("base",),
    20260415090000: ("schema_storage",),
    20260415100000: ("describe_functions", "emit_function"),
}
# Apart from the rest of its version, because as a rule only a superuser may make it.
_EVENT_TRIGGERS = {20260415100000: ("event_trigger",)}

CREATE_SCHEMA = "CREATE SCHEMA etl"
# Column by column what sqlx makes, which then finds its table already there.
CREATE_TRACKER = """\
CREATE TABLE etl._sqlx_migrations (
    version bigint PRIMARY KEY,
    description text NOT NULL,
    installed_on timestamp with time zone NOT NULL DEFAULT now(),
    success boolean NOT NULL,
    checksum bytea NOT NULL,
    execution_time bigint NOT NULL
)"""
_CREATE_SCHEMA_IF_ABSENT = """\
DO $$
BEGIN
    -- IF NOT EXISTS would need the right to create it also where it exists.
    IF to_regnamespace('etl') IS NULL THEN
        CREATE SCHEMA etl;
    END IF;
END
$$;"""
_NANOSECONDS = "(extract(epoch FROM clock_timestamp() - transaction_timestamp()) * 1000000000)::bigint"


def known(version: int) -> Migration:
    """Find the migration of a version. Raises InputError for one that is not of this revision."""
    migration = find(version)
    if migration is None:
        versions = ", ".join(str(migration.version) for migration in MIGRATIONS)
        raise InputError(f"{version} is not the version of a migration", hint=f"known: {versions}")
    return migration


def statements(version: int) -> tuple[str, ...]:
    """List the statements that make a version's objects on top of the version before, but for its event trigger."""
    return tuple(statement for name in _FILES[known(version).version] for statement in _statements(name))


def event_trigger(version: int) -> tuple[str, ...]:
    """List the statements that make a version's event trigger, for which as a rule one must be a superuser."""
    return tuple(
        statement for name in _EVENT_TRIGGERS.get(known(version).version, ()) for statement in _statements(name)
    )


def describe_functions() -> tuple[str, ...]:
    """List the statements that make the two functions which a pipeline needs also where it keeps no state."""
    return _statements("describe_functions")


def record(migration: Migration) -> str:
    """Write the statement that records a version as applied by the transaction in which it runs."""
    return _insert(migration, migration.checksum, _NANOSECONDS)


def record_seeded(migration: Migration, checksum: str) -> str:
    """Write the statement that records a version as there, without having run it."""
    return _insert(migration, checksum, "0")


def sql(version: int | None = None) -> str:
    """Write the SQL of one version, or of all, each in a transaction, to be run by psql or any other client.

    It records nothing: that is what ``seed`` is for. Raises InputError for an unknown version.
    """
    chosen = MIGRATIONS if version is None else (known(version),)
    return "\n".join(map(_text, chosen))


def _text(migration: Migration) -> str:
    names = (*_FILES[migration.version], *_EVENT_TRIGGERS.get(migration.version, ()))
    parts = [f"-- {migration.version}: {migration.description}", "BEGIN;", ""]
    if migration is MIGRATIONS[0]:
        parts += [_CREATE_SCHEMA_IF_ABSENT, ""]
    for name in names:
        parts.append(_read(name))
    return "\n".join([*parts, "COMMIT;", ""])


def _insert(migration: Migration, checksum: str, execution_time: str) -> str:
    return (
        "INSERT INTO etl._sqlx_migrations (version, description, success, checksum, execution_time)\n"
        f"VALUES ({migration.version}, '{migration.description}', true,\n"
        f"        decode('{checksum}', 'hex'),\n"
        f"        {execution_time})"
    )


def _read(name: str) -> str:
    return resources.files("pgrepl.migrations").joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")


def _statements(name: str) -> tuple[str, ...]:
    """Take a file apart: a blank line stands between statements and nowhere else."""
    return tuple(_without_comment(paragraph) for paragraph in _read(name).strip().split("\n\n"))


def _without_comment(paragraph: str) -> str:
    lines = paragraph.splitlines()
    while lines[0].startswith("--"):
        del lines[0]
    return "\n".join(lines).removesuffix(";")
