"""What people read beside the data: everything that goes to stderr, and the exit codes. stdout is for data only."""

from __future__ import annotations

import copy
import json
import re
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import IntEnum

import click

from pgrepl import errors


class ExitCode(IntEnum):
    """The exit codes of every command."""

    OK = 0
    FINDINGS = 1
    USAGE = 2
    CONNECT = 3
    TIMEOUT = 4
    POSITION = 5
    INTERRUPTED = 130
    PIPE_CLOSED = 141
    TERMINATED = 143


EXIT_CODES_HELP = """\b
Exit codes: 0 done and nothing wrong; 1 findings, or the operation failed;
2 usage, configuration or input error; 3 cannot connect; 4 timed out;
5 slot lost, gap or changed server; 130 SIGINT; 141 pipe closed; 143 SIGTERM"""


def epilog(example: str) -> str:
    """Write what a command's help ends with: an example, and the exit codes."""
    return f"\b\nExample: {example}\n\n{EXIT_CODES_HELP}"


def exit_code_for(error: BaseException) -> ExitCode:
    """Say with which code an error ends the program."""
    match error:
        case errors.PositionError():
            return ExitCode.POSITION
        case errors.TimeLimitError():
            return ExitCode.TIMEOUT
        case errors.ConnectError():
            return ExitCode.CONNECT
        case errors.InputError() | click.UsageError():
            return ExitCode.USAGE
        case KeyboardInterrupt() | click.Abort():
            return ExitCode.INTERRUPTED
        case BrokenPipeError():
            return ExitCode.PIPE_CLOSED
        case _:
            return ExitCode.FINDINGS


def known_error(error: Exception) -> errors.PgreplError | None:
    """Give the error as one of ours; an error of the server that nobody foresaw is the server's. None is a defect."""
    psycopg = sys.modules.get("psycopg")
    if psycopg is not None and isinstance(error, psycopg.Error):
        from pgrepl.connection import server_error

        return server_error(error, "the server reported an error")
    return error if isinstance(error, errors.PgreplError) else None


class Reporter:
    """Write to stderr what a person should know: errors always, the rest by verbosity (-1, 0 or 1)."""

    def __init__(
        self, *, verbosity: int = 0, debug: bool = False, color: str = "auto", log_format: str = "text"
    ) -> None:
        self.verbosity = verbosity
        self.debug = debug
        self.json = log_format == "json"
        self.color = color
        self.subject = ""

    def about(self, subject: str) -> Reporter:
        """Give a reporter that puts before each message what it is about."""
        reporter = copy.copy(self)
        reporter.subject = subject
        return reporter

    def error(self, message: str, *, hint: str | None = None, sqlstate: str | None = None) -> None:
        """Say what failed, on what, and what to do."""
        self._write("error", message, "red", hint=hint, sqlstate=sqlstate)

    def warning(self, message: str, *, hint: str | None = None) -> None:
        """Say what is worth knowing although the command goes on."""
        if self.verbosity >= 0:
            self._write("warning", message, "yellow", hint=hint)

    def notice(self, message: str) -> None:
        """Say what happens, in normal verbosity."""
        if self.verbosity >= 0:
            self._write("notice", message, None)

    def detail(self, message: str) -> None:
        """Say more, only with --verbose."""
        if self.verbosity >= 1:
            self._write("detail", message, None)

    def exception(self, error: BaseException) -> None:
        """Report an error that ends the command; with --debug its traceback too."""
        if self.debug:
            self._traceback(error)
        if isinstance(error, errors.PgreplError):
            self.error(str(error), hint=error.hint, sqlstate=error.sqlstate)
        elif isinstance(error, click.UsageError):
            self.error(_usage_message(error), hint=_usage_hint(error))
        elif isinstance(error, click.ClickException):
            self.error(error.format_message())
        else:
            self.error(f"{type(error).__name__}: {error}", hint="this is a defect of pgrepl; --debug shows where")

    def _traceback(self, error: BaseException) -> None:
        text = "".join(traceback.format_exception(error))
        if self.json:
            self._write("debug", text.rstrip(), None)
        else:
            for line in text.splitlines():
                self._line(line)

    def _write(
        self, level: str, message: str, color: str | None, *, hint: str | None = None, sqlstate: str | None = None
    ) -> None:
        if self.subject:
            message = f"{self.subject}: {message}"
        if self.json:
            line: dict[str, str] = {"time": datetime.now(UTC).isoformat(), "level": level, "message": message}
            if hint:
                line["hint"] = hint
            if sqlstate:
                line["sqlstate"] = sqlstate
            self._line(json.dumps(line, ensure_ascii=False))
            return
        # Whoever reads a log file later wants to know when; a person at the terminal does not.
        stamp = "" if _is_terminal() else time.strftime("%H:%M:%S ", time.gmtime())
        label = f"{level}: " if level in ("error", "warning") else ""
        state = f" (SQLSTATE {sqlstate})" if sqlstate else ""
        self._line(f"{'' if level == 'error' else stamp}pgrepl: {self._paint(label, color)}{message}{state}")
        if hint:
            self._line(f"{self._paint('hint: ', 'cyan')}{hint}")

    def _paint(self, text: str, color: str | None) -> str:
        return click.style(text, fg=color) if text and color and use_color(self.color, sys.stderr.isatty()) else text

    @staticmethod
    def _line(text: str) -> None:
        # One line per message, whatever an object's name holds.
        shown = "".join(c if c.isprintable() or c == "\x1b" else repr(c)[1:-1] for c in _without_passwords(text))
        try:
            sys.stderr.write(shown + "\n")
            sys.stderr.flush()
        except (BrokenPipeError, ValueError):
            pass


def reporter_for(arguments: Sequence[str]) -> Reporter:
    """Make the reporter of a call whose arguments could not be read, as far as they say how it is to report."""
    given = " ".join(arguments)
    log_format = re.search(r"(?:^| )--log-format[ =](\w+)", given)
    color = re.search(r"(?:^| )--color[ =](\w+)", given)
    return Reporter(
        debug="--debug" in arguments,
        color=color[1] if color else "auto",
        log_format=log_format[1] if log_format else "text",
    )


def _usage_message(error: click.UsageError) -> str:
    message = error.message if _nearest(error) else error.format_message()
    return message[:1].lower() + message[1:].rstrip(".")


def _usage_hint(error: click.UsageError) -> str | None:
    near = _nearest(error)
    hints = [f"did you mean {near}?"] if near else []
    if error.ctx is not None:
        hints.append(f"see '{error.ctx.command_path} --help'")
    return " ".join(hints) or None


def _nearest(error: click.UsageError) -> str | None:
    """Give the name that is most like one that does not exist."""
    names = error.possibilities if isinstance(error, click.NoSuchOption | click.NoSuchCommand) else None
    return names[0] if names else None


# A connection string may stand where nobody expected one, for instance in place of a publication's name.
_PASSWORDS = re.compile(
    r"""(:/{1,2}[^\s:/@]*:)\S*@      # of a URI, up to the last @, since a password may hold one that is not escaped
      | (password\s*=\s*)(?:'(?:[^'\\]|\\.)*'?|\S+)""",
    re.IGNORECASE | re.VERBOSE,
)


def _without_passwords(text: str) -> str:
    return _PASSWORDS.sub(lambda found: f"{found[1]}****@" if found[1] else f"{found[2]}****", text)


def _is_terminal() -> bool:
    return sys.stderr.isatty()


def use_color(choice: str, terminal: bool) -> bool:
    """Decide on colour: --color first, then NO_COLOR, then whether it goes to a terminal."""
    import os

    if choice != "auto":
        return choice == "always"
    return terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
