"""Rows out of ``COPY … TO STDOUT`` in text format (PostgreSQL documentation, COPY, Text Format)."""

from __future__ import annotations

import re
from typing import Final, TypeAlias

from pgrepl.errors import ProtocolError

Row: TypeAlias = tuple[bytes | None, ...]
"""The columns of a row in the order of the COPY: text in the client encoding, None for NULL."""

_NULL: Final = rb"\N"
_ESCAPE: Final = re.compile(rb"\\([0-7]{1,3}|x[0-9A-Fa-f]{1,2}|.?)", re.DOTALL)
_LETTERS: Final = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}


class CopyRows:
    """Split the bytes of a COPY into rows, whatever the pieces they come in.

    ``columns`` is how many columns the COPY asks for; 0 is a table without columns, whose rows are empty lines.
    A newline always ends a row, since the server writes one inside a value as ``\\n``.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._partial: list[bytes] = []

    def feed(self, chunk: bytes) -> list[Row]:
        """Take the next bytes and return the rows that they complete.

        Raises ProtocolError for a row with another number of columns, and for a field that ends in a backslash.
        """
        if b"\n" not in chunk:
            self._partial.append(chunk)
            return []
        if self._partial:
            chunk = b"".join((*self._partial, chunk))
        lines = chunk.split(b"\n")
        rest = lines.pop()
        self._partial = [rest] if rest else []
        return [self._row(line) for line in lines]

    def finish(self) -> None:
        """Say that no more bytes come; raises ProtocolError when the last row is not complete."""
        size = sum(map(len, self._partial))
        if size:
            raise ProtocolError(f"COPY ended in the middle of a row, after {size} bytes of it")

    def _row(self, line: bytes) -> Row:
        fields = line.split(b"\t")
        if len(fields) != self._columns:
            if self._columns == 0 and not line:
                return ()
            raise ProtocolError(f"a row of COPY with {len(fields)} columns instead of {self._columns}")
        if b"\\" not in line:
            return tuple(fields)
        return tuple([field if b"\\" not in field else _unescape(field) for field in fields])


def _unescape(field: bytes) -> bytes | None:
    """Read a field with a backslash in it; only ``\\N`` as it stands is NULL, the text ``\\N`` comes as ``\\\\N``."""
    if field == _NULL:
        return None
    # Most backslashes are doubled ones, every bytea begins so: they are cheaper to split at than to match.
    return b"\\".join([part if b"\\" not in part else _ESCAPE.sub(_escaped, part) for part in field.split(rb"\\")])


def _escaped(match: re.Match[bytes]) -> bytes:
    escape = match[1]
    letter = _LETTERS.get(escape)
    if letter is not None:
        return letter
    if not escape:
        raise ProtocolError("a field of COPY that ends in a backslash")
    if escape[0] in b"01234567":
        return bytes((int(escape, 8) & 0xFF,))
    if len(escape) > 1:
        return bytes((int(escape[1:], 16),))
    return escape
