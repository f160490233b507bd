"""The run as a whole: what is chosen, what could not be found out, how much is asked, and the report's shape."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import psycopg
import pytest

from pgrepl.catalog.provider import Traces
from pgrepl.doctor import Finding, Fix, Report, ServerIdentity, Status, engine, providers
from pgrepl.doctor.check import Check
from pgrepl.doctor.checks import CHECKS
from pgrepl.doctor.context import Context
from pgrepl.errors import InputError
from tests.doctor.conftest import examine, one, statuses
from tests.servers.database import Database


def test_every_check_is_documented_and_its_needs_come_before_it() -> None:
    seen: set[str] = set()
    for check in CHECKS:
        assert type(check).__doc__
        assert check.title
        assert set(check.needs) <= seen
        assert check.id not in seen
        seen.add(check.id)


def test_only_and_skip_choose(database18: Database) -> None:
    assert set(statuses(examine(database18, only=["pub.exists"]))) == {"pub.exists"}
    left = statuses(examine(database18, skip=["conn.replication", "conn.sql"]))
    assert set(left) == {check.id for check in CHECKS} - {"conn.replication", "conn.sql"}


def test_an_unknown_id_names_the_nearest(database18: Database) -> None:
    with pytest.raises(InputError) as error:
        examine(database18, only=["cfg.wallevel"])
    assert error.value.hint == "did you mean cfg.wal_level?"
    with pytest.raises(InputError):
        examine(database18, provider="elsewhere")


class _Broken(Check):
    """Ask for what is not there."""

    id = "test.broken"
    title = "broken"

    def run(self, context: Context) -> Iterator[Finding]:
        context.conn.execute("SELECT * FROM pg_catalog.not_there")
        yield self.finding(Status.PASS, "never reached")


class _Dependent(Check):
    """Need the broken one."""

    id = "test.dependent"
    title = "dependent"
    needs = ("test.broken",)

    def run(self, context: Context) -> Iterable[Finding]:
        raise AssertionError("must not run")


class _Fatal(Check):
    """Lose the connection."""

    id = "test.fatal"
    title = "fatal"

    def run(self, context: Context) -> Iterator[Finding]:
        context.conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        yield self.finding(Status.PASS, "never reached")


def test_what_could_not_be_found_out_is_unknown_and_ends_nothing(
    database18: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, *others = CHECKS
    monkeypatch.setattr(engine, "CHECKS", (connection, _Broken(), _Dependent(), *others, _Fatal(), others[0]))
    report = examine(database18)
    assert one(report, "test.broken").status is Status.UNKNOWN
    assert "not_there" in one(report, "test.broken").summary
    assert one(report, "test.broken").evidence == {"sqlstate": "42P01"}
    assert one(report, "test.dependent").status is Status.SKIP
    assert one(report, "cfg.wal_level").status is Status.PASS
    assert one(report, "test.fatal").status is Status.UNKNOWN
    assert not report.fails("fail")
    assert report.fails("unknown")
    assert not report.fails("never")


def test_a_connection_that_breaks_at_once_leaves_a_report(
    database18: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "CHECKS", (_Fatal(), *CHECKS))
    report = examine(database18, "p", skip=["server.version"])
    assert statuses(report)["conn.sql"] == {"unknown"}
    assert statuses(report)["pub.exists"] == {"skip"}
    assert report.server == ServerIdentity()


def test_a_thousand_tables_cost_no_query_more(database18: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    database18.psql(
        "CREATE ROLE reader LOGIN REPLICATION; CREATE TABLE t0 (a int);CREATE PUBLICATION p FOR TABLES IN SCHEMA public"
    )
    few = _queries(database18, monkeypatch)
    database18.psql("DO $$ BEGIN FOR i IN 1..999 LOOP EXECUTE format('CREATE TABLE t%s (a int)', i); END LOOP; END $$")
    many = _queries(database18, monkeypatch)
    report = examine(database18, "p", role="reader")
    assert many == few
    assert len([finding for finding in report.findings if finding.id == "tbl.replica_identity"]) == 1000
    assert len([finding for finding in report.findings if finding.id == "role.select"]) == 1000


def _queries(database: Database, monkeypatch: pytest.MonkeyPatch) -> int:
    asked = 0
    execute = psycopg.Cursor.execute

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal asked
        asked += 1
        return execute(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(psycopg.Cursor, "execute", counting)
        examine(database, "p", role="reader")
    assert asked > 5
    return asked


def test_the_document_has_these_keys(database18: Database) -> None:
    document = examine(database18, "missing").document()
    json.dumps(document)
    assert list(document) == ["server", "target", "checks", "summary"]
    assert list(document["server"]) == [
        "version",
        "version_num",
        "provider",
        "database",
        "system_identifier",
        "in_recovery",
    ]
    assert document["target"] == {"publications": ["missing"], "role": "postgres", "store": "memory", "slot": None}
    for check in document["checks"]:
        assert list(check) == ["id", "status", "title", "summary", "object", "evidence", "fix"]
        for step in check["fix"]:
            assert list(step) == ["kind", "text"]
    assert list(document["summary"]) == ["pass", "info", "warn", "fail", "unknown", "skip"]
    assert sum(document["summary"].values()) == len(document["checks"])


def test_the_script_holds_each_statement_once_and_no_name_can_break_out_of_a_comment() -> None:
    evil = "x\nDROP TABLE precious; --"
    finding = Finding(
        "tbl.any",
        "any",
        Status.FAIL,
        f"{evil} is at fault",
        object=evil,
        fix=(Fix("sql", "GRANT a TO b;"), Fix("action", f"look at {evil}"), Fix("command", "pgrepl slots list")),
    )
    passed = Finding("tbl.other", "other", Status.SKIP, "skipped", fix=(Fix("sql", "never"),))
    report = Report(ServerIdentity(), [], None, "memory", None, [finding, finding, passed])
    lines = report.fix_sql().splitlines()
    assert [line for line in lines if not line.startswith("-- ")] == ["GRANT a TO b;"]
    assert "-- command: pgrepl slots list" in lines


@pytest.mark.parametrize(
    ("traces", "host", "name"),
    [
        (Traces(frozenset({"rds"}), frozenset({"rds_superuser"}), True), "", "aurora"),
        (Traces(frozenset({"rds"}), frozenset(), False), "", "rds"),
        (Traces(frozenset({"cloudsql"}), frozenset({"cloudsqlsuperuser"}), False), "", "cloudsql"),
        (Traces(frozenset({"alloydb"}), frozenset({"alloydbsuperuser"}), False), "", "alloydb"),
        (Traces(frozenset(), frozenset({"azure_pg_admin"}), False), "", "azure"),
        (Traces(frozenset(), frozenset({"neon_superuser"}), False), "", "neon"),
        (Traces(frozenset(), frozenset(), False), "ep-x.eu-central-1.aws.neon.tech", "neon"),
        (Traces(frozenset(), frozenset({"supabase_admin"}), False), "", "supabase"),
        (Traces(frozenset(), frozenset(), False), "db.abc.supabase.co", "supabase"),
        (Traces(frozenset(), frozenset(), False), "db1.example.com", "self-hosted"),
    ],
)
def test_a_service_is_told_by_its_traces(traces: Traces, host: str, name: str) -> None:
    assert providers.detect(traces, host).name == name
