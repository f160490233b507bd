"""Running the doctor as a library on a test's database, and the fixes that it prints."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import pytest

from pgrepl import doctor
from pgrepl.conninfo import parse
from pgrepl.doctor import Finding, Report, context
from tests.servers.database import Database


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the WAL twice without waiting in between: how fast it grows matters to few tests."""
    monkeypatch.setattr(context, "SAMPLE_SECONDS", 0.0)


def examine(database: Database, *publications: str, user: str = "postgres", **options: Any) -> Report:
    """Run the doctor as this user."""
    return doctor.run(parse(database.dsn(user), "the test"), publications=publications, **options)


def of(report: Report, check_id: str) -> list[Finding]:
    """The findings of one check."""
    return [finding for finding in report.findings if finding.id == check_id]


def one(report: Report, check_id: str) -> Finding:
    """The only finding of a check."""
    (finding,) = of(report, check_id)
    return finding


def statuses(report: Report) -> dict[str, set[str]]:
    """The statuses that each check ended with."""
    return {finding.id: {other.status.value for other in of(report, finding.id)} for finding in report.findings}


# The servers of the tests do not wait for the disk, and have no bound for WAL.
OF_THE_TESTS = {"cfg.fsync", "cfg.keep_size"}


def troubles(report: Report) -> dict[str, set[str]]:
    """The checks that did not end well, with their statuses, but for what the servers of the tests are to blame for."""
    return {
        check_id: found
        for check_id, found in statuses(report).items()
        if found & {"warn", "fail", "unknown"} and check_id not in OF_THE_TESTS
    }


def apply_fixes(database: Database, findings: Sequence[Finding]) -> None:
    """Run the SQL of the fixes as it is printed, each statement alone."""
    with database.connect() as conn:
        for finding in findings:
            for step in finding.fix:
                if step.kind == "sql":
                    conn.execute(step.text.encode())
                elif step.kind == "command":
                    # Such a fix is one of pgrepl's own commands, word for word.
                    assert shlex.split(step.text)[0] == "pgrepl"
