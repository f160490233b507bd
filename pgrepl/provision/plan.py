"""From what is wanted and what is there to a plan. Nothing is changed here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgrepl.catalog import publications
from pgrepl.provision import inventory
from pgrepl.provision.checks import check
from pgrepl.provision.grants import grant_steps
from pgrepl.provision.publication import Content, PublicationPlan, publication_steps
from pgrepl.provision.role import role_steps
from pgrepl.provision.steps import Plan
from pgrepl.provision.wanted import Wanted

if TYPE_CHECKING:
    import psycopg


def plan(conn: psycopg.Connection, wanted: Wanted) -> Plan:
    """Find out what is there, what is missing, and what of that the connected role may do.

    Raises OperationError for a server that does not fit, for a publication that is neither there nor described, and for
    tables that do not exist, cannot be published, or must not be as they are.
    """
    steps, check_notes = check(conn)
    session = inventory.session(conn)
    if wanted.only == "check":
        return Plan(session.database, tuple(steps), tuple(check_notes))
    tables = inventory.tables(conn)
    publication = _publication(conn, session, wanted, tables)
    notes = []
    if wanted.role is not None and wanted.only != "publication":
        role = role_steps(conn, session, wanted, wanted.role)
        notes += role.notes
        steps += role.steps
        steps += grant_steps(
            conn, session, wanted.role, role_comes=role.comes, content=publication.after, tables=tables
        )
    if wanted.only != "role":
        notes += publication.notes
        steps += publication.steps
    return Plan(session.database, tuple(steps), (*notes, *check_notes))


def _publication(
    conn: psycopg.Connection, session: inventory.Session, wanted: Wanted, tables: inventory.Tables
) -> PublicationPlan:
    # Asked for the role alone, a publication that is neither there nor described means that it has nothing to read.
    if wanted.only == "role" and not wanted.names_tables and publications.find(conn, wanted.publication) is None:
        return PublicationPlan([], [], Content())
    return publication_steps(conn, session, wanted, tables)
