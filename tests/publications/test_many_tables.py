"""A thousand tables are asked about with as many queries as three."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.publications.conftest import call
from tests.servers.database import Database, fresh_database
from tests.servers.server import Server

MAKE = """
DO $$ BEGIN FOR n IN 1..{0} LOOP
    EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, v text)', n);
END LOOP; END $$;
CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY LIST (id);
DO $$ BEGIN FOR n IN 1..{1} LOOP
    EXECUTE format('CREATE TABLE part_%s PARTITION OF parts FOR VALUES IN (%s)', n, n);
END LOOP; END $$;
CREATE PUBLICATION p FOR TABLES IN SCHEMA public;
CREATE PUBLICATION q;
ALTER DATABASE {2} SET log_statement = 'all';
"""


@pytest.mark.parametrize(
    "command",
    [
        ["list"],
        ["show", "p"],
        ["coverage", "p", "--table"],
        ["coverage", "q", "--table"],
        ["add", "q", "--dry-run", "--table"],
        ["remove", "q", "--if-exists", "--dry-run", "--table"],
    ],
    ids=" ".join,
)
def test_queries_do_not_grow_with_the_tables(few: Database, many: Database, command: list[str]) -> None:
    counts = [_queries(few, command, 3), _queries(many, command, 1000)]
    assert 0 < counts[0] == counts[1] < 25, counts


@pytest.fixture(scope="module")
def few(server: Server) -> Iterator[Database]:
    """A database with three tables, and three partitions."""
    with fresh_database(server) as database:
        database.psql(MAKE.format(3, 3, database.name))
        yield database


@pytest.fixture(scope="module")
def many(server: Server) -> Iterator[Database]:
    """A database with a thousand tables, and as many partitions."""
    with fresh_database(server) as database:
        database.psql(MAKE.format(1000, 1000, database.name))
        yield database


def _queries(database: Database, command: list[str], count: int) -> int:
    """Count the statements that the server logs for one call."""
    arguments = list(command)
    if arguments[-1] == "--table":
        names = [f"public.t{number}" for number in range(1, count + 1)]
        arguments += [word for name in names for word in ("--table", name)][1:]
    before = len(database.server.log)
    outcome = call(database, *arguments, "--json")
    assert outcome.code in (0, 1), outcome.err
    assert outcome.out
    lines = database.server.log[before:].splitlines()
    return sum("statement: " in line or " execute " in line for line in lines)
