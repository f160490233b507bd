"""How much WAL there is, and how fast it grows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgrepl.lsn import Lsn

if TYPE_CHECKING:
    import psycopg


@dataclass(frozen=True)
class Sample:
    """Where the WAL ended at ``seconds`` of the server's clock, and from where on each slot kept it."""

    seconds: float
    end: Lsn
    restart: Mapping[str, Lsn]


@dataclass(frozen=True)
class Rate:
    """What happened between two samples: bytes of WAL a second, and by how many a second each slot fell behind.

    A slot that catches up has a negative number. One that was not there all the time has none.
    """

    seconds: float
    written: float
    falling_behind: Mapping[str, float]


@dataclass(frozen=True)
class Directory:
    """The files of pg_wal and the settings that bound them, all in bytes; ``archiving_failed`` is the file it is at."""

    files: int
    size: int
    max_wal_size: int
    wal_keep_size: int
    archiving_failed: str | None


_SAMPLE = """
SELECT extract(epoch FROM clock_timestamp())::float8,
       (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END)::text,
       (SELECT array_agg(ARRAY[s.slot_name::text, s.restart_lsn::text])
        FROM pg_catalog.pg_replication_slots s WHERE s.restart_lsn IS NOT NULL)
"""

# Archiving that failed and went on has a later success.
_DIRECTORY = """
SELECT f.files, f.size, pg_size_bytes(current_setting('max_wal_size')),
       pg_size_bytes(current_setting('wal_keep_size')),
       CASE WHEN a.last_failed_time > coalesce(a.last_archived_time, '-infinity') THEN a.last_failed_wal END
FROM (SELECT count(*) AS files, coalesce(sum(size), 0)::bigint AS size FROM pg_ls_waldir()) f,
     pg_catalog.pg_stat_archiver a
"""


def sample(conn: psycopg.Connection) -> Sample | None:
    """Read where the WAL ends, on a standby what of it has been replayed; None on a standby that replayed nothing."""
    row = conn.execute(_SAMPLE).fetchone()
    assert row is not None
    seconds, end, restart = row
    if end is None:
        return None
    return Sample(seconds, Lsn.parse(end), {name: Lsn.parse(lsn) for name, lsn in restart or ()})


def rate(before: Sample, after: Sample) -> Rate:
    """Compare two samples."""
    seconds = max(after.seconds - before.seconds, 0.001)
    written = after.end - before.end
    moved = {name: lsn - before.restart[name] for name, lsn in after.restart.items() if name in before.restart}
    return Rate(seconds, written / seconds, {name: (written - advance) / seconds for name, advance in moved.items()})


def directory(conn: psycopg.Connection) -> Directory:
    """Look into pg_wal. Raises InsufficientPrivilege (42501) for a role that is no member of pg_monitor."""
    row = conn.execute(_DIRECTORY).fetchone()
    assert row is not None
    return Directory(*row)
