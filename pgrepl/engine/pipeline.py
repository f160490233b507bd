"""Snapshot, then stream: a run from its start to its end, over as many sessions as it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeVar

import psycopg

from pgrepl.connection import is_lost, one_line
from pgrepl.conninfo import ConnectionTarget
from pgrepl.engine.linespool import DEFAULT_LIMIT, LineSpool
from pgrepl.engine.output import Output
from pgrepl.engine.patience import in_output
from pgrepl.engine.run import End, Observer, Options, Outcome, Progress, Reason, Run, StartAgain
from pgrepl.engine.session import Session
from pgrepl.errors import ConnectError, OutputError, SyncError
from pgrepl.formats import Format
from pgrepl.lsn import Lsn
from pgrepl.sinks import Sink
from pgrepl.sinks.file import FileSink
from pgrepl.stores import Store
from pgrepl.stores.memory import MemoryStore

__all__ = ["Observer", "Options", "Outcome", "Pipeline", "Progress"]

_T = TypeVar("_T")


class Pipeline:
    """Run a snapshot and a stream into a sink, once.

    ``run`` blocks until an end of the options is reached or ``stop`` is called, from a signal handler or another
    thread.
    """

    def __init__(
        self,
        target: ConnectionTarget,
        options: Options,
        output_format: Format,
        sink: Sink,
        observer: Observer,
        *,
        store: Store | None = None,
        spool_directory: Path | None = None,
        spool_limit: int = DEFAULT_LIMIT,
    ) -> None:
        if store is not None and options.slot is None:
            raise ValueError("a store needs a persistent slot")
        output = Output(output_format, sink, self._patiently)
        spool = LineSpool(spool_directory, spool_limit, self._patiently)
        self._run = Run(target, options, output, sink, observer, store or MemoryStore(), spool)

    def _patiently(self, work: Callable[[], _T], /) -> _T:
        return in_output(self._run, work)

    def stop(self) -> None:
        """Ask the run to end: with the transaction that is being written, or at once when there is none."""
        self._run.stop = True

    def refresh(self) -> None:
        """Ask the run to read the publication again."""
        self._run.refresh = True

    def reopen(self) -> None:
        """Ask the run to go on in a new output file, the old one having been renamed."""
        self._run.reopen = True

    def run(self) -> Outcome:
        """Run to the end.

        Raises ConnectError when the first connection fails, OperationError when the server is not fit or refuses,
        InputError for a table that is not published, and PositionError when changes can no longer be read.
        BrokenPipeError of the sink passes through.
        """
        run = self._run
        if run.options.duration is not None:
            run.deadline = time.monotonic() + run.options.duration
        try:
            if isinstance(run.sink, FileSink) and run.options.slot is None:
                run.sink.begin()
            reason = self._sessions(run)
            # Stopped while nothing can be written: that has been said.
            with suppress(End):
                run.output.close()
        finally:
            run.spool.close()
            run.store.close()
        return Outcome(reason, run.progress)

    def _sessions(self, run: Run) -> Reason:
        recovery = _Recovery(run)
        while True:
            try:
                with ExitStack() as resources:
                    Session(run, resources).run()
            except End as end:
                return end.reason
            except StartAgain as again:
                run.observer.warning(f"{again}; the copy begins again")
                self._forget_attempt()
            except OutputError as error:
                self._forget_attempt()
                try:
                    recovery.after(error)
                except End as end:
                    return end.reason
            except (ConnectError, psycopg.OperationalError) as error:
                # Only what was lost after a first success is worth waiting for.
                if run.slot_name is None or not is_lost(error):
                    raise
                self._forget_attempt()
                delay = run.next_delay()
                then = "the copy begins again" if run.options.slot is None else "going on from what is stored"
                run.observer.warning(f"{one_line(error)}; trying again in {delay:.1f} s, {then}")
                try:
                    run.pause(delay)
                except End as end:
                    return end.reason

    def _forget_attempt(self) -> None:
        self._run.output.discard()
        self._run.spool.clear()


class _Recovery:
    """Decide whether a file whose sync has failed can be written again from its last good sync on."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._position: Lsn | None = None
        self._give_up = 0.0

    def after(self, error: OutputError) -> None:
        """Wait before the next attempt. Raises the error when there is none, and End when the run is to end."""
        run = self._run
        if isinstance(error, SyncError) and self._position != run.sink.durable():
            self._position = run.sink.durable()
            self._give_up = time.monotonic() + run.options.output_timeout
        # Rows that are thrown away have been counted.
        may_go_back = self._position is not None and run.sink.can_go_back and run.options.limit is None
        if not may_go_back or time.monotonic() >= self._give_up:
            raise error
        run.observer.warning(f"{error}; going back to {self._position}, up to where all of it is synced")
        try:
            run.pause(run.next_delay())
        except End as end:
            if end.reason != "stopped":
                # An end by the clock would pass for a good one.
                raise error from None
            raise
