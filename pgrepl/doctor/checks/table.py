"""Can the published tables be replicated as they are?"""

from __future__ import annotations

from collections.abc import Iterator

from pgrepl.catalog.replica_identity import TableIdentity
from pgrepl.doctor.check import Check
from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status
from pgrepl.names import quote_ident

_WHY = {
    "d": "no primary key",
    "n": "REPLICA IDENTITY NOTHING",
    "i": "REPLICA IDENTITY USING INDEX, and the index is gone",
}
_UNSOUND = "an index that identifies nothing (see tbl.ri_index_ok)"


class ReplicaIdentity(Check):
    """Every published table has a replica identity: a primary key, the index that was chosen, or FULL.

    A deferrable primary key is none. Of a partitioned table the partitions count, and those made later as well.

    Risk: without one the server refuses the application's own UPDATE and DELETE as long as a publication publishes
    them (SQLSTATE 55000).

    Fix: a primary key is best. A unique index over NOT NULL columns serves as well. FULL always works, and writes the
    whole old row into the WAL at each UPDATE and DELETE.

    See: https://www.postgresql.org/docs/current/logical-replication-publication.html
    """

    id = "tbl.replica_identity"
    title = "published tables have a replica identity"
    needs = ("conn.sql", "server.version")

    def run(self, context: Context) -> Iterator[Finding]:
        if not context.published_oids:
            yield self.finding(Status.SKIP, "no published table to look at")
            return
        refused: dict[int, set[str]] = {}
        for publication in context.publications:
            changes = {"UPDATE"} if publication.update else set()
            changes |= {"DELETE"} if publication.delete else set()
            for published in context.published[publication.name]:
                refused.setdefault(published.oid, set()).update(changes)
        unsound = {leaf.oid for leaf in context.leaves if leaf.identity_index and not leaf.identity_index.sound}
        without = {identity.oid: identity for identity in context.identities if not identity.usable}
        for table in without.values():
            # A partition can be published with its root as well as by itself.
            failing = sorted(refused.get(table.root_oid, set()) | refused.get(table.oid, set()), reverse=True)
            yield self.finding(
                Status.FAIL if failing else Status.WARN,
                f"{_UNSOUND if table.oid in unsound else _WHY[table.setting]}: "
                + (
                    f"{' and '.join(failing)} on it {'fails' if len(failing) == 1 else 'fail'}"
                    if failing
                    else "its rows cannot be told apart"
                ),
                {
                    "replica_identity": table.setting,
                    "has_primary_key": table.has_primary_key,
                    "candidate_index": table.candidate_index,
                },
                object=f"{table.schema}.{table.name}",
                fix=_fix(table),
            )
        if not without:
            count = len({identity.oid for identity in context.identities})
            yield self.finding(Status.PASS, f"{'it has' if count == 1 else f'all {count} have'} one", {"tables": count})


def _fix(table: TableIdentity) -> tuple[Fix, ...]:
    alter = f"ALTER TABLE {quote_ident(table.schema)}.{quote_ident(table.name)} REPLICA IDENTITY"
    if table.has_primary_key:
        return (Fix("sql", f"{alter} DEFAULT;"),)
    if table.candidate_index is not None:
        return (Fix("sql", f"{alter} USING INDEX {quote_ident(table.candidate_index)};"),)
    better = "better: a primary key" + (" on the partitioned table" if table.is_partition else "")
    return Fix("sql", f"{alter} FULL;"), Fix("action", f"{better}, if the table has columns that can be one")


class PrimaryKey(Check):
    """Every published table has a primary key.

    A replica identity is enough for the server and for pgrepl. supabase/etl and tools made with it want a primary key,
    of a partition its table's.

    Risk: such a reader stops at the table ("has no primary key"). With any reader a change that arrives twice cannot
    be told from two changes, when no column identifies the row.

    Fix: add one. A unique index over NOT NULL columns can become it without a look at the rows.

    See: https://www.postgresql.org/docs/current/ddl-constraints.html#DDL-CONSTRAINTS-PRIMARY-KEYS
    """

    id = "tbl.primary_key"
    title = "published tables have a primary key"
    needs = ("conn.sql", "server.version")

    def run(self, context: Context) -> Iterator[Finding]:
        if not context.published_oids:
            yield self.finding(Status.SKIP, "no published table to look at")
            return
        by_oid = {identity.oid: identity for identity in context.identities}
        without = [leaf for leaf in context.leaves if not leaf.has_primary_key and leaf.oid in by_oid]
        for leaf in without:
            index = by_oid[leaf.oid].candidate_index
            fix = Fix(
                "action", "add a primary key" + (" to the partitioned table" if leaf.oid != leaf.root_oid else "")
            )
            if index is not None and leaf.oid == leaf.root_oid:
                fix = Fix("sql", f"ALTER TABLE {leaf.quoted} ADD PRIMARY KEY USING INDEX {quote_ident(index)};")
            yield self.finding(
                Status.WARN,
                "no primary key: supabase/etl refuses it, and what arrives twice cannot be told apart",
                {"candidate_index": index},
                object=leaf.qualified,
                fix=[fix],
            )
        if not without:
            yield self.finding(Status.PASS, "all of them", {"tables": len(by_oid)})


class IdentityFull(Check):
    """REPLICA IDENTITY FULL is used where nothing better is there.

    FULL identifies a row by all its columns. It also sends the old row, and values that were not touched and lie out
    of line (TOAST), which some readers want.

    Risk: each UPDATE and DELETE writes the whole old row into the WAL, and a subscriber without an index searches its
    whole table for each.

    Fix: the primary key (DEFAULT), or a unique index over NOT NULL columns; keep FULL where the old row is wanted.

    See: https://www.postgresql.org/docs/current/sql-altertable.html#SQL-ALTERTABLE-REPLICA-IDENTITY
    """

    id = "tbl.ri_full"
    title = "REPLICA IDENTITY FULL is not used without need"
    needs = ("conn.sql", "server.version")

    def run(self, context: Context) -> Iterator[Finding]:
        by_oid = {identity.oid: identity for identity in context.identities}
        full = [leaf for leaf in context.leaves if leaf.identity == "f" and leaf.oid in by_oid]
        for leaf in full:
            better = by_oid[leaf.oid]
            alter = f"ALTER TABLE {leaf.quoted} REPLICA IDENTITY"
            fix = []
            if better.has_primary_key:
                fix = [Fix("sql", f"{alter} DEFAULT;")]
            elif better.candidate_index is not None:
                fix = [Fix("sql", f"{alter} USING INDEX {quote_ident(better.candidate_index)};")]
            changes = leaf.updates + leaf.deletes
            yield self.finding(
                Status.WARN if fix and changes else Status.INFO,
                f"FULL, {changes:,} UPDATEs and DELETEs so far wrote the whole old row"
                + ("" if fix else ", and no key is there instead"),
                {"updates": leaf.updates, "deletes": leaf.deletes, "candidate_index": better.candidate_index},
                object=leaf.qualified,
                fix=fix,
            )
        if not full:
            yield self.finding(Status.PASS, "no table has it")


class IdentityIndex(Check):
    """The index that identifies the rows is one that the server uses.

    It must be valid, not deferrable, without WHERE, and over NOT NULL columns. ALTER TABLE sees to that; an index can
    become invalid afterwards, when a REINDEX or an ATTACH was broken off, and a primary key can be deferrable.

    Risk: the table is as one without replica identity: UPDATE and DELETE on it fail (SQLSTATE 55000).

    Fix: REINDEX an invalid index. Make a deferrable key anew without DEFERRABLE.

    See: https://www.postgresql.org/docs/current/sql-reindex.html
    """

    id = "tbl.ri_index_ok"
    title = "the index of the replica identity is usable"
    needs = ("conn.sql", "server.version")

    def run(self, context: Context) -> Iterator[Finding]:
        broken = [(leaf, leaf.identity_index) for leaf in context.leaves if leaf.identity_index is not None]
        broken = [(leaf, index) for leaf, index in broken if not index.sound]
        for leaf, index in broken:
            faults = [
                text
                for fault, text in (
                    (not index.valid, "is invalid"),
                    (not index.immediate, "is deferrable"),
                    (index.partial, "is partial"),
                    (bool(index.nullable_columns), f"allows NULL in {', '.join(index.nullable_columns)}"),
                )
                if fault
            ]
            fix = []
            if not index.valid:
                name = f"{quote_ident(leaf.schema)}.{quote_ident(index.name)}"
                fix.append(Fix("sql", f"REINDEX INDEX {name};"))
            fix += [
                Fix("sql", f"ALTER TABLE {leaf.quoted} ALTER COLUMN {quote_ident(column)} SET NOT NULL;")
                for column in index.nullable_columns
            ]
            if not index.immediate or index.partial:
                fix.append(Fix("action", "drop the key and make it anew, neither DEFERRABLE nor with WHERE"))
            yield self.finding(
                Status.WARN,
                f"index {index.name} {' and '.join(faults)}: rows are not identified by it",
                {"index": index.name, "valid": index.valid, "immediate": index.immediate, "partial": index.partial},
                object=leaf.qualified,
                fix=fix,
            )
        if not broken:
            yield self.finding(Status.PASS, "each is valid and immediate")
