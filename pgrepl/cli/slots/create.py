"""``pgrepl slots create``: a logical slot that stays."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from pgrepl.cli.completion import complete_publications
from pgrepl.cli.diagnostics import epilog
from pgrepl.cli.options import Run, command_options
from pgrepl.errors import OperationError

if TYPE_CHECKING:
    import psycopg

    from pgrepl.cli.diagnostics import Reporter

_TELL_AFTER = 2.0
_TELL_EVERY = 15.0


@click.command("create", epilog=epilog("pgrepl slots create orders_slot --publication orders_pub --failover"))
@click.argument("name")
@click.option(
    "--publication",
    metavar="NAME",
    shell_complete=complete_publications,
    help="The publication that it is to be read with, which must be there first; default: the configured one.",
)
@click.option("--failover", is_flag=True, help="Have standbys keep a copy of it (PostgreSQL 17 and newer).")
@click.option("--two-phase", is_flag=True, help="Decode prepared transactions when they are prepared.")
@command_options()
def create(run: Run, name: str, publication: str | None, failover: bool, two_phase: bool) -> None:
    """Create a logical replication slot for pgoutput, which keeps WAL from now on until it is read or dropped.

    A slot knows no publication, but a change from before the publication was made cannot be read with it: so the
    publication comes first. The server waits until all transactions that run have ended, and whoever keeps it waiting
    is named; an interrupt leaves nothing behind. Tables that are changed meanwhile are named, too: what is decoded from
    the slot may then be wrong. A slot is of one database, and its name of one server: so this is done for one database
    at a time.
    """
    from pgrepl import connection
    from pgrepl.catalog import publications
    from pgrepl.catalog.since import changed_since, next_xid
    from pgrepl.cli import output
    from pgrepl.names import check_slot_name
    from pgrepl.replication.slots import create_slot
    from pgrepl.replication.walsender import Walsender

    check_slot_name(name)
    wanted = run.publication(publication)
    if wanted is None:
        raise click.UsageError("name the --publication that the slot is to be read with")
    with connection.connect(run.target, "pgrepl slots") as conn:
        if publications.find(conn, wanted) is None:
            raise OperationError(
                f"there is no publication {wanted} in database {conn.info.dbname}",
                hint="create it before the slot: a slot cannot read changes from before its publication",
            )
        since = next_xid(conn)
        walsender = Walsender.open(run.target, "pgrepl slots")
        try:
            telling = _Telling(run.report, conn, walsender.pid)
            point = create_slot(walsender, name, failover=failover, two_phase=two_phase, waiting=telling)
        finally:
            walsender.close()
        tables = [table.oid for table in publications.published_tables(conn, [wanted])]
        changed = dict.fromkeys(change.what for change in changed_since(conn, since, [wanted], tables))
    run.report.notice(f"slot {name} keeps WAL from now on, until it is read or dropped")
    if changed:
        run.report.warning(
            f"{', '.join(changed)} changed while the slot was being built, so that PostgreSQL may decode wrong what was"
            " written just then",
            hint=f"'pgrepl slots drop {name}', and create it again",
        )
    document = {
        "name": name,
        "publication": wanted,
        "consistent_point": str(point),
        "failover": failover,
        "two_phase": two_phase,
    }
    output.emit(document, output_format=run.output_format, color=run.color, table=lambda: f"created {name} at {point}")


class _Telling:
    """Say, after a while and then again, who keeps the slot from being built."""

    def __init__(self, report: Reporter, conn: psycopg.Connection, pid: int) -> None:
        self._report = report
        self._conn = conn
        self._pid = pid
        self._told: float | None = None

    def __call__(self, waited: float) -> None:
        from pgrepl.catalog import blockers

        now = time.monotonic()
        if waited < _TELL_AFTER or (self._told is not None and now - self._told < _TELL_EVERY):
            return
        self._told = now
        who = blockers.names(self._conn, self._pid)
        row = self._conn.execute("SELECT pg_is_in_recovery()").fetchone()
        hint = "it goes on by itself when they end"
        if row is not None and row[0]:
            hint = "on a standby it goes on after SELECT pg_log_standby_snapshot() on the primary"
        self._report.warning(f"the slot cannot be built yet, for {waited:.0f} s now it waits for {who}", hint=hint)
