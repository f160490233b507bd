"""The command around it: what it refuses before anything is connected, what it asks, how it prints."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from pgrepl.cli import main
from tests.provision.shop import Setup, catalog
from tests.servers.database import Database, fresh_database

NOWHERE = ["setup", "-d", "host=/nonexistent dbname=none user=none"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--all-tables"], "no terminal to ask on"),
        (["--yes", "--password-file", "x"], "no role is named"),
        (["--yes", "--reset-password"], "no role is named"),
        (["--yes", "--only", "role"], "no role is named"),
        (["--yes", "--role", "a", "--reset-password"], "no password to set"),
        (["--yes", "--role", "a", "--password-file", "/nonexistent"], "cannot read the password file"),
        (["--yes", "--role", "a", "--password-file", "/dev/null"], "is empty"),
        (["--yes", "--role", "a", "--password-prompt"], "needs a terminal"),
        (["--yes", "--role", "a", "--password-file", "x", "--password-prompt"], "exclude each other"),
        (["--yes", "--role", "pg_monitor"], "keeps for itself"),
        (["--yes", "--role", "public"], "keeps for itself"),
        (["--yes", "--role", ""], "cannot be the name"),
        (["--yes", "x" * 64], "longer than 63 bytes"),
        (["--yes", "--all-tables", "--table", "a.b"], "exclude each other"),
        (["--yes", "--literally-all", "--skip-keyless"], "cannot leave tables out"),
        (["--yes", "--publish", "insert,upsert"], "'upsert' cannot be published"),
        (["--yes", "--publish", ""], "no operation"),
        (["--yes", "--table", "orders"], "is not a table's name"),
        (["--yes", "--only", "everything"], "--only"),
        (["--yes", "--only", "schema"], "no store is named"),
        (["--yes", "--only", "migrations", "--store", "memory"], "only the postgres store has migrations"),
        (["--yes", "--store", "redis"], "--store"),
        (["--yes", "--store", "postgres", "--state-table", "x"], "are for the bookmarks store"),
        (["--yes", "--state-dsn", "dbname=x"], "are for the bookmarks store"),
        (["--yes", "--store", "bookmarks", "--state-dsn", "dbname"], "--state-dsn cannot be read"),
        (["--yes", "--store", "bookmarks", "--state-table", "a.b"], "has '.' in it"),
        (["--yes", "--store", "bookmarks", "--state-table", "x" * 64], "longer than 63 bytes"),
        (["--yes", "--lock-timeout", "soon"], "is not a duration"),
    ],
)
def test_wrong_input_is_refused_before_connecting(
    capsys: pytest.CaptureFixture[str], arguments: list[str], why: str
) -> None:
    assert main.run([*NOWHERE, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert why in captured.err


def test_unreachable_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([*NOWHERE, "--yes", "--all-tables"]) == 3
    assert capsys.readouterr().out == ""


def test_publication_of_the_configuration(shop18: Database, setup: Setup, tmp_path: Path) -> None:
    file = tmp_path / "pgrepl.toml"
    server = shop18.server
    file.write_text(
        f'[[databases]]\nhost = "127.0.0.1"\nport = {server.port}\ndbname = "{shop18.name}"\n'
        f'password = "{server.password}"\npublication = "configured"\n',
        encoding="utf-8",
    )
    assert main.run(["setup", "-c", str(file), "--table", "shop.orders", "--yes"]) == 0
    assert [name for name, *_ in catalog(shop18)["publications"]] == ["configured"]


def test_store_of_the_configuration(shop18: Database, setup: Setup, tmp_path: Path) -> None:
    file = tmp_path / "pgrepl.toml"
    server = shop18.server
    file.write_text(
        f'[pipeline]\nstore = "bookmarks"\nstate_table = "marks"\n'
        f'[[databases]]\nhost = "127.0.0.1"\nport = {server.port}\ndbname = "{shop18.name}"\n'
        f'password = "{server.password}"\n',
        encoding="utf-8",
    )
    assert main.run(["setup", "pub", "-c", str(file), "--table", "shop.orders", "--yes"]) == 0
    assert ("marks", "r", "postgres") in [
        (name.rpartition(".")[2], kind, owner) for name, kind, owner in catalog(shop18)["relations"]
    ]


def test_variables_say_where_the_bookmarks_are_also_beside_a_connection_string(
    shop18: Database, setup: Setup, teardown: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fresh_database(shop18.server) as other:
        before = catalog(shop18), catalog(other)
        monkeypatch.setenv("PGREPL_STORE", "bookmarks")
        monkeypatch.setenv("PGREPL_STATE_DSN", other.dsn())
        monkeypatch.setenv("PGREPL_STATE_TABLE", "marks")
        assert setup(shop18, "pub", "--role", "cdc", "--table", "shop.orders").code == 0
        assert "marks" not in {name for name, *_ in catalog(shop18)["relations"]}
        assert "marks" in {name for name, *_ in catalog(other)["relations"]}
        flagged = setup(shop18, "pub", "--state-table", "others", "--dry-run", yes=False)
        assert ("planned", "public.others") in flagged.steps("schema")
        outcome = teardown(shop18, "pub", "--role", "cdc", "--all")
        assert outcome.code == 0, outcome.err
        assert (catalog(shop18), catalog(other)) == before


@pytest.mark.parametrize("variable", ["PGREPL_STORE", "PGSENSE__PIPELINE__STORE"])
@pytest.mark.parametrize(
    "command", [["setup", "--yes"], ["teardown", "--yes"], ["doctor"], ["state", "show"], ["tail", "pub"]]
)
def test_store_that_nobody_knows_is_refused_by_every_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str], variable: str
) -> None:
    monkeypatch.setenv(variable, "bogus")
    assert main.run([*command, *NOWHERE[1:]]) == 2
    assert f"{variable}: store must be one of memory, postgres, bookmarks" in capsys.readouterr().err


def test_connection_string_that_is_configured_for_the_bookmarks_is_named_when_it_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGREPL_STATE_DSN", "nonsense")
    assert main.run(["setup", "--yes", "--store", "bookmarks", *NOWHERE[1:]]) == 2
    assert "PGREPL_STATE_DSN cannot be read" in capsys.readouterr().err


def test_state_connection_string_that_leads_to_the_same_database(shop18: Database, setup: Setup) -> None:
    """Its table must not be published: that would be a stream of its own positions."""
    outcome = setup(shop18, "pub", "--all-tables", "--store", "bookmarks", "--state-dsn", shop18.dsn())
    assert outcome.code == 0, outcome.err
    shop18.psql("CREATE TABLE public.more (id int PRIMARY KEY)")
    outcome = setup(shop18, "more", "--all-tables", "--store", "bookmarks", "--state-dsn", shop18.dsn())
    assert outcome.code == 0, outcome.err
    assert "faucet_state" not in {name for _, _, name in catalog(shop18)["published"]}


def test_prints_one_line_for_each_step(shop18: Database, setup: Setup) -> None:
    outcome = setup(shop18, "pub", "--role", "cdc", "--table", "shop.orders", as_json=False)
    lines = outcome.out.splitlines()
    assert lines[0].startswith("✓  check")
    assert "+  publication  pub                    shop.orders" in lines
    assert "CREATE" not in outcome.out
    assert "max_slot_wal_keep_size is unlimited" in outcome.err
    verbose = setup(shop18, "other", "--table", "shop.orders", "-v", as_json=False)
    assert 'CREATE PUBLICATION "other" FOR TABLE "shop"."orders"' in verbose.out


def test_json_has_the_documented_keys(shop18: Database, setup: Setup) -> None:
    document = setup(shop18, "pub", "--table", "shop.orders").document
    assert list(document) == ["steps", "needs"]
    for step in document["steps"]:
        assert list(step) == ["step", "status", "object", "statements", "reason"]


@pytest.mark.parametrize(("answer", "code", "made"), [(b"y\n", 0, True), (b"n\n", 1, False), (b"\x03", 130, False)])
def test_asks_on_a_terminal(shop18: Database, tmp_path: Path, answer: bytes, code: int, made: bool) -> None:
    ours, theirs = pty.openpty()
    arguments = ["setup", "pub", "-d", shop18.dsn(), "--role", "cdc", "--table", "shop.orders"]
    with subprocess.Popen(
        [sys.executable, "-m", "pgrepl", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=Path(main.__file__).parents[2],
        env={"PATH": os.environ["PATH"], "TERM": "xterm", "XDG_CONFIG_HOME": str(tmp_path), "COLUMNS": "80"},
        start_new_session=True,
        preexec_fn=_take_terminal,
    ) as process:
        os.close(theirs)
        shown = b""
        while b"[y/N]" not in shown:
            shown += os.read(ours, 4096)
        assert not catalog(shop18)["publications"]
        os.write(ours, answer)
        while True:
            try:
                more = os.read(ours, 4096)
            except OSError:
                break
            if not more:
                break
            shown += more
        assert process.wait(20) == code, shown.decode()
    os.close(ours)
    assert bool(catalog(shop18)["publications"]) is made


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
