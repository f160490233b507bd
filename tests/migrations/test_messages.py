"""What ALTER TABLE writes into the WAL, read back through a slot of pgoutput."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgrepl import migrations
from pgrepl.pgoutput.messages import Begin, Commit, Insert, Message, Relation
from pgrepl.sandbox import account
from tests.conftest import NewServer
from tests.migrations.etl import Stream, connect
from tests.servers.database import Database, fresh_database
from tests.servers.server import Server

ORDERS = """
    CREATE TABLE orders (
        id bigint GENERATED ALWAYS AS IDENTITY, region varchar(20) DEFAULT 'north', gone int, price numeric(12,2),
        doubled numeric GENERATED ALWAYS AS (price * 2) STORED, PRIMARY KEY (region, id)
    );
    ALTER TABLE orders DROP gone;
    CREATE PUBLICATION pub FOR TABLE orders;
"""


def oid(conn: psycopg.Connection, table: str) -> int:
    row = conn.execute("SELECT to_regclass(%s)::oid::bigint", [table]).fetchone()
    assert row is not None
    return int(row[0])


def names(document: dict[str, Any]) -> list[str]:
    return [column["attname"] for column in document["columns"]]


def test_a_message_says_what_the_table_looks_like_now(conn: psycopg.Connection, migrated: Database) -> None:
    conn.execute(ORDERS)
    stream = Stream(conn)
    query = "ALTER TABLE orders ADD note text NOT NULL DEFAULT 'é'"
    conn.execute(query)
    (message,) = stream.ddl()
    assert message == {
        "trigger_event": "ddl_command_end",
        "command_tag": "ALTER TABLE",
        "current_query": query,
        "current_database": migrated.name,
        "server_version_num": conn.info.server_version,
        "nspname": "public",
        "relname": "orders",
        "oid": oid(conn, "orders"),
        "relkind": "r",
        "commands": [
            {"command_tag": "ALTER TABLE", "object_type": "table", "object_identity": "public.orders", "objsubid": 0}
        ],
        "identity": {
            "primary_key_attnums": [2, 1],
            "relreplident": "d",
            "replica_identity_index_relname": None,
            "replica_identity_index_attnums": [],
        },
        "columns": [
            _column("id", 1, 20, "int8", "bigint", attnotnull=True, attidentity="a"),
            _column(
                "region",
                2,
                1043,
                "varchar",
                "character varying(20)",
                24,
                attnotnull=True,
                default="'north'::character varying",
            ),
            _column("price", 4, 1700, "numeric", "numeric(12,2)", 786438),
            _column("note", 6, 25, "text", "text", attnotnull=True, default="'é'::text", atthasmissing=True),
        ],
    }


def _column(
    name: str,
    number: int,
    type_oid: int,
    type_name: str,
    formatted: str,
    modifier: int = -1,
    *,
    attnotnull: bool = False,
    default: str | None = None,
    attidentity: str = "",
    atthasmissing: bool = False,
) -> dict[str, Any]:
    return {
        "attname": name,
        "attnum": number,
        "atttypid": type_oid,
        "typname": type_name,
        "formatted_type": formatted,
        "atttypmod": modifier,
        "attnotnull": attnotnull,
        "atthasdef": default is not None,
        "default_expression": default,
        "attidentity": attidentity,
        "atthasmissing": atthasmissing,
    }


def test_commands_on_one_table_make_one_message(conn: psycopg.Connection) -> None:
    conn.execute(ORDERS)
    stream = Stream(conn)
    conn.execute("ALTER TABLE orders ADD counted serial, ADD code text UNIQUE, ALTER region TYPE text")
    (message,) = stream.ddl()
    assert names(message) == ["id", "region", "price", "counted", "code"]
    assert [command["object_type"] for command in message["commands"]] == ["table", "table"]


def test_statements_make_a_message_each_with_the_columns_of_that_moment(conn: psycopg.Connection) -> None:
    conn.execute(ORDERS)
    stream = Stream(conn)
    conn.execute("ALTER TABLE orders RENAME price TO cost")
    conn.execute("ALTER TABLE orders DROP cost CASCADE")
    conn.execute("CREATE SCHEMA shop; ALTER TABLE orders SET SCHEMA shop; ALTER TABLE shop.orders RENAME TO sales")
    messages = stream.ddl()
    assert [names(message)[2:] for message in messages] == [["cost"], [], [], []]
    assert [(message["nspname"], message["relname"]) for message in messages] == [
        ("public", "orders"),
        ("public", "orders"),
        ("shop", "orders"),
        ("shop", "sales"),
    ]
    assert len({message["oid"] for message in messages}) == 1


def test_the_message_comes_before_the_rows_it_describes(conn: psycopg.Connection) -> None:
    """Case same_transaction_ddl_messages_precede_relation_and_insert_in_pgoutput of supabase/etl's tests."""
    conn.execute(ORDERS)
    stream = Stream(conn)
    with conn.transaction():
        conn.execute("ALTER TABLE orders ADD note text")
        conn.execute("INSERT INTO orders (price, note) VALUES (1, 'n')")
    with pytest.raises(psycopg.errors.DivisionByZero):
        conn.execute("ALTER TABLE orders ADD never text; SELECT 1 / 0")
    assert [type(message) for message in stream.read()] == [Begin, Message, Relation, Insert, Commit]


def test_the_replica_identity_is_told(conn: psycopg.Connection) -> None:
    conn.execute(ORDERS)
    conn.execute("ALTER TABLE orders ADD a int NOT NULL, ADD b int NOT NULL")
    conn.execute("CREATE UNIQUE INDEX by_b_and_a ON orders (b, a) INCLUDE (price)")
    stream = Stream(conn)
    conn.execute("ALTER TABLE orders REPLICA IDENTITY USING INDEX by_b_and_a")
    conn.execute("ALTER TABLE orders REPLICA IDENTITY FULL")
    conn.execute("ALTER TABLE orders REPLICA IDENTITY NOTHING, DROP CONSTRAINT orders_pkey")
    index, full, nothing = [message["identity"] for message in stream.ddl()]
    assert index == {
        "primary_key_attnums": [2, 1],
        "relreplident": "i",
        "replica_identity_index_relname": "by_b_and_a",
        "replica_identity_index_attnums": [7, 6],
    }
    assert (full["relreplident"], full["replica_identity_index_relname"]) == ("f", None)
    assert (nothing["relreplident"], nothing["primary_key_attnums"]) == ("n", [])


def test_what_is_in_no_publication_or_not_permanent_is_silent(conn: psycopg.Connection) -> None:
    conn.execute(ORDERS)
    conn.execute("""
        CREATE TABLE unpublished (id int PRIMARY KEY);
        CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
        CREATE TEMP TABLE temporary (id int PRIMARY KEY);
        CREATE VIEW orders_view AS SELECT 1 AS one;
        CREATE SEQUENCE counter;
        CREATE PUBLICATION other""")
    stream = Stream(conn)
    conn.execute("ALTER TABLE unpublished ADD a int")
    conn.execute("ALTER TABLE unlogged ADD a int")
    conn.execute("ALTER TABLE temporary ADD a int")
    conn.execute("ALTER TABLE orders_view RENAME TO orders_view_2")
    conn.execute("ALTER TABLE counter RENAME TO counter_2")
    conn.execute(
        "CREATE TABLE another (id int PRIMARY KEY); CREATE INDEX ON orders (price); COMMENT ON TABLE orders IS 'c'"
    )
    assert stream.ddl() == []
    conn.execute("ALTER PUBLICATION other ADD TABLE unpublished")
    conn.execute("ALTER TABLE unpublished ADD b int")
    assert [names(message) for message in stream.ddl()] == [["id", "a", "b"]]


@pytest.mark.parametrize("contents", ["FOR ALL TABLES", "FOR TABLES IN SCHEMA shop"])
def test_any_kind_of_publication_counts(conn: psycopg.Connection, contents: str) -> None:
    conn.execute('CREATE SCHEMA shop; CREATE TABLE shop."Big \'T" (id int PRIMARY KEY);')
    conn.execute(f"CREATE PUBLICATION other {contents}".encode())
    conn.execute("CREATE PUBLICATION pub")
    conn.execute("CREATE TEMP TABLE temporary (id int)")
    conn.execute("CREATE UNLOGGED TABLE shop.unlogged (id int)")
    stream = Stream(conn)
    conn.execute('ALTER TABLE shop."Big \'T" ADD a int; ALTER TABLE temporary ADD a int')
    conn.execute("ALTER TABLE shop.unlogged ADD a int")
    assert [message["relname"] for message in stream.ddl()] == ["Big 'T"]


def test_partitions_without_a_key_inherit_the_parents(conn: psycopg.Connection) -> None:
    conn.execute("""
        CREATE TABLE root (gone int, a int NOT NULL, b int NOT NULL) PARTITION BY RANGE (a);
        ALTER TABLE root DROP gone;
        CREATE TABLE middle PARTITION OF root FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (a);
        CREATE TABLE leaf (b int NOT NULL, a int NOT NULL);
        ALTER TABLE middle ATTACH PARTITION leaf FOR VALUES FROM (0) TO (5);
        CREATE TABLE own (a int NOT NULL, b int NOT NULL PRIMARY KEY);
        ALTER TABLE root ATTACH PARTITION own FOR VALUES FROM (20) TO (30);
        ALTER TABLE ONLY root ADD PRIMARY KEY (b, a);
        CREATE TABLE alone (a int NOT NULL);
        CREATE PUBLICATION pub FOR TABLE root, alone WITH (publish_via_partition_root = false);
        CREATE PUBLICATION via_root FOR TABLE root WITH (publish_via_partition_root = true);
    """)
    stream = Stream(conn)
    for table in ("root", "leaf", "own", "alone"):
        conn.execute(f"ALTER TABLE {table} ALTER a SET STATISTICS 10".encode())
    keys = {message["relname"]: message["identity"]["primary_key_attnums"] for message in stream.ddl()}
    assert keys == {"root": [3, 2], "leaf": [1, 2], "own": [2], "alone": []}


def test_an_owner_without_rights_on_etl_can_alter_his_table(conn: psycopg.Connection, migrated: Database) -> None:
    """Case schema_change_messages_allow_alter_table_from_table_owner_role of supabase/etl's tests."""
    conn.execute("CREATE ROLE clerk LOGIN; CREATE SCHEMA clerk AUTHORIZATION clerk")
    with migrated.connect("clerk") as clerk:
        clerk.execute("CREATE TABLE clerk.orders (id int PRIMARY KEY)")
        conn.execute("CREATE PUBLICATION pub FOR TABLE clerk.orders")
        stream = Stream(conn)
        # What stands in the temporary schema is found before everything that is not named with its own.
        clerk.execute("""
            CREATE TEMP TABLE pg_class (oid oid); CREATE TEMP TABLE pg_publication_tables (schemaname name);
            CREATE DOMAIN pg_temp.text AS int; CREATE DOMAIN pg_temp.regclass AS int; CREATE DOMAIN pg_temp.jsonb AS int
        """)
        clerk.execute("ALTER TABLE clerk.orders ADD note pg_catalog.text")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            clerk.execute("SELECT etl.describe_table_schema(1)")
    conn.execute("GRANT USAGE ON SCHEMA etl TO clerk")
    with migrated.connect("clerk") as clerk, pytest.raises(psycopg.errors.InsufficientPrivilege):
        clerk.execute("SELECT etl.describe_table_schema(1)")
    assert [names(message) for message in stream.ddl()] == [["id", "note"]]


def test_skip_ddl_log_opts_out_while_it_is_on(conn: psycopg.Connection, migrated: Database) -> None:
    conn.execute(ORDERS)
    stream = Stream(conn)
    with migrated.connect() as session:
        with session.transaction():
            session.execute("SET LOCAL supabase_etl.skip_ddl_log = true")
            session.execute("ALTER TABLE orders ADD skipped int")
        # Now the setting is an empty string in this session.
        session.execute("ALTER TABLE orders ADD after_local int")
        for value in ("on", "yes", "1"):
            session.execute("SELECT set_config('supabase_etl.skip_ddl_log', %s, false)", [value])
            session.execute(f"ALTER TABLE orders ADD skipped_{value} int".encode())
        for value in ("off", "nonsense"):
            session.execute("SELECT set_config('supabase_etl.skip_ddl_log', %s, false)", [value])
            session.execute(f"ALTER TABLE orders ADD while_{value} int".encode())
    assert [names(message)[-1] for message in stream.ddl()] == ["after_local", "while_off", "while_nonsense"]


@pytest.mark.parametrize(("level", "described"), [("replica", False), ("logical", True)])
def test_without_logical_wal_nothing_is_even_looked_at(new_server: NewServer, level: str, described: bool) -> None:
    server = new_server(18, wal_level=level)
    with fresh_database(server) as database:
        with connect(database) as conn:
            migrations.apply(conn)
        with database.connect() as conn:
            conn.execute(ORDERS)
            conn.execute(
                "CREATE OR REPLACE FUNCTION etl.describe_table_identity(p_table oid) RETURNS jsonb"
                " LANGUAGE plpgsql AS $$ BEGIN RAISE 'it was described'; END $$"
            )
            if described:
                with pytest.raises(psycopg.errors.RaiseException, match="it was described"):
                    conn.execute("ALTER TABLE orders ADD note text")
            else:
                conn.execute("ALTER TABLE orders ADD note text")


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_the_message_is_utf8_in_databases_of_other_encodings(server18: Server, encoding: str) -> None:
    with fresh_database(server18) as database:
        with server18.connect() as admin:
            admin.execute(f"DROP DATABASE {database.name}".encode())
            admin.execute(f"CREATE DATABASE {database.name} ENCODING {encoding} LOCALE 'C' TEMPLATE template0".encode())
        with connect(database) as conn:
            migrations.apply(conn)
        with database.connect(client_encoding="UTF8") as conn:
            conn.execute("CREATE TABLE orders (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE orders")
            stream = Stream(conn)
            conn.execute('ALTER TABLE orders ADD "prix_é" int')
            assert [names(message) for message in stream.ddl()] == [["id", "prix_é"]]


def test_bytes_that_are_no_text_fail_nobodys_alter_table(server18: Server) -> None:
    with fresh_database(server18) as database:
        with server18.connect() as admin:
            admin.execute(f"DROP DATABASE {database.name}".encode())
            admin.execute(f"CREATE DATABASE {database.name} ENCODING SQL_ASCII LOCALE 'C' TEMPLATE template0".encode())
        with connect(database) as conn:
            migrations.apply(conn)
        with database.connect(client_encoding="SQL_ASCII") as conn:
            conn.execute("CREATE TABLE orders (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE orders")
            conn.execute(b'ALTER TABLE orders ADD "prix_\xe9" int')


@pytest.fixture
def extension_directory() -> Iterator[Path]:
    """Where the server looks for extensions: one, whose script alters a table."""
    home = account.temporary_directory("pgrepl-extension-", account.server_account())
    (home / "extension").mkdir()
    (home / "extension" / "shelf.control").write_text("default_version = '1'\n", encoding="utf-8")
    (home / "extension" / "shelf--1.sql").write_text("ALTER TABLE public.orders ADD shelf int;\n", encoding="utf-8")
    for path in (home / "extension", *(home / "extension").iterdir()):
        path.chmod(0o755)
    yield home
    account.remove_directory(home)


def test_what_an_extensions_script_alters_is_silent(new_server: NewServer, extension_directory: Path) -> None:
    server = new_server(18, extension_control_path=f"{extension_directory}:$system")
    with fresh_database(server) as database:
        with connect(database) as conn:
            migrations.apply(conn)
        with database.connect() as conn:
            conn.execute(ORDERS)
            stream = Stream(conn)
            conn.execute("CREATE EXTENSION shelf")
            conn.execute("ALTER TABLE orders ADD note text")
            assert [names(message)[-2:] for message in stream.ddl()] == [["shelf", "note"]]
