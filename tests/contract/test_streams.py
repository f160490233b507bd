"""What goes to which stream and how: closed and full ones, colours, and errors as JSON."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import pgrepl
from tests.servers.database import Database

PGREPL = [sys.executable, "-m", "pgrepl"]
RED = "\x1b[31merror: \x1b[0m"


@pytest.mark.parametrize("line", ["--help", "--version", "tail --help"])
def test_a_closed_pipe_ends_it_quietly(line: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*PGREPL, *line.split()], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("line", ["slots list --json", "doctor", "doctor --json"])
def test_a_reader_that_is_gone_ends_a_report_quietly(database18: Database, line: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*PGREPL, *line.split(), "-d", database18.dsn()], stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert done.returncode == 141
    assert b"error" not in done.stderr


def test_a_reader_that_goes_away_ends_tail_quietly(database18: Database) -> None:
    database18.psql(
        "CREATE TABLE many AS SELECT g AS id, repeat('x', 200) AS text FROM generate_series(1, 20000) g;"
        "ALTER TABLE many ADD PRIMARY KEY (id); CREATE PUBLICATION pub FOR TABLE many;"
    )
    command = [*PGREPL, "tail", "pub", "-q", "-d", database18.dsn()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())
        process.stdout.close()
        assert (process.wait(30), process.stderr.read()) == (141, b"")


def test_a_full_disk_is_an_error_in_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*PGREPL, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "pgrepl: error: input or output failed: no space left on device\n"


def test_closed_streams_are_no_trouble() -> None:
    for closed, code in (("<&-", 2), (">&-", 2), ("2>&-", 2), ("<&- >&- 2>&-", 2)):
        command = f'"$0" -m pgrepl setup {closed}'
        done = subprocess.run(
            ["sh", "-c", command, sys.executable], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (code, "")
        assert "Traceback" not in done.stderr
        assert "defect" not in done.stderr


def test_colour_is_as_the_flag_says() -> None:
    assert RED not in pgrepl("tail", "--bogus").stderr
    assert RED in pgrepl("tail", "--bogus", "--color", "always").stderr
    assert RED in pgrepl("tail", "--bogus", "--color=always", NO_COLOR="1").stderr
    assert RED in pgrepl("tail", "--color", "always").stderr


@pytest.mark.parametrize(
    ("flag", "environment", "colored"),
    [
        ("auto", {}, True),
        ("never", {}, False),
        ("auto", {"NO_COLOR": "1"}, False),
        ("auto", {"NO_COLOR": ""}, True),
        ("auto", {"TERM": "dumb"}, False),
        ("always", {"NO_COLOR": "1"}, True),
    ],
)
def test_colour_on_a_terminal(flag: str, environment: dict[str, str], colored: bool) -> None:
    ours, theirs = pty.openpty()
    variables = {**os.environ, "TERM": "xterm", **environment}
    subprocess.run([*PGREPL, "tail", "--color", flag, "--bogus"], stderr=theirs, env=variables, check=False)
    os.close(theirs)
    assert (RED in os.read(ours, 4096).decode()) is colored
    os.close(ours)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("tail --log-format json --bogus", 2),
        ("tail --log-format=json", 2),
        ("tail --log-format json pub -d nonsense", 2),
        ("tail --log-format json pub -d host=/nonexistent", 3),
        ("slots list --log-format json --debug -d host=/nonexistent", 3),
        ("doctor --log-format json -d host=/nonexistent", 3),
        ("setup --log-format json --yes -d host=/nonexistent", 3),
    ],
)
def test_errors_as_json_are_one_object_a_line(line: str, code: int) -> None:
    done = pgrepl(*line.split())
    assert done.returncode == code
    objects = [json.loads(text) for text in done.stderr.splitlines()]
    assert all({"time", "level", "message"} <= each.keys() for each in objects)
    assert [each["level"] for each in objects].count("error") == 1
    assert objects[-1]["level"] == "error"
