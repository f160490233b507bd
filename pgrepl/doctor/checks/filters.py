"""Do row filters, column lists and generated columns fit the replica identity, and each other?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pgrepl.catalog.leaves import Entry, Leaf
from pgrepl.doctor.check import Check
from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status
from pgrepl.names import quote_ident

_NEEDS = ("conn.sql", "server.version", "pub.exists")


def _changes(context: Context, entry: Entry) -> str:
    """Which of UPDATE and DELETE the publication publishes: for those the old row matters."""
    publication = context.publication(entry.publication)
    return " and ".join(
        name for name, published in (("UPDATE", publication.update), ("DELETE", publication.delete)) if published
    )


def _publish_again(entry: Entry, listed: Sequence[str] | None) -> Fix:
    """Change the column list of one table; there is no ALTER for it, and in one transaction no reader notices."""
    publication, table = quote_ident(entry.publication), f"{quote_ident(entry.schema)}.{quote_ident(entry.name)}"
    return Fix(
        "sql",
        f"BEGIN; ALTER PUBLICATION {publication} DROP TABLE {table};"
        f" ALTER PUBLICATION {publication} ADD TABLE {entry.sql(listed)}; COMMIT;",
    )


def _key_with(leaf: Leaf, columns: Sequence[str]) -> tuple[Fix, ...]:
    """Make an index over the key and these columns the identity, where all of them are NOT NULL."""
    not_null = {column.name for column in leaf.columns if column.not_null}
    key = [*leaf.identity_columns, *(name for name in columns if name not in leaf.identity_columns)]
    if leaf.identity not in ("d", "i") or not leaf.identity_columns or not set(key) <= not_null:
        return ()
    index = f"{leaf.name[:40]}_replica_identity"
    return (
        Fix("sql", f"CREATE UNIQUE INDEX {quote_ident(index)} ON {leaf.quoted} ({', '.join(map(quote_ident, key))});"),
        Fix("sql", f"ALTER TABLE {leaf.quoted} REPLICA IDENTITY USING INDEX {quote_ident(index)};"),
    )


class RowFilter(Check):
    """Row filters look only at columns of the replica identity.

    To tell whether an old row passes the filter, the server needs the columns that the filter looks at, and of an old
    row it has those of the replica identity. Of a partitioned table the identity of each partition counts. INSERT
    does not need it.

    Risk: the application's own UPDATE and DELETE fail with SQLSTATE 42P10.

    Fix: an identity that has the columns, by a unique index over NOT NULL columns or by FULL; or another filter.

    See: https://www.postgresql.org/docs/current/logical-replication-row-filter.html
    """

    id = "pub.rowfilter_ri"
    title = "row filters look only at the replica identity"
    needs = _NEEDS

    def run(self, context: Context) -> Iterator[Finding]:
        fine = True
        for entry in context.entries:
            changes = _changes(context, entry)
            if not entry.filter_columns or not changes:
                continue
            for leaf in context.leaves_of(entry):
                outside = [name for name in entry.filter_columns if name not in leaf.identity_columns]
                # A table without any identity is another check's.
                if not outside or (not leaf.identity_columns and leaf.identity != "f"):
                    continue
                fine = False
                fix = _key_with(leaf, outside)
                if entry.listed is not None and not set(outside) <= set(entry.listed):
                    fix = (Fix("action", f"take {', '.join(outside)} out of the filter: the column list has them not"),)
                elif not fix:
                    fix = (Fix("sql", f"ALTER TABLE {leaf.quoted} REPLICA IDENTITY FULL;"),)
                    if entry.listed is not None:
                        fix = (Fix("action", f"make {', '.join(outside)} NOT NULL, and then part of the identity"),)
                yield self.finding(
                    Status.FAIL,
                    f"its filter in {entry.publication} looks at {', '.join(outside)}, which its replica identity has"
                    f" not: {changes} on it fail{'s' * (' ' not in changes)}",
                    {
                        "publication": entry.publication,
                        "row_filter": entry.row_filter,
                        "filter_columns": list(entry.filter_columns),
                        "identity_columns": list(leaf.identity_columns),
                    },
                    object=leaf.qualified,
                    fix=fix,
                )
        if fine:
            count = sum(bool(entry.row_filter) for entry in context.entries)
            yield self.finding(Status.PASS, f"{count or 'no'} row filter{'s'[: count != 1]}", {"row_filters": count})


class ColumnList(Check):
    """Column lists have all columns of the replica identity.

    UPDATE and DELETE are told by the identity, so that its columns have to be sent. With REPLICA IDENTITY FULL these
    are all columns, so that no column list fits. INSERT does not need it.

    Risk: the application's own UPDATE and DELETE fail with SQLSTATE 42P10.

    Fix: add the missing columns to the list. A list is changed by adding the table again.

    See: https://www.postgresql.org/docs/current/logical-replication-col-lists.html
    """

    id = "pub.columns_ri"
    title = "column lists have the replica identity"
    needs = _NEEDS

    def run(self, context: Context) -> Iterator[Finding]:
        fine = True
        for entry in context.entries:
            changes = _changes(context, entry)
            if entry.listed is None or not changes:
                continue
            seen: set[str] = set()
            for leaf in context.leaves_of(entry):
                missing = [name for name in leaf.identity_columns if name not in entry.listed]
                full = leaf.identity == "f"
                if not missing and not full:
                    continue
                fine = False
                seen |= set(missing)
                why = "its identity is FULL" if full else f"the list has not {', '.join(missing)} of its identity"
                yield self.finding(
                    Status.FAIL,
                    f"{why}, so that its column list in {entry.publication} does not fit: {changes} on it"
                    f" fail{'s' * (' ' not in changes)}",
                    {
                        "publication": entry.publication,
                        "column_list": list(entry.listed),
                        "identity_columns": list(leaf.identity_columns),
                        "replica_identity": leaf.identity,
                    },
                    object=leaf.qualified,
                    fix=self._fix(context, entry, leaf, seen),
                )
        if fine:
            count = sum(entry.listed is not None for entry in context.entries)
            yield self.finding(Status.PASS, f"{count or 'no'} column list{'s'[: count != 1]}", {"column_lists": count})

    @staticmethod
    def _fix(context: Context, entry: Entry, leaf: Leaf, missing: set[str]) -> tuple[Fix, ...]:
        assert entry.listed is not None
        if leaf.identity != "f":
            return (_publish_again(entry, [*entry.listed, *sorted(missing)]),)
        better = next((found for found in context.identities if found.oid == leaf.oid), None)
        if better is not None and better.has_primary_key:
            return (Fix("sql", f"ALTER TABLE {leaf.quoted} REPLICA IDENTITY DEFAULT;"),)
        if better is not None and better.candidate_index is not None:
            index = quote_ident(better.candidate_index)
            return (Fix("sql", f"ALTER TABLE {leaf.quoted} REPLICA IDENTITY USING INDEX {index};"),)
        return (
            Fix(
                "action", "give it a primary key that the list has, and REPLICA IDENTITY DEFAULT; or publish all of it"
            ),
        )


class ColumnsMixed(Check):
    """Publications that are read together have one column list for each table.

    One stream can carry several publications, and then sends each table in one shape.

    Risk: the stream of both fails at the first change of such a table ("cannot use different column lists").

    Fix: the same list in each of them.

    See: https://www.postgresql.org/docs/current/logical-replication-col-lists.html
    """

    id = "pub.columns_mixed"
    title = "a table has one column list in all publications"
    needs = _NEEDS

    def run(self, context: Context) -> Iterator[Finding]:
        first: dict[int, Entry] = {}
        fine = True
        for entry in context.entries:
            other = first.setdefault(entry.oid, entry)
            if other is entry or other.listed == entry.listed:
                continue
            fine = False
            together = len(context.wanted.publications) > 1
            yield self.finding(
                Status.FAIL if together else Status.INFO,
                f"{other.publication} and {entry.publication} publish other columns each: no stream can carry both",
                {other.publication: _as_json(other), entry.publication: _as_json(entry)},
                object=entry.qualified,
                fix=[_publish_again(entry, other.listed)] if entry.explicit else [],
            )
        if fine:
            yield self.finding(Status.PASS, "no two that differ")


def _as_json(entry: Entry) -> list[str] | None:
    return None if entry.listed is None else list(entry.listed)


class GeneratedColumns(Check):
    """Generated columns are published, or nobody counts on them.

    The value of a generated column is not sent below 18, and from 18 on only with ``publish_generated_columns =
    stored`` or when a column list names it. A virtual one has no value to send.

    Risk: the column is missing in the stream, though not in a snapshot that was made by hand. From 18 on UPDATE and
    DELETE fail (SQLSTATE 42P10) where the identity has a generated column that is not published.

    Fix: publish stored ones; compute virtual ones where they are needed.

    See: https://www.postgresql.org/docs/current/logical-replication-gencols.html
    """

    id = "pub.gencols"
    title = "generated columns are published, or there are none"
    needs = _NEEDS

    def run(self, context: Context) -> Iterator[Finding]:
        fine = True
        for entry in context.entries:
            publication = context.publication(entry.publication)
            for leaf in context.leaves_of(entry):
                virtual = [column.name for column in leaf.columns if column.generated == "v"]
                stored = [column.name for column in leaf.columns if column.generated == "s"]
                if publication.generated_columns == "stored" and entry.listed is None:
                    stored = []
                elif publication.generated_columns is not None and entry.listed is not None:
                    stored = [name for name in stored if name not in entry.listed]
                if not virtual and not stored:
                    continue
                fine = False
                changes = _changes(context, entry)
                breaks = (
                    publication.generated_columns is not None
                    and bool(changes)
                    and bool(set(virtual + stored) & set(leaf.identity_columns))
                )
                yield self.finding(
                    Status.FAIL if breaks else Status.WARN if virtual else Status.INFO,
                    f"{', '.join(virtual + stored)} {'is' if len(virtual + stored) == 1 else 'are'} generated and not"
                    f" sent by {entry.publication}"
                    + (f", but part of its identity: {changes} on it fail" if breaks else ""),
                    {"publication": entry.publication, "stored": stored, "virtual": virtual},
                    object=leaf.qualified,
                    fix=self._fix(context, entry, leaf, stored, virtual, breaks),
                )
        if fine:
            yield self.finding(Status.PASS, "none that is not sent")

    @staticmethod
    def _fix(
        context: Context, entry: Entry, leaf: Leaf, stored: list[str], virtual: list[str], breaks: bool
    ) -> list[Fix]:
        fix = []
        if stored and context.publication(entry.publication).generated_columns is None:
            fix.append(Fix("action", "compute it from the other columns, or upgrade to 18, which can publish it"))
        elif stored and entry.listed is not None:
            fix.append(_publish_again(entry, [*entry.listed, *stored]))
        elif stored:
            name = quote_ident(entry.publication)
            fix.append(Fix("sql", f"ALTER PUBLICATION {name} SET (publish_generated_columns = stored);"))
        if virtual and breaks and leaf.has_primary_key:
            fix.append(Fix("sql", f"ALTER TABLE {leaf.quoted} REPLICA IDENTITY DEFAULT;"))
        elif virtual:
            fix.append(Fix("action", f"compute {', '.join(virtual)} from the other columns where it is needed"))
        return fix
