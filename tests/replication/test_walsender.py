"""The replication connection."""

from __future__ import annotations

import pytest
from psycopg import sql

from pgrepl import conninfo
from pgrepl.errors import OperationError
from pgrepl.lsn import Lsn
from pgrepl.replication.walsender import Walsender
from tests.command import eventually
from tests.servers.database import Database
from tests.slots.conftest import look


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


class _Enough(Exception):
    """What breaks a wait off."""


def _enough(_seconds: float) -> None:
    raise _Enough


@pytest.mark.parametrize("temporary", [True, False])
def test_a_slot_whose_creation_is_broken_off(database: Database, temporary: bool) -> None:
    """Nothing is left of it when the error comes, while the transaction that it waited for still runs."""
    name = f"{database.name}_slot"
    walsender = Walsender.open(conninfo.parse(database.dsn(), "the test"), "the test")
    try:
        with database.connect() as blocker:
            blocker.execute("BEGIN")
            blocker.execute("SELECT pg_current_xact_id()")
            with pytest.raises(_Enough):
                walsender.create_slot(name, temporary=temporary, waiting=_enough)
            assert look(database, name) is None
        # The connection is as good as before.
        assert walsender.create_slot(name, temporary=temporary).snapshot_name is not None
    finally:
        walsender.close()


def test_a_slot_that_comes_into_being_while_its_creation_is_broken_off(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cancel comes too late."""
    name = f"{database.name}_slot"
    walsender = Walsender.open(conninfo.parse(database.dsn(), "the test"), "the test")
    cancel = Walsender.cancel
    try:
        with database.connect() as blocker:
            blocker.execute("BEGIN")
            blocker.execute("SELECT pg_current_xact_id()")

            def late(walsender: Walsender) -> None:
                blocker.execute("COMMIT")
                eventually(lambda: _is_there(database, name))
                cancel(walsender)

            monkeypatch.setattr(Walsender, "cancel", late)
            with pytest.raises(_Enough):
                walsender.create_slot(name, temporary=False, waiting=_enough)
            assert look(database, name) is None
    finally:
        walsender.close()


def _is_there(database: Database, name: str) -> bool:
    slot = look(database, name)
    return slot is not None and not slot.active


def test_the_slot_of_somebody_else_stays(database: Database) -> None:
    name = f"{database.name}_slot"
    with database.connect() as connection:
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [name])
    walsender = Walsender.open(conninfo.parse(database.dsn(), "the test"), "the test")
    try:
        with pytest.raises(OperationError, match="already exists"):
            walsender.create_slot(name, temporary=False, waiting=_enough)
    finally:
        walsender.close()
    assert look(database, name) is not None


def test_the_server_is_gone_when_a_creation_is_broken_off(database: Database) -> None:
    """The reason for which it was broken off is what counts."""
    walsender = Walsender.open(conninfo.parse(database.dsn(), "the test"), "the test")

    def gone(_seconds: float) -> None:
        with database.connect() as other:
            other.execute(sql.SQL("SELECT pg_terminate_backend({}, 10000)").format(walsender.pid))
        raise _Enough

    try:
        with database.connect() as blocker:
            blocker.execute("BEGIN")
            blocker.execute("SELECT pg_current_xact_id()")
            with pytest.raises(_Enough):
                walsender.create_slot(f"{database.name}_slot", temporary=False, waiting=gone)
            assert look(database, f"{database.name}_slot") is None
    finally:
        walsender.close()
