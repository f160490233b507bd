"""What of the published tables does not arrive, or not as one would think?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pgrepl.catalog import neighbours
from pgrepl.catalog.publications import PublishedTable
from pgrepl.doctor.check import Check
from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status
from pgrepl.names import quote_ident
from pgrepl.units import size_text

_NEEDS = ("conn.sql", "server.version")
_LITTLE = 1 << 30
# What one connection copies on ordinary machines; a guess on the careful side.
_BYTES_PER_SECOND = 25 << 20
_LONG_SECONDS = 2 * 3600


class Toast(Check):
    """A value that lies out of line and was not touched arrives with its UPDATE.

    Long values are stored apart (TOAST). An UPDATE that does not touch such a value does not write it into the WAL,
    unless it belongs to the replica identity. pgrepl names such columns as unchanged.

    Risk: a reader that takes "not sent" for NULL destroys the value.

    Fix: use a reader that knows the difference, as pgrepl does; or REPLICA IDENTITY FULL, which has the value in the
    old row and writes more WAL.

    See: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
    """

    id = "tbl.toast_unchanged"
    title = "values out of line arrive with each UPDATE"
    needs = _NEEDS

    def run(self, context: Context) -> Iterator[Finding]:
        updating = {entry.oid for entry in context.entries if context.publication(entry.publication).update}
        fine = True
        for leaf in context.leaves:
            columns = [
                column.name for column in leaf.columns if column.toastable and column.name not in leaf.identity_columns
            ]
            if leaf.identity == "f" or not leaf.toast_bytes or not columns or leaf.root_oid not in updating:
                continue
            fine = False
            yield self.finding(
                Status.INFO,
                f"an UPDATE that does not touch {', '.join(columns)} may not send it:"
                f" {size_text(leaf.toast_bytes)} lie out of line",
                {"columns": columns, "toast_bytes": leaf.toast_bytes},
                object=leaf.qualified,
                fix=[Fix("sql", f"ALTER TABLE {leaf.quoted} REPLICA IDENTITY FULL;")],
            )
        if fine:
            yield self.finding(Status.PASS, "nothing lies out of line, or FULL sends it")


class Kinds(Check):
    """Everything that one would take for published can be.

    Only permanent tables are in the WAL. Unlogged and foreign tables, materialised views and temporary tables are not,
    and a publication of all tables, of a schema, or of a partitioned table passes them by.

    Risk: their rows are missing in the stream, without a word; of a partitioned table only those of some partitions.

    Fix: SET LOGGED, which writes the table anew. Replicate what a foreign table stands for from its own server, and
    the tables that a view is made of.

    See: https://www.postgresql.org/docs/current/logical-replication-restrictions.html
    """

    id = "tbl.kinds"
    title = "every table in question can be published"
    needs = ("conn.sql", "server.version", "pub.exists")

    def run(self, context: Context) -> Iterator[Finding]:
        oids = [publication.oid for publication in context.publications]
        passed = neighbours.passed_by(context.conn, oids)
        for relation in passed:
            fix = []
            if relation.kind == "unlogged table":
                name = f"{quote_ident(relation.schema)}.{quote_ident(relation.name)}"
                fix = [Fix("sql", f"ALTER TABLE {name} SET LOGGED;")]
            yield self.finding(
                Status.FAIL if relation.partition and fix else Status.WARN if relation.partition else Status.INFO,
                f"{'an' if relation.kind[0] in 'aeiou' else 'a'} {relation.kind} is not published"
                + (", though the table that it is a partition of is" if relation.partition else ""),
                {"kind": relation.kind, "partition": relation.partition},
                object=f"{relation.schema}.{relation.name}",
                fix=fix,
            )
        if not passed:
            yield self.finding(Status.PASS, "nothing is passed by")


class Inherits(Check):
    """Tables that inherit from a published one are published, too.

    A publication takes the children that are there when a table is added, and none that are made later. Partitions
    are another matter: they always follow their table.

    Risk: rows that go into such a child are missing in the stream.

    Fix: add each child.

    See: https://www.postgresql.org/docs/current/sql-createpublication.html
    """

    id = "tbl.inherits"
    title = "children of published tables are published"
    needs = ("conn.sql", "server.version", "pub.exists")

    def run(self, context: Context) -> Iterator[Finding]:
        children = neighbours.unpublished_children(
            context.conn, [publication.oid for publication in context.publications]
        )
        usable = {table.oid for table in context.publishable}
        for child in children:
            name = f"{quote_ident(child.schema)}.{quote_ident(child.name)}"
            add = Fix("sql", f"ALTER PUBLICATION {quote_ident(child.publication)} ADD TABLE ONLY {name};")
            yield self.finding(
                Status.WARN,
                f"it inherits from {child.parent}, which {child.publication} publishes, and is not in there",
                {"parent": child.parent, "publication": child.publication},
                object=f"{child.schema}.{child.name}",
                fix=[add] if child.oid in usable else [Fix("action", "give it a primary key, and add it")],
            )
        if not children:
            yield self.finding(Status.PASS, "no child is left out")


class Types(Check):
    """The types of the columns are ones whose text every reader knows.

    Values are sent as text in the form of their type. Of composite types, enums, domains and ranges, and of the types
    of extensions, a reader has only the text, unless it looks into the catalog.

    Risk: they arrive as texts, where somebody expects a structure. Numbers can be NaN, and times infinity.

    Fix: nothing, when texts will do.

    See: https://www.postgresql.org/docs/current/datatype.html
    """

    id = "tbl.types"
    title = "column types are built in"
    needs = _NEEDS

    def run(self, context: Context) -> Iterator[Finding]:
        columns: dict[str, list[str]] = {}
        for leaf in context.leaves:
            for column in leaf.columns:
                if column.type_class != "base":
                    label = f"{column.type_name} ({column.type_class})"
                    columns.setdefault(label, []).append(f"{leaf.qualified}.{column.name}")
        if columns:
            count = sum(map(len, columns.values()))
            yield self.finding(
                Status.INFO,
                f"{count} column{'s'[: count != 1]} {'arrive' if count > 1 else 'arrives'} as text:"
                f" {', '.join(sorted(columns))}",
                columns,
            )
        else:
            yield self.finding(Status.PASS, "all of them")


class Duplicates(Check):
    """A change that arrives twice can be recognised.

    After a crash or a lost connection changes since the last confirmed position come again. By the primary key a
    reader can apply them twice without harm; without one it cannot.

    Risk: rows that are only inserted, as in a log, are there twice.

    Fix: let the reader use the commit's position and the number of the change in it (``event_id`` in pgrepl's
    output), which are the same both times; or add a primary key.

    See: https://www.postgresql.org/docs/current/logicaldecoding-explanation.html
    """

    id = "tbl.dupes"
    title = "changes that come again can be recognised"
    needs = _NEEDS

    def run(self, context: Context) -> Iterator[Finding]:
        tables = [leaf.qualified for leaf in context.leaves if not leaf.has_primary_key]
        if tables:
            yield self.finding(
                Status.INFO,
                f"{len(tables)} table{'s'[: len(tables) != 1]} without a primary key: recognise repeated changes by"
                " event_id",
                {"tables": tables},
            )
        else:
            yield self.finding(Status.PASS, "by the primary keys")


class Sequences(Check):
    """Sequences that published tables use are known not to be replicated.

    A stream carries the numbers that are in the rows, and nothing of the sequence that made them.

    Risk: after a switch to the copy its sequences begin again, and INSERT fails with duplicate keys.

    Fix: set them on the copy, once nothing is written to the original any more. The statements are printed with the
    last values of now.

    See: https://www.postgresql.org/docs/current/logical-replication-restrictions.html
    """

    id = "tbl.sequences"
    title = "no sequence is left behind"
    needs = _NEEDS

    def run(self, context: Context) -> Iterator[Finding]:
        sequences = neighbours.sequences(context.conn, context.published_oids)
        if not sequences:
            yield self.finding(Status.PASS, "published tables use none")
            return
        statements = []
        for sequence in sequences:
            quoted = f"{quote_ident(sequence.schema)}.{quote_ident(sequence.name)}".replace("'", "''")
            if sequence.last_value is not None:
                statements.append(f"SELECT setval('{quoted}', {sequence.last_value});")
        yield self.finding(
            Status.INFO,
            f"{len(sequences)} sequence{'s'[: len(sequences) != 1]} of published tables"
            f" {'are' if len(sequences) > 1 else 'is'} not replicated",
            {f"{sequence.schema}.{sequence.name}": sequence.last_value for sequence in sequences},
            fix=[Fix("action", f"on the copy, before it takes over: {' '.join(statements)}")] if statements else [],
        )


def judge_snapshot(tables: Sequence[PublishedTable]) -> tuple[Status, int, float]:
    """Say how long a copy of these tables may take: status, bytes and seconds."""
    size = sum(table.size for table in tables)
    seconds = size / _BYTES_PER_SECOND
    if seconds > _LONG_SECONDS:
        return Status.WARN, size, seconds
    return Status.INFO if size > _LITTLE else Status.PASS, size, seconds


class SnapshotSize(Check):
    """A snapshot of the published tables does not take too long.

    The time is a guess: 25 MB a second and connection, which disks, the network and the reader make more or less.

    Risk: while a snapshot is held VACUUM cannot clean up what was deleted since, and the slot keeps all WAL.

    Fix: copy several tables at a time with ``--jobs``, in a quiet hour, and look that the disk has room for the WAL.

    See: https://www.postgresql.org/docs/current/routine-vacuuming.html
    """

    id = "tbl.snapshot_size"
    title = "a snapshot does not take too long"
    needs = _NEEDS

    def run(self, context: Context) -> Iterator[Finding]:
        unique = {table.oid: table for tables in context.published.values() for table in tables}
        if not unique:
            yield self.finding(Status.SKIP, "no published table to copy")
            return
        status, size, seconds = judge_snapshot(list(unique.values()))
        estimates = [table.rows for table in unique.values() if table.rows is not None]
        rows = sum(estimates) if len(estimates) == len(unique) else None
        largest = max(unique.values(), key=lambda table: table.size)
        yield self.finding(
            status,
            size_text(size)
            + ("" if rows is None else f", about {rows:,} rows")
            + ("" if status is Status.PASS else f": about {seconds / 60:.0f} minutes with one connection"),
            {"bytes": size, "rows": rows, "seconds": round(seconds), "largest": largest.qualified},
            fix=[Fix("action", "copy in a quiet hour, with --jobs 4 or more")] if status is Status.WARN else [],
        )
