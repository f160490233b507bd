"""``pgrepl slots list``: who uses the slots, what WAL they keep, and what that means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pgrepl.cli.diagnostics import epilog
from pgrepl.cli.options import Run, command_options
from pgrepl.cli.slots.watch import WATCH, forbid_watching_all
from pgrepl.errors import InputError

if TYPE_CHECKING:
    import psycopg

    from pgrepl.catalog.slots import Slot


@click.command("list", epilog=epilog("pgrepl slots list --all -d 'host=db1 dbname=orders'"))
@click.option("--all", "everything", is_flag=True, help="Those of all databases, and physical ones too.")
@WATCH
@command_options(all_databases=True)
def list_(run: Run, everything: bool, watch: float | None) -> None:
    """List the logical slots of this database: who uses them, what WAL they keep, and what that means.

    kind is apply or table-sync for slots that are named as a pipeline of supabase/etl names them; such a slot is called
    orphaned when its pipeline is neither configured nor in etl.replication_state. Sizes in JSON are in bytes, what is
    not known is null.
    """
    from pgrepl import connection
    from pgrepl.cli import output
    from pgrepl.cli.slots import drawing
    from pgrepl.cli.slots.watch import Picture, show

    forbid_watching_all(run, watch)
    with connection.connect(run.target, "pgrepl slots") as conn:
        database = conn.info.dbname

        def look() -> Picture:
            found = _read(run, conn, everything)
            nothing = "there is no slot" if everything else f"database {database} has no logical slot"
            wide = output.console(run.color).width >= drawing.TABLE_WIDTH
            draw = drawing.table if wide else drawing.paragraphs
            return Picture([slot.document() for slot in found], lambda: draw(found, everything), nothing)

        show(run, look, watch)


def _read(run: Run, conn: psycopg.Connection, everything: bool) -> list[Slot]:
    from pgrepl.catalog import orphans, slots
    from pgrepl.cli.slots.known import configured_pipelines

    database = conn.info.dbname
    found = [slot for slot in slots.all_of(conn) if everything or slot.database == database]
    if all(slot.pipeline_id is None or slot.active for slot in found):
        return found
    try:
        configured = configured_pipelines(run)
    except InputError:
        # Without the configuration nobody can tell whose they are, which is only a remark beside the list.
        return found
    return orphans.mark(found, database, orphans.known_pipelines(conn, configured))
