"""Copies that an end of the run cuts short: tail says at its end which, and what becomes of them."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.fault import slowcopy
from tests.servers.database import Database
from tests.tail import pipelines
from tests.tail.running import Tail, run_tail

_AGAIN = "it begins again with the next run"
_LOST = "not all of their rows were printed"


@pytest.fixture
def many(database18: Database) -> Database:
    pipelines.prepare(database18)
    database18.psql("""
        CREATE TABLE "Odd" (id int PRIMARY KEY);
        INSERT INTO "Odd" SELECT generate_series(1, 20000);
        CREATE PUBLICATION pair FOR TABLE t, "Odd";
        CREATE PUBLICATION odd FOR TABLE "Odd";
    """)
    return database18


def test_with_a_stored_state_the_copy_begins_again(many: Database, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ("odd", "--store", "postgres", "-o", str(output))
    finished = run_tail(*arguments, "--limit", "2", dsn=many.dsn())
    assert finished.code == 0, finished.stderr
    assert f"the copy of 1 table is cut short (public.Odd); {_AGAIN}" in finished.stderr
    # And so it does.
    finished = run_tail(*arguments, "--until-lsn", "now", dsn=many.dsn())
    assert finished.code == 0, finished.stderr
    assert "cut short" not in finished.stderr
    assert '"attempt":2,"rows":20000' in output.read_text().splitlines()[-1]


def test_without_one_the_output_is_not_whole(many: Database) -> None:
    finished = run_tail("odd", "--limit", "2", dsn=many.dsn())
    assert (finished.code, len(finished.events)) == (0, 3)
    assert f"the copy of 1 table is cut short (public.Odd); {_LOST}" in finished.stderr
    assert "cut short" not in run_tail("odd", "--limit", "2", "-q", dsn=many.dsn()).stderr


@pytest.mark.parametrize("store", ["memory", "postgres"])
def test_what_was_copied_whole_is_not_named(many: Database, store: str) -> None:
    for arguments in (["--snapshot", "only"], ["--until-lsn", "now"]):
        finished = run_tail("pair", "--store", store, *arguments, dsn=many.dsn())
        assert finished.code == 0, finished.stderr
        assert "cut short" not in finished.stderr


@pytest.mark.parametrize("store", ["memory", "postgres"])
def test_signals_and_the_clock_cut_a_copy_short_too(many: Database, store: str) -> None:
    many.psql(slowcopy.SCHEMA)
    said = f"the copy of 1 table is cut short (public.slow); {_LOST if store == 'memory' else _AGAIN}"
    arguments = ("slowly,odd", "--store", store)
    with Tail(*arguments, "--for", "10s", dsn=many.dsn()) as tail, many.connect() as connection:
        tail.until(lambda event: event["op"] == "snapshot_end" and event["table"] == "Odd")
        with slowcopy.halted(connection):
            finished = tail.finish()
    assert finished.code == 0
    assert said in finished.stderr, finished.stderr
    with many.connect() as connection:
        slowcopy.none_left(connection)
        with Tail(*arguments, dsn=many.dsn()) as tail, slowcopy.halted(connection):
            finished = tail.stop(signal.SIGTERM)
    assert finished.code == 143
    assert "the copy of " in finished.stderr, finished.stderr
    assert "public.slow" in finished.stderr


def test_of_many_tables_the_first_are_named(many: Database) -> None:
    many.psql(
        "".join(
            f"CREATE TABLE t{number} (id int PRIMARY KEY); INSERT INTO t{number} VALUES (1);"
            f"ALTER PUBLICATION pair ADD TABLE t{number};"
            for number in range(8)
        )
    )
    finished = run_tail("pair", "--store", "postgres", "--limit", "1", "--jobs", "1", dsn=many.dsn())
    assert finished.code == 0, finished.stderr
    assert "the copy of 10 tables is cut short (public.Odd, public.t, public.t0, public.t1, public.t2, …);" in (
        finished.stderr
    )
