"""Setup by somebody who may not do everything: the rest becomes a script."""

from __future__ import annotations

import pytest

from tests.provision.shop import Setup, catalog
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
