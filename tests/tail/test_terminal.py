"""What tail shows at a terminal: the live line, and the question before a large copy."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.fault import slowcopy
from tests.servers.database import Database
from tests.tail.running import Tail
from tests.tail.terminal import TerminalTail

_BAR = "[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]"


@pytest.fixture
def shop(database18: Database) -> Database:
    database18.psql("""
        CREATE TABLE a (id int PRIMARY KEY);
        INSERT INTO a VALUES (1), (2);
        CREATE PUBLICATION pub FOR TABLE a;
    """)
    return database18


def test_the_live_line_of_a_stream_has_rows_pace_lag_and_spool(shop: Database, tmp_path: Path) -> None:
    with TerminalTail("pub", dsn=shop.dsn(), stdout=tmp_path / "out") as tail:
        tail.until_shown(r"streaming: 2 rows, [\d,]+ rows/s, \d+ bytes behind, 0 bytes spooled, at [0-9A-F]+/[0-9A-F]+")
        shop.psql("INSERT INTO a SELECT generate_series(3, 1500)")
        tail.until_shown(r"streaming: 1,500 rows, ")
        assert tail.stop() == 143
        # The line is taken away at the end, and what is said stays.
        assert tail.shown.endswith("stopped: 1500 rows, 1 transactions, up to " + tail.shown.rsplit(" ", 1)[1])


def test_the_live_line_of_a_copy_has_tables_rows_and_what_is_spooled(database18: Database, tmp_path: Path) -> None:
    database18.psql(slowcopy.SCHEMA)
    with (
        TerminalTail("slowly", dsn=database18.dsn(), stdout=tmp_path / "out", columns=60) as tail,
        database18.connect() as connection,
    ):
        tail.until_shown("snapshot: 1 table, rows unknown, ")
        with slowcopy.halted(connection):
            connection.execute("INSERT INTO slow SELECT i, false, repeat('x', 100) FROM generate_series(1, 100) i")
            tail.until_shown(
                r"copying: 0 of 1 tables, \d+ of unknown rows, [\d,]+ rows/s, [\d.]+ \w+ behind, \d+ kB spooled"
            )
        tail.until_shown(r"streaming: [\d,]+ rows, .* 0 bytes spooled")
        assert tail.stop() == 143
    assert len((tmp_path / "out").read_text().splitlines()) == 162


def test_the_live_line_counts_with_the_estimate_once_there_is_one(database18: Database, tmp_path: Path) -> None:
    database18.psql(slowcopy.SCHEMA)
    with database18.connect() as connection:
        connection.execute("VACUUM ANALYZE slow")
        with TerminalTail("slowly", dsn=database18.dsn(), stdout=tmp_path / "out") as tail:
            tail.until_shown(f"snapshot: 1 table, about {slowcopy.ROWS} rows, ")
            tail.until_shown(rf"copying: 0 of 1 tables, \d+ of about {slowcopy.ROWS} rows, ")
            assert tail.stop() == 143


@pytest.mark.parametrize("arguments", [["--no-progress"], ["-q"], ["--format", "pretty", "-o", "/dev/stderr"]])
def test_the_live_line_can_be_left_out(shop: Database, tmp_path: Path, arguments: list[str]) -> None:
    shown = arguments[0] == "--format"
    with TerminalTail("pub", *arguments, "--for", "2s", dsn=shop.dsn(), stdout=tmp_path / "out") as tail:
        assert tail.finish() == 0
        assert ("streaming: " in tail.shown) is shown


def test_without_a_terminal_a_live_line_has_to_be_asked_for(shop: Database) -> None:
    with Tail("pub", dsn=shop.dsn()) as tail:
        tail.until_op("snapshot_end")
        assert "rows/s" not in tail.stop().stderr
    with Tail("pub", "--progress", dsn=shop.dsn()) as tail:
        stderr = tail.until_stderr(" rows/s, 0 bytes behind, 0 bytes spooled")
        assert "pgrepl: copying: " in stderr or "pgrepl: streaming: " in stderr
        assert "\x1b" not in tail.stop().stderr


def make_large(database: Database, table: str) -> None:
    """Let a table take more than a gigabyte, of which the disk has nothing."""
    data = database.psql("SHOW data_directory").strip()
    path = database.psql(f"SELECT pg_relation_filepath('{table}')").strip()
    # The visibility map is a part of the size, and no copy reads it.
    owner = (Path(data) / path).stat()
    fork = Path(data) / f"{path}_vm"
    fork.touch()
    os.truncate(fork, (1 << 30) + (1 << 20))
    os.chown(fork, owner.st_uid, owner.st_gid)


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("\n", 0), ("n\n", 1)])
def test_a_gigabyte_is_asked_about_at_a_terminal(shop: Database, tmp_path: Path, answer: str, code: int) -> None:
    make_large(shop, "a")
    with TerminalTail("pub", "--snapshot", "only", dsn=shop.dsn(), stdout=tmp_path / "out") as tail:
        tail.until_shown(r"Copy 1.0 GB\? \[Y/n\]")
        tail.type(answer)
        assert tail.finish() == code
        assert ("nothing was copied, as you said" in tail.shown) is (code == 1)
    operations = [json.loads(line)["op"] for line in (tmp_path / "out").read_text().splitlines()]
    assert operations == (["snapshot_begin", "read", "read", "snapshot_end"] if code == 0 else [])
    assert shop.psql("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()").strip() == "0"


def test_a_gigabyte_is_copied_without_a_question_elsewhere(shop: Database) -> None:
    make_large(shop, "a")
    with Tail("pub", "--snapshot", "only", dsn=shop.dsn()) as tail:
        finished = tail.finish()
    assert (finished.code, len(finished.events)) == (0, 4)
    assert "snapshot: 1 table, rows unknown, 1.0 GB" in finished.stderr
