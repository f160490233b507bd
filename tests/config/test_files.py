"""What a configuration file may say, what is wrong with one, and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgrepl.config import Config, load
from pgrepl.errors import InputError
from tests.config.conftest import Write

PGSENSE = Path(__file__).with_name("pgsense.toml")


def values(config: Config) -> dict[str, object]:
    return {each.key: each.value for each in config.settings}


def origins(config: Config) -> dict[str, str]:
    return {each.key: each.origin for each in config.settings}


def test_all_that_a_file_may_say(write: Write) -> None:
    write("""
[pipeline]
store = "bookmarks"
state_dsn = "host=state"
state_table = "my_state"
state_pool = 2

[[databases]]
name = "orders"
host = "db1.example.com"
port = 5433
dbname = "shop"
username = "cdc"
password = "secret"
publication = "pub"
""")
    config = load(None)
    pipeline = config.pipeline
    assert (pipeline.store, pipeline.state_dsn, pipeline.state_table) == ("bookmarks", "host=state", "my_state")
    assert pipeline.state_pool == 2
    (entry,) = config.databases
    assert (entry.name, entry.identity, entry.publication) == ("orders", "db1.example.com/shop", "pub")
    assert entry.target.params == {
        "host": "db1.example.com",
        "port": "5433",
        "dbname": "shop",
        "user": "cdc",
        "password": "secret",
    }


def test_what_is_not_said() -> None:
    Path("pgrepl.toml").write_text("[[databases]]\n")
    config = load(None)
    assert config.pipeline.store is None
    assert (config.pipeline.state_dsn, config.pipeline.state_table) == (None, "faucet_state")
    assert config.pipeline.state_pool == 5
    (entry,) = config.databases
    assert (entry.name, entry.publication) == ("localhost/postgres", None)
    assert entry.target.params == {"host": "localhost", "port": "5432", "dbname": "postgres", "user": "postgres"}


def test_a_file_of_pgsense_is_read_as_it_is() -> None:
    config = load(PGSENSE)
    assert config.warnings == ()
    assert config.pipeline.store == "postgres"
    first, second = config.databases
    assert (first.name, first.publication) == ("db1.example.com/orders", "pgsense_pub")
    assert (second.name, second.publication) == ("db2.example.com/orders", "own_pub")
    assert values(config)["databases.db1.example.com/orders.port"] == 5433
    assert values(config)["databases.db1.example.com/orders.tls.enabled"] is True


def test_where_each_value_of_it_stands() -> None:
    found = origins(load(PGSENSE))
    lines = PGSENSE.read_text().splitlines()
    for key, text in {
        "pipeline.store": 'store = "postgres"',
        "databases.db1.example.com/orders.host": 'host = "db1.example.com"',
        "databases.db1.example.com/orders.password.file": 'password = { file = "/run/secrets/orders" }',
        "databases.db1.example.com/orders.tls.trusted_root_certs": 'tls = { enabled = true, trusted_root_certs = """',
        "databases.db2.example.com/orders.publication": 'publication = "own_pub"',
    }.items():
        assert found[key] == f"{PGSENSE}:{lines.index(text) + 1}"
    assert found["databases.db2.example.com/orders.port"] == "default"


def test_an_unknown_key_in_it_is_a_warning(write: Write) -> None:
    path = write(
        '[log]\nlevel = "info"\n[pipeline]\nstor = "memory"\n[[databases]]\nprot = 1\ntls = { enable = true }\n'
    )
    assert load(path).warnings == (
        ("pgrepl.toml:4: unknown key 'stor' in [pipeline]", "did you mean 'store'?"),
        ("pgrepl.toml:6: unknown key 'prot' in [[databases]]", "did you mean 'port'?"),
        ("pgrepl.toml:7: unknown key 'enable' in tls of [[databases]]", "did you mean 'enabled'?"),
    )


@pytest.mark.parametrize(
    "text",
    [
        '[log]\nlevel = "info"\n',
        "rules_file = 'x'\n",
        "[pipeline]\nbatch_max_fill_ms = 1\n",
        "[[databases]]\nscan.exclude_tables = []\n",
    ],
)
def test_what_makes_a_file_one_of_pgsense(write: Write, text: str) -> None:
    assert load(write(f"nonsense = 1\n{text}")).warnings


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("databses = []", "1: unknown key 'databses' at the top", "did you mean 'databases'?"),
        ("\n[pipeline]\nstate_dns = ''", "3: unknown key 'state_dns' in [pipeline]", "did you mean 'state_dsn'?"),
        ("[[databases]]\nuser = 'x'", "2: unknown key 'user' in [[databases]]", "did you mean 'username'?"),
        (
            "[[databases]]\n[databases.tls]\nrot = ''",
            "3: unknown key 'rot' in tls of [[databases]]",
            "known keys: enabled",
        ),
        ("[[databases]]\npassword = {path = 'x'}", "2: unknown key 'path' in password of", "known keys: file"),
    ],
)
def test_an_unknown_key_in_a_file_of_our_own(write: Write, text: str, message: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        load(write(text))
    assert str(caught.value).startswith(f"pgrepl.toml:{message}")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pipeline = 3", "1: pipeline must be a table"),
        ("pipeline = []", "1: pipeline must be a table"),
        ("[databases]\nhost = 'x'", "1: databases must be an array of tables"),
        ("databases = ['x']", "1: databases must be an array of tables"),
        ("[pipeline]\nstore = 'Postgres'", "2: store must be one of memory, postgres, bookmarks"),
        ("[pipeline]\nstore = ['memory']", "2: store must be one of"),
        ("[pipeline]\nstate_pool = 0", "2: state_pool must be a number from 1"),
        ("[pipeline]\nstate_pool = true", "2: state_pool must be a number"),
        ("[pipeline]\nstate_table = ''", "2: state_table is blank"),
        ("[[databases]]\nport = 0", "2: port must be a number from 1 to 65535"),
        ("[[databases]]\nport = 65536", "2: port must be a number"),
        ("[[databases]]\nport = 5432.0", "2: port must be a number"),
        ("[[databases]]\nport = '5432x'", "2: port must be a number"),
        (f"[[databases]]\nport = '{'9' * 5000}'", "2: port must be a number"),
        ("[[databases]]\nhost = ' '", "2: host is blank"),
        ("[[databases]]\ndbname = ''", "2: dbname is blank"),
        ("[[databases]]\nusername = '\t'", "2: username is blank"),
        ("[[databases]]\npublication = ''", "2: publication is blank"),
        ("[[databases]]\nname = ''", "2: name is blank"),
        ("[[databases]]\nhost = true", "2: host must be a text"),
        ("[[databases]]\nhost = 2026-11-21", "2: host must be a text"),
        ("[[databases]]\nhost = {a = 1}", "2: host must be a text"),
        ('[[databases]]\nhost = "a\\u0000b"', "2: host has a zero byte in it"),
        ('[[databases]]\npassword = "a\\u0000b"', "2: password has a zero byte in it"),
        ("[[databases]]\npassword = 5", "2: password must be a text or"),
        ("[[databases]]\npassword = {}", "2: password must be a text or"),
        ("[[databases]]\npassword = {file = 5.5}", "2: password.file must be a text"),
        ("[[databases]]\ntls = true", "2: tls must be a table"),
        ("[[databases]]\ntls.enabled = 'perhaps'", "2: tls.enabled must be true or false"),
        ("[[databases]]\ntls.trusted_root_certs = 1", "2: tls.trusted_root_certs must be a text"),
    ],
)
def test_values_that_cannot_be(write: Write, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load(write(text))
    assert str(caught.value).startswith(f"pgrepl.toml:{message}")


def test_a_text_for_a_number_or_a_switch_is_taken_as_pgsense_takes_it(write: Write) -> None:
    config = load(write("[[databases]]\nport = '05433'\ndbname = 2024\ntls.enabled = 'off'\n"))
    assert config.databases[0].target.params["port"] == "5433"
    assert config.databases[0].identity == "localhost/2024"
    assert values(config)["databases.localhost/2024.tls.enabled"] is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[databases]]\n\n[[databases]]\nport = 5433", "3: a second database localhost/postgres, after pgrepl.toml:1"),
        (
            "[[databases]]\nhost='h'\nname='a'\n[[databases]]\nhost='h'\nname='b'\ndbname='postgres'",
            "4: a second database h/postgres, after pgrepl.toml:1",
        ),
        ("[[databases]]\nname='a'\n[[databases]]\nname='a'\nhost='h'", "3: a second database is called 'a', after"),
    ],
)
def test_two_that_cannot_be_told_apart(write: Write, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load(write(text))
    assert str(caught.value).startswith(f"pgrepl.toml:{message}")


def test_the_identity_is_the_text_as_it_was_written(write: Write) -> None:
    config = load(write("[[databases]]\nhost = 'DB1.Example.com.'\n[[databases]]\nhost = '/var/run/postgresql'\n"))
    named, socket = config.databases
    assert named.identity == "DB1.Example.com./postgres"
    assert named.target.pipeline_host() == "DB1.Example.com."
    assert socket.target.pipeline_host() == "/var/run/postgresql"
    assert socket.target.with_database("other").pipeline_host() == "/var/run/postgresql"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe[\x00", "the configuration file pgrepl.toml is not UTF-8 text"),
        (b"[pipeline]\nstore = 'm\x00'", "the configuration file pgrepl.toml is not TOML: found invalid character"),
        (b"[pipeline", "the configuration file pgrepl.toml is not TOML: "),
        (b"a = 1\na = 2", "the configuration file pgrepl.toml is not TOML: cannot overwrite a value"),
        (b"#" * (1 << 20) + b"\n", "the configuration file pgrepl.toml is longer than 1 MB"),
        (b"x = " + b"[" * 100_000, "the configuration file pgrepl.toml is nested too deeply"),
        (b"x = " + b"{a = " * 100_000, "the configuration file pgrepl.toml is nested too deeply"),
        (b"x." * 500_000 + b"x = 1", "the configuration file pgrepl.toml is nested too deeply"),
    ],
)
def test_files_that_are_hostile(content: bytes, message: str) -> None:
    Path("pgrepl.toml").write_bytes(content)
    with pytest.raises(InputError) as caught:
        load(None)
    assert str(caught.value).startswith(message)


def test_what_is_no_file() -> None:
    Path("pgrepl.toml").mkdir()
    with pytest.raises(InputError, match=r"^cannot read the configuration file pgrepl.toml: is a directory$"):
        load(None)
    with pytest.raises(InputError, match=r"^cannot read the configuration file gone.toml: no such file"):
        load("gone.toml")
    with pytest.raises(InputError, match=r"^cannot read the configuration file a"):
        load("a\0b")
    Path("dangling.toml").symlink_to("gone.toml")
    with pytest.raises(InputError, match=r"^cannot read the configuration file dangling.toml"):
        load("dangling.toml")


def test_the_ends_of_lines_and_the_mark_at_the_beginning_do_not_matter() -> None:
    Path("pgrepl.toml").write_bytes(b"\xef\xbb\xbf[pipeline]\r\nstore = 'memory'\r\n")
    config = load(None)
    assert origins(config)["pipeline.store"] == "pgrepl.toml:2"


@pytest.mark.parametrize(
    "text",
    [
        '# databases\ndatabases = [{ host = "a" }, { host = "b", port = 7 }] # x\n@',
        'pipeline.store = "memory"\npipeline . "state_pool" = 7\n@',
        '# [pipeline]\n"pipeline".state_table = """\nx\n#\\"""\n\n"""""\npipeline.state_pool = 7\n@',
        "[pipeline]\nstate_table = '''a\n[[databases]]'\n'''\n  state_pool = 7\n@",
        '[[databases]]\nhost = "a # \\" ["\n[[ databases ]] # ]\nhost = "b"\n\n[ databases . tls ]\nenabled = true\n@',
    ],
)
def test_lines_are_found_in_whatever_form_toml_allows(write: Write, text: str) -> None:
    path = write(text.replace("@", ""))
    lines = path.read_text().splitlines()
    marks = {"port": "port = 7", "state_pool": "7", "enabled": "enabled = true"}
    found = [(key, origin) for key, origin in origins(load(path)).items() if origin != "default"]
    checked = [
        (key, origin)
        for key, origin in found
        if key.rpartition(".")[2] in marks
        and marks[key.rpartition(".")[2]] in lines[int(origin.rpartition(":")[2]) - 1]
    ]
    assert len(checked) == 1
