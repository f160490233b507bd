"""Bytes to somewhere durable."""

from __future__ import annotations

from typing import Protocol

from pgrepl.lsn import Lsn


class Sink(Protocol):
    """Somewhere to write lines; it knows up to which position what it was given is durable.

    ``write`` takes whole lines and may block. ``mark`` says that the first ``written`` bytes of this run hold every
    transaction before ``position`` whole, and of later ones nothing that counts. ``durable`` is the position of the
    last mark that survives what the sink promises to survive.
    """

    def write(self, data: bytes) -> None: ...

    def mark(self, written: int, position: Lsn) -> None: ...

    def durable(self) -> Lsn: ...

    def sync(self) -> None:
        """Make everything up to the last mark durable now."""

    def tick(self) -> None:
        """Do what is due by now; called at least several times a second while nothing else is."""

    def close(self) -> None:
        """Make everything durable and let go of the resource."""
