"""``pgrepl slots create``: after its publication, with the blocker named, and without leftovers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from pgrepl.conninfo import parse
from pgrepl.errors import OperationError
from pgrepl.replication.slots import create_slot
from pgrepl.replication.walsender import Walsender
from tests.command import eventually, pgrepl
from tests.conftest import NewServer
from tests.servers.database import Database
from tests.slots.conftest import look, seen
from tests.tail.beside import Beside


@pytest.fixture
def published(database: Database) -> Database:
    """A database with a publication."""
    database.psql("CREATE TABLE t (a int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")
    return database


def create(database: Database, name: str, *arguments: str, user: str = "postgres") -> subprocess.CompletedProcess[str]:
    return pgrepl("slots", "create", name, "-d", database.dsn(user), *arguments)


def test_a_slot_is_created_and_stays(published: Database, name: str) -> None:
    done = create(published, name, "--publication", "p", "--two-phase", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    slot = seen(published, name)
    assert document == {
        "name": name,
        "publication": "p",
        "consistent_point": str(slot.confirmed_flush_lsn),
        "failover": False,
        "two_phase": True,
    }
    assert (slot.plugin, slot.temporary, slot.two_phase) == ("pgoutput", False, True)
    assert f"slot {name} keeps WAL from now on" in done.stderr
    again = create(published, name, "--publication", "p")
    assert (again.returncode, again.stdout) == (1, "")
    assert "already exists" in again.stderr
    plain = create(published, f"{name}_2", "--publication", "p")
    assert plain.stdout == f"created {name}_2 at {seen(published, f'{name}_2').confirmed_flush_lsn}\n"


def test_failover_needs_17(published: Database, name: str) -> None:
    done = create(published, name, "--publication", "p", "--failover")
    if published.server.version >= 17:
        assert done.returncode == 0
        assert seen(published, name).failover is True
    else:
        assert (done.returncode, done.stdout) == (1, "")
        assert "PostgreSQL 17" in done.stderr
        assert look(published, name) is None


def test_the_publication_comes_first(published: Database, name: str) -> None:
    done = create(published, name, "--publication", "later")
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no publication later" in done.stderr
    assert create(published, name).returncode == 2
    assert create(published, "Bad Name", "--publication", "p").returncode == 2
    assert look(published, name) is None


def test_a_role_that_may_not(published: Database, name: str) -> None:
    published.psql("CREATE ROLE plain LOGIN")
    done = create(published, name, "--publication", "p", user="plain")
    assert done.returncode == 1
    assert "REPLICATION" in done.stderr


def test_the_blocker_is_named_and_an_interrupt_leaves_nothing(published: Database, name: str) -> None:
    with published.connect(application_name="monthly report") as blocker:
        blocker.execute("BEGIN")
        blocker.execute("SELECT pg_current_xact_id()")
        process = subprocess.Popen(
            [sys.executable, "-m", "pgrepl", "slots", "create", name, "--publication", "p", "-d", published.dsn()],
            env={**os.environ, "PGREPL_CONFIG": "", "XDG_CONFIG_HOME": "/nonexistent"},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        line = process.stderr.readline()
        assert f"waits for pid {blocker.info.backend_pid} (postgres, monthly report" in line
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=15)
        assert (process.returncode, out) == (130, "")
        # While the blocker still runs: nobody else would end the walsender's wait.
        eventually(lambda: look(published, name) is None)


def test_a_table_that_changes_meanwhile_is_named(published: Database, name: str) -> None:
    """What was written just then may be decoded with the columns of before."""
    with Beside(published) as beside:
        process = subprocess.Popen(
            [sys.executable, "-m", "pgrepl", "slots", "create", name, "--publication", "p", "-d", published.dsn()],
            env={**os.environ, "PGREPL_CONFIG": "", "XDG_CONFIG_HOME": "/nonexistent"},
            stderr=subprocess.PIPE,
            text=True,
        )
        writer = beside.change("ALTER TABLE t ADD b int", "INSERT INTO t VALUES (1, 2)")
        _, said = process.communicate(timeout=30)
        writer.execute("COMMIT")
    assert process.returncode == 0, said
    assert "warning: public.t changed while the slot was being built" in said
    assert f"hint: 'pgrepl slots drop {name}', and create it again" in said


def test_a_wait_that_is_broken_off_leaves_nothing(database18: Database, name: str) -> None:
    class Enough(Exception):
        pass

    def waiting(_seconds: float) -> None:
        raise Enough

    walsender = Walsender.open(parse(database18.dsn(), "the test"), "test")
    with database18.connect() as blocker:
        blocker.execute("BEGIN")
        blocker.execute("SELECT pg_current_xact_id()")
        try:
            with pytest.raises(Enough):
                create_slot(walsender, name, waiting=waiting)
            eventually(lambda: look(database18, name) is None)
        finally:
            walsender.close()


def test_a_server_without_logical_wal(new_server: NewServer, name: str) -> None:
    server = new_server(18, wal_level="replica")
    walsender = Walsender.open(parse(server.dsn(), "the test"), "test")
    try:
        with pytest.raises(OperationError) as error:
            create_slot(walsender, name)
    finally:
        walsender.close()
    assert error.value.sqlstate == "55000"
