"""What a publication publishes, in the snapshot and in the stream alike: partitions, filters, column lists and more."""

from __future__ import annotations

from typing import Any

from tests.servers.database import Database
from tests.servers.server import Server
from tests.tail.running import Event, run_tail
from tests.tail.scenario import streaming


def rows(events: list[Event]) -> list[tuple[str, str, dict[str, Any]]]:
    """The row events by what happened, to which table, and with which row."""
    ops = ("read", "insert", "update", "delete")
    return [
        (event["op"], event["table"], event.get("new") or event.get("old") or {})
        for event in events
        if event["op"] in ops
    ]


PARTITIONS = """
    CREATE TABLE root (id int, region text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
    CREATE TABLE north PARTITION OF root FOR VALUES IN ('n');
    CREATE TABLE south (note text, region text NOT NULL, id int NOT NULL);
    ALTER TABLE south DROP note, ADD PRIMARY KEY (id, region);
    ALTER TABLE root ATTACH PARTITION south FOR VALUES IN ('s');
    INSERT INTO root VALUES (1, 'n'), (2, 's');
"""


def test_partitions_under_their_own_names(database: Database) -> None:
    database.psql(PARTITIONS + "CREATE PUBLICATION pub FOR TABLE root")
    with streaming(database) as stream:
        assert rows(stream.before) == [
            ("read", "north", {"id": 1, "region": "n"}),
            ("read", "south", {"region": "s", "id": 2}),
        ]
        events = stream.changes(
            "INSERT INTO root VALUES (3, 'n')", "UPDATE root SET region = 's' WHERE id = 3", "TRUNCATE root"
        )
    assert rows(events) == [
        ("insert", "north", {"id": 3, "region": "n"}),
        ("delete", "north", {"id": 3, "region": "n"}),
        ("insert", "south", {"region": "s", "id": 3}),
    ]
    assert sorted(table["table"] for table in events[-1]["tables"]) == ["north", "south"]


def test_partitions_under_the_root(database: Database) -> None:
    """All is the root's, in the root's column order, partitions that come later too."""
    database.psql(PARTITIONS + "CREATE PUBLICATION pub FOR TABLE root WITH (publish_via_partition_root)")
    with streaming(database) as stream:
        assert [event["op"] for event in stream.before] == ["snapshot_begin", "read", "read", "snapshot_end"]
        assert stream.before[-1]["rows"] == 2
        assert sorted(row["id"] for _, _, row in rows(stream.before)) == [1, 2]
        events = stream.changes(
            "INSERT INTO root VALUES (3, 's')",
            "UPDATE root SET region = 'n' WHERE id = 3",
            "CREATE TABLE west PARTITION OF root FOR VALUES IN ('w'); INSERT INTO west VALUES (4, 'w')",
            "ALTER TABLE root DETACH PARTITION south; INSERT INTO south VALUES ('x', 5)",
            "TRUNCATE root",
        )
    assert {event["table"] for event in stream.before} == {"root"}
    assert [list(row) for _, _, row in rows(stream.before + events)] == [["id", "region"]] * 6
    assert rows(events) == [
        ("insert", "root", {"id": 3, "region": "s"}),
        ("delete", "root", {"id": 3, "region": "s"}),
        ("insert", "root", {"id": 3, "region": "n"}),
        ("insert", "root", {"id": 4, "region": "w"}),
    ]
    assert [event["tables"] for event in events if event["op"] == "truncate"] == [
        [{"schema": "public", "table": "root"}]
    ]


def test_inheritance(database: Database) -> None:
    """Each table has its own rows; a child's are not its parent's too."""
    database.psql("""
        CREATE TABLE parent (id int PRIMARY KEY);
        CREATE TABLE child (extra text, PRIMARY KEY (id)) INHERITS (parent);
        CREATE TABLE lonely () INHERITS (parent);
        INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2, 'x'); INSERT INTO lonely VALUES (9);
        CREATE PUBLICATION pub FOR TABLE ONLY parent, ONLY child;
    """)
    with streaming(database) as stream:
        events = stream.changes("INSERT INTO parent VALUES (3); INSERT INTO child VALUES (4, 'y')")
    assert sorted(rows(stream.before), key=str) + rows(events) == [
        ("read", "child", {"id": 2, "extra": "x"}),
        ("read", "parent", {"id": 1}),
        ("insert", "parent", {"id": 3}),
        ("insert", "child", {"id": 4, "extra": "y"}),
    ]


def test_row_filters(database: Database) -> None:
    """The snapshot has the rows that pass; an update over the border is an insert or a delete."""
    database.psql("""
        CREATE TABLE t (id int PRIMARY KEY, "n n" int);
        ALTER TABLE t REPLICA IDENTITY FULL;
        INSERT INTO t VALUES (1, 5), (2, 50), (3, NULL);
        CREATE PUBLICATION pub FOR TABLE t WHERE ("n n" > 10);
    """)
    with streaming(database) as stream:
        events = stream.changes(
            "INSERT INTO t VALUES (4, 5), (5, 500)",
            'UPDATE t SET "n n" = 11 WHERE id = 1',
            'UPDATE t SET "n n" = 9 WHERE id = 2',
            'UPDATE t SET "n n" = 12 WHERE id = 1',
            "DELETE FROM t WHERE id IN (3, 5)",
        )
    assert rows(stream.before) == [("read", "t", {"id": 2, "n n": 50})]
    assert [(op, row["id"]) for op, _, row in rows(events)] == [
        ("insert", 5),
        ("insert", 1),
        ("delete", 2),
        ("update", 1),
        ("delete", 5),
    ]


def test_filters_of_two_publications(database: Database) -> None:
    """A row counts when any of them lets it pass; a publication without a filter lets all pass."""
    database.psql("""
        CREATE TABLE t (id int PRIMARY KEY, a int);
        INSERT INTO t SELECT n, n FROM generate_series(1, 9) n;
        CREATE PUBLICATION low FOR TABLE t WHERE (id < 3);
        CREATE PUBLICATION high FOR TABLE t WHERE (id > 8);
        CREATE PUBLICATION every FOR TABLE t;
    """)
    for names, expected in [("low", [1, 2]), ("low,high", [1, 2, 9]), ("low,every", [*range(1, 10)])]:
        events = run_tail(names, "--snapshot", "only", dsn=database.dsn()).events
        assert [row["id"] for _, _, row in rows(events)] == expected
    with streaming(database, "--snapshot", "never", publication="low,high") as stream:
        events = stream.changes(
            "INSERT INTO t VALUES (0, 0), (-1, 0), (10, 0)", "UPDATE t SET a = 1 WHERE id IN (5, 9)"
        )
    assert [(op, row["id"]) for op, _, row in rows(events)] == [
        ("insert", 0),
        ("insert", -1),
        ("insert", 10),
        ("update", 9),
    ]


def test_column_lists(database: Database) -> None:
    """Only the columns of the list, in the table's order; a key that is not wholly in it identifies nothing."""
    database.psql("""
        CREATE TABLE t (a int, id int PRIMARY KEY, secret text, z text);
        CREATE TABLE keyless (id int PRIMARY KEY, a int);
        INSERT INTO t VALUES (1, 1, 'x', 'z'); INSERT INTO keyless VALUES (1, 2);
        CREATE PUBLICATION pub FOR TABLE t (z, id, a);
        CREATE PUBLICATION part FOR TABLE keyless (a) WITH (publish = 'insert');
    """)
    with streaming(database, publication="pub,part") as stream:
        events = stream.changes(
            "INSERT INTO t VALUES (2, 2, 'x', 'z'); UPDATE t SET secret = 'y' WHERE id = 2; DELETE FROM t WHERE id = 2",
            "INSERT INTO keyless VALUES (2, 3)",
            "ALTER TABLE t ADD later int; INSERT INTO t VALUES (3, 3, 'x', 'z', 5)",
        )
    reads = [event for event in stream.before if event["op"] == "read"]
    assert [(event["new"], event.get("key")) for event in reads] == [
        ({"a": 2}, None),
        ({"a": 1, "id": 1, "z": "z"}, {"id": 1}),
    ]
    assert [(event["op"], event.get("new"), event.get("key")) for event in events] == [
        ("insert", {"a": 2, "id": 2, "z": "z"}, {"id": 2}),
        ("update", {"a": 2, "id": 2, "z": "z"}, {"id": 2}),
        ("delete", None, {"id": 2}),
        ("insert", {"a": 3}, None),
        ("insert", {"a": 3, "id": 3, "z": "z"}, {"id": 3}),
    ]


def test_published_operations(database: Database) -> None:
    database.psql("""
        CREATE TABLE t (id int PRIMARY KEY);
        CREATE PUBLICATION pub FOR TABLE t WITH (publish = 'delete');
    """)
    with streaming(database) as stream:
        events = stream.changes("INSERT INTO t VALUES (1), (2); UPDATE t SET id = 3 WHERE id = 1; DELETE FROM t")
    assert [(event["op"], event["seq"]) for event in events] == [("delete", 0), ("delete", 1)]


def test_excluded_tables_count(database: Database) -> None:
    """``seq`` is the same whatever is printed, so that runs with other options can be compared."""
    database.psql("""
        CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY);
        CREATE TABLE "B.c ""d" (id int PRIMARY KEY);
        INSERT INTO a VALUES (0); INSERT INTO b VALUES (0);
        CREATE PUBLICATION pub FOR TABLE a, b, "B.c ""d";
    """)
    change = (
        "INSERT INTO a VALUES (1); INSERT INTO b VALUES (1); TRUNCATE a, b; TRUNCATE a; INSERT INTO b VALUES (2);"
        ' INSERT INTO "B.c ""d" VALUES (1)'
    )
    with streaming(database, "--exclude-table", "public.a") as stream:
        assert {event["table"] for event in stream.before} == {"b", 'B.c "d'}
        events = stream.changes(change)
    assert [(event["op"], event["seq"]) for event in events] == [
        ("insert", 1),
        ("truncate", 2),
        ("insert", 4),
        ("insert", 5),
    ]
    assert events[1]["tables"] == [{"schema": "public", "table": "b"}]
    database.psql('TRUNCATE a, b, "B.c ""d"')
    with streaming(database, "--table", 'public."B.c ""d"', "--table", "public.a") as stream:
        events = stream.changes(change)
    assert [(event["op"], event["seq"]) for event in events] == [
        ("insert", 0),
        ("truncate", 2),
        ("truncate", 3),
        ("insert", 5),
    ]


def test_state_tables_are_never_printed(database18: Database) -> None:
    """Under FOR ALL TABLES those of the schema etl are left out, and tables that come later are copied."""
    database18.psql("""
        CREATE SCHEMA etl; CREATE TABLE etl.replication_state (id int PRIMARY KEY);
        CREATE TABLE t (id int PRIMARY KEY);
        INSERT INTO etl.replication_state VALUES (1); INSERT INTO t VALUES (1);
        CREATE PUBLICATION pub FOR ALL TABLES;
    """)
    with streaming(database18) as stream:
        assert rows(stream.before) == [("read", "t", {"id": 1})]
        events = stream.changes(
            "INSERT INTO etl.replication_state VALUES (2); INSERT INTO t VALUES (2); TRUNCATE etl.replication_state",
            "CREATE TABLE etl.later (id int PRIMARY KEY); INSERT INTO etl.later VALUES (1)",
            "CREATE TABLE later (id int PRIMARY KEY); INSERT INTO later VALUES (1)",
        )
        stream.tail.until(lambda event: event["op"] == "snapshot_end" and event["table"] == "later")
        late = [event for event in stream.tail.events if event.get("table") == "later"]
        assert [event["op"] for event in late] == ["snapshot_begin", "read", "snapshot_end"]
        assert rows(stream.changes("INSERT INTO later VALUES (2)"))[-1] == ("insert", "later", {"id": 2})
    assert [(event["table"], event["seq"]) for event in events if event["op"] == "insert"] == [("t", 1)]
    assert "etl" not in {event.get("schema") for event in stream.tail.events}


def test_a_table_of_a_published_schema(database18: Database) -> None:
    database18.psql("""
        CREATE SCHEMA "S"; CREATE TABLE "S".t (id int PRIMARY KEY); INSERT INTO "S".t VALUES (1);
        CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1);
        CREATE PUBLICATION pub FOR TABLES IN SCHEMA "S";
    """)
    with streaming(database18) as stream:
        events = stream.changes("INSERT INTO t VALUES (2)", 'INSERT INTO "S".t VALUES (2)')
    assert [(event["schema"], event["table"]) for event in stream.before + events] == [("S", "t")] * 4


def test_generated_columns(database: Database) -> None:
    """Left out, as the server leaves them out, before and after."""
    database.psql("""
        CREATE TABLE t (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED, a text);
        INSERT INTO t VALUES (1, DEFAULT, 'a');
        CREATE PUBLICATION pub FOR TABLE t;
    """)
    with streaming(database) as stream:
        events = stream.changes("INSERT INTO t VALUES (2, DEFAULT, 'b')")
    assert [row for _, _, row in rows(stream.before + events)] == [{"id": 1, "a": "a"}, {"id": 2, "a": "b"}]
    assert not [event for event in events if event["op"] == "schema"]


def test_published_generated_columns(database18: Database) -> None:
    database18.psql("""
        CREATE TABLE t (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED,
                        thrice int GENERATED ALWAYS AS (id * 3) VIRTUAL);
        CREATE TABLE listed (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED);
        INSERT INTO t VALUES (1); INSERT INTO listed VALUES (1);
        CREATE PUBLICATION pub FOR TABLE t WITH (publish_generated_columns = stored);
        CREATE PUBLICATION list FOR TABLE listed (id, twice);
    """)
    with streaming(database18, publication="pub,list") as stream:
        events = stream.changes("INSERT INTO t VALUES (2); INSERT INTO listed VALUES (2)")
    assert rows(stream.before + events) == [
        ("read", "listed", {"id": 1, "twice": 2}),
        ("read", "t", {"id": 1, "twice": 2}),
        ("insert", "t", {"id": 2, "twice": 4}),
        ("insert", "listed", {"id": 2, "twice": 4}),
    ]


def test_grants_on_columns_alone(database: Database, server: Server) -> None:
    """Such a role may not LOCK TABLE, and needs no more than the published columns."""
    database.psql("""
        CREATE TABLE t (id int PRIMARY KEY, a text, secret text);
        INSERT INTO t VALUES (1, 'a', 's');
        CREATE PUBLICATION pub FOR TABLE t (id, a);
        CREATE ROLE app LOGIN REPLICATION;
        GRANT SELECT (id, a) ON t TO app;
    """)
    with streaming(database, user="app") as stream:
        events = stream.changes("INSERT INTO t VALUES (2, 'b', 's')")
    assert rows(stream.before + events) == [("read", "t", {"id": 1, "a": "a"}), ("insert", "t", {"id": 2, "a": "b"})]


def test_many_tables_and_an_empty_one(database18: Database) -> None:
    database18.psql("""
        SELECT format('CREATE TABLE t%s (id int PRIMARY KEY)', n) FROM generate_series(1, 200) n \\gexec
        CREATE TABLE nothing (); INSERT INTO nothing DEFAULT VALUES; INSERT INTO nothing DEFAULT VALUES;
        CREATE PUBLICATION pub FOR ALL TABLES;
    """)
    finished = run_tail("pub", "--snapshot", "only", dsn=database18.dsn())
    assert finished.code == 0, finished.stderr
    begun = [event["table"] for event in finished.events if event["op"] == "snapshot_begin"]
    assert sorted(begun) == sorted(event["table"] for event in finished.events if event["op"] == "snapshot_end")
    assert len(set(begun)) == 201
    assert [event["new"] for event in finished.events if event["op"] == "read"] == [{}, {}]
