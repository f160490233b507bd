"""What the server is and how much room for replication it has left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgrepl.lsn import Lsn

if TYPE_CHECKING:
    import psycopg


@dataclass(frozen=True)
class Server:
    """A server as one session sees it.

    ``version_num`` is 180004 for 18.4. ``effective_wal_level`` is None below 19. ``used_slots`` and
    ``used_wal_senders`` count what is taken in the whole cluster, by anybody. ``wal_position`` is the end of the
    flushed WAL, on a standby that of the replayed WAL. ``wal_sender_timeout_ms`` is this session's, 0 means none.
    ``pending_restart`` names the settings whose new value in the configuration waits for a restart.
    ``system_identifier`` and ``timeline`` are None for a role that may not read the control file.
    """

    version: str
    version_num: int
    wal_level: str
    effective_wal_level: str | None
    max_replication_slots: int
    used_slots: int
    max_wal_senders: int
    used_wal_senders: int
    wal_sender_timeout_ms: int
    max_slot_wal_keep_size_mb: int
    pending_restart: frozenset[str]
    in_recovery: bool
    wal_position: Lsn | None
    system_identifier: str | None
    timeline: int | None
    database: str
    encoding: str
    user: str

    @property
    def major(self) -> int:
        """The major version: 18 of 180004."""
        return self.version_num // 10000

    @property
    def decodes(self) -> bool:
        """Whether the WAL holds what logical decoding needs, or will as soon as a logical slot is made.

        From 19 on the server raises effective_wal_level by itself when wal_level is replica.
        """
        if self.effective_wal_level is not None:
            return self.effective_wal_level == "logical" or self.wal_level in ("replica", "logical")
        return self.wal_level == "logical"

    @property
    def free_slots(self) -> int:
        """How many more replication slots can be made."""
        return max(self.max_replication_slots - self.used_slots, 0)

    @property
    def free_wal_senders(self) -> int:
        """How many more replication connections can be made."""
        return max(self.max_wal_senders - self.used_wal_senders, 0)


_SERVER = """
SELECT current_setting('server_version'),
       current_setting('server_version_num')::int,
       current_setting('wal_level'),
       current_setting('effective_wal_level', true),
       current_setting('max_replication_slots')::int,
       (SELECT count(*) FROM pg_catalog.pg_replication_slots),
       current_setting('max_wal_senders')::int,
       (SELECT count(*) FROM pg_catalog.pg_stat_replication),
       (SELECT setting::int FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'),
       (SELECT setting::int FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size'),
       (SELECT coalesce(array_agg(name), '{}') FROM pg_catalog.pg_settings WHERE pending_restart),
       r.in_recovery,
       (CASE WHEN r.in_recovery THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END)::text,
       current_database()::text,
       pg_encoding_to_char(d.encoding)::text,
       current_user::text
FROM (SELECT pg_is_in_recovery() AS in_recovery) r, pg_catalog.pg_database d
WHERE d.datname = current_database()
"""

# The control file learns of a promotion at the next checkpoint only.
_CONTROL = """
SELECT s.system_identifier::text,
       CASE WHEN pg_is_in_recovery() THEN c.timeline_id
            ELSE ('x' || left(pg_walfile_name(pg_current_wal_flush_lsn()), 8))::bit(32)::int END
FROM pg_control_system() s, pg_control_checkpoint() c
"""


def read(conn: psycopg.Connection) -> Server:
    """Ask the server what it is; any role that can connect may."""
    import psycopg

    row = conn.execute(_SERVER).fetchone()
    assert row is not None
    identity: tuple[str | None, int | None] = (None, None)
    try:
        # A savepoint, so that a refusal does not spoil a transaction of the caller's.
        with conn.transaction():
            identity = conn.execute(_CONTROL).fetchone() or identity
    except psycopg.errors.InsufficientPrivilege:
        pass
    return Server(
        version=row[0].split()[0],
        version_num=row[1],
        wal_level=row[2],
        effective_wal_level=row[3],
        max_replication_slots=row[4],
        used_slots=row[5],
        max_wal_senders=row[6],
        used_wal_senders=row[7],
        wal_sender_timeout_ms=row[8],
        max_slot_wal_keep_size_mb=row[9],
        pending_restart=frozenset(row[10]),
        in_recovery=row[11],
        wal_position=Lsn.parse(row[12]) if row[12] else None,
        system_identifier=identity[0],
        timeline=identity[1],
        database=row[13],
        encoding=row[14],
        user=row[15],
    )


def wal_ends(conn: psycopg.Connection) -> tuple[Lsn, Lsn]:
    """Read up to where the WAL of a primary is flushed, and up to where it is written at all."""
    row = conn.execute("SELECT pg_current_wal_flush_lsn()::text, pg_current_wal_insert_lsn()::text").fetchone()
    assert row is not None
    return Lsn.parse(row[0]), Lsn.parse(row[1])
