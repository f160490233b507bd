"""The entry point: finds the command, and turns every error into a line on stderr and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from pgrepl import __version__
from pgrepl.cli.diagnostics import ExitCode, Reporter, exit_code_for, known_error, reporter_for
from pgrepl.cli.options import Group
from pgrepl.errors import OperationError, PgreplError

# Loaded when called for, so that no command pays for the imports of another.
_COMMANDS = {
    "config": "pgrepl.cli.config:config",
    "doctor": "pgrepl.cli.doctor:doctor",
    "explain": "pgrepl.cli.explain:explain",
    "migrations": "pgrepl.cli.migrations:migrations",
    "publications": "pgrepl.cli.publications:publications",
    "sandbox": "pgrepl.cli.sandbox:sandbox",
    "setup": "pgrepl.cli.setup:setup",
    "slots": "pgrepl.cli.slots:slots",
    "state": "pgrepl.cli.state:state",
    "tail": "pgrepl.cli.tail:tail",
    "teardown": "pgrepl.cli.teardown:teardown",
}


class _LazyGroup(Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            # click looks for the nearest name among the commands that are loaded.
            raise click.NoSuchCommand(error.command_name, possibilities=self.list_commands(ctx), ctx=ctx) from None


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
Example: pgrepl doctor orders_pub -d 'host=db1 dbname=orders'

Every command has its own --help with an example and the exit codes.""",
)
@click.version_option(__version__, "--version", message="%(prog)s %(version)s", prog_name="pgrepl")
def cli() -> None:
    """Set up, check, clean and tail PostgreSQL logical replication."""


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    if instruction := os.environ.get("_PGREPL_COMPLETE"):
        from pgrepl.cli.shells import complete

        return complete(cli, instruction)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    context: click.Context | None = None
    report = reporter_for(arguments)
    try:
        with cli.make_context("pgrepl", list(arguments)) as context:
            result = cli.invoke(context)
            sys.stdout.flush()
        return result if isinstance(result, int) else ExitCode.OK
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as help_wanted:
        click.echo(help_wanted.ctx.get_help(), err=True)
        return ExitCode.USAGE
    except BrokenPipeError:
        _give_up_stdout()
        return ExitCode.PIPE_CLOSED
    except (KeyboardInterrupt, click.Abort):
        report.error("interrupted")
        return ExitCode.INTERRUPTED
    except (click.ClickException, PgreplError) as error:
        _reporter(context, report).exception(error)
        return exit_code_for(error)
    except OSError as error:
        _give_up_stdout()
        _reporter(context, report).exception(OperationError(_one_line(error)))
        return ExitCode.FINDINGS
    except Exception as error:
        _reporter(context, report).exception(known_error(error) or error)
        return ExitCode.FINDINGS


def _give_up_stdout() -> None:
    """Let the interpreter's last flush of stdout, at its end, not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(error: OSError) -> str:
    where = f" on {error.filename}" if error.filename else ""
    return f"input or output failed{where}: {(error.strerror or str(error)).lower()}"


def _reporter(context: click.Context | None, default: Reporter) -> Reporter:
    return context.meta.get("pgrepl.report", default) if context else default


def main() -> NoReturn:
    """Run the command line and end the process."""
    _open_standard_streams()
    sys.exit(run())


def _open_standard_streams() -> None:
    """Put the null device where the caller has closed stdin, stdout or stderr.

    Otherwise a connection to the server could get the number of one of them, and what is printed would go there.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115  stays open as long as the process
