"""The copy of tables out of one exported snapshot."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import psycopg
from psycopg import sql

from pgrepl.catalog import publications
from pgrepl.catalog.publications import PublishedTable
from pgrepl.catalog.tables import lockable, replaced_since_snapshot
from pgrepl.connection import is_lost
from pgrepl.engine import relations, units
from pgrepl.engine.relations import Described
from pgrepl.engine.units import Unit
from pgrepl.pgoutput.copytext import CopyRows, Row

_LOCK_TIMEOUT = "5s"
_NO_SNAPSHOT = (
    psycopg.errors.InvalidParameterValue,
    psycopg.errors.UndefinedObject,
    psycopg.errors.ObjectNotInPrerequisiteState,
)
_RENAMED = (psycopg.errors.UndefinedColumn, psycopg.errors.UndefinedTable)
_NOT_LOCKED = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected, psycopg.errors.UndefinedTable)
# A table that could not be locked before may be locked by others when its rows are asked for.
_GONE = (*_RENAMED, psycopg.errors.DeadlockDetected)


class SnapshotUnusable(Exception):
    """The tables cannot be read as they were at the snapshot any more; a new slot and a new snapshot are needed."""


@contextmanager
def _locked_out() -> Iterator[None]:
    """Turn a lock that is not to be had into a snapshot that is no use."""
    try:
        yield
    except _NOT_LOCKED as error:
        raise SnapshotUnusable(f"the tables cannot be locked: {error.diag.message_primary}") from None


class Snapshot:
    """A transaction that reads as of an exported snapshot, and holds its tables as they are.

    TRUNCATE and ALTERs that rewrite a table are not covered by snapshots: an older one reads an empty or a changed
    table afterwards, without an error. So the tables are locked (ACCESS SHARE, which lets everybody read and write)
    before their files are compared with those the snapshot knows, and the locks are held to the end of the copy.
    """

    def __init__(self, connection: psycopg.Connection, name: str) -> None:
        """Import the snapshot into a new transaction. Raises SnapshotUnusable when it is gone."""
        self._connection = connection
        self._held: set[int] = set()
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(name)))
        except _NO_SNAPSHOT as error:
            raise SnapshotUnusable(f"the exported snapshot is gone: {error.diag.message_primary}") from None
        # Reading about partitions takes locks on them, too.
        connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(_LOCK_TIMEOUT)))
        # No lock is older than this, so that all of them can be let go without letting go of the snapshot.
        connection.execute("SAVEPOINT unlocked")

    def published(self, names: Sequence[str]) -> list[PublishedTable]:
        """Read what the publications publish as the snapshot sees it."""
        with _locked_out():
            return publications.published_tables(self._connection, names)

    def describe(self, tables: Sequence[PublishedTable]) -> dict[int, Described]:
        """Build the versions of the tables that rows are read with."""
        with _locked_out():
            return relations.published(self._connection, tables)

    def hold(self, tables: Sequence[PublishedTable]) -> None:
        """Lock the tables and make sure that the snapshot still gives their rows.

        A role with grants on columns alone may not LOCK TABLE; there the COPY itself takes the lock, and ``verify``
        compares after it. Raises SnapshotUnusable when a lock is not to be had, or when a table was replaced
        meanwhile.
        """
        held = lockable(self._connection, [table.oid for table in tables])
        with _locked_out():
            if held:
                names = sql.SQL(", ").join(_source(table) for table in tables if table.oid in held)
                self._connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(names))
            self._held = held
            self.verify([table for table in tables if table.oid in held])
        # A table that cannot be locked is waited for by its COPY, for as long as it takes.
        self._connection.execute("SET LOCAL lock_timeout = 0")

    def hold_only(self, tables: Sequence[PublishedTable]) -> None:
        """Let go of all other tables, and of what an error has left behind; the snapshot stays.

        For a moment nothing is locked, so these are locked and compared anew. Raises SnapshotUnusable.
        """
        self._connection.execute("ROLLBACK TO SAVEPOINT unlocked")
        self.hold(tables)

    def refused(self, tables: Sequence[PublishedTable]) -> dict[int, psycopg.Error]:
        """Find those of the tables that the server does not let us hold, with what it says, each tried by itself.

        What is held afterwards is no matter: ``hold_only`` comes next. Raises SnapshotUnusable, and psycopg's error
        when the connection is lost.
        """
        found: dict[int, psycopg.Error] = {}
        for table in tables:
            try:
                self.hold_only([table])
            except psycopg.Error as error:
                if is_lost(error):
                    raise
                found[table.oid] = error
        return found

    def verify(self, tables: Sequence[PublishedTable]) -> None:
        """Make sure that the snapshot gives the rows of tables that are locked. Raises SnapshotUnusable."""
        replaced = set(replaced_since_snapshot(self._connection, [table.oid for table in tables]))
        if replaced:
            names = ", ".join(table.qualified for table in tables if table.oid in replaced)
            raise SnapshotUnusable(f"{names} was truncated, rewritten, renamed or dropped while the snapshot was taken")

    def read(self, unit: Unit) -> Generator[list[Row], None, None]:
        """Read the rows of a unit, some at a time.

        Raises SnapshotUnusable when the table or a column has another name by now, or is gone.
        """
        rows = CopyRows(len(unit.table.columns))
        try:
            with self._connection.cursor().copy(unit.query()) as stream:
                for block in stream:
                    yield rows.feed(bytes(block))
        except _GONE as error:
            raise SnapshotUnusable(f"{unit.table.qualified} was changed: {error.diag.message_primary}") from None
        rows.finish()
        if unit.table.oid not in self._held:
            self.verify([unit.table])

    def units(self, tables: Sequence[PublishedTable]) -> dict[int, list[Unit]]:
        """Cut the tables into units."""
        return units.plan(self._connection, tables)

    @property
    def pid(self) -> int:
        """The backend that holds the locks."""
        return self._connection.info.backend_pid

    def cancel(self) -> None:
        """Cancel what is being read or waited for, from another thread."""
        self._connection.cancel_safe(timeout=1)

    def close(self) -> None:
        """End the transaction and its locks."""
        self._connection.close()


def _source(table: PublishedTable) -> sql.Composable:
    name = sql.Identifier(table.schema, table.name)
    # A partitioned table is read with its partitions, any other one without what inherits from it.
    return name if table.relkind == "p" else sql.SQL("ONLY {}").format(name)
