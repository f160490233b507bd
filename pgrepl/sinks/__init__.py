"""Bytes to somewhere durable."""

from __future__ import annotations

from typing import Protocol

from pgrepl.lsn import Lsn


class Sink(Protocol):
    """Somewhere to write lines; it knows up to which position what it was given is durable.

    ``write`` takes whole lines and may block. ``mark`` says that the first ``written`` bytes of this run hold every
    transaction before ``position`` whole, and of later ones nothing that counts. ``durable`` is the position of the
    last mark that survives what the sink promises to survive.

    Everything may raise OutputError: then the same call may be made again, with the same data, of which nothing is
    written twice. After a SyncError nothing proves that what was written since the last sync is there, and ``close``
    makes no more of it durable.
    """

    @property
    def can_go_back(self) -> bool:
        """Whether what follows the last durable mark can be thrown away, and written anew."""

    def write(self, data: bytes) -> None: ...

    def mark(self, written: int, position: Lsn) -> None: ...

    def durable(self) -> Lsn: ...

    def sync(self) -> None:
        """Make everything up to the last mark durable now."""

    def reopen(self) -> None:
        """Go on in a new file of the same name, when the old one has been renamed; all of it is marked."""

    def tick(self) -> None:
        """Do what is due by now; called at least several times a second while nothing else is."""

    def close(self) -> None:
        """Make everything durable and let go of the resource."""
