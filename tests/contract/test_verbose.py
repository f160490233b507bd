"""What -v says: where a command connected to, from where it knew, and which steps it took; never a password."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.command import pgrepl
from tests.servers.database import Database
from tests.tail.running import run_tail


def test_a_command_says_what_it_connected_to(database18: Database) -> None:
    database18.psql("CREATE PUBLICATION pub")
    dsn = database18.server.tcp_dsn(database18.name)
    for command in (["doctor", "pub"], ["slots", "list"], ["publications", "list"], ["setup", "pub", "--dry-run"]):
        plain, verbose = pgrepl(*command, PGREPL_DSN=dsn), pgrepl(*command, "-v", PGREPL_DSN=dsn)
        assert "connected" not in plain.stderr
        assert verbose.returncode == plain.returncode
        port = database18.server.port
        assert re.search(
            rf"pgrepl: connected to PostgreSQL 18\.\d+ at 127\.0\.0\.1 port {port}, database {database18.name},"
            r" as postgres, backend \d+",
            verbose.stderr,
        ), verbose.stderr
        assert re.search(r"pgrepl: connection: .*password=\*\*\*\*.* \(from PGREPL_DSN\)", verbose.stderr)
        assert database18.server.password not in verbose.stderr


def test_the_source_of_the_connection_string_is_named(database18: Database, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        f"[[databases]]\nname = 'shop'\nhost = '127.0.0.1'\nport = {database18.server.port}\n"
        f"dbname = '{database18.name}'\nusername = 'postgres'\npassword = {json.dumps(database18.server.password)}\n"
    )
    done = pgrepl("slots", "list", "-v", "-c", str(path))
    assert done.returncode == 0, done.stderr
    assert f"pgrepl: configuration: {path}\n" in done.stderr
    assert f"(from {path}, database shop)" in done.stderr
    assert database18.server.password not in done.stderr


def test_tail_says_each_step_of_its_start(database18: Database) -> None:
    database18.psql("CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE a")
    plain = run_tail("pub", "--until-lsn", "now", dsn=database18.server.tcp_dsn(database18.name))
    finished = run_tail("pub", "--until-lsn", "now", "-v", dsn=database18.server.tcp_dsn(database18.name))
    assert finished.code == 0
    steps = (
        "connection: ",
        ", backend ",
        ", walsender ",
        ": IDENTIFY_SYSTEM",
        ': CREATE_REPLICATION_SLOT "pgrepl_tmp_',
        " has its consistent point at ",
        ': START_REPLICATION SLOT "pgrepl_tmp_',
    )
    places = [finished.stderr.find(step) for step in steps]
    assert -1 not in places, finished.stderr
    assert places == sorted(places)
    assert not any(step in plain.stderr for step in steps)
    assert database18.server.password not in finished.stderr


def test_as_json_it_is_a_detail(database18: Database) -> None:
    done = pgrepl("slots", "list", "-v", "--log-format", "json", "-d", database18.dsn())
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    details = [line["message"] for line in lines if line["level"] == "detail"]
    assert any(message.startswith("connected to PostgreSQL 18") for message in details), lines


def test_quiet_wins(database18: Database) -> None:
    assert pgrepl("slots", "list", "-v", "-q", "-d", database18.dsn()).stderr == ""
