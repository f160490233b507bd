"""What tail refuses: its exit code, one line that says why, nothing on stdout, and a server left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.conftest import NewServer
from tests.servers.database import Database, fresh_database
from tests.servers.server import Server
from tests.tail.running import Finished, run_tail

_CATALOG = """
    SELECT 'slot', slot_name::text, database::text FROM pg_replication_slots
     UNION ALL SELECT 'publication', pubname, p::text FROM pg_publication p
     UNION ALL SELECT 'published', prrelid::regclass::text, p::text FROM pg_publication_rel p
     UNION ALL SELECT 'role', rolname, r::text FROM pg_roles r
     UNION ALL SELECT 'class', relname, relacl::text FROM pg_class
     UNION ALL SELECT 'type', typname, '' FROM pg_type
     UNION ALL SELECT 'setting', name, setting FROM pg_settings WHERE source <> 'client' AND source <> 'session'
     ORDER BY 1, 2, 3
"""


@contextmanager
def unchanged(server: Server, dbname: str) -> Iterator[None]:
    """Check that what happens inside leaves the catalog as it was."""
    with server.connect(dbname) as connection:
        before = connection.execute(_CATALOG).fetchall()
        yield
        assert connection.execute(_CATALOG).fetchall() == before


def refused(finished: Finished, code: int, message: str, hint: str | None = None) -> None:
    """Check that there is one error line that holds ``message``, and one hint behind it."""
    error, *hints = finished.complaints
    assert finished.code == code, finished.stderr
    assert error.startswith("pgrepl: error: ")
    assert message in error
    assert len(hints) == 1, finished.stderr
    assert hints[0].startswith("hint: ")
    if hint is not None:
        assert hint in hints[0]
    assert finished.stdout == ""
    assert "Traceback" not in finished.stderr


@pytest.fixture
def shop(database18: Database) -> Database:
    database18.psql("""
        CREATE TABLE a (id int PRIMARY KEY, secret text);
        CREATE TABLE b (id int PRIMARY KEY);
        INSERT INTO a VALUES (1, 'one');
        CREATE PUBLICATION pub FOR TABLE a;
        CREATE PUBLICATION empty;
    """)
    return database18


def refuse(database: Database, *arguments: str, code: int, message: str, hint: str | None = None, **more: Any) -> None:
    """Run tail on a database and check that it refuses and that nothing has changed."""
    with unchanged(database.server, database.name):
        finished = run_tail(*arguments, **{"dsn": database.dsn(), **more})
        refused(finished, code, message, hint)


def test_server_15(server15: Server) -> None:
    with fresh_database(server15) as database:
        database.psql("CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE a")
        refuse(database, "pub", code=1, message="the server is PostgreSQL 15", hint="upgrade")


def test_wal_level_replica(new_server: NewServer) -> None:
    server = new_server(18, wal_level="replica")
    with fresh_database(server) as database:
        database.psql("CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE a")
        refuse(database, "pub", code=1, message="wal_level is replica", hint="wal_level = logical")


def test_standby(new_server: NewServer) -> None:
    """A server with a standby.signal is in recovery until it is promoted, primary or not."""
    server = new_server(18)
    data = server.psql("SHOW data_directory").strip()
    server.stop(immediate=False)
    (Path(data) / "standby.signal").touch()
    server.start()
    refused(run_tail("pub", dsn=server.dsn()), 1, "the server is a standby", "connect to the primary")


def test_no_such_publication(shop: Database) -> None:
    refuse(shop, "nope", code=1, message="publication nope does not exist", hint="empty, pub")
    refuse(shop, "pub,nope,nor this", code=1, message="publication nope, nor this does not exist")
    refuse(shop, "PUB", code=1, message="publication PUB does not exist")
    refuse(shop, "nope", "--snapshot", "never", code=1, message="publication nope does not exist")


def test_no_publication_at_all(database18: Database) -> None:
    refuse(database18, "pub", code=1, message="publication pub does not exist", hint="pgrepl setup")


def test_no_publication_named(shop: Database) -> None:
    refuse(shop, code=2, message="name the publication")
    refuse(shop, "pub,", code=2, message="'pub,' has an empty name in it")


def test_empty_publication(shop: Database) -> None:
    refuse(shop, "empty", code=1, message="publication empty has no tables")
    refuse(shop, "empty", "--snapshot", "never", code=1, message="publication empty has no tables")
    shop.psql("""CREATE PUBLICATION "Of ""Nothing" """)
    hint = 'ALTER PUBLICATION "Of ""Nothing" ADD TABLE '
    refuse(shop, 'Of "Nothing', code=1, message='publication Of "Nothing has no tables', hint=hint)


def test_nothing_but_state_tables(shop: Database) -> None:
    shop.psql("CREATE SCHEMA etl; CREATE TABLE etl.t (id int PRIMARY KEY); CREATE PUBLICATION state FOR TABLE etl.t")
    refuse(shop, "state", code=1, message="no table is left to print", hint="tables of schema etl are never printed")


def test_table_that_is_not_published(shop: Database) -> None:
    refuse(shop, "pub", "--table", "public.b", code=2, message="does not have public.b", hint="it has public.a")
    refuse(shop, "pub", "--exclude-table", "public.b", code=2, message="does not have public.b")
    refuse(shop, "pub", "--exclude-table", "public.a", code=1, message="no table is left to print")
    refuse(shop, "pub", "--table", "b", code=2, message="'b' is not a table's name")


def test_publication_names_are_quoted(shop: Database) -> None:
    """Names with blanks, quotes and capital letters work; one with a comma cannot be told from two."""
    shop.psql("""
        CREATE PUBLICATION "Mixed Case ""quoted"" 'x'; --" FOR TABLE a;
        CREATE PUBLICATION "with,comma" FOR TABLE a;
    """)
    odd = "Mixed Case \"quoted\" 'x'; --"
    for name in (odd, f"{odd},pub"):
        finished = run_tail(name, "--limit", "1", dsn=shop.dsn())
        assert finished.code == 0, finished.stderr
        assert finished.events[-1]["new"] == {"id": 1, "secret": "one"}
        finished = run_tail(name, "--snapshot", "never", "--until-lsn", "now", dsn=shop.dsn())
        assert finished.code == 0, finished.stderr
    refuse(shop, "with,comma", code=1, message="publication with, comma does not exist")
    refuse(shop, "a\nb", code=1, message=r"publication a\nb does not exist")


def test_different_column_lists(shop: Database) -> None:
    shop.psql("CREATE PUBLICATION narrow FOR TABLE a (id)")
    refuse(shop, "pub,narrow", code=1, message="different column lists for public.a", hint="same column list")


def test_wrong_password(shop: Database) -> None:
    with shop.connect() as admin:
        admin.execute("CREATE ROLE app LOGIN REPLICATION PASSWORD 'right'")
    dsn = shop.server.tcp_dsn(shop.name, "app", "wrong-secret")
    refuse(shop, "pub", dsn=dsn, code=3, message="password authentication failed", hint="~/.pgpass")
    assert "wrong-secret" not in run_tail("pub", "--debug", dsn=dsn).stderr
    refuse(shop, "pub", dsn=shop.server.tcp_dsn(shop.name, "nobody", "x"), code=3, message="authentication failed")


def test_a_password_on_the_command_line_is_warned_of_and_not_shown(shop: Database) -> None:
    dsn = shop.server.tcp_dsn(shop.name, "postgres", "wrong-secret")
    finished = run_tail("pub", "-d", dsn)
    assert finished.code == 3
    assert "can be seen in the process list" in finished.stderr
    assert "wrong-secret" not in finished.stderr


def test_role_without_replication(shop: Database) -> None:
    with shop.connect() as admin:
        admin.execute("CREATE ROLE app LOGIN; GRANT SELECT ON a TO app")
    refuse(shop, "pub", dsn=shop.dsn("app"), code=1, message="role app may not replicate", hint="REPLICATION")


def test_role_without_select(shop: Database) -> None:
    with shop.connect() as admin:
        admin.execute("CREATE ROLE app LOGIN REPLICATION")
    refuse(shop, "pub", dsn=shop.dsn("app"), code=1, message="role app may not read public.a", hint="GRANT SELECT ON")
    with shop.connect() as admin:
        admin.execute("GRANT SELECT (id) ON a TO app")
    refuse(shop, "pub", dsn=shop.dsn("app"), code=1, message="role app may not read public.a")


def test_role_without_usage_of_the_schema(shop: Database) -> None:
    with shop.connect() as admin:
        admin.execute("""
            CREATE SCHEMA closed; CREATE TABLE closed.t (id int PRIMARY KEY);
            CREATE PUBLICATION hidden FOR TABLE closed.t;
            CREATE ROLE app LOGIN REPLICATION; GRANT SELECT ON closed.t TO app
        """)
    refuse(shop, "hidden", dsn=shop.dsn("app"), code=1, message="role app may not read closed.t", hint="GRANT USAGE")


def test_row_security(shop: Database) -> None:
    """A role that may see only some rows gets none, rather than a part that looks like the whole."""
    with shop.connect() as admin:
        admin.execute("""
            CREATE ROLE app LOGIN REPLICATION; GRANT SELECT ON a, b TO app;
            ALTER TABLE a ENABLE ROW LEVEL SECURITY; CREATE POLICY later ON a USING (id > 1)
        """)
    with unchanged(shop.server, shop.name):
        finished = run_tail("pub", dsn=shop.dsn("app"))
    # The copy itself is refused, so that its beginning may have been printed; rows and an end never are.
    assert [event["op"] for event in finished.events] in ([], ["snapshot_begin"])
    refused(finished._replace(stdout=""), code=1, message="row-level security", hint="BYPASSRLS")
    finished = run_tail("pub", "--snapshot", "never", "--until-lsn", "now", dsn=shop.dsn("app"))
    assert finished.code == 0, finished.stderr
    with shop.connect() as admin:
        admin.execute("ALTER ROLE app BYPASSRLS")
    finished = run_tail("pub", "--snapshot", "only", dsn=shop.dsn("app"))
    assert [event["op"] for event in finished.events] == ["snapshot_begin", "read", "snapshot_end"]


def test_no_slot_free(new_server: NewServer) -> None:
    server = new_server(18, max_replication_slots="1")
    with fresh_database(server) as database:
        database.psql("""
            CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE a;
            SELECT pg_create_logical_replication_slot('taken', 'pgoutput');
        """)
        refuse(database, "pub", code=1, message="all 1 replication slots are in use", hint="pgrepl slots list")


def test_no_walsender_free(new_server: NewServer) -> None:
    server = new_server(18, max_wal_senders="1")
    with fresh_database(server) as database:
        database.psql("CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE a")
        with psycopg.connect(database.dsn(), replication="database", autocommit=True):
            refuse(database, "pub", code=1, message="all 1 walsenders are in use", hint="max_wal_senders")


def test_sql_ascii(server18: Server) -> None:
    with fresh_database(server18) as database, server18.connect() as admin:
        name = f"{database.name}_ascii"
        admin.execute(f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
        try:
            server18.psql("CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE a", name)
            with unchanged(server18, name):
                refused(run_tail("pub", dsn=server18.dsn(name)), 1, "the encoding SQL_ASCII", "UTF8")
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_unreachable(server18: Server, tmp_path: Path) -> None:
    port = server18.port
    refused(run_tail("pub", dsn=f"host={tmp_path} port={port}"), 3, "cannot connect", "is the server running")
    refused(run_tail("pub", dsn="host=127.0.0.1 port=1 dbname=x"), 3, "Connection refused", "is the server running")
    # A name below .invalid never exists.
    refused(run_tail("pub", dsn="host=db.invalid dbname=x"), 3, "db.invalid", "check the host name")
    refused(run_tail("pub", dsn=server18.dsn("no_such_database")), 3, "does not exist", "dbname=")
    refused(run_tail("pub", dsn=server18.dsn(user="no_such_role")), 3, "no_such_role")


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("host=localhost password='geheim", "PGREPL_DSN"),
        ("postgresql://u:geheim@[::1/db", "PGREPL_DSN"),
        ("nonsense", "PGREPL_DSN"),
        ("host=localhost colour=red password=geheim", "invalid connection option"),
        ("port=abc password=geheim", "port"),
        ("port=70000 password=geheim", "port"),
        ("sslmode=maybe host=127.0.0.1 password=geheim", "sslmode"),
        ("service=no_such_service password=geheim", "no_such_service"),
    ],
)
def test_bad_connection_string(dsn: str, shown: str) -> None:
    finished = run_tail("pub", dsn=dsn)
    refused(finished, 2, shown)
    assert "geheim" not in run_tail("pub", "--debug", dsn=dsn).stderr + finished.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the configuration file"),
        ("[[databases]\n", "is not TOML"),
        (b"\xff\xfe", "is not UTF-8"),
        ("[[databases]]\nhots = 'x'\n", "unknown key 'hots'"),
        ("colour = 'red'\n", "unknown key 'colour'"),
        ("[[databases]]\nport = 'x'\n", "port must be a number from 1 to 65535"),
        ("databases = 1\n", "databases must be an array of tables"),
    ],
)
def test_bad_configuration(tmp_path: Path, content: str | bytes | None, message: str) -> None:
    path = tmp_path / "config.toml"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    refused(run_tail("pub", "-c", str(path)), 2, message)
    # Also when the connection string comes from elsewhere.
    refused(run_tail("pub", "-c", str(path), dsn="host=127.0.0.1 port=1"), 2, message)


def test_a_configuration_that_is_a_directory(tmp_path: Path) -> None:
    refused(run_tail("pub", "-c", str(tmp_path)), 2, "cannot read the configuration file")


def test_several_databases_configured(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[[databases]]\nname = 'one'\ndbname = 'a'\n[[databases]]\nname = 'two'\ndbname = 'b'\n")
    refused(run_tail("pub", "-c", str(path)), 2, "has several databases", "one, two")
    refused(run_tail("pub", "-c", str(path), "--database", "three"), 2, "no database 'three'", "one, two")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--snapshot", "maybe"], "'maybe' is not one of"),
        (["--format", "xml"], "'xml' is not one of"),
        (["--limit", "0"], "0"),
        (["--limit", "many"], "'many'"),
        (["--for", "soon"], "'soon' is not a duration"),
        (["--for", "-1s"], "'-1s' is not a duration"),
        (["--until-lsn", "16B3748"], "16B3748"),
        (["--until-lsn", "0/XYZ"], "0/XYZ"),
        (["--until-lsn", "1/123456789"], "1/123456789"),
        (["--until-lsn", "later"], "later"),
        (["--table", "a.b.c"], "'a.b.c' is not a table's name"),
        (["--color", "pink"], "'pink' is not one of"),
        (["--nonsense"], "--nonsense"),
        (["--json", "--format", "pretty"], "contradict"),
        (["other"], "other"),
        (["--store", "bookmarks"], "'bookmarks' is not one of 'memory', 'postgres'"),
        (["--append"], "--append goes with --output FILE"),
        (["--overwrite"], "--overwrite goes with --output FILE"),
        (["--fsync-interval", "1s"], "--fsync-interval goes with --output FILE"),
        (["--pipeline-id", "5"], "--pipeline-id goes with a stored state"),
        (["--slot", "a", "--pipeline-id", "5"], "--slot and --pipeline-id contradict each other"),
        (["--slot", "a", "--pipeline-id", "5", "--store", "postgres"], "--slot and --pipeline-id contradict"),
    ],
)
def test_bad_option_values(shop: Database, arguments: list[str], message: str) -> None:
    refuse(shop, "pub", *arguments, code=2, message=message)


def test_output_that_cannot_be_written(shop: Database, tmp_path: Path) -> None:
    refuse(shop, "pub", "-o", str(tmp_path), code=2, message="Is a directory")
    refuse(shop, "pub", "-o", str(tmp_path / "missing" / "x.jsonl"), code=2, message="No such file or directory")
    # Nobody, not even root, makes files there.
    refuse(shop, "pub", "-o", "/proc/x.jsonl", code=2, message="cannot write /proc/x.jsonl")


def test_spool_directory_that_cannot_be_used(shop: Database, tmp_path: Path) -> None:
    """It is found out before anything is made, and not when the first change has to wait."""
    (tmp_path / "file").touch()
    for directory, reason in ((tmp_path / "file", "File exists"), (Path("/proc/x"), "No such file or directory")):
        message = f"cannot make the spool {directory}: {reason}"
        refuse(shop, "pub", "--spool-dir", str(directory), code=2, message=message, hint="--spool-dir")
        refuse(shop, "pub", "--store", "postgres", "--spool-dir", str(directory), code=2, message=message)


def test_a_configured_store_that_tail_does_not_have(shop: Database, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[pipeline]\nstore = 'bookmarks'\n")
    refuse(shop, "pub", "-c", str(path), code=2, message="does not keep its state in bookmarks", hint="--store memory")


def test_quiet_leaves_the_error_alone(shop: Database) -> None:
    finished = run_tail("nope", "-q", dsn=shop.dsn())
    assert [line.partition(": ")[0] for line in finished.stderr.splitlines()] == ["pgrepl", "hint"]


def test_help_needs_no_server() -> None:
    finished = run_tail("--help")
    assert finished.code == 0
    assert "Example: pgrepl tail" in finished.stdout
    assert "Exit codes: 0 done" in finished.stdout
    assert finished.stderr == ""
