"""Which version of each table the output was told of last; a row in another one comes after a schema event."""

from __future__ import annotations

from collections.abc import Mapping

from pgrepl import events
from pgrepl.engine.relations import diff, remember, same_definition
from pgrepl.events import SchemaChange, Table, Transaction
from pgrepl.lsn import Lsn


class Versions:
    """Follow what is printed.

    ``told`` is what an earlier run has told the output of, ``not_stored`` what only the output knows of that; both are
    good for comparisons only.
    """

    def __init__(self, told: Mapping[int, Table] | None = None, not_stored: Mapping[int, Table] | None = None) -> None:
        self._tables = {**(told or {}), **(not_stored or {})}
        # With the first position that has behind it what told of the version.
        self._new = [(Lsn(0), table) for table in (not_stored or {}).values()]

    def copied(self, table: Table, snapshot_lsn: Lsn) -> None:
        """Take note that rows of a snapshot follow, in this version."""
        self._tell(table, snapshot_lsn)

    def changed(self, table: Table, transaction: Transaction, seq: int) -> SchemaChange | None:
        """Take note that change ``seq``, in this version, is printed next; gives what has to be printed before it.

        Nothing for a table of which nothing was told before: a reader knows the version from its rows.
        """
        before = self._tables.get(table.oid)
        if before is table:
            return None
        if before is not None and same_definition(before, table):
            self._tables[table.oid] = table
            return None
        self._tell(table, Lsn(transaction.commit_lsn + 1))
        if before is None:
            return None
        table = remember(before, table)
        return SchemaChange(table, diff(before, table), transaction, seq)

    def before(self, event: events.Event) -> list[SchemaChange]:
        """Do the same for any event."""
        match event:
            case events.Insert() | events.Update() | events.Delete():
                tables: tuple[Table, ...] = (event.table,)
            case events.Truncate():
                tables = event.tables
            case _:
                return []
        found = (self.changed(table, event.transaction, event.seq) for table in tables)
        return [change for change in found if change is not None]

    def _tell(self, table: Table, since: Lsn) -> None:
        self._tables[table.oid] = table
        self._new.append((since, table))

    def not_stored(self, position: Lsn) -> list[Table]:
        """Give the versions that the output was told of before ``position`` and that are not stored with one yet."""
        return [table for since, table in self._new if since <= position]

    def stored(self, position: Lsn) -> None:
        """Take note that they are stored with ``position``."""
        self._new = [(since, table) for since, table in self._new if since > position]
