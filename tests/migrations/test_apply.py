"""Applying the versions: on nothing, on top of what an earlier version left, as somebody who may not, and halfway."""

from __future__ import annotations

import os
import subprocess
import sys

import psycopg
import pytest

from pgrepl import migrations
from pgrepl.catalog.etl_manifest import MIGRATIONS
from pgrepl.errors import InputError, OperationError
from tests.migrations.conftest import Command
from tests.migrations.etl import BASE, MESSAGES, STORAGE, VERSIONS, connect, everything, expected_shape, shape, tracker
from tests.servers.database import Database
from tests.servers.server import Server


def refuse(database: Database, tag: str) -> None:
    """Let every command of a kind fail from now on."""
    database.psql(f"""
        CREATE FUNCTION public.refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not today'; END $$;
        CREATE EVENT TRIGGER refuse ON ddl_command_end WHEN tag IN ('{tag}') EXECUTE FUNCTION public.refuse()""")


def psql(database: Database, script: str, user: str) -> subprocess.CompletedProcess[str]:
    """Run a script that may fail."""
    return subprocess.run(
        [str(database.server.bindir / "psql"), "-Xq", "-d", database.dsn(user)],
        input=script,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_version_leaves_the_expected_catalog(database: Database, command: Command) -> None:
    for number, version in enumerate(VERSIONS, 1):
        outcome = command(database, "apply", "--to", str(version))
        assert outcome.code == 0, outcome.err
        assert outcome.document["done"] == [version]
        assert outcome.states == ["applied"] * number + ["missing"] * (3 - number)
        assert shape(database) == expected_shape(version)
    rows = tracker(database)
    assert [row[:4] for row in rows] == [(m.version, m.description, True, m.checksum) for m in MIGRATIONS]
    assert all(0 < nanoseconds < 60e9 for *_, nanoseconds in rows)


def test_the_tracker_is_the_one_that_sqlx_makes(migrated: Database) -> None:
    with migrated.connect() as conn:
        columns = conn.execute("""
            SELECT attname, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid)
            FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
            WHERE attrelid = 'etl._sqlx_migrations'::regclass AND attnum > 0 ORDER BY attnum
        """).fetchall()
        keys = conn.execute(
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE conrelid = 'etl._sqlx_migrations'::regclass AND contype <> 'n'"
        ).fetchall()
    assert columns == [
        ("version", "bigint", True, None),
        ("description", "text", True, None),
        ("installed_on", "timestamp with time zone", True, "now()"),
        ("success", "boolean", True, None),
        ("checksum", "bytea", True, None),
        ("execution_time", "bigint", True, None),
    ]
    assert keys == [("_sqlx_migrations_pkey", "PRIMARY KEY (version)")]


def test_applying_again_changes_nothing(migrated: Database, command: Command) -> None:
    before = everything(migrated)
    outcome = command(migrated, "apply")
    assert (outcome.code, outcome.document["done"]) == (0, [])
    assert everything(migrated) == before


@pytest.mark.parametrize("stop", [BASE, STORAGE])
def test_data_of_an_earlier_version_are_kept(database: Database, stop: int) -> None:
    """What ends at the second version is first brought there from the first, so that its data are the same."""
    database.psql("""
        CREATE TABLE public.orders (a int, gone int, b text, c uuid, PRIMARY KEY (c, a) INCLUDE (b));
        CREATE TABLE public.keyless (x int);
    """)
    with connect(database) as conn:
        migrations.apply(conn, to=BASE)
    database.psql("""
        INSERT INTO etl.replication_state (pipeline_id, table_id, state, metadata, prev, is_current)
        VALUES (1, 'public.orders'::regclass, 'init', '{"type": "init"}', NULL, false),
               (1, 'public.orders'::regclass, 'ready', '{"type": "ready"}', 1, true),
               (-2, 'public.orders'::regclass, 'data_sync', '{"type": "data_sync"}', NULL, true);
        INSERT INTO etl.table_schemas (pipeline_id, table_id, schema_name, table_name) VALUES
            (1, 'public.orders'::regclass, 'public', 'orders'), (-2, 'public.orders'::regclass, 'public', 'orders'),
            (1, 'public.keyless'::regclass, 'public', 'keyless'), (1, 4000000000, 'public', 'dropped');
        INSERT INTO etl.table_columns
            (table_schema_id, column_name, column_type, type_modifier, nullable, primary_key, column_order)
        SELECT s.id, c.name, 'TEXT', -1, false, true, c.number - 1
        FROM etl.table_schemas s
        CROSS JOIN LATERAL unnest(CASE s.table_name WHEN 'orders' THEN '{a,b,c}'::text[] WHEN 'keyless' THEN '{x}'
                                  ELSE '{a,c}' END) WITH ORDINALITY AS c (name, number)
        WHERE NOT (s.pipeline_id = -2 AND c.name = 'c');
        INSERT INTO etl.table_mappings (pipeline_id, source_table_id, destination_table_id, created_at, updated_at)
        VALUES (1, 'public.orders'::regclass, 'one', '2025-01-02 03:04:05+00', '2025-02-03 04:05:06+00'),
               (1, 4000000000, 'dropped', '2025-01-02 03:04:05+00', '2025-02-03 04:05:06+00'),
               (-2, 'public.orders'::regclass, 'two', '2026-01-02 03:04:05+00', '2026-02-03 04:05:06+00'),
               (1, 4000000001, 'never stored', now(), now()), (3, 'public.orders'::regclass, 'strange', now(), now());
    """)
    unchanged = {table: everything(database)[table] for table in ("replication_state",)}
    with connect(database) as conn:
        migrations.apply(conn, to=STORAGE)
        kept = everything(database)
        migrations.apply(conn, to=None if stop == BASE else MESSAGES)
    after = everything(database)
    assert after["shape"] == expected_shape(MESSAGES)
    assert after["replication_state"] == unchanged["replication_state"]
    for table in ("table_schemas", "table_columns", "destination_tables_metadata"):
        assert after[table] == kept[table]
    with database.connect() as conn:
        columns = conn.execute("""
            SELECT s.pipeline_id, s.table_name, c.column_name, c.ordinal_position, c.primary_key_ordinal_position
            FROM etl.table_columns c JOIN etl.table_schemas s ON s.id = c.table_schema_id
            ORDER BY s.id, c.ordinal_position
        """).fetchall()
        versions = conn.execute("SELECT DISTINCT snapshot_id::text FROM etl.table_schemas").fetchall()
        metadata = conn.execute("""
            SELECT pipeline_id, table_id, destination_table_id, snapshot_id::text, previous_snapshot_id,
                   schema_status::text, replication_mask, created_at::text, updated_at::text
            FROM etl.destination_tables_metadata ORDER BY id
        """).fetchall()
        orders = conn.execute("SELECT 'public.orders'::regclass::oid").fetchone()
    assert orders is not None
    assert columns == [
        (1, "orders", "a", 1, 2),
        (1, "orders", "b", 2, None),
        (1, "orders", "c", 3, 1),
        (-2, "orders", "a", 1, 2),
        (-2, "orders", "b", 2, None),
        (1, "keyless", "x", 1, None),
        (1, "dropped", "a", 1, None),
        (1, "dropped", "c", 2, None),
    ]
    assert versions == [("0/0",)]
    first = ("2025-01-02 03:04:05+00", "2025-02-03 04:05:06+00")
    second = ("2026-01-02 03:04:05+00", "2026-02-03 04:05:06+00")
    assert metadata == [
        (1, orders[0], "one", "0/0", None, "applied", b"\1\1\1", *first),
        (1, 4000000000, "dropped", "0/0", None, "applied", b"\1\1", *first),
        (-2, orders[0], "two", "0/0", None, "applied", b"\1\1", *second),
    ]


@pytest.mark.parametrize(
    ("applied", "tag"), [([], "CREATE INDEX"), ([BASE], "DROP TABLE"), ([BASE, STORAGE], "COMMENT")]
)
def test_a_version_that_fails_halfway_leaves_everything_as_it_was(
    database: Database, command: Command, applied: list[int], tag: str
) -> None:
    with connect(database) as conn:
        for version in applied:
            migrations.apply(conn, to=version)
    if applied == [BASE]:
        database.psql("""
            INSERT INTO etl.table_mappings (pipeline_id, source_table_id, destination_table_id) VALUES (1, 2, 'three');
            INSERT INTO etl.table_schemas (pipeline_id, table_id, schema_name, table_name) VALUES (1, 2, 'a', 'b')
        """)
    refuse(database, tag)
    before = everything(database)
    outcome = command(database, "apply")
    assert outcome.code == 1
    assert "failed and was rolled back: not today" in outcome.err
    assert everything(database) == before
    assert outcome.out == ""
    database.psql("DROP EVENT TRIGGER refuse")
    assert command(database, "apply").code == 0
    assert shape(database) == expected_shape(MESSAGES)


def test_without_superuser_the_event_trigger_is_left_with_its_script(database: Database, command: Command) -> None:
    database.psql(f"CREATE ROLE app LOGIN; GRANT CREATE ON DATABASE {database.name} TO app")
    outcome = command(database, "apply", user="app")
    assert outcome.code == 1
    assert outcome.document["done"] == [BASE, STORAGE]
    assert outcome.states == ["applied", "applied", "missing"]
    assert "permission denied to create event trigger" in outcome.err
    assert shape(database) == expected_shape(STORAGE)
    database.psql(outcome.document["needs"])
    assert shape(database) == expected_shape(MESSAGES)
    assert command(database, "status", user="app").states == ["applied"] * 3
    with connect(database, "app") as conn:
        conn.execute("SELECT * FROM etl.describe_table_schema(1), etl.describe_table_identity(1)")


def test_without_any_right_everything_is_left(database: Database, command: Command) -> None:
    database.psql("CREATE ROLE app LOGIN")
    before = everything(database)
    outcome = command(database, "apply", user="app")
    assert (outcome.code, outcome.document["done"]) == (1, [])
    assert f"CREATE on database {database.name} is needed" in outcome.err
    assert everything(database) == before
    database.psql(outcome.document["needs"])
    assert shape(database) == expected_shape(MESSAGES)


def test_what_belongs_to_another_is_found_out_beforehand(database: Database, command: Command) -> None:
    database.psql(f"CREATE ROLE first LOGIN; CREATE ROLE app LOGIN; GRANT CREATE ON DATABASE {database.name} TO first")
    command(database, "apply", "--to", str(BASE), user="first")
    database.psql("""
        GRANT USAGE ON SCHEMA etl TO app; GRANT SELECT ON etl._sqlx_migrations TO app;
    """)
    assert "USAGE and CREATE on schema etl" in command(database, "apply", user="app").err
    database.psql("GRANT CREATE ON SCHEMA etl TO app")
    assert "INSERT on etl._sqlx_migrations" in command(database, "apply", user="app").err
    database.psql("GRANT INSERT ON etl._sqlx_migrations TO app")
    before = everything(database)
    outcome = command(database, "apply", user="app")
    assert "etl.table_columns, etl.table_mappings, etl.table_schemas must belong to app" in outcome.err
    assert everything(database) == before
    # A member of the owner may what the owner may, and CREATE on the database is not asked for where etl is there.
    database.psql("GRANT first TO app")
    assert command(database, "apply", user="app").document["done"] == [STORAGE]


def test_functions_that_a_role_made_for_itself_stay_its_own(database: Database, command: Command) -> None:
    database.psql("CREATE ROLE keeper LOGIN; CREATE SCHEMA etl AUTHORIZATION keeper")
    with connect(database, "keeper") as conn:
        for statement in migrations.describe_functions():
            conn.execute(statement.encode())
    assert command(database, "apply").code == 0
    assert shape(database) == expected_shape(MESSAGES)
    with connect(database, "keeper") as conn:
        for statement in migrations.describe_functions():
            conn.execute(statement.encode())
    assert shape(database) == expected_shape(MESSAGES)


@pytest.mark.parametrize("applied", [[], [BASE], [BASE, STORAGE]])
def test_a_dry_run_in_psql_gives_the_same(database: Database, command: Command, applied: list[int]) -> None:
    with connect(database) as conn:
        for version in applied:
            migrations.apply(conn, to=version)
    before = everything(database)
    outcome = command(database, "apply", "--dry-run", as_json=False)
    assert outcome.code == 0
    assert everything(database) == before
    database.psql(outcome.out)
    assert shape(database) == expected_shape(MESSAGES)
    assert command(database, "status").states == ["applied"] * 3
    assert command(database, "apply", "--dry-run", as_json=False).out == "-- nothing to do\n"


def test_a_dry_run_without_superuser_stops_where_the_command_does(database: Database, command: Command) -> None:
    database.psql(f"CREATE ROLE app LOGIN; GRANT CREATE ON DATABASE {database.name} TO app")
    done = psql(database, command(database, "apply", "--dry-run", as_json=False, user="app").out, "app")
    assert "permission denied to create event trigger" in done.stderr
    assert shape(database) == expected_shape(STORAGE)
    assert command(database, "status").states == ["applied", "applied", "missing"]


def test_a_dry_run_without_any_right_is_a_comment(database: Database, command: Command) -> None:
    database.psql("CREATE ROLE app LOGIN")
    outcome = command(database, "apply", "--dry-run", as_json=False, user="app")
    assert outcome.code == 1
    why, *lines = outcome.out.splitlines()
    assert why == f"-- role app may not run this: CREATE on database {database.name} is needed"
    assert all(line.startswith("--") for line in lines)
    database.psql("\n".join(line.removeprefix("--").removeprefix(" ") for line in lines))
    assert shape(database) == expected_shape(MESSAGES)


def test_the_printed_sql_makes_the_same_catalog(database: Database, command: Command) -> None:
    for version in VERSIONS:
        outcome = command(None, "sql", str(version))
        assert outcome.code == 0
        database.psql(outcome.out)
        assert shape(database) == expected_shape(version)


def test_all_the_printed_sql_at_once_needs_no_right_to_make_a_schema_that_is_there(
    database: Database, command: Command
) -> None:
    database.psql("CREATE ROLE keeper LOGIN SUPERUSER; CREATE SCHEMA etl AUTHORIZATION keeper")
    database.psql(f"ALTER ROLE keeper NOSUPERUSER; REVOKE CREATE ON DATABASE {database.name} FROM PUBLIC")
    done = psql(database, command(None, "sql").out, "keeper")
    assert "permission denied to create event trigger" in done.stderr
    assert "permission denied for database" not in done.stderr
    assert shape(database) == expected_shape(STORAGE)


def test_the_lock_is_the_one_that_sqlx_takes(database18: Database) -> None:
    assert migrations.lock_key("truth") == 1400001460103494004
    with database18.connect(application_name="another") as other, connect(database18) as conn:
        other.execute("SELECT pg_advisory_lock(%s)", [migrations.lock_key(database18.name)])
        conn.execute("SET statement_timeout = '10s'")
        for call in (migrations.apply, migrations.seed):
            with pytest.raises(OperationError, match=rf"process {other.info.backend_pid} \(another\)"):
                call(conn, lock_timeout=0.1)
    assert shape(database18)["tables"] is None


def test_the_lock_is_held_while_a_version_runs_and_given_back(database18: Database) -> None:
    key = migrations.lock_key(database18.name)
    database18.psql(f"""
        CREATE FUNCTION public.check_lock() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
               AND (classid::bigint << 32) + objid::bigint = {key};
            IF NOT FOUND THEN RAISE 'no lock is held'; END IF;
        END $$;
        CREATE EVENT TRIGGER check_lock ON ddl_command_end EXECUTE FUNCTION public.check_lock()""")
    with connect(database18) as conn:
        assert migrations.apply(conn, to=STORAGE).applied == (BASE, STORAGE)
        assert conn.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone() == (0,)


def test_a_lock_on_a_table_is_not_waited_for_without_end(database18: Database) -> None:
    with connect(database18) as conn, database18.connect() as reader:
        conn.execute("SET statement_timeout = '10s'")
        migrations.apply(conn, to=BASE)
        with reader.transaction():
            reader.execute("SELECT FROM etl.table_columns")
            with pytest.raises(OperationError, match="lock timeout"):
                migrations.apply(conn, lock_timeout=0.1)
    assert shape(database18) == expected_shape(BASE)


def test_objects_without_a_record_are_not_made_again(migrated18: Database, command: Command) -> None:
    migrated18.psql("DELETE FROM etl._sqlx_migrations WHERE version = 20260415100000")
    before = everything(migrated18)
    outcome = command(migrated18, "apply")
    assert outcome.code == 1
    assert "there, but not recorded" in outcome.err
    assert "pgrepl migrations seed" in outcome.err
    assert everything(migrated18) == before


def test_an_event_trigger_that_is_there_already_is_kept(migrated18: Database, command: Command) -> None:
    migrated18.psql("DELETE FROM etl._sqlx_migrations WHERE version = 20260415100000")
    migrated18.psql("ALTER FUNCTION etl.describe_table_schema(oid) VOLATILE")
    assert command(migrated18, "apply").document["done"] == [MESSAGES]
    assert shape(migrated18) == expected_shape(MESSAGES)


def test_an_unknown_version_to_go_to_is_an_input_error(database18: Database, command: Command) -> None:
    assert command(database18, "apply", "--to", "7").code == 2
    assert command(None, "sql", "7").code == 2
    with pytest.raises(InputError):
        migrations.statements(7)


def test_a_server_that_is_too_old_is_refused(server15: Server) -> None:
    with psycopg.connect(server15.dsn(), autocommit=True) as conn, pytest.raises(OperationError, match="too old"):
        migrations.apply(conn)


def test_setup_can_run_the_pieces_in_a_transaction_of_its_own(database: Database) -> None:
    with connect(database) as conn:
        with conn.transaction():
            for step in migrations.plan(conn).steps:
                for statement in (*step.statements, *step.event_trigger, step.record):
                    conn.execute(statement.encode())
        assert [status.state for status in migrations.status(conn)] == ["applied"] * 3
    assert shape(database) == expected_shape(MESSAGES)


@pytest.mark.parametrize(("answer", "done"), [("n", False), ("y", True)])
def test_on_a_terminal_it_asks(database18: Database, answer: str, done: bool) -> None:
    ours, theirs = os.openpty()
    os.write(ours, f"{answer}\n".encode())
    command = [sys.executable, "-m", "pgrepl", "migrations", "apply", "-d", database18.dsn()]
    ended = subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=60, check=False)
    os.close(ours)
    os.close(theirs)
    assert f"Apply {BASE}, {STORAGE}, {MESSAGES} in database {database18.name}?" in ended.stderr
    assert ended.returncode == (0 if done else 1)
    assert shape(database18)["tables"] == (expected_shape(MESSAGES)["tables"] if done else None)
