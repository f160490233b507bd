"""The options that several commands share, and the values that options take."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from pgrepl.cli.completion import complete_databases, complete_files
from pgrepl.cli.diagnostics import Reporter, exit_code_for, known_error
from pgrepl.cli.limit import time_limit
from pgrepl.errors import InputError
from pgrepl.lsn import Lsn
from pgrepl.names import quote_ident

if TYPE_CHECKING:
    from pgrepl.config import Config, Database, Pipeline, Store
    from pgrepl.conninfo import ConnectionTarget

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_SIZES = {"": 1, "B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}


class Duration(click.ParamType[float]):
    """``500ms``, ``30s``, ``5m``, ``2h``; a bare number is seconds. The value is a float of seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|)", value.strip(), re.ASCII)
        if match is None:
            self.fail(f"{value!r} is not a duration like 500ms, 30s, 5m or 2h", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


class Size(click.ParamType[int]):
    """``64MB``, ``10GB``; a bare number is bytes. The value is an int of bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKMGT]?B|)", value.strip(), re.ASCII)
        if match is None:
            self.fail(f"{value!r} is not a size like 64MB or 10GB", param, ctx)
        return int(float(match[1]) * _SIZES[match[2].upper()])


class LsnType(click.ParamType[Lsn]):
    """A position in the WAL such as ``0/16B3748``."""

    name = "lsn"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Lsn:
        if isinstance(value, Lsn):
            return value
        try:
            return Lsn.parse(value)
        except InputError as error:
            self.fail(f"{error} ({error.hint})", param, ctx)


class TableName(click.ParamType[tuple[str, str]]):
    """``schema.table``, each part as it is written in the catalog or, with special characters, in double quotes.

    The value is a pair (schema, table).
    """

    name = "schema.table"
    _PATTERN = re.compile(r'("(?:[^"]|"")+"|[^".]+)\.("(?:[^"]|"")+"|[^".]+)')

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        match = self._PATTERN.fullmatch(value)
        if match is None:
            self.fail(f"{value!r} is not a table's name: write schema.table", param, ctx)
        return self._part(match[1]), self._part(match[2])

    @staticmethod
    def _part(text: str) -> str:
        return text[1:-1].replace('""', '"') if text.startswith('"') else text


class SchemaName(click.ParamType[str]):
    """The name of a schema as it is written in the catalog or in double quotes."""

    name = "schema"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        match = re.fullmatch(r'"((?:[^"]|"")+)"', value)
        return match[1].replace('""', '"') if match else str(value)


_WHOLE = 1000


class Group(click.Group):
    """A group whose help shows the purpose of each command whole."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            # An option without its value is found before click knows whose it is.
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            if error.ctx is None and command is not None:
                error.ctx = click.Context(command, ctx, ctx.invoked_subcommand)
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.get_short_help_str(_WHOLE)) for name, command in commands if command is not None]
            )


DURATION = Duration()
SIZE = Size()
LSN = LsnType()
TABLE_NAME = TableName()
SCHEMA_NAME = SchemaName()


@dataclass
class Run:
    """What the shared options of one call say; every command gets it as its first argument.

    ``flags`` are the parameters that the command line itself gave, and not the environment. With --all-databases a
    command is called once for each entry of the configuration, and ``entry`` is that one.
    """

    report: Reporter
    color: str
    dsn: str | None = None
    config_path: str | None = None
    database_name: str | None = None
    output_format: str = "table"
    flags: frozenset[str] = frozenset()
    entry: Database | None = None

    @property
    def dsn_origin(self) -> str:
        """Where the connection string comes from."""
        return "--dsn" if "dsn" in self.flags else "PGREPL_DSN"

    @functools.cached_property
    def config(self) -> Config:
        """What the configuration file and the environment above it say."""
        from pgrepl import config

        found = config.load(self.config_path)
        for message, hint in found.warnings:
            self.report.warning(message, hint=hint)
        self.report.detail(f"configuration: {found.path or 'no file'}")
        return found

    @functools.cached_property
    def database(self) -> Database | None:
        """The ``[[databases]]`` entry that is meant, if the target comes from one: a flag wins over PGREPL_DSN."""
        if self.entry is not None:
            return self.entry
        if "dsn" in self.flags and self.database_name is not None:
            raise InputError("--dsn and --database exclude each other")
        if self.dsn is not None and self.database_name is None:
            if self.config_path is not None:
                self.config  # noqa: B018  a named file that cannot be read is an error even when nothing of it is used
            return None
        return self.config.database(self.database_name)

    @functools.cached_property
    def target(self) -> ConnectionTarget:
        """The server and database to connect to: --dsn, --database, PGREPL_DSN, the configuration, libpq's defaults.

        Raises InputError for a connection string or a configuration that cannot be read.
        """
        found = self._target()
        if self.report.verbosity > 0:
            self.report.detail(f"connection: {found.masked() or 'nothing given'} (from {found.origin})")
        return found

    def _target(self) -> ConnectionTarget:
        from pgrepl.conninfo import ConnectionTarget, parse

        if self.database is not None:
            return self.database.target
        if self.dsn is None:
            return ConnectionTarget({}, "libpq's environment and defaults")
        target = parse(self.dsn, self.dsn_origin)
        if "dsn" in self.flags and target.has_password:
            self.report.warning(
                "the password in --dsn can be seen in the process list",
                hint="use PGREPL_DSN, ~/.pgpass or a service",
            )
        return target

    def publication(self, named: str | None) -> str | None:
        """The publication that was named, else the configured one."""
        return named or (self.database.publication if self.database else None)

    def pipeline(self, *, store: str | None = None, state_table: str | None = None) -> Pipeline:
        """What is said of the store: the flags that are given, above the variables and the configuration file.

        That holds beside a connection string, too, which says where to read from and nothing of the state.
        """
        found = self.config.pipeline
        return replace(
            found, store=cast("Store | None", store) or found.store, state_table=state_table or found.state_table
        )

    def state_target(self, flag: str | None) -> ConnectionTarget | None:
        """The database of the bookmarks by --state-dsn, else by the configuration; None where neither names one."""
        from pgrepl.conninfo import parse

        if flag is None:
            configured = self.config.pipeline.state_dsn
            return parse(configured, self.config.origin("pipeline.state_dsn")) if configured is not None else None
        target = parse(flag, "--state-dsn")
        if target.has_password:
            self.report.warning(
                "the password in --state-dsn can be seen in the process list",
                hint="use PGREPL_STATE_DSN, ~/.pgpass or a service",
            )
        return target

    def print_script(self, script: str) -> None:
        """Print a script for psql; with --all-databases it first connects to the database that it is for."""
        if self.entry is not None:
            script = f"{_connect_command(self.entry.target)}{script}"
        sys.stdout.write(script)
        sys.stdout.flush()

    def for_every_database(self, call: Callable[[Run], int | None]) -> int:
        """Call a command once for each entry of the configuration, and return the worst of the exit codes.

        What fails for one entry is reported, and the others go on; only the time limit and an interrupt end it all.
        With --format json one array is printed, which has a document for each entry, or null where there is none.
        """
        from pgrepl.cli import output

        if self.database_name is not None or "dsn" in self.flags:
            other = "--dsn" if "dsn" in self.flags else "--database"
            raise InputError(f"{other} and --all-databases exclude each other")
        if not self.config.databases:
            raise InputError(
                "--all-databases, but no database is configured",
                hint=f"write [[databases]] entries into {' or '.join(map(str, _places(self.config_path)))}",
            )
        worst = 0
        with output.one_array(self.output_format) as documents:
            for number, entry in enumerate(self.config.databases, 1):
                run = replace(self, entry=entry, report=self.report.about(entry.name))
                run.config = self.config
                try:
                    if self.output_format == "table":
                        output.heading(
                            f"{entry.name} ({entry.identity})" if entry.name != entry.identity else entry.name
                        )
                    code = call(run) or 0
                except Exception as error:
                    ours = known_error(error)
                    if ours is None:
                        raise
                    run.report.exception(ours)
                    code = exit_code_for(ours)
                documents += [None] * (number - len(documents))
                worst = max(worst, code)
        return worst


def _connect_command(target: ConnectionTarget) -> str:
    """Write psql's command that connects to a database, without the password."""
    from psycopg.conninfo import make_conninfo

    named = ("host", "port", "dbname", "user", "sslmode")
    conninfo = make_conninfo("", **{name: target.params[name] for name in named if name in target.params})
    if set("\r\n") & set(conninfo):
        raise InputError("psql cannot be told to connect to a place with a line break in its name")
    # psql reads what follows as it reads identifiers.
    return f"\\connect -reuse-previous=off {quote_ident(conninfo)}\n"


def _places(named: str | None) -> list[Path]:
    from pgrepl import config

    return [Path(named)] if named else config.places()


_COMMON = [
    click.option(
        "-v", "--verbose", is_flag=True, help="Say more on stderr: what is connected to, which steps are taken."
    ),
    click.option("-q", "--quiet", is_flag=True, help="Say only errors on stderr."),
    click.option("--debug", is_flag=True, help="Show a traceback with an error."),
    click.option(
        "--color", type=click.Choice(["auto", "always", "never"]), default="auto", help="Colours; NO_COLOR counts too."
    ),
    click.option("--log-format", type=click.Choice(["text", "json"]), default="text", help="How stderr is written."),
]


def _config_option(*flags: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        *flags,
        "--config",
        "config_path",
        metavar="FILE",
        envvar="PGREPL_CONFIG",
        shell_complete=complete_files,
        help="Configuration file; default ./pgrepl.toml, then the user's.  [env: PGREPL_CONFIG]",
    )


_DSN = click.option(
    "-d",
    "--dsn",
    envvar="PGREPL_DSN",
    help="URI or libpq conninfo; absent: libpq's environment, service and password files.  [env: PGREPL_DSN]",
)
_CONFIG = _config_option("-c")
_LONG_CONFIG = _config_option()
_DATABASE = click.option(
    "--database",
    "database_name",
    metavar="NAME",
    shell_complete=complete_databases,
    help="The [[databases]] entry of the configuration.",
)
_ALL_DATABASES = click.option(
    "--all-databases", is_flag=True, help="Every [[databases]] entry in turn; JSON becomes an array."
)
_TIMEOUT = click.option("--timeout", type=DURATION, help="Give up after this long (exit code 4).")
_FORMATS = [
    click.option(
        "--format",
        "output_format",
        type=click.Choice(["table", "json", "jsonl"]),
        default="table",
        help="How data is printed.",
    ),
    click.option("--json", "as_json", is_flag=True, help="The same as --format json."),
]


def command_options(
    *,
    connects: bool = True,
    short_config: bool = True,
    all_databases: bool = False,
    formats: bool = True,
    timeout: bool = True,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the shared options to a command, which then takes a Run as its first argument.

    A command with its own --format passes ``formats=False``, one without an end of its own ``timeout=False``, one with
    its own -c ``short_config=False``. With ``all_databases=True`` it takes --all-databases, and is then called once for
    each of them.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(
            *args: Any, verbose: bool, quiet: bool, debug: bool, color: str, log_format: str, **rest: Any
        ) -> Any:
            report = Reporter(verbosity=-1 if quiet else int(verbose), debug=debug, color=color, log_format=log_format)
            # main() reports the errors that end the command, with the options of the command.
            click.get_current_context().find_root().meta["pgrepl.report"] = report
            if verbose and not quiet:
                # Its imports are not paid for otherwise.
                from pgrepl.cli.verbose import show_log

                show_log(report)
            run = Run(report, color)
            if connects:
                run.dsn = rest.pop("dsn") or None
                run.config_path = rest.pop("config_path") or None
                run.flags = frozenset(name for name in ("dsn", "config_path") if getattr(run, name) and _is_flag(name))
                run.database_name = rest.pop("database_name")
            if formats:
                chosen = rest.pop("output_format")
                run.output_format = "json" if rest.pop("as_json") else chosen
            limit = rest.pop("timeout") if timeout else None
            every = rest.pop("all_databases") if all_databases else False
            with time_limit(limit):
                if every:
                    return run.for_every_database(lambda each: function(each, *args, **rest))
                return function(run, *args, **rest)

        connecting: list[Callable[[Any], Any]] = [_DSN, _CONFIG if short_config else _LONG_CONFIG, _DATABASE]
        options = [*(connecting if connects else []), *([_ALL_DATABASES] if all_databases else [])]
        options += _FORMATS if formats else []
        options += [*([_TIMEOUT] if timeout else []), *_COMMON]
        for option in reversed(options):
            wrapper = option(wrapper)
        return wrapper

    return decorate


def _is_flag(option: str) -> bool:
    source = click.get_current_context().get_parameter_source(option)
    return source is click.core.ParameterSource.COMMANDLINE


def read_password_file(path: str) -> str:
    """Read a password from a file, without its trailing white space. Raises InputError."""
    try:
        return Path(path).read_text(encoding="utf-8").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the password file {path}: {error}") from None
