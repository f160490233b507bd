"""One slot and what is read from it, over as many connections as it takes.

The order in which things are done is what the promises rest on; docs/engine.md gives the reasons.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace

import psycopg

from pgrepl.connection import is_lost, one_line
from pgrepl.engine import preflight, resume
from pgrepl.engine.applying import Applier
from pgrepl.engine.connections import Connections, held
from pgrepl.engine.copying import Copier, Inbox
from pgrepl.engine.core import Core, Phase
from pgrepl.engine.patience import in_store
from pgrepl.engine.run import FIRST_RETRY, End, Run, StartAgain
from pgrepl.engine.starting import Beginning, Start
from pgrepl.errors import ConnectError, OperationError, PositionError
from pgrepl.lsn import Lsn
from pgrepl.replication.receiver import Receiver
from pgrepl.replication.verdicts import Passing
from pgrepl.replication.walsender import Walsender
from pgrepl.sinks.file import FileSink
from pgrepl.stores.memory import MemoryStore

_STEP = 0.2
_HOLDER_PATIENCE = 5.0
# How long after wal_sender_timeout the server may take to end the walsender of a lost connection.
_OLD_WALSENDER = 10.0
_PROMOTION_PATIENCE = 300.0
# How often an error that should pass is seen at one position before it is taken seriously.
_ATTEMPTS = 3


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
        # How often, at which position, an error came that should have passed by itself.
        self._failed = (0, Lsn(0))

    def run(self) -> None:
        """Prepare and stream. Ends with End, StartAgain, or an error."""
        self._connections = Connections(self._run, self._resources)
        try:
            self._begin_and_stream(self._connections)
        except PositionError as error:
            if error.hint is None:
                error.hint = resume.anew(self._options.slot or "", there=True, kept=self._keeps_state)
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
        self._run.check_end()
        inbox = Inbox(self._nudge)
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
                except (ConnectError, psycopg.OperationalError, Passing) as error:
                    if not isinstance(error, Passing) and not is_lost(error):
                        raise
                    walsender = self._after_loss(error)
        except End:
            self._applier.close()
            raise

    def _make_core(self, beginning: Beginning) -> Core:
        run = self._run
        run.copies.update(beginning.copies)
        output_position = None
        if isinstance(run.sink, FileSink) and self._keeps_state:
            identity = beginning.identity
            held = run.sink.adopt(identity.system_identifier, identity.slot, self._options.format_name)
            for oid, count in held.copies.items():
                run.copies[oid] = max(run.copies.get(oid, 0), count)
            # Shared with the sidecar, which is written with each sync.
            held.copies = run.copies
            begun = any(state.phase is not Phase.INIT for state in beginning.tables.values())
            if held.position == 0 and beginning.prepared is None and begun:
                self._observer.notice(
                    "the output begins in the middle: what was printed before is elsewhere; --resnapshot all copies"
                    " every table into this one"
                )
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
        while True:
            if only and not self._core.copying:
                raise End("snapshot")
            self._applier.end_between()
            payloads = self._receive()
            self._connections.say_notices()
            self._applier.copied()
            if payloads is not None:
                self._run.delay = FIRST_RETRY
                self._applier.payloads(payloads)
            self._applier.settle()

    def _start_receiving(self, walsender: Walsender) -> None:
        guard = self._connections.open()
        self._start_replication(walsender)
        self._receiver = Receiver(
            walsender,
            self._core.resume_position(),
            wal_sender_timeout=self._connections.wal_sender_timeout,
            guard=guard.pgconn,
        )
        self._resources.callback(self._receiver.close)
        self._receiver.start()
        if self._options.until is not None:
            self._receiver.ask_for_keepalives()

    def _start_replication(self, walsender: Walsender) -> None:
        """Start, waiting for a while for another walsender on the slot to end, which may be one of ours that died."""
        position = self._core.resume_position()
        patience = self._connections.wal_sender_timeout + _OLD_WALSENDER if self._reconnected else _HOLDER_PATIENCE
        give_up = time.monotonic() + patience
        told = False
        while True:
            try:
                walsender.start_replication(self._identity.slot, position, self._options.publications)
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
        self._check_not_moved()

    def _check_not_moved(self) -> None:
        """Make sure that nobody has moved the slot before it was ours: the server would begin there without a word."""
        slot = self._connections.slot(self._identity.slot)
        if self._persistent and slot is not None and slot.confirmed_flush_lsn is not None:
            self._check_position(slot.confirmed_flush_lsn)

    def _check_position(self, confirmed: Lsn) -> None:
        if confirmed > self._core.done:
            raise PositionError(
                f"the slot {self._identity.slot} is at {confirmed}, beyond {self._core.done}:"
                " somebody else has read it, or made it anew"
            )

    def _receive(self) -> list[bytes] | None:
        if self._receiver is None:
            self._run.pause(_STEP / 10)
            return None
        if self._run.spool.full:
            # Only the end of a copy makes room; the server waits meanwhile, and is told that we are alive.
            self._receiver.check()
            time.sleep(_STEP / 4)
            return None
        payloads = self._receiver.batch(self._patience())
        self._run.progress.received = self._receiver.received
        return payloads

    def _patience(self) -> float:
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

    # A lost connection.

    def _after_loss(self, error: Exception) -> Walsender:
        """Deal with a lost connection: find another, or end where the slot is lost with it."""
        self._applier.broken_off()
        self._receiver = None
        if not self._persistent:
            if self._core.copying:
                raise StartAgain(one_line(error))
            # What has been read is printed, also the beginning of a transaction that did not arrive whole.
            output = self._run.output
            output.close()
            raise PositionError(
                f"{one_line(error)}; the temporary slot is gone with it,"
                f" and changes from {output.printed} on cannot be read any more",
                hint="start again: a new snapshot is taken, and changes in between are not seen;"
                " --store postgres keeps the position",
                sqlstate=getattr(error, "sqlstate", None),
            ) from None
        if isinstance(error, Passing):
            self._count_failure(error)
        self._observer.warning(f"{one_line(error)}; connecting again", hint=getattr(error, "hint", None))
        self._reconnected = True
        standby_since: float | None = None
        said = ""
        while True:
            self._pause_writing(self._run.next_delay())
            try:
                return self._connect_again()
            except (OperationError, ConnectError, psycopg.OperationalError) as again:
                state = getattr(again, "sqlstate", None)
                # What was the primary's address a moment ago may be that of a standby which is to be promoted.
                standby_since = (standby_since or time.monotonic()) if state == "25006" else None
                promoted_soon = standby_since is not None and time.monotonic() < standby_since + _PROMOTION_PATIENCE
                if not (is_lost(again) or promoted_soon or state == "53300"):
                    raise
                reason = one_line(again)
                if reason != said:
                    self._observer.notice(f"waiting: {reason}")
                    said = reason

    def _count_failure(self, error: Passing) -> None:
        count, position = self._failed
        count = count + 1 if position == self._core.done else 1
        if count > _ATTEMPTS:
            raise error.final from None
        self._failed = (count, self._core.done)

    def _connect_again(self) -> Walsender:
        self._connections.open_admin()
        preflight.check_server(self._connections.admin, slots=0)
        walsender = self._connections.walsender(self._identity.slot)
        self._check_same(walsender)
        self._observer.notice(f"connected again, going on from {self._core.resume_position()}")
        return walsender

    def _pause_writing(self, seconds: float) -> None:
        """Wait, but let copies that are still going on be printed."""
        end = time.monotonic() + seconds
        output = self._run.output
        while time.monotonic() < end:
            self._run.check_end()
            self._applier.copied()
            output.write()
            output.tick()
            time.sleep(_STEP / 4)

    def _check_same(self, walsender: Walsender) -> None:
        """Make sure that what answers now is the server, and the slot, that the connection was lost to."""
        before = self._identity
        system_identifier, timeline = walsender.identify()
        if system_identifier != before.system_identifier:
            raise PositionError(
                f"the server is {system_identifier} now, it was {before.system_identifier}",
                hint="another server answers at this address: connect to the one of before",
            )
        now = replace(before, timeline=timeline)
        slot = self._connections.slot(now.slot)
        if slot is None or slot.lost or slot.confirmed_flush_lsn is None:
            failover = f" since the failover to timeline {timeline}" if timeline != before.timeline else ""
            state = f"gone{failover}" if slot is None else slot.verdict.text
            raise PositionError(
                f"the slot {now.slot} is {state}, and changes from {self._core.done} on are with it",
                hint=resume.anew(now.slot, there=slot is not None, kept=self._keeps_state),
            )
        self._check_position(slot.confirmed_flush_lsn)
        if timeline != before.timeline:
            resume.check_timeline(before.timeline, now, self._core.done, walsender.timeline_history(timeline))
            self._observer.warning(resume.came_along(before.timeline, now, self._core.done))
            in_store(self._run, lambda: self._run.store.begin(now, self._core.stored, ()))
            self._identity = now
        wal_end = self._connections.wal_end()
        if self._core.done > wal_end:
            raise PositionError(
                f"changes up to {self._core.done} were read, and the server's WAL ends at {wal_end}:"
                " it was restored to an earlier time"
            )
