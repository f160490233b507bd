"""All or nothing, and a bounded wait for locks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pgrepl import migrations, provision
from pgrepl.errors import OperationError
from pgrepl.provision.wanted import Store
from tests.conftest import NewServer
from tests.provision.shop import SHOP, Setup, catalog
from tests.servers.database import Database, fresh_database
from tests.servers.server import Server


@pytest.mark.parametrize("tag", ["GRANT", "ALTER DEFAULT PRIVILEGES", "CREATE PUBLICATION"])
def test_failure_half_way_leaves_the_server_as_it_was(shop: Database, setup: Setup, tag: str) -> None:
    shop.psql(f"""
        CREATE FUNCTION public.refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not today'; END $$;
        CREATE EVENT TRIGGER refuse ON ddl_command_end WHEN tag IN ('{tag}') EXECUTE FUNCTION public.refuse()""")
    before = catalog(shop)
    outcome = setup(shop, "pub", "--role", "cdc", "--in-schema", "shop")
    assert outcome.code == 1
    assert "not today" in outcome.err
    assert "nothing was changed" in outcome.err
    assert catalog(shop) == before


@pytest.mark.parametrize("store", ["memory", "postgres", "bookmarks"])
def test_failure_of_any_statement_leaves_the_server_as_it_was(shop: Database, store: Store) -> None:
    wanted = provision.Wanted("pub", "cdc", password="p", schemas=("shop",), store=store)
    with shop.connect() as conn:
        conn.execute("SET search_path TO ''")
        planned = provision.plan(conn, wanted)
        before = catalog(shop)
        places = [
            (number, place)
            for number, step in enumerate(planned.steps)
            if step.status == "planned"
            for place in range(len(step.statements))
        ]
        assert len(places) >= 8
        for number, place in places:
            step = planned.steps[number]
            statements = list(step.statements)
            statements[place] = provision.Statement("SELECT 1 / 0")
            steps = list(planned.steps)
            steps[number] = replace(step, statements=tuple(statements))
            with pytest.raises(OperationError, match="division by zero"):
                provision.apply(conn, replace(planned, steps=tuple(steps)))
            assert catalog(shop) == before
        assert not provision.apply(conn, planned).left_out


def test_lock_of_the_migrations_names_its_holder(shop18: Database, setup: Setup) -> None:
    before = catalog(shop18)
    with shop18.connect(application_name="other sqlx") as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [migrations.lock_key(shop18.name)])
        outcome = setup(shop18, "pub", "--all-tables", "--store", "postgres", "--lock-timeout", "100ms")
        assert outcome.code == 1
        assert "application other sqlx) holds the lock of the migrations" in outcome.err
        assert catalog(shop18) == before
    assert setup(shop18, "pub", "--all-tables", "--store", "postgres").code == 0


def test_lock_timeout_names_the_blocker(shop: Database, setup: Setup) -> None:
    before = catalog(shop)
    with shop.connect(application_name="backup") as holder, holder.transaction():
        holder.execute("LOCK TABLE shop.orders IN SHARE UPDATE EXCLUSIVE MODE")
        arguments = [
            "pub",
            "--role",
            "cdc",
            "--table",
            "shop.items",
            "--table",
            "shop.orders",
            "--lock-timeout",
            "100ms",
        ]
        outcome = setup(shop, *arguments)
        assert outcome.code == 1
        assert "no lock within 0.1 s" in outcome.err
        assert (
            f"process {holder.info.backend_pid} (user postgres, application backup) holds one on shop.orders"
            in outcome.err
        )
        assert "SQLSTATE 55P03" in outcome.err
        assert catalog(shop) == before
    assert setup(shop, *arguments).code == 0


def test_readers_and_writers_do_not_block(shop18: Database, setup: Setup) -> None:
    with shop18.connect() as writer, writer.transaction():
        writer.execute("INSERT INTO shop.orders VALUES (1)")
        assert setup(shop18, "pub", "--table", "shop.orders", "--lock-timeout", "100ms").code == 0


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"wal_level": "replica"}, "wal_level is replica, not logical"),
        ({"max_replication_slots": "0"}, "max_replication_slots is 0"),
        ({"max_replication_slots": "1"}, "all 1 of max_replication_slots are in use"),
        ({"max_wal_senders": "0"}, "max_wal_senders is 0"),
    ],
)
def test_unfit_server_is_left_alone(new_server: NewServer, setup: Setup, settings: dict[str, str], why: str) -> None:
    with fresh_database(new_server(18, **settings)) as database:
        database.psql(SHOP)
        if settings == {"max_replication_slots": "1"}:
            database.psql("SELECT pg_create_physical_replication_slot('taken')")
        for only in ([], ["--only", "check"]):
            before = catalog(database)
            outcome = setup(database, "pub", "--role", "cdc", "--table", "shop.orders", *only)
            assert outcome.code == 1
            assert why in outcome.err
            assert "hint: " in outcome.err
            assert catalog(database) == before


def test_server_too_old(server15: Server, setup: Setup) -> None:
    with fresh_database(server15) as database:
        outcome = setup(database, "pub", "--all-tables")
    assert outcome.code == 1
    assert "too old" in outcome.err
