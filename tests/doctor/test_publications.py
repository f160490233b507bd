"""Publications: what they leave out, what they must not have, and what in them breaks the application's changes."""

from __future__ import annotations

import psycopg
import pytest

from pgrepl.doctor import Status
from tests.doctor.conftest import apply_fixes, examine, of, one
from tests.servers.database import Database


def mend(database: Database, check: str, *publications: str) -> None:
    """Carry out the fix of a check as printed, and see it pass."""
    apply_fixes(database, of(examine(database, *publications), check))
    assert {finding.status for finding in of(examine(database, *publications), check)} == {Status.PASS}


def changes(database: Database, *statements: str) -> None:
    """Run what an application would run."""
    with database.connect() as conn:
        for statement in statements:
            conn.execute(statement.encode())


def refused(database: Database, statement: str) -> None:
    """Run what an application would run, and see it refused because of a publication."""
    with database.connect() as conn, pytest.raises(psycopg.errors.InvalidColumnReference):
        conn.execute(statement.encode())


def test_tables_beside_the_published_ones(database18: Database) -> None:
    database18.psql(
        "CREATE TABLE a (x int PRIMARY KEY); CREATE TABLE b (x int PRIMARY KEY); CREATE TABLE keyless (x int);"
        "CREATE SCHEMA other; CREATE TABLE other.c (x int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE a"
    )
    found = one(examine(database18, "p"), "pub.covers")
    assert (found.status, found.evidence["tables"]) == (Status.INFO, ["public.b", "public.keyless"])
    assert [step.text for step in found.fix] == ['ALTER PUBLICATION "p" ADD TABLE "public"."b";']
    apply_fixes(database18, [found])
    database18.psql("DROP TABLE keyless")
    assert one(examine(database18, "p"), "pub.covers").status is Status.PASS


@pytest.mark.parametrize("via_root", ["true", "false"])
def test_partitions_of_which_one_was_forgotten(database: Database, via_root: str) -> None:
    database.psql(
        "CREATE TABLE root (a int PRIMARY KEY) PARTITION BY RANGE (a);"
        "CREATE TABLE one PARTITION OF root FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE two PARTITION OF root FOR VALUES FROM (10) TO (20);"
        f"CREATE PUBLICATION p FOR TABLE one WITH (publish_via_partition_root = {via_root})"
    )
    found = one(examine(database, "p"), "pub.covers")
    assert (found.status, found.object, found.evidence["root"]) == (Status.WARN, "public.two", "public.root")
    mend(database, "pub.covers", "p")
    # Each is published on its own account: that is no partition that lacks its table's name.
    assert one(examine(database, "p"), "pub.partition_root").status is Status.PASS


@pytest.mark.parametrize("kinds", ["insert", "insert, update", "update, delete, truncate"])
def test_operations(database: Database, kinds: str) -> None:
    database.psql(f"CREATE TABLE t (a int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t WITH (publish = '{kinds}')")
    found = one(examine(database, "p"), "pub.ops")
    assert found.status is Status.WARN
    assert [kind for kind, published in found.evidence.items() if published] == kinds.split(", ")
    mend(database, "pub.ops", "p")


STATE = (
    "CREATE SCHEMA etl; CREATE TABLE etl.replication_state (id bigint PRIMARY KEY);"
    "CREATE SCHEMA shop; CREATE TABLE shop.a (x int PRIMARY KEY, y int NOT NULL); CREATE TABLE b (x int PRIMARY KEY);"
)


@pytest.mark.parametrize(
    ("publication", "left"),
    [
        ("FOR ALL TABLES", {"shop.a", "public.b"}),
        ("FOR ALL TABLES WITH (publish_via_partition_root, publish = 'insert')", {"shop.a", "public.b"}),
        ("FOR TABLES IN SCHEMA etl, shop", {"shop.a"}),
        ("FOR TABLE etl.replication_state, b", {"public.b"}),
    ],
)
def test_state_that_feeds_itself(database: Database, publication: str, left: set[str]) -> None:
    database.psql(f'{STATE} CREATE PUBLICATION "P" {publication}')
    found = one(examine(database, "P"), "pub.excludes_state")
    assert (found.status, found.evidence["tables"]) == (Status.FAIL, ["etl.replication_state"])
    options = "SELECT pubinsert, pubupdate, pubtruncate, pubviaroot FROM pg_publication"
    before = database.psql(options)
    mend(database, "pub.excludes_state", "P")
    published = database.psql("SELECT schemaname || '.' || tablename FROM pg_publication_tables").split()
    assert (set(published), database.psql(options)) == (left, before)


def test_bookmarks_among_all_tables_and_in_a_schema(database18: Database) -> None:
    database18.psql(f"{STATE} CREATE TABLE faucet_state (key text PRIMARY KEY); CREATE PUBLICATION p FOR ALL TABLES")
    mend(database18, "pub.excludes_state", "p")
    database18.psql("ALTER PUBLICATION p SET TABLES IN SCHEMA public, TABLE shop.a WHERE (x > 1)")
    assert one(examine(database18, "p"), "pub.excludes_state").evidence["tables"] == ["public.faucet_state"]
    mend(database18, "pub.excludes_state", "p")
    left = database18.psql("SELECT schemaname, tablename, rowfilter FROM pg_publication_tables ORDER BY 1").split()
    assert left == ["public|b|", "shop|a|(x", ">", "1)"]


def test_a_slot_goes_on_when_the_publication_is_made_anew(database: Database) -> None:
    database.psql(f"{STATE} CREATE PUBLICATION p FOR ALL TABLES")
    slot = f"s_{database.name}"
    with database.connect() as conn:
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
    changes(database, "INSERT INTO b VALUES (1)")
    mend(database, "pub.excludes_state", "p")
    changes(database, "INSERT INTO b VALUES (2)")
    peek = "SELECT count(*) FROM pg_logical_slot_get_binary_changes(%s, NULL, NULL, 'proto_version', '1', "
    with database.connect() as conn:
        notices: list[str] = []
        conn.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
        row = conn.execute(peek + "'publication_names', 'p') WHERE get_byte(data, 0) = ascii('I')", [slot]).fetchone()
        assert (row, notices) == ((2,), [])


@pytest.mark.parametrize("how", ["FOR TABLE root", "FOR ALL TABLES", "FOR TABLES IN SCHEMA public"])
def test_partitions_by_their_own_names(database: Database, how: str) -> None:
    database.psql(
        "CREATE TABLE root (a int PRIMARY KEY) PARTITION BY RANGE (a); CREATE TABLE leaf PARTITION OF root DEFAULT;"
        f"CREATE PUBLICATION p {how}"
    )
    found = one(examine(database, "p"), "pub.partition_root")
    assert (found.status, found.evidence["partitions"]) == (Status.WARN, ["public.leaf"])
    mend(database, "pub.partition_root", "p")


@pytest.mark.parametrize(
    ("table", "entry", "kind"),
    [
        ("t (a int PRIMARY KEY, b int)", "t WHERE (b > 1)", "FULL"),
        ("t (a int PRIMARY KEY, b int NOT NULL)", "t WHERE (b > 1)", "USING INDEX"),
        ("t (a int PRIMARY KEY, b int NOT NULL, c int)", "t (a, b) WHERE (b > 1)", "USING INDEX"),
    ],
)
def test_a_filter_beyond_the_identity(database: Database, table: str, entry: str, kind: str) -> None:
    database.psql(f"CREATE TABLE {table}; INSERT INTO t VALUES (1, 1); CREATE PUBLICATION p FOR TABLE {entry}")
    refused(database, "UPDATE t SET b = 2")
    found = one(examine(database, "p"), "pub.rowfilter_ri")
    assert (found.status, found.object, found.evidence["filter_columns"]) == (Status.FAIL, "public.t", ["b"])
    assert kind in found.fix[-1].text
    mend(database, "pub.rowfilter_ri", "p")
    changes(database, "UPDATE t SET b = 2", "DELETE FROM t")


def test_a_filter_that_the_column_list_does_not_have(database18: Database) -> None:
    database18.psql("CREATE TABLE t (a int PRIMARY KEY, b int); CREATE PUBLICATION p FOR TABLE t (a) WHERE (b > 1)")
    found = one(examine(database18, "p"), "pub.rowfilter_ri")
    assert (found.status, [step.kind for step in found.fix]) == (Status.FAIL, ["action"])
    # The action: the filter without the column.
    database18.psql("ALTER PUBLICATION p SET TABLE t (a) WHERE (a > 1)")
    assert one(examine(database18, "p"), "pub.rowfilter_ri").status is Status.PASS


@pytest.mark.parametrize(
    "fine",
    [
        "CREATE PUBLICATION p FOR TABLE t WHERE (a > 1 OR 'b :varattno 2' <> 'c')",
        "CREATE PUBLICATION p FOR TABLE t WHERE (b > 1) WITH (publish = 'insert')",
        "ALTER TABLE t REPLICA IDENTITY FULL; CREATE PUBLICATION p FOR TABLE t WHERE (b > 1)",
    ],
)
def test_filters_that_fit(database: Database, fine: str) -> None:
    database.psql(f"CREATE TABLE t (a int PRIMARY KEY, b int); INSERT INTO t VALUES (1, 1); {fine}")
    assert one(examine(database, "p"), "pub.rowfilter_ri").status is Status.PASS
    changes(database, "UPDATE t SET b = 2")


def test_a_filter_of_a_partitioned_table_and_the_identity_of_its_leaf(database: Database) -> None:
    # The leaf has its columns in another order, so that numbers of columns would mislead.
    database.psql(
        "CREATE TABLE root (a int, b int NOT NULL) PARTITION BY RANGE (a);"
        "CREATE TABLE leaf (b int NOT NULL, a int PRIMARY KEY); ALTER TABLE root ATTACH PARTITION leaf DEFAULT;"
        "INSERT INTO root VALUES (1, 1);"
        "CREATE PUBLICATION p FOR TABLE root WHERE (b > 1) WITH (publish_via_partition_root)"
    )
    refused(database, "UPDATE root SET b = 2")
    found = one(examine(database, "p"), "pub.rowfilter_ri")
    assert (found.object, found.evidence["filter_columns"]) == ("public.leaf", ["b"])
    mend(database, "pub.rowfilter_ri", "p")
    changes(database, "UPDATE root SET b = 2")


@pytest.mark.parametrize(
    ("table", "entry"),
    [
        ("t (a int, b int, PRIMARY KEY (a, b))", "t (a)"),
        ("t (a int, b int, c int, PRIMARY KEY (a, b))", "t (c) WHERE (a > 0)"),
        ("t (a int PRIMARY KEY, b int); ALTER TABLE t REPLICA IDENTITY FULL", "t (a, b)"),
        ("t (a int NOT NULL UNIQUE, b int); ALTER TABLE t REPLICA IDENTITY FULL", "t (a, b)"),
    ],
)
def test_a_column_list_without_the_identity(database: Database, table: str, entry: str) -> None:
    database.psql(f"CREATE TABLE {table}; INSERT INTO t VALUES (1, 1); CREATE PUBLICATION p FOR TABLE {entry}")
    refused(database, "UPDATE t SET b = 2")
    assert one(examine(database, "p"), "pub.columns_ri").status is Status.FAIL
    mend(database, "pub.columns_ri", "p")
    changes(database, "UPDATE t SET b = 2", "DELETE FROM t")
    # What else stood in the entry is still there.
    assert ("WHERE" in entry) == (database.psql("SELECT rowfilter FROM pg_publication_tables").strip() != "")


def test_a_column_list_with_full_and_no_key(database18: Database) -> None:
    database18.psql(
        "CREATE TABLE t (a int, b int); ALTER TABLE t REPLICA IDENTITY FULL; CREATE PUBLICATION p FOR TABLE t (a)"
    )
    found = one(examine(database18, "p"), "pub.columns_ri")
    assert (found.status, [step.kind for step in found.fix]) == (Status.FAIL, ["action"])
    database18.psql("ALTER TABLE t ADD PRIMARY KEY (a); ALTER TABLE t REPLICA IDENTITY DEFAULT")
    assert one(examine(database18, "p"), "pub.columns_ri").status is Status.PASS


def test_column_lists_that_differ(database: Database) -> None:
    database.psql(
        "CREATE TABLE t (a int PRIMARY KEY, b int, c int); CREATE PUBLICATION p FOR TABLE t (a, b);"
        "CREATE PUBLICATION q FOR TABLE t (a, c)"
    )
    # Nobody said that they are read together.
    assert one(examine(database), "pub.columns_mixed").status is Status.INFO
    assert one(examine(database, "p"), "pub.columns_mixed").status is Status.PASS
    assert one(examine(database, "p", "q"), "pub.columns_mixed").status is Status.FAIL
    mend(database, "pub.columns_mixed", "p", "q")


def test_generated_columns(database: Database) -> None:
    database.psql(
        "CREATE TABLE t (a int PRIMARY KEY, b int GENERATED ALWAYS AS (a * 2) STORED); CREATE PUBLICATION p FOR TABLE t"
    )
    found = one(examine(database, "p"), "pub.gencols")
    assert (found.status, found.evidence["stored"]) == (Status.INFO, ["b"])
    if database.server.version < 18:
        # There is nothing to set: the action is to do without.
        assert [step.kind for step in found.fix] == ["action"]
        database.psql("ALTER TABLE t DROP COLUMN b")
        assert one(examine(database, "p"), "pub.gencols").status is Status.PASS
    else:
        mend(database, "pub.gencols", "p")


@pytest.mark.parametrize("kind", ["STORED", "VIRTUAL"])
def test_generated_columns_in_the_identity(database18: Database, kind: str) -> None:
    database18.psql(
        f"CREATE TABLE t (a int PRIMARY KEY, b int GENERATED ALWAYS AS (a * 2) {kind}); INSERT INTO t VALUES (1);"
        "ALTER TABLE t REPLICA IDENTITY FULL; CREATE PUBLICATION p FOR TABLE t"
    )
    refused(database18, "UPDATE t SET a = 2")
    found = one(examine(database18, "p"), "pub.gencols")
    assert found.status is Status.FAIL
    apply_fixes(database18, [found])
    assert one(examine(database18, "p"), "pub.gencols").status is (Status.PASS if kind == "STORED" else Status.WARN)
    changes(database18, "UPDATE t SET a = 2")


def test_a_generated_column_that_a_list_leaves_out(database18: Database) -> None:
    database18.psql(
        "CREATE TABLE t (a int PRIMARY KEY, b int GENERATED ALWAYS AS (a * 2) STORED, c int);"
        "CREATE PUBLICATION p FOR TABLE t (a)"
    )
    assert one(examine(database18, "p"), "pub.gencols").status is Status.INFO
    mend(database18, "pub.gencols", "p")
    assert database18.psql("SELECT attnames FROM pg_publication_tables").strip() == "{a,b}"


def test_a_slot_that_is_older_than_the_publication(database: Database) -> None:
    slot = f"s_{database.name}"
    database.psql("CREATE TABLE t (a int PRIMARY KEY)")
    create = "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')"
    with database.connect() as conn:
        conn.execute(create, [slot])
    changes(database, "INSERT INTO t VALUES (1)")
    database.psql("CREATE PUBLICATION p FOR TABLE t")
    found = one(examine(database, "p", slot=slot), "pub.newer_than_slot")
    assert (found.status, found.object) == (Status.FAIL, "p")
    assert '"p"' in found.summary

    # The fix is two commands: drop the slot, make it anew.
    assert [step.text.split()[:3] for step in found.fix[:2]] == [
        ["pgrepl", "slots", "drop"],
        ["pgrepl", "slots", "create"],
    ]
    with database.connect() as conn:
        conn.execute("SELECT pg_drop_replication_slot(%s)", [slot])
        conn.execute(create, [slot])
    assert one(examine(database, "p", slot=slot), "pub.newer_than_slot").status is Status.PASS


def test_when_it_can_be_told_without_the_slot(database: Database) -> None:
    slot = f"s_{database.name}"
    database.psql("CREATE TABLE t (a int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t; CREATE ROLE looker LOGIN")
    changes(database, "INSERT INTO t VALUES (1)")
    with database.connect() as conn:
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
    # No right to read a slot is needed for that.
    found = one(examine(database, "p", user="looker", slot=slot), "pub.newer_than_slot")
    assert found.status is Status.PASS
    assert "older" in found.summary
    # Altered since, only a look can tell, which not everyone may have.
    database.psql("ALTER PUBLICATION p SET (publish = 'insert')")
    changes(database, "INSERT INTO t VALUES (2)")
    report = examine(database, "p", user="looker", slot=slot)
    assert one(report, "pub.newer_than_slot").status is Status.UNKNOWN
    assert "pub.newer_than_slot" in report.unseen
    apply_fixes(database, of(report, "pub.newer_than_slot"))
    found = one(examine(database, "p", user="looker", slot=slot), "pub.newer_than_slot")
    assert (found.status, "decodes" in found.summary) == (Status.PASS, True)


def test_a_slot_that_must_not_be_touched(database18: Database) -> None:
    slot = f"s_{database18.name}"
    database18.psql("CREATE TABLE t (a int PRIMARY KEY)")
    with database18.connect(replication="database") as walsender:
        walsender.execute(f"CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput (SNAPSHOT 'nothing')".encode())
        changes(database18, "INSERT INTO t VALUES (1)", "CREATE PUBLICATION p FOR TABLE t")
        found = one(examine(database18, "p", slot=slot), "pub.newer_than_slot")
        assert found.status is Status.UNKNOWN
        assert "in use" in found.summary
        assert found.fix[0].text == f"pgrepl slots peek {slot} --publication p --limit 1"


def test_too_much_to_peek_at(database18: Database) -> None:
    slot = f"s_{database18.name}"
    database18.psql("CREATE TABLE t (a int PRIMARY KEY)")
    with database18.connect() as conn:
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
        conn.execute("SELECT pg_logical_emit_message(false, 'test', repeat('x', 70000000))")
    changes(database18, "INSERT INTO t VALUES (1)", "CREATE PUBLICATION p FOR TABLE t")
    found = one(examine(database18, "p", slot=slot), "pub.newer_than_slot")
    assert (found.status, "unread" in found.summary) == (Status.UNKNOWN, True)
