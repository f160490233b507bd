"""``create``, ``add`` and ``remove``, and ``coverage --ensure``: what they change, refuse, ask and leave alone."""

from __future__ import annotations

import threading
from pathlib import Path

import psycopg
import pytest

from pgrepl.provision import coverage
from tests.command import eventually, pgrepl, pgrepl_at_terminal
from tests.conftest import NewServer
from tests.publications.conftest import SHOP, call, published
from tests.publications.oracle import catalog
from tests.servers.database import Database, fresh_database
from tests.servers.server import Server

ODD = '"S.1"."T ""2"""'


def test_a_publication_is_made_and_grows_and_shrinks(shop: Database) -> None:
    made = call(shop, "create", "pub", "--table", "shop.orders", "--table", ODD, "--yes", "--json")
    assert (made.code, made.err) == (0, "")
    assert made.statements == ['CREATE PUBLICATION "pub" FOR TABLE "shop"."orders", "S.1"."T ""2"""']
    assert made.document["steps"][0]["status"] == "created"
    grown = call(shop, "add", "pub", "--table", "shop.items", "--table", "shop.orders", "--yes", "--json")
    assert grown.statements == ['ALTER PUBLICATION "pub" ADD TABLE "shop"."items"']
    assert published(shop) == ['S.1.T "2"', "shop.items", "shop.orders"]
    again = call(shop, "add", "pub", "--table", "shop.items", "--yes", "--json")
    assert (again.code, again.statements, again.document["steps"][0]["status"]) == (0, [], "exists")
    shrunk = call(shop, "remove", "pub", "--table", ODD, "--table", "shop.items", "--yes", "--json")
    assert shrunk.statements == ['ALTER PUBLICATION "pub" DROP TABLE "S.1"."T ""2""", "shop"."items"']
    assert published(shop) == ["shop.orders"]
    last = call(shop, "remove", "pub", "--table", "shop.orders", "--yes")
    assert last.code == 0
    assert "is empty then" in last.err
    assert published(shop) == []


def test_a_publication_of_an_odd_name(shop18: Database) -> None:
    name = 'The "pub", 1'
    assert call(shop18, "create", name, "--table", "shop.orders", "--yes").code == 0
    assert call(shop18, "add", name, "--table", "shop.items", "--yes").code == 0
    assert call(shop18, "coverage", name, "--table", "shop.items").code == 0
    assert call(shop18, "show", name, "--json").document["name"] == name
    assert call(shop18, "remove", name, "--table", "shop.orders", "--yes").code == 0
    assert published(shop18, name) == ["shop.items"]


def test_schemas_go_in_and_out(shop: Database) -> None:
    shop.psql("DROP TABLE shop.keyless")
    assert call(shop, "create", "pub", "--in-schema", "S.1", "--yes").code == 0
    assert call(shop, "add", "pub", "--in-schema", '"shop"', "--yes").code == 0
    assert len(published(shop)) == 6
    one = call(shop, "remove", "pub", "--table", "shop.orders", "--yes")
    assert one.code == 1
    assert "with all tables of schema shop" in one.err
    assert call(shop, "remove", "pub", "--in-schema", "shop", "--yes").code == 0
    assert published(shop) == ['S.1.T "2"']


def test_partitions_go_in_and_out_as_a_whole(shop: Database) -> None:
    assert call(shop, "create", "pub", "--table", "shop.parts", "--table", "shop.orders", "--yes").code == 0
    assert published(shop) == ["shop.orders", "shop.parts"]
    part = call(shop, "remove", "pub", "--table", "shop.parts_1", "--yes")
    assert part.code == 1
    assert "as a part of shop.parts" in part.err
    assert call(shop, "remove", "pub", "--table", "shop.parts", "--yes").code == 0
    assert call(shop, "add", "pub", "--table", "shop.parts_1", "--yes").code == 0
    assert published(shop) == ["shop.orders", "shop.parts_1"]
    assert call(shop, "remove", "pub", "--table", "shop.parts_1", "--yes").code == 0
    assert published(shop) == ["shop.orders"]


def test_families_go_in_and_out_together(shop: Database) -> None:
    assert call(shop, "create", "pub", "--table", "shop.parent", "--table", "shop.orders", "--yes").code == 0
    assert published(shop) == ["shop.child", "shop.orders", "shop.parent"]
    assert call(shop, "remove", "pub", "--table", "shop.parent", "--yes").code == 0
    assert published(shop) == ["shop.orders"]
    # Also when only one of them is in it.
    shop.psql("ALTER PUBLICATION pub ADD TABLE ONLY shop.parent")
    assert call(shop, "remove", "pub", "--table", "shop.parent", "--yes").code == 0
    assert published(shop) == ["shop.orders"]


def test_nothing_is_taken_out_of_everything(shop18: Database) -> None:
    shop18.psql("CREATE PUBLICATION pub FOR ALL TABLES WITH (publish = 'insert')")
    for arguments in (["--table", "shop.orders"], ["--in-schema", "shop"], ["--table", "shop.orders", "--if-exists"]):
        outcome = call(shop18, "remove", "pub", *arguments, "--yes")
        assert (outcome.code, outcome.out) == (1, "")
        assert "publishes all tables" in outcome.err


def test_what_is_not_in_it_is_an_error_unless_it_may_be_missing(shop18: Database) -> None:
    shop18.psql("CREATE PUBLICATION pub FOR TABLE shop.orders")
    before = catalog(shop18)
    arguments = ["remove", "pub", "--table", "shop.orders", "--table", "shop.items", "--table", "no.where", "--yes"]
    refused = call(shop18, *arguments)
    assert refused.code == 1
    assert "not in publication 'pub': shop.items, no.where" in refused.err
    assert catalog(shop18) == before
    outcome = call(shop18, *arguments, "--if-exists", "--json")
    assert outcome.code == 0
    assert [(step["status"], step["object"]) for step in outcome.document["steps"]] == [
        ("altered", "pub"),
        ("skipped", "shop.items"),
        ("skipped", "no.where"),
    ]
    assert published(shop18) == []


@pytest.mark.parametrize("verb", ["create", "add"])
def test_a_table_without_a_key_is_refused(shop: Database, verb: str) -> None:
    if verb == "add":
        shop.psql("CREATE PUBLICATION pub FOR TABLE shop.items")
    before = catalog(shop)
    arguments = [verb, "pub", "--table", "shop.orders", "--table", "shop.keyless", "--yes"]
    refused = call(shop, *arguments)
    assert (refused.code, refused.out) == (1, "")
    assert "no usable replica identity" in refused.err
    assert "ALTER TABLE shop.keyless REPLICA IDENTITY FULL" in refused.err
    assert catalog(shop) == before
    skipped = call(shop, *arguments, "--skip-keyless", "--json")
    assert skipped.code == 0
    assert skipped.document["steps"][-1]["status"] == "skipped"
    assert "shop.keyless" not in published(shop)


def test_operations_are_added_where_nothing_fails_by_it(shop: Database) -> None:
    shop.psql("CREATE PUBLICATION pub FOR TABLE shop.orders WHERE (note <> '') WITH (publish = 'insert')")
    refused = call(shop, "add", "pub", "--publish", "update", "--yes")
    assert refused.code == 1
    assert "row filter or column list and replica identity do not fit together: shop.orders" in refused.err
    assert call(shop, "add", "pub", "--publish", "truncate", "--yes").code == 0
    shop.psql("ALTER TABLE shop.orders REPLICA IDENTITY FULL")
    assert call(shop, "add", "pub", "--publish", "update,delete", "--yes").code == 0
    shop.psql("INSERT INTO shop.orders VALUES (1, 'a'); UPDATE shop.orders SET note = 'b'; DELETE FROM shop.orders")
    assert call(shop, "list", "--json").document[0]["operations"] == ["insert", "update", "delete", "truncate"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "new", "--table", "shop.parts", "--table", "shop.parent"],
        ["create", "new", "--all-tables", "--skip-keyless"],
        ["add", "pub", "--in-schema", "S.1"],
        ["add", "pub", "--via-root", "--table", "shop.parts"],
        ["remove", "pub", "--table", "shop.items"],
    ],
)
def test_a_dry_run_prints_what_does_it(shop: Database, arguments: list[str]) -> None:
    shop.psql("CREATE PUBLICATION pub FOR TABLE shop.items, shop.orders")
    with fresh_database(shop.server) as twin:
        twin.psql(SHOP + "CREATE PUBLICATION pub FOR TABLE shop.items, shop.orders")
        before = catalog(shop)
        script = call(shop, *arguments, "--dry-run")
        assert script.code == 0
        assert catalog(shop) == before
        assert script.out.startswith(f"-- what publications {arguments[0]} would run in database {shop.name}\n")
        planned = call(shop, *arguments, "--dry-run", "--json").document
        assert [step["status"] for step in planned["steps"] if step["statements"]] == ["planned"]
        shop.psql(script.out)
        assert call(twin, *arguments, "--yes").code == 0
        assert _settings(shop) == _settings(twin)
    assert catalog(shop) != before


def _settings(database: Database) -> list[object]:
    documents = call(database, "list", "--json").document
    return [[each, published(database, each["name"])] for each in documents]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["create", "pub", "--table", "shop.orders"], "no terminal to ask on"),
        (["add", "pub", "--table", "shop.orders"], "no terminal to ask on"),
        (["remove", "pub", "--table", "shop.orders"], "no terminal to ask on"),
        (["create", "pub", "--yes"], "nothing is said to go into publication 'pub'"),
        (["add", "pub", "--yes"], "nothing is said to be added"),
        (["remove", "pub", "--yes"], "nothing is said to be removed"),
        (["create", "pub", "--yes", "--table", "a.b", "--all-tables"], "exclude each other"),
        (["create", "pub", "--yes", "--all-tables", "--publish", "upsert"], "'upsert' cannot be published"),
        (["create", "x" * 64, "--yes", "--all-tables"], "longer than 63 bytes"),
        (["create", "pub", "--yes", "--table", "orders"], "write schema.table"),
        (["coverage", "pub"], "no table is named"),
        (["coverage", "pub", "--table", "a.b", "--publish", ""], "no operation to publish"),
        (["coverage", "pub", "--table", "a.b", "--publish", "upsert"], "'upsert' cannot be published"),
    ],
)
def test_wrong_input_is_refused_before_connecting(arguments: list[str], why: str) -> None:
    done = pgrepl("publications", *arguments, "-d", "host=/nonexistent")
    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["show", "pub"],
        ["coverage", "pub", "--table", "a.b"],
        ["create", "pub", "--all-tables", "--yes"],
        ["add", "pub", "--all-tables", "--yes"],
        ["remove", "pub", "--table", "a.b", "--yes"],
    ],
)
def test_no_server_an_old_server_and_no_publication(server15: Server, shop18: Database, arguments: list[str]) -> None:
    assert pgrepl("publications", *arguments, "-d", "host=/nonexistent").returncode == 3
    old = pgrepl("publications", *arguments, "-d", server15.dsn())
    assert (old.returncode, old.stdout) == (1, "")
    assert "too old for pgrepl" in old.stderr
    if arguments[0] in ("show", "add", "remove"):
        missing = call(shop18, *arguments)
        assert (missing.code, missing.out) == (1, "")
        assert "there is no publication 'pub'" in missing.err
        assert "hint: pgrepl publications list" in missing.err


def test_a_publication_is_not_made_twice(shop18: Database) -> None:
    shop18.psql("CREATE PUBLICATION pub")
    outcome = call(shop18, "create", "pub", "--table", "shop.orders", "--yes")
    assert outcome.code == 1
    assert "publication 'pub' exists" in outcome.err
    assert published(shop18) == []


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1)])
def test_it_asks_on_a_terminal(shop18: Database, typed: str, code: int) -> None:
    arguments = ["publications", "create", "pub", "--table", "shop.orders", "-d", shop18.dsn()]
    done = pgrepl_at_terminal(*arguments, typed=typed)
    assert done.returncode == code
    assert f"Create publication pub in database {shop18.name} like this?" in done.stderr
    assert published(shop18) == (["shop.orders"] if code == 0 else [])


def test_what_the_role_may_not_do_becomes_a_script(shop: Database) -> None:
    role = f"r_{shop.name}"
    shop.psql(f"CREATE ROLE {role} LOGIN; ALTER TABLE shop.orders OWNER TO {role}")
    shop.psql("CREATE PUBLICATION pub FOR TABLE shop.items")
    before = catalog(shop)
    for arguments in (
        ["create", "new", "--table", "shop.orders"],
        ["add", "pub", "--table", "shop.orders"],
        ["remove", "pub", "--table", "shop.items"],
    ):
        outcome = call(shop, *arguments, "--yes", "--json", user=role)
        assert outcome.code == 1
        assert outcome.document["steps"][0]["status"] == "needs_superuser"
        assert catalog(shop) == before
        shop.psql(outcome.document["needs"])
        assert catalog(shop) != before
        before = catalog(shop)
    assert (published(shop), published(shop, "new")) == (["shop.orders"], ["shop.orders"])


def test_ensure_keeps_what_somebody_chose(shop: Database) -> None:
    shop.psql("CREATE PUBLICATION pub FOR TABLE shop.orders WHERE (id > 0)")
    before = catalog(shop)
    outcome = call(shop, "coverage", "pub", "--table", "shop.orders", "--table", "shop.items", "--ensure", "--json")
    assert outcome.code == 1
    assert outcome.document["applied"] == []
    assert "somebody chose its row filter" in outcome.document["blockers"][0]
    assert catalog(shop) == before
    assert call(shop, "coverage", "pub", "--table", "shop.items", "--ensure").code == 0
    with shop.connect() as conn:
        filtered = conn.execute("SELECT count(*) FROM pg_publication_rel WHERE prqual IS NOT NULL").fetchone()
    assert filtered == (1,)
    assert published(shop) == ["shop.items", "shop.orders"]


def test_ensure_says_what_it_ran(shop: Database) -> None:
    asked = ["coverage", "pub", "--table", "shop.parts", "--table", "shop.orders"]
    assert call(shop, *asked).code == 1
    outcome = call(shop, *asked, "--ensure")
    assert outcome.code == 0
    statement = (
        'CREATE PUBLICATION "pub" FOR TABLE "shop"."orders", "shop"."parts" WITH (publish_via_partition_root = true);'
    )
    assert outcome.out.splitlines() == [f"~  {statement}", "✓  shop.orders", "✓  shop.parts"]
    again = call(shop, *asked, "--ensure", "--json")
    assert (again.code, again.document["applied"], again.document["satisfied"]) == (0, [], True)


def test_ensure_waits_for_a_lock_no_longer_than_told(shop18: Database) -> None:
    with shop18.connect(application_name="backup") as holder, holder.transaction():
        holder.execute("LOCK TABLE shop.orders IN SHARE UPDATE EXCLUSIVE MODE")
        outcome = call(shop18, "coverage", "pub", "--table", "shop.orders", "--ensure", "--lock-timeout", "100ms")
        assert (outcome.code, outcome.out) == (1, "")
        assert f"process {holder.info.backend_pid} (user postgres, application backup)" in outcome.err
        assert catalog(shop18) == []


def test_ensure_by_two_at_once_is_done_once(shop18: Database) -> None:
    shop18.psql("CREATE PUBLICATION pub")
    done: list[tuple[coverage.Coverage, tuple[str, ...]]] = []

    def ensure() -> None:
        with shop18.connect() as conn:
            done.append(coverage.ensure(conn, "pub", [("shop", "orders")]))

    with shop18.connect() as first, shop18.connect() as watcher:
        with first.transaction():
            first.execute("ALTER PUBLICATION pub ADD TABLE shop.orders")
            thread = threading.Thread(target=ensure)
            thread.start()
            waiting = """SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                          WHERE NOT l.granted AND d.datname = current_database()"""
            eventually(lambda: watcher.execute(waiting).fetchone() != (0,))
        thread.join(30)
    (report, applied) = done[0]
    assert report.satisfied
    assert applied == ()


def test_a_standby_is_looked_at_but_not_changed(new_server: NewServer) -> None:
    server = new_server(18)
    server.psql(SHOP + "CREATE PUBLICATION pub FOR TABLE shop.items")
    data = Path(server.psql("SHOW data_directory").strip())
    server.stop(immediate=False)
    (data / "standby.signal").touch()
    server.start()
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        report, applied = coverage.ensure(conn, "pub", [("shop", "orders"), ("shop", "items")])
    assert applied == ()
    assert report.blockers == ("the server is a standby and read-only: connect to its primary",)
    assert [each.name for each in report.present] == ["items"]
    refused = pgrepl("publications", "add", "pub", "--table", "shop.orders", "--yes", "-d", server.dsn())
    assert refused.returncode == 1
    assert "read-only" in refused.stderr
