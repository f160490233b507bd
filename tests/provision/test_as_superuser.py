"""Setup on an untouched server by somebody who may do everything."""

from __future__ import annotations

import psycopg
import pytest

from tests.provision.shop import SHOP, Setup, catalog, scalar
from tests.servers.database import Database, fresh_database
from tests.servers.server import Server

ORDERS = ["pub", "--role", "cdc", "--table", "shop.orders", "--table", "shop.items"]


def test_makes_role_grants_and_publication(shop: Database, setup: Setup) -> None:
    outcome = setup(shop, *ORDERS)
    assert outcome.code == 0, outcome.err
    assert outcome.document["needs"] is None
    assert outcome.steps("role") == [("created", "cdc")]
    assert outcome.steps("publication") == [("created", "pub")]
    found = catalog(shop)
    assert ("cdc", True, True, False, False, False, False, []) in found["roles"]
    assert found["published"] == [("pub", "shop", "items"), ("pub", "shop", "orders")]
    with shop.connect() as conn:
        readable = "SELECT has_table_privilege('cdc', %s, 'SELECT')"
        assert scalar(conn, readable, "shop.orders")
        assert not scalar(conn, readable, "shop.secrets")


def test_second_run_changes_nothing(shop: Database, setup: Setup) -> None:
    setup(shop, *ORDERS)
    before = catalog(shop)
    outcome = setup(shop, *ORDERS)
    assert outcome.code == 0
    assert {step["status"] for step in outcome.document["steps"]} == {"exists"}
    assert outcome.statements == []
    assert catalog(shop) == before


def test_adds_what_is_missing_and_weakens_nothing(shop: Database, setup: Setup) -> None:
    setup(shop, "pub", "--role", "cdc", "--table", "shop.orders", "--publish", "insert")
    shop.psql("ALTER ROLE cdc NOLOGIN CREATEDB; GRANT INSERT ON shop.orders TO cdc")
    outcome = setup(shop, "pub", "--role", "cdc", "--table", "shop.items", "--publish", "update", "--no-via-root")
    assert outcome.code == 0, outcome.err
    assert outcome.statements == [
        'ALTER ROLE "cdc" LOGIN',
        'GRANT SELECT ON TABLE "shop"."items" TO "cdc"',
        'ALTER PUBLICATION "pub" ADD TABLE "shop"."items"',
        "ALTER PUBLICATION \"pub\" SET (publish = 'insert, update')",
    ]
    assert outcome.steps("publication") == [("altered", "pub")]
    assert "publishes insert as well" in outcome.err
    found = catalog(shop)
    assert ("cdc", True, True, False, True, False, False, []) in found["roles"]
    assert found["published"] == [("pub", "shop", "items"), ("pub", "shop", "orders")]


def test_role_streams_and_reads_but_does_not_write(
    shop: Database, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGREPL_ROLE_PASSWORD", "correct horse")
    assert setup(shop, *ORDERS).code == 0
    server = shop.server
    with psycopg.connect(server.tcp_dsn(shop.name, "cdc", "correct horse"), autocommit=True) as conn:
        assert conn.execute("SELECT * FROM shop.orders").fetchall() == []
        for refused in ("INSERT INTO shop.orders VALUES (1)", "DELETE FROM shop.items", "SELECT * FROM shop.secrets"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(refused.encode())
    dsn = server.tcp_dsn(shop.name, "cdc", "correct horse", replication="database")
    walsender = psycopg.pq.PGconn.connect(dsn.encode())
    assert walsender.status == psycopg.pq.ConnStatus.OK, walsender.error_message
    made = walsender.exec_(b"CREATE_REPLICATION_SLOT setup_test TEMPORARY LOGICAL pgoutput")
    assert made.status == psycopg.pq.ExecStatus.TUPLES_OK, made.error_message
    shop.psql("INSERT INTO shop.orders VALUES (1, 'first')")
    start = b"START_REPLICATION SLOT setup_test LOGICAL 0/0 (proto_version '1', publication_names 'pub')"
    assert walsender.exec_(start).status == psycopg.pq.ExecStatus.COPY_BOTH
    received = b""
    while b"first" not in received:
        received = bytes(walsender.get_copy_data(0)[1])
    walsender.finish()


@pytest.mark.parametrize(
    "arguments",
    [
        ORDERS,
        ["pub", "--role", "cdc", "--all-tables"],
        ["pub", "--role", "cdc", "--all-tables", "--publish", "insert,truncate"],
        ["pub", "--role", "cdc", "--in-schema", "shop", "--no-via-root"],
        ["P u\"b'", "--role", "C d\"c'", "--literally-all"],
        ["--role", "cdc", "--table", 'shop."It\'s ""q"""', "--table", "shop.parts"],
    ],
)
def test_dry_run_by_psql_gives_what_the_command_gives(server: Server, setup: Setup, arguments: list[str]) -> None:
    schema = (
        SHOP + 'CREATE TABLE shop."It\'s ""q""" (id int PRIMARY KEY);'
        "CREATE TABLE shop.parts (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE shop.parts_1 PARTITION OF shop.parts FOR VALUES FROM (0) TO (10);"
    )
    found = []
    for by_psql in (True, False):
        with fresh_database(server) as database:
            database.psql(schema)
            if by_psql:
                before = catalog(database)
                outcome = setup(database, *arguments, "--dry-run", yes=False, as_json=False)
                assert outcome.code == 0, outcome.err
                assert catalog(database) == before
                database.psql(outcome.out)
            else:
                outcome = setup(database, *arguments)
                assert outcome.code == 0, outcome.err
            found.append(catalog(database))
            assert found[-1]["published"]
    assert found[0] == found[1]


def test_dry_run_in_json_is_planned(shop18: Database, setup: Setup) -> None:
    outcome = setup(shop18, *ORDERS, "--dry-run", yes=False)
    assert outcome.code == 0
    assert outcome.steps("role") == [("planned", "cdc")]
    assert outcome.steps("publication") == [("planned", "pub")]


@pytest.mark.parametrize(
    ("only", "role", "publication"), [("check", False, False), ("role", True, False), ("publication", False, True)]
)
def test_only_one_part(shop18: Database, setup: Setup, only: str, role: bool, publication: bool) -> None:
    outcome = setup(shop18, *ORDERS, "--only", only, yes=only != "check")
    assert outcome.code == 0, outcome.err
    found = catalog(shop18)
    assert ("cdc" in {name for name, *_ in found["roles"]}) is role
    assert bool(found["publications"]) is publication
    assert outcome.steps("check")


def test_role_for_a_publication_that_is_there(shop18: Database, setup: Setup) -> None:
    shop18.psql("CREATE PUBLICATION pub FOR TABLE shop.orders")
    outcome = setup(shop18, "pub", "--role", "cdc")
    assert outcome.code == 0
    assert outcome.steps("publication") == [("exists", "pub")]
    assert 'GRANT SELECT ON TABLE "shop"."orders" TO "cdc"' in outcome.statements


def test_whole_schemas_give_future_tables_to_the_role(shop: Database, setup: Setup) -> None:
    shop.psql("CREATE ROLE clerk; ALTER TABLE shop.items OWNER TO clerk; GRANT ALL ON SCHEMA shop TO clerk")
    assert setup(shop, "pub", "--role", "cdc", "--in-schema", "shop").code == 0
    shop.psql("SET ROLE clerk; CREATE TABLE shop.later (id int PRIMARY KEY)")
    with shop.connect() as conn:
        assert scalar(conn, "SELECT has_table_privilege('cdc', 'shop.later', 'SELECT')")
    assert setup(shop, "pub", "--role", "cdc", "--in-schema", "shop").statements == []


def test_listed_tables_give_no_future_ones(shop18: Database, setup: Setup) -> None:
    setup(shop18, *ORDERS)
    assert catalog(shop18)["defaults"] == []


def test_role_of_a_managed_service_stands_for_replication(shop18: Database, setup: Setup) -> None:
    shop18.psql("CREATE ROLE rds_replication")
    outcome = setup(shop18, *ORDERS)
    assert outcome.code == 0
    assert outcome.statements[:2] == ['CREATE ROLE "cdc" LOGIN', 'GRANT "rds_replication" TO "cdc"']
    assert setup(shop18, *ORDERS).statements == []


def test_thousand_tables_in_few_statements(shop18: Database, setup: Setup) -> None:
    shop18.psql(
        "SELECT format('CREATE TABLE shop.t%s (id int PRIMARY KEY)', n) FROM generate_series(1, 1000) n \\gexec"
    )
    outcome = setup(shop18, "pub", "--role", "cdc", *(f"--table=shop.t{n}" for n in range(1, 1001)))
    assert outcome.code == 0
    assert len(outcome.statements) == 4
    assert len(catalog(shop18)["published"]) == 1000
