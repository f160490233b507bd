"""Is there something to be replicated?"""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from pgrepl.catalog import coverage, roles
from pgrepl.catalog.leaves import Entry, Root
from pgrepl.catalog.origin import BOOKMARKS
from pgrepl.catalog.publications import Publication
from pgrepl.doctor.check import Check
from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status
from pgrepl.names import quote_ident

_NAMED = 3


class Exists(Check):
    """The publication exists in this database.

    Publications belong to a database, and their names tell upper from lower case.

    Risk: a stream fails at the first change (SQLSTATE 42704), and from 18 on goes on without a word of the changes.

    Fix: make it before the slot that is to use it: changes from before it existed cannot be decoded with it. The
    tables that are proposed have a replica identity; publishing others would make the application's UPDATE and DELETE
    fail.

    See: https://www.postgresql.org/docs/current/sql-createpublication.html
    """

    id = "pub.exists"
    title = "the publication exists"

    def run(self, context: Context) -> Iterator[Finding]:
        present = [publication.name for publication in context.all_publications]
        missing = [name for name in context.wanted.publications if name not in present]
        for name in missing:
            lower = {other.lower(): other for other in present}
            near = difflib.get_close_matches(name.lower(), lower, 1)
            yield self.finding(
                Status.FAIL,
                f"there is no publication {name} in database {context.server.database}"
                + (f"; did you mean {lower[near[0]]}?" if near else ""),
                {"publications": present},
                object=name,
                fix=_create(context, name),
            )
        if missing:
            return
        names = [publication.name for publication in context.publications]
        if names:
            yield self.finding(Status.PASS, f"found {', '.join(names)}", {"publications": names})
        else:
            yield self.finding(Status.SKIP, "no publication is named, and the database has none")


class Nonempty(Check):
    """The publication has a table at this moment.

    An empty publication is allowed. One for all tables, or for a schema, is empty as long as there are none.

    Risk: its stream says nothing for ever.

    Fix: add tables.

    See: https://www.postgresql.org/docs/current/sql-alterpublication.html
    """

    id = "pub.nonempty"
    title = "the publication has tables"
    needs = ("conn.sql", "server.version")

    def run(self, context: Context) -> Iterator[Finding]:
        if not context.publications:
            yield self.finding(Status.SKIP, "no publication to look into")
            return
        empty = [publication for publication in context.publications if not context.published[publication.name]]
        for publication in empty:
            if publication.all_tables or not context.publishable:
                fix = (Fix("action", "create the tables that are to be published, with a primary key each"),)
            else:
                statement = f"ALTER PUBLICATION {quote_ident(publication.name)} ADD TABLE {_tables(context)}"
                fix = (Fix("sql", f"{statement};"),)
            yield self.finding(
                Status.FAIL,
                f"publication {publication.name} has no table",
                {"all_tables": publication.all_tables},
                object=publication.name,
                fix=fix,
            )
        if not empty:
            count = len(context.published_oids)
            yield self.finding(Status.PASS, f"{count} table{'s'[: count != 1]} published", {"tables": count})


def _create(context: Context, name: str) -> tuple[Fix, ...]:
    create = f"CREATE PUBLICATION {quote_ident(name)}"
    if not context.publishable:
        return (
            Fix("action", "create the tables that are to be published, with a primary key each"),
            Fix("sql", f"{create};"),
        )
    # Without it the partitions would be published one by one, under names that come and go.
    root = " WITH (publish_via_partition_root = true)" if any(t.partitioned for t in context.publishable) else ""
    return (Fix("sql", f"{create} FOR TABLE {_tables(context)}{root};"),)


def _tables(context: Context) -> str:
    return ", ".join(f"{quote_ident(table.schema)}.{quote_ident(table.name)}" for table in context.publishable)


class Covers(Check):
    """The publication has the tables that one would look for in it.

    Which ones are wanted only its owner knows. What can be known: when some partitions of a table are published, the
    others are wanted too; and tables beside the published ones, in the same schemas, may have been forgotten, above
    all when they are newer than the publication.

    Risk: changes of a table that is not published are not in the stream, without a word.

    Fix: add the table; its rows of before need a snapshot.

    See: https://www.postgresql.org/docs/current/sql-alterpublication.html
    """

    id = "pub.covers"
    title = "no table is left out by mistake"
    needs = ("conn.sql", "server.version", "pub.exists")

    def run(self, context: Context) -> Iterator[Finding]:
        if not context.published_oids:
            yield self.finding(Status.SKIP, "no published table to compare with")
            return
        usable = {table.oid for table in context.publishable}
        fine = True
        for publication in context.publications:
            entries = [entry for entry in context.entries if entry.publication == publication.name]
            alter = f"ALTER PUBLICATION {quote_ident(publication.name)} ADD TABLE"
            for sibling in coverage.missing_partitions(context.conn, publication.oid):
                fine = False
                yield self.finding(
                    Status.WARN,
                    f"other partitions of {sibling.root} are in {publication.name}, and this one is not",
                    {"publication": publication.name, "root": sibling.root},
                    object=f"{sibling.schema}.{sibling.name}",
                    fix=[Fix("sql", f"{alter} {quote_ident(sibling.schema)}.{quote_ident(sibling.name)};")],
                )
            schemas = {entry.schema for entry in entries}
            covered = coverage.covered(context.conn, publication.oid)
            left = [table for table in context.user_tables if table.oid not in covered and table.schema in schemas]
            if left:
                fine = False
                ready = [table for table in left if table.oid in usable]
                names = ", ".join(f"{quote_ident(table.schema)}.{quote_ident(table.name)}" for table in ready)
                shown = [f"{table.schema}.{table.name}" for table in left]
                some = ", ".join(shown[:_NAMED]) + (f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else "")
                yield self.finding(
                    Status.INFO,
                    f"{some} {'is' if len(left) == 1 else 'are'} not in {publication.name}, others of the same schema"
                    " are",
                    {"tables": shown},
                    object=publication.name,
                    fix=[Fix("sql", f"{alter} {names};")] if ready else [],
                )
        if fine:
            yield self.finding(Status.PASS, "no table beside the published ones")


class Operations(Check):
    """The publication publishes every kind of change.

    ``publish`` names the kinds: insert, update, delete and truncate.

    Risk: what is not named never arrives. A copy that gets no DELETE keeps the rows for ever.

    Fix: name all four, unless it was meant so.

    See: https://www.postgresql.org/docs/current/sql-createpublication.html#SQL-CREATEPUBLICATION-PARAMS-WITH-PUBLISH
    """

    id = "pub.ops"
    title = "all kinds of changes are published"
    needs = ("conn.sql", "pub.exists")

    def run(self, context: Context) -> Iterator[Finding]:
        fine = True
        for publication in context.publications:
            kinds = {name: getattr(publication, name) for name in ("insert", "update", "delete", "truncate")}
            missing = [name for name, published in kinds.items() if not published]
            if missing:
                fine = False
                statement = f"ALTER PUBLICATION {quote_ident(publication.name)}"
                yield self.finding(
                    Status.WARN,
                    f"{publication.name} does not publish {' and '.join(missing)}",
                    kinds,
                    object=publication.name,
                    fix=[Fix("sql", f"{statement} SET (publish = 'insert, update, delete, truncate');")],
                )
        if fine:
            yield self.finding(Status.PASS, "insert, update, delete and truncate")


class ExcludesState(Check):
    """The state of the readers is not in the publication.

    The state tables in ``etl`` and the table of bookmarks are written for every batch that was read. FOR ALL TABLES
    has them in it, and so has a schema with such a table.

    Risk: each batch makes a change, which makes a batch: the stream feeds itself and never ends. pgrepl leaves these
    tables out of what it prints; other readers may not, and etl refuses such a publication.

    Fix: publish schemas or tables by their names. It is done in one transaction, so that a slot goes on with it. A
    publication of schemas needs a superuser.

    See: https://github.com/supabase/etl
    """

    id = "pub.excludes_state"
    title = "the readers' state is not published"
    needs = ("conn.sql", "server.version", "pub.exists")

    def run(self, context: Context) -> Iterator[Finding]:
        fine = True
        for publication in context.publications:
            entries = [entry for entry in context.entries if entry.publication == publication.name]
            own = [entry for entry in entries if _is_state(entry)]
            if own:
                fine = False
                names = [entry.qualified for entry in own]
                yield self.finding(
                    Status.FAIL,
                    f"{publication.name} publishes {', '.join(names)}: the stream feeds itself",
                    {"tables": names, "all_tables": publication.all_tables},
                    object=publication.name,
                    fix=_without_state(context, publication, entries),
                )
        if fine:
            yield self.finding(Status.PASS, "none of it is in there")


def _is_state(entry: Entry) -> bool:
    return entry.schema == "etl" or (entry.schema, entry.name) == ("public", BOOKMARKS)


def _without_state(context: Context, publication: Publication, entries: list[Entry]) -> tuple[Fix, ...]:
    name = quote_ident(publication.name)
    own, others = [entry for entry in entries if _is_state(entry)], [entry for entry in entries if not _is_state(entry)]
    if all(entry.explicit for entry in own):
        return (Fix("sql", f"ALTER PUBLICATION {name} DROP TABLE {', '.join(entry.sql(None) for entry in own)};"),)
    schemas = coverage.schemas(context.conn, publication.oid)
    if not publication.all_tables and all(entry.schema == "etl" for entry in own):
        return (Fix("sql", f'ALTER PUBLICATION {name} DROP TABLES IN SCHEMA "etl";'),)
    if publication.all_tables and all(entry.schema == "etl" for entry in own) and not context.provider.lists_tables:
        kept = sorted({entry.schema for entry in others})
        content = f" FOR TABLES IN SCHEMA {', '.join(map(quote_ident, kept))}" if kept else ""
    else:
        content = f" FOR TABLE {', '.join(entry.sql(entry.listed) for entry in others)}" if others else ""
    note = Fix("action", "tables that are made later have to be added")
    if publication.all_tables:
        statement = (
            f"BEGIN; DROP PUBLICATION {name}; CREATE PUBLICATION {name}{content}{_options(publication)}; COMMIT;"
        )
        return (Fix("sql", statement),) if "SCHEMA" in content else (Fix("sql", statement), note)
    if not others:
        dropped = ", ".join(map(quote_ident, schemas))
        return (Fix("sql", f"ALTER PUBLICATION {name} DROP TABLES IN SCHEMA {dropped};"), note)
    return Fix("sql", f"ALTER PUBLICATION {name} SET {content.removeprefix(' FOR ')};"), note


def _options(publication: Publication) -> str:
    kinds = [name for name in ("insert", "update", "delete", "truncate") if getattr(publication, name)]
    root = ", publish_via_partition_root = true" if publication.via_root else ""
    setting = publication.generated_columns
    generated = f", publish_generated_columns = {setting}" if setting else ""
    return f" WITH (publish = '{', '.join(kinds)}'{root}{generated})"


class PartitionRoot(Check):
    """Partitions are published under the name of the table that they are parts of.

    Without publish_via_partition_root a change arrives under the name of the partition in which the row lies.

    Risk: the names in the stream come and go with the partitions, and row filters and column lists of the partitioned
    table do not count. supabase/etl refuses to start.

    Fix: set it. A reader sees the new names from then on.

    See: https://www.postgresql.org/docs/current/sql-createpublication.html
    """

    id = "pub.partition_root"
    title = "partitions are published as their table"
    needs = ("conn.sql", "server.version", "pub.exists")

    def run(self, context: Context) -> Iterator[Finding]:
        fine = True
        for publication in context.publications:
            parts = [entry for entry in context.entries if entry.publication == publication.name and entry.root]
            if parts and not publication.via_root:
                fine = False
                statement = f"ALTER PUBLICATION {quote_ident(publication.name)}"
                yield self.finding(
                    Status.WARN,
                    f"{publication.name} publishes {len(parts)} partition{'s'[: len(parts) != 1]} by"
                    f" {'their own names' if len(parts) > 1 else 'its own name'}",
                    {"partitions": [entry.qualified for entry in parts]},
                    object=publication.name,
                    fix=[
                        *self._let_read(context, {entry.root for entry in parts if entry.root}),
                        Fix("sql", f"{statement} SET (publish_via_partition_root = true);"),
                    ],
                )
        if fine:
            yield self.finding(Status.PASS, "no partition is published by its own name")

    @staticmethod
    def _let_read(context: Context, roots: set[Root]) -> Iterator[Fix]:
        """From then on a snapshot reads the table itself, which takes a right of its own."""
        if context.role is None:
            return
        granted = roles.table_privileges(context.conn, context.role.oid, [root.oid for root in roots])
        for root in sorted(roots, key=lambda root: (root.schema, root.name)):
            right = granted.get(root.oid)
            if right is not None and right.unreadable_columns:
                name = f"{quote_ident(root.schema)}.{quote_ident(root.name)}"
                yield Fix("sql", f"GRANT SELECT ON {name} TO {quote_ident(context.role.name)};")
