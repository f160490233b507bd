"""The start of a session: where the stream begins, with the slot and the snapshot if they have to be made."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from pgrepl.catalog import server
from pgrepl.catalog.publications import PublishedTable
from pgrepl.catalog.server import Server
from pgrepl.catalog.since import changed_since, next_xid
from pgrepl.catalog.slots import Slot
from pgrepl.catalog.tables import describe
from pgrepl.engine import preflight, relations, resume
from pgrepl.engine.connections import Connections
from pgrepl.engine.copying import Copier, Prepared
from pgrepl.engine.core import Phase, TableState
from pgrepl.engine.patience import in_store
from pgrepl.engine.run import Run, StartAgain
from pgrepl.engine.selection import STATE_SCHEMA
from pgrepl.engine.snapshot import SnapshotUnusable
from pgrepl.errors import InputError, OperationError
from pgrepl.events import Table
from pgrepl.lsn import Lsn
from pgrepl.replication.walsender import CreatedSlot, Walsender
from pgrepl.sinks.file import FileSink
from pgrepl.stores import Identity, StoredState, StoredTable
from pgrepl.stores.memory import MemoryStore


@dataclass
class Beginning:
    """Where a session begins.

    ``walsender`` is the connection that is to stream; ``tables`` are the states that the core starts with, ``due`` what
    is going to be copied. ``prepared`` is the snapshot of a fresh start, ``known`` its versions of the tables, ``told``
    those that an earlier run has told the output of, ``not_stored`` what only the output knows of that. Tables in
    ``removed`` have left the publication, of which the catalog was read at that LSN; those in ``left_out`` have a state
    and are published, but not wanted. ``to_store`` is a position to be stored before the stream begins, which confirms
    it.
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
    not_stored: Mapping[int, Table] = field(default_factory=dict)
    removed: dict[int, Lsn] = field(default_factory=dict)
    left_out: frozenset[int] = frozenset()
    to_store: Lsn | None = None


def temporary_slot_name() -> str:
    """Make a name that nobody else has."""
    return f"pgrepl_tmp_{os.getpid()}_{secrets.token_hex(4)}"


_ATTEMPTS = 4


class Start:
    """Find or make the slot, and say from where it is read; docs/engine.md gives the reasons for the order."""

    def __init__(self, run: Run, connections: Connections, copier: Copier) -> None:
        self._run = run
        self._options = run.options
        self._observer = run.observer
        self._connections = connections
        self._copier = copier
        self._persistent = run.options.slot is not None
        # Nobody is asked twice.
        self._first = run.slot_name is None

    def begin(self, facts: Server, tables: list[PublishedTable]) -> Beginning:
        """Begin with what the publications have.

        Raises InputError, OperationError, PositionError and StartAgain; nothing is made or stored before it is known
        that state, slot and server fit together.
        """
        name = self._options.slot or temporary_slot_name()
        again = self._again(tables)
        walsender = self._connections.walsender(name)
        identity = Identity(*walsender.identify(), name, ",".join(self._options.publications))
        if not self._persistent:
            return self._fresh(walsender, identity, tables)
        slot = self._connections.free_slot(name, facts.database)
        state = self._run.store.load()
        how = self._resume(walsender, identity, slot, state)
        in_memory = isinstance(self._run.store, MemoryStore)
        if how.how == "fresh":
            if self._options.from_lsn is not None or (in_memory and not self._options.keep_slot):
                raise OperationError(
                    f"slot {name} does not exist",
                    hint=f"'pgrepl slots create {name} --publication …' makes it, and so does --keep-slot"
                    if in_memory
                    else "without --from-lsn it is made, and every table copied",
                )
            return self._fresh(walsender, identity, tables)
        if self._options.keep_slot and self._run.slot_name != name:
            raise OperationError(
                f"slot {name} is there already", hint="without --keep-slot it is read from where it stands"
            )
        assert how.position is not None
        if how.notice is not None:
            self._observer.notice(how.notice)
        return self._resumed(walsender, identity, how.position, state, tables, again)

    def _again(self, tables: list[PublishedTable]) -> set[int]:
        """Find the tables that are to be copied again. Raises InputError for one that the run does not read."""
        wanted = self._options.resnapshot
        if wanted == "all":
            return {table.oid for table in tables}
        missing = wanted - {(table.schema, table.name) for table in tables}
        if missing:
            named = ", ".join(sorted(".".join(name) for name in missing))
            there = ", ".join(table.qualified for table in tables[:5]) + (", …" if len(tables) > 5 else "")
            raise InputError(f"--resnapshot names {named}, which this run does not read", hint=f"it reads {there}")
        return {table.oid for table in tables if (table.schema, table.name) in wanted}

    def _resume(self, walsender: Walsender, identity: Identity, slot: Slot | None, state: StoredState) -> resume.Resume:
        moved = state.identity is not None and state.identity.timeline != identity.timeline
        history = walsender.timeline_history(identity.timeline) if moved else {}
        found = None
        if slot is not None:
            found = resume.SlotFacts(slot.confirmed_flush_lsn, slot.verdict.text if slot.lost else None)
        sink, output = self._run.sink, None
        if isinstance(sink, FileSink):
            output = sink.check(identity.system_identifier, identity.slot, self._options.format_name)
        return resume.decide(
            state,
            found,
            resume.Here(identity, self._connections.wal_end(), history),
            accept_slot_position=self._options.accept_slot_position,
            from_lsn=self._options.from_lsn,
            output=output,
        )

    def _fresh(self, walsender: Walsender, identity: Identity, tables: list[PublishedTable]) -> Beginning:
        """Make the slot and take the snapshot that it exports."""
        copy = self._options.snapshot != "never"
        if copy and self._first and not self._observer.may_copy(tables):
            raise OperationError("nothing was copied, as you said", hint="--snapshot never prints changes only")
        name = identity.slot
        since = next_xid(self._connections.admin)
        slot = walsender.create_slot(
            name, temporary=not self._persistent, waiting=self._connections.building(walsender)
        )
        self._run.slot_name = name
        try:
            self._check_unchanged(since, tables)
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
            for described in relations.published(self._connections.admin, published).values():
                in_store(self._run, partial(store.schema, described.definition))
            in_store(self._run, lambda: store.ready(oids, slot.consistent_point))
        phase = Phase.DATA_SYNC if copy else Phase.READY
        if self._options.keep_slot:
            self._observer.notice(f"slot {name} is made and kept; --slot {name} reads on with it")
        return Beginning(
            identity,
            walsender,
            slot.consistent_point,
            {table.oid: TableState(phase) for table in published},
            published if copy else (),
            prepared,
            {oid: described.table for oid, described in prepared.known.items()} if prepared else {},
        )

    def _check_unchanged(self, since: str, tables: list[PublishedTable]) -> None:
        """Make sure that no table was changed while the slot was being built. Raises SnapshotUnusable.

        PostgreSQL 16 to 18 may decode a transaction that was open when the slot became consistent with the catalog as
        it was before such a change: without a new column, or not at all. docs/engine.md says when. Where tables are
        truncated all the time no slot is built without it, and the server says so when it cannot decode something.
        """
        publications = self._options.publications
        found = changed_since(self._connections.admin, since, publications, [table.oid for table in tables])
        if not found:
            return
        changed = ", ".join(dict.fromkeys(change.what for change in found))
        self._run.built_beside += 1
        if self._run.built_beside < _ATTEMPTS or any(change.definition for change in found):
            raise SnapshotUnusable(f"{changed} changed while the slot was being built")
        self._observer.warning(
            f"{changed} changed while the slot was being built, as with {_ATTEMPTS - 1} slots before; going on",
            hint="if the server cannot decode what was written just then, the run ends; begin when they are left alone",
        )

    def _prepare(self, slot: CreatedSlot, before: list[PublishedTable]) -> Prepared:
        if slot.snapshot_name is None:
            raise SnapshotUnusable("the server exported no snapshot with the slot")
        return self._copier.prepare(slot.snapshot_name, slot.consistent_point, None, before)

    def _resumed(
        self,
        walsender: Walsender,
        identity: Identity,
        position: Lsn,
        state: StoredState,
        tables: list[PublishedTable],
        again: set[int],
    ) -> Beginning:
        """Go on from a position; what was being copied is copied again, and what is to be."""
        self._run.slot_name = identity.slot
        published = preflight.published_oids(self._connections.admin, self._options.publications)
        wanted = {table.oid for table in tables}
        left_out = (state.tables.keys() & published) - wanted
        self._refuse_to_pass_over({oid: state.tables[oid] for oid in left_out})
        self._tell_errored({oid: state.tables[oid] for oid in state.tables.keys() & wanted - again}, tables)
        states = {oid: _state(table) for oid, table in state.tables.items() if oid not in left_out}
        removed = states.keys() - published
        for oid in removed:
            if states[oid].phase is Phase.INIT:
                # There is nothing left to copy.
                states[oid] = TableState(Phase.ERRORED)
        for table in tables:
            if table.oid in again or table.oid not in states:
                states[table.oid] = TableState(Phase.INIT)
            if self._options.snapshot == "never" and states[table.oid].phase is Phase.INIT:
                # Its state stays as it is stored, so that a later run copies it.
                states[table.oid] = TableState(Phase.READY)
        # Not how far it is flushed: what tables changed before they left is before this position.
        _, read_at = server.wal_ends(self._connections.admin)
        due = [table for table in tables if states[table.oid].phase is Phase.INIT]
        if due and self._first and not self._observer.may_copy(due):
            raise OperationError("nothing was copied, as you said", hint="--snapshot never prints changes only")
        moved = state.identity is not None and state.identity.timeline != identity.timeline
        behind = state.position is None or state.position < position
        return Beginning(
            identity,
            walsender,
            position,
            states,
            due,
            copies=state.copies,
            told=state.told,
            removed=dict.fromkeys(removed, read_at),
            left_out=frozenset(left_out),
            to_store=max(position, state.position or position) if moved or behind else None,
        )

    def _refuse_to_pass_over(self, left_out: Mapping[int, StoredTable]) -> None:
        """Raise InputError when the changes of a table would be lost that the state says to be up to date."""
        current = [oid for oid, table in left_out.items() if table.phase in ("ready", "sync_done")]
        if not current:
            return
        found = describe(self._connections.admin, current).values()
        lost = ", ".join(f"{table.schema}.{table.name}" for table in found if table.schema != STATE_SCHEMA)
        if lost:
            raise InputError(
                f"the changes of {lost} would be passed over, which the state says to be up to date",
                hint="read all tables as before, or 'pgrepl state reset' them first: they are copied again later",
            )

    def _tell_errored(self, stored: Mapping[int, StoredTable], tables: Sequence[PublishedTable]) -> None:
        for table in tables:
            state = stored.get(table.oid)
            if state is None or state.phase != "errored":
                continue
            hint = f"'pgrepl state reset {table.qualified}' makes it be copied again"
            if state.retry_at is not None:
                hint = f"it is tried again at {state.retry_at:%Y-%m-%d %H:%M:%S %Z}"
            self._observer.warning(f"{table.qualified} is errored and not read: {state.reason}", hint=hint)


def _state(stored: StoredTable) -> TableState:
    match stored.phase:
        case "ready":
            return TableState(Phase.READY)
        case "sync_done":
            return TableState(Phase.SYNC_DONE, stored.lsn)
        case "errored":
            return TableState(Phase.ERRORED, retry_at=stored.retry_at.timestamp() if stored.retry_at else None)
        case _:
            return TableState(Phase.INIT)
