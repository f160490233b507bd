"""All slots of the cluster: lost, far behind, left alone, being made, old, orphaned, spilling.

Thresholds of hours and of millions cannot be reached in a test. Where a test lowers one, the server, the finding and
the fix are real nevertheless; ``judge_lag`` is asked with recorded sizes besides.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from pgrepl.catalog import slots
from pgrepl.doctor import Status
from pgrepl.doctor.checks import all_slots
from pgrepl.doctor.checks.all_slots import judge_lag
from pgrepl.names import apply_slot, pipeline_id, table_sync_slot
from pgrepl.sandbox import account
from tests.command import eventually
from tests.conftest import NewServer
from tests.doctor.conftest import examine, of
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
    sql_of,
    write_wal,
)
from tests.doctor.state import bookmark, pipelines_row, state
from tests.servers.database import Database, fresh_database
from tests.servers.pool import present

VERSIONS = pytest.mark.parametrize("version", [16, 17, 18])
_GB = 1 << 30


@pytest.fixture
def name() -> str:
    """A name for a slot."""
    return fresh_name()


def bounded(new_server: NewServer, version: int, size: str) -> Database:
    """A server whose slots keep no more than this, set where ALTER SYSTEM can change it."""
    database = Database(new_server(version), "postgres")
    with database.connect() as conn:
        conn.execute(f"ALTER SYSTEM SET max_slot_wal_keep_size = '{size}'".encode())
        conn.execute("SELECT pg_reload_conf()")
    eventually(lambda: setting(database, "max_slot_wal_keep_size") == size)
    return database


def setting(database: Database, name: str) -> str:
    """Read a setting as a new session gets it."""
    with database.connect() as conn:
        return str(conn.execute("SELECT current_setting(%s)", [name]).fetchall()[0][0])


@VERSIONS
def test_a_lost_slot(new_server: NewServer, version: int, name: str) -> None:
    database = bounded(new_server, version, "32MB")
    make_slot(database, name)
    assert is_silent("slot.valid", name, database)
    write_wal(database, 4)
    unreserved = ask_about("slot.valid", name, database)
    assert unreserved.status is Status.WARN
    assert unreserved.evidence["wal_status"] == "unreserved"
    assert ask_about("slot.lag", name, database).status is Status.FAIL
    run_sql(database, unreserved)
    eventually(lambda: is_silent("slot.valid", name, database))
    assert is_silent("slot.lag", name, database)

    with database.connect() as conn:
        conn.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '16MB'")
        conn.execute("SELECT pg_reload_conf()")
    eventually(lambda: setting(database, "max_slot_wal_keep_size") == "16MB")
    database.psql("CHECKPOINT")
    # Somebody else's is worth a look, one's own ends everything.
    assert ask_about("slot.valid", name, database).status is Status.WARN
    found = ask_about("slot.valid", name, database, slot=name)
    assert (found.status, found.evidence["wal_status"]) == (Status.FAIL, "lost")
    assert "max_slot_wal_keep_size" in found.summary
    assert commands_of(found) == [f"pgrepl slots drop {name}"]
    stored = ask_about("slot.valid", name, database, slot=name, store="bookmarks")
    assert commands_of(stored)[1] == f"pgrepl state reset --all --store bookmarks --slot {name}"
    # A lost slot keeps no WAL and is not behind.
    assert is_silent("slot.lag", name, database)
    assert is_silent("slot.inactive", name, database)

    database.psql("CREATE ROLE onlooker LOGIN")
    assert ask_about("slot.valid", name, database, slot=name, user="onlooker").status is Status.FAIL
    run_command(database, commands_of(found)[0])
    assert is_silent("slot.valid", name, database)


def test_a_slot_that_was_idle_for_too_long(new_server: NewServer, name: str) -> None:
    # 18 alone has the timeout; it is counted in whole seconds, and looked at by checkpoints.
    database = Database(new_server(18), "postgres")
    make_slot(database, name)
    with database.connect() as conn:
        conn.execute("ALTER SYSTEM SET idle_replication_slot_timeout = '1s'")
        conn.execute("SELECT pg_reload_conf()")

        def is_lost() -> bool:
            conn.execute("CHECKPOINT")
            return not is_silent("slot.valid", name, database)

        eventually(is_lost)
    found = ask_about("slot.valid", name, database, slot=name)
    assert (found.status, found.evidence["invalidation_reason"]) == (Status.FAIL, "idle_timeout")
    assert "idle_replication_slot_timeout" in found.summary
    run_command(database, commands_of(found)[0])
    assert is_silent("slot.valid", name, database)


@VERSIONS
def test_a_slot_that_is_far_behind(new_server: NewServer, version: int, name: str) -> None:
    database = bounded(new_server, version, "160MB")
    make_slot(database, name)
    write_wal(database, 1)
    assert is_silent("slot.lag", name, database)
    write_wal(database, 8)
    found = ask_about("slot.lag", name, database)
    # Three quarters of what it may keep.
    assert found.status in (Status.WARN, Status.FAIL)
    assert found.evidence["retained_bytes"] >= 7 * (16 << 20)
    assert found.evidence["safe_wal_size"] > 0
    assert "of WAL kept" in found.summary
    run_command(database, commands_of(found)[0])
    assert is_silent("slot.lag", name, database)


def test_how_far_behind_is_too_far(database18: Database, name: str) -> None:
    # Recorded sizes: nobody fills 100 GB for a test.
    make_slot(database18, name)
    with database18.connect() as conn:
        slot = next(slot for slot in slots.all_of(conn) if slot.name == name)

    def judged(kept: int, safe: int | None, growth: float | None) -> Status:
        return judge_lag(replace(slot, retained_bytes=kept, safe_wal_size=safe), growth)[0]

    assert judged(9 * _GB, None, 1e9) is Status.PASS
    assert judged(10 * _GB, None, None) is Status.WARN
    assert judged(100 * _GB, None, None) is Status.FAIL
    assert judged(74, 26, None) is Status.PASS
    assert judged(75, 25, None) is Status.WARN
    assert judged(90, 10, None) is Status.FAIL
    assert judged(100, -1, None) is Status.FAIL
    # At this rate it is lost within the hour, within ten minutes; not while hardly any room is used, or it catches up.
    assert judged(3 << 20, 7 << 20, (7 << 20) / 3000) is Status.WARN
    assert judged(3 << 20, 7 << 20, (7 << 20) / 500) is Status.WARN
    assert judged(6 << 20, 4 << 20, (4 << 20) / 500) is Status.FAIL
    assert judged(6 << 20, 4 << 20, (4 << 20) / 700) is Status.WARN
    assert judged(3 << 20, 7 << 20, (7 << 20) / 4000) is Status.PASS
    assert judged(1 << 20, 9 << 20, 9 << 20) is Status.PASS
    assert judged(3 << 20, 7 << 20, -1.0) is Status.PASS
    assert judge_lag(replace(slot, retained_bytes=0, safe_wal_size=1000), 10.0)[1] == timedelta(seconds=100)


def test_a_slot_that_is_left_alone(database: Database, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_slot(database, name)
    if database.server.version < 17:
        found = ask_about("slot.inactive", name, database)
        assert found.status is Status.INFO
        monkeypatch.setattr(all_slots, "_WORTH_A_FAILURE", 0)
        assert ask_about("slot.inactive", name, database).status is Status.WARN
    else:
        assert is_silent("slot.inactive", name, database)
        monkeypatch.setattr(all_slots, "_LONG", timedelta(0))
        found = ask_about("slot.inactive", name, database)
        assert found.status is Status.WARN
        monkeypatch.setattr(all_slots, "_VERY_LONG", timedelta(0))
        assert ask_about("slot.inactive", name, database).status is Status.WARN
        monkeypatch.setattr(all_slots, "_WORTH_A_FAILURE", 0)
        assert ask_about("slot.inactive", name, database).status is Status.FAIL
    with reading(database, name):
        eventually(lambda: is_silent("slot.inactive", name, database))
    run_command(database, commands_of(found)[0])
    assert is_silent("slot.inactive", name, database)


def test_a_slot_that_cannot_be_made(database: Database, name: str) -> None:
    def create() -> None:
        make_slot(database, name)

    session = database.connect()
    session.execute("BEGIN")
    session.execute("SELECT pg_current_xact_id()")
    pid = session.info.backend_pid
    creating = threading.Thread(target=create)
    creating.start()
    try:
        eventually(lambda: not is_silent("slot.building", name, database))
        eventually(lambda: bool(ask_about("slot.building", name, database).evidence["blockers"]))
        found = ask_about("slot.building", name, database)
        assert found.status is Status.WARN
        assert f"pid {pid} (postgres, idle in transaction" in found.summary
        assert in_actions(found) == [f"SELECT pg_terminate_backend({pid});"]
        # Others see who it is, though not what it does.
        database.psql("CREATE ROLE onlooker LOGIN")
        seen = ask_about("slot.building", name, database, user="onlooker")
        assert (seen.status, seen.evidence) == (Status.WARN, found.evidence)
    finally:
        database.psql(f"SELECT pg_terminate_backend({pid});")
        creating.join()
        session.close()
    assert is_silent("slot.building", name, database)


def test_a_slot_that_waits_for_a_prepared_transaction(database18: Database, name: str) -> None:
    gid = f"it's {name}"
    with database18.connect() as session:
        session.execute("BEGIN")
        session.execute("SELECT pg_current_xact_id()")
        session.execute(f"PREPARE TRANSACTION '{gid.replace(chr(39), chr(39) * 2)}'".encode())
    creating = threading.Thread(target=make_slot, args=(database18, name))
    creating.start()
    statement = f"ROLLBACK PREPARED '{gid.replace(chr(39), chr(39) * 2)}';"
    try:
        eventually(lambda: not is_silent("slot.building", name, database18))
        eventually(lambda: bool(ask_about("slot.building", name, database18).evidence["blockers"]))
        found = ask_about("slot.building", name, database18)
        assert found.evidence["blockers"] == [{"pid": None, "gid": gid}]
        assert statement in in_actions(found)
    finally:
        database18.psql(statement)
        creating.join()
    assert is_silent("slot.building", name, database18)


@pytest.mark.parametrize(("age", "status"), [(60_000_000, Status.WARN), (1_100_000_000, Status.FAIL)])
def test_a_slot_that_is_old(new_server: NewServer, name: str, age: int, status: Status) -> None:
    server = new_server(18, autovacuum="off")
    database = Database(server, "postgres")
    make_slot(database, name)
    make_slot(database, f"{name}_2")
    assert is_silent("slot.xmin", name, database)
    with database.connect() as conn:
        conn.execute("SELECT pg_create_physical_replication_slot('standby', true)")
    server.stop(immediate=False)
    move_on(server_data(database), server.version, age)
    server.start()

    found = ask_about("slot.xmin", name, database)
    assert found.status is status
    assert found.evidence["catalog_xmin_age"] >= age
    assert is_silent("slot.xmin", "standby", database)
    database.psql("CREATE ROLE onlooker LOGIN")
    assert ask_about("slot.xmin", name, database, user="onlooker").status is status
    run_command(database, commands_of(found)[0])
    assert is_silent("slot.xmin", name, database)


def server_data(database: Database) -> Path:
    """The data directory of a stopped server."""
    return database.server._cluster.data


def move_on(data: Path, version: int, age: int) -> None:
    """Let a stopped server go on with later transactions, as if so many had been in between."""
    who = account.server_account()
    # One file of pg_xact has the fates of 1,048,576 transactions, and the one of the next has to be there.
    per_file = 32 * 8192 * 4
    segment = -(-age // per_file)
    path = data / "pg_xact" / f"{segment:04X}"
    path.write_bytes(bytes(32 * 8192))
    if who is not None:
        os.chown(path, who.uid, who.gid)
    tree = present()[version]
    done = account.run_as(who, [tree / "bin" / "pg_resetwal", "-x", str(segment * per_file), "-D", data])
    assert done.code == 0, done.said


def orphan(database: Database) -> int:
    """An id of no pipeline that is configured anywhere."""
    return pipeline_id("gone.example.com", database.name)


def test_an_orphan(database: Database) -> None:
    name = apply_slot(orphan(database))
    make_slot(database, name)
    found = ask_about("slot.orphans", name, database)
    assert found.status is Status.WARN
    assert "there is no state of any pipeline here" in found.summary
    assert found.evidence["pipeline_id"] == orphan(database)
    # What is named is wanted; what is read is in use.
    assert is_silent("slot.orphans", name, database, slot=name)
    with reading(database, name):
        eventually(lambda: is_silent("slot.orphans", name, database))
    eventually(lambda: not is_silent("slot.orphans", name, database))

    state(database, "t", "ready", pipeline=pipeline_id("localhost", database.name))
    found = ask_about("slot.orphans", name, database)
    assert "no state table knows its pipeline" in found.summary
    assert commands_of(found) == ["pgrepl slots drop --orphans --dry-run", f"pgrepl slots drop {name}"]
    run_command(database, commands_of(found)[1])
    assert is_silent("slot.orphans", name, database)


def test_a_pipeline_that_any_state_knows_is_no_orphan(database18: Database) -> None:
    pipeline = orphan(database18)
    name = apply_slot(pipeline)
    make_slot(database18, name)
    pipelines_row(database18, pipeline, name, "0/1")
    assert is_silent("slot.orphans", name, database18)
    database18.psql("DROP TABLE etl.pgrepl_pipelines")
    assert ask_about("slot.orphans", name, database18).status is Status.WARN
    bookmark(database18, name, "0/1")
    assert is_silent("slot.orphans", name, database18)


def test_whether_it_is_an_orphan_may_not_be_seen(database18: Database) -> None:
    name = apply_slot(orphan(database18))
    make_slot(database18, name)
    state(database18, "t", "ready", pipeline=orphan(database18))
    database18.psql("CREATE ROLE onlooker LOGIN")
    found = ask("slot.orphans", database18, user="onlooker")
    assert (found.status, found.evidence["slots"]) == (Status.UNKNOWN, [name])
    run_sql(database18, found)
    assert ask("slot.orphans", database18, user="onlooker").status is Status.PASS


def test_slots_of_other_databases_are_not_judged(database18: Database, server18_other: Database) -> None:
    name = apply_slot(orphan(server18_other))
    make_slot(server18_other, name)
    report = examine(database18, only=["slot.orphans"])
    assert all(finding.object != name for finding in of(report, "slot.orphans"))
    assert of(report, "slot.orphans")[0].evidence["other_databases"] >= 1


def test_table_sync_slots_of_nobody_are_orphans(database18: Database) -> None:
    name = table_sync_slot(orphan(database18), 12345)
    make_slot(database18, name)
    assert ask_about("slot.orphans", name, database18).status is Status.WARN
    assert is_silent("state.leftover_slots", name, database18)


def decode(database: Database, name: str, user: str) -> None:
    """Write a transaction of more than 64 kB and decode it."""
    with database.connect() as conn:
        conn.execute("INSERT INTO t SELECT generate_series(1, 20000); DELETE FROM t")
    with database.connect(user) as conn:
        peek = "SELECT count(*) FROM pg_logical_slot_get_binary_changes(%s, NULL, NULL, %s, %s, %s, %s)"
        conn.execute(peek, [name, "proto_version", "1", "publication_names", "p"])


def test_transactions_that_do_not_fit_into_memory(database: Database, name: str) -> None:
    database.psql(
        "CREATE ROLE cdc LOGIN REPLICATION; ALTER ROLE cdc SET logical_decoding_work_mem = '64kB';"
        "CREATE TABLE t (a int); CREATE PUBLICATION p FOR TABLE t WITH (publish = 'insert')"
    )
    make_slot(database, name)
    decode(database, name, "cdc")
    eventually(lambda: not is_silent("slot.spill", name, database, role="cdc"))
    found = ask_about("slot.spill", name, database, role="cdc")
    assert found.status is Status.INFO
    assert found.evidence["spill_txns"] >= 1
    assert found.evidence["spill_bytes"] > 64 << 10
    run_sql(database, found)
    eventually(lambda: is_silent("slot.spill", name, database, role="cdc"))
    # The role has the memory now: the counters stay where they are.
    decode(database, name, "cdc")
    with database.connect() as conn:
        wanted = "SELECT total_txns > 0 FROM pg_stat_replication_slots WHERE slot_name = %s"
        eventually(lambda: conn.execute(wanted, [name]).fetchone() == (True,))
    assert is_silent("slot.spill", name, database, role="cdc")


def test_much_that_is_spilled_in_a_day(database18: Database, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database18.psql(
        "CREATE ROLE cdc LOGIN REPLICATION; ALTER ROLE cdc SET logical_decoding_work_mem = '64kB';"
        "CREATE TABLE t (a int); CREATE PUBLICATION p FOR TABLE t WITH (publish = 'insert')"
    )
    make_slot(database18, name)
    database18.psql(f"SELECT pg_stat_reset_replication_slot('{name}')")
    decode(database18, name, "cdc")
    eventually(lambda: not is_silent("slot.spill", name, database18))
    # 10 GB are too much to write for a test.
    monkeypatch.setattr(all_slots, "_SPILLED_A_DAY", 64 << 10)
    found = ask_about("slot.spill", name, database18, role="cdc")
    assert found.status is Status.WARN
    assert found.evidence["stats_reset"] is not None
    assert len(sql_of(found)) == 2


@pytest.fixture
def server18_other(database18: Database) -> Iterator[Database]:
    """Another database of the same server."""
    with fresh_database(database18.server) as database:
        yield database
