"""libpq's own files are used by every command that connects: the service file and the password file."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from pgrepl.names import apply_slot, pipeline_id
from tests.command import pgrepl
from tests.servers.database import Database
from tests.tail.running import run_tail

PASSWORD = "with:colon and \\ too"


@pytest.fixture
def home(database18: Database, tmp_path: Path) -> Path:
    """A home directory with a service file without a password, and a password file that has it."""
    server = database18.server
    database18.psql(f"""
        CREATE ROLE "{database18.name}" LOGIN REPLICATION PASSWORD '{PASSWORD}';
        CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1);
        GRANT SELECT ON a TO "{database18.name}"; CREATE PUBLICATION pub FOR TABLE a;
    """)
    (tmp_path / ".pg_service.conf").write_text(
        f"# ours\n[other]\nhost=/nonexistent\n\n[shop]\nhost=127.0.0.1\nport={server.port}\n"
        f"dbname={database18.name}\nuser={database18.name}\n"
    )
    escaped = PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
    (tmp_path / ".pgpass").write_text(f"127.0.0.1:{server.port}:*:{database18.name}:{escaped}\n")
    (tmp_path / ".pgpass").chmod(0o600)
    return tmp_path


@pytest.mark.parametrize("way", ["dsn", "environment", "PGSERVICE"])
def test_service_and_password_file(home: Path, database18: Database, way: str) -> None:
    arguments = ["-d", "service=shop"] if way == "dsn" else []
    environment = {"environment": {"PGREPL_DSN": "service=shop"}, "PGSERVICE": {"PGSERVICE": "shop"}}.get(way, {})
    done = pgrepl("publications", "list", *arguments, HOME=str(home), **environment)
    assert done.returncode == 0, done.stderr
    assert "pub" in done.stdout
    finished = run_tail("pub", *arguments, "--limit", "1", env={"HOME": str(home), **environment})
    assert finished.code == 0, finished.stderr
    assert finished.events[-1]["new"] == {"id": 1}
    assert PASSWORD not in finished.stderr + done.stderr


def test_the_host_of_the_service_makes_the_pipeline(home: Path, database18: Database) -> None:
    """Its id is that of host/dbname as the service gives them."""
    slot = apply_slot(pipeline_id("127.0.0.1", database18.name))
    done = pgrepl("doctor", "pub", "--store", "postgres", "--json", "-d", "service=shop", HOME=str(home))
    assert f'"{slot}"' in done.stdout, done.stderr


def test_a_password_file_that_others_may_read_is_not_used(home: Path) -> None:
    (home / ".pgpass").chmod(0o644)
    done = pgrepl("publications", "list", "-d", "service=shop", HOME=str(home))
    assert done.returncode == 3
    assert re.search(r"hint: .*~/\.pgpass", done.stderr), done.stderr


def test_other_places_that_the_environment_names(home: Path, tmp_path: Path) -> None:
    (home / ".pg_service.conf").rename(tmp_path / "services")
    (home / ".pgpass").rename(tmp_path / "passwords")
    assert pgrepl("publications", "list", "-d", "service=shop", HOME=str(home)).returncode == 2
    elsewhere = {"PGSERVICEFILE": str(tmp_path / "services"), "PGPASSFILE": str(tmp_path / "passwords")}
    done = pgrepl("publications", "list", "-d", "service=shop", HOME=os.devnull, **elsewhere)
    assert done.returncode == 0, done.stderr
