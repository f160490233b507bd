"""The copy of a new table that cannot begin for a long time: it is said why, and the stream of the others goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import NewServer
from tests.servers.database import Database
from tests.tail.pipelines import POSTGRES, prepare
from tests.tail.running import Tail

_KB = 1000
_LIMIT = "1MB"


@contextmanager
def long_transaction(database: Database) -> Iterator[str]:
    """Keep slots from being built; gives what is said about it."""
    with database.connect(application_name="night job") as other:
        other.execute("BEGIN; SELECT pg_current_xact_id()")
        yield "its slot waits for pid"
        other.execute("COMMIT")


@contextmanager
def other_slot(database: Database) -> Iterator[str]:
    """Take the last slot."""
    with database.connect() as other:
        other.execute("SELECT pg_create_physical_replication_slot('other')")
        yield "all replication slots are in use"
        other.execute("SELECT pg_drop_replication_slot('other')")


@pytest.mark.parametrize("streaming", ["on", "off"])
@pytest.mark.parametrize("obstacle", [long_transaction, other_slot])
def test_what_comes_meanwhile_does_not_fill_the_spool(
    obstacle: Callable[[Database], Iterator[str]], streaming: str, new_server: NewServer
) -> None:
    """Of a table without a snapshot 8 times the limit is written, in small transactions and in a large one."""
    server = new_server(18, max_replication_slots="2", logical_decoding_work_mem="256kB")
    database = Database(server, "postgres")
    prepare(database)
    options = ("--refresh", "1s", "--spool-limit", _LIMIT, "--streaming", streaming)
    with Tail(*POSTGRES, *options, dsn=database.dsn()) as tail, database.connect() as connection:
        tail.until_op("snapshot_end")
        with obstacle(database) as reason:  # type: ignore[attr-defined]
            connection.execute("CREATE TABLE late (id int PRIMARY KEY, filler text)")
            connection.execute("ALTER PUBLICATION pub ADD TABLE late")
            tail.until_stderr(reason)
            for begin in range(0, 4 * _KB, 100):
                connection.execute(_rows(begin, begin + 100))
            with connection.transaction():
                connection.execute(_rows(4 * _KB, 8 * _KB))
                connection.execute("INSERT INTO t VALUES (2)")
            connection.execute("INSERT INTO t VALUES (3)")
            tail.until(lambda event: event.get("table") == "t" and event.get("new", {}).get("id") == 3, 60)
            assert not any(event.get("table") == "late" for event in tail.events)
        tail.until(lambda event: event["op"] == "snapshot_end" and event["table"] == "late", 60)
        connection.execute(_rows(8 * _KB, 8 * _KB + 1))
        tail.until(lambda event: event.get("table") == "late" and event.get("new", {}).get("id") == 8 * _KB, 60)
        assert tail.stop().code == 143
    late = Counter(event["new"]["id"] for event in tail.events if event.get("table") == "late" and "new" in event)
    assert late == Counter(range(8 * _KB + 1))
    assert [event["new"]["id"] for event in tail.events if event.get("table") == "t" and "new" in event] == [1, 2, 3]


def _rows(begin: int, end: int) -> str:
    return f"INSERT INTO late SELECT n, repeat('x', 1000) FROM generate_series({begin}, {end - 1}) n"
