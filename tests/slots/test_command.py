"""``pgrepl slots`` as a process: what is shown, and how hard it is to drop the wrong thing."""

from __future__ import annotations

import json

import pytest

from tests.command import eventually, pgrepl, pgrepl_at_terminal
from tests.servers.database import Database, fresh_database
from tests.slots.conftest import look, make, reader
from tests.slots.test_slots import KEYS


def test_list_shows_the_logical_slots_of_this_database(database: Database, name: str) -> None:
    make(database, name)
    done = pgrepl("slots", "list", "-d", database.dsn(), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    (slot,) = json.loads(done.stdout)
    assert list(slot) == KEYS
    assert slot["name"] == name
    table = pgrepl("slots", "list", "-d", database.dsn()).stdout
    # Through a pipe a slot is a line, whatever its length.
    (line,) = [line for line in table.splitlines() if name in line]
    assert "reserved" in line
    assert "inactive" in line
    assert "\x1b" not in table


def test_list_all_shows_other_databases_and_physical_slots(database18: Database, name: str) -> None:
    make(database18, name)
    with fresh_database(database18.server) as other, other.connect() as conn:
        conn.execute("SELECT pg_create_physical_replication_slot(%s)", [f"{name}_p"])
        try:
            few = pgrepl("slots", "list", "-d", other.dsn(), "--json")
            everything = pgrepl("slots", "list", "--all", "-d", other.dsn(), "--json")
            table = pgrepl("slots", "list", "--all", "-d", other.dsn()).stdout
        finally:
            conn.execute("SELECT pg_drop_replication_slot(%s)", [f"{name}_p"])
    assert json.loads(few.stdout) == []
    assert f"database {other.name} has no logical slot" in few.stderr
    assert {name, f"{name}_p"} <= {slot["name"] for slot in json.loads(everything.stdout)}
    assert f"{name}_p physical" in " ".join(table.split())
    assert database18.name in table


def test_an_etl_slot_is_told_by_its_name(database18: Database) -> None:
    name = "supabase_etl_apply_18446744073709551615"
    make(database18, name)
    line = pgrepl("slots", "list", "-d", database18.dsn(), "--format", "jsonl").stdout
    assert '"pipeline_id":18446744073709551615' in line
    assert json.loads(line)["kind"] == "apply"


def test_list_of_nothing_is_an_empty_stdout(database18: Database) -> None:
    done = pgrepl("slots", "list", "-d", database18.dsn())
    assert (done.returncode, done.stdout) == (0, "")


def test_drop_shows_what_is_lost_and_says_what_it_did(database: Database, name: str) -> None:
    make(database, name)
    make(database, f"{name}_2")
    done = pgrepl("slots", "drop", name, f"{name}_2", "--yes", "-d", database.dsn())
    assert (done.returncode, done.stdout) == (0, f"dropped {name}\ndropped {name}_2\n")
    assert "loses its place at" in done.stderr
    assert "frees" in done.stderr
    assert look(database, name) is None


def test_drop_prints_json(database18: Database, name: str) -> None:
    make(database18, name)
    arguments = ["slots", "drop", name, "gone", "--if-exists", "--yes", "--json", "-d", database18.dsn()]
    results = json.loads(pgrepl(*arguments).stdout)
    assert [list(result) for result in results] == [
        ["name", "status", "database", "retained_bytes", "lag_bytes", "terminated"]
    ] * 2
    assert {result["name"]: result["status"] for result in results} == {name: "dropped", "gone": "missing"}


def test_without_a_terminal_only_yes_drops(database18: Database, name: str) -> None:
    make(database18, name)
    for arguments in ([name], [], ["--yes"]):
        done = pgrepl("slots", "drop", *arguments, "-d", database18.dsn())
        assert (done.returncode, done.stdout) == (2, "")
        assert "hint: " in done.stderr
    assert look(database18, name) is not None


def test_one_slot_that_is_missing_keeps_all(database18: Database, name: str) -> None:
    make(database18, name)
    done = pgrepl("slots", "drop", name, "gone", "--yes", "-d", database18.dsn())
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no slot gone" in done.stderr
    assert look(database18, name) is not None
    assert pgrepl("slots", "drop", "gone", "--if-exists", "--yes", "-d", database18.dsn()).returncode == 0


def test_a_slot_in_use_needs_terminate(database: Database, name: str) -> None:
    make(database, name)
    with reader(database, name) as walsender:
        refused = pgrepl("slots", "drop", name, "--yes", "-d", database.dsn())
        assert refused.returncode == 1
        assert f"pid {walsender.pid} somebody" in refused.stderr
        assert "--terminate" in refused.stderr
        assert look(database, name) is not None
        done = pgrepl("slots", "drop", name, "--yes", "--terminate", "--json", "-d", database.dsn())
        assert json.loads(done.stdout)[0]["terminated"] == [walsender.pid]
    assert done.returncode == 0
    assert look(database, name) is None


def test_dry_run_prints_sql_that_does_it(database: Database, name: str) -> None:
    make(database, name)
    with reader(database, name):
        done = pgrepl("slots", "drop", name, "--terminate", "--dry-run", "-d", database.dsn())
        assert done.returncode == 0
        assert look(database, name) is not None
        planned = pgrepl("slots", "drop", name, "--terminate", "--dry-run", "--json", "-d", database.dsn())
        assert json.loads(planned.stdout)[0]["status"] == "planned"
        database.psql(done.stdout)
    assert look(database, name) is None


def test_the_name_is_typed_before_a_usable_slot_goes(database18: Database, name: str) -> None:
    make(database18, name)
    for typed in ("\n", "yes\n", f"{name}_2\n"):
        done = pgrepl_at_terminal("slots", "drop", name, "-d", database18.dsn(), typed=typed)
        assert (done.returncode, done.stdout) == (1, "")
        assert "nothing was dropped" in done.stderr
    assert look(database18, name) is not None
    done = pgrepl_at_terminal("slots", "drop", name, "-d", database18.dsn(), typed=f"{name}\n")
    assert (done.returncode, done.stdout) == (0, f"dropped {name}\n")


def test_one_of_several_that_is_not_confirmed_keeps_all(database18: Database, name: str) -> None:
    make(database18, name)
    make(database18, f"{name}_2")
    done = pgrepl_at_terminal("slots", "drop", name, f"{name}_2", "-d", database18.dsn(), typed=f"{name}\nno\n")
    assert done.returncode == 1
    assert look(database18, name) is not None


def test_without_a_name_the_inactive_slots_are_offered(database18: Database, name: str) -> None:
    make(database18, f"{name}_a")
    make(database18, f"{name}_b")
    make(database18, f"{name}_used")
    with reader(database18, f"{name}_used"):
        eventually(lambda: (slot := look(database18, f"{name}_used")) is not None and slot.active)
        nothing = pgrepl_at_terminal("slots", "drop", "-d", database18.dsn(), typed="\n")
        done = pgrepl_at_terminal("slots", "drop", "-d", database18.dsn(), typed=f"2\n{name}_b\n")
    assert nothing.returncode == 1
    assert f"{name}_used" not in done.stderr
    assert (done.returncode, done.stdout) == (0, f"dropped {name}_b\n")
    assert look(database18, f"{name}_a") is not None


@pytest.mark.parametrize("command", ["list", "drop"])
def test_exit_3_without_a_connection(database18: Database, command: str) -> None:
    names = ["x", "--yes"] if command == "drop" else []
    done = pgrepl("slots", command, *names, "-d", database18.server.dsn("not_there"))
    assert (done.returncode, done.stdout) == (3, "")
    assert "not_there" in done.stderr
