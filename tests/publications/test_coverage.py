"""Coverage: what the report says is what the server streams, and its remediation closes the gap."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import psycopg
import pytest

from pgrepl.connection import connect
from pgrepl.conninfo import parse
from pgrepl.errors import InputError
from pgrepl.provision import coverage
from pgrepl.provision.coverage import Coverage
from pgrepl.provision.wanted import OPERATIONS
from tests.publications.oracle import catalog, streamed
from tests.servers.database import Database

# Every table has an id and a v; partitions are by id.
TABLES = """
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE u (id int PRIMARY KEY, v text);
CREATE TABLE root (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE middle PARTITION OF root FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (id);
CREATE TABLE low PARTITION OF middle FOR VALUES FROM (0) TO (10);
CREATE SCHEMA other;
CREATE TABLE other.high PARTITION OF middle FOR VALUES FROM (10) TO (100);
CREATE TABLE parent (id int PRIMARY KEY, v text);
CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
CREATE TABLE grandchild (PRIMARY KEY (id)) INHERITS (child);
"""


@dataclass(frozen=True)
class Case:
    """A publication, a table that is needed, what is found, and the rows (table and id) that tell whether it is so."""

    make: str
    table: str
    gaps: Collection[str] = ()
    rows: Sequence[tuple[str, int]] = ()
    operations: Sequence[str] = ()
    published_as: Sequence[str] | None = None
    blocked: bool = False
    # A gap of tomorrow, which today's changes cannot show, and one of columns, which the number of changes does not.
    shows: bool = True
    # With publish_via_partition_root the server never streams a TRUNCATE of a partition itself.
    truncates: bool = True


ROOTS = [("low", 1), ("other.high", 11)]
FAMILY = [("parent", 1), ("child", 2), ("grandchild", 3)]
VIA_ROOT = "WITH (publish_via_partition_root)"
CASES = {
    "listed": Case("CREATE PUBLICATION p FOR TABLE t", "t", published_as=["public.t"]),
    "all tables": Case("CREATE PUBLICATION p FOR ALL TABLES", "t", published_as=["public.t"]),
    "schema": Case("CREATE PUBLICATION p FOR TABLES IN SCHEMA public", "t", published_as=["public.t"]),
    "no publication": Case("SELECT", "t", {"not_published"}),
    "no publication of a partitioned table": Case("SELECT", "root", {"not_published"}, ROOTS),
    "no publication of a family": Case("SELECT", "parent", {"not_published", "children"}, FAMILY),
    "another table": Case("CREATE PUBLICATION p FOR TABLE u", "t", {"not_published"}),
    "another schema": Case("CREATE PUBLICATION p FOR TABLES IN SCHEMA other", "t", {"not_published"}),
    "empty": Case("CREATE PUBLICATION p", "t", {"not_published"}),
    "root as itself": Case(f"CREATE PUBLICATION p FOR TABLE root {VIA_ROOT}", "root", (), ROOTS, (), ["public.root"]),
    "root as its leaves": Case(
        "CREATE PUBLICATION p FOR TABLE root", "root", (), ROOTS, (), ["other.high", "public.low"]
    ),
    "root of all tables": Case(
        "CREATE PUBLICATION p FOR ALL TABLES", "root", (), ROOTS, (), ["other.high", "public.low"]
    ),
    "root by its schema": Case(f"CREATE PUBLICATION p FOR TABLES IN SCHEMA public {VIA_ROOT}", "root", (), ROOTS),
    "root by a leaf's schema": Case("CREATE PUBLICATION p FOR TABLES IN SCHEMA other", "root", {"partitions"}, ROOTS),
    "one leaf of a root": Case("CREATE PUBLICATION p FOR TABLE low", "root", {"partitions"}, ROOTS),
    "all leaves one by one": Case(
        "CREATE PUBLICATION p FOR TABLE low, other.high", "root", {"partitions"}, ROOTS, shows=False
    ),
    "middle for the root": Case("CREATE PUBLICATION p FOR TABLE middle", "root", {"partitions"}, ROOTS, shows=False),
    "middle by the root": Case(
        f"CREATE PUBLICATION p FOR TABLE root {VIA_ROOT}", "middle", (), ROOTS, (), ["public.root"], truncates=False
    ),
    "leaf by the root": Case(
        f"CREATE PUBLICATION p FOR TABLE root {VIA_ROOT}",
        "other.high",
        (),
        [("other.high", 11)],
        (),
        ["public.root"],
        truncates=False,
    ),
    "leaf of a listed root": Case("CREATE PUBLICATION p FOR TABLE root", "low", (), [("low", 1)], (), ["public.low"]),
    "leaf alone": Case(f"CREATE PUBLICATION p FOR TABLE low {VIA_ROOT}", "low", (), [("low", 1)], (), ["public.low"]),
    "other leaf": Case("CREATE PUBLICATION p FOR TABLE other.high", "low", {"not_published"}, [("low", 1)]),
    "row filter": Case(
        "CREATE PUBLICATION p FOR TABLE t WHERE (id > 5)", "t", {"row_filter"}, published_as=["public.t"], blocked=True
    ),
    "row filter that the schema lifts": Case(
        "CREATE PUBLICATION p FOR TABLE t WHERE (id > 5), TABLES IN SCHEMA public", "t"
    ),
    "row filter of the root": Case(
        f"CREATE PUBLICATION p FOR TABLE root WHERE (id > 5) {VIA_ROOT}",
        "low",
        {"row_filter"},
        [("low", 1)],
        blocked=True,
        truncates=False,
    ),
    "row filter of a leaf": Case(
        "CREATE PUBLICATION p FOR TABLE root, low WHERE (id > 5)", "root", {"row_filter"}, ROOTS, blocked=True
    ),
    "row filter of a leaf that the root lifts": Case(
        f"CREATE PUBLICATION p FOR TABLE root, low WHERE (id > 5) {VIA_ROOT}", "root", (), ROOTS
    ),
    "column list": Case("CREATE PUBLICATION p FOR TABLE t (id)", "t", {"columns"}, blocked=True, shows=False),
    "column list of all columns": Case("CREATE PUBLICATION p FOR TABLE t (id, v)", "t"),
    "column since the list": Case(
        "CREATE PUBLICATION p FOR TABLE t (id, v); ALTER TABLE t ADD w int", "t", {"columns"}, blocked=True, shows=False
    ),
    "generated column": Case(
        "ALTER TABLE t ADD w int GENERATED ALWAYS AS (id * 2) STORED; CREATE PUBLICATION p FOR TABLE t", "t"
    ),
    "dropped column": Case("ALTER TABLE t ADD w int; ALTER TABLE t DROP w; CREATE PUBLICATION p FOR TABLE t", "t"),
    "filter and missing operation": Case(
        "CREATE PUBLICATION p FOR TABLE t WHERE (v <> 'new') WITH (publish = 'insert')",
        "t",
        {"row_filter"},
        operations=("update", "delete", "truncate"),
        blocked=True,
    ),
    "family": Case("CREATE PUBLICATION p FOR TABLE parent", "parent", (), FAMILY),
    "parent only": Case("CREATE PUBLICATION p FOR TABLE ONLY parent", "parent", {"children"}, FAMILY),
    "without the grandchild": Case(
        "CREATE PUBLICATION p FOR TABLE ONLY parent, ONLY child", "parent", {"children"}, FAMILY
    ),
    "child alone": Case("CREATE PUBLICATION p FOR TABLE child", "child", (), FAMILY[1:]),
    "child of a published parent": Case(
        "CREATE PUBLICATION p FOR TABLE ONLY parent", "child", {"not_published", "children"}, FAMILY[1:]
    ),
    "operations": Case(
        "CREATE PUBLICATION p FOR TABLE t WITH (publish = 'insert, delete')", "t", operations=("update", "truncate")
    ),
    "no truncate of any": Case(
        "CREATE PUBLICATION p FOR ALL TABLES WITH (publish = 'insert, update, delete')", "t", operations=("truncate",)
    ),
    "no key": Case(
        "ALTER TABLE t DROP CONSTRAINT t_pkey; CREATE PUBLICATION p FOR TABLE u", "t", {"not_published"}, blocked=True
    ),
    "no key, and update to be published": Case(
        "ALTER TABLE u DROP CONSTRAINT u_pkey; CREATE PUBLICATION p FOR TABLE t, u WITH (publish = 'insert')",
        "t",
        operations=("update", "delete", "truncate"),
        blocked=True,
    ),
    "leaf without a key": Case(
        "ALTER TABLE low REPLICA IDENTITY NOTHING; CREATE PUBLICATION p FOR TABLE u",
        "root",
        {"not_published"},
        ROOTS,
        blocked=True,
    ),
    "child without a key": Case(
        "ALTER TABLE grandchild DROP CONSTRAINT grandchild_pkey;"
        " CREATE PUBLICATION p FOR TABLE ONLY parent, ONLY child",
        "parent",
        {"children"},
        FAMILY,
        blocked=True,
    ),
}


@pytest.fixture
def tables(database: Database) -> Database:
    """A database with partitioned and inheriting tables."""
    database.psql(TABLES)
    return database


def inspect(
    database: Database,
    publication: str,
    names: Iterable[str],
    operations: Collection[str] = OPERATIONS,
    user: str = "postgres",
) -> Coverage:
    """Look as the command does."""
    with connect(parse(database.dsn(user), "the test")) as conn:
        return coverage.inspect(conn, publication, map(_pair, names), operations=operations)


def _pair(name: str) -> tuple[str, str]:
    schema, _, table = name.rpartition(".")
    return schema or "public", table


def _changes(case: Case) -> tuple[list[str], dict[str, int]]:
    """Give changes of the required table, in each table that holds some of its rows, and how many they are."""
    rows = case.rows or [(case.table, 1)]
    inserts = [f"INSERT INTO {table} (id, v) VALUES ({number}, 'new')" for table, number in rows]
    rest = [f"UPDATE {case.table} SET v = 'changed'", f"DELETE FROM {case.table}", f"TRUNCATE {case.table}"]
    everything = {"insert": len(rows), "update": len(rows), "delete": len(rows), "truncate": 1}
    if not case.truncates:
        del everything["truncate"]
    return [*inserts, *rest], everything


@pytest.mark.parametrize("name", CASES)
def test_the_report_is_what_the_server_streams(tables: Database, name: str) -> None:
    case = CASES[name]
    tables.psql(case.make)
    before = catalog(tables)
    report = inspect(tables, "p", [case.table])
    (table,) = [*report.present, *report.missing]
    assert {gap.kind for gap in table.gaps} == set(case.gaps)
    assert report.missing_operations == tuple(case.operations)
    assert report.satisfied is (not case.gaps and not case.operations)
    assert report.manageable is not case.blocked
    assert bool(report.remediation) is not report.satisfied
    if case.published_as is not None:
        assert [".".join(each) for each in table.published_as] == case.published_as
    assert catalog(tables) == before
    statements, everything = _changes(case)
    if case.shows:
        assert (streamed(tables, "p", statements) == everything) is report.satisfied

    tables.psql(report.script())
    closed = inspect(tables, "p", [case.table])
    assert (closed.satisfied, closed.remediation, closed.blockers) == (True, (), ())
    assert streamed(tables, "p", statements) == everything


def test_what_is_needed_decides(tables: Database) -> None:
    tables.psql("CREATE PUBLICATION p FOR TABLE t WITH (publish = 'insert')")
    assert inspect(tables, "p", ["t"], ["insert"]).satisfied
    assert inspect(tables, "p", ["t"], ["insert", "delete"]).missing_operations == ("delete",)
    made = inspect(tables, "new", ["t"], ["delete", "insert"])
    assert made.remediation == ('CREATE PUBLICATION "new" FOR TABLE "public"."t" WITH (publish = \'insert, delete\');',)
    with pytest.raises(InputError, match="'upsert' cannot be published"):
        inspect(tables, "p", ["t"], ["upsert"])


def test_one_statement_for_all_that_is_missing(tables: Database) -> None:
    tables.psql(
        'CREATE SCHEMA "S.1"; CREATE TABLE "S.1"."T ""2""" (id int PRIMARY KEY); CREATE PUBLICATION "P p" FOR TABLE u'
    )
    with connect(parse(tables.dsn(), "the test")) as conn:
        names = [
            ("S.1", 'T "2"'),
            ("public", "low"),
            ("public", "root"),
            ("public", "u"),
            ("public", "t"),
            ("public", "t"),
        ]
        report = coverage.inspect(conn, "P p", names)
        assert [(each.schema, each.name) for each in report.missing] == [
            ("S.1", 'T "2"'),
            ("public", "low"),
            ("public", "root"),
            ("public", "t"),
        ]
        assert [(each.schema, each.name) for each in report.present] == [("public", "u")]
        assert report.remediation[0] == (
            'ALTER PUBLICATION "P p" ADD TABLE "S.1"."T ""2""", "public"."root", "public"."t";'
        )
        after, applied = coverage.ensure(conn, "P p", names)
    assert after.satisfied
    assert applied == report.remediation


@pytest.mark.parametrize(
    ("make", "name", "text"),
    [
        ("SELECT", "gone", "there is no table public.gone"),
        ("SELECT", "nowhere.t", "there is no schema 'nowhere' for table nowhere.t"),
        ("CREATE VIEW w AS SELECT 1", "w", "public.w is a view and cannot be published"),
        ("CREATE UNLOGGED TABLE w (id int)", "w", "public.w is unlogged and cannot be published"),
    ],
)
def test_what_no_publication_can_hold(tables: Database, make: str, name: str, text: str) -> None:
    tables.psql(f"{make}; CREATE PUBLICATION p FOR ALL TABLES")
    report = inspect(tables, "p", [name, "t"])
    assert not report.satisfied
    assert not report.manageable
    assert report.blockers == (text,)
    assert report.remediation == ()
    assert [each.name for each in report.present] == ["t"]
    beside = inspect(tables, "new", [name, "t"])
    assert not beside.manageable
    assert beside.remediation == ('CREATE PUBLICATION "new" FOR TABLE "public"."t";',)


@pytest.mark.parametrize(
    ("make", "table", "kind"),
    [
        ("CREATE UNLOGGED TABLE off PARTITION OF root FOR VALUES FROM (100) TO (200)", "root", "partitions"),
        (
            """CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;
               CREATE FOREIGN TABLE off () INHERITS (child) SERVER s""",
            "parent",
            "children",
        ),
    ],
)
def test_a_part_that_no_publication_can_hold(tables: Database, make: str, table: str, kind: str) -> None:
    tables.psql(f"CREATE PUBLICATION p FOR TABLE root, parent; {make}")
    report = inspect(tables, "p", [table])
    assert [gap.kind for each in report.missing for gap in each.gaps] == [kind]
    assert not report.manageable
    assert "public.off is" in report.blockers[0]
    assert inspect(tables, "p", ["t"]).blockers == ()


ROLES = {
    "superuser": "",
    "nobody": "",
    "owner of all": "ALTER TABLE t OWNER TO {0}; ALTER PUBLICATION p OWNER TO {0}",
    "owner of the table": "ALTER TABLE t OWNER TO {0}",
    "owner of the publication": "ALTER PUBLICATION p OWNER TO {0}",
    "owner of the table who may create": "ALTER TABLE t OWNER TO {0}; GRANT CREATE ON DATABASE {1} TO {0}",
    "who may create": "GRANT CREATE ON DATABASE {1} TO {0}",
    "member of the owner": "ALTER TABLE t OWNER TO boss; ALTER PUBLICATION p OWNER TO boss; GRANT boss TO {0}",
    "member without inheriting": (
        "ALTER TABLE t OWNER TO boss; ALTER PUBLICATION p OWNER TO boss; GRANT boss TO {0} WITH INHERIT FALSE"
    ),
}
GAPS = {
    "table": ("p", ["t"], OPERATIONS),
    "operation": ("q", ["u"], OPERATIONS),
    "publication": ("new", ["t"], OPERATIONS),
}


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("role", ROLES)
def test_manageable_is_what_the_server_lets_the_role_do(tables: Database, role: str, gap: str) -> None:
    who = "postgres" if role == "superuser" else f"r_{tables.name}"
    tables.psql("CREATE PUBLICATION p FOR TABLE u; CREATE PUBLICATION q FOR TABLE u WITH (publish = 'insert')")
    tables.psql(f"CREATE ROLE boss; CREATE ROLE r_{tables.name} LOGIN")
    change = ROLES[role].format(who, tables.name)
    tables.psql(
        f"GRANT CREATE ON DATABASE {tables.name} TO boss;"
        + change
        + (change and ";")
        + change.replace("PUBLICATION p", "PUBLICATION q")
    )
    publication, names, operations = GAPS[gap]
    report = inspect(tables, publication, names, operations, user=who)
    assert not report.satisfied
    assert report.manageable is _may(tables, who, report.remediation)
    assert bool(report.blockers) is not report.manageable
    before = catalog(tables)
    with connect(parse(tables.dsn(who), "the test")) as conn:
        after, applied = coverage.ensure(conn, publication, map(_pair, names))
    assert after.satisfied is report.manageable
    assert applied == (report.remediation if report.manageable else ())
    assert (catalog(tables) == before) is not report.manageable


def _may(database: Database, user: str, statements: Sequence[str]) -> bool:
    """Whether the role may run the statements, which are undone."""
    with database.connect(user) as conn, conn.transaction(force_rollback=True):
        try:
            for statement in statements:
                conn.execute(statement.encode())
        except psycopg.errors.InsufficientPrivilege:
            return False
    return True


def test_what_the_role_lacks_is_named(tables: Database) -> None:
    who = f"r_{tables.name}"
    tables.psql(f"CREATE PUBLICATION p; CREATE ROLE {who} LOGIN; ALTER TABLE u OWNER TO {who}")
    assert inspect(tables, "p", ["t", "u", "parent"], user=who).blockers == (
        f"role {who} does not own publication p",
        f"role {who} does not own table public.parent",
        f"role {who} does not own table public.child",
        f"role {who} does not own table public.grandchild",
        f"role {who} does not own table public.t",
    )
    assert inspect(tables, "new", ["u"], user=who).blockers == (
        f"role {who} may not create anything in database {tables.name}",
    )


RESTRICTED = {
    "filter on the key": ("t WHERE (id > 0)", True),
    "filter on more": ("t WHERE (id > 0 AND v <> '')", False),
    "list with the key": ("t (id)", True),
    "list without the key": ("t (v)", False),
    "filter on what the list holds": ("t (id, v) WHERE (v <> '')", False),
    "full and filter": ("full_one WHERE (v <> '')", True),
    "full and list": ("full_one (id)", False),
    "index and filter on it": ("index_one WHERE (code > 0)", True),
    "index and filter on the key": ("index_one WHERE (id > 0)", False),
    "index and list without it": ("index_one (id)", False),
    "root and filter": ("root WHERE (v <> '')", False),
    "root and filter on the key": ("root WHERE (id > 0)", True),
    "root and list": ("root (v)", False),
}


@pytest.mark.parametrize("name", RESTRICTED)
def test_update_is_not_published_where_it_would_fail(tables: Database, name: str) -> None:
    what, fits = RESTRICTED[name]
    tables.psql(
        """CREATE TABLE full_one (id int, v text); ALTER TABLE full_one REPLICA IDENTITY FULL;
           CREATE TABLE index_one (id int PRIMARY KEY, v text, code int NOT NULL UNIQUE);
           ALTER TABLE index_one REPLICA IDENTITY USING INDEX index_one_code_key"""
    )
    table = what.split()[0]
    tables.psql(f"CREATE PUBLICATION p FOR TABLE {what}, u WITH (publish = 'insert', publish_via_partition_root)")
    report = inspect(tables, "p", ["u"])
    assert report.manageable is fits
    if not fits:
        assert f"public.{table}: row filter or column list" in report.blockers[0]
    with tables.connect() as conn:
        conn.execute("ALTER PUBLICATION p SET (publish = 'insert, update')")
        assert _updates(conn, table) is fits


def _updates(conn: psycopg.Connection, table: str) -> bool:
    more = ", code) VALUES (1, 'a', 1" if table == "index_one" else ") VALUES (1, 'a'"
    conn.execute(f"INSERT INTO {table} (id, v{more})".encode())
    try:
        conn.execute(f"UPDATE {table} SET v = 'b'".encode())
    except psycopg.errors.InvalidColumnReference:
        return False
    return True
