"""``pgrepl doctor`` as a process: exit codes, what goes where, and how it reads."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest

from pgrepl import migrations
from pgrepl.cli.doctor import _lines
from pgrepl.cli.main import cli
from pgrepl.doctor import Finding, Fix, Report, ServerIdentity, Status
from pgrepl.stores.tables import CREATE_PIPELINES
from tests.command import eventually, pgrepl
from tests.conftest import NewServer
from tests.doctor.fixes import make_slot
from tests.servers.database import Database
from tests.servers.server import Server


def test_exit_0_and_silence_on_stderr_when_all_is_well(database: Database) -> None:
    database.psql("CREATE TABLE t (a int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")
    done = pgrepl("doctor", "p", "-d", database.dsn())
    assert (done.returncode, done.stderr) == (0, "")
    assert "tbl.replica_identity" in done.stdout
    # What these servers are to blame for is not bound and not durable WAL.
    assert re.search(r"\n\d+ passed, 2 for information, 2 to look at, \d+ skipped\n$", done.stdout)
    assert "\x1b" not in done.stdout


def test_exit_1_with_the_fix_beneath_what_failed(database18: Database) -> None:
    database18.psql('CREATE TABLE "T" (a int); CREATE PUBLICATION p FOR TABLE "T"')
    done = pgrepl("doctor", "p", "-d", database18.dsn())
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if "✗ tbl.replica_identity" in line)
    assert lines[at + 1].strip() == 'sql  ALTER TABLE "public"."T" REPLICA IDENTITY FULL;'
    assert ", 1 failed, " in lines[-1]


def test_exit_3_with_a_report_when_there_is_no_connection(server18: Server) -> None:
    for options in ([], ["--json"], ["--fail-on", "never"]):
        done = pgrepl("doctor", "-d", server18.dsn("not_there"), *options)
        assert done.returncode == 3
        assert "conn.sql" in done.stdout
        assert 'database "not_there" does not exist' in done.stderr
        assert "hint: " in done.stderr
    document = json.loads(pgrepl("doctor", "--json", "-d", server18.dsn("not_there")).stdout)
    assert document["summary"] == {
        "pass": 0,
        "info": 0,
        "warn": 0,
        "fail": 1,
        "unknown": 0,
        "skip": len(document["checks"]) - 1,
    }


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
    # The settings of the server are not this test's.
    checks = [f"--skip={check}" for check in ("cfg.keep_size", "cfg.fsync")]
    database.psql(pgrepl("doctor", "p", "-d", database.dsn("cdc"), "--fix-sql", *checks).stdout)
    mended = pgrepl("doctor", "p", "-d", database.dsn("cdc"), "--fix-sql", *checks)
    assert (mended.returncode, mended.stderr) == (0, "")
    # What is left is no SQL: a table without any column that could be a key has none.
    assert all(line.startswith("-- ") for line in mended.stdout.splitlines())
    assert "tbl.primary_key" in mended.stdout


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


def test_probe_and_upgrade_are_done_when_asked_for(new_server: NewServer) -> None:
    database = Database(new_server(18), "postgres")
    database.psql("CREATE TABLE t (a int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")
    make_slot(database, "behind")
    database.psql("INSERT INTO t VALUES (1)")
    command = ["doctor", "p", "--json", "--only", "live.end_to_end", "--only", "up.pg_upgrade", "-d", database.dsn()]

    def found(*options: str) -> dict[str, tuple[str, str | None]]:
        checks = json.loads(pgrepl(*command, *options).stdout)["checks"]
        return {check["id"]: (check["status"], check["object"]) for check in checks}

    assert found() == {"live.end_to_end": ("skip", None), "up.pg_upgrade": ("skip", None)}
    assert found("--probe") == {"live.end_to_end": ("pass", None), "up.pg_upgrade": ("skip", None)}
    assert found("--upgrade") == {"live.end_to_end": ("skip", None), "up.pg_upgrade": ("warn", "behind")}
    # Nothing of the probe is left.
    slots = "SELECT string_agg(slot_name, ',') FROM pg_replication_slots"
    eventually(lambda: database.psql(slots).strip() == "behind")


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


@pytest.mark.parametrize(("options", "store"), [([], "postgres"), (["--store", "memory"], "memory")])
def test_the_store_of_the_configuration_is_taken(
    options: list[str], store: str, database18: Database, tmp_path: Path
) -> None:
    path = tmp_path / "pgrepl.toml"
    path.write_text('[pipeline]\nstore = "postgres"\n')
    document = json.loads(pgrepl("doctor", "-c", str(path), "-d", database18.dsn(), "--json", *options).stdout)
    assert document["target"]["store"] == store
    found = next(check for check in document["checks"] if check["id"] == "live.schema")
    assert (found["status"] == "fail") == (store == "postgres")


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


def test_nagios_codes_and_its_one_line(database18: Database) -> None:
    database18.psql("CREATE TABLE t (a int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t; CREATE ROLE cdc LOGIN")
    ours = ["--skip=cfg.keep_size", "--skip=cfg.fsync"]

    def line(*options: str) -> tuple[int, str]:
        done = pgrepl("doctor", "p", "-d", database18.dsn(), "--nagios", *options)
        assert done.stderr == ""
        assert done.stdout.count("\n") == 1
        assert re.search(r" \| pass=\d+ info=\d+ warn=\d+ fail=\d+ unknown=\d+ skip=\d+\n$", done.stdout), done.stdout
        return done.returncode, done.stdout

    assert line(*ours)[0] == 0
    assert line(*ours)[1].startswith("PGREPL OK: ")
    database18.psql("ALTER PUBLICATION p SET (publish = 'insert')")
    code, text = line(*ours)
    assert (code, text.startswith("PGREPL WARNING: 1 to look at - pub.ops p: p does not publish")) == (1, True)
    code, text = line("--role", "cdc", *ours)
    assert (code, text.startswith("PGREPL CRITICAL: ")) == (2, True)
    assert "role.replication cdc: cdc has no right to replicate" in text
    assert line("--role", "cdc", "--fail-on", "never", *ours)[0] == 0


def test_nagios_and_what_could_not_run(database18: Database) -> None:
    database18.psql(
        "CREATE ROLE looker LOGIN REPLICATION; REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC;"
        "CREATE TABLE t (a int PRIMARY KEY); GRANT SELECT ON t TO looker; CREATE PUBLICATION p FOR TABLE t"
    )
    options = ["doctor", "p", "-d", database18.dsn("looker"), "--nagios", "--only=conn.same_server"]
    assert pgrepl(*options).returncode == 0
    done = pgrepl(*options, "--fail-on", "unknown")
    assert (done.returncode, done.stdout.startswith("PGREPL UNKNOWN: 1 could not run - conn.same_server:")) == (3, True)


def test_nagios_without_a_server_or_with_nonsense(server18: Server) -> None:
    done = pgrepl("doctor", "--nagios", "-d", server18.dsn("not_there"))
    assert (done.returncode, done.stdout.startswith("PGREPL CRITICAL: 1 failed - conn.sql: ")) == (2, True)
    done = pgrepl("doctor", "--nagios", "-d", server18.dsn(), "--only", "no.such")
    assert (done.returncode, done.stdout) == (3, "PGREPL UNKNOWN: there is no check 'no.such'\n")
    assert pgrepl("doctor", "--nagios", "--json", "-d", server18.dsn()).returncode == 2


def test_a_bar_in_a_name_does_not_begin_the_performance_data(database18: Database) -> None:
    database18.psql('CREATE PUBLICATION "a|b\nc"')
    done = pgrepl("doctor", "a|b\nc", "--nagios", "-d", database18.dsn())
    assert (done.stdout.count("|"), done.stdout.count("\n")) == (1, 1)
    assert "a/b\\nc" in done.stdout


def test_the_last_line_names_what_would_let_the_rest_run(database18: Database) -> None:
    database18.psql(
        "CREATE ROLE looker LOGIN REPLICATION; REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC;"
        "CREATE TABLE t (a int PRIMARY KEY); GRANT SELECT ON t TO looker; CREATE PUBLICATION p FOR TABLE t"
    )
    command = ["doctor", "p", "-d", database18.dsn("looker"), "--only=conn.same_server"]
    last = pgrepl(*command).stdout.splitlines()[-1]
    found = re.fullmatch(r"1 could not run: conn.same_server \((.*) would let it\)", last)
    assert found is not None, last
    database18.psql(found[1])
    assert pgrepl(*command).stdout.splitlines()[-1] == "1 passed"


def test_the_last_line_names_each_grant_once(database18: Database) -> None:
    """Several checks want the same table, and the role may use one of the two schemas."""
    database18.psql(
        f"CREATE ROLE owner LOGIN REPLICATION; GRANT CREATE ON DATABASE {database18.name} TO owner;"
        "CREATE TABLE t (a int PRIMARY KEY); GRANT SELECT ON t TO owner; CREATE PUBLICATION p FOR TABLE t;"
        "REVOKE USAGE ON SCHEMA public FROM PUBLIC;"
        "CREATE TABLE faucet_state (key text PRIMARY KEY, value jsonb NOT NULL, updated_at timestamptz)"
    )
    with database18.connect() as connection:
        migrations.apply(connection)
        connection.execute(CREATE_PIPELINES.encode())
    database18.psql(
        "ALTER SCHEMA etl OWNER TO owner; GRANT ALL ON ALL TABLES IN SCHEMA etl TO owner;"
        "REVOKE ALL ON etl.pgrepl_pipelines FROM owner"
    )
    command = ["doctor", "p", "--store", "postgres", "-d", database18.dsn("owner"), "--only=server.identity"]
    command += ["--only=slot.exists", "--only=slot.orphans"]
    last = pgrepl(*command).stdout.splitlines()[-1]
    found = re.search(r"could not run: .* \((.*) would let (?:it|them)\)", last)
    assert found is not None, last
    assert sorted(found[1].replace("; ", ";\n").splitlines()) == [
        'GRANT SELECT ON etl.pgrepl_pipelines TO "owner";',
        'GRANT SELECT ON public.faucet_state TO "owner";',
        'GRANT USAGE ON SCHEMA public TO "owner";',
    ]
    database18.psql(found[1])
    assert "could not run" not in pgrepl(*command).stdout


def test_the_configuration_is_read_again_once_and_last() -> None:
    reload = Fix("sql", "SELECT pg_reload_conf();")
    findings = [
        Finding(f"cfg.{name}", name, Status.WARN, "x", fix=(Fix("sql", f"ALTER SYSTEM SET {name} = 1;"), reload))
        for name in ("a", "b")
    ]
    script = Report(ServerIdentity(), [], None, "memory", None, findings).fix_sql()
    statements = [line for line in script.splitlines() if not line.startswith("--")]
    assert statements == ["ALTER SYSTEM SET a = 1;", "ALTER SYSTEM SET b = 1;", reload.text]


def test_ten_things_at_once_are_mended_by_the_script(new_server: NewServer) -> None:
    database = Database(new_server(18), "postgres")
    database.psql(
        "CREATE ROLE cdc LOGIN VALID UNTIL '2020-01-01'; ALTER ROLE cdc SET statement_timeout = '9s';"
        "ALTER ROLE cdc SET wal_sender_timeout = 0; REVOKE CONNECT ON DATABASE postgres FROM PUBLIC;"
        "ALTER SYSTEM SET max_slot_wal_keep_size = 0; SELECT pg_reload_conf()"
    )
    database.psql(
        'CREATE SCHEMA "S"; CREATE TABLE "S".a (x int, y int); CREATE TABLE "S".b (x int PRIMARY KEY, y int);'
        'CREATE TABLE "S".c (x int, y int, z int, PRIMARY KEY (x, y)); CREATE SCHEMA etl;'
        'CREATE TABLE etl.replication_state (id int PRIMARY KEY); ALTER TABLE "S".b ENABLE ROW LEVEL SECURITY;'
        'CREATE TABLE "S".r (x int PRIMARY KEY) PARTITION BY RANGE (x); CREATE TABLE "S".l PARTITION OF "S".r DEFAULT;'
        'CREATE PUBLICATION p FOR TABLE "S".a, "S".b WHERE (y > 1), "S".c (x, z), "S".r, etl.replication_state'
        " WITH (publish = 'insert, update')"
    )
    command = ["doctor", "p", "-d", database.dsn(), "--role", "cdc", "--json"]
    before = json.loads(pgrepl(*command).stdout)
    broken = {check["id"] for check in before["checks"] if check["status"] in ("warn", "fail")}
    assert len(broken) >= 10, broken
    database.psql(pgrepl("doctor", "p", "-d", database.dsn(), "--role", "cdc", "--fix-sql").stdout)
    eventually(lambda: pgrepl(*command).returncode == 0)
    left = {check["id"] for check in json.loads(pgrepl(*command).stdout)["checks"] if check["status"] == "warn"}
    assert left <= {"cfg.fsync", "tbl.primary_key"}


def test_every_command_that_is_printed_as_a_fix_can_be_given() -> None:
    """The commands in the texts of the checks, each with its placeholders filled."""
    source = "".join(path.read_text() for path in Path("pgrepl/doctor").rglob("*.py"))
    commands = {
        re.sub(r"\{[^}]*\}", "1", text).replace("--store 1", "--store postgres")
        for text in re.findall(r'Fix\(\s*"command", f?"(pgrepl [^"]*)"', source)
    }
    assert len(commands) >= 3
    for line in commands:
        words = shlex.split(line)[1:]
        command: click.Command = cli
        while isinstance(command, click.Group):
            found = command.get_command(click.Context(command), words[0])
            if found is None:
                assert (words[0], words[1]) in OF_THE_CONTRACT or ("slots", words[0]) in OF_THE_CONTRACT, line
                break
            command = found
            words.pop(0)
        else:
            command.make_context("pgrepl", words)


# In the contract of the command line, and not yet in the program.
OF_THE_CONTRACT: set[tuple[str, str]] = set()
