"""What each store needs on the server: made, recorded, granted, and nothing more."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest

from pgrepl.catalog import etl_schema
from pgrepl.cli import main
from pgrepl.names import quote_ident
from tests.provision.shop import SHOP, Setup, catalog, scalar
from tests.servers.database import Database, fresh_database
from tests.servers.server import Server

EVERYTHING = ["pub", "--role", "cdc", "--all-tables", "--store", "postgres"]
VERSIONS = [20250827000000, 20260415090000, 20260415100000]

# What the driver of supabase/etl sends at each start, in its order, when all is there.
START = """
SET client_min_messages TO warning;
CREATE SCHEMA IF NOT EXISTS etl;
SET search_path TO etl;
SELECT current_database();
SELECT pg_advisory_lock(42);
CREATE TABLE IF NOT EXISTS _sqlx_migrations (
    version bigint PRIMARY KEY, description text NOT NULL, installed_on timestamptz NOT NULL DEFAULT now(),
    success boolean NOT NULL, checksum bytea NOT NULL, execution_time bigint NOT NULL
);
SELECT version FROM _sqlx_migrations WHERE success = false ORDER BY version LIMIT 1;
SELECT version, checksum FROM _sqlx_migrations ORDER BY version;
SELECT pg_advisory_unlock(42);
SELECT 'etl.table_state'::regtype::oid;
SELECT * FROM etl.destination_tables_metadata;
SELECT * FROM etl.table_schemas s JOIN etl.table_columns c ON c.table_schema_id = s.id;
SELECT * FROM etl.replication_state WHERE is_current;
WITH old AS (UPDATE etl.replication_state SET is_current = false WHERE pipeline_id = 1 AND is_current RETURNING id)
INSERT INTO etl.replication_state (pipeline_id, table_id, state, metadata, prev)
VALUES (1, 1, 'init', '{"type": "init"}', (SELECT id FROM old));
INSERT INTO etl.table_schemas (pipeline_id, table_id, schema_name, table_name) VALUES (1, 1, 'shop', 'orders')
ON CONFLICT (pipeline_id, table_id, snapshot_id) DO UPDATE SET updated_at = now();
DELETE FROM etl.table_columns WHERE table_schema_id = -1;
INSERT INTO etl.table_columns (table_schema_id, column_name, column_type, type_modifier, nullable, ordinal_position)
SELECT id, 'id', 'INT4', -1, false, 1 FROM etl.table_schemas WHERE pipeline_id = 1;
INSERT INTO etl.destination_tables_metadata
    (pipeline_id, table_id, destination_table_id, snapshot_id, schema_status, replication_mask)
VALUES (1, 1, 'x', '0/0', 'applying', '\\x01')
ON CONFLICT (pipeline_id, table_id) DO UPDATE SET schema_status = 'applied';
SELECT * FROM etl.describe_table_schema('shop.orders'::regclass);
SELECT etl.describe_table_identity('shop.orders'::regclass);
DELETE FROM etl.table_schemas WHERE pipeline_id = 1;
DELETE FROM etl.destination_tables_metadata WHERE pipeline_id = 1;
DELETE FROM etl.replication_state WHERE pipeline_id = 1
"""


def states(database: Database) -> dict[int, str]:
    with database.connect() as conn:
        conn.execute("SET search_path TO ''")
        return {status.version: status.state for status in etl_schema.read(conn).statuses()}


def start(database: Database, user: str = "cdc") -> None:
    """Do what supabase/etl does at its start and for a table, as the role."""
    with database.connect(user) as conn:
        for statement in START.split(";"):
            conn.execute(statement.encode())


def test_untouched_server_is_ready_for_supabase_etl(shop: Database, setup: Setup) -> None:
    outcome = setup(shop, *EVERYTHING)
    assert outcome.code == 0, outcome.err
    assert outcome.document["needs"] is None
    assert states(shop) == dict.fromkeys(VERSIONS, "applied")
    start(shop)
    again = setup(shop, *EVERYTHING)
    assert (again.code, again.statements) == (0, []), again.out


def test_role_has_no_more_than_it_needs(shop: Database, setup: Setup) -> None:
    assert setup(shop, *EVERYTHING).code == 0
    with shop.connect("cdc") as conn:
        for refused in (
            "INSERT INTO shop.orders VALUES (1)",
            "UPDATE shop.orders SET note = ''",
            "DELETE FROM shop.items",
            "TRUNCATE etl.replication_state",
            "DELETE FROM etl._sqlx_migrations",
            "INSERT INTO etl._sqlx_migrations VALUES (1, '', now(), true, '', 0)",
            "SELECT * FROM etl.replication_state_id_seq",
            "SELECT etl.emit_schema_change_messages()",
            "ALTER TABLE etl.replication_state ADD x int",
        ):
            with pytest.raises(psycopg.Error) as error:
                conn.execute(refused.encode())
            assert error.value.sqlstate == "42501", refused
        assert conn.execute("SELECT * FROM shop.orders").fetchall() == []


def test_tail_runs_as_the_role(shop: Database, setup: Setup, tmp_path: Path) -> None:
    assert setup(shop, *EVERYTHING).code == 0
    shop.psql("INSERT INTO shop.orders VALUES (1, 'first')")
    file = tmp_path / "events"
    assert main.run(["tail", "pub", "-d", shop.dsn("cdc"), "--until-lsn", "now", "-o", str(file)]) == 0
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert [event["new"] for event in events if event.get("new")] == [{"id": 1, "note": "first"}]


def test_own_table_belongs_to_the_role(shop: Database, setup: Setup) -> None:
    assert setup(shop, *EVERYTHING).code == 0
    with shop.connect("cdc") as conn:
        conn.execute(
            "INSERT INTO etl.pgrepl_pipelines (pipeline_id, slot_name, publications, system_identifier, timeline,"
            " position) VALUES (-1, 'slot', '{pub}', '7', 1, '0/16B3748')"
        )
        assert scalar(conn, "SELECT attempts::text FROM etl.pgrepl_pipelines") == "{}"
        assert scalar(conn, "SELECT tableowner FROM pg_tables WHERE tablename = 'pgrepl_pipelines'") == "cdc"


def test_all_tables_leaves_the_state_out(shop: Database, setup: Setup) -> None:
    outcome = setup(shop, *EVERYTHING)
    assert "schema etl stays out" in outcome.err
    assert catalog(shop)["publication schemas"] == [("pub", "public"), ("pub", "shop")]
    assert "feeds itself" in setup(shop, "everything", "--literally-all", "--store", "postgres").err


def test_everybody_may_still_alter_and_is_heard(shop: Database, setup: Setup) -> None:
    shop.psql("CREATE ROLE clerk LOGIN; ALTER TABLE shop.items OWNER TO clerk; GRANT USAGE ON SCHEMA shop TO clerk")
    assert setup(shop, *EVERYTHING).code == 0
    with shop.connect() as conn:
        conn.execute("SELECT pg_create_logical_replication_slot('alter', 'pgoutput')")
        with shop.connect("clerk") as clerk:
            clerk.execute("ALTER TABLE shop.items ADD extra int")
        changes = conn.execute(
            "SELECT data FROM pg_logical_slot_get_binary_changes('alter', NULL, NULL, 'proto_version', '1',"
            " 'publication_names', 'pub', 'messages', 'true')"
        ).fetchall()
    assert any(b"supabase_etl_ddl" in data for (data,) in changes)


@pytest.mark.parametrize("already", [VERSIONS[:1], VERSIONS[:2], VERSIONS])
def test_goes_on_where_somebody_stopped_and_keeps_the_rows(shop: Database, setup: Setup, already: list[int]) -> None:
    from pgrepl import migrations

    with shop.connect() as conn:
        migrations.apply(conn, to=already[-1])
        conn.execute("INSERT INTO etl.replication_state (pipeline_id, table_id, state) VALUES (-5, 1, 'ready')")
        rows = "SELECT array_agg(r::text) FROM etl.replication_state r"
        before = scalar(conn, rows)
        outcome = setup(shop, *EVERYTHING)
        assert outcome.code == 0, outcome.err
        assert scalar(conn, rows) == before
    assert set(states(shop).values()) == {"applied"}
    start(shop)


def test_objects_without_a_record_are_recorded(shop: Database, setup: Setup) -> None:
    from pgrepl import migrations

    shop.psql(migrations.sql())
    outcome = setup(shop, *EVERYTHING)
    assert outcome.code == 0, outcome.err
    assert set(states(shop).values()) == {"seeded"}
    start(shop)


@pytest.mark.parametrize("only", ["schema", "migrations"])
def test_one_part_of_the_store(shop18: Database, setup: Setup, only: str) -> None:
    outcome = setup(shop18, "--store", "postgres", "--only", only)
    assert outcome.code == 0, outcome.err
    with shop18.connect() as conn:
        own = scalar(conn, "SELECT to_regclass('etl.pgrepl_pipelines') IS NOT NULL")
    assert own is (only == "schema")
    assert set(states(shop18).values()) == {"missing" if only == "schema" else "applied"}
    assert not catalog(shop18)["publications"]
    assert "does not exist" in setup(shop18, "--role", "nobody", "--store", "postgres", "--only", only).err


MEMORY = ["pub", "--role", "cdc", "--table", "shop.orders", "--store", "memory"]


def bootstrap(database: Database, user: str) -> None:
    """What pgsense-rs sends at each start: everything anew, each time, whatever is there."""
    with database.connect(user) as conn:
        conn.execute("CREATE SCHEMA IF NOT EXISTS etl")
        rows = conn.execute(
            "SELECT pg_get_functiondef(p.oid) FROM pg_proc p WHERE p.pronamespace = 'etl'::regnamespace"
        ).fetchall()
        assert len(rows) == 2
        for (definition,) in rows:
            conn.execute(definition.encode())
        assert conn.execute("SELECT * FROM etl.describe_table_schema('shop.orders'::regclass)").fetchall()


@pytest.mark.parametrize("before", ["", "CREATE SCHEMA etl", "CREATE ROLE cdc; CREATE SCHEMA etl AUTHORIZATION cdc"])
def test_memory_store_lets_pgsense_rs_bootstrap(shop: Database, setup: Setup, before: str) -> None:
    shop.psql(before)
    outcome = setup(shop, *MEMORY)
    assert outcome.code == 0, outcome.err
    bootstrap(shop, "cdc")
    assert setup(shop, *MEMORY).statements == []


def test_memory_after_postgres_gives_the_functions_to_the_role(shop18: Database, setup: Setup) -> None:
    assert setup(shop18, *EVERYTHING).code == 0
    assert setup(shop18, *MEMORY).code == 0
    with shop18.connect("cdc") as conn:
        for name in ("describe_table_schema", "describe_table_identity"):
            definition = scalar(conn, f"SELECT pg_get_functiondef('etl.{name}'::regproc)")
            conn.execute(definition)
    start(shop18)
    assert setup(shop18, *EVERYTHING).statements == []
    refused = setup(shop18, "pub", "--role", "other", "--table", "shop.orders", "--store", "memory")
    assert refused.code == 1
    assert "belongs to cdc" in refused.err


BOOKMARKS = ["pub", "--role", "cdc", "--store", "bookmarks"]
PUT = """INSERT INTO {} (key, value) VALUES ('k', '1')
         ON CONFLICT (key) DO UPDATE SET value = excluded.value, updated_at = now()"""


def keeps_bookmarks(database: Database, user: str, table: str) -> None:
    with database.connect(user) as conn:
        name = quote_ident(table)
        conn.execute(PUT.format(name).encode())
        conn.execute(PUT.format(name).encode())
        assert scalar(conn, f"SELECT value FROM {name}") == 1
        conn.execute(f"DELETE FROM {name}".encode())


@pytest.mark.parametrize("table", ["faucet_state", "My_marks1"])
def test_bookmarks_in_the_same_database(shop: Database, setup: Setup, table: str) -> None:
    shop.psql("CREATE TABLE public.other (id int PRIMARY KEY)")
    arguments = [*BOOKMARKS, "--all-tables", "--state-table", table]
    outcome = setup(shop, *arguments)
    assert outcome.code == 0, outcome.err
    keeps_bookmarks(shop, "cdc", table)
    published = {f"{schema}.{name}" for _, schema, name in catalog(shop)["published"]}
    assert published == {"public.other", "shop.items", "shop.orders", "shop.secrets"}
    assert setup(shop, *arguments).statements == []


def test_bookmarks_in_a_database_of_their_own(shop: Database, setup: Setup) -> None:
    other = Database(shop.server, f"{shop.name}_state")
    shop.psql(f"CREATE DATABASE {other.name}")
    try:
        arguments = [*BOOKMARKS, "--table", "shop.orders", "--state-dsn", other.dsn()]
        script = setup(shop, *arguments, "--dry-run", yes=False, as_json=False).out
        outcome = setup(shop, *arguments)
        assert outcome.code == 0, outcome.err
        keeps_bookmarks(other, "cdc", "faucet_state")
        assert catalog(shop)["published"] == [("pub", "shop", "orders")]
        assert setup(shop, *arguments).statements == []

        found = [catalog(shop), catalog(other)]
        other.psql("DROP OWNED BY cdc; DROP TABLE public.faucet_state")
        shop.psql("DROP OWNED BY cdc; DROP ROLE cdc; DROP PUBLICATION pub")
        shop.psql(script)
        assert [catalog(shop), catalog(other)] == found
    finally:
        shop.psql(f"DROP DATABASE {other.name} WITH (FORCE)")


def test_bookmarks_on_another_server(shop18: Database, server16: Server, setup: Setup) -> None:
    with fresh_database(server16) as other:
        arguments = [*BOOKMARKS, "--table", "shop.orders", "--state-dsn", other.dsn()]
        outcome = setup(shop18, *arguments)
        assert outcome.code == 0, outcome.err
        assert "role cdc is not on the server of --state-dsn: postgres uses the bookmarks" in outcome.err
        keeps_bookmarks(other, "postgres", "faucet_state")


def test_something_else_of_that_name_is_refused(shop18: Database, setup: Setup) -> None:
    shop18.psql("CREATE TABLE public.faucet_state (key text PRIMARY KEY, value text)")
    before = catalog(shop18)
    outcome = setup(shop18, *BOOKMARKS, "--table", "shop.orders")
    assert outcome.code == 1
    assert "no table of bookmarks" in outcome.err
    assert catalog(shop18) == before


@pytest.mark.parametrize(
    "arguments",
    [EVERYTHING, MEMORY, [*BOOKMARKS, "--all-tables"], ["pub", "--table", "shop.orders", "--store", "postgres"]],
)
def test_dry_run_by_psql_gives_what_the_command_gives(server: Server, setup: Setup, arguments: list[str]) -> None:
    found = []
    for by_psql in (True, False):
        with fresh_database(server) as database:
            database.psql(SHOP)
            if by_psql:
                before = catalog(database)
                outcome = setup(database, *arguments, "--dry-run", yes=False, as_json=False)
                assert catalog(database) == before
                database.psql(outcome.out)
            else:
                outcome = setup(database, *arguments)
            assert outcome.code == 0, outcome.err
            found.append(catalog(database))
    assert found[0] == found[1]
    assert found[0]["published"]
