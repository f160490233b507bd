"""States that need a standby or several roles, each brought about on real servers."""

from __future__ import annotations

import json
import threading

import pytest

from pgrepl.catalog import slots
from pgrepl.catalog.slots import Slot
from pgrepl.replication.slots import drop_slot
from tests.command import eventually, pgrepl
from tests.conftest import NewServer, NewStandby
from tests.servers.database import Database, fresh_database
from tests.slots.conftest import keep_state, look, make, reader, seen


def test_a_failover_slot_and_its_copy(new_server: NewServer, standby: NewStandby, name: str) -> None:
    primary = Database(new_server(18), "postgres")
    primary.psql("SELECT pg_create_physical_replication_slot('standby')")
    make(primary, name)
    with primary.connect() as conn:
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput', failover => true)", [f"{name}_f"])
    copy = Database(
        standby(
            primary.server,
            sync_replication_slots="on",
            hot_standby_feedback="on",
            primary_slot_name="standby",
        ),
        "postgres",
    )
    eventually(lambda: look(copy, f"{name}_f") is not None)
    first = seen(copy, f"{name}_f")
    assert first.synced
    if first.temporary:
        assert first.verdict == ("warn", "copied from the primary, not ready for a failover yet")

    def copied_for_good() -> bool:
        # The copy is kept when the original has come to where the standby's own WAL begins.
        primary.psql(
            "SELECT pg_log_standby_snapshot();"
            f"SELECT pg_replication_slot_advance('{name}_f', pg_current_wal_flush_lsn())"
        )
        return not seen(copy, f"{name}_f").temporary

    eventually(copied_for_good, 60)
    original, synced = seen(primary, f"{name}_f"), seen(copy, f"{name}_f")
    assert (original.failover, original.synced, original.on_standby) == (True, False, False)
    assert seen(primary, name).failover is False
    assert (synced.failover, synced.synced, synced.on_standby) == (True, True, True)
    assert synced.verdict == ("ok", "copied from the primary, ready for a failover")
    assert synced.retained_bytes is not None
    assert look(copy, name) is None
    table = pgrepl("slots", "list", "-d", copy.dsn()).stdout
    assert "ready for a failover" in table
    (line,) = [line for line in pgrepl("slots", "list", "-d", primary.dsn()).stdout.splitlines() if f"{name}_f" in line]
    assert "  yes  " in line
    # After the failover it is a slot like others.
    copy.psql("SELECT pg_promote()")
    promoted = seen(copy, f"{name}_f")
    assert (promoted.synced, promoted.on_standby) == (True, False)
    assert promoted.verdict.text.startswith("inactive")


def test_a_slot_that_is_built_on_a_standby_waits_for_the_primary(
    new_server: NewServer, standby: NewStandby, name: str
) -> None:
    primary = Database(new_server(18), "postgres")
    copy = Database(standby(primary.server, hot_standby_feedback="on"), "postgres")

    def create() -> None:
        with copy.connect() as conn:
            conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [name])

    creating = threading.Thread(target=create)
    creating.start()
    eventually(lambda: (slot := look(copy, name)) is not None and slot.active)
    slot = seen(copy, name)
    if slot.unfinished:
        assert "pg_log_standby_snapshot() on the primary" in slot.verdict.text

    def log_until_it_is_built() -> bool:
        primary.psql("SELECT pg_log_standby_snapshot()")
        return not creating.is_alive()

    eventually(log_until_it_is_built)
    assert slot.unfinished
    assert seen(copy, name).verdict.text.startswith("inactive")


def _known(slot: Slot) -> dict[str, object]:
    """What is said of a slot, without what differs from one moment to the next."""
    document = slot.document()
    return {key: document[key] for key in ("name", "active", "wal_status", "invalidation_reason", "failover")}


@pytest.mark.parametrize("version", [16, 18])
def test_every_role_sees_the_same_or_less_and_never_the_opposite(
    new_server: NewServer, name: str, version: int
) -> None:
    database = Database(
        new_server(version, max_slot_wal_keep_size="2MB", max_wal_size="1GB", max_replication_slots="20"), "postgres"
    )
    database.psql(
        "CREATE ROLE monitor LOGIN IN ROLE pg_monitor; CREATE ROLE replicator LOGIN REPLICATION;"
        "CREATE ROLE onlooker LOGIN; CREATE TABLE filler (a text)"
    )
    make(database, f"{name}_lost")
    with database.connect() as conn:
        for _ in range(5):
            conn.execute("SELECT pg_logical_emit_message(false, 'filler', repeat('x', 1000))")
            conn.execute("SELECT pg_switch_wal()")
        conn.execute("CHECKPOINT")
        conn.execute("SELECT pg_create_physical_replication_slot(%s, true)", [f"{name}_physical"])
    for kind in ("idle", "used"):
        make(database, f"{name}_{kind}")
    make(database, "supabase_etl_apply_7")
    keep_state(database)

    def create() -> None:
        with database.connect() as conn:
            conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [f"{name}_building"])

    with (
        fresh_database(database.server) as other,
        database.connect() as holder,
        database.connect() as blocker,
        reader(database, f"{name}_used"),
    ):
        make(other, f"{name}_other")
        holder.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput', true)", [f"{name}_temporary"])
        eventually(lambda: seen(database, f"{name}_used").verdict.text.startswith("streaming"))
        pid = blocker.info.backend_pid
        blocker.execute("BEGIN")
        blocker.execute("SELECT pg_current_xact_id()")
        creating = threading.Thread(target=create)
        creating.start()
        eventually(lambda: (slot := look(database, f"{name}_building")) is not None and bool(slot.blockers))
        found = {}
        listed = {}
        for user in ("postgres", "monitor", "replicator", "onlooker"):
            with database.connect(user) as conn:
                found[user] = {slot.name: slot for slot in slots.all_of(conn)}
            done = pgrepl("slots", "list", "--all", "--json", "-d", database.dsn(user))
            assert (done.returncode, done.stderr) == (0, "")
            listed[user] = {slot["name"]: slot["verdict"] for slot in json.loads(done.stdout)}
            assert pgrepl("slots", "lag", "--json", "-d", database.dsn(user)).returncode == 1
        blocker.execute("ROLLBACK")
        creating.join()
    first = found["postgres"]
    texts = {slot.removeprefix(f"{name}_"): verdict["text"] for slot, verdict in listed["postgres"].items()}
    assert texts["lost"].startswith("lost: the server removed WAL")
    assert "orphaned" in texts["supabase_etl_apply_7"]
    assert texts["used"].startswith("streaming")
    assert texts["temporary"].startswith("temporary, goes with its session; in use")
    assert texts["building"].startswith("being created by pid")
    assert first[f"{name}_other"].database == other.name
    assert first[f"{name}_physical"].physical
    for user in ("monitor", "replicator", "onlooker"):
        for slot in first.values():
            assert _known(found[user][slot.name]) == _known(slot)
            same, seen_by = listed["postgres"][slot.name], listed[user][slot.name]
            if slot.name != "supabase_etl_apply_7":
                assert seen_by["level"] == same["level"], (user, slot.name)
            # What a walsender does, and whose pipeline it is, is not for everybody: then nothing is said of it.
            assert ("streaming" in seen_by["text"]) <= ("streaming" in same["text"])
            assert ("orphaned" in seen_by["text"]) <= ("orphaned" in same["text"])
        assert str(pid) in listed[user][f"{name}_building"]["text"]
    with database.connect() as conn:
        drop_slot(conn, f"{name}_physical")
