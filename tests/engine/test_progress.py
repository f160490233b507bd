"""How far a run is, for whoever watches."""

from __future__ import annotations

from pgrepl.catalog.publications import PublishedTable
from pgrepl.engine.run import Progress


def table(oid: int, rows: int | None) -> PublishedTable:
    return PublishedTable(oid, "public", f"t{oid}", "r", ("id",), None, "d", ("id",), ("id",), rows, 8192)


def test_tables_whose_copy_begins_again_are_counted_once() -> None:
    progress = Progress()
    progress.begin_again()
    progress.expect([table(1, 10), table(2, 20), table(3, 30)])
    assert (progress.tables, progress.rows_to_copy) == (3, 60)
    progress.rows_copied, progress.tables_done = 25, 2
    # The first one is handed over; of the second all rows have come, and that is not stored.
    del progress.unfinished[1]
    progress.begin_again()
    progress.expect([table(2, 20), table(3, 30)])
    assert (progress.tables, progress.tables_done, progress.rows_to_copy) == (3, 1, 75)
    assert progress.unfinished == {2: "public.t2", 3: "public.t3"}


def test_what_was_never_analysed_makes_the_sum_unknown() -> None:
    progress = Progress()
    progress.expect([table(1, 10), table(2, None)])
    assert progress.rows_to_copy is None
