"""The two functions that describe a table, called as a pipeline's role calls them."""

from __future__ import annotations

import psycopg
import pytest

from pgrepl import migrations
from tests.migrations.etl import connect
from tests.servers.database import Database


@pytest.fixture
def reader(conn: psycopg.Connection, migrated: Database) -> psycopg.Connection:
    """A role that may call the functions and nothing else, with a table of another to ask about."""
    conn.execute("""
        CREATE ROLE reader LOGIN; GRANT USAGE ON SCHEMA etl TO reader;
        GRANT EXECUTE ON FUNCTION etl.describe_table_schema(oid), etl.describe_table_identity(oid) TO reader;
        CREATE TYPE public.mood AS ENUM ('happy');
        CREATE TABLE public.orders (
            c int, gone int, a int NOT NULL, mood public.mood, stored int GENERATED ALWAYS AS (a + 1) STORED,
            PRIMARY KEY (mood, c) INCLUDE (a)
        );
        ALTER TABLE public.orders DROP gone;
    """)
    return connect(migrated, "reader")


def test_columns_are_in_order_without_dropped_and_generated_ones(reader: psycopg.Connection) -> None:
    with reader:
        found = reader.execute(
            "SELECT attname, attnum, formatted_type, attnotnull"
            " FROM etl.describe_table_schema((SELECT oid FROM pg_class WHERE relname = 'orders'))"
        ).fetchall()
    assert found == [("c", 1, "integer", True), ("a", 3, "integer", True), ("mood", 4, "public.mood", True)]


def test_virtual_columns_are_left_out(migrated18: Database) -> None:
    with connect(migrated18) as conn:
        conn.execute("CREATE TABLE public.orders (a int, twice int GENERATED ALWAYS AS (a * 2) VIRTUAL, b int)")
        found = conn.execute("SELECT attname FROM etl.describe_table_schema('public.orders'::regclass)").fetchall()
    assert found == [("a",), ("b",)]


def test_the_key_is_in_its_own_order_without_included_columns(reader: psycopg.Connection) -> None:
    """Case table_schema_preserves_primary_key_constraint_order of supabase/etl's tests."""
    with reader:
        found = reader.execute(
            "SELECT etl.describe_table_identity(oid) FROM pg_class WHERE relname = 'orders'"
        ).fetchone()
    assert found is not None
    assert found[0]["primary_key_attnums"] == [4, 1]


def test_a_table_that_is_gone_has_nothing(reader: psycopg.Connection) -> None:
    with reader:
        assert reader.execute("SELECT * FROM etl.describe_table_schema(1)").fetchall() == []
        assert reader.execute("SELECT etl.describe_table_identity(1)").fetchone() == (None,)


def test_a_role_can_have_the_two_functions_to_itself(database: Database) -> None:
    database.psql("CREATE ROLE keeper LOGIN; CREATE SCHEMA etl AUTHORIZATION keeper; CREATE TABLE public.t (a int)")
    with connect(database, "keeper") as conn:
        for statement in migrations.describe_functions():
            conn.execute(statement.encode())
        found = conn.execute(
            "SELECT attname FROM etl.describe_table_schema((SELECT oid FROM pg_class WHERE relname = 't'))"
        ).fetchall()
    assert found == [("a",)]
