"""flag, then PGREPL_…, then PGSENSE__…, then the file, then the default."""

from __future__ import annotations

import itertools
import json

import pytest

from pgrepl.config import load
from pgrepl.errors import InputError
from tests.command import pgrepl
from tests.config.conftest import Write

SOURCES = {
    "PGREPL_STORE": "bookmarks",
    "PGSENSE__PIPELINE__STORE": "postgres",
    "file": "memory",
}


@pytest.mark.parametrize("present", [p for n in range(4) for p in itertools.combinations(SOURCES, n)])
def test_the_first_that_is_there_wins(write: Write, monkeypatch: pytest.MonkeyPatch, present: tuple[str, ...]) -> None:
    for source in present:
        if source == "file":
            write(f'[pipeline]\nstore = "{SOURCES[source]}"\n')
        else:
            monkeypatch.setenv(source, SOURCES[source])
    config = load(None)
    (setting,) = [each for each in config.settings if each.key == "pipeline.store"]
    first = present[0] if present else None
    assert config.pipeline.store == (SOURCES[first] if first else None)
    assert setting.origin == {None: "default", "file": "pgrepl.toml:2"}.get(first, first)


@pytest.mark.parametrize("name", ["pgsense__pipeline__store", "PGSENSE__Pipeline__Store", "PGSENSE__PIPELINE__STORE"])
def test_names_of_pgsense_may_be_in_any_case(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "postgres")
    assert load(None).pipeline.store == "postgres"


def test_the_name_in_upper_case_wins_over_the_same_in_lower_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("pgsense__pipeline__store", "memory")
    monkeypatch.setenv("PGSENSE__PIPELINE__STORE", "postgres")
    assert load(None).pipeline.store == "postgres"


def test_an_empty_variable_is_none(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write('[pipeline]\nstore = "bookmarks"\n')
    monkeypatch.setenv("PGREPL_STORE", "")
    monkeypatch.setenv("PGSENSE__PIPELINE__STORE", "")
    assert load(None).pipeline.store == "bookmarks"


def test_variables_that_mean_something_to_pgsense_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RULES_FILE", "SERVER__PORT", "PIPELINE__BATCH_MAX_FILL_MS", "SCAN__X", "NONSENSE", "", "PIPELINE"):
        monkeypatch.setenv(f"PGSENSE__{name}", "x")
    assert load(None).settings[0].origin == "default"


def test_variables_for_a_database(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write('[[databases]]\nname = "a"\nhost = "h"\npassword = { file = "/gone" }\n')
    monkeypatch.setenv("PGSENSE__DATABASES__0__PORT", "7000")
    monkeypatch.setenv("PGSENSE__DATABASES__0__PASSWORD", "from the environment")
    monkeypatch.setenv("PGSENSE__DATABASES__0__TLS__ENABLED", "TRUE")
    monkeypatch.setenv("PGSENSE__DATABASES__1__HOST", "second")
    config = load(None)
    first, second = config.databases
    assert first.target.params["host"] == "h"
    assert first.target.params["port"] == "7000"
    assert first.target.params["password"] == "from the environment"
    assert first.target.params["sslmode"] == "verify-full"
    assert second.identity == "second/postgres"
    found = {each.key: each.origin for each in config.settings}
    assert found["databases.a.password"] == "PGSENSE__DATABASES__0__PASSWORD"
    assert found["databases.a.host"] == "pgrepl.toml:3"
    (warning,) = config.warnings
    assert "pgsense-rs itself does not start" in warning[0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("PGSENSE__PIPELINE__STORE", "sqlite", "PGSENSE__PIPELINE__STORE: store must be one of"),
        ("PGREPL_STATE_POOL", "many", "PGREPL_STATE_POOL: state_pool must be a number"),
        ("PGSENSE__DATABASES__0__PORT", "0", "PGSENSE__DATABASES__0__PORT: port must be a number"),
        ("PGSENSE__DATABASES__1__PORT", "1", "PGSENSE__DATABASES__1__PORT: there is no database 0 before it"),
        ("PGSENSE__DATABASES", "[]", "PGSENSE__DATABASES cannot be understood"),
        ("PGSENSE__DATABASES__FIRST__HOST", "h", "PGSENSE__DATABASES__FIRST__HOST cannot be understood"),
    ],
)
def test_a_wrong_value_is_told_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, message: str
) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(InputError) as caught:
        load(None)
    assert str(caught.value).startswith(message)


ENTRY = '[[databases]]\nname = "configured"\nhost = "127.0.0.1"\nport = 1\n'


@pytest.mark.parametrize(
    ("arguments", "environment", "where"),
    [
        ([], {}, "(pgrepl.toml, database configured)"),
        ([], {"PGREPL_DSN": "host=127.0.0.2 port=1"}, "(PGREPL_DSN)"),
        (["-d", "host=127.0.0.3 port=1"], {"PGREPL_DSN": "host=127.0.0.2 port=1"}, "(--dsn)"),
        (["--database", "configured"], {"PGREPL_DSN": "host=127.0.0.2 port=1"}, "(pgrepl.toml, database configured)"),
        (["--database", "127.0.0.1/postgres"], {}, "(pgrepl.toml, database configured)"),
        (["--all-databases"], {"PGREPL_DSN": "host=127.0.0.2 port=1"}, "(pgrepl.toml, database configured)"),
    ],
)
def test_which_server_is_meant(write: Write, arguments: list[str], environment: dict[str, str], where: str) -> None:
    write(ENTRY)
    done = pgrepl("slots", "list", *arguments, **environment)
    assert done.returncode == 3
    assert f"cannot connect {where}: " in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-d", "host=h", "--database", "configured"], "--dsn and --database exclude each other"),
        (["-d", "host=h", "--all-databases"], "--dsn and --all-databases exclude each other"),
        (["--database", "configured", "--all-databases"], "--database and --all-databases exclude each other"),
        (["--database", "other"], "no database 'other' in pgrepl.toml"),
        (["-c", "gone.toml", "-d", "host=h"], "cannot read the configuration file gone.toml"),
    ],
)
def test_flags_that_cannot_be_meant_together(write: Write, arguments: list[str], message: str) -> None:
    write(ENTRY)
    done = pgrepl("slots", "list", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"pgrepl: error: {message}")


def test_several_databases_and_none_chosen(write: Write) -> None:
    write(f'{ENTRY}[[databases]]\nname = "other"\nhost = "h"\n')
    done = pgrepl("slots", "list")
    assert (done.returncode, done.stdout) == (2, "")
    assert "choose one with --database: configured, other" in done.stderr


def test_the_file_here_comes_before_the_users(write: Write, tmp_path: object) -> None:
    environment = {"XDG_CONFIG_HOME": f"{tmp_path}/user", "PGREPL_CONFIG": ""}
    assert pgrepl("config", "path", **environment).returncode == 1
    pgrepl("config", "set", "pipeline.store", "memory", **environment)
    assert pgrepl("config", "path", **environment).stdout == f"{tmp_path}/user/pgrepl/pgrepl.toml\n"
    write('[pipeline]\nstore = "postgres"\n')
    assert pgrepl("config", "path", **environment).stdout == f"{tmp_path}/pgrepl.toml\n"
    shown = json.loads(pgrepl("config", "show", "--json", **environment).stdout)
    assert shown[0] == {"key": "config", "value": "pgrepl.toml", "origin": "default"}
    assert shown[1] == {"key": "pipeline.store", "value": "postgres", "origin": "pgrepl.toml:2"}
