"""The state machine by itself, where a test against a server could not tell; the rest is in the simulation."""

from __future__ import annotations

import pytest

from pgrepl.engine import resume
from pgrepl.engine.core import Copy, Core, Decision, DropSpool, MarkCopying, Phase, TableState
from pgrepl.errors import PositionError
from pgrepl.lsn import Lsn
from pgrepl.stores import Identity


def test_a_transaction_that_is_printed_in_part_belongs_to_its_timeline() -> None:
    """What the new primary wrote at the same place instead would be passed over as far as it had been printed."""
    core = Core({1: TableState(Phase.READY)}, Lsn(0x1000))
    assert core.read_until == Lsn(0x1000)
    core.begin(Lsn(0x2000))
    assert [core.decide(1, seq) for seq in range(3)] == [Decision.EMIT] * 3
    core.connection_lost()
    assert (core.done, core.read_until) == (Lsn(0x1000), Lsn(0x2001))
    here = Identity("7", 2, "slot", "pub")
    resume.check_timeline(1, here, core.read_until, {1: Lsn(0x2100)})
    with pytest.raises(PositionError, match="left timeline 1 at 0/1800"):
        resume.check_timeline(1, here, core.read_until, {1: Lsn(0x1800)})
    # Once it has come whole, its end is what counts.
    core.begin(Lsn(0x2000))
    core.commit(Lsn(0x2100))
    assert core.read_until == Lsn(0x2100)


def test_what_was_received_before_a_copy_begins_again_is_not_kept() -> None:
    """A transaction that is still coming has been committed, so the other snapshot has it as well."""
    core = Core({1: TableState(Phase.INIT)}, Lsn(0x1000))
    assert core.copies_due() == [MarkCopying((1,)), Copy((1,), 1)]
    core.begin(Lsn(0x2000))
    assert core.decide(1, 0) is Decision.SPOOL
    assert core.received == Lsn(0x2001)
    assert core.copy_waits(1, 1, Lsn(0x1000)) == [DropSpool(1, Lsn(0x1000))]
    assert core.copy_waits(1, 2, Lsn(0x1000)) == []
    assert core.copy_lost([1], 1) == [DropSpool(1, Lsn(0x2001)), MarkCopying((1,)), Copy((1,), 2)]
    assert core.copy_lost([1], 1) == []
    core.commit(Lsn(0x2100))
    assert core.received == Lsn(0x2100)
