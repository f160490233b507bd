"""The replication connection."""

from __future__ import annotations

import pytest

from pgrepl import conninfo
from pgrepl.errors import OperationError
from pgrepl.lsn import Lsn
from pgrepl.replication.walsender import Walsender
from tests.command import eventually
from tests.servers.database import Database


def test_a_command_that_failed_can_be_sent_again(database: Database) -> None:
    """A slot that another one reads: once that one is gone, the same connection gets it."""
    database.psql("CREATE TABLE t (id int); CREATE PUBLICATION pub FOR TABLE t")
    target = conninfo.parse(database.dsn(), "the test")
    name = f"{database.name}_slot"
    holder, other = Walsender.open(target, "the test"), Walsender.open(target, "the test")
    try:
        holder.create_slot(name, temporary=False)
        holder.start_replication(name, Lsn(0), ["pub"])
        for _ in range(2):
            with pytest.raises(OperationError) as refused:
                other.start_replication(name, Lsn(0), ["pub"])
            assert refused.value.sqlstate == "55006"
        holder.close()

        def started() -> bool:
            try:
                other.start_replication(name, Lsn(0), ["pub"])
            except OperationError:
                return False
            return True

        eventually(started)
    finally:
        holder.close()
        other.close()
