"""What ends a run at its start because a person must decide: exit code, one line, a hint, and nothing changed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.command import eventually, pgrepl
from tests.conftest import NewServer
from tests.servers.database import Database, fresh_database
from tests.servers.server import Server
from tests.tail.pipelines import POSTGRES, prepare, ran_once, refuses, slot_of
from tests.tail.running import Tail, run_tail

NOW = ("--until-lsn", "now")


def ids(text: str) -> list[int]:
    return [event["new"]["id"] for event in map(json.loads, text.splitlines()) if "new" in event]


def lose(connection: psycopg.Connection) -> None:
    """Write more WAL than slots may keep, and let the server notice."""
    for _ in range(4):
        connection.execute("SELECT pg_switch_wal(), pg_logical_emit_message(true, 'x', 'x')")
    connection.execute("CHECKPOINT")


# The slot.


def test_slot_dropped(database: Database) -> None:
    slot = ran_once(database)
    with database.connect() as connection:
        connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
    refuses(
        database,
        *POSTGRES,
        *NOW,
        code=5,
        message=f"the slot {slot} is gone, and changes after ",
        hint=f"'pgrepl state reset --all --slot {slot}', then start again",
    )


@pytest.mark.parametrize("version", [16, 17, 18])
def test_slot_lost(new_server: NewServer, version: int) -> None:
    database = Database(new_server(version, max_slot_wal_keep_size="1MB"), "postgres")
    slot = ran_once(database)
    with database.connect() as connection:
        lose(connection)
    refuses(
        database,
        *POSTGRES,
        *NOW,
        code=5,
        message=f"the slot {slot} is lost: the server removed WAL that it needs (max_slot_wal_keep_size)",
        hint=f"'pgrepl slots drop {slot}' and 'pgrepl state reset --all --slot {slot}'",
    )
    # What the hint says is what helps.
    assert pgrepl("slots", "drop", slot, "--yes", "-d", database.dsn()).returncode == 0
    assert pgrepl("state", "reset", "--all", "--slot", slot, "--yes", "-d", database.dsn()).returncode == 0
    finished = run_tail(*POSTGRES, *NOW, dsn=database.dsn())
    assert (finished.code, ids(finished.stdout)) == (0, [1])


def test_slot_lost_by_being_idle(new_server: NewServer) -> None:
    database = Database(new_server(18, idle_replication_slot_timeout="1s"), "postgres")
    slot = ran_once(database)
    with database.connect() as connection:
        lost = "SELECT invalidation_reason FROM pg_replication_slots"

        def idle() -> bool:
            connection.execute("CHECKPOINT")
            return connection.execute(lost).fetchone() == ("idle_timeout",)

        eventually(idle)
    refuses(database, *POSTGRES, *NOW, code=5, message="idle_replication_slot_timeout", hint=f"slots drop {slot}")


def test_slot_made_anew(database: Database) -> None:
    """Dropped and made again under its name: it begins later than the state."""
    slot = ran_once(database)
    with database.connect() as connection:
        connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
        connection.execute("INSERT INTO t VALUES (2)")
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
    refuses(
        database,
        *POSTGRES,
        *NOW,
        code=5,
        message=f"the slot {slot} is at ",
        hint="--accept-slot-position goes on from there",
    )
    # With a copy of every table nothing is missing.
    finished = run_tail(*POSTGRES, *NOW, "--accept-slot-position", "--resnapshot", "all", dsn=database.dsn())
    assert (finished.code, ids(finished.stdout)) == (0, [1, 2]), finished.stderr


def test_slot_made_anew_from_an_older_one(database: Database, tmp_path: Path) -> None:
    """It stands before the state: what is read again was dealt with, and a file does not get it twice."""
    output = tmp_path / "out.jsonl"
    options = (*POSTGRES, "-o", str(output), *NOW)
    slot = ran_once(database, "-o", str(output))
    with database.connect() as connection:
        connection.execute("SELECT pg_copy_logical_replication_slot(%s, 'older')", [slot])
        connection.execute("INSERT INTO t VALUES (2)")
        assert run_tail(*options, dsn=database.dsn()).code == 0
        connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
        connection.execute("SELECT pg_copy_logical_replication_slot('older', %s)", [slot])
        connection.execute("INSERT INTO t VALUES (3)")
        finished = run_tail(*options, dsn=database.dsn())
    assert finished.code == 0, finished.stderr
    assert ids(output.read_text()) == [1, 2, 3]


def test_slot_advanced(database: Database) -> None:
    slot = ran_once(database)
    with database.connect() as connection:
        connection.execute("INSERT INTO t VALUES (2)")
        connection.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_flush_lsn())", [slot])
        connection.execute("INSERT INTO t VALUES (3)")
    refuses(
        database, *POSTGRES, *NOW, code=5, message="bytes beyond the stored position ", hint="--accept-slot-position"
    )
    finished = run_tail(*POSTGRES, *NOW, "--accept-slot-position", dsn=database.dsn())
    assert (finished.code, ids(finished.stdout)) == (0, [3])


def test_slot_of_another_kind(database: Database) -> None:
    prepare(database)
    with database.connect() as connection, fresh_database(database.server) as other:
        connection.execute("SELECT pg_create_physical_replication_slot('physical')")
        connection.execute("SELECT pg_create_logical_replication_slot('prepared', 'pgoutput', false, true)")
        with other.connect() as elsewhere:
            elsewhere.execute("SELECT pg_create_logical_replication_slot('elsewhere', 'pgoutput')")
        for slot, message, hint in (
            ("physical", "slot physical is a physical slot", "pgrepl slots create"),
            ("prepared", "slot prepared gives prepared transactions", "without --two-phase"),
            ("elsewhere", f"belongs to database {other.name}", "connect to that database"),
        ):
            refuses(database, "pub", "--slot", slot, code=1, message=message, hint=hint)
        connection.execute("SELECT pg_drop_replication_slot('physical')")


def test_slot_in_use(database: Database) -> None:
    """Nothing is stored nor copied before the slot is free; after 5 s it is said who has it."""
    slot = ran_once(database)
    with Tail(*POSTGRES, dsn=database.dsn()) as first, database.connect() as connection:
        eventually(lambda: is_active(connection, slot))
        finished = refuses(
            database, *POSTGRES, code=1, message=f"slot {slot} is in use by pid ", hint="two cannot share a slot"
        )
        assert f"(pgrepl tail ({slot})" in finished.stderr
        with Tail(*POSTGRES, dsn=database.dsn()) as second:
            second.until_stderr("waiting for it")
            assert first.stop().code == 143
            connection.execute("INSERT INTO t VALUES (2)")
            second.until_op("insert")


def is_active(connection: psycopg.Connection, slot: str) -> bool:
    query = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"
    return connection.execute(query, [slot]).fetchone() == (True,)


# The server and its history.


def test_another_server(database: Database, new_server: NewServer) -> None:
    """The same database, restored on another server, with a slot of the same name."""
    slot = ran_once(database)
    with fresh_database(new_server(database.server.version)) as other:
        dump = subprocess.run(
            [database.server.bindir / "pg_dump", "--inserts", "-d", database.dsn()],
            check=True,
            capture_output=True,
            text=True,
        )
        # Its first lines are settings that older servers do not know.
        other.psql("\n".join(line for line in dump.stdout.splitlines() if not line.startswith(("SET ", "\\"))))
        with other.connect() as connection:
            connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
        pipeline = slot.removeprefix("supabase_etl_apply_")
        refuses(
            other,
            *POSTGRES,
            *NOW,
            "--pipeline-id",
            pipeline,
            code=5,
            message="the state belongs to the server ",
            hint=f"'pgrepl state adopt --slot {slot}'",
        )


def test_stored_position_beyond_the_wal(database: Database) -> None:
    slot = ran_once(database)
    database.psql("UPDATE etl.pgrepl_pipelines SET position = 'FFFF/0'")
    refuses(
        database,
        *POSTGRES,
        *NOW,
        code=5,
        message="the stored position FFFF/0 lies beyond the server's WAL, which ends at ",
        hint=f"'pgrepl slots drop {slot}' and 'pgrepl state reset",
    )


def test_server_restored_to_before_the_file(new_server: NewServer, tmp_path: Path) -> None:
    """The state goes back with the server; the file does not, and would have new changes passed over as old ones."""
    server = new_server(18)
    database = Database(server, "postgres")
    output = tmp_path / "out.jsonl"
    options = (*POSTGRES, "-o", str(output), *NOW)
    slot = ran_once(database, "-o", str(output))
    data = Path(database.psql("SHOW data_directory").strip())
    server.stop(immediate=False)
    shutil.copytree(data, tmp_path / "backup", symlinks=True, copy_function=shutil.copy2)
    server.start()
    database.psql("INSERT INTO t SELECT i FROM generate_series(2, 2000) i")
    assert run_tail(*options, dsn=database.dsn()).code == 0
    held = output.read_bytes()
    server.stop(immediate=False)
    put_back(tmp_path / "backup", data)
    server.start()
    database.psql("INSERT INTO t VALUES (3)")
    refuses(
        database,
        *options,
        code=5,
        message="the output holds changes up to ",
        hint=f"restored to an earlier time: 'pgrepl slots drop {slot}'",
    )
    assert output.read_bytes() == held


def put_back(backup: Path, data: Path) -> None:
    """Replace what stands in a data directory; its owner stays."""
    owner = data.stat()
    shutil.rmtree(data)
    shutil.copytree(backup, data, symlinks=True)
    data.chmod(0o700)
    for path in (data, *data.rglob("*")):
        if not path.is_symlink():
            shutil.chown(path, owner.st_uid, owner.st_gid)


def test_other_publications_than_those_of_the_state(database: Database) -> None:
    """Tables of the others would be taken for new ones, and those of the old one be forgotten."""
    slot = ran_once(database)
    database.psql("CREATE TABLE u (id int PRIMARY KEY); CREATE PUBLICATION more FOR TABLE u")
    for names in ("more", "pub,more"):
        refuses(
            database,
            names,
            "--store",
            "postgres",
            code=2,
            message=f"the state is that of publication pub, not {names}",
            hint=f"'pgrepl state reset --all --slot {slot}' begins anew",
        )


# The publication.


def test_publication_dropped(database: Database) -> None:
    ran_once(database)
    database.psql("DROP PUBLICATION pub")
    refuses(database, *POSTGRES, *NOW, code=1, message="publication pub does not exist", hint="pgrepl setup")


def test_publication_made_anew_and_nothing_changed_meanwhile(database: Database) -> None:
    ran_once(database)
    database.psql("DROP PUBLICATION pub; CREATE PUBLICATION pub FOR TABLE t; INSERT INTO t VALUES (2)")
    finished = run_tail(*POSTGRES, *NOW, dsn=database.dsn())
    assert (finished.code, ids(finished.stdout)) == (0, [2]), finished.stderr


def test_publication_made_anew_after_a_change(database: Database) -> None:
    """The change cannot be read any more: an error up to 17, from 18 on a notice, behind which nothing is printed."""
    slot = ran_once(database)
    database.psql("DROP PUBLICATION pub; INSERT INTO t VALUES (2); CREATE PUBLICATION pub FOR TABLE t")
    database.psql("INSERT INTO t VALUES (3)")
    for _ in range(2):
        refuses(
            database,
            *POSTGRES,
            *NOW,
            code=5,
            message='publication "pub"',
            hint=f"'pgrepl slots drop {slot}' and 'pgrepl state reset --all --slot {slot}'",
        )


def make_publication_after_a_slot(database: Database) -> None:
    prepare(database)
    with database.connect() as connection:
        connection.execute("DROP PUBLICATION pub")
        connection.execute("SELECT pg_create_logical_replication_slot('early', 'pgoutput')")
        connection.execute("INSERT INTO t VALUES (2)")
        connection.execute("CREATE PUBLICATION pub FOR TABLE t")
        connection.execute("INSERT INTO t VALUES (3)")


def must_see_that_it_is_younger(database: Database, dsn: str) -> None:
    refuses(
        database,
        *("pub", "--slot", "early", "--snapshot", "never"),
        *NOW,
        code=5,
        message='publication "pub"',
        hint="'pgrepl slots drop early', then start again with --keep-slot --slot early",
        dsn=dsn,
    )


def test_publication_younger_than_the_slot(database: Database) -> None:
    make_publication_after_a_slot(database)
    must_see_that_it_is_younger(database, database.dsn())


def test_no_setting_hides_that_changes_are_skipped(database18: Database) -> None:
    """On 18 it is a notice only: neither the role nor the database nor the client can silence it."""
    make_publication_after_a_slot(database18)
    must_see_that_it_is_younger(database18, database18.dsn(options="-c client_min_messages=error"))
    with database18.connect() as connection:
        name = sql.Identifier(database18.name)
        for alter in (
            sql.SQL("ALTER ROLE reader {} client_min_messages"),
            sql.SQL("ALTER DATABASE {} {{}} client_min_messages").format(name),
            sql.SQL("ALTER ROLE reader IN DATABASE {} {{}} client_min_messages").format(name),
        ):
            connection.execute("CREATE ROLE reader LOGIN SUPERUSER")
            statement = alter.as_string(connection)
            connection.execute(statement.format("SET") + " = error")
            must_see_that_it_is_younger(database18, database18.dsn("reader"))
            connection.execute(statement.format("RESET"))
            connection.execute("DROP ROLE reader")


def test_what_the_server_skips_is_not_hidden_by_what_follows(server18: Server) -> None:
    """Changes of another publication come right behind the notice; none of them is printed, nor any position stored."""
    with fresh_database(server18) as database:
        prepare(database)
        database.psql("CREATE TABLE u (id int PRIMARY KEY); CREATE PUBLICATION other FOR TABLE u")
        options = ("pub,other", "--store", "postgres")
        assert run_tail(*options, *NOW, dsn=database.dsn()).code == 0
        database.psql("INSERT INTO u VALUES (1)")
        database.psql("DROP PUBLICATION pub; INSERT INTO t VALUES (2); CREATE PUBLICATION pub FOR TABLE t")
        database.psql("INSERT INTO u SELECT i FROM generate_series(2, 100) i")
        with database.connect() as connection:
            finished = run_tail(*options, *NOW, dsn=database.dsn())
            assert finished.code == 5
            assert set(ids(finished.stdout)) <= {1}
            # Neither the stored nor the confirmed position is behind what was skipped.
            query = (
                "SELECT count(*) >= 99 FROM pg_logical_slot_peek_binary_changes(%s, NULL, NULL, 'proto_version', '1',"
                " 'publication_names', 'other')"
            )
            assert connection.execute(query, [slot_of(database)]).fetchone() == (True,)
            assert run_tail(*options, *NOW, dsn=database.dsn()).code == 5
