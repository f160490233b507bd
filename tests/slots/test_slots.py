"""Slots as the server has them, and the verdict on each; states are brought about on real servers where they can be."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from datetime import timedelta

import psycopg
import pytest

from pgrepl.catalog import slots
from pgrepl.catalog.slots import Slot
from pgrepl.errors import OperationError
from pgrepl.replication.slots import drop_slot, terminate_holder
from pgrepl.units import duration_text, size_text
from tests.command import eventually, pgrepl, pgrepl_at_terminal
from tests.conftest import NewServer
from tests.servers.database import Database
from tests.servers.server import Server
from tests.slots.conftest import look, make, reader, seen

KEYS = [
    "name",
    "kind",
    "pipeline_id",
    "database",
    "plugin",
    "temporary",
    "active",
    "holder",
    "restart_lsn",
    "confirmed_flush_lsn",
    "retained_bytes",
    "lag_bytes",
    "wal_status",
    "safe_wal_size",
    "invalidation_reason",
    "inactive_since",
    "failover",
    "synced",
    "two_phase",
    "catalog_xmin_age",
    "verdict",
]


def test_an_inactive_slot(database: Database, name: str) -> None:
    make(database, name)
    slot = seen(database, name)
    assert (slot.database, slot.plugin, slot.kind, slot.pipeline_id) == (database.name, "pgoutput", "other", None)
    assert (slot.active, slot.temporary, slot.physical, slot.lost, slot.holder) == (False, False, False, False, None)
    assert slot.wal_status == "reserved"
    assert slot.restart_lsn is not None
    assert slot.confirmed_flush_lsn is not None
    assert slot.retained_bytes is not None
    assert slot.lag_bytes is not None
    assert slot.retained_bytes >= slot.lag_bytes >= 0
    # What a version does not have is not known, which is not the same as false.
    has_17 = database.server.version >= 17
    assert slot.failover is (False if has_17 else None)
    assert slot.synced is (False if has_17 else None)
    assert (slot.inactive_since is not None) is has_17
    assert (slot.inactive_for is not None) is has_17
    assert slot.verdict.level == ("ok" if has_17 else "warn")
    assert slot.verdict.text.startswith("inactive")


def test_lag_and_retained_grow_with_the_wal(database18: Database, name: str) -> None:
    make(database18, name)
    before = seen(database18, name)
    database18.psql("INSERT INTO t SELECT generate_series(1, 1000)")
    after = seen(database18, name)
    assert after.retained_bytes is not None
    assert before.retained_bytes is not None
    assert after.retained_bytes > before.retained_bytes + 50_000


def test_the_document_has_these_keys(database: Database, name: str) -> None:
    make(database, name)
    with reader(database, name):
        eventually(lambda: seen(database, name).active)
        document = seen(database, name).document()
    assert list(document) == KEYS
    assert list(document["holder"]) == ["pid", "application_name", "client_addr", "state"]
    assert list(document["verdict"]) == ["level", "text"]
    assert isinstance(document["restart_lsn"], str)
    assert isinstance(document["retained_bytes"], int)


def test_a_slot_that_is_read_names_its_reader(database: Database, name: str) -> None:
    make(database, name)
    with reader(database, name) as walsender:
        eventually(lambda: (holder := seen(database, name).holder) is not None and holder.state == "streaming")
        slot = seen(database, name)
        assert slot.holder is not None
        assert (slot.holder.pid, slot.holder.application_name) == (walsender.pid, "somebody")
        assert slot.verdict.level == "ok"
        assert slot.verdict.text.startswith("streaming, ")
        database.psql("CREATE ROLE onlooker LOGIN")
        with database.connect("onlooker") as conn:
            (unprivileged,) = [other for other in slots.all_of(conn) if other.name == name]
        assert unprivileged.holder is not None
        assert (unprivileged.holder.pid, unprivileged.holder.state) == (walsender.pid, None)
        assert unprivileged.verdict.level == "ok"
    eventually(lambda: not seen(database, name).active)


def test_temporary_and_physical_slots(database: Database, name: str) -> None:
    with database.connect() as conn:
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput', true)", [name])
        conn.execute("SELECT pg_create_physical_replication_slot(%s)", [f"{name}_p"])
        try:
            temporary, physical = seen(database, name), seen(database, f"{name}_p")
        finally:
            drop_slot(conn, f"{name}_p")
    assert (temporary.temporary, temporary.plugin) == (True, "pgoutput")
    assert temporary.verdict.text.startswith("temporary, goes with its session")
    assert (physical.physical, physical.database, physical.lag_bytes) == (True, None, None)
    assert physical.retained_bytes is None
    assert physical.verdict == ("ok", "never used, keeps no WAL")


def test_a_slot_that_waits_for_a_long_transaction_is_being_created(database: Database, name: str) -> None:
    def create() -> None:
        with database.connect() as conn:
            conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [name])

    database.psql("CREATE ROLE onlooker LOGIN")
    with database.connect(application_name="monthly report") as blocker:
        pid = blocker.info.backend_pid
        blocker.execute("BEGIN")
        blocker.execute("SELECT pg_current_xact_id()")
        creating = threading.Thread(target=create)
        creating.start()
        eventually(lambda: (slot := look(database, name)) is not None and bool(slot.blockers))
        slot = seen(database, name)
        with database.connect("onlooker") as conn:
            (unprivileged,) = [other for other in slots.all_of(conn) if other.name == name]
        table = pgrepl("slots", "list", "-d", database.dsn()).stdout
        blocker.execute("ROLLBACK")
        creating.join()
    assert slot.confirmed_flush_lsn is None
    assert slot.verdict.level == "warn"
    assert slot.holder is not None
    assert slot.verdict.text.startswith(
        f"being created by pid {slot.holder.pid}, which waits for pid {pid} (postgres, monthly report, idle in"
    )
    assert "SELECT pg_current_xact_id()" in slot.verdict.text
    # The transaction has grown older meanwhile.
    assert re.split(r" for \d+ s", slot.verdict.text)[0] in table
    # Who may not see what others do sees at least who it is.
    assert unprivileged.verdict.level == "warn"
    assert f"waits for pid {pid} (postgres, monthly report)" in unprivileged.verdict.text
    assert "insufficient" not in unprivileged.verdict.text
    assert "inactive" in seen(database, name).verdict.text


def test_a_slot_that_waits_for_a_prepared_transaction_names_it(database: Database, name: str) -> None:
    def create() -> None:
        with database.connect() as conn:
            conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [name])

    database.psql(f"BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION '{name}'")
    creating = threading.Thread(target=create)
    creating.start()
    try:
        eventually(lambda: (slot := look(database, name)) is not None and bool(slot.blockers))
        text = seen(database, name).verdict.text
    finally:
        database.psql(f"ROLLBACK PREPARED '{name}'")
        creating.join()
    assert f"waits for prepared transaction '{name}' of postgres" in text


def _write_wal(database: Database, segments: int) -> None:
    with database.connect() as conn:
        for _ in range(segments):
            conn.execute("SELECT pg_logical_emit_message(false, 'filler', repeat('x', 1000))")
            conn.execute("SELECT pg_switch_wal()")


@pytest.mark.parametrize("version", [16, 17, 18])
def test_a_lost_slot_has_no_lag(new_server: NewServer, name: str, version: int) -> None:
    # Checkpoints, which are what invalidates, come only when asked for.
    database = Database(new_server(version, max_slot_wal_keep_size="2MB", max_wal_size="1GB"), "postgres")
    make(database, name)
    _write_wal(database, 5)
    unreserved = seen(database, name)
    assert unreserved.wal_status == "unreserved"
    assert unreserved.verdict.level == "warn"
    assert "past max_slot_wal_keep_size" in unreserved.verdict.text
    assert unreserved.safe_wal_size is not None
    assert unreserved.safe_wal_size < 0

    database.psql("CHECKPOINT")
    lost = seen(database, name)
    assert (lost.wal_status, lost.restart_lsn, lost.lag_bytes, lost.retained_bytes) == ("lost", None, None, None)
    assert lost.confirmed_flush_lsn is not None
    assert lost.invalidation_reason == ("wal_removed" if version >= 17 else None)
    assert lost.lost
    assert lost.verdict.level == "fail"
    assert "max_slot_wal_keep_size" in lost.verdict.text
    assert "new snapshot" in lost.verdict.text

    # There is nothing left to lose, so that nothing has to be typed.
    done = pgrepl_at_terminal("slots", "drop", name, "-d", database.dsn(), typed="")
    assert (done.returncode, done.stdout) == (0, f"dropped {name}\n")
    assert "lost already" in done.stderr


def test_a_slot_that_was_idle_for_too_long(new_server: NewServer, name: str) -> None:
    database = Database(new_server(18, idle_replication_slot_timeout="1s"), "postgres")
    make(database, name)

    def invalidated() -> bool:
        database.psql("CHECKPOINT")
        return seen(database, name).lost

    eventually(invalidated)
    slot = seen(database, name)
    assert slot.invalidation_reason == "idle_timeout"
    assert "idle_replication_slot_timeout" in slot.verdict.text
    # Its WAL is no longer kept, although the position is still there.
    assert slot.restart_lsn is not None
    assert (slot.retained_bytes, slot.lag_bytes) == (None, None)


_GB = 1 << 30


@pytest.mark.parametrize(
    ("change", "level", "text"),
    [
        ({"inactive_for": timedelta(minutes=59), "retained_bytes": _GB - 1}, "ok", "inactive for 59 min, keeps 1.0 GB"),
        ({"inactive_for": timedelta(hours=1)}, "warn", "start its reader, or drop it"),
        ({"inactive_for": timedelta(seconds=1), "retained_bytes": _GB}, "warn", "start its reader, or drop it"),
        (
            {"inactive_for": timedelta(days=1, hours=2), "retained_bytes": _GB},
            "fail",
            "inactive for 1 d 2 h, keeps 1.0 GB",
        ),
        ({"inactive_for": None}, "warn", "inactive, keeps"),
        ({"catalog_xmin_age": 49_999_999}, "ok", "inactive"),
        ({"catalog_xmin_age": 50_000_000}, "warn", "since 50,000,000 transactions"),
        ({"catalog_xmin_age": 1_000_000_000}, "fail", "VACUUM"),
        ({"safe_wal_size": 10 << 20, "retained_bytes": 30 << 20}, "ok", "inactive"),
        ({"safe_wal_size": 9 << 20, "retained_bytes": 31 << 20}, "warn", "will be lost after 9.0 MB more of WAL"),
        ({"synced": True, "on_standby": True}, "ok", "copied from the primary, ready for a failover"),
        ({"synced": True, "on_standby": True, "temporary": True}, "warn", "not ready for a failover yet"),
        ({"synced": True, "inactive_for": timedelta(hours=2)}, "warn", "inactive for 2 h 0 min"),
        ({"confirmed_flush_lsn": None}, "warn", "never finished"),
        ({"wal_status": "lost"}, "fail", "standby had to replay"),
        ({"wal_status": "lost", "invalidation_reason": "rows_removed"}, "fail", "removed rows"),
        ({"wal_status": "lost", "invalidation_reason": "wal_level_insufficient"}, "fail", "wal_level on the primary"),
        ({"wal_status": "lost", "plugin": None}, "fail", "standby must be made anew"),
    ],
)
def test_the_verdict_on_what_takes_long_to_bring_about(
    ready: Slot, change: dict[str, object], level: str, text: str
) -> None:
    verdict = replace(ready, **change).verdict  # type: ignore[arg-type]
    assert verdict.level == level
    assert text in verdict.text


@pytest.fixture
def ready(database18: Database, name: str) -> Slot:
    """A slot that was just made, of which single facts are then changed."""
    make(database18, name)
    return seen(database18, name)


def test_dropping(database: Database, name: str) -> None:
    make(database, name)
    with database.connect() as conn:
        assert drop_slot(conn, name) == []
        with pytest.raises(OperationError) as error:
            drop_slot(conn, name)
    assert error.value.sqlstate == "42704"
    assert look(database, name) is None


def test_a_slot_in_use_is_dropped_only_with_its_session(database: Database, name: str) -> None:
    make(database, name)
    with reader(database, name) as walsender, database.connect() as conn:
        with pytest.raises(OperationError) as error:
            drop_slot(conn, name)
        assert error.value.sqlstate == "55006"
        assert str(walsender.pid) in str(error.value)
        assert drop_slot(conn, name, terminate=True) == [walsender.pid]
    assert look(database, name) is None


def test_a_temporary_slot_goes_with_the_session_that_is_ended(database: Database, name: str) -> None:
    with database.connect() as holder, database.connect() as conn:
        holder.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput', true)", [name])
        assert drop_slot(conn, name, terminate=True) == [holder.info.backend_pid]
        assert look(database, name) is None
        assert terminate_holder(conn, name) == []


def test_a_role_without_the_right_to_drop_or_to_end(database18: Database, name: str) -> None:
    make(database18, name)
    database18.psql("CREATE ROLE plain LOGIN; CREATE ROLE replicator LOGIN REPLICATION")
    with database18.connect("plain") as conn, pytest.raises(OperationError) as error:
        drop_slot(conn, name)
    assert error.value.sqlstate == "42501"
    assert error.value.hint
    with (
        reader(database18, name),
        database18.connect("replicator") as conn,
        pytest.raises(OperationError) as error,
    ):
        drop_slot(conn, name, terminate=True)
    assert error.value.sqlstate == "42501"
    assert "pg_signal_backend" in (error.value.hint or "")
    assert look(database18, name) is not None


def test_a_reader_that_comes_back_at_once_is_overcome(server18: Server, database18: Database, name: str) -> None:
    make(database18, name)
    stop = threading.Event()

    def insist() -> None:
        while not stop.is_set():
            try:
                with psycopg.connect(database18.dsn(), autocommit=True) as conn:
                    conn.execute(
                        "SELECT count(*) FROM pg_logical_slot_peek_binary_changes(%s, NULL, NULL,"
                        " 'proto_version', '1', 'publication_names', 'p'), pg_sleep(1)",
                        [name],
                    )
            except psycopg.Error:
                pass

    reader_thread = threading.Thread(target=insist)
    reader_thread.start()
    try:
        with server18.connect() as conn:
            drop_slot(conn, name, terminate=True)
    finally:
        stop.set()
        reader_thread.join()
    assert look(database18, name) is None


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (1024, "1.0 kB"),
        (10 * 1024, "10 kB"),
        (1024 * 1024 - 1, "1.0 MB"),
        (16 << 20, "16 MB"),
        (-(3 << 30), "-3.0 GB"),
        (1 << 60, "1024 PB"),
    ],
)
def test_sizes_read_like_the_servers(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (12_000, "3 h 20 min"), (360_000, "4 d 4 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(timedelta(seconds=seconds)) == text
