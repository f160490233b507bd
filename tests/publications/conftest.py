"""A shop's database, and ``pgrepl publications`` as a process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.command import pgrepl
from tests.servers.database import Database, fresh_database
from tests.servers.server import Server

SHOP = '''
CREATE SCHEMA shop;
CREATE TABLE shop.orders (id int PRIMARY KEY, note text);
CREATE TABLE shop.items (id int PRIMARY KEY);
CREATE TABLE shop.keyless (a int);
CREATE TABLE shop.parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE shop.parts_1 PARTITION OF shop.parts FOR VALUES FROM (0) TO (10);
CREATE TABLE shop.parent (id int PRIMARY KEY);
CREATE TABLE shop.child (PRIMARY KEY (id)) INHERITS (shop.parent);
CREATE SCHEMA "S.1";
CREATE TABLE "S.1"."T ""2""" (id int PRIMARY KEY);
'''


@pytest.fixture
def shop(database: Database) -> Database:
    """A shop's database on every server."""
    database.psql(SHOP)
    return database


@pytest.fixture
def shop18(server18: Server) -> Iterator[Database]:
    """The same on the newest server, for what does not depend on the version."""
    with fresh_database(server18) as database:
        database.psql(SHOP)
        yield database


class Outcome:
    """What one call left: exit code, both streams, and its JSON."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def document(self) -> Any:
        """The JSON on stdout."""
        return json.loads(self.out)

    @property
    def statements(self) -> list[str]:
        """The statements of all steps."""
        return [statement for step in self.document["steps"] for statement in step["statements"]]


def call(database: Database, *arguments: str, user: str = "postgres") -> Outcome:
    """Run ``pgrepl publications`` with these arguments."""
    done = pgrepl("publications", *arguments, "-d", database.dsn(user))
    return Outcome(done.returncode, done.stdout, done.stderr)


def published(database: Database, publication: str = "pub") -> list[str]:
    """The tables under whose names a publication publishes."""
    with database.connect() as conn:
        query = "SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE pubname = %s ORDER BY 1"
        return [name for (name,) in conn.execute(query, [publication])]
