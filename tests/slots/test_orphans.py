"""Slots of pipelines that nobody knows: found by name, told from those that are in use, and dropped with care."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pgrepl.names import apply_slot, pipeline_id, signed_id, table_sync_slot
from tests.command import eventually, pgrepl, pgrepl_at_terminal
from tests.servers.database import Database, fresh_database
from tests.slots.conftest import configuration, keep_state, look, make, reader, seen

# Its id is above 2^63, which the state table holds as a negative number.
HIGH = pipeline_id("db1.example.com", "orders")


def slot_of(database: Database) -> str:
    """Name an apply slot that no other test uses."""
    return apply_slot(pipeline_id("gone.example.com", database.name))


def orphans(database: Database, *arguments: str, user: str = "postgres") -> Any:
    return pgrepl("slots", "drop", "--orphans", *arguments, "-d", database.dsn(user))


def statuses(done: Any) -> dict[str, str]:
    return {result["name"]: result["status"] for result in json.loads(done.stdout)}


def test_orphans_are_dropped_and_nothing_else(database: Database, name: str, tmp_path: Path) -> None:
    orphan = slot_of(database)
    sync = table_sync_slot(pipeline_id("gone.example.com", database.name), 16384)
    configured = apply_slot(pipeline_id("here.example.com", database.name))
    recorded = apply_slot(pipeline_id("db1.example.com", database.name))
    used = apply_slot(pipeline_id("used.example.com", database.name))
    for slot in (orphan, sync, configured, recorded, used, name):
        make(database, slot)
    keep_state(database, signed_id(pipeline_id("db1.example.com", database.name)))
    config = configuration(tmp_path, f"here.example.com/{database.name}")
    with reader(database, used):
        eventually(lambda: seen(database, used).active)
        planned = orphans(database, "--dry-run", "--json", "-c", config)
        assert statuses(planned) == {orphan: "planned", sync: "planned"}
        assert look(database, orphan) is not None
        script = orphans(database, "--dry-run", "-c", config).stdout
        assert script.count("pg_drop_replication_slot") == 2
        done = orphans(database, "--yes", "-c", config)
        again = orphans(database, "--yes", "-c", config)
    assert (done.returncode, done.stdout) == (0, f"dropped {orphan}\ndropped {sync}\n")
    assert look(database, orphan) is None
    for slot in (configured, recorded, used, name):
        assert look(database, slot) is not None
    assert (again.returncode, again.stdout) == (0, "")
    assert "no orphaned slot" in again.stderr


def test_an_id_above_2_63_is_known_by_its_negative_row(database18: Database) -> None:
    make(database18, apply_slot(HIGH))
    keep_state(database18, signed_id(HIGH))
    assert signed_id(HIGH) < 0
    assert orphans(database18, "--yes", "--json").stdout.strip() == "[]"
    assert look(database18, apply_slot(HIGH)) is not None


def test_without_knowledge_it_refuses(database18: Database, tmp_path: Path) -> None:
    orphan = slot_of(database18)
    make(database18, orphan)
    empty = configuration(tmp_path)
    for arguments in (["--yes"], ["--dry-run"], ["--yes", "-c", empty]):
        done = orphans(database18, *arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert "cannot be told" in done.stderr
    assert look(database18, orphan) is not None


def test_state_that_cannot_all_be_read_is_no_knowledge(database18: Database, tmp_path: Path) -> None:
    orphan = slot_of(database18)
    make(database18, orphan)
    keep_state(database18)
    database18.psql(
        "CREATE ROLE janitor LOGIN REPLICATION; CREATE ROLE half LOGIN REPLICATION;"
        "GRANT USAGE ON SCHEMA etl TO half; GRANT SELECT ON etl.replication_state TO half;"
        "ALTER TABLE etl.replication_state ENABLE ROW LEVEL SECURITY"
    )
    config = configuration(tmp_path, "here.example.com/other")
    for user in ("janitor", "half"):
        done = orphans(database18, "--yes", "-c", config, user=user)
        assert (done.returncode, done.stdout) == (2, ""), user
        assert "etl.replication_state" in done.stderr
    assert look(database18, orphan) is not None
    database18.psql("ALTER TABLE etl.replication_state DISABLE ROW LEVEL SECURITY")
    assert orphans(database18, "--yes", user="half").stdout == f"dropped {orphan}\n"


def test_slots_of_other_databases_are_listed_only(database18: Database) -> None:
    keep_state(database18)
    with fresh_database(database18.server) as other:
        orphan = slot_of(other)
        make(other, orphan)
        done = orphans(database18, "--yes", "--json")
        table = orphans(database18, "--yes")
        assert look(other, orphan) is not None
    assert statuses(done) == {orphan: "elsewhere"}
    assert f"slot {orphan} of database {other.name}" in done.stderr
    assert (table.returncode, table.stdout) == (0, "")


@pytest.mark.parametrize("more", [["x"], ["--terminate"]])
def test_orphans_go_with_no_name_and_no_terminate(database18: Database, more: list[str]) -> None:
    assert orphans(database18, "--yes", *more).returncode == 2


def test_an_orphan_is_typed_before_it_goes(database18: Database) -> None:
    orphan = slot_of(database18)
    make(database18, orphan)
    keep_state(database18)
    assert orphans(database18).returncode == 2
    no = pgrepl_at_terminal("slots", "drop", "--orphans", "-d", database18.dsn(), typed="no\n")
    assert (no.returncode, no.stdout) == (1, "")
    yes = pgrepl_at_terminal("slots", "drop", "--orphans", "-d", database18.dsn(), typed=f"{orphan}\n")
    assert (yes.returncode, yes.stdout) == (0, f"dropped {orphan}\n")


def test_list_calls_an_orphan_by_its_name(database18: Database, tmp_path: Path) -> None:
    orphan = slot_of(database18)
    make(database18, orphan)

    def verdict(*arguments: str, user: str = "postgres", **environment: str) -> dict[str, str]:
        done = pgrepl("slots", "list", "--json", "-d", database18.dsn(user), *arguments, **environment)
        (slot,) = json.loads(done.stdout)
        found: dict[str, str] = slot["verdict"]
        return found

    # Nothing is known of pipelines, so that it is one slot among others.
    assert "orphaned" not in verdict()["text"]
    keep_state(database18)
    assert verdict()["level"] == "warn"
    assert "orphaned: its pipeline is neither configured nor in etl.replication_state" in verdict()["text"]
    database18.psql("CREATE ROLE onlooker LOGIN")
    assert "orphaned" not in verdict(user="onlooker")["text"]
    config = configuration(tmp_path, f"gone.example.com/{database18.name}")
    assert "orphaned" not in verdict("-c", config)["text"]
    # Whoever finds a broken file beside him still gets the list, without what the file might have said.
    wrong = tmp_path / "pgrepl" / "pgrepl.toml"
    wrong.parent.mkdir()
    wrong.write_text("[[databases]", encoding="utf-8")
    assert "orphaned" not in verdict(XDG_CONFIG_HOME=str(tmp_path))["text"]
