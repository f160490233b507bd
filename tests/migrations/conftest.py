"""Databases that stand somewhere on the way, and the command as a function."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest

from pgrepl import migrations
from pgrepl.cli import main
from tests.migrations.etl import connect
from tests.servers.database import Database
from tests.servers.server import Server


@dataclass(frozen=True)
class Outcome:
    """How a call of the command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Its output as JSON."""
        document: dict[str, Any] = json.loads(self.out)
        return document

    @property
    def states(self) -> list[str]:
        """The states that it printed."""
        return [entry["state"] for entry in self.document["migrations"]]


class Command(Protocol):
    """Run ``pgrepl migrations NAME …`` on a database."""

    def __call__(
        self, database: Database | None, *arguments: str, user: str = Server.superuser, as_json: bool = True
    ) -> Outcome: ...


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """The command; no configuration of the developer's is read."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def run(database: Database | None, *arguments: str, user: str = Server.superuser, as_json: bool = True) -> Outcome:
        options = [] if database is None else ["-d", database.dsn(user), *(["--json"] if as_json else [])]
        capsys.readouterr()
        code = main.run(["migrations", *arguments, *options])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def migrated(database: Database) -> Database:
    """A database on every supported server with all versions applied by a superuser."""
    with connect(database) as conn:
        migrations.apply(conn)
    return database


@pytest.fixture
def migrated18(database18: Database) -> Database:
    """The same on the newest server alone."""
    with connect(database18) as conn:
        migrations.apply(conn)
    return database18


@pytest.fixture
def conn(migrated: Database) -> Iterator[psycopg.Connection]:
    """A superuser's connection to a migrated database."""
    with migrated.connect() as conn:
        yield conn
