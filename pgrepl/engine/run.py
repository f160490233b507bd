"""What a run is told, what it tells, and what of it outlives a session."""

from __future__ import annotations

import random
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, Protocol

from pgrepl.catalog.publications import PublishedTable
from pgrepl.conninfo import ConnectionTarget
from pgrepl.engine.linespool import LineSpool
from pgrepl.engine.output import Output
from pgrepl.engine.selection import Selection, TableName
from pgrepl.lsn import Lsn
from pgrepl.sinks import Sink
from pgrepl.stores import Store

_STEP = 0.2
FIRST_RETRY = 0.5
_LONGEST_RETRY = 30.0

Reason = Literal["snapshot", "limit", "until", "duration", "stopped"]


@dataclass(frozen=True)
class Options:
    """What a run is to do.

    ``slot`` names the persistent slot; None makes a temporary one, which ends with its connection. ``keep_slot`` makes
    it although nothing else is kept. ``snapshot``: ``initial`` copies tables that have not been copied, ``never`` none,
    ``only`` ends after the copies. ``resnapshot`` are tables that are copied again, whatever the state says of them.
    The stream begins at ``from_lsn`` instead of the stored or confirmed position. The run ends
    after ``limit`` row events, before the first transaction with ``commit_lsn >= until`` (``now``: the end of the WAL
    once the slot exists), or ``duration`` seconds after its start; while tables are being copied only ``limit`` and
    ``duration`` end it. With ``exact_limit`` it ends at the row itself, else with its transaction. ``jobs`` workers
    copy; a table whose copy makes others wait for a lock for ``yield_to_ddl`` seconds is let go, and copied again.
    Every ``refresh`` seconds the publication is read again. With ``streaming``, which needs ``protocol`` version 2,
    the server sends large transactions while they are still going on. A store or an output that fails is tried for
    ``output_timeout`` seconds.
    """

    publications: tuple[str, ...]
    selection: Selection = field(default_factory=Selection)
    slot: str | None = None
    keep_slot: bool = False
    from_lsn: Lsn | None = None
    resnapshot: frozenset[TableName] | Literal["all"] = frozenset()
    snapshot: Literal["initial", "never", "only"] = "initial"
    transactions: bool = False
    limit: int | None = None
    exact_limit: bool = False
    until: Lsn | Literal["now"] | None = None
    duration: float | None = None
    jobs: int = 1
    yield_to_ddl: float | None = None
    refresh: float | None = None
    accept_slot_position: bool = False
    format_name: str = "json"
    protocol: int = 2
    streaming: bool = True
    output_timeout: float = 300.0


@dataclass
class Progress:
    """How far a run is, for whoever watches.

    ``rows`` counts all row events given, ``rows_copied`` those of copies, of about ``rows_to_copy``, which is None when
    a table was never analysed. ``position`` is up to where the stream is done, ``received`` how far the server has
    read, ``spooled`` how many bytes wait for a copy to end. ``unfinished`` are the names, by OID, of tables whose copy
    would have to begin again if the run ended now, or where nothing is stored, whose rows are not all given.
    """

    phase: Literal["connecting", "copying", "streaming"] = "connecting"
    tables: int = 0
    tables_done: int = 0
    rows_copied: int = 0
    rows_to_copy: int | None = 0
    rows: int = 0
    transactions: int = 0
    spooled: int = 0
    position: Lsn = field(default_factory=Lsn)
    received: Lsn = field(default_factory=Lsn)
    unfinished: dict[int, str] = field(default_factory=dict)

    def begin_again(self) -> None:
        """Take note that the copies that were going on have to begin anew."""
        self.tables -= len(self.unfinished)
        self.tables_done = self.tables
        self.rows_to_copy = self.rows_copied
        self.unfinished.clear()

    def expect(self, tables: Collection[PublishedTable]) -> None:
        """Take note of tables that are going to be copied."""
        self.phase = "copying"
        self.tables += len(tables)
        self.unfinished.update((table.oid, table.qualified) for table in tables)
        estimates = [self.rows_to_copy, *(table.rows for table in tables)]
        known = [rows for rows in estimates if rows is not None]
        self.rows_to_copy = sum(known) if len(known) == len(estimates) else None


class Observer(Protocol):
    """Whoever is told what happens. ``may_copy`` may refuse a snapshot of this size before anything is made."""

    def notice(self, message: str) -> None: ...

    def warning(self, message: str, *, hint: str | None = None) -> None: ...

    def may_copy(self, tables: Collection[PublishedTable]) -> bool: ...

    def progress(self, progress: Progress) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """Why a run ended, and how far it came."""

    reason: Reason
    progress: Progress


class End(Exception):
    """An end of the run was reached."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


class StartAgain(Exception):
    """The temporary slot is lost before its copies were done: another slot, another snapshot."""


@dataclass
class Run:
    """What outlives a session."""

    target: ConnectionTarget
    options: Options
    output: Output
    sink: Sink
    observer: Observer
    store: Store
    spool: LineSpool
    progress: Progress = field(default_factory=Progress)
    # How often each table was copied into this output.
    copies: dict[int, int] = field(default_factory=dict)
    slot_name: str | None = None
    stop: bool = False
    refresh: bool = False
    reopen: bool = False
    deadline: float | None = None
    told_blockers: float = 0.0
    # How many slots in a row were given up since tables were replaced while they were being built.
    built_beside: int = 0
    delay: float = FIRST_RETRY

    def next_delay(self) -> float:
        """Give the seconds to wait before the next attempt, longer each time; jitter keeps many clients apart."""
        delay = self.delay * random.uniform(0.8, 1.2)  # noqa: S311  no secret
        self.delay = min(self.delay * 2, _LONGEST_RETRY)
        return delay

    def ending(self) -> Reason | None:
        """Say why the run should end now, if it should."""
        if self.stop:
            return "stopped"
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return "duration"
        return None

    def check_end(self) -> None:
        """End the run where nothing is in the middle of being written. Raises End."""
        reason = self.ending()
        if reason is not None:
            raise End(reason)

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond the end of the run. Raises End."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check_end()
            # In steps: the handler of a signal sets a flag, and Python goes on sleeping after it.
            time.sleep(min(_STEP, left))
