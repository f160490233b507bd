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


class ReplicaIdentity(Check):
    """Every published table has a replica identity: a primary key, the index that was chosen, or FULL.

    Without one the server refuses the application's own UPDATE and DELETE as long as a publication publishes them
    (SQLSTATE 55000). A primary key is best. A unique index over NOT NULL columns serves as well. FULL always works,
    and writes the whole old row into the WAL at each UPDATE and DELETE. Of a partitioned table the partitions count,
    and those made later as well.
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
        without = {identity.oid: identity for identity in context.identities if not identity.usable}
        for table in without.values():
            # A partition can be published with its root as well as by itself.
            failing = sorted(refused.get(table.root_oid, set()) | refused.get(table.oid, set()), reverse=True)
            yield self.finding(
                Status.FAIL if failing else Status.WARN,
                f"{_WHY[table.setting]}: "
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
