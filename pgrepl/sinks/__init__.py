"""Bytes to somewhere durable."""

from __future__ import annotations

from typing import Protocol

from pgrepl.lsn import Lsn


class Sink(Protocol):
    """Somewhere to write events; it knows up to which position everything it was given is durable.

    ``write`` takes whole lines and may block. ``position`` marks that everything before an LSN has been written, and
    comes only between transactions. ``durable`` is the last such mark whose bytes survive what the sink promises to
    survive.
    """

    def write(self, data: bytes) -> None: ...

    def position(self, lsn: Lsn) -> None: ...

    def durable(self) -> Lsn: ...

    def tick(self) -> None:
        """Do what is due by now; called at least several times a second while nothing else is."""

    def close(self) -> None:
        """Make everything durable and let go of the resource."""
