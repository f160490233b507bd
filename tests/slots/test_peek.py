"""``pgrepl slots peek``: what tail would print, and all of it still there."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from pgrepl.replication.slots import drop_slot
from tests.command import eventually, pgrepl
from tests.conftest import NewServer
from tests.servers.database import Database, fresh_database
from tests.slots.conftest import make, reader, seen
from tests.slots.test_slots import _write_wal


def peek(database: Database, name: str, *arguments: str, user: str = "postgres") -> subprocess.CompletedProcess[str]:
    return pgrepl("slots", "peek", name, "-d", database.dsn(user), *arguments)


def events(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def filled(database: Database, name: str) -> Database:
    """A database with a slot that has five changes in it, of one publication."""
    make(database, name)
    database.psql("INSERT INTO t VALUES (1), (2), (3); DELETE FROM t WHERE a = 2; TRUNCATE t")
    return database


def test_changes_are_shown_and_stay(filled: Database, name: str) -> None:
    before = seen(filled, name)
    first, second = peek(filled, name), peek(filled, name)
    assert first.returncode == 0
    assert first.stdout == second.stdout
    assert [event["op"] for event in events(first)] == ["insert", "insert", "insert", "delete", "truncate"]
    assert events(first)[0]["new"] == {"a": 1}
    after = seen(filled, name)
    assert (after.restart_lsn, after.confirmed_flush_lsn) == (before.restart_lsn, before.confirmed_flush_lsn)
    assert ("resets its inactive_since" in first.stderr) is (filled.server.version >= 17)
    with_17 = before.inactive_since is not None
    assert (after.inactive_since != before.inactive_since) is with_17


def test_they_are_the_lines_of_tail(filled: Database, name: str) -> None:
    filled.psql("CREATE TYPE mood AS ENUM ('fine'); CREATE TABLE u (a int PRIMARY KEY, m mood[], n numeric(12,2));")
    filled.psql("ALTER PUBLICATION p ADD TABLE u; INSERT INTO u VALUES (1, '{fine}', 1.50)")
    event = events(peek(filled, name))[-1]
    assert event["new"] == {"a": 1, "m": ["fine"], "n": "1.50"}
    pretty = peek(filled, name, "--format", "pretty").stdout
    assert "insert" in pretty
    assert "mood" not in pretty
    assert not pretty.startswith("{")


def test_it_is_bounded(filled: Database, name: str) -> None:
    filled.psql("INSERT INTO t SELECT generate_series(1, 5000)")
    done = peek(filled, name, "--limit", "7")
    assert [event["op"] for event in events(done)] == ["insert"] * 3 + ["delete", "truncate"] + ["insert"] * 2
    assert "there are more" in done.stderr
    exact = peek(filled, name, "--limit", "5005")
    assert len(events(exact)) == 5005
    assert "there are more" not in exact.stderr


def test_many_small_transactions_fill_the_limit(database18: Database, name: str) -> None:
    make(database18, name)
    with database18.connect() as conn:
        for number in range(40):
            conn.execute("INSERT INTO t VALUES (%s)", [number])
            # Not printed, but sent: the server's own count of messages is no count of events.
            conn.execute("SELECT pg_logical_emit_message(true, 'pgrepl', 'heartbeat')")
            conn.execute("SELECT pg_logical_emit_message(true, 'pgrepl', 'heartbeat')")
    assert [event["new"]["a"] for event in events(peek(database18, name, "--limit", "40"))] == list(range(40))


def test_nothing_to_show(database18: Database, name: str) -> None:
    make(database18, name)
    done = peek(database18, name)
    assert (done.returncode, done.stdout) == (0, "")
    assert "there is no change of publication p" in done.stderr


def test_the_publication_is_found_or_must_be_named(filled: Database, name: str) -> None:
    filled.psql("CREATE PUBLICATION q FOR TABLE t WITH (publish = 'delete')")
    done = peek(filled, name)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--publication: p, q" in done.stderr
    assert len(events(peek(filled, name, "--publication", "p"))) == 5
    filled.psql("DROP PUBLICATION p; DROP PUBLICATION q")
    assert peek(filled, name).returncode == 1


def test_a_publication_that_is_younger_than_the_changes(filled: Database, name: str) -> None:
    filled.psql("CREATE PUBLICATION young FOR TABLE t")
    done = peek(filled, name, "--publication", "young")
    if filled.server.version >= 18:
        assert (done.returncode, done.stdout) == (0, "")
        assert "changes from before publication young was there are left out" in done.stderr
    else:
        assert (done.returncode, done.stdout) == (1, "")
        assert "create publications before slots" in done.stderr


def test_slots_that_cannot_be_peeked_into(database18: Database, name: str) -> None:
    make(database18, name)
    database18.psql("CREATE ROLE plain LOGIN")
    with fresh_database(database18.server) as other, other.connect() as conn:
        make(other, f"{name}_o")
        conn.execute("SELECT pg_create_physical_replication_slot(%s, false, true)", [f"{name}_p"])
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput', true)", [f"{name}_t"])
        cases = {
            "not_there": "there is no slot",
            f"{name}_o": f"is of database {other.name}",
            f"{name}_p": "is physical",
            f"{name}_t": "is of database",
        }
        for slot, text in cases.items():
            done = peek(database18, slot)
            assert (done.returncode, done.stdout) == (1, ""), slot
            assert text in done.stderr
        drop_slot(conn, f"{name}_p")
    with reader(database18, name) as walsender:
        eventually(lambda: seen(database18, name).active)
        held = peek(database18, name)
        assert f"in use by pid {walsender.pid} (somebody)" in held.stderr
    assert held.returncode == 1
    refused = peek(database18, name, user="plain")
    assert refused.returncode == 1
    assert "REPLICATION" in refused.stderr


def test_a_lost_slot_is_for_a_person(new_server: NewServer, name: str) -> None:
    database = Database(new_server(18, max_slot_wal_keep_size="2MB", max_wal_size="1GB"), "postgres")
    make(database, name)
    _write_wal(database, 5)
    database.psql("CHECKPOINT")
    done = peek(database, name)
    assert (done.returncode, done.stdout) == (5, "")
    assert "max_slot_wal_keep_size" in done.stderr
