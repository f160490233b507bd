"""Is there something to be replicated?"""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from pgrepl.doctor.check import Check
from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status
from pgrepl.names import quote_ident


class Exists(Check):
    """The publication exists in this database.

    Publications belong to a database, and their names tell upper from lower case. Make a publication before the slot
    that is to use it: changes from before it existed cannot be decoded with it. The tables that are proposed have a
    replica identity; publishing others would make the application's UPDATE and DELETE fail.
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

    An empty publication is allowed, and its stream says nothing for ever. One for all tables, or for a schema, is
    empty as long as there are none.
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
