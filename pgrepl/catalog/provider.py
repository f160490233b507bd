"""Traces of a managed service in a database: settings, roles and functions that only its servers have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psycopg

# Roles of managed services that stand for REPLICATION, an attribute that cannot be given there, by the service's name.
REPLICATION_ROLES = {"rds": "rds_replication", "yandex": "mdb_replication"}


@dataclass(frozen=True)
class Traces:
    """``prefixes`` are those of settings, the ``rds`` of rds.extensions; ``aurora``: aurora_version() exists."""

    prefixes: frozenset[str]
    roles: frozenset[str]
    aurora: bool

    @property
    def managed(self) -> bool:
        """Whether this is any managed service's server, where some may do what elsewhere only a superuser may."""
        return bool(self.prefixes or self.roles or self.aurora)


_PREFIXES = ["rds", "cloudsql", "alloydb", "azure", "neon"]
_ROLES = [
    "rds_superuser",
    "cloudsqlsuperuser",
    "alloydbsuperuser",
    "azure_pg_admin",
    "supabase_admin",
    "neon_superuser",
    "mdb_replication",
]

_TRACES = """
SELECT ARRAY(SELECT DISTINCT split_part(name, '.', 1) FROM pg_catalog.pg_settings
             WHERE split_part(name, '.', 1) = ANY (%s) AND strpos(name, '.') > 0),
       ARRAY(SELECT rolname::text FROM pg_catalog.pg_roles WHERE rolname = ANY (%s)),
       EXISTS (SELECT FROM pg_catalog.pg_proc WHERE proname = 'aurora_version')
"""


def traces(conn: psycopg.Connection) -> Traces:
    """Look for the traces of every managed service that is known here."""
    row = conn.execute(_TRACES, [_PREFIXES, _ROLES]).fetchone()
    assert row is not None
    return Traces(frozenset(row[0]), frozenset(row[1]), row[2])
