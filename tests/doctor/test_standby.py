"""Failover and standbys, on a physical standby made by pg_basebackup of a primary of 16 and of 18."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from pgrepl.doctor import Status
from tests.command import eventually
from tests.conftest import NewServer, NewStandby
from tests.doctor.conftest import examine, of, one
from tests.doctor.fixes import (
    ask,
    ask_about,
    commands_of,
    fresh_name,
    in_actions,
    is_silent,
    make_slot,
    reading,
    run_command,
    run_sql,
)
from tests.servers.database import Database

SLOT = "standby1"


@pytest.fixture
def pair(new_server: NewServer, standby: NewStandby) -> Callable[..., tuple[Database, Database]]:
    """Make a primary and its standby, which streams through a physical slot unless told otherwise."""

    def make(version: int, *, slot: bool = True, **settings: str) -> tuple[Database, Database]:
        primary = Database(new_server(version), "postgres")
        primary.psql("CREATE TABLE t (a int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")
        if slot:
            primary.psql(f"SELECT pg_create_physical_replication_slot('{SLOT}', true)")
            settings = {"primary_slot_name": SLOT, **settings}
        server = standby(primary.server, **settings)
        eventually(lambda: streams(primary))
        return primary, Database(server, "postgres")

    return make


def streams(primary: Database) -> bool:
    """Whether the standby is connected."""
    with primary.connect() as conn:
        return conn.execute("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'").fetchone() == (1,)


def catch_up(primary: Database, standby: Database) -> None:
    """Wait until the standby has replayed what the primary has written."""
    with primary.connect() as conn:
        (end,) = conn.execute("SELECT pg_current_wal_flush_lsn()::text").fetchall()[0]
    with standby.connect() as conn:
        eventually(lambda: conn.execute("SELECT pg_last_wal_replay_lsn() >= %s", [end]).fetchone() == (True,))


def test_a_slot_that_a_failover_would_lose(pair: Callable[..., tuple[Database, Database]]) -> None:
    primary, _ = pair(18)
    name = fresh_name()
    make_slot(primary, name)
    found = ask("slot.failover", primary, slot=name)
    assert (found.status, found.object) == (Status.WARN, name)
    assert found.evidence["physical_slots"] == [SLOT]
    with reading(primary, name) as walsender:
        eventually(lambda: ask("slot.holder", primary, slot=name).status is Status.INFO)
        held = ask("slot.failover", primary, slot=name)
        assert f"stop its reader for the moment (pid {walsender.pid})" in held.fix[0].text
    eventually(lambda: ask("slot.holder", primary, slot=name).status is Status.PASS)
    run_command(primary, commands_of(found)[0])
    assert ask("slot.failover", primary, slot=name).status is Status.PASS


def test_before_17_no_slot_survives_a_failover(pair: Callable[..., tuple[Database, Database]]) -> None:
    primary, _ = pair(16)
    name = fresh_name()
    make_slot(primary, name)
    found = ask("slot.failover", primary, slot=name)
    assert found.status is Status.INFO
    assert "Patroni" in found.fix[0].text
    assert ask("ha.slotsync", primary).status is Status.SKIP
    assert ask("ha.sync_slots_missing", primary).status is Status.SKIP


def test_a_standby_without_a_slot_shows_to_some_only(pair: Callable[..., tuple[Database, Database]]) -> None:
    primary, _ = pair(18, slot=False)
    name = fresh_name()
    make_slot(primary, name)
    assert ask("slot.failover", primary, slot=name).status is Status.WARN
    primary.psql("CREATE ROLE onlooker LOGIN")
    found = ask("slot.failover", primary, slot=name, user="onlooker")
    assert found.status is Status.UNKNOWN
    run_sql(primary, found)
    assert ask("slot.failover", primary, slot=name, user="onlooker").status is Status.WARN


def test_without_a_standby_there_is_nothing_to_fail_over_to(new_server: NewServer) -> None:
    database = Database(new_server(18), "postgres")
    name = fresh_name()
    make_slot(database, name)
    assert ask("slot.failover", database, slot=name).status is Status.PASS
    database.psql("CREATE ROLE onlooker LOGIN")
    assert ask("slot.failover", database, slot=name, user="onlooker").status is Status.PASS


def test_failover_slots_are_copied_once_both_sides_are_set(pair: Callable[..., tuple[Database, Database]]) -> None:
    primary, standby = pair(18, slot=False)
    assert ask("ha.slotsync", primary).status is Status.PASS
    name = fresh_name()
    with primary.connect() as conn:
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput', false, false, true)", [name])
    # The primary has no physical slot that could be waited for.
    found = ask("ha.slotsync", primary)
    assert (found.status, [step.kind for step in found.fix]) == (Status.WARN, ["action"])

    found = ask("ha.slotsync", standby)
    assert found.status is Status.WARN
    assert found.evidence["sync_replication_slots"] is False
    # What the standby needs on the primary stands first.
    (create,) = in_actions(found)
    primary.psql(create)
    run_sql(standby, found)
    eventually(lambda: ask("ha.slotsync", standby).status is Status.PASS)
    eventually(lambda: in_use(primary))

    # Now the readers can be made to wait for it.
    found = ask("ha.slotsync", primary)
    assert found.status is Status.WARN
    run_sql(primary, found)
    eventually(lambda: ask("ha.slotsync", primary).status is Status.PASS)
    assert ask("ha.sync_slots_missing", primary).status is Status.PASS

    # The copy is not ready until the standby's position has met the slot's.
    eventually(lambda: ask("ha.slotsync", standby).evidence.get("slots") == [name], 60)

    def ready() -> bool:
        primary.psql("INSERT INTO t SELECT count(*) FROM t; SELECT pg_log_standby_snapshot()")
        advance(primary, name)
        catch_up(primary, standby)
        return ask("slot.failover", standby, slot=name).status is Status.PASS

    eventually(ready, 60)
    # A copy is nobody's orphan, and nobody reads it.
    assert is_silent("slot.inactive", name, standby)
    assert is_silent("slot.building", name, standby)


def advance(primary: Database, name: str) -> None:
    """Let a slot's reader confirm everything."""
    with primary.connect() as conn:
        conn.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_flush_lsn())", [name])


def in_use(primary: Database) -> bool:
    """Whether the standby streams through its slot."""
    with primary.connect() as conn:
        query = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"
        return conn.execute(query, [SLOT]).fetchone() == (True,)


def test_a_primary_conninfo_without_database(pair: Callable[..., tuple[Database, Database]]) -> None:
    settings = {"hot_standby_feedback": "on", "sync_replication_slots": "on"}
    primary, standby = pair(18, **settings)
    assert ask("ha.slotsync", standby).status is Status.PASS
    with standby.connect() as conn:
        (conninfo,) = conn.execute("SHOW primary_conninfo").fetchall()[0]
    without = " ".join(part for part in conninfo.split() if not part.startswith("dbname="))
    assert without != conninfo
    set_conninfo(standby, f"{without} password=not-to-be-seen")
    eventually(lambda: ask("ha.slotsync", standby).status is Status.WARN)
    report = examine(standby, only=["ha.slotsync"])
    assert "names no database" in one(report, "ha.slotsync").summary
    assert "not-to-be-seen" not in str(report.document())
    # Who may not see the setting does not know.
    primary.psql("CREATE ROLE onlooker LOGIN")
    catch_up(primary, standby)
    assert ask("ha.slotsync", standby, user="onlooker").status is Status.UNKNOWN
    set_conninfo(standby, f"{without} dbname=postgres")
    eventually(lambda: ask("ha.slotsync", standby).status is Status.PASS)


def set_conninfo(standby: Database, conninfo: str) -> None:
    """Change primary_conninfo, as a person would."""
    with standby.connect() as conn:
        conn.execute("ALTER SYSTEM SET primary_conninfo = {}".format("'" + conninfo.replace("'", "''") + "'").encode())
        conn.execute("SELECT pg_reload_conf()")


def test_readers_that_wait_for_a_standby_that_is_gone(pair: Callable[..., tuple[Database, Database]]) -> None:
    primary, standby = pair(18)
    name = fresh_name()
    with primary.connect() as conn:
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput', false, false, true)", [name])
        conn.execute(f"ALTER SYSTEM SET synchronized_standby_slots = '{SLOT}'".encode())
        conn.execute("SELECT pg_reload_conf()")
    eventually(lambda: ask("ha.sync_slots_missing", primary).status is Status.PASS)
    standby.server.stop()
    eventually(lambda: not in_use(primary))
    found = ask_about("ha.sync_slots_missing", SLOT, primary)
    assert found.status is Status.FAIL
    assert "is not in use" in found.summary
    with primary.connect() as conn:
        conn.execute("SELECT pg_drop_replication_slot(%s)", [SLOT])
    found = ask_about("ha.sync_slots_missing", SLOT, primary)
    assert "does not exist" in found.summary
    primary.psql("CREATE ROLE onlooker LOGIN")
    assert ask_about("ha.sync_slots_missing", SLOT, primary, user="onlooker").status is Status.FAIL
    run_sql(primary, found)
    eventually(lambda: ask("ha.sync_slots_missing", primary).status is Status.PASS)


@pytest.mark.parametrize("version", [16, 18])
def test_a_standby_that_decodes(pair: Callable[..., tuple[Database, Database]], version: int) -> None:
    primary, standby = pair(version, slot=False)
    assert ask("ha.standby_decode", primary).status is Status.SKIP
    found = ask("ha.standby_decode", standby)
    assert found.status is Status.WARN
    assert found.evidence == {"hot_standby_feedback": False, "primary_slot_name": ""}
    (create,) = in_actions(found)
    primary.psql(create)
    run_sql(standby, found)
    eventually(lambda: ask("ha.standby_decode", standby).status is Status.PASS)
    eventually(lambda: in_use(primary))

    # A slot there waits for the primary to say which transactions run.
    name = fresh_name()
    making = threading.Thread(target=make_slot, args=(standby, name))
    making.start()
    try:
        eventually(lambda: not is_silent("slot.building", name, standby))
        found = ask_about("slot.building", name, standby)
        assert (found.status, found.evidence["blockers"]) == (Status.WARN, [])
        (snapshot,) = in_actions(found)
    finally:
        # More than one may be needed, when the first came before the creation looked.
        def made() -> bool:
            primary.psql("SELECT pg_log_standby_snapshot();")
            making.join(0.2)
            return not making.is_alive()

        eventually(made)
    assert snapshot == "SELECT pg_log_standby_snapshot();"
    assert is_silent("slot.building", name, standby)
    assert ask("slot.failover", standby, slot=name).status is Status.SKIP


def test_everything_runs_on_a_standby(pair: Callable[..., tuple[Database, Database]]) -> None:
    primary, standby = pair(16)
    primary.psql("CREATE ROLE onlooker LOGIN")
    catch_up(primary, standby)
    for user in ("postgres", "onlooker"):
        report = examine(standby, "p", user=user, store="postgres", probe=True, upgrade=True)
        unknown = [finding for finding in report.findings if "could not be found out" in finding.summary]
        assert not [finding for finding in unknown if finding.evidence.get("sqlstate") != "42501"], unknown
        assert of(report, "live.wal_rate")[0].status is Status.INFO
        assert of(report, "live.end_to_end")[0].status is Status.SKIP


def test_a_slot_that_the_primary_invalidated(pair: Callable[..., tuple[Database, Database]]) -> None:
    # Without feedback the primary removes rows of the catalogs that the standby's slot needs.
    primary, standby = pair(18, slot=False)
    name = fresh_name()
    making = threading.Thread(target=make_slot, args=(standby, name))
    making.start()

    def made() -> bool:
        primary.psql("SELECT pg_log_standby_snapshot();")
        making.join(0.2)
        return not making.is_alive()

    eventually(made)

    def lost() -> bool:
        primary.psql("CREATE TABLE gone (a int); DROP TABLE gone; VACUUM pg_class")
        catch_up(primary, standby)
        return not is_silent("slot.valid", name, standby)

    eventually(lost, 60)
    found = ask_about("slot.valid", name, standby, slot=name)
    assert (found.status, found.evidence["invalidation_reason"]) == (Status.FAIL, "rows_removed")
    run_command(standby, commands_of(found)[0])
    assert is_silent("slot.valid", name, standby)
