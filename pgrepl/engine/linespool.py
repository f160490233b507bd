"""Lines of tables that are being copied, kept until their copy is done: in memory while they are few, then on disk."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pgrepl.engine.patience import Patience, at_once
from pgrepl.engine.spool import Spool, default_directory
from pgrepl.lsn import Lsn

DEFAULT_LIMIT = 10 << 30
"""Bytes at which the stream waits for a copy to end."""


class LineSpool:
    """Keep lines by table, in order, each with the position of its transaction.

    Raises OutputError when the disk is full or fails, and ``patiently`` does not get over it.
    """

    def __init__(
        self, directory: Path | None = None, limit: int = DEFAULT_LIMIT, patiently: Patience = at_once
    ) -> None:
        self._make = partial(Spool, directory or default_directory(), limit, patiently=patiently)
        self._spool = self._make()

    @property
    def used(self) -> int:
        """How many bytes are kept, in memory and on disk."""
        return self._spool.used

    @property
    def messages(self) -> Spool:
        """The spool itself, which also holds the messages of transactions that are going on."""
        return self._spool

    @property
    def full(self) -> bool:
        """Whether no more should be put in until a copy ends."""
        return self._spool.full

    def append(self, table: int, commit_lsn: Lsn, line: bytes, *, rows: int = 0) -> None:
        """Keep a line, which is that of so many row events."""
        self._spool.append(table, line, order=commit_lsn, start=rows)

    def drop(self, table: int, before: Lsn | None) -> None:
        """Forget the lines and definitions of transactions with ``commit_lsn < before``, or all."""
        for key in (table, _definitions(table)):
            if before is None:
                self._spool.drop(key)
            else:
                self._spool.drop_before(key, before)

    def append_version(self, table: int, commit_lsn: Lsn, number: int) -> None:
        """Keep the number of the version that the following lines are in."""
        self._spool.append(table, b"", order=commit_lsn, start=number)

    def append_definition(self, table: int, commit_lsn: Lsn, lsn: Lsn, content: bytes) -> None:
        """Keep what a message of the event trigger, which ends at ``lsn``, says about a table."""
        self._spool.append(_definitions(table), content, order=commit_lsn, start=lsn)

    def definitions(self, table: int) -> Iterator[tuple[Lsn, bytes]]:
        """Give the definitions in order, and let go of them on the way."""
        for entry in self._spool.take(_definitions(table)):
            yield Lsn(entry.start), entry.payload

    def entries(self, table: int) -> Iterator[tuple[int, bytes]]:
        """Give what was kept in order, and let go of it on the way.

        A line comes with how many row events it is, the number of a version with no line.
        """
        for entry in self._spool.take(table):
            yield entry.start, entry.payload

    def clear(self) -> None:
        """Forget everything."""
        self._spool.close()
        self._spool = self._make()

    def close(self) -> None:
        """Let go of everything, the files too."""
        self._spool.close()


def _definitions(table: int) -> tuple[str, int]:
    return ("definitions", table)
