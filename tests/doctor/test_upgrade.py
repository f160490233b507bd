"""What pg_upgrade would do to the slots."""

from __future__ import annotations

import pytest

from pgrepl.doctor import Status
from tests.command import eventually
from tests.conftest import NewServer
from tests.doctor.fixes import ask, ask_about, commands_of, fresh_name, is_silent, make_slot, run_command, write_wal
from tests.servers.database import Database


def test_only_when_asked(database18: Database) -> None:
    assert ask("up.pg_upgrade", database18).status is Status.SKIP


def test_slots_that_have_unread_wal(new_server: NewServer) -> None:
    database = Database(new_server(18), "postgres")
    assert ask("up.pg_upgrade", database, upgrade=True).status is Status.PASS
    name = fresh_name()
    make_slot(database, name)
    database.psql("CREATE TABLE t (a int)")
    found = ask_about("up.pg_upgrade", name, database, upgrade=True)
    assert found.status is Status.WARN
    assert found.evidence["lag_bytes"] > 0

    def read_to_the_end() -> bool:
        with database.connect() as conn:
            conn.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_flush_lsn())", [name])
        return is_silent("up.pg_upgrade", name, database, upgrade=True)

    eventually(read_to_the_end)
    assert ask("up.pg_upgrade", database, upgrade=True).status is Status.PASS


@pytest.mark.parametrize("version", [16, 18])
def test_lost_slots(new_server: NewServer, version: int) -> None:
    database = Database(new_server(version, max_slot_wal_keep_size="16MB"), "postgres")
    name = fresh_name()
    make_slot(database, name)
    write_wal(database, 4)
    database.psql("CHECKPOINT")
    found = ask_about("up.pg_upgrade", name, database, upgrade=True)
    assert found.status is Status.WARN
    assert "is lost" in found.summary
    run_command(database, commands_of(found)[0])
    assert ask("up.pg_upgrade", database, upgrade=True).status is Status.PASS


def test_below_17_no_slot_is_carried_over(new_server: NewServer) -> None:
    database = Database(new_server(16), "postgres")
    name = fresh_name()
    make_slot(database, name)
    with database.connect() as conn:
        conn.execute("SELECT pg_create_logical_replication_slot('for_now', 'pgoutput', true)")
        conn.execute("SELECT pg_create_physical_replication_slot('standby', true)")
        found = ask("up.pg_upgrade", database, upgrade=True)
    assert (found.status, found.object) == (Status.WARN, name)
    assert "not carried over from PostgreSQL 16" in found.summary
    run_command(database, f"pgrepl slots drop {name}")
    assert ask("up.pg_upgrade", database, upgrade=True).status is Status.PASS
