"""Where a run begins: --slot, --keep-slot, --from-lsn and --resnapshot, on their own and where they contradict."""

from __future__ import annotations

import json
import re
from pathlib import Path

import psycopg
import pytest

from pgrepl.lsn import Lsn
from tests.command import eventually
from tests.fault import slowcopy
from tests.servers.database import Database
from tests.tail.pipelines import POSTGRES, SLOTS, everything, prepare, ran_once, refused, refuses, slot_of
from tests.tail.running import Finished, Tail, run_tail

NOW = ("--until-lsn", "now")


def rows(finished: Finished) -> list[tuple[str, int]]:
    return sorted((event["op"], event["new"]["id"]) for event in finished.events if "new" in event)


def wal_end(connection: psycopg.Connection) -> str:
    (end,) = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchall()[0]
    return str(end)


def names(connection: psycopg.Connection) -> list[str]:
    return [name for name, _ in connection.execute(SLOTS).fetchall()]


# --keep-slot and --slot, with the memory store.


def test_a_slot_that_is_kept(database: Database) -> None:
    """Its name is said, and with --slot another run reads on: with copies of every table, or changes alone."""
    prepare(database)
    first = run_tail("pub", "--keep-slot", *NOW, dsn=database.dsn())
    assert (first.code, rows(first)) == (0, [("read", 1)]), first.stderr
    slot = slot_of(database)
    assert re.fullmatch("pgrepl_keep_[0-9a-f]{8}", slot)
    assert f"slot {slot} is made and kept; --slot {slot} reads on with it" in first.stderr
    assert f"slot {slot} keeps WAL until you resume or 'pgrepl slots drop {slot}'" in first.stderr
    database.psql("INSERT INTO t VALUES (2)")
    never = run_tail("pub", "--slot", slot, "--snapshot", "never", *NOW, dsn=database.dsn())
    assert rows(never) == [("insert", 2)]
    database.psql("INSERT INTO t VALUES (3)")
    initial = run_tail("pub", "--slot", slot, *NOW, dsn=database.dsn())
    assert rows(initial) == [("read", 1), ("read", 2), ("read", 3)]
    assert slot_of(database) == slot


def test_a_kept_slot_outlives_its_connection(database: Database) -> None:
    """So nothing is missing over a reconnect, with the memory store as well."""
    prepare(database)
    with Tail("pub", "--keep-slot", "--slot", "mine", dsn=database.dsn()) as tail, database.connect() as connection:
        tail.until_op("snapshot_end")
        connection.execute("INSERT INTO t VALUES (2)")
        tail.until_op("insert")
        end = "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots WHERE slot_name = 'mine'"
        connection.execute(end)
        connection.execute("INSERT INTO t VALUES (3)")
        tail.until_op("insert", 2)
        finished = tail.stop()
    assert finished.code == 143
    assert rows(finished) == [("insert", 2), ("insert", 3), ("read", 1)]
    assert slot_of(database) == "mine"


def test_a_copy_now_and_the_changes_later(database: Database) -> None:
    prepare(database)
    first = run_tail("pub", "--keep-slot", "--slot", "mine", "--snapshot", "only", dsn=database.dsn())
    assert (first.code, rows(first)) == (0, [("read", 1)])
    database.psql("INSERT INTO t VALUES (2)")
    second = run_tail("pub", "--slot", "mine", "--snapshot", "never", *NOW, dsn=database.dsn())
    assert rows(second) == [("insert", 2)]


def test_a_slot_that_is_there_is_not_made(database: Database) -> None:
    prepare(database)
    with database.connect() as connection:
        connection.execute("SELECT pg_create_logical_replication_slot('mine', 'pgoutput')")
    refuses(
        database,
        *("pub", "--keep-slot", "--slot", "mine"),
        code=1,
        message="slot mine is there already",
        hint="without --keep-slot it is read from where it stands",
    )


# --from-lsn.


@pytest.fixture
def slot(database: Database) -> str:
    """A slot with the rows 2, 3 and 4 behind its confirmed position."""
    prepare(database)
    with database.connect() as connection:
        connection.execute("SELECT pg_create_logical_replication_slot('mine', 'pgoutput')")
        for number in (2, 3, 4):
            connection.execute("INSERT INTO t VALUES (%s)", [number])
    return "mine"


def positions(database: Database, slot: str) -> tuple[Lsn, list[Lsn]]:
    """Where a slot stands, and where the transactions behind it end."""
    with database.connect() as connection:
        ((_, confirmed),) = connection.execute(SLOTS).fetchall()
        ends = connection.execute(
            "SELECT lsn::text FROM pg_logical_slot_peek_binary_changes(%s, NULL, NULL, 'proto_version', '1',"
            " 'publication_names', 'pub') WHERE get_byte(data, 0) = ascii('C')",
            [slot],
        ).fetchall()
    return Lsn.parse(confirmed), [Lsn.parse(lsn) for (lsn,) in ends]


def test_from_a_position(database: Database, slot: str) -> None:
    """What commits there or later is printed, what is left out is said, and nothing is copied."""
    confirmed, (first, _, _) = positions(database, slot)
    finished = run_tail("pub", "--slot", slot, "--from-lsn", str(first), *NOW, dsn=database.dsn())
    assert (finished.code, rows(finished)) == (0, [("insert", 3), ("insert", 4)]), finished.stderr
    assert (
        f"going on from {first}; {first - confirmed} bytes of WAL from {confirmed} on are left out" in finished.stderr
    )


def test_from_the_slots_own_position(database: Database, slot: str) -> None:
    confirmed, _ = positions(database, slot)
    finished = run_tail(
        *("pub", "--slot", slot, "--from-lsn", str(confirmed), "--snapshot", "never"), *NOW, dsn=database.dsn()
    )
    assert rows(finished) == [("insert", 2), ("insert", 3), ("insert", 4)]
    assert "left out" not in finished.stderr


def test_from_what_the_server_would_skip_in_silence(database: Database, slot: str) -> None:
    """Before the slot's position it would begin at that one; beyond the WAL it would skip what it writes."""
    confirmed, _ = positions(database, slot)
    refuses(
        database,
        *("pub", "--slot", slot, "--from-lsn", str(Lsn(confirmed - 1))),
        code=5,
        message=f"--from-lsn {Lsn(confirmed - 1)} lies before {confirmed}, where the slot mine stands",
        hint=f"--from-lsn {confirmed} is the earliest",
    )
    refuses(
        database,
        *("pub", "--slot", slot, "--from-lsn", "FFFF/0"),
        code=2,
        message="--from-lsn FFFF/0 lies beyond the server's WAL, which ends at ",
        hint="skip what it writes until then",
    )
    with database.connect() as connection:
        end = wal_end(connection)
    assert run_tail("pub", "--slot", slot, "--from-lsn", end, *NOW, dsn=database.dsn()).code == 0


def test_from_a_position_without_a_slot(database: Database) -> None:
    prepare(database)
    refuses(
        database,
        *("pub", "--slot", "mine", "--from-lsn", "0/1"),
        code=1,
        message="slot mine does not exist",
        hint="pgrepl slots create mine",
    )
    refuses(
        database,
        *(*POSTGRES, "--from-lsn", "0/1"),
        code=1,
        message="does not exist",
        hint="without --from-lsn it is made",
    )


def test_from_a_position_with_a_state(database: Database, tmp_path: Path) -> None:
    """Later than the stored one: what lies between is left out, as told. Earlier: a file gets nothing twice."""
    output = tmp_path / "out.jsonl"
    ran_once(database, "-o", str(output))
    options = (*POSTGRES, "-o", str(output), *NOW)
    with database.connect() as connection:
        connection.execute("INSERT INTO t VALUES (2)")
        middle = wal_end(connection)
        connection.execute("INSERT INTO t VALUES (3)")
        # The slot goes back to what it had confirmed before.
        connection.execute(
            "SELECT pg_copy_logical_replication_slot(slot_name, 'before') FROM pg_replication_slots"
            " WHERE database = current_database()"
        )
        finished = run_tail(*options, "--from-lsn", middle, dsn=database.dsn())
        assert finished.code == 0, finished.stderr
        assert " bytes of WAL from " in finished.stderr
        slot = next(name for name in names(connection) if name != "before")
        connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
        connection.execute("SELECT pg_copy_logical_replication_slot('before', %s)", [slot])
        (confirmed,) = next(position for name, *position in connection.execute(SLOTS) if name == slot)
        connection.execute("INSERT INTO t VALUES (4)")
    again = run_tail(*options, "--from-lsn", confirmed, dsn=database.dsn())
    assert again.code == 0, again.stderr
    events = [json.loads(line) for line in output.read_text().splitlines()]
    assert [event["new"]["id"] for event in events if "new" in event] == [1, 3, 4]


def test_a_position_that_was_asked_for_is_stored_before_it_is_confirmed(database: Database) -> None:
    """So a run that is killed before it had anything to print does not leave the slot ahead of the state."""
    slot = ran_once(database)
    database.psql("INSERT INTO t VALUES (2)")
    with database.connect() as connection:
        wanted = wal_end(connection)
        reached = f"SELECT 1 FROM pg_replication_slots WHERE slot_name = '{slot}' AND confirmed_flush_lsn >= '{wanted}'"
        with Tail(*POSTGRES, "--from-lsn", wanted, dsn=database.dsn()) as tail:
            eventually(lambda: connection.execute(reached).fetchone() is not None, 30)
            tail.kill()
        (stored,) = connection.execute("SELECT position::text FROM etl.pgrepl_pipelines").fetchall()[0]
        assert Lsn.parse(stored) >= Lsn.parse(wanted)
    again = run_tail(*POSTGRES, *NOW, dsn=database.dsn())
    assert (again.code, rows(again)) == (0, []), again.stderr


def test_a_position_is_not_stored_for_a_run_that_is_refused(database: Database, tmp_path: Path) -> None:
    """The next one would begin there, and pass over what lies between without a word."""
    output = tmp_path / "out.jsonl"
    ran_once(database)
    database.psql("INSERT INTO t VALUES (2)")
    output.write_text("of somebody else\n")
    with database.connect() as connection:
        wanted = wal_end(connection)
    refuses(
        database,
        *(*POSTGRES, "-o", str(output), "--from-lsn", wanted),
        code=2,
        message="is not empty and has no sidecar",
        hint="--append",
    )
    assert rows(run_tail(*POSTGRES, *NOW, dsn=database.dsn())) == [("insert", 2)]


def test_what_was_never_copied_is_printed_without_a_copy(database: Database) -> None:
    """The stored state stays, so that the next run with snapshots copies the table."""
    ran_once(database)
    database.psql('UPDATE etl.replication_state SET metadata = \'{"type": "data_sync"}\' WHERE is_current')
    database.psql("INSERT INTO t VALUES (2)")
    never = run_tail(*POSTGRES, "--snapshot", "never", *NOW, dsn=database.dsn())
    assert rows(never) == [("insert", 2)]
    assert rows(run_tail(*POSTGRES, *NOW, dsn=database.dsn())) == [("read", 1), ("read", 2)]


# --resnapshot.


def test_a_table_is_copied_again(database: Database, tmp_path: Path) -> None:
    """As another attempt, from where the stream is; the others go on as they were."""
    output = tmp_path / "out.jsonl"
    prepare(database)
    database.psql("CREATE TABLE u (id int PRIMARY KEY); INSERT INTO u VALUES (1); ALTER PUBLICATION pub ADD TABLE u")
    options = (*POSTGRES, "-o", str(output), *NOW)
    assert run_tail(*options, dsn=database.dsn()).code == 0
    database.psql("INSERT INTO t VALUES (2); INSERT INTO u VALUES (2)")
    before = len(output.read_text().splitlines())
    assert run_tail(*options, "--resnapshot", "public.t", dsn=database.dsn()).code == 0
    events = [json.loads(line) for line in output.read_text().splitlines()[before:]]
    copied = [(event["table"], event["op"], event["new"]["id"]) for event in events if "new" in event]
    assert sorted(copied) == [("t", "read", 1), ("t", "read", 2), ("u", "insert", 2)]
    assert [(event["table"], event["attempt"]) for event in events if event["op"] == "snapshot_begin"] == [("t", 2)]
    assert run_tail(*options, "--resnapshot", "all", dsn=database.dsn()).code == 0
    events = [json.loads(line) for line in output.read_text().splitlines()]
    begun = [(event["table"], event["attempt"]) for event in events if event["op"] == "snapshot_begin"]
    assert sorted(begun[3:]) == [("t", 3), ("u", 2)]


def test_an_errored_table_is_copied_again(database: Database) -> None:
    ran_once(database)
    database.psql(
        'UPDATE etl.replication_state SET metadata = \'{"type": "errored", "reason": "r"}\' WHERE is_current;'
        " INSERT INTO t VALUES (2)"
    )
    assert rows(run_tail(*POSTGRES, *NOW, dsn=database.dsn())) == []
    finished = run_tail(*POSTGRES, *NOW, "--resnapshot", "public.t", dsn=database.dsn())
    assert rows(finished) == [("read", 1), ("read", 2)]


def test_a_table_that_is_not_read_is_not_copied_again(database: Database) -> None:
    ran_once(database)
    database.psql("CREATE TABLE u (id int PRIMARY KEY)")
    refuses(
        database,
        *(*POSTGRES, "--resnapshot", "public.u"),
        code=2,
        message="--resnapshot names public.u, which this run does not read",
        hint="it reads public.t",
    )


def test_a_new_file_has_no_beginning(database: Database, tmp_path: Path) -> None:
    """That is said, with what to do about it."""
    ran_once(database)
    output = tmp_path / "out.jsonl"
    said = run_tail(*POSTGRES, "-o", str(output), *NOW, dsn=database.dsn()).stderr
    assert "the output begins in the middle" in said
    assert "--resnapshot all" in said
    options = (*POSTGRES, "-o", str(output), "--overwrite", *NOW)
    assert "begins in the middle" in run_tail(*options, dsn=database.dsn()).stderr
    assert "begins in the middle" not in run_tail(*options, "--resnapshot", "all", dsn=database.dsn()).stderr
    assert '"id":1' in output.read_text()


# --snapshot only.


@pytest.mark.parametrize("why", ["again", "new", "cut short", "slot"])
def test_only_a_copy_of_a_later_moment_than_the_slot(why: str, database: Database) -> None:
    """It is done when the stream has come to that moment, and what is printed on the way is no copy."""
    if why == "slot":
        prepare(database)
        run_tail("pub", "--keep-slot", "--slot", "mine", "--snapshot", "never", *NOW, dsn=database.dsn())
        options = ["pub", "--slot", "mine"]
    else:
        ran_once(database)
        options = [*POSTGRES]
    database.psql("INSERT INTO t VALUES (2)")
    before, copied = [("insert", 2)], {"t"}
    if why == "again":
        options += ["--resnapshot", "all"]
        before = []
    elif why == "new":
        database.psql(
            "CREATE TABLE u (id int PRIMARY KEY); INSERT INTO u VALUES (3); ALTER PUBLICATION pub ADD TABLE u"
        )
        copied = {"u"}
    elif why == "cut short":
        database.psql('UPDATE etl.replication_state SET metadata = \'{"type": "data_sync"}\' WHERE is_current')
        before = []
    else:
        before = []
    finished = run_tail(*options, "--snapshot", "only", dsn=database.dsn())
    assert finished.code == 0, finished.stderr
    events = finished.events
    assert {event["table"] for event in events if event["op"] == "snapshot_end"} == copied
    assert [(event["op"], event["new"]["id"]) for event in events if event["op"] == "insert"] == before
    assert {event["new"]["id"] for event in events if event["op"] == "read"} == ({3} if why == "new" else {1, 2})
    if why != "slot":
        again = run_tail(*POSTGRES, *NOW, dsn=database.dsn())
        assert (again.code, rows(again)) == (0, []), again.stderr


def test_a_copy_by_itself_that_is_begun_again(database: Database) -> None:
    """The stream is read after all when a worker of a fresh start has lost its snapshot."""
    prepare(database)
    database.psql(slowcopy.SCHEMA)
    options = ("slowly", "--store", "postgres", "--snapshot", "only")
    with database.connect() as connection, Tail(*options, dsn=database.dsn()) as tail:
        connection.execute("SELECT pg_terminate_backend(%s, 10000)", [slowcopy.copying_backend(connection)])
        connection.execute("INSERT INTO slow VALUES (1000, false, 'meanwhile')")
        finished = tail.finish()
    assert finished.code == 0, finished.stderr
    assert "the copy begins again" in finished.stderr
    events = finished.events
    assert [event["attempt"] for event in events if event["op"] == "snapshot_end"] == [2]
    # The last one with the second copy or after it.
    assert {event["new"]["id"] for event in events if "new" in event} == {*range(1, slowcopy.ROWS + 1), 1000}


def test_changes_alone_leave_a_timed_retry_to_a_later_run(database: Database) -> None:
    ran_once(database)
    retry = '{"type": "timed_retry", "next_retry": "2020-01-01T00:00:00.000000000Z"}'
    database.psql(
        f'UPDATE etl.replication_state SET metadata = \'{{"type": "errored", "reason": "r", "retry_policy": {retry}}}\''
        " WHERE is_current; INSERT INTO t VALUES (2)"
    )
    never = run_tail(*POSTGRES, "--snapshot", "never", *NOW, dsn=database.dsn())
    assert (never.code, never.events) == (0, []), never.stderr
    assert rows(run_tail(*POSTGRES, *NOW, dsn=database.dsn())) == [("read", 1), ("read", 2)]


# What cannot be meant.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep-slot", "--store", "postgres"], "--keep-slot goes with --store memory"),
        (["--keep-slot", "--slot", "mine", "--from-lsn", "0/1"], "--from-lsn needs a slot that is there"),
        (["--from-lsn", "0/1"], "--from-lsn needs a slot that is there"),
        (["--slot", "mine", "--from-lsn", "0/1", "--snapshot", "initial"], "--from-lsn takes no snapshot"),
        (["--slot", "mine", "--from-lsn", "0/1", "--snapshot", "only"], "--from-lsn takes no snapshot"),
        (["--slot", "mine", "--from-lsn", "0/2", "--until-lsn", "0/1"], "--until-lsn lies before --from-lsn"),
        (["--slot", "mine", "--from-lsn", "0/XY"], "0/XY"),
        (["--store", "postgres", "--from-lsn", "0/1", "--accept-slot-position"], "contradict each other"),
        (["--store", "postgres", "--from-lsn", "0/1", "--resnapshot", "a.b"], "takes no snapshot"),
        (["--store", "postgres", "--snapshot", "never", "--resnapshot", "all"], "takes no snapshot"),
        (["--resnapshot", "all"], "--resnapshot goes with a stored state"),
        (["--slot", "mine", "--resnapshot", "a.b"], "--resnapshot goes with a stored state"),
        (["--store", "postgres", "--resnapshot", "t"], "'t' is not a table's name"),
    ],
)
def test_contradictions(database18: Database, options: list[str], message: str) -> None:
    prepare(database18)
    with database18.connect() as connection:
        before = everything(connection)
        finished = run_tail("pub", *options, dsn=database18.dsn())
        assert everything(connection) == before
    assert (finished.code, finished.stdout) == (2, "")
    assert message in finished.stderr


def test_refusals_have_one_line(database18: Database) -> None:
    prepare(database18)
    refused(run_tail("pub", "--slot", "mine", dsn=database18.dsn()), 1, "slot mine does not exist", "--keep-slot")


def test_now_and_all_are_written_as_the_help_shows_them_or_in_capitals(database: Database) -> None:
    ran_once(database)
    for now, all_ in (("now", "all"), ("NOW", "ALL")):
        finished = run_tail(*POSTGRES, "--until-lsn", now, "--resnapshot", all_, dsn=database.dsn())
        assert finished.code == 0, finished.stderr
        assert [event["op"] for event in finished.events] == ["snapshot_begin", "read", "snapshot_end"]
    shown = run_tail("--help").stdout
    assert "--until-lsn LSN|now " in shown
    assert "--resnapshot SCHEMA.TABLE|all " in shown
