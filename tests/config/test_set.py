"""``pgrepl config set`` and ``path``."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.command import pgrepl
from tests.config.conftest import Write

COMMENTED = """# ours
[pipeline]   # the pipeline
store = "memory"   # for now

[[databases]]  # first
name = "orders"
host = "db1" # primary
scan.include_schemas = [
  "public", # yes
]

[[databases]]
host = "db2.example.com"

[alerts]
x = 1 # kept
"""


def set_(*pairs: str) -> None:
    done = pgrepl("config", "set", *pairs)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def refused(*pairs: str) -> str:
    before = Path("pgrepl.toml").read_bytes()
    done = pgrepl("config", "set", *pairs)
    assert (done.returncode, done.stdout) == (2, "")
    assert Path("pgrepl.toml").read_bytes() == before
    assert [path.name for path in Path().iterdir()] == ["pgrepl.toml"]
    return done.stderr


def test_one_value_changes_and_nothing_else(write: Write) -> None:
    path = write(COMMENTED)
    for key, value, old, new in [
        ("pipeline.store", "postgres", 'store = "memory"   # for now', 'store = "postgres"   # for now'),
        ("databases.orders.host", 'a"b', 'host = "db1" # primary', 'host = "a\\"b" # primary'),
        ("databases.orders.name", "shop", 'name = "orders"', 'name = "shop"'),
        ("databases.db2.example.com/postgres.host", "db3", 'host = "db2.example.com"', 'host = "db3"'),
    ]:
        before = path.read_text()
        set_(key, value)
        assert path.read_text() == before.replace(old, new)


def test_what_was_not_there_is_added(write: Write) -> None:
    path = write(COMMENTED)
    set_("pipeline.state_pool", "7")
    set_("databases.orders.port", "5433")
    set_("databases.orders.password.file", "/run/secrets/x")
    set_("databases.orders.tls.enabled", "yes")
    set_("databases.orders.tls.trusted_root_certs", "/ca.pem")
    set_("databases.third.name", "third", "databases.third.host", "db3")
    found = tomllib.loads(path.read_text())
    wanted = tomllib.loads(COMMENTED)
    wanted["pipeline"]["state_pool"] = 7
    wanted["databases"][0] |= {
        "port": 5433,
        "password": {"file": "/run/secrets/x"},
        "tls": {"enabled": True, "trusted_root_certs": "/ca.pem"},
    }
    wanted["databases"].append({"name": "third", "host": "db3"})
    assert found == wanted
    comments = [line.partition("#")[2] for line in COMMENTED.splitlines() if "#" in line]
    assert all(f"#{comment}" in path.read_text() for comment in comments)


def test_a_password_of_its_own_takes_the_place_of_a_file(write: Write) -> None:
    path = write('[[databases]]\nname = "a"\npassword = { file = "/x" }\n')
    set_("databases.a.password", "p")
    assert tomllib.loads(path.read_text())["databases"] == [{"name": "a", "password": "p"}]
    set_("databases.a.password.file", "/y")
    assert tomllib.loads(path.read_text())["databases"] == [{"name": "a", "password": {"file": "/y"}}]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["pipeline.stor", "memory"], "unknown key 'pipeline.stor'\nhint: did you mean 'store'?"),
        (["pipelines.store", "memory"], "unknown key 'pipelines.store'\nhint: keys are pipeline.KEY and"),
        (["databases.orders.hots", "h"], "unknown key 'databases.orders.hots'\nhint: did you mean 'host'?"),
        (["databases.host", "h"], "unknown key 'databases.host'"),
        (
            ["pipeline.store", "sqlite"],
            "nothing was changed: pipeline.store must be one of memory, postgres, bookmarks",
        ),
        (["pipeline.state_dsn", "nonsense"], "the connection string of pipeline.state_dsn cannot be read"),
        (["databases.orders.port", "0"], "nothing was changed: databases.orders.port must be a number from 1 to 65535"),
        (["databases.orders.host", " "], "nothing was changed: databases.orders.host is blank"),
        (
            ["databases.order.host", "h"],
            "no database 'order' in the file\nhint: it has orders, db2.example.com/postgres",
        ),
        (["databases.new.name", "other"], "no database 'new' in the file"),
        (["databases.orders.host", "db2.example.com"], "pgrepl.toml:12: a second database db2.example.com/postgres"),
        (["pipeline.store"], "every KEY needs a VALUE"),
        (
            ["pipeline.store", "postgres", "databases.orders.port", "x"],
            "nothing was changed: databases.orders.port must be a number",
        ),
    ],
)
def test_nothing_is_written_when_something_is_wrong(write: Write, pairs: list[str], message: str) -> None:
    write(COMMENTED)
    assert refused(*pairs).startswith(f"pgrepl: error: {message}")


def test_a_file_that_is_wrong_already_stays(write: Write) -> None:
    write("[pipeline]\nstor = 'memory'\n")
    assert refused("pipeline.store", "postgres").startswith("pgrepl: error: pgrepl.toml:2: unknown key 'stor'")
    write("[pipeline\n")
    assert "is not TOML" in refused("pipeline.store", "postgres")


def test_a_form_that_cannot_be_added_to_is_left_to_the_user(write: Write) -> None:
    path = write('databases = [{ name = "a" }]\n')
    done = pgrepl("config", "set", "databases.b.name", "b", "databases.b.host", "h")
    assert done.returncode == 1
    assert "edit the file by hand" in done.stderr
    assert path.read_text() == 'databases = [{ name = "a" }]\n'


def test_mode_and_links_are_kept(write: Write) -> None:
    path = write("[pipeline]\n")
    path.rename("real.toml")
    path.symlink_to("real.toml")
    Path("real.toml").chmod(0o640)
    set_("pipeline.store", "postgres")
    assert path.is_symlink()
    assert Path("real.toml").stat().st_mode & 0o7777 == 0o640
    assert Path("real.toml").read_text() == '[pipeline]\nstore = "postgres"\n'


def test_readers_see_the_old_file_or_the_new_one(write: Write) -> None:
    path = write(COMMENTED)
    with path.open() as old:
        set_("pipeline.store", "postgres")
        assert old.read() == COMMENTED


def test_a_directory_that_cannot_be_written_to(write: Write) -> None:
    write("[pipeline]\n")
    done = pgrepl("config", "set", "pipeline.store", "memory", "-c", "/proc/pgrepl.toml")
    assert done.returncode == 1
    assert done.stderr.startswith("pgrepl: error: cannot write the configuration file /proc/pgrepl.toml: ")


def test_a_variable_that_wins_is_named(write: Write) -> None:
    write("[pipeline]\n")
    done = pgrepl("config", "set", "pipeline.store", "memory", PGREPL_STORE="postgres")
    assert done.returncode == 0
    assert "PGREPL_STORE in the environment wins over pipeline.store in the file" in done.stderr


def test_lines_end_as_they_did() -> None:
    Path("pgrepl.toml").write_bytes(b"[pipeline]\r\nstore = 'memory' # x\r\nstate_pool = 1")
    set_("pipeline.store", "postgres")
    assert Path("pgrepl.toml").read_bytes() == b'[pipeline]\r\nstore = "postgres" # x\r\nstate_pool = 1\n'


def test_path(write: Write, tmp_path: Path) -> None:
    done = pgrepl("config", "path")
    assert (done.returncode, done.stdout) == (1, "")
    assert "looked for: pgrepl.toml, /nonexistent/pgrepl/pgrepl.toml" in done.stderr
    path = write("")
    assert pgrepl("config", "path").stdout == f"{tmp_path}/pgrepl.toml\n"
    path.rename("other.toml")
    assert pgrepl("config", "path", "-c", "other.toml").stdout == f"{tmp_path}/other.toml\n"
    assert pgrepl("config", "path", PGREPL_CONFIG="other.toml").stdout == f"{tmp_path}/other.toml\n"
    done = pgrepl("config", "path", "-c", "gone.toml")
    assert (done.returncode, done.stdout) == (2, "")
