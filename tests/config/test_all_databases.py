"""``--all-databases``: the command, once for each entry."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import pgrepl
from tests.config.conftest import Write
from tests.servers.database import Database, fresh_database
from tests.servers.server import Server

UNREACHABLE = '[[databases]]\nname = "down"\nhost = "127.0.0.1"\nport = 1\n'


@pytest.fixture
def second18(server18: Server) -> Iterator[Database]:
    with fresh_database(server18) as database:
        yield database


def entry(name: str, database: Database) -> str:
    server = database.server
    return (
        f'[[databases]]\nname = "{name}"\nhost = "{server.host}"\nport = {server.port}\n'
        f'dbname = "{database.name}"\npublication = "{name}_pub"\n'
    )


@pytest.fixture
def both(database18: Database, second18: Database, write: Write) -> tuple[Database, Database]:
    """Two databases, configured as ``one`` and ``two``."""
    write(entry("one", database18) + entry("two", second18))
    return database18, second18


def test_json_is_an_array_with_a_document_for_each(both: tuple[Database, Database]) -> None:
    done = pgrepl("doctor", "--all-databases", "--json")
    documents = json.loads(done.stdout)
    assert [document["server"]["database"] for document in documents] == [database.name for database in both]
    assert [document["target"]["publications"] for document in documents] == [["one_pub"], ["two_pub"]]
    assert done.returncode == 1


def test_the_worst_exit_code_and_the_others_go_on(both: tuple[Database, Database], write: Write) -> None:
    one, two = both
    write(entry("one", one) + UNREACHABLE + entry("two", two))
    done = pgrepl("slots", "list", "--all-databases", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout) == [[], None, []]
    assert "pgrepl: error: down: cannot connect" in done.stderr
    assert pgrepl("doctor", "--all-databases", "--fail-on", "never").returncode == 3


def test_tables_are_told_apart(both: tuple[Database, Database]) -> None:
    one, two = both
    lines = pgrepl("doctor", "--all-databases").stdout.splitlines()
    headings = [line for line in lines if line.startswith("-- ")]
    assert headings == [f"-- one ({one.server.host}/{one.name})", f"-- two ({two.server.host}/{two.name})"]
    done = pgrepl("slots", "list", "--all-databases")
    assert done.returncode == 0
    assert [line.split("pgrepl: ")[1].split()[0] for line in done.stderr.splitlines()] == ["one:", "two:"]


def test_setup_of_each(both: tuple[Database, Database]) -> None:
    for database in both:
        database.psql("CREATE TABLE t (a int PRIMARY KEY)")
    done = pgrepl("setup", "--all-databases", "--table", "public.t", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 2
    assert [database.psql("SELECT pubname FROM pg_publication").split() for database in both] == [
        ["one_pub"],
        ["two_pub"],
    ]


def test_the_scripts_connect_to_the_database_that_each_is_for(both: tuple[Database, Database]) -> None:
    one, two = both
    for database in both:
        database.psql("CREATE TABLE t (a int PRIMARY KEY)")
    done = pgrepl("setup", "--all-databases", "--table", "public.t", "--dry-run")
    assert done.returncode == 0, done.stderr
    command: list[str | Path] = [one.server.bindir / "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", one.server.dsn()]
    subprocess.run(command, input=done.stdout, text=True, check=True, capture_output=True, timeout=60)
    assert [database.psql("SELECT pubname FROM pg_publication").split() for database in (one, two)] == [
        ["one_pub"],
        ["two_pub"],
    ]
    assert one.server.psql("SELECT pubname FROM pg_publication") == ""


def test_the_connecting_command_holds_any_name_and_no_password(server18: Server, write: Write) -> None:
    odd = "a'b\\c \"d=e"
    with server18.connect() as admin:
        admin.execute('CREATE DATABASE "a\'b\\c ""d=e"')
    try:
        place = f'host = "{server18.host}"\nport = {server18.port}\ndbname = {json.dumps(odd)}'
        write(f'[[databases]]\n{place}\npassword = "hunter2"\n')
        done = pgrepl("doctor", "--all-databases", "--fix-sql", "--only", "server.version")
        assert "hunter2" not in done.stdout
        script = f"{done.stdout}SELECT current_database();\n"
        assert server18.psql(script).strip() == odd
    finally:
        with server18.connect() as admin:
            admin.execute('DROP DATABASE "a\'b\\c ""d=e"')


def test_a_slot_is_not_dropped_by_name_from_every_server(both: tuple[Database, Database]) -> None:
    one, _ = both
    name = f"s_{one.name}"
    one.psql(f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')")
    done = pgrepl("slots", "drop", name, "--all-databases", "--yes", "--if-exists")
    assert done.returncode == 2
    assert "a slot's NAME and --all-databases exclude each other" in done.stderr
    assert one.psql("SELECT slot_name FROM pg_replication_slots").split() == [name]


def test_nothing_is_configured(write: Write) -> None:
    write("[pipeline]\n")
    done = pgrepl("doctor", "--all-databases", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pgrepl: error: --all-databases, but no database is configured")


def test_the_time_limit_is_for_all_of_them(both: tuple[Database, Database], write: Write) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        slow = f'[[databases]]\nname = "slow"\nhost = "127.0.0.1"\nport = {silent.getsockname()[1]}\n'
        write(slow + entry("one", both[0]))
        done = pgrepl("slots", "list", "--all-databases", "--timeout", "1s")
    assert done.returncode == 4
    assert done.stdout == "-- slow (127.0.0.1/postgres)\n"


def test_a_password_file_that_is_gone_stops_its_own_entry_alone(both: tuple[Database, Database], write: Write) -> None:
    one, two = both
    write(f'{entry("one", one)}password = {{ file = "/gone" }}\n{entry("two", two)}')
    done = pgrepl("slots", "list", "--all-databases", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout) == [None, []]
    assert "one: cannot read the password file" in done.stderr
