"""Commands of pgrepl that messages and hints name are commands that it has, with options that they take."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click
import pytest

from pgrepl.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]

# In quotes, or where a text or a part of it begins; what stands elsewhere is prose about pgrepl.
_NAMED = re.compile(r"'pgrepl ([^']+)'|(?:^|\(|[a-z]: )pgrepl ([a-z][^);,'\n]*)")


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Give the texts of a program with their lines; what is put into one is an ``x``."""
    inside: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            inside.update(id(part) for part in node.values)
            yield (
                node.lineno,
                "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value


def commands(source: str) -> Iterator[tuple[int, list[str]]]:
    """Give the commands that the texts of a program name, as words, with their lines."""
    for line, text in texts(source):
        for quoted, plain in _NAMED.findall(text):
            words = (quoted or plain).split()
            if quoted or words[0] in cli.list_commands(click.Context(cli)):
                yield line, words


def check(words: list[str]) -> None:
    """Fail unless there is such a command, and the options are its own and have values that they take."""
    command: click.Command = cli
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(click.Context(command), rest[0])
        assert found is not None, f"there is no command {' '.join(words)}"
        command = found
        del rest[0]
    context = click.Context(command)
    options = {
        flag: option for option in command.get_params(context) for flag in (*option.opts, *option.secondary_opts)
    }
    # What follows a -- belongs to another program.
    ours = rest[: rest.index("--")] if "--" in rest else rest
    for word, value in pairwise([*ours, ""]):
        flag = word.rstrip(".:")
        if flag.startswith("-"):
            assert flag in options, f"{' '.join(words)} has no {flag}"
            option = options[flag]
            if isinstance(option.type, click.Choice) and not value.isupper() and value not in ("x", "…"):
                assert value in option.type.choices, f"{' '.join(words)}: {value!r}"


@pytest.mark.parametrize("path", sorted((ROOT / "pgrepl").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_named_commands_exist(path: Path) -> None:
    for line, words in commands(path.read_text()):
        try:
            check(words)
        except AssertionError as error:
            raise AssertionError(f"{path.relative_to(ROOT)}:{line}: {error}") from None


def test_the_test_finds_them() -> None:
    source = """a("gone", hint=f"'pgrepl slots drop {name}' or (pgrepl slots list), with: pgrepl tail x --limit 1")"""
    assert [" ".join(words) for _, words in commands(source)] == ["slots drop x", "slots list", "tail x --limit 1"]
    for wrong in ("slots remove x", "tail x --limits 1", "tail x --store bookmarks", "state reset --pipeline 1"):
        with pytest.raises(AssertionError):
            check(wrong.split())
    found = [words for path in (ROOT / "pgrepl").rglob("*.py") for _, words in commands(path.read_text())]
    assert len(found) > 60
