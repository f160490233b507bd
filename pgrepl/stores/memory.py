"""The store that keeps nothing beyond the process."""

from __future__ import annotations

from collections.abc import Collection

from pgrepl.catalog.definitions import Definition
from pgrepl.events import Table
from pgrepl.lsn import Lsn
from pgrepl.stores import Identity, StoredState


class MemoryStore:
    """Remember nothing: what the engine itself holds is all there is, and a restart begins anew."""

    def load(self) -> StoredState:
        """Nothing is known."""
        return StoredState()

    def begin(self, identity: Identity, position: Lsn, tables: Collection[int]) -> None: ...

    def copying(self, tables: Collection[int]) -> None: ...

    def ready(self, tables: Collection[int], position: Lsn, told: Collection[Table] = ()) -> None: ...

    def caught_up(self, tables: Collection[int]) -> None: ...

    def errored(self, table: int, reason: str, solution: str | None) -> None: ...

    def position(self, position: Lsn, told: Collection[Table] = ()) -> None: ...

    def schema(self, definition: Definition) -> None: ...

    def version(self, definition: Definition, lsn: Lsn) -> None: ...

    def prune(self, position: Lsn) -> None: ...

    def forget(self, table: int) -> None: ...

    def close(self) -> None: ...
