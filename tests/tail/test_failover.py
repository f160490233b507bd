"""A standby that was promoted: it goes on where the slot came along and nothing was read that the standby never had."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from tests.command import eventually
from tests.conftest import NewServer, NewStandby
from tests.servers.database import Database
from tests.tail.pipelines import POSTGRES, everything, prepare, refused
from tests.tail.running import Finished, Tail, run_tail

PIPELINE = (*POSTGRES, "--pipeline-id", "7")
SLOT = "supabase_etl_apply_7"
NOW = ("--until-lsn", "now")


class Pair:
    """A primary and its standby; ``dsn`` leads to whichever of the two takes writes."""

    def __init__(self, primary: Database, standby: Database) -> None:
        self.primary, self.standby = primary, standby
        hosts = f"{primary.server.host},{standby.server.host}"
        ports = f"{primary.server.port},{standby.server.port}"
        self.dsn = f"host={hosts} port={ports} user=postgres dbname=postgres target_session_attrs=read-write"

    def catch_up(self) -> None:
        """Wait until the standby has all that the primary has written."""
        with self.primary.connect() as connection:
            end = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
        with self.standby.connect() as connection:
            query = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
            eventually(lambda: connection.execute(query, end).fetchone() == (True,))

    def synchronize(self) -> None:
        """Bring the slot, of which somebody reads, to the standby: it must first come to where the standby began."""
        fillers = count(1000)
        ready = "SELECT NOT temporary FROM pg_replication_slots WHERE slot_name = %s AND synced"

        def there() -> bool:
            with self.primary.connect() as connection:
                connection.execute("SELECT pg_log_standby_snapshot()")
                connection.execute("INSERT INTO t VALUES (%s)", [next(fillers)])
            with self.standby.connect() as connection:
                return connection.execute(ready, [SLOT]).fetchone() == (True,)

        eventually(there, 60)
        self.catch_up()

    def cut_off(self) -> None:
        """Let the standby receive nothing any more."""
        self.catch_up()
        with self.standby.connect() as connection:
            connection.execute("ALTER SYSTEM SET primary_conninfo = ''")
            connection.execute("SELECT pg_reload_conf()")
            receives = "SELECT count(*) FROM pg_stat_wal_receiver"
            eventually(lambda: connection.execute(receives).fetchone() == (0,))

    def fail_over(self) -> None:
        """Lose the primary and promote the standby."""
        self.primary.server.stop(immediate=True)
        with self.standby.connect() as connection:
            assert connection.execute("SELECT pg_promote()").fetchone() == (True,)


def pair(new_server: NewServer, standby: NewStandby, version: int) -> Pair:
    primary = Database(new_server(version), "postgres")
    prepare(primary)
    primary.psql("SELECT pg_create_physical_replication_slot('standby1', true)")
    settings = {"primary_slot_name": "standby1", "hot_standby_feedback": "on"}
    if version >= 17:
        settings["sync_replication_slots"] = "on"
    second = standby(primary.server, **settings)
    return Pair(primary, Database(second, "postgres"))


@pytest.fixture
def failover_slot(new_server: NewServer, standby: NewStandby) -> Pair:
    """A pair of 18 and a pipeline's slot that can survive a failover."""
    made = pair(new_server, standby, 18)
    made.primary.psql(f"SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput', false, false, true)")
    return made


def insert(database: Database, number: int) -> None:
    database.psql(f"INSERT INTO t VALUES ({number})")


def ids(finished: Finished) -> list[int]:
    return [event["new"]["id"] for event in finished.events if "new" in event and event["new"]["id"] < 1000]


def is_row(number: int):  # type: ignore[no-untyped-def]
    return lambda event: event.get("new", {}).get("id") == number


def test_goes_on_over_a_failover(failover_slot: Pair) -> None:
    """In the run that is going on, and in the next one."""
    servers = failover_slot
    with Tail(*PIPELINE, dsn=servers.dsn) as tail:
        tail.until_op("snapshot_end")
        insert(servers.primary, 2)
        tail.until(is_row(2))
        servers.synchronize()
        servers.fail_over()
        said = tail.until_stderr("timeline 2 now, 1 before", 60)
        assert f"slot {SLOT} came along in the failover, going on from " in said
        insert(servers.standby, 3)
        tail.until(is_row(3), 60)
        finished = tail.stop()
    assert finished.code == 143
    assert ids(finished) == [1, 2, 3]
    with servers.standby.connect() as connection:
        assert connection.execute("SELECT timeline FROM etl.pgrepl_pipelines").fetchall() == [(2,)]
    again = run_tail(*PIPELINE, *NOW, dsn=servers.dsn)
    assert (again.code, again.stdout) == (0, "")
    assert "timeline" not in again.stderr


def test_starts_again_after_a_failover(failover_slot: Pair) -> None:
    servers = failover_slot
    with Tail(*PIPELINE, dsn=servers.dsn) as tail:
        tail.until_op("snapshot_end")
        servers.synchronize()
        assert tail.stop().code == 143
    insert(servers.primary, 2)
    servers.catch_up()
    servers.fail_over()
    insert(servers.standby, 3)
    finished = run_tail(*PIPELINE, *NOW, dsn=servers.dsn)
    assert finished.code == 0, finished.stderr
    assert "timeline 2 now, 1 before" in finished.stderr
    assert ids(finished) == [2, 3]


def test_what_only_the_old_primary_had(failover_slot: Pair, tmp_path: Path) -> None:
    """Its changes were read beyond the fork, so what the new one writes there would be taken for old."""
    servers = failover_slot
    output = tmp_path / "out.jsonl"
    options = (*PIPELINE, "-o", str(output), "--fsync-interval", "100ms")
    with Tail(*options, dsn=servers.dsn) as tail:
        tail.until_stderr("snapshot: ")
        insert(servers.primary, 2)
        eventually(lambda: '"id":2' in output.read_text(), 30)
        servers.synchronize()
        servers.cut_off()
        with servers.primary.connect() as connection:
            here = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
            insert(servers.primary, 3)
            query = f"SELECT confirmed_flush_lsn > %s::pg_lsn FROM pg_replication_slots WHERE slot_name = '{SLOT}'"
            eventually(lambda: connection.execute(query, here).fetchone() == (True,), 30)
        servers.fail_over()
        servers.standby.psql("INSERT INTO t SELECT i FROM generate_series(10000, 15000) i")
        finished = tail.finish(60)
    message = "timeline 2 left timeline 1 at "
    refused(finished, 5, message, f"'pgrepl slots drop {SLOT}' and 'pgrepl state reset --all --slot {SLOT}'")
    # The state went back with the server; the file did not.
    with servers.standby.connect() as connection:
        stored = everything(connection)
        refused(run_tail(*options, dsn=servers.dsn), 5, message, "pgrepl slots drop")
        assert everything(connection) == stored


def test_slot_that_does_not_come_along(new_server: NewServer, standby: NewStandby) -> None:
    """As always on 16."""
    servers = pair(new_server, standby, 16)
    with Tail(*PIPELINE, dsn=servers.dsn) as tail:
        tail.until_op("snapshot_end")
        insert(servers.primary, 2)
        tail.until(is_row(2))
        servers.catch_up()
        servers.fail_over()
        finished = tail.finish(60)
    hint = f"'pgrepl state reset --all --slot {SLOT}', then start again"
    refused(finished, 5, f"the slot {SLOT} is gone since the failover to timeline 2", hint)
    again = run_tail(*PIPELINE, dsn=servers.dsn)
    refused(again, 5, "it did not come along in the failover from timeline 1 to 2", hint)
    assert again.stdout == ""
