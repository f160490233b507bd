"""One slot and what is read from it, over as many connections as it takes.

The order in which things are done is what the promises rest on; docs/engine.md gives the reasons.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace

import psycopg

from pgrepl.catalog import slots
from pgrepl.catalog.server import Server
from pgrepl.connection import is_lost, one_line
from pgrepl.engine import preflight
from pgrepl.engine.applying import Applier
from pgrepl.engine.connections import Connections
from pgrepl.engine.copying import Copier, Inbox
from pgrepl.engine.core import Core
from pgrepl.engine.run import FIRST_RETRY, End, Run, StartAgain
from pgrepl.engine.starting import Beginning, Start, temporary_slot_name
from pgrepl.engine.streamed import StreamingOff
from pgrepl.errors import ConnectError, OperationError, PositionError
from pgrepl.lsn import Lsn
from pgrepl.replication.receiver import Receiver
from pgrepl.replication.walsender import Walsender
from pgrepl.sinks.file import FileSink
from pgrepl.stores.memory import MemoryStore

_INTERNAL_ERROR = "XX000"
_START_AGAIN = (
    "start again: a new snapshot is taken, and changes in between are not seen; --store postgres keeps the position"
)
_STEP = 0.2
_HOLDER_PATIENCE = 5.0
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
        # Whether the next stream is asked to send large transactions while they are going on.
        self._streaming = run.options.streaming

    def run(self) -> None:
        """Prepare and stream. Ends with End, StartAgain, or an error."""
        options = self._options
        self._connections = connections = Connections(self._run, self._resources)
        connections.wait_for_old_slot()
        facts = preflight.check_server(connections.admin, slots=0 if self._persistent else 1)
        tables = preflight.check_publications(connections.admin, options.publications, options.selection)
        if options.snapshot != "never":
            preflight.check_readable(connections.admin, tables)
        self._run.check_end()
        self._inbox = inbox = Inbox(self._nudge)
        copier = Copier(
            self._run.target, options.publications, options.selection, options.jobs, self._run.output.format, inbox
        )
        self._resources.callback(copier.stop)
        beginning = Start(self._run, connections, copier).begin(facts, tables)
        self._identity = beginning.identity
        self._core = self._make_core(beginning)
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
        self._applier.begin_copies(beginning)
        walsender = beginning.walsender
        try:
            while True:
                try:
                    self._stream(walsender)
                except StreamingOff as reason:
                    walsender = self._without_streaming(str(reason))
                except (ConnectError, psycopg.OperationalError) as error:
                    if not is_lost(error):
                        raise
                    walsender = self._after_loss(error)
                except OperationError as error:
                    # With streaming on PostgreSQL 16 to 18 fail on a table that a large transaction truncates twice,
                    # the first time in a savepoint that was rolled back: "could not map filenumber …".
                    if not self._streaming or error.sqlstate != _INTERNAL_ERROR:
                        raise
                    if not self._persistent:
                        raise self._slot_gone(error, f"--streaming off; {_START_AGAIN}") from None
                    walsender = self._without_streaming(str(error))
        except End:
            self._applier.close()
            raise

    def _make_core(self, beginning: Beginning) -> Core:
        run = self._run
        run.copies.update(beginning.copies)
        output_position = None
        if isinstance(run.sink, FileSink) and not isinstance(run.store, MemoryStore):
            identity = beginning.identity
            held = run.sink.adopt(identity.system_identifier, identity.slot, self._options.format_name)
            for oid, count in held.copies.items():
                run.copies[oid] = max(run.copies.get(oid, 0), count)
            # Shared with the sidecar, which is written with each sync.
            held.copies = run.copies
            output_position = held.position or None
        # The memory store costs nothing, so nothing is saved up for it.
        eager = {} if self._persistent else {"store_interval": 0.0, "idle_bytes": 0}
        return Core(beginning.tables, beginning.position, output_position, **eager)  # type: ignore[arg-type]

    def _stream(self, walsender: Walsender) -> None:
        """Read the stream over one connection, to its end or that of the run."""
        only = self._options.snapshot == "only"
        if only:
            walsender.close()
        else:
            self._start_receiving(walsender)
        self._run.delay = FIRST_RETRY
        slice_ = _SLICE
        while True:
            if only and not self._core.copying:
                raise End("snapshot")
            self._applier.end_between()
            self._read(slice_)
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
        if self._options.until is not None:
            self._receiver.ask_for_keepalives()

    def _start_replication(self, walsender: Walsender) -> None:
        """Start, waiting for a while for another walsender on the slot to end, which may be one of ours that died."""
        position = self._core.resume_position()
        give_up = time.monotonic() + _HOLDER_PATIENCE
        while True:
            try:
                walsender.start_replication(
                    self._identity.slot,
                    position,
                    self._options.publications,
                    protocol=self._options.protocol,
                    streaming=self._streaming,
                )
                self._applier.connected(streaming=self._streaming)
                return
            except OperationError as error:
                if error.sqlstate != "55006" or time.monotonic() >= give_up:
                    raise
            self._run.pause(_STEP)

    def _receive(self, patience: float) -> list[bytes] | None:
        if self._receiver is None:
            self._run.pause(min(patience, _STEP / 10))
            return None
        if self._run.spool.full:
            if self._applier.in_progress:
                # The end of a transaction, which would make room, is behind what there is no room for.
                raise StreamingOff("the spool is full, and transactions that are going on are in it")
            # Only the end of a copy makes room; the server waits meanwhile, and is told that we are alive.
            self._receiver.check()
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
            self._receiver.confirm(position)

    def _check_stream(self) -> bool:
        """Say whether there is a stream. Raises ConnectError when it is lost."""
        if self._receiver is not None:
            self._receiver.check()
        return self._receiver is not None

    def _without_streaming(self, reason: str) -> Walsender:
        """Begin the stream again from the position, with transactions that come when they are whole."""
        self._observer.warning(f"{reason}; reading it again with streaming off")
        self._streaming = False
        self._applier.broken_off()
        old, self._receiver = self._receiver, None
        assert old is not None
        if self._persistent:
            old.close()
            return self._connections.walsender(self._identity.slot)
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
        self._observer.warning(f"{one_line(error)}; connecting again")
        while True:
            self._pause_writing(self._run.next_delay())
            try:
                self._connections.open_admin()
                self._check_same(preflight.check_server(self._connections.admin, slots=0))
                walsender = self._connections.walsender(self._identity.slot)
            except (ConnectError, psycopg.OperationalError) as again:
                if not is_lost(again):
                    raise
                continue
            self._streaming = self._options.streaming
            self._observer.notice(f"connected again, going on from {self._core.resume_position()}")
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
            if self._inbox.is_empty:
                time.sleep(_STEP / 4)

    def _check_same(self, facts: Server) -> None:
        """Make sure that what answers now is the server, and the slot, that the connection was lost to."""
        if facts.system_identifier != self._identity.system_identifier:
            raise PositionError(
                f"the server is {facts.system_identifier} now, it was {self._identity.system_identifier}",
                hint="another server answers at this address",
            )
        admin = self._connections.admin
        slot = next((slot for slot in slots.all_of(admin) if slot.name == self._identity.slot), None)
        if slot is None or slot.lost or slot.confirmed_flush_lsn is None:
            raise PositionError(
                f"the slot {self._identity.slot} {'is gone' if slot is None else 'is lost'},"
                f" and changes from {self._core.done} on with it",
                hint="reset the state of all tables ('pgrepl state reset --all') and take a new snapshot",
            )
        if slot.confirmed_flush_lsn > self._core.done:
            raise PositionError(
                f"the slot {slot.name} is at {slot.confirmed_flush_lsn}, beyond {self._core.done}:"
                " somebody else has read it",
                hint="changes in between are gone; take a new snapshot",
            )
