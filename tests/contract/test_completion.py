"""Completion of commands, options and of names from a live server, in the shells themselves."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import psycopg
import pytest

from tests.servers.database import Database
from tests.servers.server import Server

ROOT = Path(__file__).resolve().parents[2]
# bash is the one that every test machine has.
SHELLS = ["bash", *(shell for shell in ("zsh", "fish") if shutil.which(shell))]
SCHEMA = """
CREATE PUBLICATION orders_eu; CREATE PUBLICATION orders_us; CREATE PUBLICATION "My Pub";
SELECT pg_create_logical_replication_slot('reader_' || current_database(), 'pgoutput');
SELECT pg_create_logical_replication_slot('writer_' || current_database(), 'pgoutput');
"""


@pytest.fixture
def database(database18: Database) -> Database:
    """A database with three publications and two slots."""
    database18.psql(SCHEMA)
    return database18


def complete(line: str, shell: str = "bash", **environment: str) -> list[str]:
    """Ask as the scripts do, and return the lines of the answer."""
    variables = {**os.environ, "_PGREPL_COMPLETE": f"{shell}_complete", "COMP_WORDS": line, **environment}
    done = subprocess.run(
        [sys.executable, "-m", "pgrepl"], env=variables, capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip().splitlines()


def values(line: str, **environment: str) -> list[str]:
    return [text.split("\t")[1] for text in complete(line, **environment)]


def test_commands_options_and_choices() -> None:
    assert complete("pgrepl ta") == ["plain\ttail"]
    assert complete("pgrepl slots dr") == ["plain\tdrop"]
    assert complete("pgrepl slots drop --if") == ["plain\t--if-exists"]
    assert values("pgrepl tail --format ") == ["json", "pretty"]
    assert values("pgrepl tail --format=pr") == ["pretty"]
    assert complete("pgrepl tail --format=pr", "fish") == ["plain\t--format=pretty"]
    assert complete("pgrepl tail -o some") == ["file\tsome"]
    assert complete("pgrepl doctor -c some") == ["file\tsome"]
    assert complete("pgrepl sl", "zsh")[0].startswith("plain\tslots\tShow replication slots")


@pytest.mark.parametrize(
    "command", ["tail", "doctor", "setup", *(f"publications {verb}" for verb in ("show", "coverage", "add", "remove"))]
)
def test_publications_of_the_server_that_the_line_means(database: Database, command: str, tmp_path: Path) -> None:
    dsn = database.dsn()
    config = tmp_path / "some config.toml"
    config.write_text(
        f'[[databases]]\nhost = "{database.server.host}"\nport = {database.server.port}\ndbname = "{database.name}"\n'
    )
    found = ["orders_eu", "orders_us"]
    assert values(f"pgrepl {command} orders", PGREPL_DSN=dsn) == found
    assert values(f"pgrepl {command} -d '{dsn}' orders") == found
    assert values(f"pgrepl {command} --dsn='{dsn}' orders") == found
    assert values(f"pgrepl {command} -c '{config}' orders") == found
    assert values(f"pgrepl {command} orders_u", PGREPL_CONFIG=str(config)) == ["orders_us"]
    assert set(values(f"pgrepl {command} ", PGREPL_DSN=dsn)) == {*found, "My\\ Pub"}
    assert values(f"pgrepl {command} 'My P", PGREPL_DSN=dsn) == ["My Pub"]
    assert values(f"pgrepl {command} My\\ P", PGREPL_DSN=dsn) == ["My\\ Pub"]


def test_several_publications(database: Database) -> None:
    assert values("pgrepl tail orders_eu,orders", PGREPL_DSN=database.dsn()) == ["orders_eu,orders_us"]


def test_slots_with_their_verdict(database: Database) -> None:
    reader, writer = f"reader_{database.name}", f"writer_{database.name}"
    assert {reader, writer} <= set(values("pgrepl slots drop ", PGREPL_DSN=database.dsn()))
    assert values("pgrepl slots drop rea", PGREPL_DSN=database.dsn()) == [reader]
    assert values(f"pgrepl slots drop {reader} rea", PGREPL_DSN=database.dsn()) == []
    assert values("pgrepl doctor --slot wri", PGREPL_DSN=database.dsn()) == [writer]
    [line] = complete(f"pgrepl slots drop {writer}", "zsh", PGREPL_DSN=database.dsn())
    assert len(line.split("\t")) == 3


@pytest.mark.parametrize("verb", ["show", "history t", "rollback t", "reset", "adopt", "release"])
def test_slots_of_states(database: Database, verb: str) -> None:
    assert values(f"pgrepl state {verb} --slot wri", PGREPL_DSN=database.dsn()) == [f"writer_{database.name}"]


def test_migrations() -> None:
    assert values("pgrepl migrations apply --to 2026") == ["20260415090000", "20260415100000"]
    assert values("pgrepl migrations sql 2025") == ["20250827000000"]
    assert complete("pgrepl migrations verify some") == ["dir\tsome"]
    assert complete("pgrepl migrations seed --checksums some") == ["dir\tsome"]


@contextmanager
def silent_server() -> Iterator[int]:
    """A server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_without_an_answer_there_is_nothing_and_soon() -> None:
    with silent_server() as port:
        for dsn in (f"host=127.0.0.1 port={port}", "host=/nonexistent", "nonsense", "host=no.such.host.invalid"):
            seconds = []
            for command in ("tail", "slots drop", "doctor --slot"):
                start = time.monotonic()
                assert complete(f"pgrepl {command} ", PGREPL_DSN=dsn) == []
                seconds.append(time.monotonic() - start)
            # A person waits for it, but a busy machine is no reason to fail: without a limit it would be a minute.
            assert min(seconds) < 5, dsn
        assert complete("pgrepl tail -c /nonexistent.toml ") == []


def test_completion_leaves_no_session(database: Database) -> None:
    values("pgrepl slots drop ", PGREPL_DSN=database.dsn())
    with database.connect() as conn:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgrepl completion' AND datname = %s"
        deadline = time.monotonic() + 10
        while conn.execute(query, [database.name]).fetchone() != (0,):
            assert time.monotonic() < deadline


class Terminal:
    """An interactive shell that has read pgrepl's completion script."""

    _START: ClassVar = {
        "bash": (["bash", "--norc", "--noprofile", "-i"], "source completions/pgrepl.bash"),
        "zsh": (["zsh", "-f", "-i"], "fpath=($PWD/completions $fpath); autoload -U compinit; compinit -u -D"),
        "fish": (["fish", "--no-config", "--interactive"], "source completions/pgrepl.fish"),
    }

    def __init__(self, shell: str, directory: Path) -> None:
        command, source = self._START[shell]
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(directory),
            "TERM": "xterm",
            "PS1": "ready> ",
        }
        self._pid, self._ours = pty.fork()
        if self._pid == 0:
            os.chdir(ROOT)
            os.execvpe(command[0], command, environment)  # noqa: S606  becomes the shell
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("4H", 50, 300, 0, 0))
        self.type(f"{source}; echo loa''ded\n")
        self.wait_for("loaded")

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def wait_for(self, text: str, seconds: float = 20) -> None:
        """Wait until the terminal shows a text."""
        shown, deadline = "", time.monotonic() + seconds
        while text not in self._visible(shown):
            assert select.select([self._ours], [], [], max(0, deadline - time.monotonic()))[0], shown
            shown += os.read(self._ours, 4096).decode(errors="replace")

    @staticmethod
    def _visible(shown: str) -> str:
        """Leave out what only moves the cursor or changes the style, and characters that were written over."""
        text = re.sub(r"\x1b(\[[0-9;?>=]*[a-zA-Z]|[=>]|\(B|\][^\x07]*\x07)|[\r\n]", "", shown)
        while "\x08" in text:
            text = re.sub(r"(^|[^\x08])\x08", "", text)
        return text

    def close(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._ours)


@pytest.fixture(params=SHELLS)
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    """Each shell that is here."""
    terminal = Terminal(request.param, tmp_path)
    yield terminal
    terminal.close()


def test_the_tab_key(terminal: Terminal, database: Database, server18: Server) -> None:
    # An unquoted URI is what bash takes apart at its colons.
    uri = f"postgresql://postgres:{quote(server18.password)}@127.0.0.1:{server18.port}/{database.name}"
    with psycopg.connect(uri):
        terminal.type(f"pgrepl slots dr\t-d {uri} read\t")
        terminal.wait_for(f"pgrepl slots drop -d {uri} reader_{database.name}")
    terminal.type(" --if\t")
    terminal.wait_for("--if-exists")
    terminal.type(" --format=jsonl --color=al\t")
    terminal.wait_for("--color=always")
    terminal.type(f"\x15pgrepl tail -d {uri} orders_eu,orders\t")
    terminal.wait_for("orders_eu,orders_us")
    terminal.type(f"\x15pgrepl tail -d {uri} -o pyproj\t")
    terminal.wait_for("-o pyproject.toml")
