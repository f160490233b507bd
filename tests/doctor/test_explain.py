"""``pgrepl explain``: what stands behind each check."""

from __future__ import annotations

import json

import pytest

from pgrepl import doctor
from pgrepl.doctor.checks import CHECKS
from tests.command import pgrepl


@pytest.mark.parametrize("check", CHECKS, ids=[check.id for check in CHECKS])
def test_every_check_says_cause_risk_fix_and_where_to_read(check: object) -> None:
    explanation = doctor.explain(check.id)  # type: ignore[attr-defined]
    for text in (explanation.cause, explanation.risk, explanation.fix):
        assert len(text) > 5
        assert text.endswith(".")
    assert explanation.links
    assert all(link.startswith("https://") for link in explanation.links)


def test_it_is_printed_without_a_server() -> None:
    done = pgrepl("explain", "cfg.wal_level", PGHOST="/nonexistent")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("cfg.wal_level: wal_level is logical\n")
    for heading in ("\nCause\n  ", "\nRisk\n  ", "\nFix\n  ", "\nSee\n  https://"):
        assert heading in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_as_json() -> None:
    document = json.loads(pgrepl("explain", "cfg.wal_level", "--json").stdout)
    assert list(document) == ["id", "title", "cause", "risk", "fix", "links"]


def test_an_id_that_is_not_there() -> None:
    done = pgrepl("explain", "cfg.wallevel")
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean cfg.wal_level?" in done.stderr
    assert pgrepl("explain").returncode == 2
