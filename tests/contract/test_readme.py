"""The README names every command, links every document, and what it shows is what there is."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest

from pgrepl.cli.main import cli
from tests.command import pgrepl
from tests.contract.test_hints import check
from tests.servers.database import Database

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_every_command_is_named() -> None:
    table = README[: README.index("## A short tour")]
    named = set(re.findall(r"`(?:pgrepl )?(\w+)`", table))
    assert set(cli.list_commands(click.Context(cli))) <= named


def test_every_document_is_linked_and_every_link_leads_somewhere() -> None:
    links = set(re.findall(r"\]\(([^)#]+)\)", README))
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= links
    assert all((ROOT / link).exists() for link in links)


@pytest.mark.parametrize("line", re.findall(r"^(?:\$ )?(pgrepl .*)$", README, re.MULTILINE))
def test_every_command_line_can_be_given(line: str) -> None:
    check(shlex.split(line, comments=True)[1:])


def test_the_commands_that_go_on_do(database18: Database, tmp_path: Path) -> None:
    database18.psql(
        "CREATE SCHEMA shop; CREATE TABLE shop.orders (id int PRIMARY KEY); INSERT INTO shop.orders VALUES (1)"
    )
    block = README[README.index("### To go on") : README.index("### From Python")]
    role = f"cdc_{database18.name}"
    lines = [
        line.replace("cdc", role).replace("orders.jsonl", str(tmp_path / "orders.jsonl"))
        for line in re.findall(r"^pgrepl (.*)$", block, re.MULTILINE)
    ]
    ends = {"tail": ["--until-lsn", "now"], "teardown": ["--yes"]}
    for number, line in enumerate(lines):
        words = shlex.split(line, comments=True)
        done = pgrepl(*words, *ends.get(words[0], []), PGREPL_DSN=database18.dsn())
        assert done.returncode == 0, (line, done.stderr)
        database18.psql(f"INSERT INTO shop.orders VALUES (10 + {number})")
    events = [json.loads(line) for line in (tmp_path / "orders.jsonl").read_text().splitlines()]
    assert [event["new"]["id"] for event in events if "new" in event] == [1, 10, 11]
    assert database18.psql("SELECT count(*) FROM pg_publication").strip() == "0"
