"""Every command that prints JSON has a schema, and prints nothing that is not in it.

A new command needs its schema and a test here that runs it in all the ways in which its output differs: see
docs/json.md. ``tests.command.pgrepl`` holds whatever else it runs to the same schemas.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from pgrepl import schemas as published
from pgrepl.sandbox import account
from pgrepl.sandbox.account import server_account, temporary_directory
from tests import schemas
from tests.command import pgrepl
from tests.contract.commands import context_of, leaves
from tests.servers.database import Database
from tests.tail.running import Tail, run_tail

SHOP = """
CREATE SCHEMA shop;
CREATE TABLE shop.orders (id int PRIMARY KEY, note text, secret text);
CREATE TABLE shop.keyless (a int);
CREATE TABLE shop.parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE shop.parts_1 PARTITION OF shop.parts FOR VALUES FROM (0) TO (10);
CREATE PUBLICATION inserts FOR TABLE shop.orders (id, note) WHERE (id > 0), shop.parts_1 WITH (publish = 'insert');
CREATE PUBLICATION whole FOR TABLES IN SCHEMA public WITH (publish_via_partition_root);
CREATE PUBLICATION everything FOR ALL TABLES WITH (publish = 'insert');
CREATE PUBLICATION nothing;
"""


def json_commands() -> list[str]:
    """The commands that can print JSON."""
    found = []
    for name in leaves():
        for option in context_of(name).command.params:
            choices = option.type.choices if isinstance(option.type, click.Choice) else ()
            if "--format" in option.opts and "json" in choices:
                found.append(name)
    return found


def run(command: str, *arguments: str, database: Database, user: str = "postgres") -> Any:
    """Run a command with --json; its output is checked on the way, and must be there."""
    done = pgrepl(*command.split(), *arguments, "--json", "-d", database.dsn(user))
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def shop(database: Database) -> Database:
    """A shop's database with four publications."""
    database.psql(SHOP)
    return database


@pytest.mark.parametrize("command", json_commands())
def test_every_command_that_prints_json_has_a_schema(command: str) -> None:
    schemas.validator(command)


def test_there_is_no_schema_of_a_command_that_is_gone() -> None:
    assert set(published.names()) <= set(json_commands())


@pytest.mark.parametrize("command", published.names())
def test_every_object_of_a_schema_names_all_its_keys(command: str) -> None:
    for schema in _schemas_below(published.read(command)):
        if "properties" in schema and "type" in schema:
            assert schema["additionalProperties"] is False
            assert set(schema["required"]) <= set(schema["properties"])


def _schemas_below(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        for each in schema.values():
            yield from _schemas_below(each)
    elif isinstance(schema, list):
        for each in schema:
            yield from _schemas_below(each)


def assert_strict(command: str, document: Any, *free: str) -> None:
    """Fail if a key more in any object of a document, or one less, passes; what lies below ``free`` keys may vary."""
    for path in list(_objects(document, free)):
        more = copy.deepcopy(document)
        _at(more, path)["another key"] = 1
        assert not schemas.validator(command).is_valid(more), path


def _objects(value: Any, free: tuple[str, ...], path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        yield path
        for key, below in value.items():
            if key not in free:
                yield from _objects(below, free, (*path, key))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _objects(below, free, (*path, index))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def test_doctor(shop: Database) -> None:
    shop.psql("CREATE ROLE visitor LOGIN")
    assert_strict("doctor", run("doctor", "inserts", database=shop), "evidence")
    run("doctor", "not there", "--role", "nobody", "--slot", "s", database=shop)
    run("doctor", database=shop, user="visitor")
    lost = pgrepl("doctor", "--json", "-d", shop.server.dsn("not_there"))
    assert lost.returncode == 3
    assert json.loads(lost.stdout)["server"]["version"] is None
    assert pgrepl("doctor", "--format", "jsonl", "-d", shop.dsn()).stdout.count("\n") == 1


def test_setup(shop: Database) -> None:
    shop.psql("CREATE ROLE visitor LOGIN")
    arguments = ["pub", "--role", "cdc", "--table", "shop.orders", "--table", "shop.keyless", "--skip-keyless"]
    assert run("setup", *arguments, "--dry-run", database=shop, user="visitor")["needs"]
    assert_strict("setup", run("setup", *arguments, "--yes", database=shop))
    assert run("setup", *arguments, "--yes", database=shop)["needs"] is None


def test_setup_and_teardown_of_a_store(shop: Database) -> None:
    shop.psql("CREATE ROLE visitor LOGIN")
    made = run("setup", "pub", "--table", "shop.orders", "--store", "postgres", "--role", "cdc", "--yes", database=shop)
    assert {"schema", "migrations"} <= {step["step"] for step in made["steps"]}
    arguments = ["pub", "--role", "cdc", "--all"]
    run("teardown", *arguments, "--dry-run", database=shop, user="visitor")
    run("teardown", *arguments, "--dry-run", database=shop)
    assert_strict("teardown", run("teardown", *arguments, "--yes", database=shop))
    assert run("teardown", *arguments, "--yes", database=shop)["needs"] is None


def test_state(shop: Database) -> None:
    shop.psql("CREATE TABLE other (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE other")
    assert pgrepl("migrations", "apply", "--yes", "-d", shop.dsn()).returncode == 0
    empty = run("state show", database=shop)
    assert (empty["tables"], empty["position"]) == ([], None)
    assert run_tail("pub", "--store", "postgres", "--until-lsn", "now", dsn=shop.dsn()).code == 0
    shop.psql("DROP TABLE other CASCADE")
    assert_strict("state show", run("state show", database=shop))
    table = run("state show", database=shop)["tables"][0]
    history = run("state history", str(table["oid"]), database=shop)
    assert_strict("state history", history, "metadata")
    for verb, *words in (
        ("adopt",),
        ("release",),
        ("rollback", str(table["oid"])),
        ("reset", str(table["oid"])),
        ("reset", "--all"),
    ):
        assert_strict(f"state {verb}", run(f"state {verb}", *words, "--dry-run", database=shop))
        assert_strict(f"state {verb}", run(f"state {verb}", *words, "--yes", database=shop))


def test_slots(shop: Database) -> None:
    names = [f"{shop.name}_{kind}" for kind in ("logical", "physical", "gone")]
    with shop.connect() as conn:
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [names[0]])
        conn.execute("SELECT pg_create_physical_replication_slot(%s, true)", [names[1]])
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput', true)", [f"{names[0]}_temporary"])
        found = run("slots list", "--all", database=shop)
        assert {*names[:2], f"{names[0]}_temporary"} <= {slot["name"] for slot in found}
        assert any(slot["holder"] for slot in found)
        assert_strict("slots list", found)
    assert pgrepl("slots", "list", "--format=jsonl", "-d", shop.dsn()).stdout.count("\n") == 1
    planned = run("slots drop", names[0], "--dry-run", database=shop)
    dropped = run("slots drop", *names, "--if-exists", "--yes", database=shop)
    assert {each["status"] for each in [*planned, *dropped]} == {"planned", "missing", "dropped"}
    assert_strict("slots drop", dropped)


def test_publications_list_and_show(shop: Database) -> None:
    found = run("publications list", database=shop)
    assert len(found) == 4
    assert_strict("publications list", found)
    for publication in found:
        assert_strict("publications show", run("publications show", publication["name"], database=shop))
    assert pgrepl("publications", "list", "--format", "jsonl", "-d", shop.dsn()).stdout.count("\n") == 4


def test_publications_coverage(shop: Database) -> None:
    shop.psql("CREATE ROLE visitor LOGIN")
    every = ["shop.orders", "shop.parts", "shop.parts_1", "shop.keyless", "shop.gone"]
    tables = [word for name in every for word in ("--table", name)]
    for name in ("inserts", "everything", "new"):
        for user in ("postgres", "visitor"):
            assert_strict(
                "publications coverage", run("publications coverage", name, *tables, database=shop, user=user)
            )
    ensured = run("publications coverage", "new", "--table", "shop.orders", "--ensure", database=shop)
    assert ensured["applied"]


def test_publications_create_add_and_remove(shop: Database) -> None:
    shop.psql("CREATE ROLE visitor LOGIN")
    changes = [
        ("create", ["pub", "--table", "shop.orders", "--table", "shop.keyless", "--skip-keyless"]),
        ("add", ["pub", "--table", "shop.parts"]),
        ("add", ["pub", "--table", "shop.parts"]),
        ("remove", ["pub", "--table", "shop.orders", "--table", "shop.keyless", "--if-exists"]),
    ]
    for verb, arguments in changes:
        command = f"publications {verb}"
        assert_strict(command, run(command, *arguments, "--dry-run", database=shop, user="visitor"))
        assert_strict(command, run(command, *arguments, "--yes", database=shop))


def test_sandbox_status(tmp_path: Path) -> None:
    absent = json.loads(pgrepl("sandbox", "status", "--json", XDG_DATA_HOME=str(tmp_path)).stdout)
    assert absent["exists"] is False
    home = temporary_directory("pgrepl-test-", server_account())
    try:
        pgrepl("sandbox", "start", XDG_DATA_HOME=str(home))
        status = json.loads(pgrepl("sandbox", "status", "--json", XDG_DATA_HOME=str(home)).stdout)
        assert status["running"] is True
        assert_strict("sandbox status", status)
    finally:
        pgrepl("sandbox", "destroy", "--yes", XDG_DATA_HOME=str(home))
        account.remove_directory(home)


def test_config_show(tmp_path: Path) -> None:
    file = tmp_path / "pgrepl.toml"
    file.write_text('[[databases]]\nname = "one"\npassword = "secret"\nport = 1\ntls = { enabled = true }\n')
    found = json.loads(pgrepl("config", "show", "--json", "-c", str(file)).stdout)
    assert {type(each["value"]) for each in found} == {str, int, bool, type(None)}
    assert_strict("config show", found)


def test_migrations(database: Database) -> None:
    def call(verb: str, *arguments: str) -> Any:
        document = run(f"migrations {verb}", *arguments, database=database)
        assert_strict(f"migrations {verb}", document)
        return document

    assert {each["state"] for each in call("status")["migrations"]} == {"missing"}
    assert call("apply", "--dry-run")["script"]
    assert len(call("apply", "--yes")["done"]) == 3
    database.psql("ALTER TABLE etl._sqlx_migrations RENAME TO away")
    assert len(call("seed", "--yes")["done"]) == 3
    assert call("verify")["differences"] == []
    database.psql("UPDATE etl._sqlx_migrations SET checksum = '\\x00' WHERE version = 20250827000000")
    database.psql("INSERT INTO etl._sqlx_migrations SELECT 1, 'other', now(), true, '\\x01', 0")
    assert {"checksum-mismatch", "unknown"} <= {each["state"] for each in call("status")["migrations"]}
    assert {each["subject"] for each in call("verify")["differences"]} >= {"record"}


def test_all_databases(shop: Database, tmp_path: Path) -> None:
    file = tmp_path / "pgrepl.toml"
    server = shop.server
    entry = f'[[databases]]\nhost = "{server.host}"\nport = {server.port}\nusername = "postgres"\n'
    file.write_text(f'{entry}dbname = "{shop.name}"\n{entry}dbname = "not there"\n')
    done = pgrepl("publications", "show", "inserts", "--all-databases", "--json", "-c", str(file))
    assert done.returncode == 3
    first, second = json.loads(done.stdout)
    assert (first["name"], second) == ("inserts", None)


def test_every_kind_of_line_of_tail(database: Database) -> None:
    origin = f"origin_{database.name}"
    with database.connect() as conn:
        conn.execute("CREATE TABLE t (id int PRIMARY KEY, big text STORAGE EXTERNAL, n numeric)")
        conn.execute("CREATE TABLE f (a int, b text); ALTER TABLE f REPLICA IDENTITY FULL")
        conn.execute("CREATE TABLE k (a int)")
        conn.execute("CREATE PUBLICATION p FOR TABLE t, f; CREATE PUBLICATION i FOR TABLE k WITH (publish = 'insert')")
        conn.execute("INSERT INTO t VALUES (1, repeat('x', 5000), 1.5)")
        with Tail("p,i", "--transactions", "--format", "json", dsn=database.dsn()) as tail:
            tail.until_op("snapshot_end", 3)
            conn.execute(
                "INSERT INTO t VALUES (2, NULL, 'NaN'); INSERT INTO k VALUES (1); INSERT INTO f VALUES (1, 'a')"
            )
            conn.execute("UPDATE t SET n = 2 WHERE id = 1; UPDATE t SET id = 3 WHERE id = 2; UPDATE f SET a = 2")
            conn.execute("DELETE FROM t WHERE id = 3; DELETE FROM f")
            conn.execute(
                r"SELECT pg_logical_emit_message(true, 'p', 'text'), pg_logical_emit_message(false, 'p', '\xff'::bytea)"
            )
            conn.execute("ALTER TABLE t ADD more int; ALTER TABLE t RENAME n TO m; INSERT INTO t VALUES (4)")
            conn.execute(
                "SELECT pg_replication_origin_create(%s), pg_replication_origin_session_setup(%s)", [origin] * 2
            )
            conn.execute("INSERT INTO k VALUES (2); DELETE FROM t")
            conn.execute("TRUNCATE t, f RESTART IDENTITY")
            tail.until_op("truncate")
            done = tail.stop()
        conn.execute("SELECT pg_replication_origin_session_reset(), pg_replication_origin_drop(%s)", [origin])
    events = schemas.parse("tail", done.stdout, lines=True)
    assert {event["op"] for event in events} == {each["properties"]["op"]["const"] for each in _event_schemas()}
    keys = {key for event in events for key in event}
    assert {key for each in _event_schemas() for key in each["properties"]} == keys
    for event in {event["op"]: event for event in events}.values():
        assert_strict("tail", event, "key", "new", "old")


def _event_schemas() -> list[dict[str, Any]]:
    schema = published.read("tail")
    return [schema["$defs"][each["$ref"].rpartition("/")[2]] for each in schema["oneOf"]]
