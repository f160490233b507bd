"""From what is wanted and what is there to a plan. Nothing is changed here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgrepl.catalog import publications, roles
from pgrepl.catalog import server as catalog
from pgrepl.errors import OperationError
from pgrepl.provision import inventory
from pgrepl.provision.checks import check
from pgrepl.provision.grants import grant_steps
from pgrepl.provision.member import member
from pgrepl.provision.publication import Content, PublicationPlan, publication_steps
from pgrepl.provision.role import role_steps
from pgrepl.provision.state import bookmarks_steps, state_steps
from pgrepl.provision.steps import Note, Plan
from pgrepl.provision.wanted import Wanted

if TYPE_CHECKING:
    import psycopg


def plan(conn: psycopg.Connection, wanted: Wanted) -> Plan:
    """Find out what is there, what is missing, and what of that the connected role may do.

    Raises OperationError for a server that does not fit, for a publication that is neither there nor described, and for
    tables that do not exist, cannot be published, or must not be as they are.
    """
    server, steps, check_notes = check(conn)
    session = inventory.session(conn)
    if wanted.only == "check":
        return Plan(session.database, tuple(steps), tuple(check_notes), server.system_identifier)
    notes: list[Note] = []
    comes = wanted.role is None or roles.can_replicate(conn, wanted.role) is not None
    publication = None
    if wanted.only in (None, "role", "publication"):
        tables = inventory.tables(conn)
        publication = _publication(conn, session, wanted, tables)
    if publication is not None and wanted.role is not None and wanted.only != "publication":
        role = role_steps(conn, session, wanted, wanted.role)
        comes = role.comes
        notes += role.notes
        steps += role.steps
        steps += grant_steps(conn, session, wanted.role, role_comes=comes, content=publication.after, tables=tables)
    if wanted.only in (None, "schema", "migrations"):
        if wanted.only and not comes:
            raise OperationError(f"role {wanted.role!r} does not exist", hint="make it with --only role")
        steps += state_steps(conn, session, wanted, member(conn, session, wanted.role, comes=comes))
    if publication is not None and wanted.only != "role":
        notes += publication.notes
        steps += publication.steps
    return Plan(session.database, tuple(steps), (*notes, *check_notes), server.system_identifier)


def plan_bookmarks(conn: psycopg.Connection, wanted: Wanted, source: Plan) -> Plan:
    """Plan the table of bookmarks in a database of its own, which ``conn`` is connected to.

    ``source`` is the plan of the database that is replicated. Where that is of the same server, the role that it makes
    is there by then; of another server only a role that exists there gets its grants, and else the connected one, which
    owns the table, is to use it.
    """
    session = inventory.session(conn)
    here = catalog.read(conn)
    notes: list[Note] = []
    role = wanted.role
    if role is not None and roles.can_replicate(conn, role) is None:
        same = here.system_identifier is not None and here.system_identifier == source.system_identifier
        makes = any(step.name == "role" and step.status == "planned" and step.object == role for step in source.steps)
        if not (same and makes):
            notes.append(Note(f"role {role} is not on the server of --state-dsn: {session.role} uses the bookmarks"))
            role = None
    acting = member(conn, session, role, comes=True)
    steps = bookmarks_steps(conn, session, wanted, acting)
    address = (conn.info.host, conn.info.port)
    return Plan(session.database, tuple(steps), tuple(notes), here.system_identifier, address)


def _publication(
    conn: psycopg.Connection, session: inventory.Session, wanted: Wanted, tables: inventory.Tables
) -> PublicationPlan:
    # Asked for the role alone, a publication that is neither there nor described means that it has nothing to read.
    if wanted.only == "role" and not wanted.names_tables and publications.find(conn, wanted.publication) is None:
        return PublicationPlan([], [], Content())
    return publication_steps(conn, session, wanted, tables)
