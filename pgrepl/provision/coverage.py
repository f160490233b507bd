"""Does a publication stream all changes of a set of tables, and if not, what would make it do so?

A required table stands for all rows that a query of it reads: a partitioned table for its partitions, those of
tomorrow too, and a table that others inherit from for these as well. It is covered when every such row's changes are
streamed whole, under whatever name (``published_as``): with publish_via_partition_root a partition's changes come
under the name of the table at the top, without it those of a partitioned table under the names of its partitions. What
no setting changes is no gap: a TRUNCATE of a partition itself is not streamed with publish_via_partition_root.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pgrepl.catalog import publications
from pgrepl.catalog.publications import Membership, Publication, PublishedTable
from pgrepl.errors import OperationError
from pgrepl.names import quote_ident
from pgrepl.provision import inventory
from pgrepl.provision.apply import DEFAULT_LOCK_TIMEOUT, apply
from pgrepl.provision.inventory import Session, Table, Tables
from pgrepl.provision.publication import (
    Content,
    content_of,
    publication_steps,
    restricted_too_far,
    without_identity,
)
from pgrepl.provision.script import comment
from pgrepl.provision.steps import Plan, Step
from pgrepl.provision.wanted import OPERATIONS, Wanted

if TYPE_CHECKING:
    import psycopg

GapKind = Literal["not_there", "not_published", "partitions", "children", "row_filter", "columns"]


@dataclass(frozen=True)
class Gap:
    """One reason why a table is not covered, with a text for people."""

    kind: GapKind
    text: str


@dataclass(frozen=True)
class TableCoverage:
    """How a required table fares; ``published_as`` are the tables under whose names its changes come."""

    schema: str
    name: str
    published_as: tuple[tuple[str, str], ...] = ()
    gaps: tuple[Gap, ...] = ()

    @property
    def label(self) -> str:
        """The name for people."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True)
class Coverage:
    """The answer for one publication and a set of tables.

    ``present`` and ``missing`` are the required tables that are covered and those that are not, each by schema and
    name. ``missing_operations`` are those that are needed and that the publication leaves out, for every table.
    ``blockers`` are the reasons why ``ensure`` would not close the gap, none when it would: what the connected role may
    not do, and what only a person can decide. ``remediation`` are the SQL statements that close it, to be run in one
    transaction by somebody who may; what no statement can change is in the blockers alone.
    """

    publication: str
    exists: bool
    present: tuple[TableCoverage, ...]
    missing: tuple[TableCoverage, ...]
    missing_operations: tuple[str, ...]
    blockers: tuple[str, ...]
    remediation: tuple[str, ...]
    plan: Plan

    @property
    def satisfied(self) -> bool:
        """Whether every change that is needed is streamed."""
        return not (self.missing or self.missing_operations)

    @property
    def manageable(self) -> bool:
        """Whether there is no gap that ``ensure`` could not close."""
        return self.satisfied or not self.blockers

    def script(self) -> str:
        """Give the remediation as a script for psql, all or nothing."""
        if not self.remediation:
            return ""
        lines = [comment(f"to be run in database {self.plan.database}"), "\\set ON_ERROR_STOP on", "BEGIN;"]
        return "\n".join([*lines, *self.remediation, "COMMIT;"]) + "\n"

    def document(self, applied: Sequence[str] = ()) -> dict[str, Any]:
        """Give the report as a JSON object; ``applied`` are the statements that were run before it was made."""
        return {
            "publication": self.publication,
            "exists": self.exists,
            "satisfied": self.satisfied,
            "present": [_document(table) for table in self.present],
            "missing": [
                {**_document(table), "gaps": [{"kind": gap.kind, "text": gap.text} for gap in table.gaps]}
                for table in self.missing
            ],
            "missing_operations": list(self.missing_operations),
            "manageable": self.manageable,
            "blockers": list(self.blockers),
            "remediation": list(self.remediation),
            "applied": list(applied),
        }


def _document(table: TableCoverage) -> dict[str, Any]:
    names = [{"schema": schema, "table": name} for schema, name in table.published_as]
    return {"schema": table.schema, "table": table.name, "published_as": names}


def inspect(
    conn: psycopg.Connection,
    publication: str,
    required: Iterable[tuple[str, str]],
    *,
    operations: Collection[str] = OPERATIONS,
) -> Coverage:
    """Compare what a publication streams with the tables (schema, name) and operations that are needed.

    Changes nothing. The number of queries does not depend on the number of tables. Raises InputError for operations
    that there are not, and for a name that cannot be a publication's.
    """
    Wanted(publication, publish=tuple(operations))
    names = sorted(set(required))
    session = inventory.session(conn)
    tables = inventory.tables(conn)
    found = publications.find(conn, publication)
    unfit = inventory.unfit(conn, tables, names)
    view = _View(conn, found, tables, names)
    covered = [
        TableCoverage(*name, gaps=(Gap("not_there", str(unfit[name])),))
        if name in unfit
        else view.coverage(tables.by_name[name])
        for name in names
    ]
    missing = tuple(table for table in covered if table.gaps)
    unpublished = set(operations) - set(found.operations) if found else set()
    lack = _Missing(missing, tuple(name for name in OPERATIONS if name in unpublished))
    plan, blockers, remediation = Plan(session.database, ()), list[str](), list[str]()
    if lack.tables or lack.operations:
        plan, blockers, remediation = _remedy(conn, session, view, lack, _wanted(publication, view, lack, operations))
    return Coverage(
        publication=publication,
        exists=found is not None,
        present=tuple(table for table in covered if not table.gaps),
        missing=missing,
        missing_operations=lack.operations,
        blockers=tuple(dict.fromkeys(blockers)),
        remediation=tuple(f"{statement};" for statement in remediation),
        plan=plan,
    )


def ensure(
    conn: psycopg.Connection,
    publication: str,
    required: Iterable[tuple[str, str]],
    *,
    operations: Collection[str] = OPERATIONS,
    lock_timeout: float = DEFAULT_LOCK_TIMEOUT,
) -> tuple[Coverage, tuple[str, ...]]:
    """Close the gap where nothing is in the way, in one transaction, and return the report then and what was run.

    With blockers nothing is run, and the report tells them. Nothing is dropped, and no row filter or column list is
    lifted: somebody chose it. ``lock_timeout`` is in seconds. Raises OperationError when a statement fails or a lock is
    not to be had; the server is then as it was before.
    """
    required = list(required)
    report = inspect(conn, publication, required, operations=operations)
    if report.satisfied or not report.manageable:
        return report, ()
    try:
        apply(conn, report.plan, lock_timeout=lock_timeout)
    except OperationError as error:
        # Somebody else did the same meanwhile: what is there by now counts.
        if error.sqlstate != _DUPLICATE_OBJECT:
            raise
        return inspect(conn, publication, required, operations=operations), ()
    return inspect(conn, publication, required, operations=operations), report.remediation


_DUPLICATE_OBJECT = "42710"


@dataclass(frozen=True)
class _Missing:
    """All that is missing: tables, and operations of every table."""

    tables: tuple[TableCoverage, ...]
    operations: tuple[str, ...]


# Parts of a table that no publication can hold, although its rows are read with the table's own.
_UNSTREAMED = """
WITH RECURSIVE below (top, oid) AS (
    SELECT w.oid, i.inhrelid FROM unnest(%s::oid[]) AS w (oid) JOIN pg_catalog.pg_inherits i ON i.inhparent = w.oid
    UNION
    SELECT b.top, i.inhrelid FROM below b JOIN pg_catalog.pg_inherits i ON i.inhparent = b.oid
)
SELECT b.top, n.nspname || '.' || c.relname,
       CASE WHEN c.relkind = 'f' THEN 'is a foreign table' ELSE 'is not in the WAL (unlogged or temporary)' END
FROM below b
JOIN pg_catalog.pg_class c ON c.oid = b.oid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'f' OR (c.relkind = 'r' AND c.relpersistence <> 'p')
ORDER BY 2
"""


class _View:
    """What a publication streams, as it looks from the required tables."""

    def __init__(
        self, conn: psycopg.Connection, found: Publication | None, tables: Tables, names: Sequence[tuple[str, str]]
    ) -> None:
        self.found = found
        self.tables = tables
        self.content = Content() if found is None else content_of(conn, found)
        self._published: dict[int, PublishedTable] = {}
        self._memberships: dict[int, Membership] = {}
        if found is not None:
            self._published = {each.oid: each for each in publications.published_tables(conn, [found.name])}
            self._memberships = publications.memberships(conn, found.name)
        self._unstreamed: dict[int, list[str]] = {}
        required = [tables.by_name[name].oid for name in names if name in tables.by_name]
        for oid, label, why in conn.execute(_UNSTREAMED, [required]):
            self._unstreamed.setdefault(oid, []).append(f"{label} {why}")

    def coverage(self, table: Table) -> TableCoverage:
        """Look at one required table with all that belongs to it."""
        names: dict[int, tuple[str, str]] = {}
        gaps: list[Gap] = []
        for part in self.tables.with_children(table):
            carriers = [each for leaf in self.tables.leaves(part) for each in self._carriers(leaf)]
            if part.partitioned and not carriers:
                carriers = list(self._carriers(part))
            names |= {each.oid: (each.schema, each.name) for each in carriers}
            gaps += self._gaps(table, part)
            gaps += [gap for each in dict.fromkeys(carriers) for gap in self._restrictions(each, table)]
        gaps += [Gap("partitions" if table.partitioned else "children", text) for text in self.unstreamed(table)]
        return TableCoverage(table.schema, table.name, tuple(sorted(names.values())), tuple(dict.fromkeys(gaps)))

    def unstreamed(self, table: Table) -> list[str]:
        """Say which parts of the table no publication can hold."""
        return self._unstreamed.get(table.oid, [])

    def restricted(self, table: Table) -> list[PublishedTable]:
        """List the tables whose row filter or column list keeps changes of this one back."""
        carriers = {
            each.oid: each
            for part in self.tables.with_children(table)
            for leaf in (part, *self.tables.leaves(part))
            for each in self._carriers(leaf)
        }
        return [each for _, each in sorted(carriers.items()) if any(self._restrictions(each, table))]

    def _carriers(self, table: Table) -> Iterator[PublishedTable]:
        """Give the published table under whose name changes of this table come, if there is one."""
        for each in (table, *self.tables.ancestors(table)):
            if each.oid in self._published:
                yield self._published[each.oid]

    def _gaps(self, table: Table, part: Table) -> Iterator[Gap]:
        if self.content.covers(part, self.tables):
            return
        if part is not table:
            yield Gap("children", f"{part.label}, which inherits from it, is not published")
        elif not part.partitioned:
            yield Gap("not_published", "not published")
        else:
            leaves = list(self.tables.leaves(part))
            absent = [leaf.label for leaf in leaves if not any(self._carriers(leaf))]
            if len(absent) == len(leaves):
                yield Gap("not_published", "not published")
            elif absent:
                yield Gap("partitions", f"of its partitions these are not published: {', '.join(absent)}")
            else:
                yield Gap("partitions", "its partitions are published one by one, so that a new one would not be")

    def _restrictions(self, published: PublishedTable, table: Table) -> Iterator[Gap]:
        whose = "" if published.oid == table.oid else f"{published.qualified} is "
        if published.row_filter is not None:
            yield Gap("row_filter", f"{whose}published with WHERE {published.row_filter}")
        membership = self._memberships.get(published.oid)
        if membership is not None and membership.left_out:
            yield Gap("columns", f"{whose}published without {', '.join(membership.left_out)}")


def _wanted(publication: str, view: _View, lack: _Missing, operations: Collection[str]) -> Wanted:
    """Say what would close the gap; inheriting tables come along by themselves."""
    names = tuple(
        (table.schema, table.name) for table in lack.tables if (table.schema, table.name) in view.tables.by_name
    )
    needed = set(operations)
    if view.found is not None:
        needed = needed.union(view.found.operations) if lack.operations else set()
    return Wanted(publication, tables=names, publish=tuple(name for name in OPERATIONS if name in needed) or None)


def _remedy(
    conn: psycopg.Connection, session: Session, view: _View, lack: _Missing, wanted: Wanted
) -> tuple[Plan, list[str], list[str]]:
    """Plan how the gap is closed; say what is in the way, and all statements that somebody who may would run."""
    blockers = [each.text for table in lack.tables for each in table.gaps if each.kind == "not_there"]
    required = [view.tables.by_name[name] for name in wanted.tables]
    blockers += [f"{table.label}: {text}" for table in required for text in view.unstreamed(table)]
    if conn.info.parameter_status("in_hot_standby") == "on":
        blockers.append("the server is a standby and read-only: connect to its primary")
    lifted = {each.oid: each for table in required for each in view.restricted(table)}
    for each in lifted.values():
        blockers.append(f"{each.qualified}: somebody chose its row filter or column list, which is not lifted here")
    if view.found is not None and lack.operations:
        after = replace(view.content, operations=view.content.operations | set(lack.operations))
        for other in restricted_too_far(conn, view.found, after):
            if other.oid not in lifted:
                why = "row filter or column list and replica identity do not fit together"
                blockers.append(f"{other.schema}.{other.name}: {why}, so that UPDATE and DELETE would fail")
                wanted = replace(wanted, publish=None)
    steps: list[Step] = []
    lacking: list[Table] = []
    notes: Sequence[Any] = ()
    if required or (view.found is not None and wanted.publish):
        # As if every table had a replica identity: which of them lack it is told apart below, with the way out.
        fit = Tables((replace(table, has_identity=True) for table in view.tables), view.tables.schemas)
        planned = publication_steps(conn, session, wanted, fit, lifted=lifted)
        steps, notes = [step for step in planned.steps if step.statements], planned.notes
        before = None if view.found is None else view.content
        broken = without_identity(before, planned.after, view.tables)
        lacking = list({table.oid: table for tables in broken.values() for table in tables}.values())
        blockers += [
            f"{table.label}: no usable replica identity, so that UPDATE and DELETE would fail once published"
            for table in lacking
        ]
        blockers += _rights(conn, session, view, steps)
    statements = [table.remedy for table in lacking]
    statements += [sql for each in lifted.values() for sql in _without_restrictions(wanted.publication, each)]
    statements += [statement.text for step in steps for statement in step.statements]
    return Plan(session.database, tuple(steps), tuple(notes)), blockers, statements


def _rights(conn: psycopg.Connection, session: Session, view: _View, steps: Sequence[Step]) -> Iterator[str]:
    """Name what the connected role lacks: PostgreSQL documentation, Logical Replication, Security."""
    if session.superuser or all(step.status == "planned" for step in steps):
        return
    if view.found is None:
        if not session.create_in_database:
            yield f"role {session.role} may not create anything in database {session.database}"
    elif not publications.owned(conn, view.found.oid):
        yield f"role {session.role} does not own publication {view.found.name}"
    for step in steps:
        for statement in step.statements:
            for table in (view.tables.by_oid[oid] for oid in statement.locks):
                if not table.owned:
                    yield f"role {session.role} does not own table {table.label}"


def _without_restrictions(publication: str, table: PublishedTable) -> Iterator[str]:
    name = f"{quote_ident(table.schema)}.{quote_ident(table.name)}"
    only = "" if table.relkind == "p" else "ONLY "
    for verb in ("DROP", "ADD"):
        yield f"ALTER PUBLICATION {quote_ident(publication)} {verb} TABLE {only}{name}"
