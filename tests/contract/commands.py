"""Every command there is, for tests of what all of them have in common."""

from __future__ import annotations

import click

from pgrepl.cli.main import cli


def every_command() -> dict[str, click.Command]:
    """Return all groups and commands by the words that call them; the program itself is ``""``."""
    return dict(_below(cli, ""))


def leaves() -> dict[str, click.Command]:
    """Return the commands that do something."""
    return {name: command for name, command in every_command().items() if not isinstance(command, click.Group)}


def context_of(name: str) -> click.Context:
    """Make the context in which a command prints its help."""
    command: click.Command = cli
    context = click.Context(cli, info_name="pgrepl", **cli.context_settings)
    for word in name.split():
        assert isinstance(command, click.Group)
        found = command.get_command(context, word)
        assert found is not None
        command = found
        context = click.Context(command, context, word, **command.context_settings)
    return context


def _below(command: click.Command, name: str) -> list[tuple[str, click.Command]]:
    found = [(name, command)]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for word in command.list_commands(context):
            below = command.get_command(context, word)
            assert below is not None
            found += _below(below, f"{name} {word}".strip())
    return found
