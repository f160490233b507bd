"""``pgrepl tail``: print every change of a publication, after a snapshot of its tables."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from pgrepl.cli.completion import complete_files, complete_publication_list, complete_slots
from pgrepl.cli.diagnostics import EXIT_CODES_HELP, ExitCode
from pgrepl.cli.options import DURATION, LSN, SIZE, TABLE_NAME, Run, command_options
from pgrepl.errors import InputError
from pgrepl.lsn import Lsn

if TYPE_CHECKING:
    from rich.progress import Progress as ProgressBar

    from pgrepl.catalog.publications import PublishedTable
    from pgrepl.conninfo import ConnectionTarget
    from pgrepl.engine.pipeline import Outcome, Pipeline, Progress
    from pgrepl.formats import Format
    from pgrepl.sinks import Sink
    from pgrepl.sinks.file import Existing
    from pgrepl.stores import Store

_ASK_ABOVE = 1 << 30
# How often the progress is shown, at a terminal and elsewhere.
_LIVE_SECONDS = 0.5
_LINE_SECONDS = 10.0
# How many tables a notice names.
_NAMED = 5


class _UntilType(click.ParamType[object]):
    name = "lsn|now"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        return "now" if str(value).lower() == "now" else LSN.convert(value, param, ctx)


class _ResnapshotType(click.ParamType[object]):
    name = "schema.table|all"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        return "all" if str(value).lower() == "all" else TABLE_NAME.convert(value, param, ctx)


@click.command(epilog=EXIT_CODES_HELP)
@click.argument(
    "publications",
    metavar="PUBLICATION[,PUBLICATION…]",
    required=False,
    shell_complete=complete_publication_list,
)
@click.option(
    "--snapshot",
    type=click.Choice(["initial", "never", "only"]),
    default="initial",
    show_default=True,
    help="Copy the tables first, not at all, or copy only.",
)
@click.option("--table", "tables", type=TABLE_NAME, multiple=True, help="Only this table (again for more).")
@click.option("--exclude-table", "excluded", type=TABLE_NAME, multiple=True, help="Not this table (again for more).")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["json", "pretty"]),
    help="How events are printed; default pretty on a terminal, else json.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Write to FILE, synced every second, instead of stdout; SIGHUP opens it anew.",
    shell_complete=complete_files,
)
@click.option("--append", is_flag=True, help="Write on at the end of a FILE that something else has written.")
@click.option("--overwrite", is_flag=True, help="Begin FILE anew.")
@click.option(
    "--fsync-interval", type=DURATION, default="1s", show_default=True, help="How often FILE is synced at the least."
)
@click.option(
    "--store",
    type=click.Choice(["memory", "postgres"]),
    help="Where the state is kept; default the configured one, else memory.",
)
@click.option(
    "--slot",
    metavar="NAME",
    help="Stream from this slot, which is neither made nor dropped.  [store memory]",
    shell_complete=complete_slots,
)
@click.option("--keep-slot", is_flag=True, help="Make a slot that stays, named by --slot or anew.  [store memory]")
@click.option("--from-lsn", type=LSN, help="Begin there, with a slot that is there and no snapshot.")
@click.option(
    "--pipeline-id", type=click.IntRange(0, 2**64 - 1), metavar="N", help="The pipeline, when not by host/dbname."
)
@click.option("--jobs", type=click.IntRange(1, 64), metavar="N", help="Workers that copy; default up to 4, by CPUs.")
@click.option(
    "--yield-to-ddl", type=DURATION, help="Copy a table again when its copy makes an ALTER TABLE wait this long."
)
@click.option("--refresh", type=DURATION, help="Read the publication again this often; SIGUSR1 does it at once.")
@click.option(
    "--resnapshot",
    type=_ResnapshotType(),
    metavar="SCHEMA.TABLE|all",
    multiple=True,
    help="Copy this table again, or all (again for more).  [with a stored state]",
)
@click.option("--spool-dir", metavar="DIR", help="Where changes wait for a copy; default $XDG_STATE_HOME/pgrepl.")
@click.option(
    "--spool-limit", type=SIZE, default="10GB", show_default=True, help="At this size the stream waits for the copy."
)
@click.option("--accept-slot-position", is_flag=True, help="Go on from a slot that is ahead of the state.")
@click.option(
    "--output-timeout",
    type=DURATION,
    default="5m",
    show_default=True,
    help="How long a failing disk or store is tried again.",
)
@click.option(
    "--protocol", type=click.IntRange(1, 2), default=2, show_default=True, help="The version of pgoutput's protocol."
)
@click.option(
    "--streaming",
    type=click.Choice(["off", "on"]),
    help="Receive large transactions while they are going on; default on, off with --protocol 1.",
)
@click.option("--transactions/--no-transactions", default=False, help="Print begin and commit of each transaction too.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="End after N row events, snapshot rows too.")
@click.option(
    "--until-lsn",
    "until",
    type=_UntilType(),
    metavar="LSN|now",
    help="End before the first transaction committed there or later.",
)
@click.option("--for", "duration", type=DURATION, help="End after this long.")
@click.option(
    "--progress/--no-progress",
    "progress",
    default=None,
    help="A live line on stderr, away from a terminal one every 10 s; default on a terminal.",
)
@command_options(formats=False, timeout=False)
def tail(
    run: Run,
    publications: str | None,
    snapshot: str,
    tables: tuple[tuple[str, str], ...],
    excluded: tuple[tuple[str, str], ...],
    output_format: str | None,
    as_json: bool,
    output: str | None,
    append: bool,
    overwrite: bool,
    fsync_interval: float,
    store: str | None,
    slot: str | None,
    keep_slot: bool,
    from_lsn: Lsn | None,
    pipeline_id: int | None,
    jobs: int | None,
    yield_to_ddl: float | None,
    refresh: float | None,
    resnapshot: tuple[object, ...],
    spool_dir: str | None,
    spool_limit: int,
    accept_slot_position: bool,
    output_timeout: float,
    protocol: int,
    streaming: str | None,
    transactions: bool,
    limit: int | None,
    until: object,
    duration: float | None,
    progress: bool | None,
) -> int:
    """Print a snapshot of the published tables, then every change, until told to stop.

    With the memory store nothing is left on the server: the slot is temporary, a restart begins anew, and changes in
    between are not seen. With the postgres store a restart goes on where the last run stopped, and FILE holds every
    change once.

    \b
    Example: pgrepl tail orders_pub | jq 'select(.op == "insert")'
             pgrepl tail orders_pub --store postgres -o orders.jsonl
    """
    if as_json and output_format not in (None, "json"):
        raise click.UsageError("--json and --format contradict each other")
    names = _publications(run.publication(publications))
    to_terminal = output is None and sys.stdout.isatty()
    chosen = "json" if as_json else output_format or ("pretty" if to_terminal else "json")
    target = run.target
    store = store or run.config.pipeline.store or "memory"
    if store == "bookmarks":
        raise InputError("tail does not keep its state in bookmarks yet", hint="--store memory or --store postgres")
    if append and overwrite:
        raise click.UsageError("--append and --overwrite contradict each other")
    if output is None:
        _check_no_file(append=append, overwrite=overwrite, synced=_is_given("fsync_interval"))
    if slot is not None and pipeline_id is not None:
        raise click.UsageError("--slot and --pipeline-id contradict each other")
    if store != "memory" and slot is not None:
        raise click.UsageError("--slot goes with --store memory; another pipeline is --pipeline-id")
    if store == "memory" and pipeline_id is not None:
        raise click.UsageError("--pipeline-id goes with a stored state; --store memory keeps none")
    if from_lsn is not None:
        if snapshot != "never" and _is_given("snapshot"):
            raise click.UsageError("--from-lsn takes no snapshot")
        snapshot = "never"
    _check_beginning(
        store, slot, keep_slot, from_lsn, snapshot, resnapshot, until, accept_slot_position=accept_slot_position
    )
    if keep_slot and slot is None:
        # It brings many modules with it, which --help does without.
        import secrets

        slot = f"pgrepl_keep_{secrets.token_hex(4)}"
    if streaming == "on" and protocol == 1:
        raise click.UsageError("--streaming on needs --protocol 2")

    from pgrepl.engine import spool
    from pgrepl.engine.pipeline import Options, Pipeline
    from pgrepl.engine.selection import Selection

    if spool_dir is not None:
        spool.check_directory(Path(spool_dir))
    options = Options(
        publications=names,
        selection=Selection(frozenset(tables), frozenset(excluded)),
        snapshot=snapshot,  # type: ignore[arg-type]
        transactions=transactions,
        limit=limit,
        exact_limit=output is None and store == "memory",
        until=until,  # type: ignore[arg-type]
        duration=duration,
        slot=_slot(target, store, slot, pipeline_id),
        keep_slot=keep_slot,
        from_lsn=from_lsn,
        resnapshot="all" if "all" in resnapshot else frozenset(resnapshot),  # type: ignore[arg-type]
        jobs=jobs or min(4, os.cpu_count() or 1),
        yield_to_ddl=yield_to_ddl,
        refresh=refresh,
        accept_slot_position=accept_slot_position,
        format_name=chosen,
        output_timeout=output_timeout,
        protocol=protocol,
        streaming=protocol > 1 and streaming != "off",
    )
    sink = _sink(output, "append" if append else "overwrite" if overwrite else "refuse", fsync_interval)
    show_progress = progress if progress is not None else sys.stderr.isatty() and not to_terminal
    watcher = _Watcher(run, show_progress and run.report.verbosity >= 0)
    pipeline = Pipeline(
        target,
        options,
        _format(chosen, run.color),
        sink,
        watcher,
        store=_store(target, store, pipeline_id),
        spool_directory=Path(spool_dir) if spool_dir else None,
        spool_limit=spool_limit,
    )
    if snapshot == "initial" and options.slot is None:
        run.report.notice("store memory: nothing is kept; a restart begins anew, changes in between are not seen")
    with _signals(pipeline, to_file=output is not None) as received, watcher:
        outcome = pipeline.run()
    _report_end(run, outcome, stored=store != "memory")
    if options.slot is not None:
        run.report.notice(f"slot {options.slot} keeps WAL until you resume or 'pgrepl slots drop {options.slot}'")
    if outcome.reason != "stopped":
        return ExitCode.OK
    return ExitCode.INTERRUPTED if received[:1] == [signal.SIGINT] else ExitCode.TERMINATED


def _publications(text: str | None) -> tuple[str, ...]:
    if text is None:
        raise click.UsageError("name the publication, here or in the configuration")
    names = tuple(dict.fromkeys(text.split(",")))
    if not all(names):
        raise InputError(f"{text!r} has an empty name in it", hint="publications are separated by single commas")
    return names


def _is_given(option: str) -> bool:
    return click.get_current_context().get_parameter_source(option) is not ParameterSource.DEFAULT


def _check_no_file(*, append: bool, overwrite: bool, synced: bool) -> None:
    """Refuse options about FILE where there is none. Raises UsageError."""
    given = {"--append": append, "--overwrite": overwrite, "--fsync-interval": synced}
    for option, is_given in given.items():
        if is_given:
            raise click.UsageError(f"{option} goes with --output FILE")


def _check_beginning(
    store: str,
    slot: str | None,
    keep_slot: bool,
    from_lsn: Lsn | None,
    snapshot: str,
    resnapshot: tuple[object, ...],
    until: object,
    *,
    accept_slot_position: bool,
) -> None:
    """Refuse options that cannot be meant together, before anything is connected to. Raises UsageError."""
    if keep_slot and store != "memory":
        raise click.UsageError(f"--keep-slot goes with --store memory; --store {store} keeps its slot anyway")
    if from_lsn is not None:
        if keep_slot or (store == "memory" and slot is None):
            raise click.UsageError("--from-lsn needs a slot that is there: --slot NAME, or a store that keeps one")
        if accept_slot_position:
            raise click.UsageError("--from-lsn and --accept-slot-position contradict each other")
        if isinstance(until, Lsn) and until < from_lsn:
            raise click.UsageError("--until-lsn lies before --from-lsn")
    if resnapshot and store == "memory":
        raise click.UsageError("--resnapshot goes with a stored state; --store memory copies every table anyway")
    if resnapshot and snapshot == "never":
        raise click.UsageError("--resnapshot copies tables, and this run takes no snapshot")


def _pipeline_id(target: ConnectionTarget, chosen: int | None) -> int:
    from pgrepl import names

    return chosen if chosen is not None else names.pipeline_id(target.pipeline_host(), target.database())


def _slot(target: ConnectionTarget, store: str, slot: str | None, pipeline_id: int | None) -> str | None:
    from pgrepl import names

    if store == "memory":
        return names.check_slot_name(slot) if slot is not None else None
    return names.apply_slot(_pipeline_id(target, pipeline_id))


def _store(target: ConnectionTarget, store: str, pipeline_id: int | None) -> Store | None:
    if store == "memory":
        return None
    from pgrepl.stores.postgres import PostgresStore

    kept = PostgresStore(target, _pipeline_id(target, pipeline_id))
    try:
        kept.prepare()
        others = kept.other_pipelines()
        if others and pipeline_id is None:
            listed = ", ".join(map(str, others))
            raise InputError(
                f"etl.replication_state holds no state of this pipeline, but of {listed}",
                hint=f"the host's name is part of the id: --pipeline-id {others[0]} goes on with that one",
            )
    except BaseException:
        kept.close()
        raise
    return kept


def _sink(path: str | None, existing: Existing, interval: float) -> Sink:
    from pgrepl.sinks.opening import open_output
    from pgrepl.sinks.stream import StreamSink

    if path is None:
        sys.stdout.flush()
        return StreamSink(sys.stdout.fileno())
    return open_output(path, existing=existing, interval=interval)


def _format(name: str, color: str) -> Format:
    if name == "json":
        from pgrepl.formats.json import JsonLines

        return JsonLines()
    from pgrepl.cli.diagnostics import use_color
    from pgrepl.formats.pretty import Pretty

    return Pretty(color=use_color(color, sys.stdout.isatty()))


@contextmanager
def _signals(pipeline: Pipeline, *, to_file: bool) -> Iterator[list[int]]:
    """Let the first SIGINT or SIGTERM end the run with the transaction being written, the second at once."""
    received: list[int] = []

    def handle(number: int, _frame: object) -> None:
        received.append(number)
        if len(received) > 1:
            os._exit(128 + received[0])
        pipeline.stop()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    if to_file:
        # Else it ends the program, as anywhere.
        previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda *_: pipeline.reopen())
    previous[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, lambda *_: pipeline.refresh())
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _report_end(run: Run, outcome: Outcome, *, stored: bool) -> None:
    progress = outcome.progress
    done = f"{progress.rows} rows, {progress.transactions} transactions, up to {progress.position}"
    run.report.notice(f"stopped: {done}" if outcome.reason == "stopped" else f"done: {done}")
    unfinished = sorted(progress.unfinished.values())
    if unfinished:
        named = ", ".join(unfinished[:_NAMED]) + (", …" if len(unfinished) > _NAMED else "")
        then = "it begins again with the next run" if stored else "not all of their rows were printed"
        run.report.notice(f"the copy of {_counted(len(unfinished), 'table')} is cut short ({named}); {then}")


class _Watcher:
    """Pass on to stderr what the pipeline tells, and where ``live`` wants it the progress.

    At a terminal that is a line that changes, elsewhere a line now and then.
    """

    def __init__(self, run: Run, live: bool) -> None:
        self._run = run
        self._live = live
        self._bar: ProgressBar | None = None
        self._last = 0.0
        self._last_rows = 0

    def __enter__(self) -> _Watcher:
        if self._live and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as ProgressBar
            from rich.progress import SpinnerColumn, TextColumn
            from rich.table import Column

            console = Console(stderr=True, highlight=False, markup=False)
            # On a narrow terminal it takes two lines, rather than lose its end.
            text = TextColumn("{task.description}", markup=False, table_column=Column())
            self._bar = ProgressBar(SpinnerColumn(), text, console=console, transient=True)
            self._bar.add_task("connecting", total=None)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def notice(self, message: str) -> None:
        self._run.report.notice(message)

    def warning(self, message: str, *, hint: str | None = None) -> None:
        self._run.report.warning(message, hint=hint)

    def may_copy(self, tables: Collection[PublishedTable]) -> bool:
        from pgrepl.units import size_text

        size = sum(table.size for table in tables)
        known = [table.rows for table in tables if table.rows is not None]
        rows = f"about {sum(known):,} rows" if known else "rows unknown"
        unknown = f" and those of {_counted(len(tables) - len(known), 'table')} never analysed"
        more = unknown if 0 < len(known) < len(tables) else ""
        self.notice(f"snapshot: {_counted(len(tables), 'table')}, {rows}{more}, {size_text(size)}")
        if size <= _ASK_ABOVE or not (sys.stdin.isatty() and sys.stderr.isatty()):
            return True
        if self._bar is not None:
            self._bar.stop()
        wanted = click.confirm(f"Copy {size_text(size)}?", err=True, default=True)
        if self._bar is not None:
            self._bar.start()
        return wanted

    def progress(self, progress: Progress) -> None:
        if not self._live:
            return
        now = time.monotonic()
        elapsed = now - self._last
        if elapsed < (_LINE_SECONDS if self._bar is None else _LIVE_SECONDS):
            return
        rate = (progress.rows - self._last_rows) / elapsed if self._last else 0.0
        self._last, self._last_rows = now, progress.rows
        if self._bar is None:
            self.notice(_describe(progress, rate))
        else:
            self._bar.update(self._bar.task_ids[0], description=_describe(progress, rate))


def _describe(progress: Progress, rate: float) -> str:
    from pgrepl.units import size_text

    lag = max(0, Lsn(progress.received) - progress.position)
    pace = f"{rate:,.0f} rows/s, {size_text(lag)} behind, {size_text(progress.spooled)} spooled"
    if progress.phase == "copying":
        # A table that was never analysed has no estimate.
        expected = "unknown" if progress.rows_to_copy is None else f"about {progress.rows_to_copy:,}"
        tables = f"{progress.tables_done} of {progress.tables} tables"
        return f"copying: {tables}, {progress.rows_copied:,} of {expected} rows, {pace}"
    return f"streaming: {progress.rows:,} rows, {pace}, at {progress.position}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
