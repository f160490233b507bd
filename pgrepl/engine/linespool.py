"""Lines of tables that are being copied, kept until their copy is done."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from pgrepl.lsn import Lsn

DEFAULT_LIMIT = 10 << 30


class LineSpool:
    """Keep lines by table, in order, each with the position of its transaction."""

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self._limit = limit
        self._tables: dict[int, deque[tuple[Lsn, bytes]]] = {}
        self.used = 0

    @property
    def full(self) -> bool:
        """Whether no more should be put in until a copy ends."""
        return self.used >= self._limit

    def append(self, table: int, commit_lsn: Lsn, line: bytes) -> None:
        """Keep a line."""
        self._tables.setdefault(table, deque()).append((commit_lsn, line))
        self.used += len(line)

    def drop(self, table: int, before: Lsn | None) -> None:
        """Forget the lines of transactions with ``commit_lsn < before``, or all."""
        lines = self._tables.get(table)
        while lines and (before is None or lines[0][0] < before):
            self.used -= len(lines.popleft()[1])

    def lines(self, table: int) -> Iterator[bytes]:
        """Give the lines in order."""
        for _, line in self._tables.get(table, ()):
            yield line

    def clear(self) -> None:
        """Forget everything."""
        self._tables.clear()
        self.used = 0

    def close(self) -> None:
        """Let go of everything."""
        self.clear()
