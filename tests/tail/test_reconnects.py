"""What a lost connection finds when it comes back: it goes on where nothing is missing, and ends where something is."""

from __future__ import annotations

import signal
import subprocess
import threading
from pathlib import Path

import psycopg
import pytest

from tests.command import eventually
from tests.conftest import NewServer
from tests.proxy import proxy
from tests.servers.database import Database
from tests.tail.pipelines import POSTGRES, everything, frozen, prepare, ran_once, refused, slot_of
from tests.tail.running import Tail, run_tail


def streaming(tail: Tail, database: Database) -> str:
    """Wait until the tail of a prepared database streams and has stored that it does; gives its slot."""
    with database.connect() as connection:
        eventually(lambda: _reads(connection), 30)
        before = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        connection.execute("INSERT INTO t VALUES (1000)")
        tail.until(lambda event: event["op"] == "insert" and event["new"]["id"] == 1000)
        stored = "SELECT position > %s::pg_lsn FROM etl.pgrepl_pipelines"
        eventually(lambda: connection.execute(stored, before).fetchone() == (True,), 30)
    return slot_of(database)


def _reads(connection: psycopg.Connection) -> bool:
    query = """
        SELECT count(*) FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid
         WHERE s.database = current_database() AND r.state = 'streaming'
    """
    return connection.execute(query).fetchone() == (1,)


def advance(connection: psycopg.Connection, slot: str) -> None:
    connection.execute("INSERT INTO t VALUES (2)")
    connection.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_flush_lsn())", [slot])


def drop(connection: psycopg.Connection, slot: str) -> None:
    connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])


def make_anew(connection: psycopg.Connection, slot: str) -> None:
    drop(connection, slot)
    connection.execute("INSERT INTO t VALUES (2)")
    connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])


def publish_anew(connection: psycopg.Connection, _slot: str) -> None:
    connection.execute("DROP PUBLICATION pub")
    connection.execute("INSERT INTO t VALUES (2)")
    connection.execute("CREATE PUBLICATION pub FOR TABLE t")
    connection.execute("INSERT INTO t VALUES (3)")


@pytest.mark.parametrize(
    ("spoil", "message", "hint"),
    [
        (drop, "is gone, and changes from ", "'pgrepl state reset --all --slot "),
        (advance, "somebody else has read it, or made it anew", "'pgrepl slots drop "),
        (make_anew, "somebody else has read it, or made it anew", "'pgrepl slots drop "),
        (publish_anew, 'publication "pub"', "'pgrepl slots drop "),
    ],
)
def test_what_happened_to_the_slot_meanwhile(database: Database, spoil: object, message: str, hint: str) -> None:
    prepare(database)
    with Tail(*POSTGRES, dsn=database.dsn()) as tail:
        slot = streaming(tail, database)
        with frozen(tail, database, slot) as connection:
            spoil(connection, slot)  # type: ignore[operator]
            before = everything(connection)
        finished = tail.finish()
    refused(finished, 5, message, hint)
    with database.connect() as connection:
        assert everything(connection) == before
    assert [event["new"]["id"] for event in finished.events if "new" in event] == [1, 1000]


def test_publication_dropped_under_the_stream(database: Database) -> None:
    """What was printed before stays the last thing that is confirmed, whether the server errs or only warns."""
    prepare(database)
    with Tail(*POSTGRES, dsn=database.dsn()) as tail, database.connect() as connection:
        slot = streaming(tail, database)
        connection.execute("DROP PUBLICATION pub")
        connection.execute("INSERT INTO t VALUES (2)")
        finished = tail.finish()
    refused(finished, 5, 'publication "pub"', f"'pgrepl slots drop {slot}'")
    assert "3" not in [event.get("new", {}).get("id") for event in finished.events]


@pytest.mark.parametrize("version", [16, 18])
def test_slot_lost_under_the_stream(new_server: NewServer, version: int) -> None:
    database = Database(new_server(version, max_slot_wal_keep_size="1MB", wal_sender_timeout="0"), "postgres")
    prepare(database)
    with Tail(*POSTGRES, dsn=database.dsn()) as tail:
        slot = streaming(tail, database)
        with frozen(tail, database, slot) as connection:
            for _ in range(4):
                connection.execute("SELECT pg_switch_wal(), pg_logical_emit_message(true, 'x', 'x')")
            connection.execute("CHECKPOINT")
        finished = tail.finish()
    refused(finished, 5, f"the slot {slot} is lost: the server removed WAL", f"'pgrepl slots drop {slot}' and")


def test_another_server_at_the_address(database18: Database, new_server: NewServer) -> None:
    prepare(database18)
    server = database18.server
    other = new_server(18)
    other.psql(f"CREATE DATABASE {database18.name}")
    with (
        proxy(f"{server.host}/.s.PGSQL.{server.port}") as wire,
        Tail(*POSTGRES, dsn=f"host=127.0.0.1 port={wire.port} user=postgres dbname={database18.name}") as tail,
    ):
        slot = streaming(tail, database18)
        with other.connect(database18.name) as connection:
            connection.execute("CREATE TABLE t (id int PRIMARY KEY, filler text)")
            connection.execute("CREATE PUBLICATION pub FOR TABLE t")
            connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
        wire.target = f"{other.host}/.s.PGSQL.{other.port}"
        wire.cut_all()
        finished = tail.finish()
    refused(finished, 5, "the server is ", "another server answers at this address")
    other.psql(f"SELECT pg_drop_replication_slot('{slot}')", database18.name)


def test_a_store_that_answers_from_another_server_stores_nothing(database18: Database) -> None:
    """The state's row is gone while the stream goes on: nothing more may be confirmed."""
    prepare(database18)
    with Tail(*POSTGRES, dsn=database18.dsn()) as tail, database18.connect() as connection:
        slot = streaming(tail, database18)
        connection.execute("DELETE FROM etl.pgrepl_pipelines")
        before = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
        connection.execute("INSERT INTO t VALUES (2)")
        finished = tail.finish()
        query = "SELECT confirmed_flush_lsn <= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = %s"
        assert connection.execute(query, [*(before or ()), slot]).fetchone() == (True,)
    refused(finished, 5, "the state of pipeline ", "'pgrepl slots drop ")


def test_slot_that_somebody_else_took(new_server: NewServer) -> None:
    """It is waited for as long as a dead walsender of ours may live; then the holder is named."""
    database = Database(new_server(18, wal_sender_timeout="2s"), "postgres")
    prepare(database)
    with Tail(*POSTGRES, dsn=database.dsn()) as tail:
        slot = streaming(tail, database)
        with frozen(tail, database, slot) as connection:
            # Its walsender has no timeout, and nothing is ever confirmed.
            options = "-c wal_sender_timeout=0"
            other = psycopg.connect(database.dsn(replication="database", options=options, application_name="another"))
            start = f"START_REPLICATION SLOT {slot} LOGICAL 0/0 (proto_version '1', publication_names 'pub')"
            assert other.pgconn.exec_(start.encode()).status == psycopg.pq.ExecStatus.COPY_BOTH
            eventually(lambda: _reads(connection))
        tail.until_stderr("waiting for it")
        finished = tail.finish(60)
        other.close()
    refused(finished, 1, f"slot {slot} is in use by pid ", "two cannot share a slot")
    assert "(another)" in finished.stderr
    assert finished.stderr.count("connected again") == 1


def test_slot_that_somebody_else_took_and_read(database18: Database) -> None:
    """Between the look at the slot and the start of the stream the server would forward us without a word."""
    prepare(database18)
    with Tail(*POSTGRES, dsn=database18.dsn()) as tail:
        slot = streaming(tail, database18)
        with frozen(tail, database18, slot) as connection:
            other = subprocess.Popen(
                [
                    database18.server.bindir / "pg_recvlogical",
                    *("-d", database18.dsn(), "--slot", slot, "--start", "-f", "/dev/null", "-F", "1", "-s", "1"),
                    *("-o", "proto_version=1", "-o", "publication_names=pub"),
                ],
                stderr=subprocess.DEVNULL,
            )
            eventually(lambda: _reads(connection))
        tail.until_stderr("waiting for it")
        with database18.connect() as connection:
            connection.execute("INSERT INTO t VALUES (2)")
            (end,) = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchall()[0]
            query = "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = %s"
            eventually(lambda: connection.execute(query, [end, slot]).fetchone() == (True,))
        other.send_signal(signal.SIGINT)
        other.wait()
        finished = tail.finish()
    refused(finished, 5, "somebody else has read it", "'pgrepl slots drop ")


# What passes.


def test_server_that_restarts_is_waited_for(new_server: NewServer) -> None:
    server = new_server(18)
    database = Database(server, "postgres")
    prepare(database)
    with Tail(*POSTGRES, dsn=database.dsn()) as tail:
        streaming(tail, database)
        server.stop(immediate=True)
        restart = threading.Thread(target=server.start)
        tail.until_stderr("waiting: ")
        restart.start()
        tail.until_stderr("connected again", 90)
        restart.join()
        database.psql("INSERT INTO t VALUES (2)")
        tail.until(lambda event: event["op"] == "insert" and event["new"]["id"] == 2)
        assert tail.stop().code == 143


def test_walsenders_that_are_all_taken_are_waited_for(new_server: NewServer) -> None:
    server = new_server(18, max_wal_senders="2")
    database = Database(server, "postgres")
    prepare(database)
    with Tail(*POSTGRES, dsn=database.dsn()) as tail:
        slot = streaming(tail, database)
        with frozen(tail, database, slot):
            others = [psycopg.connect(database.dsn(replication="true"), autocommit=True) for _ in range(2)]
        tail.until_stderr("waiting: ")
        others[0].close()
        tail.until_stderr("connected again", 90)
        others[1].close()
        database.psql("INSERT INTO t VALUES (2)")
        tail.until(lambda event: event["op"] == "insert" and event["new"]["id"] == 2)
        assert tail.stop().code == 143
    # At the first start it is an error.
    others = [psycopg.connect(database.dsn(replication="true"), autocommit=True) for _ in range(2)]
    finished = run_tail(*POSTGRES, dsn=database.dsn())
    for other in others:
        other.close()
    refused(finished, 1, "all 2 walsenders are in use", "max_wal_senders")


@pytest.mark.parametrize(
    ("spoil", "code", "message"),
    [
        ("ALTER ROLE reader PASSWORD 'changed'", 3, "password authentication failed"),
        ("ALTER ROLE reader NOLOGIN", 3, "is not permitted to log in"),
        ("ALTER ROLE reader NOREPLICATION", 1, "role reader may not replicate"),
    ],
)
def test_a_role_that_may_not_any_more_is_not_tried_for_ever(
    database18: Database, spoil: str, code: int, message: str
) -> None:
    prepare(database18)
    database18.psql(
        f"""
        CREATE ROLE reader LOGIN REPLICATION PASSWORD 'secret';
        GRANT SELECT ON t TO reader;
        GRANT CREATE ON DATABASE {database18.name} TO reader; GRANT USAGE, CREATE ON SCHEMA etl TO reader;
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA etl TO reader;
    """
    )
    dsn = database18.server.tcp_dsn(database18.name, "reader", "secret")
    with Tail(*POSTGRES, dsn=dsn) as tail:
        slot = streaming(tail, database18)
        with frozen(tail, database18, slot) as connection:
            connection.execute(spoil)
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'reader'")
        finished = tail.finish(60)
    assert finished.code == code, finished.stderr
    assert message in finished.stderr.splitlines()[-2]
    assert finished.stderr.splitlines()[-1].startswith("hint: ")
    assert "secret" not in finished.stderr


def test_wal_that_was_removed(new_server: NewServer) -> None:
    """Tried a few times, since it has been seen to pass; then it is a gap."""
    database = Database(new_server(18), "postgres")
    slot = ran_once(database)
    with database.connect() as connection:
        connection.execute("INSERT INTO t VALUES (2)")
        file = "SELECT pg_walfile_name(restart_lsn) FROM pg_replication_slots"
        (name,) = connection.execute(file).fetchall()[0]
        for _ in range(3):
            connection.execute("SELECT pg_switch_wal(), pg_logical_emit_message(true, 'x', 'x')")
        connection.execute("CHECKPOINT")
        (data,) = connection.execute("SHOW data_directory").fetchall()[0]
    (Path(data) / "pg_wal" / name).unlink()
    with database.connect() as connection:
        before = everything(connection)
        finished = run_tail(*POSTGRES, dsn=database.dsn())
        assert everything(connection) == before
    refused(finished, 5, "requested WAL segment", f"'pgrepl slots drop {slot}' and 'pgrepl state reset")
    assert finished.stderr.count("connecting again") == 3
    assert finished.stdout == ""


def test_what_the_server_has_spilled_and_cannot_read(new_server: NewServer) -> None:
    """The transaction is read again, and the output goes on in its middle."""
    database = Database(new_server(18, logical_decoding_work_mem="64kB"), "postgres")
    prepare(database)
    options = (*POSTGRES, "--streaming", "off")
    with Tail(*options, dsn=database.dsn(), read=False) as tail, database.connect() as connection:
        eventually(lambda: _reads(connection), 30)
        slot = slot_of(database)
        connection.execute("INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(2, 100000) i")
        (data,) = connection.execute("SHOW data_directory").fetchall()[0]
        spilled = Path(data) / "pg_replslot" / slot
        # The reader of the pipe reads nothing, so the walsender stands in the middle of the transaction.
        sent = "SELECT sent_lsn::text FROM pg_stat_replication"
        eventually(lambda: len(list(spilled.glob("*.spill"))) > 2, 60)
        seen: list[object] = []

        def stands() -> bool:
            seen.append(connection.execute(sent).fetchone())
            return len(seen) > 40 and len(set(map(str, seen[-40:]))) == 1

        eventually(stands, 60)
        # One that it has not come to yet; the end of one that it reads would be taken for its whole.
        last = max(spilled.glob("*.spill"), key=lambda path: int(path.stem.rpartition("-")[2], 16))
        with last.open("r+b") as opened:
            opened.truncate(last.stat().st_size // 2 | 1)
        tail.read_on()
        tail.until_stderr("connected again", 60)
        tail.until(lambda event: event.get("new", {}).get("id") == 100000, 120)
        finished = tail.stop(seconds=60)
    assert "reorderbuffer spill file" in finished.stderr
    assert "logical_decoding_work_mem" in finished.stderr
    assert [event["new"]["id"] for event in finished.events if event["op"] == "insert"] == list(range(2, 100001))


@pytest.mark.parametrize("version", [17, 18])
def test_what_the_server_says_is_passed_on(new_server: NewServer, version: int) -> None:
    """A slot that survives a failover waits for a standby that is not there, and the server says so."""
    server = new_server(version)
    database = Database(server, "postgres")
    prepare(database)
    with database.connect() as connection:
        connection.execute("SELECT pg_create_physical_replication_slot('away', true)")
        connection.execute("SELECT pg_create_logical_replication_slot('ours', 'pgoutput', false, false, true)")
        connection.execute("ALTER SYSTEM SET synchronized_standby_slots = 'away'")
        connection.execute("SELECT pg_reload_conf()")
        with Tail("pub", "--slot", "ours", "--snapshot", "never", dsn=database.dsn()) as tail:
            connection.execute("INSERT INTO t VALUES (2)")
            said = tail.until_stderr("synchronized_standby_slots")
            assert 'warning: the server says: replication slot "away"' in said
            connection.execute("ALTER SYSTEM RESET synchronized_standby_slots")
            connection.execute("SELECT pg_reload_conf()")
            tail.until_op("insert", seconds=60)
            assert tail.stop().stderr.count("the server says: replication slot") == 1
