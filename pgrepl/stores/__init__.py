"""Where a pipeline keeps how far it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from pgrepl.catalog.definitions import Definition
from pgrepl.events import Table
from pgrepl.lsn import Lsn

StoredPhase = Literal["init", "data_sync", "finished_copy", "sync_done", "ready", "errored"]


@dataclass(frozen=True)
class Identity:
    """What a state belongs to: another server, timeline, slot or publication is another history."""

    system_identifier: str
    timeline: int
    slot: str
    publication: str


@dataclass(frozen=True)
class StoredTable:
    """The state of a table; ``lsn`` belongs to ``sync_done``, ``reason`` and ``retry_at`` to ``errored``."""

    phase: StoredPhase
    lsn: Lsn | None = None
    reason: str | None = None
    retry_at: datetime | None = None


@dataclass(frozen=True)
class StoredState:
    """What a store knows; ``identity`` and ``position`` are None for a pipeline that pgrepl has never run.

    ``told`` are the versions of tables that the output had been told of at the position.
    """

    identity: Identity | None = None
    position: Lsn | None = None
    tables: Mapping[int, StoredTable] = field(default_factory=dict)
    copies: Mapping[int, int] = field(default_factory=dict)
    told: Mapping[int, Table] = field(default_factory=dict)


class Store(Protocol):
    """Keep the state of one pipeline; each method is one transaction, durable when it returns.

    Raises OperationError when the store refuses, and a connection error of psycopg when it is away.
    """

    def load(self) -> StoredState: ...

    def begin(self, identity: Identity, position: Lsn, tables: Collection[int]) -> None:
        """Store where the stream begins, and that these tables are being copied."""

    def copying(self, tables: Collection[int]) -> None:
        """Store that tables are being copied, each once more than before."""

    def ready(self, tables: Collection[int], position: Lsn, told: Collection[Table] = ()) -> None:
        """Store that copied tables are handed over at ``position``, and the position as ``position`` does."""

    def caught_up(self, tables: Collection[int]) -> None:
        """Store that tables which another tool had left in sync_done are ready."""

    def errored(self, table: int, reason: str, solution: str | None) -> None:
        """Store that a table cannot be copied."""

    def position(self, position: Lsn, told: Collection[Table] = ()) -> None:
        """Store the position, and the versions of tables that the output has been told of since the last one."""

    def schema(self, definition: Definition) -> None:
        """Store the version of a table that it is copied with; what was known of it before is forgotten with it."""

    def version(self, definition: Definition, lsn: Lsn) -> None:
        """Store the version of a table that a message of the event trigger, which ends at ``lsn``, tells of."""

    def prune(self, position: Lsn) -> None:
        """Remove versions of tables that nobody needs who begins to read at ``position``."""

    def forget(self, table: int) -> None:
        """Remove everything of a table that has left the publication."""

    def close(self) -> None: ...
