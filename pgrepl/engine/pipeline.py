"""Snapshot, then stream: a run from its start to its end, over as many sessions as it takes."""

from __future__ import annotations

import time
from contextlib import ExitStack

import psycopg

from pgrepl.connection import is_lost, one_line
from pgrepl.conninfo import ConnectionTarget
from pgrepl.engine.linespool import LineSpool
from pgrepl.engine.output import Output
from pgrepl.engine.run import End, Observer, Options, Outcome, Progress, Reason, Run, StartAgain
from pgrepl.engine.session import Session
from pgrepl.errors import ConnectError
from pgrepl.formats import Format
from pgrepl.sinks import Sink
from pgrepl.stores import Store
from pgrepl.stores.memory import MemoryStore

__all__ = ["Observer", "Options", "Outcome", "Pipeline", "Progress"]


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
        spool: LineSpool | None = None,
    ) -> None:
        if store is not None and options.slot is None:
            raise ValueError("a store needs a persistent slot")
        output = Output(output_format, sink)
        self._run = Run(target, options, output, sink, observer, store or MemoryStore(), spool or LineSpool())

    def stop(self) -> None:
        """Ask the run to end: with the transaction that is being written, or at once when there is none."""
        self._run.stop = True

    def refresh(self) -> None:
        """Ask the run to read the publication again."""
        self._run.refresh = True

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
            reason = self._sessions(run)
            run.output.close()
        finally:
            run.spool.close()
            run.store.close()
        return Outcome(reason, run.progress)

    def _sessions(self, run: Run) -> Reason:
        while True:
            try:
                with ExitStack() as resources:
                    Session(run, resources).run()
            except End as end:
                return end.reason
            except StartAgain as again:
                run.observer.warning(f"{again}; the copy begins again")
            except (ConnectError, psycopg.OperationalError) as error:
                # Only what was lost after a first success is worth waiting for.
                if run.slot_name is None or not is_lost(error):
                    raise
                delay = run.next_delay()
                run.observer.warning(f"{one_line(error)}; trying again in {delay:.1f} s, the copy begins again")
                try:
                    run.pause(delay)
                except End as end:
                    return end.reason
            run.output.discard()
            run.spool.clear()
