"""Setup by somebody who may not do everything: the rest becomes a script."""

from __future__ import annotations

import pytest

from pgrepl.cli import main
from tests.provision.shop import Outcome, Setup, catalog, scalar
from tests.provision.test_state import bootstrap, keeps_bookmarks, start, states
from tests.servers.database import Database

ORDERS = ["pub", "--role", "cdc", "--table", "shop.orders"]


def test_owner_without_replication_needs_one_statement(owned_shop: Database, setup: Setup) -> None:
    outcome = setup(owned_shop, *ORDERS, user="dba")
    assert outcome.code == 1
    assert outcome.steps("role") == [("created", "cdc"), ("needs_superuser", "cdc")]
    assert outcome.steps("publication") == [("created", "pub")]
    assert {status for status, _ in outcome.steps("grant")} == {"created", "exists"}
    assert 'ALTER ROLE "cdc" REPLICATION;' in outcome.document["needs"]

    owned_shop.psql(outcome.document["needs"])
    again = setup(owned_shop, *ORDERS, user="dba")
    assert again.code == 0, again.out
    assert again.document["needs"] is None
    assert again.statements == []


def test_owner_with_replication_needs_nothing(owned_shop: Database, setup: Setup) -> None:
    owned_shop.psql("ALTER ROLE dba REPLICATION")
    outcome = setup(owned_shop, *ORDERS, user="dba")
    assert outcome.code == 0, outcome.out
    assert outcome.document["needs"] is None


@pytest.mark.parametrize("selection", [["--literally-all"], ["--in-schema", "shop"], ["--all-tables"]])
def test_script_makes_up_for_all_that_is_left_out(owned_shop: Database, setup: Setup, selection: list[str]) -> None:
    owned_shop.psql("ALTER TABLE shop.secrets OWNER TO postgres")
    arguments = ["pub", "--role", "cdc", *selection]
    outcome = setup(owned_shop, *arguments, user="dba")
    assert outcome.code == 1
    owned_shop.psql(outcome.document["needs"])
    again = setup(owned_shop, *arguments, user="dba")
    assert (again.code, again.statements) == (0, []), again.out
    found = catalog(owned_shop)["published"]
    assert found == [("pub", "shop", "items"), ("pub", "shop", "orders"), ("pub", "shop", "secrets")]


def test_all_tables_lists_the_own_ones_and_says_which_it_left_out(owned_shop: Database, setup: Setup) -> None:
    owned_shop.psql("ALTER TABLE shop.secrets OWNER TO postgres")
    outcome = setup(owned_shop, "pub", "--all-tables", user="dba", as_json=False)
    assert outcome.code == 1
    assert catalog(owned_shop)["published"] == [("pub", "shop", "items"), ("pub", "shop", "orders")]
    assert "left out, owned by postgres: shop.secrets" in outcome.out
    assert 'ALTER PUBLICATION "pub" ADD TABLE "shop"."secrets";' in outcome.out


def test_nobody_in_particular_gets_a_script_for_everything(owned_shop: Database, setup: Setup) -> None:
    owned_shop.psql("CREATE ROLE visitor LOGIN")
    before = catalog(owned_shop)
    outcome = setup(owned_shop, *ORDERS, user="visitor")
    assert outcome.code == 1
    assert catalog(owned_shop) == before
    owned_shop.psql(outcome.document["needs"])
    again = setup(owned_shop, *ORDERS, user="visitor")
    assert (again.code, again.statements) == (0, []), again.out


def test_publication_of_somebody_else(owned_shop: Database, setup: Setup) -> None:
    owned_shop.psql("CREATE PUBLICATION pub FOR TABLE shop.items")
    outcome = setup(owned_shop, "pub", "--table", "shop.orders", "--via-root", user="dba")
    assert outcome.code == 1
    assert outcome.steps("publication") == [("needs_superuser", "pub")]
    owned_shop.psql(outcome.document["needs"])
    assert setup(owned_shop, "pub", "--table", "shop.orders", "--via-root", user="dba").code == 0


def test_dry_run_can_be_run_by_the_same_role(owned_shop: Database, setup: Setup) -> None:
    outcome = setup(owned_shop, *ORDERS, "--dry-run", user="dba", yes=False, as_json=False)
    assert outcome.code == 1
    assert '-- ALTER ROLE "cdc" REPLICATION;' in outcome.out
    owned_shop.server.psql(outcome.out, owned_shop.name, user="dba")
    by_psql = catalog(owned_shop)
    again = setup(owned_shop, *ORDERS, user="dba")
    assert [step["status"] for step in again.document["steps"] if step["statements"]] == ["needs_superuser"]
    assert catalog(owned_shop) == by_psql


def test_existing_role_that_is_not_ours_to_alter(owned_shop: Database, setup: Setup) -> None:
    owned_shop.psql("CREATE ROLE cdc NOLOGIN")
    outcome = setup(owned_shop, *ORDERS, user="dba")
    assert outcome.code == 1
    owned_shop.psql(outcome.document["needs"])
    assert ("cdc", True, True, False, False, False, False, []) in catalog(owned_shop)["roles"]
    assert setup(owned_shop, *ORDERS, user="dba").code == 0


POSTGRES = [*ORDERS, "--store", "postgres"]


def seed(database: Database, capsys: pytest.CaptureFixture[str], user: str) -> Outcome:
    capsys.readouterr()
    arguments = ["migrations", "seed", "--checksums", "--yes", "-d", database.dsn(user), "--json"]
    return Outcome(main.run(arguments), *capsys.readouterr())


def examine(database: Database, capsys: pytest.CaptureFixture[str], user: str) -> Outcome:
    capsys.readouterr()
    arguments = ["doctor", "pub", "--role", "cdc", "--store", "postgres", "-d", database.dsn(user), "--json"]
    outcome = Outcome(main.run(arguments), *capsys.readouterr())
    failed = [check for check in outcome.document["checks"] if check["status"] == "fail"]
    assert (outcome.code == 0) is (failed == []), failed
    return outcome


def test_postgres_store_lacks_only_replication_and_the_event_trigger(
    owned_shop: Database, setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = setup(owned_shop, *POSTGRES, user="dba")
    assert outcome.code == 1
    left = {(step["step"], step["object"]) for step in outcome.document["steps"] if step["status"] == "needs_superuser"}
    assert left == {("role", "cdc"), ("migrations", "supabase_etl_ddl_message_trigger")}
    assert outcome.steps("publication") == [("created", "pub")]
    assert 'ALTER ROLE "cdc" REPLICATION;' in outcome.document["needs"]
    assert "CREATE EVENT TRIGGER" in outcome.document["needs"]
    before = catalog(owned_shop)
    again = setup(owned_shop, *POSTGRES, user="dba")
    assert (again.code, catalog(owned_shop)) == (1, before)
    assert again.document["needs"] == outcome.document["needs"]

    assert examine(owned_shop, capsys, "dba").code == 1
    owned_shop.psql(outcome.document["needs"])
    seeded = seed(owned_shop, capsys, "dba")
    assert seeded.code == 0, seeded.err
    assert set(states(owned_shop).values()) <= {"applied", "seeded"}
    again = setup(owned_shop, *POSTGRES, user="dba")
    assert (again.code, again.statements) == (0, []), again.out
    assert examine(owned_shop, capsys, "dba").code == 0
    assert examine(owned_shop, capsys, "cdc").code == 0
    start(owned_shop)


def test_script_without_the_record_is_completed_by_seed(
    owned_shop: Database, setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody may make the event trigger in another way, as with the SQL of the migrations."""
    assert setup(owned_shop, *POSTGRES, user="dba").code == 1
    from pgrepl import migrations

    owned_shop.psql(";".join(migrations.event_trigger(20260415100000)) + "; ALTER ROLE cdc REPLICATION")
    again = setup(owned_shop, *POSTGRES, user="dba")
    assert again.code == 0, again.out
    assert seed(owned_shop, capsys, "dba").code == 0
    start(owned_shop)


def test_managed_service_is_asked_for_replication(owned_shop: Database, setup: Setup) -> None:
    """Who may give it there cannot be read from the catalog; this server refuses."""
    owned_shop.psql("CREATE ROLE cloudsqlsuperuser")
    arguments = [*ORDERS, "--dry-run"]
    assert setup(owned_shop, *arguments, user="dba").steps("role") == [("planned", "cdc"), ("planned", "cdc")]
    outcome = setup(owned_shop, *ORDERS, user="dba")
    assert outcome.code == 1
    assert outcome.steps("role") == [("created", "cdc"), ("needs_superuser", "cdc")]
    owned_shop.psql(outcome.document["needs"])
    assert setup(owned_shop, *ORDERS, user="dba").code == 0


def test_cloud_that_lets_its_first_user_make_event_triggers(
    owned_shop: Database, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A superuser that setup takes for none is what such a user looks like."""
    from dataclasses import replace

    from pgrepl.provision import inventory

    session = inventory.session
    owned_shop.psql("ALTER ROLE dba SUPERUSER REPLICATION")
    monkeypatch.setattr(inventory, "session", lambda conn: replace(session(conn), superuser=False))
    outcome = setup(owned_shop, *POSTGRES, user="dba")
    assert outcome.code == 0, outcome.out
    assert ("created", "supabase_etl_ddl_message_trigger") in outcome.steps("migrations")
    assert outcome.document["needs"] is None


@pytest.mark.parametrize("self_grant", ["", "set", "set, inherit"])
def test_owner_makes_what_belongs_to_the_role_and_stays_no_member(
    owned_shop: Database, setup: Setup, self_grant: str
) -> None:
    owned_shop.psql(f"ALTER ROLE dba REPLICATION; ALTER ROLE dba SET createrole_self_grant = '{self_grant}'")
    outcome = setup(owned_shop, *ORDERS, "--store", "memory", user="dba")
    assert outcome.code == 0, outcome.out
    bootstrap(owned_shop, "cdc")
    with owned_shop.connect() as conn:
        assert scalar(conn, "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'etl'") == "cdc"
        member = "SELECT bool_or(set_option) FROM pg_auth_members WHERE roleid = 'cdc'::regrole"
        assert scalar(conn, member) is bool(self_grant)
    assert setup(owned_shop, *ORDERS, "--store", "memory", user="dba").statements == []


def test_owner_makes_the_table_of_bookmarks(owned_shop: Database, setup: Setup) -> None:
    owned_shop.psql("ALTER ROLE dba REPLICATION")
    outcome = setup(owned_shop, *ORDERS, "--store", "bookmarks", user="dba")
    assert outcome.code == 0, outcome.out
    keeps_bookmarks(owned_shop, "cdc", "faucet_state")


@pytest.mark.parametrize("store", ["memory", "postgres", "bookmarks"])
def test_script_for_the_store_of_nobody_in_particular(owned_shop: Database, setup: Setup, store: str) -> None:
    owned_shop.psql("CREATE ROLE visitor LOGIN")
    before = catalog(owned_shop)
    arguments = [*ORDERS, "--store", store]
    outcome = setup(owned_shop, *arguments, user="visitor")
    assert outcome.code == 1
    assert catalog(owned_shop) == before
    owned_shop.psql(outcome.document["needs"])
    again = setup(owned_shop, *arguments)
    assert (again.code, again.statements) == (0, []), again.out


@pytest.mark.parametrize("store", ["memory", "postgres", "bookmarks"])
def test_dry_run_with_a_store_can_be_run_by_the_same_role(owned_shop: Database, setup: Setup, store: str) -> None:
    arguments = [*ORDERS, "--store", store]
    script = setup(owned_shop, *arguments, "--dry-run", user="dba", yes=False, as_json=False).out
    owned_shop.server.psql(script, owned_shop.name, user="dba")
    by_psql = catalog(owned_shop)
    again = setup(owned_shop, *arguments, user="dba")
    assert {step["object"] for step in again.document["steps"] if step["statements"]} <= {
        "cdc",
        "supabase_etl_ddl_message_trigger",
    }
    assert catalog(owned_shop) == by_psql
