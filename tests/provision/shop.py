"""A shop's database, what a call of the command leaves, and everything in a database that setup could change."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

import psycopg

from tests.servers.database import Database

SHOP = """
CREATE SCHEMA shop;
CREATE TABLE shop.orders (id int PRIMARY KEY, note text);
CREATE TABLE shop.items (id int PRIMARY KEY);
CREATE TABLE shop.secrets (id int PRIMARY KEY);
"""


@dataclass(frozen=True)
class Outcome:
    """What one call of the command left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The JSON that it printed."""
        return json.loads(self.out)

    def steps(self, name: str) -> list[tuple[str, str]]:
        """The status and object of each step of a name."""
        return [(step["status"], step["object"]) for step in self.document["steps"] if step["step"] == name]

    @property
    def statements(self) -> list[str]:
        """All statements of all steps."""
        return [statement for step in self.document["steps"] for statement in step["statements"]]


class Setup(Protocol):
    """Run ``pgrepl setup`` or ``teardown`` with these arguments in a database, by default as superuser, with --yes and
    --json.
    """

    def __call__(
        self, database: Database, *arguments: str, user: str = ..., yes: bool = ..., as_json: bool = ...
    ) -> Outcome: ...


def scalar(conn: psycopg.Connection, query: str, *values: object) -> Any:
    """Ask for one value."""
    row = conn.execute(query.encode(), values or None).fetchone()
    assert row is not None
    return row[0]


_CATALOG = {
    "roles": """
        SELECT r.rolname, r.rolcanlogin, r.rolreplication, r.rolsuper, r.rolcreatedb, r.rolcreaterole, r.rolbypassrls,
               ARRAY(SELECT m.roleid::regrole::text FROM pg_auth_members m WHERE m.member = r.oid)
        FROM pg_roles r WHERE r.oid >= 16384""",
    "publications": """
        SELECT pubname, pg_get_userbyid(pubowner), puballtables, pubviaroot,
               pubinsert, pubupdate, pubdelete, pubtruncate
        FROM pg_publication""",
    "publication tables": """
        SELECT p.pubname, r.prrelid::regclass::text
        FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid""",
    "publication schemas": """
        SELECT p.pubname, n.pnnspid::regnamespace::text
        FROM pg_publication_namespace n JOIN pg_publication p ON p.oid = n.pnpubid""",
    "published": "SELECT pubname, schemaname, tablename FROM pg_publication_tables",
    "database": """
        SELECT coalesce(datacl, acldefault('d', datdba))::text FROM pg_database WHERE datname = current_database()""",
    "schemas": """
        SELECT nspname, coalesce(nspacl, acldefault('n', nspowner))::text
        FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%'""",
    "tables": """
        SELECT oid::regclass::text, coalesce(relacl, acldefault('r', relowner))::text, relreplident
        FROM pg_class WHERE relkind IN ('r', 'p') AND oid >= 16384""",
    "functions": """
        SELECT p.oid::regprocedure::text, pg_get_userbyid(p.proowner), p.prosrc,
               coalesce(p.proacl, acldefault('f', p.proowner))::text
        FROM pg_proc p WHERE p.oid >= 16384""",
    "relations": """
        SELECT c.oid::regclass::text, c.relkind, pg_get_userbyid(c.relowner)
        FROM pg_class c
        WHERE c.oid >= 16384 AND c.relkind NOT IN ('t', 'c') AND c.relnamespace <> 'pg_toast'::regnamespace""",
    "types": "SELECT oid::regtype::text, pg_get_userbyid(typowner) FROM pg_type WHERE oid >= 16384",
    "event triggers": "SELECT evtname, pg_get_userbyid(evtowner), evtfoid::regproc::text FROM pg_event_trigger",
    "slots": "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()",
    "defaults": """
        SELECT pg_get_userbyid(defaclrole), defaclnamespace::regnamespace::text, defaclobjtype, defaclacl::text
        FROM pg_default_acl""",
}


def catalog(database: Database) -> dict[str, list[Any]]:
    """Everything that setup could change, by name."""
    with database.connect() as conn:
        return {name: sorted(conn.execute(query.encode()).fetchall(), key=repr) for name, query in _CATALOG.items()}
