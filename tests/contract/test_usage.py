"""Mistakes on the command line: exit code 2, one line and a hint on stderr, nothing on stdout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import pgrepl
from tests.contract.commands import every_command, leaves

MISTAKES = {
    "tial": ("no such command 'tial'", "did you mean tail? see 'pgrepl --help'"),
    "xyz": ("no such command 'xyz'", "see 'pgrepl --help'"),
    "slots dorp": ("no such command 'dorp'", "did you mean drop? see 'pgrepl slots --help'"),
    "tail --fromat json": ("no such option '--fromat'", "did you mean --format? see 'pgrepl tail --help'"),
    "tail --format xml": ("invalid value for '--format'", "see 'pgrepl tail --help'"),
    "tail --limit 0": ("invalid value for '--limit'", "see 'pgrepl tail --help'"),
    "tail --for soon": ("'soon' is not a duration like 500ms", "see 'pgrepl tail --help'"),
    "tail --until-lsn 16B3748": ("invalid value for '--until-lsn'", "see 'pgrepl tail --help'"),
    "tail --table orders": ("write schema.table", "see 'pgrepl tail --help'"),
    "tail --limit": ("option '--limit' requires an argument", "see 'pgrepl tail --help'"),
    "tail": ("name the publication", "see 'pgrepl tail --help'"),
    "tail a b": ("got unexpected extra argument (b)", "see 'pgrepl tail --help'"),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_named_with_the_way_out(line: str) -> None:
    message, hint = MISTAKES[line]
    done = pgrepl(*line.split())
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("pgrepl: error: ")
    assert message in first
    assert second == f"hint: {hint}"


def own_options() -> list[str]:
    """Leave out a command that passes options on."""
    passing_on = "ignore_unknown_options"
    return [name for name, command in every_command().items() if not command.context_settings.get(passing_on)]


@pytest.mark.parametrize("name", own_options())
def test_an_unknown_option_of_any_command(name: str) -> None:
    done = pgrepl(*name.split(), "--hepl")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "pgrepl: error: no such option '--hepl'",
        f"hint: did you mean --help? see '{f'pgrepl {name}'.strip()} --help'",
    ]


@pytest.mark.parametrize("name", sorted(every_command().keys() - leaves().keys()))
def test_a_group_alone_shows_its_help_on_stderr(name: str) -> None:
    done = pgrepl(*name.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == pgrepl(*name.split(), "--help").stdout


@pytest.mark.parametrize("line", ["--help", "--version", "slots list --help", "tial", "tail --bogus", ""])
def test_the_module_and_the_script_are_the_same(line: str) -> None:
    script = Path(sys.executable).with_name("pgrepl")
    done = subprocess.run([script, *line.split()], capture_output=True, text=True, check=False)
    module = subprocess.run(
        [sys.executable, "-m", "pgrepl", *line.split()], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (module.returncode, module.stdout, module.stderr)
