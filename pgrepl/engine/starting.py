"""The start of a session: where the stream begins, with the slot and the snapshot if they have to be made."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pgrepl.catalog import server, slots
from pgrepl.catalog.publications import PublishedTable
from pgrepl.catalog.server import Server
from pgrepl.engine import resume
from pgrepl.engine.connections import Connections
from pgrepl.engine.copying import Copier, Prepared
from pgrepl.engine.core import Phase, TableState
from pgrepl.engine.patience import in_store
from pgrepl.engine.run import Run, StartAgain
from pgrepl.engine.snapshot import SnapshotUnusable
from pgrepl.errors import OperationError
from pgrepl.events import Table
from pgrepl.lsn import Lsn
from pgrepl.replication.walsender import CreatedSlot, Walsender
from pgrepl.stores import Identity, StoredState, StoredTable
from pgrepl.stores.memory import MemoryStore


@dataclass
class Beginning:
    """Where a session begins.

    ``walsender`` is the connection that is to stream; ``tables`` are the states that the core starts with, ``due`` what
    is going to be copied. ``prepared`` is the snapshot of a fresh start, ``known`` its versions of the tables, ``told``
    those that an earlier run has told the output of. Tables in ``removed`` have left the publication, of which the
    catalog was read at that LSN.
    """

    identity: Identity
    walsender: Walsender
    position: Lsn
    tables: dict[int, TableState]
    due: Sequence[PublishedTable]
    prepared: Prepared | None = None
    known: Mapping[int, Table] = field(default_factory=dict)
    copies: Mapping[int, int] = field(default_factory=dict)
    told: Mapping[int, Table] = field(default_factory=dict)
    removed: dict[int, Lsn] = field(default_factory=dict)


def temporary_slot_name() -> str:
    """Make a name that nobody else has."""
    return f"pgrepl_tmp_{os.getpid()}_{secrets.token_hex(4)}"


class Start:
    """Find or make the slot, and say from where it is read; docs/engine.md gives the reasons for the order."""

    def __init__(self, run: Run, connections: Connections, copier: Copier) -> None:
        self._run = run
        self._options = run.options
        self._observer = run.observer
        self._connections = connections
        self._copier = copier
        self._persistent = run.options.slot is not None

    def begin(self, facts: Server, tables: list[PublishedTable]) -> Beginning:
        """Begin with what the publications have. Raises OperationError, PositionError and StartAgain."""
        name = self._options.slot or temporary_slot_name()
        identity = Identity(
            facts.system_identifier or "", facts.timeline or 0, name, ",".join(self._options.publications)
        )
        state = self._run.store.load() if self._persistent else StoredState()
        how = self._resume(state, facts, identity)
        if how.how == "fresh":
            if self._persistent and isinstance(self._run.store, MemoryStore):
                raise OperationError(
                    f"slot {name} does not exist",
                    hint=f"'pgrepl slots create {name} --publication …' makes it; without --slot none is needed",
                )
            return self._fresh(identity, tables)
        assert how.position is not None
        position = how.position
        if how.how == "take_over":
            self._observer.notice(f"slot {name} is there and no position is stored: going on from {position}")
            in_store(self._run, lambda: self._run.store.begin(identity, position, ()))
        return self._resumed(identity, position, state, tables)

    def _resume(self, state: StoredState, facts: Server, identity: Identity) -> resume.Resume:
        if not self._persistent:
            return resume.Resume("fresh", None)
        admin = self._connections.admin
        slot = next((slot for slot in slots.all_of(admin) if slot.name == identity.slot), None)
        found = None
        if slot is not None:
            if slot.database != facts.database:
                raise OperationError(
                    f"the slot {slot.name} belongs to database {slot.database}", hint="connect to that database"
                )
            found = resume.SlotFacts(slot.confirmed_flush_lsn, slot.lost, slot.verdict.text if slot.lost else None)
        wal_end, _ = server.wal_ends(admin)
        return resume.decide(state, found, identity, wal_end, accept_slot_position=self._options.accept_slot_position)

    def _fresh(self, identity: Identity, tables: list[PublishedTable]) -> Beginning:
        """Make the slot and take the snapshot that it exports."""
        copy = self._options.snapshot != "never"
        if copy and self._run.slot_name is None and not self._observer.may_copy(tables):
            raise OperationError("nothing was copied, as you said", hint="--snapshot never prints changes only")
        name = identity.slot
        walsender = self._connections.walsender(name)
        slot = walsender.create_slot(
            name, temporary=not self._persistent, waiting=self._connections.building(walsender)
        )
        self._run.slot_name = name
        try:
            prepared = self._prepare(slot, tables) if copy else None
        except BaseException as error:
            if self._persistent:
                # Nothing is stored of it yet, and nobody else can know it.
                walsender.drop_slot(name)
            if isinstance(error, SnapshotUnusable):
                raise StartAgain(str(error)) from None
            raise
        published = prepared.tables if prepared else tables
        oids = [table.oid for table in published]
        store = self._run.store
        in_store(self._run, lambda: store.begin(identity, slot.consistent_point, oids if copy else ()))
        if not copy:
            in_store(self._run, lambda: store.ready(oids, slot.consistent_point))
        phase = Phase.DATA_SYNC if copy else Phase.READY
        return Beginning(
            identity,
            walsender,
            slot.consistent_point,
            {table.oid: TableState(phase) for table in published},
            published if copy else (),
            prepared,
            {oid: described.table for oid, described in prepared.known.items()} if prepared else {},
        )

    def _prepare(self, slot: CreatedSlot, before: list[PublishedTable]) -> Prepared:
        if slot.snapshot_name is None:
            raise SnapshotUnusable("the server exported no snapshot with the slot")
        return self._copier.prepare(slot.snapshot_name, slot.consistent_point, None, before)

    def _resumed(
        self, identity: Identity, position: Lsn, state: StoredState, tables: list[PublishedTable]
    ) -> Beginning:
        """Go on from a stored position; what was being copied is copied again."""
        self._run.slot_name = identity.slot
        states = {oid: _state(table) for oid, table in state.tables.items()}
        phase = Phase.READY if self._options.snapshot == "never" else Phase.INIT
        for table in tables:
            states.setdefault(table.oid, TableState(phase))
        published = {table.oid for table in tables}
        read_at, _ = server.wal_ends(self._connections.admin)
        due = [table for table in tables if states[table.oid].phase is Phase.INIT]
        if due and not self._observer.may_copy(due):
            raise OperationError("nothing was copied, as you said", hint="--snapshot never prints changes only")
        return Beginning(
            identity,
            self._connections.walsender(identity.slot),
            position,
            states,
            due,
            copies=state.copies,
            told=state.told,
            removed={oid: read_at for oid in states if oid not in published},
        )


def _state(stored: StoredTable) -> TableState:
    match stored.phase:
        case "ready":
            return TableState(Phase.READY)
        case "sync_done":
            return TableState(Phase.SYNC_DONE, stored.lsn)
        case "errored":
            return TableState(Phase.ERRORED)
        case _:
            return TableState(Phase.INIT)
