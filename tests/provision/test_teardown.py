"""Teardown after setup leaves the catalog as it was, and takes nothing that setup did not give."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pgrepl.cli import main
from pgrepl.names import apply_slot, pipeline_id, signed_id, table_sync_slot
from tests.provision.shop import SHOP, Setup, catalog, scalar
from tests.provision.test_state import start
from tests.servers.database import Database, fresh_database
from tests.servers.server import Server

STORES = [[], ["--store", "memory"], ["--store", "postgres"], ["--store", "bookmarks"]]
SELECTIONS = [["--all-tables"], ["--in-schema", "shop"], ["--table", "shop.orders"], ["--literally-all"]]


def dump(database: Database) -> str:
    """Everything in the database and every role, as the server's own tools write it down."""
    server = database.server
    text = ""
    for program, arguments in (("pg_dump", ["-s", "-d", database.dsn()]), ("pg_dumpall", ["-r", "-d", database.dsn()])):
        done = subprocess.run(
            [server.bindir / program, *arguments],
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=True,
        )
        # A new random word each time.
        text += "".join(
            line for line in done.stdout.splitlines(True) if not line.startswith(("\\restrict", "\\unrest"))
        )
    return text


def own_id(database: Database) -> int:
    return pipeline_id("localhost", database.name)


@pytest.mark.parametrize("store", STORES, ids=lambda store: store[-1] if store else "none")
@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda selection: selection[0])
def test_nothing_is_left(shop: Database, setup: Setup, teardown: Setup, store: list[str], selection: list[str]) -> None:
    before = catalog(shop), dump(shop)
    assert setup(shop, "pub", "--role", "cdc", *selection, *store).code == 0
    assert dump(shop) != before[1]
    with shop.connect() as conn:
        for name in (apply_slot(own_id(shop)), table_sync_slot(own_id(shop), 1)):
            conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [name])
    outcome = teardown(shop, "pub", "--role", "cdc", "--all")
    assert outcome.code == 0, outcome.err
    assert {step["status"] for step in outcome.document["steps"]} == {"dropped"}
    assert (catalog(shop), dump(shop)) == before
    again = teardown(shop, "pub", "--role", "cdc", "--all")
    assert (again.code, again.document["steps"]) == (0, [])


@pytest.mark.parametrize("store", ["memory", "postgres", "bookmarks"])
def test_nothing_is_left_by_the_owner(owned_shop: Database, setup: Setup, teardown: Setup, store: str) -> None:
    owned_shop.psql("ALTER ROLE dba REPLICATION")
    before = catalog(owned_shop), dump(owned_shop)
    made = setup(owned_shop, "pub", "--role", "cdc", "--all-tables", "--store", store, user="dba")
    assert made.code == (1 if store == "postgres" else 0)
    outcome = teardown(owned_shop, "pub", "--role", "cdc", "--all", user="dba")
    assert outcome.code == 0, outcome.out
    assert (catalog(owned_shop), dump(owned_shop)) == before


def test_what_the_owner_may_not_take_becomes_a_script(owned_shop: Database, setup: Setup, teardown: Setup) -> None:
    before = catalog(owned_shop), dump(owned_shop)
    setup(owned_shop, "pub", "--role", "cdc", "--all-tables", "--store", "postgres", user="dba")
    setup(owned_shop, "pub", "--role", "cdc", "--all-tables", "--store", "postgres")
    outcome = teardown(owned_shop, "pub", "--role", "cdc", "--all", user="dba")
    assert outcome.code == 1
    assert "DROP EVENT TRIGGER" in outcome.document["needs"]
    owned_shop.psql(outcome.document["needs"])
    assert teardown(owned_shop, "pub", "--role", "cdc", "--all", user="dba").code == 0
    assert (catalog(owned_shop), dump(owned_shop)) == before


@pytest.mark.parametrize("store", ["postgres", "bookmarks"])
def test_dry_run_by_psql_gives_what_the_command_gives(
    shop: Database, setup: Setup, teardown: Setup, store: str
) -> None:
    before = catalog(shop)
    assert setup(shop, "pub", "--role", "cdc", "--all-tables", "--store", store).code == 0
    made = catalog(shop)
    outcome = teardown(shop, "pub", "--role", "cdc", "--all", "--dry-run", yes=False, as_json=False)
    assert outcome.code == 0
    assert catalog(shop) == made
    shop.psql(outcome.out)
    assert catalog(shop) == before


ROWS = """
INSERT INTO etl.replication_state (pipeline_id, table_id, state) VALUES ({id}, 1, 'init');
UPDATE etl.replication_state SET is_current = false WHERE pipeline_id = {id};
INSERT INTO etl.replication_state (pipeline_id, table_id, state, prev)
SELECT {id}, 1, 'ready', id FROM etl.replication_state WHERE pipeline_id = {id};
INSERT INTO etl.table_schemas (pipeline_id, table_id, schema_name, table_name) VALUES ({id}, 1, 'shop', 'orders');
INSERT INTO etl.table_columns (table_schema_id, column_name, column_type, type_modifier, nullable, ordinal_position)
SELECT id, 'id', 'INT4', -1, false, 1 FROM etl.table_schemas WHERE pipeline_id = {id};
INSERT INTO etl.destination_tables_metadata
    (pipeline_id, table_id, destination_table_id, snapshot_id, schema_status, replication_mask)
VALUES ({id}, 1, 'x', '0/0', 'applied', '\\x01');
INSERT INTO etl.pgrepl_pipelines (pipeline_id, slot_name, publications, system_identifier, timeline, position)
VALUES ({id}, 'slot_of_{name}', '{{{publication}}}', '7', 1, '0/1');
"""


def rows_of(database: Database, pipeline: int) -> list[int]:
    tables = ["replication_state", "table_schemas", "destination_tables_metadata", "pgrepl_pipelines"]
    with database.connect() as conn:
        return [scalar(conn, f"SELECT count(*) FROM etl.{name} WHERE pipeline_id = %s", pipeline) for name in tables]


def test_rows_of_the_pipeline_go_and_those_of_others_stay(shop: Database, setup: Setup, teardown: Setup) -> None:
    assert setup(shop, "pub", "--role", "cdc", "--all-tables", "--store", "postgres").code == 0
    own, named, other = signed_id(own_id(shop)), -77, -5252815797640725217
    shop.psql(ROWS.format(id=own, name="own", publication="pub"))
    shop.psql(ROWS.format(id=named, name="named", publication="x,pub"))
    shop.psql(ROWS.format(id=other, name="other", publication="else"))
    with shop.connect() as conn:
        for slot in ("slot_of_named", "slot_of_other", apply_slot(other % 2**64)):
            conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
    outcome = teardown(shop, "pub")
    assert outcome.code == 0, outcome.err
    assert rows_of(shop, own) == rows_of(shop, named) == [0, 0, 0, 0]
    assert rows_of(shop, other) == [2, 1, 1, 1]
    assert catalog(shop)["slots"] == [("slot_of_other",), (apply_slot(other % 2**64),)]
    assert catalog(shop)["publications"] == []
    start(shop)


def test_database_s_pipeline_of_another_publication_stays(shop18: Database, setup: Setup, teardown: Setup) -> None:
    assert setup(shop18, "pub", "--role", "cdc", "--all-tables", "--store", "postgres").code == 0
    assert setup(shop18, "second", "--table", "shop.orders").code == 0
    own = signed_id(own_id(shop18))
    shop18.psql(ROWS.format(id=own, name="own", publication="pub"))
    with shop18.connect() as conn:
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [apply_slot(own)])
    assert teardown(shop18, "second").code == 0
    assert rows_of(shop18, own) == [2, 1, 1, 1]
    assert catalog(shop18)["slots"] == [(apply_slot(own),)]


def test_owner_of_the_database_sees_what_belongs_to_the_role(
    owned_shop: Database, setup: Setup, teardown: Setup
) -> None:
    """The table of pipelines is the role's own, and the owner is no member of it."""
    owned_shop.psql("ALTER ROLE dba REPLICATION")
    setup(owned_shop, "pub", "--role", "cdc", "--all-tables", "--store", "postgres", user="dba")
    assert setup(owned_shop, "second", "--table", "shop.orders", user="dba").code == 0
    own = signed_id(own_id(owned_shop))
    owned_shop.psql(ROWS.format(id=own, name="own", publication="pub"))
    before = catalog(owned_shop)
    assert teardown(owned_shop, "second", user="dba").code == 0
    assert rows_of(owned_shop, own) == [2, 1, 1, 1]
    outcome = teardown(owned_shop, "pub", user="dba")
    assert outcome.code == 0, outcome.out
    assert rows_of(owned_shop, own) == [0, 0, 0, 0]
    assert catalog(owned_shop)["roles"] == before["roles"]


def test_thousand_tables_in_few_statements(shop18: Database, setup: Setup, teardown: Setup) -> None:
    shop18.psql(
        "SELECT format('CREATE TABLE shop.t%s (id int PRIMARY KEY)', n) FROM generate_series(1, 1000) n \\gexec"
    )
    assert setup(shop18, "pub", "--role", "cdc", "--all-tables").code == 0
    outcome = teardown(shop18, "pub", "--role", "cdc")
    assert outcome.code == 0
    assert len(outcome.statements) == 5


BOOKMARKS = ["pub", "--role", "cdc", "--table", "shop.orders", "--store", "bookmarks"]


def test_bookmarks_of_the_configuration_go(shop18: Database, tmp_path: Path) -> None:
    server, file = shop18.server, tmp_path / "pgrepl.toml"
    file.write_text(
        f'[pipeline]\nstore = "bookmarks"\nstate_table = "marks"\n'
        f'[[databases]]\nhost = "127.0.0.1"\nport = {server.port}\ndbname = "{shop18.name}"\n'
        f'password = "{server.password}"\n',
        encoding="utf-8",
    )
    before = catalog(shop18), dump(shop18)
    assert main.run(["setup", "pub", "-c", str(file), "--role", "cdc", "--table", "shop.orders", "--yes"]) == 0
    assert "marks" in {name for name, *_ in catalog(shop18)["relations"]}
    assert main.run(["teardown", "pub", "-c", str(file), "--role", "cdc", "--all", "--yes"]) == 0
    assert (catalog(shop18), dump(shop18)) == before


@pytest.mark.parametrize("by_psql", [False, True])
def test_bookmarks_in_a_database_of_their_own_go(
    shop18: Database, setup: Setup, teardown: Setup, by_psql: bool
) -> None:
    with fresh_database(shop18.server) as other:
        # Then setup grants USAGE on it, too.
        other.psql("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
        before = catalog(shop18), dump(shop18), catalog(other), dump(other)
        there = ["--state-dsn", other.dsn(), "--state-table", "book2"]
        assert setup(shop18, *BOOKMARKS, *there).code == 0
        without = teardown(shop18, "pub", "--role", "cdc", "--all", "--dry-run", yes=False)
        assert ("skipped", "cdc") in without.steps("role")
        arguments = ["pub", "--role", "cdc", "--all", *there]
        if by_psql:
            shop18.psql(teardown(shop18, *arguments, "--dry-run", yes=False, as_json=False).out)
        else:
            outcome = teardown(shop18, *arguments)
            assert outcome.code == 0, outcome.err
            assert {step["status"] for step in outcome.document["steps"]} == {"dropped"}
        assert (catalog(shop18), dump(shop18), catalog(other), dump(other)) == before


def test_bookmarks_in_a_database_of_their_own_go_by_the_owner(
    owned_shop: Database, setup: Setup, teardown: Setup
) -> None:
    """Who is no superuser and no member of the role."""
    owned_shop.psql("ALTER ROLE dba REPLICATION")
    with fresh_database(owned_shop.server) as other:
        other.psql(f"ALTER DATABASE {other.name} OWNER TO dba")
        before = catalog(owned_shop), dump(owned_shop), catalog(other), dump(other)
        there = ["--state-dsn", other.dsn("dba")]
        made = setup(owned_shop, *BOOKMARKS, *there, user="dba")
        assert made.code == 0, made.out
        outcome = teardown(owned_shop, "pub", "--role", "cdc", "--all", *there, user="dba")
        assert outcome.code == 0, outcome.out
        assert (catalog(owned_shop), dump(owned_shop), catalog(other), dump(other)) == before


def test_failure_in_the_second_database_says_what_is_gone(shop18: Database, setup: Setup, teardown: Setup) -> None:
    with fresh_database(shop18.server) as other:
        there = ["--state-dsn", other.dsn()]
        assert setup(shop18, *BOOKMARKS, *there).code == 0
        shop18.psql("""
            CREATE FUNCTION public.refuse() RETURNS event_trigger LANGUAGE plpgsql
            AS $$ BEGIN RAISE 'not today'; END $$;
            CREATE EVENT TRIGGER refuse ON ddl_command_end WHEN tag IN ('DROP PUBLICATION')
            EXECUTE FUNCTION public.refuse()""")
        outcome = teardown(shop18, "pub", "--role", "cdc", "--all", *there)
        assert outcome.code == 1
        assert f"what was to go in database {other.name} is gone" in outcome.err
        shop18.psql("DROP EVENT TRIGGER refuse")
        assert teardown(shop18, "pub", "--role", "cdc", "--all", *there).code == 0
        assert "cdc" not in {name for name, *_ in catalog(shop18)["roles"]}


def test_role_with_more_in_the_database_of_the_bookmarks_stays(shop18: Database, setup: Setup, teardown: Setup) -> None:
    with fresh_database(shop18.server) as other:
        there = ["--state-dsn", other.dsn()]
        assert setup(shop18, *BOOKMARKS, *there).code == 0
        other.psql(
            "CREATE TABLE more (id int); GRANT SELECT ON more TO cdc; INSERT INTO faucet_state VALUES ('a', '1')"
        )
        outcome = teardown(shop18, "pub", "--role", "cdc", "--all", *there)
        assert outcome.code == 0, outcome.err
        reasons = {step["object"]: step["reason"] for step in outcome.document["steps"] if step["status"] == "skipped"}
        assert reasons == {
            "public.faucet_state": "stays: it holds 1 bookmark of others",
            "cdc": f"stays: it has SELECT on public.more in database {other.name}",
        }
        assert "role cdc stays" in outcome.err
        with other.connect("cdc") as conn:
            assert scalar(conn, "SELECT count(*) FROM faucet_state") == 1


def test_bookmarks_on_another_server_go(shop18: Database, server16: Server, setup: Setup, teardown: Setup) -> None:
    """The role there is not setup's, and loses only what it was given."""
    with fresh_database(server16) as other:
        other.psql("CREATE ROLE cdc LOGIN")
        before = catalog(shop18), dump(shop18), catalog(other), dump(other)
        there = ["--state-dsn", other.dsn()]
        made = setup(shop18, *BOOKMARKS, *there)
        assert made.code == 0, made.err
        outcome = teardown(shop18, "pub", "--role", "cdc", "--all", *there)
        assert outcome.code == 0, outcome.err
        assert (catalog(shop18), dump(shop18), catalog(other), dump(other)) == before


def test_script_of_a_dry_run_says_what_stays(shop18: Database, setup: Setup, teardown: Setup) -> None:
    assert setup(shop18, *BOOKMARKS).code == 0
    shop18.psql("GRANT pg_monitor TO cdc")
    outcome = teardown(shop18, "pub", "--role", "cdc", "--dry-run", yes=False, as_json=False)
    assert "DROP ROLE" not in outcome.out
    assert "-- role cdc stays: it is a member of pg_monitor\n" in outcome.out
    assert "-- state public.faucet_state stays: --all would take it, too\n" in outcome.out


def test_bookmarks_of_others_stay(shop18: Database, setup: Setup, teardown: Setup) -> None:
    assert setup(shop18, "pub", "--role", "cdc", "--table", "shop.orders", "--store", "bookmarks").code == 0
    slot = apply_slot(own_id(shop18))
    shop18.psql(f"""
        SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput');
        INSERT INTO faucet_state VALUES ('pgrepl::{slot}', '1'), ('orders::cdc', '2'), ('pgrepl::x', '3')""")
    assert teardown(shop18, "pub", "--all").code == 0
    with shop18.connect() as conn:
        assert conn.execute("SELECT key FROM faucet_state ORDER BY 1").fetchall() == [("orders::cdc",), ("pgrepl::x",)]


def test_slot_in_use_is_refused(shop: Database, setup: Setup, teardown: Setup) -> None:
    assert setup(shop, "pub", "--role", "cdc", "--all-tables").code == 0
    slot = apply_slot(own_id(shop))
    before = catalog(shop)
    with shop.connect(application_name="some reader") as conn:
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput', true)", [slot])
        outcome = teardown(shop, "pub", "--role", "cdc", "--all")
        assert outcome.code == 1
        assert f"slot {slot} is in use by process {conn.info.backend_pid} (some reader)" in outcome.err
    assert {**catalog(shop), "slots": []} == before


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("CREATE TABLE shop.own (id int PRIMARY KEY); ALTER TABLE shop.own OWNER TO cdc", "it owns shop.own"),
        ("GRANT INSERT ON shop.items TO cdc", "it has INSERT, SELECT on shop.items"),
        ("CREATE TABLE public.more (id int); GRANT SELECT ON public.more TO cdc", "it has SELECT on public.more"),
        ("GRANT UPDATE (id) ON shop.secrets TO cdc", "it has UPDATE on shop.secrets.id"),
        ("ALTER ROLE cdc CREATEDB", "attributes that setup does not give"),
        ("GRANT pg_monitor TO cdc", "it is a member of pg_monitor"),
        ("CREATE ROLE clerk; GRANT cdc TO clerk", "clerk is a member of it"),
        ("GRANT CONNECT ON DATABASE postgres TO cdc", "postgres"),
        ("ALTER DEFAULT PRIVILEGES IN SCHEMA shop GRANT INSERT ON TABLES TO cdc", "it has default privileges"),
        (
            "CREATE FUNCTION shop.f() RETURNS int RETURN 1; GRANT EXECUTE ON FUNCTION shop.f() TO cdc",
            "it has EXECUTE on shop.f()",
        ),
    ],
)
def test_role_that_is_more_than_setup_made_stays(
    shop18: Database, setup: Setup, teardown: Setup, more: str, why: str
) -> None:
    assert setup(shop18, "pub", "--role", "cdc", "--in-schema", "shop").code == 0
    shop18.psql(more)
    try:
        outcome = teardown(shop18, "pub", "--role", "cdc", as_json=False)
        assert outcome.code == 0, outcome.err
        assert why in outcome.out
        assert "cdc" in {name for name, *_ in catalog(shop18)["roles"]}
        assert not catalog(shop18)["publications"]
        with shop18.connect() as conn:
            assert not scalar(conn, "SELECT has_table_privilege('cdc', 'shop.orders', 'SELECT')")
    finally:
        shop18.psql("REVOKE CONNECT ON DATABASE postgres FROM cdc")


def test_role_of_two_publications_goes_with_the_second(shop: Database, setup: Setup, teardown: Setup) -> None:
    before = catalog(shop)
    assert setup(shop, "first", "--role", "cdc", "--table", "shop.orders", "--table", "shop.items").code == 0
    assert setup(shop, "second", "--role", "cdc", "--table", "shop.orders", "--table", "shop.secrets").code == 0
    outcome = teardown(shop, "first", "--role", "cdc")
    assert outcome.code == 0, outcome.err
    with shop.connect("cdc") as conn:
        for table, readable in (("orders", True), ("secrets", True), ("items", False)):
            assert scalar(conn, "SELECT has_table_privilege(%s, 'SELECT')", f"shop.{table}") is readable
    assert teardown(shop, "second", "--role", "cdc").code == 0
    assert catalog(shop) == before


def test_default_privileges_of_others_stay(shop18: Database, setup: Setup, teardown: Setup) -> None:
    shop18.psql("CREATE ROLE other; ALTER DEFAULT PRIVILEGES IN SCHEMA shop GRANT SELECT ON TABLES TO other")
    before = catalog(shop18)
    assert setup(shop18, "pub", "--role", "cdc", "--in-schema", "shop").code == 0
    shop18.psql("CREATE TABLE shop.later (id int PRIMARY KEY)")
    assert teardown(shop18, "pub", "--role", "cdc").code == 0
    shop18.psql("DROP TABLE shop.later")
    assert catalog(shop18) == before


def test_schema_etl_with_something_else_in_it_stays(shop18: Database, setup: Setup, teardown: Setup) -> None:
    assert setup(shop18, "pub", "--role", "cdc", "--all-tables", "--store", "postgres").code == 0
    shop18.psql("CREATE TABLE etl.mine (id int)")
    outcome = teardown(shop18, "pub", "--role", "cdc", "--all")
    assert outcome.code == 0
    assert "etl.mine is not of setup's making" in outcome.err
    with shop18.connect() as conn:
        rows = conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'etl'").fetchall()
    assert rows == [("mine",)]


def test_without_all_the_state_s_owner_stays(shop18: Database, setup: Setup, teardown: Setup) -> None:
    assert setup(shop18, "pub", "--role", "cdc", "--all-tables", "--store", "postgres").code == 0
    outcome = teardown(shop18, "pub", "--role", "cdc", as_json=False)
    assert outcome.code == 0
    assert "it owns etl.pgrepl_pipelines" in outcome.out
    start_without_tables = catalog(shop18)
    assert start_without_tables["functions"]
    assert setup(shop18, "pub", "--role", "cdc", "--all-tables", "--store", "postgres").code == 0
    start(shop18)


@pytest.mark.parametrize("tag", ["DROP EVENT TRIGGER", "DROP TABLE", "DROP SCHEMA", "REVOKE", "DROP PUBLICATION"])
def test_failure_half_way_leaves_the_server_as_it_was(shop: Database, setup: Setup, teardown: Setup, tag: str) -> None:
    assert setup(shop, "pub", "--role", "cdc", "--all-tables", "--store", "postgres").code == 0
    slot = apply_slot(own_id(shop))
    with shop.connect() as conn:
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
    if tag == "DROP EVENT TRIGGER":
        # No event trigger hears of this one: something that hangs on what is dropped next stops it there.
        shop.psql("CREATE VIEW shop.peek AS SELECT * FROM etl.replication_state")
    else:
        shop.psql(f"""
            CREATE FUNCTION public.refuse() RETURNS event_trigger LANGUAGE plpgsql
            AS $$ BEGIN RAISE 'not today'; END $$;
            CREATE EVENT TRIGGER refuse ON ddl_command_end WHEN tag IN ('{tag}') EXECUTE FUNCTION public.refuse()""")
    before = catalog(shop)
    outcome = teardown(shop, "pub", "--role", "cdc", "--all")
    assert outcome.code == 1
    assert "nothing was changed" in outcome.err
    assert catalog(shop) == before


def test_refuses_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["teardown", "pub", "-d", "host=/nonexistent dbname=none user=none"]) == 2
    assert "no terminal to ask on" in capsys.readouterr().err


def test_two_databases_of_one_server(shop: Database, setup: Setup, teardown: Setup) -> None:
    """A role that reads another database, too, is not dropped from under it."""
    with fresh_database(shop.server) as other:
        other.psql(SHOP)
        assert setup(shop, "pub", "--role", "cdc", "--table", "shop.orders").code == 0
        assert setup(other, "pub", "--role", "cdc", "--table", "shop.orders").code == 0
        outcome = teardown(shop, "pub", "--role", "cdc", as_json=False)
        assert outcome.code == 0
        assert f"in database {other.name}" in outcome.out
        assert teardown(other, "pub", "--role", "cdc").code == 0
