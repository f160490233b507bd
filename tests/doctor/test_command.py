"""``pgrepl doctor`` as a process: exit codes, what goes where, and how it reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pgrepl.cli.doctor import _lines
from pgrepl.doctor import Finding, Fix, Report, ServerIdentity, Status
from tests.command import pgrepl
from tests.servers.database import Database
from tests.servers.server import Server


def test_exit_0_and_silence_on_stderr_when_all_is_well(database: Database) -> None:
    database.psql("CREATE TABLE t (a int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")
    done = pgrepl("doctor", "p", "-d", database.dsn())
    assert (done.returncode, done.stderr) == (0, "")
    assert "tbl.replica_identity" in done.stdout
    assert done.stdout.endswith("\n11 passed\n")
    assert "\x1b" not in done.stdout


def test_exit_1_with_the_fix_beneath_what_failed(database18: Database) -> None:
    database18.psql('CREATE TABLE "T" (a int); CREATE PUBLICATION p FOR TABLE "T"')
    done = pgrepl("doctor", "p", "-d", database18.dsn())
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if "✗ tbl.replica_identity" in line)
    assert lines[at + 1].strip() == 'sql  ALTER TABLE "public"."T" REPLICA IDENTITY FULL;'
    assert lines[-1] == "10 passed, 1 failed"


def test_exit_3_with_a_report_when_there_is_no_connection(server18: Server) -> None:
    for options in ([], ["--json"], ["--fail-on", "never"]):
        done = pgrepl("doctor", "-d", server18.dsn("not_there"), *options)
        assert done.returncode == 3
        assert "conn.sql" in done.stdout
        assert 'database "not_there" does not exist' in done.stderr
        assert "hint: " in done.stderr
    document = json.loads(pgrepl("doctor", "--json", "-d", server18.dsn("not_there")).stdout)
    assert document["summary"] == {"pass": 0, "info": 0, "warn": 0, "fail": 1, "unknown": 0, "skip": 10}


def test_fail_on_decides_about_warnings(database18: Database) -> None:
    database18.psql("CREATE TABLE t (a int); CREATE PUBLICATION p FOR TABLE t WITH (publish = 'insert')")
    codes = {
        level: pgrepl("doctor", "p", "-d", database18.dsn(), "--fail-on", level).returncode
        for level in ("warn", "fail", "unknown", "never")
    }
    assert codes == {"warn": 1, "fail": 0, "unknown": 0, "never": 0}


def test_fail_on_never_leaves_findings_without_a_code(database18: Database) -> None:
    assert pgrepl("doctor", "none", "-d", database18.dsn(), "--fail-on", "never").returncode == 0


def test_json_on_stdout_and_nothing_else(database18: Database) -> None:
    done = pgrepl("doctor", "none", "-d", database18.dsn(), "--json", "--role", "nobody_there", "--slot", "s")
    document = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (1, "")
    assert document["target"] == {
        "publications": ["none"],
        "role": "nobody_there",
        "store": "memory",
        "slot": "s",
    }
    line = pgrepl("doctor", "none", "-d", database18.dsn(), "--format", "jsonl").stdout
    assert line.count("\n") == 1
    assert json.loads(line)["server"] == document["server"]


def test_fix_sql_mends_what_sql_can_mend(database: Database) -> None:
    database.psql(
        "CREATE ROLE cdc LOGIN; CREATE SCHEMA shop; CREATE TABLE shop.a (x int);"
        "CREATE TABLE shop.b (x int PRIMARY KEY);"
        "CREATE PUBLICATION p FOR TABLE shop.a, shop.b"
    )
    broken = pgrepl("doctor", "p", "-d", database.dsn("cdc"), "--fix-sql")
    assert (broken.returncode, broken.stderr) == (1, "")
    database.psql(broken.stdout)
    mended = pgrepl("doctor", "p", "-d", database.dsn("cdc"), "--fail-on", "warn", "--fix-sql")
    assert (mended.returncode, mended.stdout, mended.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "options",
    [
        ["--only", "cfg.nothing"],
        ["--skip", "nothing"],
        ["--fail-on", "sometimes"],
        ["--store", "floppy"],
        ["--provider", "nobody"],
        ["--fix-sql", "--json"],
        ["--no-such-option"],
        ["-d", "not a dsn"],
    ],
)
def test_exit_2_for_what_was_asked_wrongly(server18: Server, options: list[str]) -> None:
    done = pgrepl("doctor", "-d", server18.dsn(), *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pgrepl: error: ")


def test_only_and_skip_and_provider(database18: Database) -> None:
    done = pgrepl(
        "doctor", "none", "-d", database18.dsn(), "--json", "--only", "pub.exists", "--only", "server.version"
    )
    assert [check["id"] for check in json.loads(done.stdout)["checks"]] == ["server.version", "pub.exists"]
    done = pgrepl("doctor", "-d", database18.dsn(), "--json", "--skip", "pub.exists", "--provider", "azure")
    document = json.loads(done.stdout)
    assert "pub.exists" not in [check["id"] for check in document["checks"]]
    assert document["server"]["provider"] == "azure"


def test_a_publication_of_the_configuration_is_taken(database18: Database, tmp_path: Path) -> None:
    server = database18.server
    path = tmp_path / "pgrepl.toml"
    path.write_text(
        f'[[databases]]\nhost = "{server.host}"\nport = {server.port}\ndbname = "{database18.name}"\n'
        'username = "postgres"\npublication = "configured"\n'
    )
    done = pgrepl("doctor", "-c", str(path))
    assert "there is no publication configured" in done.stdout
    assert done.returncode == 1


def test_a_name_cannot_play_tricks_on_the_terminal(database18: Database) -> None:
    database18.psql('CREATE TABLE "x\x1b[31m\nDROP" (a int); CREATE PUBLICATION p FOR ALL TABLES')
    done = pgrepl("doctor", "p", "-d", database18.dsn())
    assert "\x1b" not in done.stdout
    assert "\\x1b[31m\\nDROP" in done.stdout


def test_an_output_that_is_not_unicode_gets_plain_marks(database18: Database) -> None:
    done = pgrepl("doctor", "-d", database18.dsn(), PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "  + conn.sql" in done.stdout


def test_a_terminal_gets_lines_that_fit_and_no_endless_list_and_a_pipe_gets_all() -> None:
    findings = [
        Finding("tbl.any", "any", Status.FAIL, f"{'a long story ' * 10}", f"s.t{number}", {}, (_SQL, _ACTION))
        for number in range(30)
    ]
    report = Report(ServerIdentity("18.4", 180004, "self-hosted", "app"), ["p"], "cdc", "memory", None, findings)
    shown = [line.plain for line in _lines(report, 80, terminal=True, unicode=True)]
    assert sum("✗ tbl.any" in line for line in shown) == 5
    assert any("25 more of tbl.any" in line for line in shown)
    assert all(len(line) <= 80 for line in shown if "sql  " not in line)
    assert any(line.endswith(_SQL.text) for line in shown)
    piped = [line.plain for line in _lines(report, 100_000, terminal=False, unicode=False)]
    assert sum("x tbl.any" in line for line in piped) == 30
    assert piped[-1] == "30 failed"


_SQL = Fix("sql", f"ALTER TABLE {', '.join(['public.long_name'] * 10)};")
_ACTION = Fix("action", "ask somebody " * 12)
