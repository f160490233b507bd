"""``list`` and ``show``: for programs, for people at terminals of any width, and through a pipe."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.publications.conftest import call
from tests.servers.database import Database

ROOT = Path(__file__).resolve().parents[2]
LONG = "a_table_with_a_name_that_is_about_as_long_as_names_can_possibly"
PUBLICATIONS = f"""
CREATE TABLE shop.{LONG} (id int PRIMARY KEY, v text);
ALTER TABLE shop.orders ADD doubled int GENERATED ALWAYS AS (id * 2) STORED, ADD code int NOT NULL UNIQUE;
ALTER TABLE shop.orders REPLICA IDENTITY USING INDEX orders_code_key;
ALTER TABLE shop.keyless REPLICA IDENTITY FULL;
INSERT INTO shop.items SELECT generate_series(1, 3000); ANALYZE shop.items;
CREATE PUBLICATION a_list FOR TABLE shop.orders (id, code) WHERE (code > 7), shop.items, shop.keyless, shop.{LONG};
CREATE PUBLICATION as_leaves FOR TABLE shop.parts WITH (publish = 'insert, truncate');
CREATE PUBLICATION everything FOR ALL TABLES WITH (publish = '', publish_via_partition_root);
CREATE PUBLICATION nothing;
CREATE PUBLICATION schemas FOR TABLES IN SCHEMA shop, "S.1" WITH (publish = 'insert', publish_via_partition_root);
"""


@pytest.fixture
def full(shop: Database) -> Database:
    """A shop with publications of every kind."""
    shop.psql(PUBLICATIONS)
    return shop


@pytest.fixture
def full18(shop18: Database) -> Database:
    """The same on the newest server."""
    shop18.psql(PUBLICATIONS)
    return shop18


def test_list_says_what_each_publishes(full: Database) -> None:
    found = {each["name"]: each for each in call(full, "list", "--json").document}
    assert list(found) == ["a_list", "as_leaves", "everything", "nothing", "schemas"]
    operations = {name: each["operations"] for name, each in found.items()}
    assert operations["a_list"] == ["insert", "update", "delete", "truncate"]
    assert operations["as_leaves"] == ["insert", "truncate"]
    assert operations["everything"] == []
    assert {name: each["table_count"] for name, each in found.items()} == {
        "a_list": 4,
        "as_leaves": 1,
        "everything": 8,
        "nothing": 0,
        "schemas": 8,
    }
    assert [name for name, each in found.items() if each["all_tables"]] == ["everything"]
    assert [name for name, each in found.items() if each["via_root"]] == ["everything", "schemas"]
    assert found["schemas"]["schemas"] == ["S.1", "shop"]
    assert {each["generated_columns"] for each in found.values()} == {None if full.server.version < 18 else "none"}
    assert {each["owner"] for each in found.values()} == {"postgres"}


def test_show_says_what_of_each_table_is_published(full: Database) -> None:
    document = call(full, "show", "a_list", "--json").document
    tables = {each["table"]: each for each in document["tables"]}
    assert list(tables) == [LONG, "items", "keyless", "orders"]
    orders = tables["orders"]
    assert (orders["columns"], orders["left_out_columns"]) == (["id", "code"], ["note"])
    assert orders["row_filter"] == "(code > 7)"
    assert (orders["replica_identity"], orders["identity_columns"], orders["primary_key"]) == (
        "index",
        ["code"],
        ["id"],
    )
    assert (tables["keyless"]["replica_identity"], tables["keyless"]["primary_key"]) == ("full", [])
    assert tables["items"]["rows"] == 3000
    assert tables["items"]["bytes"] > 100_000
    (leaf,) = call(full, "show", "as_leaves", "--json").document["tables"]
    assert (leaf["table"], leaf["partition_of"]) == ("parts_1", {"schema": "shop", "table": "parts"})
    roots = [each for each in call(full, "show", "schemas", "--json").document["tables"] if each["partitioned"]]
    assert [(each["table"], each["partition_of"]) for each in roots] == [("parts", None)]
    assert call(full, "show", "nothing", "--json").document["tables"] == []


def test_stored_generated_columns_are_told(full18: Database) -> None:
    full18.psql("CREATE PUBLICATION g FOR TABLE shop.orders WITH (publish_generated_columns = stored)")
    document = call(full18, "show", "g", "--json").document
    assert document["generated_columns"] == "stored"
    assert document["tables"][0]["columns"] == ["id", "note", "doubled", "code"]
    assert "with stored generated columns" in call(full18, "show", "g").out


def test_a_role_with_nothing_but_login_sees_the_same(full: Database) -> None:
    full.psql(f"CREATE ROLE r_{full.name} LOGIN")
    for arguments in (
        ["list"],
        ["show", "a_list"],
        ["show", "schemas"],
        ["coverage", "a_list", "--table", "shop.items"],
    ):
        mine = call(full, *arguments, "--json", user=f"r_{full.name}")
        assert mine.code == 0, mine.err
        assert _without_sizes(mine.document) == _without_sizes(call(full, *arguments, "--json").document)


def _without_sizes(document: Any) -> Any:
    """Leave out what autovacuum changes meanwhile."""
    for table in document["tables"] if isinstance(document, dict) and "tables" in document else []:
        del table["rows"], table["bytes"]
    return document


def test_through_a_pipe_nothing_is_cut(full18: Database) -> None:
    listed = call(full18, "list")
    assert (listed.code, listed.err) == (0, "")
    lines = {line.split()[0]: line for line in listed.out.splitlines()[2:]}
    assert re.fullmatch(r"schemas +schemas S\.1, shop +insert +as their root +postgres +8", lines["schemas"])
    assert re.fullmatch(r"as_leaves +listed tables +insert, truncate +by themselves +postgres +1", lines["as_leaves"])
    shown = call(full18, "show", "a_list").out.splitlines()
    assert shown[0] == "a_list: publishes listed tables, operations all, partitions by themselves, owner postgres"
    (orders,) = [line for line in shown if line.startswith("shop.orders ")]
    assert re.fullmatch(r"shop\.orders +code +note +\(code > 7\) +\S.*", orders)
    assert any(line.startswith(f"shop.{LONG} ") for line in shown)
    assert "\x1b" not in listed.out
    assert "no table is published" in call(full18, "show", "nothing").out


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("arguments", [["list"], ["show", "a_list"], ["show", "schemas"]])
def test_on_a_terminal_it_fits_and_nothing_is_lost(full18: Database, arguments: list[str], columns: int) -> None:
    # So that estimates and sizes are the same both times.
    full18.psql("VACUUM ANALYZE")
    lines = at_terminal(full18, columns, *arguments)
    assert max(map(len, lines)) <= columns
    if columns == 200:
        assert set(call(full18, *arguments).out.replace("─", "").split()) <= set(" ".join(lines).split())
    if "show" in arguments:
        first = [line.split("  ")[0].strip() for line in lines]
        assert f"shop.{LONG}" in "".join(first)
        assert "shop.items" in first


def test_an_empty_database_is_no_error(shop18: Database) -> None:
    listed = call(shop18, "list")
    assert (listed.code, listed.out) == (0, "")
    assert f"database {shop18.name} has no publication" in listed.err
    assert call(shop18, "list", "--json").out == "[]\n"


def test_a_name_cannot_play_tricks_on_the_terminal(shop18: Database) -> None:
    shop18.psql(
        'CREATE TABLE shop."x\x1b[31m" (id int PRIMARY KEY); CREATE PUBLICATION "p\x1b[31m" FOR TABLES IN SCHEMA shop'
    )
    shop18.psql("ALTER TABLE shop.keyless REPLICA IDENTITY FULL")
    for arguments in (["list"], ["show", "p\x1b[31m"], ["coverage", "p\x1b[31m", "--table", "shop.x\x1b[31m"]):
        outcome = call(shop18, *arguments)
        assert outcome.code == 0, outcome.err
        assert "\x1b" not in outcome.out
        assert "\\x1b[31m" in outcome.out


def at_terminal(database: Database, columns: int, *arguments: str) -> list[str]:
    """Run ``pgrepl publications`` on a terminal of a width, and return the lines that it shows, without colours."""
    ours, theirs = pty.openpty()
    environment = {
        "PATH": os.environ["PATH"],
        "TERM": "xterm",
        "COLUMNS": str(columns),
        "XDG_CONFIG_HOME": "/nonexistent",
    }
    done = subprocess.Popen(
        [sys.executable, "-m", "pgrepl", "publications", *arguments, "-d", database.dsn()],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=environment,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    _, said = done.communicate(timeout=30)
    os.close(ours)
    assert (done.returncode, said) == (0, b"")
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).splitlines()
