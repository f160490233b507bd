"""Passwords: from a file of their own, and printed nowhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pgrepl.config import load
from pgrepl.errors import InputError
from tests.command import pgrepl
from tests.config.conftest import Write

SECRET = "hunter2"


def entry(file: str) -> str:
    return f'[[databases]]\nhost = "127.0.0.1"\nport = 1\npassword = {{ file = "{file}" }}\n'


def test_a_file_is_read_once_and_loses_white_space_at_its_end_alone(write: Write) -> None:
    write(entry("secret"))
    Path("secret").write_text(f"  {SECRET} ü \r\n\n")
    (database,) = load(None).databases
    assert database.target.params["password"] == f"  {SECRET} ü"
    Path("secret").unlink()
    assert database.target.params["password"] == f"  {SECRET} ü"


def test_a_file_that_is_not_needed_is_not_read(write: Write) -> None:
    write(entry("gone") + '[[databases]]\nname = "other"\nhost = "h"\n')
    other = load(None).database("other")
    assert other is not None
    assert "password" not in other.target.params


def test_a_blank_password_is_none(write: Write) -> None:
    write(entry("secret"))
    Path("secret").write_text("\n")
    assert "password" not in load(None).databases[0].target.params


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file or directory"),
        (SECRET.encode() + b"\xff", "it is not UTF-8 text"),
        (SECRET.encode() + b"\0", "there is a zero byte in it"),
        (SECRET.encode() * 200_000, "it is far too long"),
    ],
)
def test_a_file_that_cannot_be_used(write: Write, content: bytes | None, reason: str) -> None:
    write(entry("secret"))
    if content is not None:
        Path("secret").write_bytes(content)
    with pytest.raises(InputError) as caught:
        _ = load(None).databases[0].target
    assert str(caught.value) == f"cannot read the password file of pgrepl.toml:4, secret: {reason}"
    done = pgrepl("slots", "list", "--debug", "-v")
    assert done.returncode == 2
    assert SECRET not in done.stdout + done.stderr


def test_a_directory_in_place_of_it(write: Write) -> None:
    write(entry("."))
    with pytest.raises(InputError, match=r"^cannot read the password file of pgrepl.toml:4, .: is a directory$"):
        _ = load(None).databases[0].target


@pytest.mark.parametrize("options", [[], ["--json"], ["--format", "jsonl"], ["--debug", "-v"]])
def test_show_masks_them(write: Write, options: list[str]) -> None:
    write(f'[[databases]]\npassword = "{SECRET}"\n[pipeline]\nstate_dsn = "postgresql://u:{SECRET}@h/db"\n')
    done = pgrepl(
        "config",
        "show",
        *options,
        PGREPL_DSN=f"host=h password={SECRET}",
        PGSENSE__DATABASES__1__PASSWORD=SECRET,
        PGSENSE__DATABASES__1__HOST="h",
    )
    assert done.returncode == 0
    assert SECRET not in done.stdout + done.stderr
    assert done.stdout.count("****") == 4


def test_show_names_the_file_and_does_not_read_it(write: Write) -> None:
    write(entry("/gone"))
    shown = {each["key"]: each["value"] for each in json.loads(pgrepl("config", "show", "--json").stdout)}
    assert shown["databases.127.0.0.1/postgres.password.file"] == "/gone"
    assert "databases.127.0.0.1/postgres.password" not in shown


def test_a_connection_string_for_the_state_that_cannot_be_read_is_masked_whole(write: Write) -> None:
    write(f'[pipeline]\nstate_dsn = "postgresql://u:{SECRET}@[h/db"\n')
    done = pgrepl("config", "show")
    assert done.returncode == 0
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "text",
    [
        f'[[databases]]\npassword = "{SECRET}\n',
        f'[[databases]]\npassword = ["{SECRET}"]\n',
        f'[[databases]]\npassword = {{ text = "{SECRET}" }}\n',
        f'[[databases]]\npassword = "{SECRET}\\u0000"\n',
        f'[[databases]]\nport = "{SECRET}"\n',
        f'[[databases]]\n"{SECRET}" \n',
        f'[[databases]]\npasword = "{SECRET}"\n',
        f'password = "{SECRET}"\n',
        f'[pipeline]\nstore = "{SECRET}"\n',
        f'[[databases]]\npassword = "{SECRET}"\npassword = "{SECRET}"\n',
    ],
)
@pytest.mark.parametrize("command", [["config", "show"], ["config", "set", "pipeline.state_pool", "7"], ["doctor"]])
def test_errors_keep_them(write: Write, text: str, command: list[str]) -> None:
    write(text)
    done = pgrepl(*command, "--debug", "-v")
    assert done.returncode == 2
    assert SECRET not in done.stdout + done.stderr


def test_a_connection_that_fails_keeps_them(write: Write) -> None:
    write(entry("secret"))
    Path("secret").write_text(SECRET)
    for options in ([], ["--all-databases"], ["--all-databases", "--json"], ["--log-format", "json"]):
        done = pgrepl("doctor", "--debug", "-v", *options)
        assert done.returncode == 3
        assert SECRET not in done.stdout + done.stderr


def test_reprs_keep_them(write: Write) -> None:
    write(f'[[databases]]\npassword = "{SECRET}"\n[pipeline]\nstate_dsn = "password={SECRET}"\n')
    config = load(None)
    assert SECRET not in repr(config) + repr(config.databases[0].target) + repr(config.settings)


def test_set_keeps_them_and_says_that_others_may_have_seen_one(write: Write) -> None:
    path = write('[[databases]]\nname = "a"\n')
    path.chmod(0o600)
    done = pgrepl("config", "set", "databases.a.password", SECRET, "--debug", "-v")
    assert done.returncode == 0
    assert SECRET not in done.stdout + done.stderr
    assert "can be seen in the process list" in done.stderr
    assert f'password = "{SECRET}"' in path.read_text()
    done = pgrepl("config", "set", "pipeline.state_dsn", f"postgresql://u:{SECRET}@[h", "--debug")
    assert done.returncode == 2
    assert SECRET not in done.stdout + done.stderr


def test_a_new_file_is_readable_by_its_owner_alone() -> None:
    previous = os.umask(0)
    try:
        assert pgrepl("config", "set", "databases.a.name", "a", "-c", "new.toml").returncode == 0
    finally:
        os.umask(previous)
    assert Path("new.toml").stat().st_mode & 0o777 == 0o600
