"""The engine on a small model of the world, driven by one seed, so that a failure can be played again.

The server has a WAL with interleaved transactions over tables that are altered, truncated, created and dropped, a
publication that changes, snapshots, and a slot whose positions go back when the server crashes. The output is a file
with a sidecar, of which only what was synced is sure to survive, or a pipe. The store keeps what was committed to it.
Output and store may be away for a while. Either side crashes at any step.

Every row has a number of its own and shows the version of its table that it was written in, so that at the end it can
be told which are missing, doubled, out of order, or in another version than theirs.
"""

from __future__ import annotations

import random
from hashlib import sha256

from pgrepl.catalog.definitions import of_description
from pgrepl.engine.core import Phase
from pgrepl.lsn import Lsn
from tests.engine.simulation.client import Client, Parts, Steps, World
from tests.engine.simulation.reader import check, check_versions
from tests.engine.simulation.server import Habits, Server
from tests.engine.simulation.surroundings import Lines, Record, Sink, Store
from tests.engine.simulation.violation import Violation

__all__ = ["Parts", "Violation", "play"]

_REST = 60_000
"""Steps after which everything must have come to rest."""


def play(seed: int, parts: Parts | None = None) -> str:
    """Run one schedule of writers, crashes and failures, let all come to rest, and check what a reader has.

    Gives a digest of all that the world has become, the same for a seed every time. Raises Violation where a promise
    was broken, and what the engine raises.
    """
    schedule = _Schedule(random.Random(seed), parts or Parts())
    schedule.play()
    return schedule.digest()


class _Schedule:
    def __init__(self, dice: random.Random, parts: Parts) -> None:
        self._dice, self._parts = dice, parts
        habits = Habits(
            favourite=dice.randint(1, 5),
            favour=dice.choice((0.0, 0.7)),
            commit=dice.choice((0.2, 0.4)),
            ddl=dice.choice((0.0, 0.02, 0.1)),
            truncate=dice.choice((0.0, 0.02)),
            create=dice.choice((0.0, 0.01)),
            message=dice.choice((0.0, 0.05)),
            lazy_commit=dice.choice((0.0, 0.5)),
            trigger=dice.random() < 0.5,
        )
        self._trigger = habits.trigger
        lines = Lines()
        self._world = World(
            dice,
            Server(dice, habits),
            Store(),
            lines,
            Sink(dice, lines, pipe=dice.random() < 0.5),
            frames=dice.random() < 0.3,
            store_interval=dice.choice((0.0, 1.0, 20.0)),
            idle_bytes=dice.choice((0, 1 << 20)),
            attention=dice.choice((0.005, 0.05)),
        )
        # How likely, at a step: a crash of the server, a crash of pgrepl, a change of the publication, a failure.
        self._server_crash = dice.choice((0.0, 0.003, 0.01))
        self._crash = dice.choice((0.002, 0.01, 0.03))
        self._publish = dice.choice((0.0, 0.005, 0.05))
        self._failure = dice.choice((0.0, 0.01))
        # Tables that were ready when they left the publication at that LSN.
        self._stayed: dict[int, Lsn] = {}
        if dice.random() < 0.2:
            self._inherit()
        self._begin()

    def _inherit(self) -> None:
        """Begin with what another tool has left, some of its tables ahead of its slot."""
        server, store, sink = self._world.server, self._world.store, self._world.sink
        for _ in range(self._dice.randint(0, 60)):
            server.write()
        point = Lsn(server.end)
        server.keep_slot(point)
        for _ in range(self._dice.randint(0, 60)):
            server.write()
        server.flushed = server.end
        store.moves(point)
        inherited: list[Record] = []
        ahead = [t.commit_lsn for t in server.wal if t.commit_lsn >= point] + [point, Lsn(server.end)]
        for oid in sorted(server.published & {1, 2, 3}):
            phase = self._dice.choice([Phase.READY, Phase.SYNC_DONE, Phase.SYNC_DONE, Phase.INIT, Phase.DATA_SYNC])
            synced = self._dice.choice(ahead) if phase is Phase.SYNC_DONE else point
            store.tables[oid] = (phase, synced if phase is Phase.SYNC_DONE else None)
            if phase in (Phase.READY, Phase.SYNC_DONE):
                store.schema(of_description(server.definition_at(oid, synced).described()))
                inherited.append(Record("inherited", (oid,), place=(synced, -1)))
        sink.inherit(inherited, point)

    def _begin(self) -> None:
        """Begin a life of the process."""
        self._world.away.clear()
        self._world.server.holds.clear()
        maker = self._parts.client or Client
        self._client = maker(self._world, self._parts)
        self._life: Steps = self._client.run()

    def _end(self) -> None:
        """End it where it stands."""
        self._life.close()
        self._world.sink.crash()
        if self._trigger:
            check_versions(self._world.server, self._world.store)

    def _step(self) -> None:
        try:
            next(self._life)
        except StopIteration:
            self._end()
            self._begin()

    def play(self) -> None:
        dice, world = self._dice, self._world
        server, store, sink = world.server, world.store, world.sink
        for _ in range(dice.randint(50, dice.choice((150, 300, 1000)))):
            luck = dice.random()
            # What is changed while the slot is being made is a chapter of its own.
            publish = self._publish * (4 if server.slot is None else 1)
            if luck < 0.35:
                server.write()
            elif luck < 0.36:
                server.checkpoint()
            elif (luck := luck - 0.36) < self._server_crash:
                self._crash_server()
            elif (luck := luck - self._server_crash) < publish:
                self._change_publication()
            elif (luck := luck - publish) < self._crash:
                self._end()
                self._begin()
            elif (luck := luck - self._crash) < self._crash / 4:
                self._client.stopping = True
            elif (luck := luck - self._crash / 4) < self._failure:
                store.away = dice.random() < 0.3
                sink.away = dice.random() < 0.3
            else:
                self._step()
        server.end_writing()
        store.away = sink.away = False
        for _ in range(_REST):
            self._client.finishing = True
            self._step()
            if self._at_rest():
                break
        else:
            raise Violation("it does not come to rest")
        self._end()
        errored = {oid for oid, (phase, _) in store.tables.items() if phase is Phase.ERRORED}
        check(server, sink, self._start(), left_out=errored, stayed=self._stayed, noticed=world.noticed)

    def _crash_server(self) -> None:
        world = self._world
        world.server.crash()
        # What was at a position that no longer is, was before the end of the WAL at any rate.
        for positions in (world.away, world.noticed):
            for oid, position in positions.items():
                positions[oid] = min(position, Lsn(world.server.end))

    def _change_publication(self) -> None:
        server, store = self._world.server, self._world.store
        before, at = server.published, Lsn(server.end)
        removed = server.change_publication()
        if removed is not None and removed not in self._world.away and not self._client.copies_again(removed):
            phase, _ = store.tables.get(removed, (None, None))
            if phase is Phase.READY:
                self._stayed[removed] = at
        for oid in server.published - before:
            self._stayed.pop(oid, None)

    def _start(self) -> Lsn:
        assert self._world.store.start is not None
        return self._world.store.start

    def _at_rest(self) -> bool:
        server, store = self._world.server, self._world.store
        done = {oid for oid, (phase, _) in store.tables.items() if phase in (Phase.READY, Phase.ERRORED)}
        last = server.wal[-1].end_lsn if server.wal else Lsn(0)
        return (
            server.published == store.tables.keys() == done
            and store.position is not None
            and store.position >= last
            and self._client.is_idle
        )

    def digest(self) -> str:
        """Digest what the server, the store and the output have become."""
        world = self._world
        seen = (world.server.wal, world.server.slot, world.store, world.sink.content, world.sink.sidecar)
        return sha256(repr(seen).encode()).hexdigest()
