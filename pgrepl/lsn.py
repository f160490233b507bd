"""The log sequence number, PostgreSQL's position in the write-ahead log."""

from __future__ import annotations

import re

from pgrepl.errors import InputError

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})", re.ASCII)
_MAX = 0xFFFFFFFFFFFFFFFF


WAL_ALIGNMENT = 8
"""Every WAL record starts at a multiple of so many bytes."""


class Lsn(int):
    """A position in the WAL, in bytes since its beginning; prints as ``0/16B3748``.

    Subtracting two gives a plain number of bytes. The order is the order of the WAL. One rule holds for every stored
    or confirmed position P: all transactions whose commit record starts before P are done, so compare with ``>=``,
    never ``>``.
    """

    __slots__ = ()

    def __new__(cls, value: int = 0) -> Lsn:
        if not 0 <= value <= _MAX:
            raise ValueError(f"an LSN has 64 bits, not {value}")
        return super().__new__(cls, value)

    @classmethod
    def parse(cls, text: str) -> Lsn:
        """Read the text form, two hexadecimal halves of at most 32 bits each, in either case.

        Raises InputError for anything else.
        """
        match = _LSN.fullmatch(text)
        if match is None:
            raise InputError(f"{text!r} is not an LSN", hint="an LSN looks like 0/16B3748")
        return cls(int(match[1], 16) << 32 | int(match[2], 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{int(self) & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn({str(self)!r})"

    def __sub__(self, other: int) -> int:
        """The distance in bytes."""
        return int(self) - int(other)
