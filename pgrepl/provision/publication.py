"""The publication: what it covers now, what it shall cover, and the statements in between.

Decision on ``--all-tables``, which has to keep the state of supabase/etl out of a stream that would feed on itself:

- A superuser gets FOR ALL TABLES as long as schema ``etl`` holds no table that could be published (with pgrepl's memory
  store it holds functions only) and the postgres store is not to be made, else TABLES IN SCHEMA of every user schema
  but ``etl``. Both take in future tables.
- A table of bookmarks in the same database is kept out by listing the tables of its schema.
- When tables without a replica identity are to be left out (``--skip-keyless``), neither form can do that: then it is
  TABLES IN SCHEMA where nothing is left out, and elsewhere the tables are listed, and future ones are not in it.
- Without superuser neither may be made: the tables of the connected role are listed, those of others go into the script
  of what is needed.
- A publication that lists tables cannot become FOR ALL TABLES: it gets the schemas added.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pgrepl.catalog import publications
from pgrepl.errors import OperationError
from pgrepl.names import quote_ident
from pgrepl.provision.inventory import STATE_SCHEMA, Session, Table, Tables, named
from pgrepl.provision.steps import Note, Statement, Status, Step
from pgrepl.provision.wanted import OPERATIONS, Wanted
from pgrepl.stores.tables import BOOKMARKS_SCHEMA

if TYPE_CHECKING:
    import psycopg

_LISTED = "SELECT r.prrelid FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = %s"
_LISTED_SCHEMAS = "SELECT n.pnnspid FROM pg_catalog.pg_publication_namespace n WHERE n.pnpubid = %s"


@dataclass(frozen=True)
class Content:
    """What a publication covers, as it is written down: everything, or tables and schemas by OID."""

    all_tables: bool = False
    tables: frozenset[int] = frozenset()
    schemas: frozenset[int] = frozenset()
    operations: frozenset[str] = frozenset()
    via_root: bool = False

    def names(self, table: Table) -> bool:
        """Whether the table itself, or its schema, is named."""
        return self.all_tables or table.oid in self.tables or table.schema_oid in self.schemas

    def covers(self, table: Table, tables: Tables) -> bool:
        """Whether changes of the table are published, be it through a partitioned table above it."""
        return self.names(table) or any(map(self.names, tables.ancestors(table)))

    def published(self, tables: Tables) -> list[Table]:
        """List the tables under whose names changes are published, as pg_publication_tables does."""
        if not self.via_root:
            return [table for table in tables if not table.partitioned and self.covers(table, tables)]
        return [table for table in tables if self.names(table) and not any(map(self.names, tables.ancestors(table)))]


@dataclass(frozen=True)
class PublicationPlan:
    """The steps, and what the publication covers once everything has run, here or by somebody else."""

    steps: list[Step]
    notes: list[Note]
    after: Content


@dataclass(frozen=True)
class _Addition:
    """What goes into the publication: everything, or schemas, or tables."""

    all_tables: bool = False
    schemas: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()


def publication_steps(
    conn: psycopg.Connection, session: Session, wanted: Wanted, tables: Tables, *, lifted: Collection[int] = ()
) -> PublicationPlan:
    """Plan the publication; ``lifted`` are tables whose row filters and column lists will be gone by then.

    Raises OperationError for a publication that is neither there nor described, for tables that do not exist or cannot
    be published, and for tables whose UPDATE and DELETE would begin to fail once they are published.
    """
    found = publications.find(conn, wanted.publication)
    before = None if found is None else content_of(conn, found)
    if before is None and not wanted.names_tables:
        raise OperationError(
            f"publication {wanted.publication!r} does not exist",
            hint="say what goes into it: --table SCHEMA.TABLE, --in-schema SCHEMA or --all-tables",
        )
    asked = _asked_for(conn, session, wanted, tables, before)
    addition = _reduce(asked, before or Content(), tables)
    settings = _settings(wanted, before, addition, tables)
    broken = without_identity(before, _join(settings, addition, tables), tables)
    if broken:
        _refuse_unless_skipped(wanted, broken, before, tables)
        addition = _list_instead(addition, before or Content(), broken, tables)
    restricted = [] if found is None else restricted_too_far(conn, found, settings)
    if any(each.oid not in lifted for each in restricted):
        raise OperationError(
            "UPDATE and DELETE would fail once published, since row filter or column list and replica identity do not "
            f"fit together: {', '.join(f'{each.schema}.{each.name}' for each in restricted)}",
            hint="a row filter may read columns of the replica identity alone; a column list must hold them all",
        )
    if before is None and not (addition.all_tables or addition.schemas or addition.tables):
        raise OperationError(
            f"nothing is left to go into publication {wanted.publication!r}",
            hint="no table is there that can be published" if not broken else "give the tables a replica identity",
        )
    after = _join(settings, addition, tables)
    owned = found is not None and publications.owned(conn, found.oid)
    may_write = session.superuser or (session.create_in_database if before is None else owned)
    if before is None:
        steps = _create(session, wanted.publication, after, addition, may_write)
    else:
        steps = _alter(session, wanted.publication, before, after, addition, may_write)
    steps += [Step("publication", "skipped", table.label, "left out: no usable replica identity") for table in broken]
    return PublicationPlan(steps, _notes(wanted, before, after, addition, tables), after)


def content_of(conn: psycopg.Connection, publication: publications.Publication) -> Content:
    """Read what a publication covers."""
    return Content(
        all_tables=publication.all_tables,
        tables=frozenset(oid for (oid,) in conn.execute(_LISTED, [publication.oid])),
        schemas=frozenset(oid for (oid,) in conn.execute(_LISTED_SCHEMAS, [publication.oid])),
        operations=frozenset(publication.operations),
        via_root=publication.via_root,
    )


def _asked_for(
    conn: psycopg.Connection, session: Session, wanted: Wanted, tables: Tables, before: Content | None
) -> _Addition:
    if wanted.tables:
        listed = named(conn, tables, wanted.tables)
        return _Addition(tables=tuple(child for table in listed for child in tables.with_children(table)))
    if wanted.schemas:
        for schema in wanted.schemas:
            if schema not in tables.schemas:
                raise OperationError(
                    f"there is no schema {schema!r} of your own", hint="names are taken as they stand in the catalog"
                )
        return _Addition(schemas=tuple(dict.fromkeys(wanted.schemas)))
    if wanted.literally_all:
        if before is not None and not before.all_tables:
            raise OperationError(
                f"publication {wanted.publication!r} lists tables and cannot become FOR ALL TABLES",
                hint="choose another name, or drop it",
            )
        return _Addition(all_tables=True)
    if wanted.all_tables:
        if not session.superuser:
            return _Addition(
                tables=tuple(table for table in tables if not wanted.keeps_state_in(table.schema, table.name))
            )
        if before is None and not wanted.state_here and not any(table.schema == STATE_SCHEMA for table in tables):
            return _Addition(all_tables=True)
        schemas = _all_schemas(tables)
        if wanted.store != "bookmarks" or not wanted.state_here:
            return _Addition(schemas=schemas)
        return _Addition(
            schemas=tuple(schema for schema in schemas if schema != BOOKMARKS_SCHEMA),
            tables=tuple(
                table
                for table in tables
                if table.schema == BOOKMARKS_SCHEMA and not wanted.keeps_state_in(table.schema, table.name)
            ),
        )
    return _Addition()


def _all_schemas(tables: Tables) -> tuple[str, ...]:
    return tuple(schema for schema in tables.schemas if schema != STATE_SCHEMA)


def _reduce(addition: _Addition, before: Content, tables: Tables) -> _Addition:
    """Leave out what the publication covers already, and what comes with a partitioned table above it."""
    if before.all_tables:
        return _Addition()
    chosen = {table.oid: table for table in addition.tables}
    return replace(
        addition,
        schemas=tuple(schema for schema in addition.schemas if tables.schemas[schema] not in before.schemas),
        tables=tuple(
            table
            for table in chosen.values()
            if not before.covers(table, tables) and not any(above.oid in chosen for above in tables.ancestors(table))
        ),
    )


def _settings(wanted: Wanted, before: Content | None, addition: _Addition, tables: Tables) -> Content:
    """Decide on operations and publish_via_partition_root: an existing publication only ever gains."""
    if before is None:
        by_default = addition.all_tables or bool(addition.schemas) or any(t.partitioned for t in addition.tables)
        via_root = by_default if wanted.via_root is None else wanted.via_root
        return Content(operations=frozenset(wanted.publish or OPERATIONS), via_root=via_root)
    via_root = before.via_root or bool(wanted.via_root)
    if wanted.via_root is None and not _publishes_partitions(before, tables):
        # Nobody reads partitions under their own names yet, so there is nobody whose stream this would change.
        via_root = via_root or _publishes_partitions(_join(before, addition, tables), tables)
    return replace(before, operations=before.operations | frozenset(wanted.publish or ()), via_root=via_root)


def _publishes_partitions(content: Content, tables: Tables) -> bool:
    return any(table.parent is not None and content.covers(table, tables) for table in tables)


def _notes(wanted: Wanted, before: Content | None, after: Content, addition: _Addition, tables: Tables) -> list[Note]:
    name = f"publication {wanted.publication}"
    notes = []
    if addition.tables and not wanted.tables:
        schemas = ", ".join(dict.fromkeys(table.schema for table in addition.tables))
        notes.append(Note(f"{name} lists the tables of {schemas}", "run setup again when there are new ones"))
    more = [name for name in OPERATIONS if wanted.publish and name in after.operations - set(wanted.publish)]
    if more:
        notes.append(Note(f"{name} publishes {', '.join(more)} as well, and keeps on doing so"))
    if before is not None and before.via_root and wanted.via_root is False:
        notes.append(Note(f"{name} publishes via the partition root, and keeps on doing so"))
    if before is not None and not after.via_root and wanted.via_root is None and _publishes_partitions(after, tables):
        notes.append(
            Note(f"{name} publishes partitions under their own names", "--via-root changes that for all of them")
        )
    if wanted.all_tables and addition.schemas:
        notes.append(
            Note(
                f"{name} takes in the schemas of now and their future tables: {', '.join(addition.schemas)}",
                f"schema {STATE_SCHEMA} stays out; run setup again when there is a new schema",
            )
        )
    published_state = any(table.schema == STATE_SCHEMA and after.covers(table, tables) for table in tables)
    if published_state or (after.all_tables and wanted.store == "postgres"):
        notes.append(
            Note(
                f"{name} takes in tables of schema {STATE_SCHEMA}: a stream of its own state feeds itself",
                "a publication made with --all-tables leaves that schema out",
            )
        )
    if _publishes_bookmarks(wanted, after, tables):
        notes.append(
            Note(
                f"{name} takes in the table of bookmarks: a stream of its own state feeds itself",
                "keep it in another database with --state-dsn, or list tables",
            )
        )
    return notes


def _publishes_bookmarks(wanted: Wanted, after: Content, tables: Tables) -> bool:
    if wanted.store != "bookmarks" or not wanted.state_here:
        return False
    table = tables.by_name.get((BOOKMARKS_SCHEMA, wanted.state_table))
    if table is not None and after.covers(table, tables):
        return True
    return after.all_tables or tables.schemas.get(BOOKMARKS_SCHEMA) in after.schemas


def _join(content: Content, addition: _Addition, tables: Tables) -> Content:
    return replace(
        content,
        all_tables=content.all_tables or addition.all_tables,
        tables=content.tables | {table.oid for table in addition.tables},
        schemas=content.schemas | {tables.schemas[schema] for schema in addition.schemas},
    )


def without_identity(before: Content | None, after: Content, tables: Tables) -> dict[Table, list[Table]]:
    """Find the tables whose UPDATE or DELETE would begin to fail, each with the tables that lack the identity.

    The server looks at the identity of the leaf in which a row is; via the root, the root's own decides which columns
    of a row are its key in the stream.
    """
    changing = after.operations & {"update", "delete"}
    if not changing:
        return {}
    widened = before is not None and not changing <= before.operations
    broken: dict[Table, list[Table]] = {}
    for table in tables:
        if not after.names(table) or any(map(after.names, tables.ancestors(table))):
            continue
        if before is not None and not widened and before.covers(table, tables):
            continue
        concerned = list(tables.leaves(table))
        if table.partitioned and after.via_root:
            concerned.insert(0, table)
        lacking = [each for each in concerned if not each.has_identity]
        if lacking:
            broken[table] = lacking
    return broken


def restricted_too_far(
    conn: psycopg.Connection, publication: publications.Publication, after: Content
) -> list[publications.Restriction]:
    """Find the tables whose row filter or column list makes UPDATE and DELETE fail once these are published."""
    changing = {"update", "delete"}
    if not after.operations & changing or changing.intersection(publication.operations):
        return []
    return [
        each
        for each in publications.restrictions(conn, publication.oid)
        if each.filter_beyond_identity or each.identity_beyond_list
    ]


def _refuse_unless_skipped(
    wanted: Wanted, broken: dict[Table, list[Table]], before: Content | None, tables: Tables
) -> None:
    published = [table for table in broken if before is not None and before.covers(table, tables)]
    if wanted.skip_keyless and not published:
        return
    shown = published if wanted.skip_keyless else broken
    lacking = [table for each in shown for table in broken[each]]
    others = "" if wanted.literally_all else "--skip-keyless, or "
    others = "" if published else f"; or {others}--publish insert,truncate"
    raise OperationError(
        f"no usable replica identity, so that UPDATE and DELETE would fail once published: {_labels(lacking)}",
        hint="; ".join(table.remedy for table in lacking) + others,
    )


def _list_instead(addition: _Addition, before: Content, broken: Iterable[Table], tables: Tables) -> _Addition:
    """Write the addition down without some tables; only a list can leave any out, also of a schema or of everything."""
    without = {table.oid for table in broken}
    schemas_with_gaps = {table.schema for table in broken}
    schemas = _all_schemas(tables) if addition.all_tables else addition.schemas
    candidates = list(addition.tables)
    if schemas:
        candidates += [table for table in tables if table.schema in schemas_with_gaps & set(schemas)]
    whole = tuple(schema for schema in schemas if schema not in schemas_with_gaps)
    covered = _join(before, _Addition(schemas=whole), tables)
    listed = _Addition(
        tables=tuple(
            table
            for table in candidates
            if table.oid not in without and not any(above.oid in without for above in tables.ancestors(table))
        )
    )
    return replace(_reduce(listed, covered, tables), schemas=whole)


# The rights: PostgreSQL documentation, Logical Replication, Security.


def _create(session: Session, name: str, after: Content, addition: _Addition, may_write: bool) -> list[Step]:
    mine, others = _by_owner(session, addition.tables)
    whole = _whole(addition)
    options = _options(after, Content(operations=frozenset(OPERATIONS)))

    def create(status: Status, tables: Sequence[Table]) -> Step:
        sql = f"CREATE PUBLICATION {quote_ident(name)} FOR {', '.join(whole + _listed(tables))}"
        return _step(name, status, _summary(addition, tables), [_statement(sql + options, tables)], "created")

    if not may_write or (whole and not session.superuser) or not (whole or mine):
        return [create("needs_superuser", addition.tables)]
    return [create("planned", mine), *_added_by_owners(name, others)]


def _alter(
    session: Session, name: str, before: Content, after: Content, addition: _Addition, may_write: bool
) -> list[Step]:
    mine, others = _by_owner(session, addition.tables)
    alter = f"ALTER PUBLICATION {quote_ident(name)}"
    planned: list[Statement] = []
    needed: list[Statement] = []
    if addition.schemas:
        (planned if session.superuser else needed).append(Statement(f"{alter} ADD {', '.join(_whole(addition))}"))
    if mine:
        (planned if may_write else needed).append(_statement(f"{alter} ADD {', '.join(_listed(mine))}", mine))
    options = _options(after, before)
    if options:
        (planned if may_write else needed).append(Statement(f"{alter} SET{options.removeprefix(' WITH')}"))
    summary = _summary(addition, mine)
    steps = []
    if planned:
        steps.append(_step(name, "planned", summary, planned, "altered"))
    if needed:
        steps.append(_step(name, "needs_superuser", summary, needed, "altered"))
    steps += _added_by_owners(name, others)
    return steps or [Step("publication", "exists", name, "publishes what it should")]


def _by_owner(session: Session, tables: Sequence[Table]) -> tuple[list[Table], list[Table]]:
    mine = [table for table in tables if session.superuser or table.owned]
    return mine, [table for table in tables if not (session.superuser or table.owned)]


def _added_by_owners(name: str, tables: Sequence[Table]) -> list[Step]:
    if not tables:
        return []
    sql = f"ALTER PUBLICATION {quote_ident(name)} ADD {', '.join(_listed(tables))}"
    owners = ", ".join(sorted({table.owner for table in tables}))
    summary = f"left out, owned by {owners}: {_labels(tables)}"
    return [_step(name, "needs_superuser", summary, [_statement(sql, tables)], "altered")]


def _step(
    name: str, status: Status, summary: str, statements: Sequence[Statement], outcome: Literal["created", "altered"]
) -> Step:
    return Step("publication", status, name, summary, tuple(statements), outcome)


def _statement(sql: str, tables: Sequence[Table]) -> Statement:
    return Statement(sql, locks=tuple(table.oid for table in tables))


def _whole(addition: _Addition) -> list[str]:
    if addition.all_tables:
        return ["ALL TABLES"]
    if addition.schemas:
        return ["TABLES IN SCHEMA " + ", ".join(map(quote_ident, addition.schemas))]
    return []


def _listed(tables: Sequence[Table]) -> list[str]:
    """List tables; ONLY keeps out what inherits from one, since whatever belongs in is listed itself."""
    if not tables:
        return []
    return ["TABLE " + ", ".join(("ONLY " if table.children else "") + table.qualified for table in tables)]


def _options(after: Content, before: Content) -> str:
    options = []
    if after.operations != before.operations:
        options.append(f"publish = '{', '.join(name for name in OPERATIONS if name in after.operations)}'")
    if after.via_root != before.via_root:
        options.append("publish_via_partition_root = true")
    return f" WITH ({', '.join(options)})" if options else ""


def _summary(addition: _Addition, tables: Sequence[Table]) -> str:
    if addition.all_tables:
        return "all tables"
    parts = []
    if addition.schemas:
        parts.append("all tables of " + ", ".join(addition.schemas))
    if tables:
        parts.append(_labels(tables))
    return "; ".join(parts) or "its settings"


def _labels(tables: Iterable[Table]) -> str:
    return ", ".join(table.label for table in tables)
