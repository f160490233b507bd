"""From an untouched server to ready, with one command, and everything else agrees."""

from __future__ import annotations

import json

from tests.command import pgrepl
from tests.servers.database import Database
from tests.tail.running import run_tail


def test_an_untouched_server_is_ready_after_one_command(database: Database) -> None:
    database.psql("""
        CREATE TABLE orders (id int PRIMARY KEY, what text); INSERT INTO orders VALUES (1, 'tea');
        CREATE SCHEMA stock; CREATE TABLE stock.items (id int PRIMARY KEY);
    """)
    dsn = database.dsn()
    made = pgrepl("setup", "pub", "--role", "pgsense", "--all-tables", "--store", "postgres", "--yes", "-d", dsn)
    assert made.returncode == 0, made.stderr
    found = pgrepl("doctor", "pub", "--role", "pgsense", "--store", "postgres", "--json", "-d", dsn)
    document = json.loads(found.stdout)
    failed = [check for check in document["checks"] if check["status"] == "fail"]
    assert (found.returncode, failed) == (0, [])
    assert pgrepl("migrations", "status", "-d", dsn).returncode == 0
    options = ["pub", "--store", "postgres", "--until-lsn", "now"]
    first = run_tail(*options, dsn=database.dsn("pgsense"))
    assert first.code == 0, first.stderr
    assert [event["new"] for event in first.events if event["op"] == "read"] == [{"id": 1, "what": "tea"}]
    database.psql("INSERT INTO stock.items VALUES (7)")
    second = run_tail(*options, dsn=database.dsn("pgsense"))
    assert [(event["op"], event["new"]) for event in second.events] == [("insert", {"id": 7})]
    found = pgrepl("doctor", "pub", "--role", "pgsense", "--store", "postgres", "-d", dsn)
    assert found.returncode == 0, found.stdout
