"""What goes into the publication: partitions, inheritance, keyless tables, the state schema."""

from __future__ import annotations

import pytest

from tests.provision.shop import Setup, catalog
from tests.servers.database import Database

PARTS = """
CREATE TABLE shop.parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE shop.parts_low PARTITION OF shop.parts FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (id);
CREATE TABLE shop.parts_1 PARTITION OF shop.parts_low FOR VALUES FROM (0) TO (5);
CREATE TABLE shop.parts_2 PARTITION OF shop.parts FOR VALUES FROM (10) TO (20);
"""


def published(database: Database) -> list[str]:
    return [f"{schema}.{table}" for _, schema, table in catalog(database)["published"]]


def granted(database: Database) -> list[str]:
    with database.connect() as conn:
        query = """SELECT c.oid::regclass::text FROM pg_class c, aclexplode(c.relacl) a
                   WHERE a.grantee = 'cdc'::regrole AND a.privilege_type = 'SELECT' ORDER BY 1"""
        return [name for (name,) in conn.execute(query)]


@pytest.mark.parametrize("via_root", [[], ["--no-via-root"]])
@pytest.mark.parametrize(
    "selection",
    [
        ["--table", "shop.parts", "--table", "shop.parts_2"],
        ["--table", "shop.parts_low"],
        ["--in-schema", "shop"],
        ["--all-tables"],
        ["--literally-all"],
    ],
)
def test_role_may_read_exactly_what_is_published(
    shop: Database, setup: Setup, selection: list[str], via_root: list[str]
) -> None:
    shop.psql(
        PARTS + "CREATE SCHEMA other; CREATE TABLE other.part_3 PARTITION OF shop.parts FOR VALUES FROM (20) TO (30)"
    )
    arguments = ["pub", "--role", "cdc", *selection, *via_root]
    outcome = setup(shop, *arguments)
    assert outcome.code == 0, outcome.err
    assert granted(shop) == published(shop)
    if selection[0] != "--table" and not via_root:
        assert "shop.parts" in published(shop)
    assert setup(shop, *arguments).statements == []


def test_partitions_are_not_listed_beside_their_root(shop18: Database, setup: Setup) -> None:
    shop18.psql(PARTS)
    outcome = setup(shop18, "pub", "--table", "shop.parts_1", "--table", "shop.parts", "--table", "shop.parts_2")
    assert outcome.statements == [
        'CREATE PUBLICATION "pub" FOR TABLE "shop"."parts" WITH (publish_via_partition_root = true)'
    ]


def test_partitions_that_are_read_by_their_own_names_stay_so(shop18: Database, setup: Setup) -> None:
    shop18.psql(PARTS + "CREATE PUBLICATION pub FOR TABLE shop.parts_2")
    outcome = setup(shop18, "pub", "--table", "shop.parts")
    assert outcome.statements == ['ALTER PUBLICATION "pub" ADD TABLE "shop"."parts"']
    assert "under their own names" in outcome.err
    assert published(shop18) == ["shop.parts_1", "shop.parts_2"]
    assert setup(shop18, "pub", "--via-root").steps("publication") == [("altered", "pub")]
    assert published(shop18) == ["shop.parts"]


def test_first_partitioned_table_turns_via_root_on(shop18: Database, setup: Setup) -> None:
    shop18.psql(PARTS + "CREATE PUBLICATION pub FOR TABLE shop.orders")
    assert setup(shop18, "pub", "--table", "shop.parts").code == 0
    assert published(shop18) == ["shop.orders", "shop.parts"]


def test_inheriting_tables_come_along_and_are_checked(shop18: Database, setup: Setup) -> None:
    shop18.psql("CREATE TABLE shop.special (CHECK (id > 0)) INHERITS (shop.orders)")
    refused = setup(shop18, "pub", "--table", "shop.orders")
    assert refused.code == 1
    assert "shop.special" in refused.err
    outcome = setup(shop18, "pub", "--table", "shop.orders", "--skip-keyless")
    assert outcome.statements == ['CREATE PUBLICATION "pub" FOR TABLE ONLY "shop"."orders"']
    shop18.psql("ALTER TABLE shop.special ADD PRIMARY KEY (id)")
    assert setup(shop18, "pub", "--table", "shop.orders").code == 0
    assert published(shop18) == ["shop.orders", "shop.special"]


KEYLESS = {
    "no key": "CREATE TABLE shop.bad (a int)",
    "nothing": "CREATE TABLE shop.bad (a int PRIMARY KEY); ALTER TABLE shop.bad REPLICA IDENTITY NOTHING",
    "deferrable": "CREATE TABLE shop.bad (a int PRIMARY KEY DEFERRABLE)",
    "index gone": """CREATE TABLE shop.bad (a int NOT NULL UNIQUE);
                     ALTER TABLE shop.bad REPLICA IDENTITY USING INDEX bad_a_key;
                     ALTER TABLE shop.bad DROP CONSTRAINT bad_a_key""",
    "leaf": """CREATE TABLE shop.bad (a int PRIMARY KEY) PARTITION BY RANGE (a);
               CREATE TABLE shop.bad_1 PARTITION OF shop.bad FOR VALUES FROM (0) TO (10);
               ALTER TABLE shop.bad_1 REPLICA IDENTITY NOTHING""",
    "root": """CREATE TABLE shop.bad (a int) PARTITION BY RANGE (a);
               CREATE TABLE shop.bad_1 PARTITION OF shop.bad (PRIMARY KEY (a)) FOR VALUES FROM (0) TO (10)""",
}
REMEDIES = {
    "no key": "ALTER TABLE shop.bad REPLICA IDENTITY FULL",
    "nothing": "ALTER TABLE shop.bad REPLICA IDENTITY DEFAULT",
    "deferrable": "ALTER TABLE shop.bad REPLICA IDENTITY FULL",
    "index gone": "ALTER TABLE shop.bad REPLICA IDENTITY FULL",
    "leaf": "ALTER TABLE shop.bad_1 REPLICA IDENTITY DEFAULT",
    "root": "ALTER TABLE shop.bad REPLICA IDENTITY FULL",
}


@pytest.mark.parametrize("case", KEYLESS)
@pytest.mark.parametrize(
    "selection", [["--table", "shop.bad"], ["--in-schema", "shop"], ["--all-tables"], ["--literally-all"]]
)
def test_keyless_table_is_refused_and_its_remedy_helps(
    shop: Database, setup: Setup, case: str, selection: list[str]
) -> None:
    shop.psql(KEYLESS[case])
    before = catalog(shop)
    outcome = setup(shop, "pub", "--role", "cdc", *selection)
    assert outcome.code == 1
    assert outcome.out == ""
    way_out = "" if selection == ["--literally-all"] else "--skip-keyless, or "
    assert f"hint: {REMEDIES[case]}; or {way_out}--publish insert,truncate" in outcome.err
    assert catalog(shop) == before
    shop.psql(REMEDIES[case])
    assert setup(shop, "pub", "--role", "cdc", *selection).code == 0
    shop.psql("INSERT INTO shop.bad VALUES (1); UPDATE shop.bad SET a = 2; DELETE FROM shop.bad")


@pytest.mark.parametrize(
    "selection", [["--table", "shop.bad", "--table", "shop.orders"], ["--in-schema", "shop"], ["--all-tables"]]
)
def test_skip_keyless_leaves_them_out(shop: Database, setup: Setup, selection: list[str]) -> None:
    shop.psql("CREATE TABLE shop.bad (a int); CREATE SCHEMA good; CREATE TABLE good.t (a int PRIMARY KEY)")
    arguments = ["pub", *selection, "--skip-keyless"]
    outcome = setup(shop, *arguments)
    assert outcome.code == 0, outcome.err
    assert ("skipped", "shop.bad") in outcome.steps("publication")
    assert "shop.orders" in published(shop)
    assert "shop.bad" not in published(shop)
    assert ("good.t" in published(shop)) is (selection == ["--all-tables"])
    shop.psql("INSERT INTO shop.bad VALUES (1); UPDATE shop.bad SET a = 2")
    assert setup(shop, *arguments).statements == []


def test_inserts_alone_need_no_key(shop: Database, setup: Setup) -> None:
    shop.psql("CREATE TABLE shop.bad (a int)")
    assert setup(shop, "pub", "--all-tables", "--publish", "insert,truncate").code == 0
    shop.psql("INSERT INTO shop.bad VALUES (1); UPDATE shop.bad SET a = 2")
    refused = setup(shop, "pub", "--publish", "delete", "--skip-keyless")
    assert refused.code == 1
    assert "shop.bad" in refused.err
    assert "--skip-keyless" not in refused.err


def test_unique_index_is_proposed(shop18: Database, setup: Setup) -> None:
    shop18.psql("""CREATE TABLE shop.bad (a int, b int NOT NULL, "C" int NOT NULL);
                   CREATE UNIQUE INDEX nullable ON shop.bad (a);
                   CREATE UNIQUE INDEX partial ON shop.bad (b) WHERE a > 0;
                   CREATE UNIQUE INDEX "Good one" ON shop.bad (b, "C")""")
    assert 'ALTER TABLE shop.bad REPLICA IDENTITY USING INDEX "Good one"' in setup(shop18, "pub", "--all-tables").err


def test_all_tables_keeps_the_state_of_a_pipeline_out(shop: Database, setup: Setup) -> None:
    assert setup(shop, "first", "--all-tables").statements == [
        'CREATE PUBLICATION "first" FOR ALL TABLES WITH (publish_via_partition_root = true)'
    ]
    shop.psql("CREATE SCHEMA etl; CREATE TABLE etl.replication_state (id int PRIMARY KEY)")
    assert "feeds itself" in setup(shop, "first", "--all-tables").err
    assert setup(shop, "second", "--all-tables").code == 0
    found = catalog(shop)["publication schemas"]
    assert found == [("second", "public"), ("second", "shop")]
    assert setup(shop, "second", "--all-tables").statements == []
    assert "feeds itself" in setup(shop, "third", "--literally-all").err


def test_list_is_joined_by_schemas(shop18: Database, setup: Setup) -> None:
    setup(shop18, "pub", "--table", "shop.orders")
    outcome = setup(shop18, "pub", "--all-tables")
    assert outcome.statements == ['ALTER PUBLICATION "pub" ADD TABLES IN SCHEMA "public", "shop"']
    refused = setup(shop18, "pub", "--literally-all")
    assert refused.code == 1
    assert "cannot become FOR ALL TABLES" in refused.err


@pytest.mark.parametrize(
    ("make", "name", "why"),
    [
        ("CREATE UNLOGGED TABLE shop.x (a int PRIMARY KEY)", "shop.x", "is unlogged"),
        ("CREATE VIEW shop.x AS SELECT 1", "shop.x", "is a view"),
        ("CREATE MATERIALIZED VIEW shop.x AS SELECT 1", "shop.x", "is a materialized view"),
        ("CREATE SEQUENCE shop.x", "shop.x", "is a sequence"),
        (
            """CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;
               CREATE FOREIGN TABLE shop.x (a int) SERVER s""",
            "shop.x",
            "is a foreign table",
        ),
        ("SELECT 1", "pg_catalog.pg_class", "is a table of the system"),
        ("SELECT 1", "shop.x", "there is no table shop.x"),
        ("SELECT 1", "nowhere.x", "there is no schema 'nowhere'"),
    ],
)
def test_what_cannot_be_published_is_refused(shop18: Database, setup: Setup, make: str, name: str, why: str) -> None:
    shop18.psql(make)
    before = catalog(shop18)
    outcome = setup(shop18, "pub", "--role", "cdc", "--table", name, "--table", "shop.orders")
    assert outcome.code == 1
    assert why in outcome.err
    assert "hint: " in outcome.err
    assert catalog(shop18) == before


def test_temporary_table_is_refused(shop18: Database, setup: Setup) -> None:
    with shop18.connect() as conn:
        conn.execute("CREATE TEMPORARY TABLE x (a int PRIMARY KEY)")
        row = conn.execute("SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = 'x'").fetchone()
        assert row is not None
        outcome = setup(shop18, "pub", "--table", f"{row[0]}.x")
    assert outcome.code == 1
    assert "is a temporary table" in outcome.err


def test_publication_that_is_not_there_needs_a_description(shop18: Database, setup: Setup) -> None:
    outcome = setup(shop18, "--role", "cdc")
    assert outcome.code == 1
    assert "publication 'pgsense_pub' does not exist" in outcome.err
    assert setup(shop18, "pub", "--in-schema", "nowhere").code == 1
