"""One slot and what is read from it, over as many connections as it takes.

The order in which things are done is what the promises rest on; docs/engine.md gives the reasons.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace

import psycopg

from pgrepl import names
from pgrepl.connection import is_lost, one_line
from pgrepl.engine import leftovers, preflight, resume
from pgrepl.engine.applying import Applier
from pgrepl.engine.connections import Connections, held
from pgrepl.engine.copying import Copier, Inbox
from pgrepl.engine.core import Core, Phase
from pgrepl.engine.patience import StoreAway, in_store
from pgrepl.engine.reconnecting import NO_WALSENDER, Reconnecting
from pgrepl.engine.release import release
from pgrepl.engine.run import FIRST_RETRY, End, Run, StartAgain
from pgrepl.engine.starting import Beginning, Start, temporary_slot_name
from pgrepl.engine.streamed import StreamingOff
from pgrepl.errors import ConnectError, OperationError, PgreplError, PositionError
from pgrepl.lsn import Lsn
from pgrepl.replication.receiver import Receiver
from pgrepl.replication.verdicts import Passing
from pgrepl.replication.walsender import Walsender
from pgrepl.sinks.file import FileSink
from pgrepl.stores.memory import MemoryStore
from pgrepl.stores.postgres import PostgresStore
from pgrepl.stores.told import from_json

_INTERNAL_ERROR = "XX000"
_START_AGAIN = (
    "start again: a new snapshot is taken, and changes in between are not seen; --store postgres keeps the position"
)
_UNDECODABLE = "this slot cannot ever decode it: a table was truncated or rewritten while the slot was being built"
_STEP = 0.2
_RELEASE_SECONDS = 2.0
_SLICE = 0.05


class Session:
    """One slot and what is read from it; with a persistent slot over as many connections as it takes."""

    def __init__(self, run: Run, resources: ExitStack) -> None:
        self._run = run
        self._options = run.options
        self._observer = run.observer
        self._resources = resources
        self._persistent = run.options.slot is not None
        self._receiver: Receiver | None = None
        self._reconnected = False
        self._swept = False
        # Set at a good end of a pipeline that supabase/etl may go on with.
        self._leaving = False
        # Whether the next stream is asked to send large transactions while they are going on.
        self._streaming = run.options.streaming

    def run(self) -> None:
        """Prepare and stream. Ends with End, StartAgain, or an error."""
        self._connections = Connections(self._run, self._resources)
        try:
            self._begin_and_stream(self._connections)
        except StoreAway as away:
            if self._has_stream():
                raise
            # The whole server is away, and that is waited for. What was decided meanwhile was not done, so that only
            # what is stored can be gone on from.
            raise ConnectError(str(away), hint=away.hint) from None
        except PositionError as error:
            if error.hint is None:
                slot = self._options.slot
                error.hint = resume.anew(slot, there=True, kept=self._keeps_state) if slot else _START_AGAIN
            raise
        finally:
            self._connections.say_notices()

    @property
    def _keeps_state(self) -> bool:
        return not isinstance(self._run.store, MemoryStore)

    def _begin_and_stream(self, connections: Connections) -> None:
        options = self._options
        connections.wait_for_old_slot()
        facts = preflight.check_server(connections.admin, slots=0 if self._persistent else 1)
        tables = preflight.check_publications(connections.admin, options.publications, options.selection)
        if options.snapshot != "never":
            preflight.check_readable(connections.admin, tables)
        if self._run.slot_name is None:
            self._tell_state_elsewhere()
        self._run.check_end()
        self._inbox = inbox = Inbox(self._nudge)
        copier = Copier(
            self._run.target,
            options.publications,
            options.selection,
            options.jobs,
            self._run.output.format,
            inbox,
            yield_after=options.yield_to_ddl,
            received=lambda: self._core.received,
            names=self._run.progress.unfinished,
            warn=self._observer.warning,
        )
        self._resources.callback(copier.stop)
        beginning = Start(self._run, connections, copier).begin(facts, tables)
        self._identity = beginning.identity
        self._core = self._make_core(beginning)
        if beginning.to_store is not None:
            position = beginning.to_store
            in_store(self._run, lambda: self._run.store.begin(beginning.identity, position, ()))
        self._reconnecting = Reconnecting(self._run, connections, self._core, beginning.identity, self._pause_writing)
        self._applier = Applier(
            self._run,
            connections,
            self._core,
            beginning,
            copier,
            inbox,
            until=connections.wal_end() if options.until == "now" else options.until,
            confirm=self._confirm,
            check_stream=self._check_stream,
        )
        if isinstance(self._run.sink, FileSink):
            self._run.sink.told = self._applier.told_to_the_file
        self._applier.begin_copies(beginning)
        # What was asked for once is stored now; a session that follows goes on from there.
        self._run.options = replace(
            self._run.options, from_lsn=None, resnapshot=frozenset(), accept_slot_position=False
        )
        self._left_out = beginning.left_out
        walsender = beginning.walsender
        try:
            while True:
                try:
                    self._stream(walsender)
                except StreamingOff as reason:
                    walsender = self._without_streaming(str(reason))
                except (ConnectError, psycopg.OperationalError, Passing) as error:
                    if not isinstance(error, Passing) and not is_lost(error):
                        raise
                    walsender = self._after_loss(error)
                except (OperationError, PositionError) as error:
                    # With streaming on PostgreSQL 16 to 18 fail on a table that a large transaction truncates twice,
                    # the first time in a savepoint that was rolled back: "could not map filenumber …".
                    if error.sqlstate != _INTERNAL_ERROR:
                        raise
                    if not self._streaming:
                        if isinstance(error, PositionError):
                            raise PositionError(f"{error}; {_UNDECODABLE}", sqlstate=error.sqlstate) from None
                        raise
                    if not self._persistent:
                        raise self._slot_gone(error, f"--streaming off; {_START_AGAIN}") from None
                    walsender = self._without_streaming(str(error))
        except End:
            self._leaving = isinstance(self._run.store, PostgresStore)
            self._applier.close()
            if self._leaving:
                self._release()
            raise

    def _make_core(self, beginning: Beginning) -> Core:
        run = self._run
        run.copies.update(beginning.copies)
        output_position = None
        if isinstance(run.sink, FileSink) and self._persistent:
            identity = beginning.identity
            held = run.sink.adopt(identity.system_identifier, identity.slot, self._options.format_name)
            for oid, count in held.copies.items():
                run.copies[oid] = max(run.copies.get(oid, 0), count)
            if run.sink.moved is not None:
                self._observer.notice(run.sink.moved)
            # Shared with the sidecar, which is written with each sync.
            held.copies = run.copies
            begun = any(state.phase is not Phase.INIT for state in beginning.tables.values())
            if held.position == 0 and beginning.prepared is None and begun and self._keeps_state:
                self._observer.notice(
                    "the output begins in the middle: what was printed before is elsewhere; --resnapshot all copies"
                    " every table into this one"
                )
            output_position = held.position or None
            beginning.not_stored = {oid: from_json(oid, version) for oid, version in held.told.items()}
        # The memory store costs nothing, so nothing is saved up for it.
        eager = {} if self._persistent else {"store_interval": 0.0, "idle_bytes": 0}
        return Core(beginning.tables, beginning.position, output_position, **eager)  # type: ignore[arg-type]

    def _stream(self, walsender: Walsender) -> None:
        """Read the stream over one connection, to its end or that of the run."""
        only = self._options.snapshot == "only"
        # A copy of a later moment than the stream's is done when the stream has come there.
        receiving = not only or self._core.awaits_stream
        if receiving:
            self._start_receiving(walsender)
        else:
            walsender.close()
        slice_ = _SLICE
        while True:
            self._applier.end_between()
            if only and not self._core.copying and self._core.at_boundary:
                raise End("snapshot")
            if not receiving and self._core.awaits_stream:
                receiving = True
                self._start_receiving(self._connections.walsender(self._identity.slot))
            self._read(slice_)
            self._connections.say_notices()
            began = time.monotonic()
            self._applier.copied(_SLICE)
            # However long a slow reader makes the rows of a copy take, the stream gets as much time: the server keeps
            # the WAL that has not been read.
            slice_ = max(_SLICE, time.monotonic() - began)
            self._applier.settle()

    def _read(self, seconds: float) -> None:
        """Take what has come from the server, for so long at the most."""
        end = time.monotonic() + seconds
        patience = self._patience()
        while (payloads := self._receive(patience)) is not None:
            self._run.delay = FIRST_RETRY
            self._applier.payloads(payloads)
            if time.monotonic() >= end:
                return
            patience = 0.0

    def _start_receiving(self, walsender: Walsender) -> None:
        guard = self._connections.open()
        self._start_replication(walsender)
        self._receiver = Receiver(
            walsender,
            # Not where the stream is read from: the output may be ahead of the store.
            self._core.stored,
            wal_sender_timeout=self._connections.wal_sender_timeout,
            guard=guard.pgconn,
        )
        self._connections.before_close(self._receiver.close)
        self._receiver.start()
        if self._options.until is not None or self._options.snapshot == "only":
            self._receiver.ask_for_keepalives()
        self._sweep()

    def _start_replication(self, walsender: Walsender) -> None:
        """Start, waiting for a while for another walsender on the slot to end, which may be one of ours that died."""
        position = self._core.resume_position()
        give_up = time.monotonic() + self._connections.holder_patience(ours=self._reconnected)
        told = False
        while True:
            try:
                walsender.start_replication(
                    self._identity.slot,
                    position,
                    self._options.publications,
                    protocol=self._options.protocol,
                    streaming=self._streaming,
                )
                break
            except OperationError as error:
                if error.sqlstate != "55006":
                    raise
                slot = self._connections.slot(self._identity.slot)
                in_use = held(slot) if slot is not None else error
                if time.monotonic() >= give_up:
                    raise in_use from None
            if not told:
                self._observer.notice(f"{in_use}; waiting for it")
                told = True
            self._pause_writing(_STEP)
        if self._persistent:
            self._reconnecting.check_not_moved()
        self._applier.connected(streaming=self._streaming)

    def _receive(self, patience: float) -> list[bytes] | None:
        if self._receiver is None:
            self._run.pause(min(patience, _STEP / 10))
            return None
        if self._run.spool.full and self._applier.in_progress:
            # The end of a transaction, which would make room, is behind what there is no room for.
            raise StreamingOff("the spool is full, and transactions that are going on are in it")
        if self._run.spool.full and self._core.awaits_rows:
            # Only the end of a copy makes room; the server waits meanwhile, and is told that we are alive. Once all
            # copies have ended it is the end of this transaction, which is received however large it is.
            self._receiver.check()
            self._applier.end_beside_copies()
            # The rows of the copies come between two calls; this keeps the loop from spinning when there are none.
            time.sleep(min(patience, _STEP / 4))
            return None
        payloads = self._receiver.batch(patience)
        self._run.progress.received = self._receiver.received
        return payloads

    def _patience(self) -> float:
        if not self._inbox.is_empty:
            return 0.0
        if self._run.deadline is None:
            return _STEP
        return max(0.0, min(_STEP, self._run.deadline - time.monotonic()))

    def _nudge(self) -> None:
        receiver = self._receiver
        if receiver is not None:
            receiver.nudge()

    def _confirm(self, position: Lsn) -> None:
        if self._receiver is not None:
            # The last word may lie inside the last record; said all the time it would hold up the server's shutdown.
            self._receiver.confirm(Lsn(position - 1) if self._leaving else position)

    def _sweep(self) -> None:
        """Once the slot is ours: drop those that supabase/etl has left beside it."""
        if self._swept or not isinstance(self._run.store, PostgresStore):
            return
        self._swept = True
        leftovers.sweep(self._connections.admin, self._identity.slot, self._left_out, self._observer)

    def _tell_state_elsewhere(self) -> None:
        """Say that this run starts over, where another store has state of the pipeline and this one has none."""
        run = self._run
        if run.options.slot is None:
            pipeline: int | None = names.pipeline_id(run.target.pipeline_host(), run.target.database())
        else:
            pipeline = names.parse_slot(run.options.slot).pipeline_id
        kept = isinstance(run.store, PostgresStore)
        if pipeline is None or (kept and run.store.load().tables):
            return
        found = leftovers.state_elsewhere(self._connections.admin, pipeline, "postgres" if kept else None)
        if found is not None:
            self._observer.notice(f"{found}; this run starts over, without it")

    def _release(self) -> None:
        """Leave the slot where supabase/etl reads it right, or say that it could not be done."""
        if self._receiver is not None:
            self._receiver.close()
        run, name = self._run, self._identity.slot
        try:
            release(
                self._connections.admin,
                name,
                self._core.stored,
                self._options.publications,
                run.store.position,
                seconds=_RELEASE_SECONDS,
            )
        except (PgreplError, psycopg.Error) as error:
            run.observer.notice(
                f"slot {name} could not be released ({one_line(error)});"
                " before supabase/etl goes on with it: 'pgrepl state release'"
            )

    def _check_stream(self) -> bool:
        """Say whether there is a stream. Raises ConnectError when it is lost."""
        if self._receiver is not None:
            self._receiver.check()
        return self._receiver is not None

    def _has_stream(self) -> bool:
        try:
            return self._check_stream()
        except (ConnectError, Passing):
            return False

    def _without_streaming(self, reason: str) -> Walsender:
        """Begin the stream again from the position, with transactions that come when they are whole."""
        self._observer.warning(f"{reason}; reading it again with streaming off")
        self._streaming = False
        self._applier.broken_off()
        old, self._receiver = self._receiver, None
        assert old is not None
        if self._persistent:
            old.close()
            self._reconnected = True
            try:
                walsender = self._connections.walsender(self._identity.slot)
            except (OperationError, ConnectError) as error:
                if not is_lost(error) and error.sqlstate != NO_WALSENDER:
                    raise
                walsender = self._after_loss(error)
                self._streaming = False
            return walsender
        # A temporary slot ends with its connection, so it is carried over to the other one before.
        name = temporary_slot_name()
        walsender = self._connections.walsender(name)
        walsender.copy_slot(self._identity.slot, name)
        self._identity = replace(self._identity, slot=name)
        self._run.slot_name = name
        old.close()
        return walsender

    # A lost connection.

    def _after_loss(self, error: Exception) -> Walsender:
        """Deal with a lost connection: find another, or end where the slot is lost with it."""
        self._applier.broken_off()
        self._receiver = None
        if not self._persistent:
            if self._core.copying:
                raise StartAgain(one_line(error))
            raise self._slot_gone(error, _START_AGAIN) from None
        # It may be another connection than the stream's, which holds the slot then.
        self._connections.close()
        self._reconnected = True
        walsender = self._reconnecting.again(error)
        self._streaming = self._options.streaming
        return walsender

    def _slot_gone(self, error: Exception, hint: str) -> PositionError:
        # What has been read is printed, also the beginning of a transaction that did not arrive whole.
        output = self._run.output
        output.close()
        return PositionError(
            f"{one_line(error)}; the temporary slot is gone with it,"
            f" and changes from {output.printed} on cannot be read any more",
            hint=hint,
            sqlstate=getattr(error, "sqlstate", None),
        )

    def _pause_writing(self, seconds: float) -> None:
        """Wait, but let copies that are still going on be printed."""
        end = time.monotonic() + seconds
        output = self._run.output
        while time.monotonic() < end:
            self._run.check_end()
            self._applier.copied(_SLICE)
            output.write()
            output.tick()
            self._applier.reopen_when_asked()
            if self._inbox.is_empty:
                # So that a signal, SIGHUP or the next rows are noticed soon, and nothing spins.
                time.sleep(_STEP / 4)
