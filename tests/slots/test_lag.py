"""``pgrepl slots lag``: two lags, their pace, thresholds, and the answer for monitoring."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from pgrepl.catalog.slot_pace import Pace, between
from pgrepl.catalog.slots import Slot
from pgrepl.lsn import Lsn
from tests.command import pgrepl
from tests.conftest import NewServer
from tests.servers.database import Database
from tests.slots.conftest import make, seen
from tests.slots.test_slots import KEYS, _write_wal

PACE = ["sample_seconds", "wal_bytes_per_second", "consumed_bytes_per_second", "catch_up_seconds", "lost_in_seconds"]


def lag(database: Database, *arguments: str) -> Any:
    return pgrepl("slots", "lag", *arguments, "-d", database.dsn())


@contextmanager
def writing(database: Database) -> Iterator[None]:
    """Write about 100 kB of WAL again and again meanwhile."""
    stop = threading.Event()

    def write() -> None:
        with database.connect() as conn:
            while not stop.is_set():
                conn.execute("SELECT pg_logical_emit_message(true, 'filler', repeat('x', 100000))")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def test_the_rates_come_from_two_looks(database: Database, name: str) -> None:
    make(database, name)
    with writing(database):
        done = lag(database, name, "--json")
    (slot,) = json.loads(done.stdout)
    assert done.returncode == 0
    assert list(slot) == [*KEYS, *PACE]
    assert slot["sample_seconds"] >= 1
    assert slot["wal_bytes_per_second"] > 100_000
    assert slot["consumed_bytes_per_second"] == 0
    assert slot["catch_up_seconds"] is None
    assert slot["lost_in_seconds"] is None
    assert slot["retained_bytes"] >= slot["lag_bytes"] > 100_000


def test_the_time_until_a_slot_is_lost(new_server: NewServer, name: str) -> None:
    database = Database(new_server(18, max_slot_wal_keep_size="1GB"), "postgres")
    make(database, name)
    with writing(database):
        (slot,) = json.loads(lag(database, "--json").stdout)
    expected = slot["safe_wal_size"] / slot["wal_bytes_per_second"]
    # It is printed to a tenth of a second.
    assert slot["lost_in_seconds"] == pytest.approx(expected, rel=0.01, abs=0.051)


@pytest.fixture
def before(database18: Database, name: str) -> Slot:
    """A slot that was just made."""
    make(database18, name)
    return replace(
        seen(database18, name),
        restart_lsn=Lsn(1000),
        confirmed_flush_lsn=Lsn(2000),
        wal_end=Lsn(10_000),
        retained_bytes=9000,
        lag_bytes=8000,
    )


def later(slot: Slot, seconds: int, wal: int, confirmed: int, restart: int, **changes: Any) -> Slot:
    assert slot.restart_lsn is not None
    assert slot.confirmed_flush_lsn is not None
    assert slot.wal_end is not None
    values = {
        "restart_lsn": Lsn(slot.restart_lsn + restart),
        "confirmed_flush_lsn": Lsn(slot.confirmed_flush_lsn + confirmed),
        "wal_end": Lsn(slot.wal_end + wal),
        "seen_at": slot.seen_at + timedelta(seconds=seconds),
        "retained_bytes": slot.wal_end + wal - slot.restart_lsn - restart,
        "lag_bytes": slot.wal_end + wal - slot.confirmed_flush_lsn - confirmed,
        **changes,
    }
    return replace(slot, **values)


def test_the_pace_of_a_reader_that_catches_up(before: Slot) -> None:
    after = later(before, 2, wal=1000, confirmed=5000, restart=0, safe_wal_size=3000)
    assert after.lag_bytes == 4000
    assert between(before, after) == Pace(2.0, 500.0, 2500.0, 2.0, 6.0)


def test_the_pace_of_one_that_falls_behind_or_is_there(before: Slot) -> None:
    behind = between(before, later(before, 1, wal=1000, confirmed=500, restart=2000, safe_wal_size=3000))
    assert (behind.catch_up_seconds, behind.lost_in_seconds) == (None, None)
    assert between(before, later(before, 1, wal=0, confirmed=8000, restart=0)).catch_up_seconds == 0
    assert between(before, later(before, 1, wal=9, confirmed=0, restart=0, safe_wal_size=-1)).lost_in_seconds == 0
    lost = between(before, later(before, 1, wal=9, confirmed=0, restart=0, wal_status="lost"))
    assert lost == Pace(1.0, None, None, None, None)
    # Another slot of the same name.
    assert between(before, later(before, 1, wal=9, confirmed=-5, restart=-5)).consumption_rate is None
    assert between(None, before) == Pace(0.0, None, None, None, None)


def test_thresholds_of_either_lag(database18: Database, name: str) -> None:
    make(database18, name)
    database18.psql("INSERT INTO t SELECT generate_series(1, 2000)")
    assert lag(database18, name, "-w", "1TB", "-c", "2TB").returncode == 0
    above = lag(database18, name, "-w", "1kB")
    assert above.returncode == 1
    assert "inactive, reserved, more than 1.0 kB behind" in above.stdout
    assert lag(database18, name, "--critical", "1kB").returncode == 1
    assert lag(database18, name, "-w", "2kB", "-c", "1kB").returncode == 2
    missing = lag(database18, "not_there", "-c", "1TB")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "there is no slot not_there" in missing.stderr


def test_the_table_shows_both_lags(database18: Database, name: str) -> None:
    make(database18, name)
    head, line = (line for line in lag(database18).stdout.splitlines() if "lag" in line or name in line)
    assert re.findall(r"restart lag|confirmed lag|caught up in|lost in", head) == [
        "restart lag",
        "confirmed lag",
        "caught up in",
        "lost in",
    ]
    assert "inactive, reserved" in line


@pytest.mark.parametrize("version", [16, 18])
def test_a_lost_slot_has_null_and_never_0(new_server: NewServer, name: str, version: int) -> None:
    database = Database(new_server(version, max_slot_wal_keep_size="2MB", max_wal_size="1GB"), "postgres")
    make(database, name)
    _write_wal(database, 5)
    unreserved = lag(database, "--nagios")
    assert unreserved.returncode == 1
    assert unreserved.stdout.startswith(f"PGREPL WARNING: {name} unreserved, restart lag ")
    assert lag(database).returncode == 1
    database.psql("CHECKPOINT")
    done = lag(database, "--json", "-c", "1TB")
    (slot,) = json.loads(done.stdout)
    assert done.returncode == 1
    for key in ("retained_bytes", "lag_bytes", *PACE[1:]):
        assert slot[key] is None, key
    table = lag(database).stdout
    assert "lost" in table
    assert not re.search(r"\b0 bytes", table)
    nagios = lag(database, "--nagios")
    assert nagios.returncode == 2
    assert nagios.stdout == (
        f"PGREPL CRITICAL: {name} is lost | {name}_restart_lag=U;;;0 {name}_confirmed_lag=U;;;0 {name}_consumed=U;;;0\n"
    )


def test_nagios(database18: Database, name: str) -> None:
    make(database18, name)
    database18.psql("INSERT INTO t SELECT generate_series(1, 2000)")
    ok = lag(database18, "--nagios", "-w", "1GB", "-c", "2GB")
    assert ok.returncode == 0
    figures = rf"\d+B;{1 << 30};{2 << 30};0"
    assert re.fullmatch(
        rf"PGREPL OK: 1 within limits \| {name}_restart_lag={figures} {name}_confirmed_lag={figures}"
        rf" {name}_consumed=0;;;0\n",
        ok.stdout,
    )
    assert lag(database18, "--nagios", "-w", "1kB", "-c", "1GB").returncode == 1
    critical = lag(database18, name, "--nagios", "-w", "1kB", "-c", "2kB")
    assert critical.returncode == 2
    assert critical.stdout.startswith(f"PGREPL CRITICAL: {name} restart lag ")
    gone = lag(database18, "not_there", "--nagios")
    assert (gone.returncode, gone.stdout) == (2, "PGREPL CRITICAL: there is no slot not_there\n")
    unknown = pgrepl("slots", "lag", "--nagios", "-d", database18.server.dsn("not_there"))
    assert unknown.returncode == 3
    assert unknown.stdout.startswith("PGREPL UNKNOWN: ")
    assert unknown.stdout.count("\n") == 1
    assert lag(database18, "--nagios", "--json").returncode == 2
