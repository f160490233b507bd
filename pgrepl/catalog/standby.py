"""What decides whether slots survive a failover: the settings of the primary and of the standby that was asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psycopg


@dataclass(frozen=True)
class Replicas:
    """Settings of one server about its standbys, or about itself when it is one.

    What a version does not have is None. ``synchronized_standby_slots`` are names. ``conninfo_dbname`` is the database
    in primary_conninfo, empty without one, and None where the asker may not see that setting.
    """

    hot_standby_feedback: bool
    primary_slot_name: str
    conninfo_dbname: str | None
    sync_replication_slots: bool | None
    synchronized_standby_slots: tuple[str, ...] | None


# pg_settings leaves out what only members of pg_read_all_settings may see, where current_setting raises.
_REPLICAS = """
SELECT current_setting('hot_standby_feedback')::boolean, current_setting('primary_slot_name'),
       (SELECT setting FROM pg_catalog.pg_settings WHERE name = 'primary_conninfo'),
       current_setting('sync_replication_slots', true)::boolean,
       current_setting('synchronized_standby_slots', true)
"""


def read(conn: psycopg.Connection) -> Replicas:
    """Read the settings; any role that can connect may."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    row = conn.execute(_REPLICAS).fetchone()
    assert row is not None
    feedback, slot_name, conninfo, sync, synchronized = row
    dbname = None
    if conninfo is not None:
        # It holds a password as a rule: nothing else of it goes on.
        try:
            dbname = str(conninfo_to_dict(conninfo).get("dbname") or "")
        except ProgrammingError:
            dbname = ""
    names = None
    if synchronized is not None:
        names = tuple(name for part in synchronized.split(",") if (name := part.strip().strip('"')))
    return Replicas(feedback, slot_name, dbname, sync, names)
