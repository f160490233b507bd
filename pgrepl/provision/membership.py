"""Making a publication, adding to one, and taking something out of one: each as a plan, which ``apply`` runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pgrepl.catalog import publications
from pgrepl.errors import OperationError
from pgrepl.names import quote_ident
from pgrepl.provision import inventory
from pgrepl.provision.inventory import Table, Tables
from pgrepl.provision.publication import Content, content_of, publication_steps
from pgrepl.provision.steps import Note, Plan, Statement, Status, Step
from pgrepl.provision.wanted import Wanted

if TYPE_CHECKING:
    import psycopg


def plan_create(conn: psycopg.Connection, wanted: Wanted) -> Plan:
    """Plan a new publication.

    Raises OperationError when there is one of that name, for tables that do not exist or cannot be published, and for
    those whose UPDATE and DELETE would begin to fail.
    """
    if publications.find(conn, wanted.publication) is not None:
        raise OperationError(
            f"publication {wanted.publication!r} exists", hint="pgrepl publications add puts more into it"
        )
    return _plan(conn, wanted, "publications create")


def plan_add(conn: psycopg.Connection, wanted: Wanted) -> Plan:
    """Plan what an existing publication is to publish besides: tables, schemas, operations; nothing is taken away.

    Raises OperationError as ``plan_create`` does, but when there is no publication of that name.
    """
    find_publication(conn, wanted.publication)
    return _plan(conn, wanted, "publications add")


def _plan(conn: psycopg.Connection, wanted: Wanted, command: str) -> Plan:
    session = inventory.session(conn)
    planned = publication_steps(conn, session, wanted, inventory.tables(conn))
    return Plan(session.database, tuple(planned.steps), tuple(planned.notes), command=command)


def plan_remove(
    conn: psycopg.Connection,
    publication: str,
    *,
    tables: Sequence[tuple[str, str]] = (),
    schemas: Sequence[str] = (),
    if_exists: bool = False,
) -> Plan:
    """Plan to take tables (schema, name), with those that inherit from them, and whole schemas out of a publication.

    With ``if_exists`` what is not in the publication is skipped. Raises OperationError for a publication that does not
    exist, and for what it publishes without naming it: one table of a schema, a partition of a table, or a part of
    everything.
    """
    session = inventory.session(conn)
    known = inventory.tables(conn)
    found = find_publication(conn, publication)
    content = content_of(conn, found)
    chosen: list[Table] = []
    skipped: list[str] = []
    for name in dict.fromkeys(tables):
        table = known.by_name.get(name)
        listed = [] if table is None else [each for each in known.with_children(table) if each.oid in content.tables]
        if table is not None and table.oid not in content.tables:
            _refuse_unnamed(publication, table, content, known)
        if not listed:
            skipped.append(".".join(name))
        chosen += [each for each in listed if each not in chosen]
    kept = [schema for schema in dict.fromkeys(schemas) if known.schemas.get(schema) in content.schemas]
    skipped += [schema for schema in dict.fromkeys(schemas) if schema not in kept]
    if content.all_tables:
        raise OperationError(
            f"publication {publication!r} publishes all tables, of which none can be taken out",
            hint="make another publication, of the tables that are to stay",
        )
    if skipped and not if_exists:
        raise OperationError(
            f"not in publication {publication!r}: {', '.join(skipped)}",
            hint=f"pgrepl publications show {publication} lists what is in it",
        )
    steps = [Step("publication", "skipped", label, "is not in it") for label in skipped]
    statements = _drop(publication, chosen, kept)
    notes = []
    if statements:
        mine = session.superuser or publications.owned(conn, found.oid)
        status: Status = "planned" if mine else "needs_superuser"
        labels = [f"all tables of {schema}" for schema in kept] + [table.label for table in chosen]
        summary = f"no longer publishes {', '.join(labels)}"
        steps.insert(0, Step("publication", status, publication, summary, tuple(statements), "altered"))
        if len(chosen) == len(content.tables) and len(kept) == len(content.schemas):
            notes.append(Note(f"publication {publication} is empty then, and its stream says nothing"))
    return Plan(session.database, tuple(steps), tuple(notes), command="publications remove")


def find_publication(conn: psycopg.Connection, name: str) -> publications.Publication:
    """Read a publication that must be there; raises OperationError."""
    found = publications.find(conn, name)
    if found is None:
        raise OperationError(
            f"there is no publication {name!r} in database {conn.info.dbname}",
            hint="pgrepl publications list shows those there are",
        )
    return found


def _refuse_unnamed(publication: str, table: Table, content: Content, known: Tables) -> None:
    """Refuse to take out what comes along with something else, saying with what."""
    if content.all_tables:
        return
    for above in known.ancestors(table):
        if content.names(above):
            raise OperationError(
                f"{table.label} is in publication {publication!r} as a part of {above.label}",
                hint=f"only {above.label} as a whole can be taken out",
            )
    if content.names(table):
        raise OperationError(
            f"{table.label} is in publication {publication!r} with all tables of schema {table.schema}",
            hint=f"--in-schema {table.schema} takes out the schema; then add those of its tables that are to stay",
        )


def _drop(publication: str, tables: Sequence[Table], schemas: Sequence[str]) -> list[Statement]:
    parts = []
    if schemas:
        parts.append("TABLES IN SCHEMA " + ", ".join(map(quote_ident, schemas)))
    if tables:
        parts.append("TABLE " + ", ".join(("ONLY " if table.children else "") + table.qualified for table in tables))
    if not parts:
        return []
    sql = f"ALTER PUBLICATION {quote_ident(publication)} DROP {', '.join(parts)}"
    return [Statement(sql, locks=tuple(table.oid for table in tables))]
