"""Settings of the server, of a role, and of a session as any client gets it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psycopg


@dataclass(frozen=True)
class Setting:
    """One row of pg_settings.

    ``value`` is a number in ``unit`` or a text, as in pg_settings; ``source`` says where it came from, ``command line``
    for one that was given when the server was started and that no file can change.
    """

    name: str
    value: str
    unit: str | None
    source: str
    pending_restart: bool

    @property
    def number(self) -> int:
        """The value of a setting that is a whole number, in its unit."""
        return int(self.value)


@dataclass(frozen=True)
class RoleSetting:
    """What ALTER ROLE or ALTER DATABASE has set.

    ``value`` is as it was written there, ``for_database`` and ``for_role`` say for which sessions it holds.
    """

    name: str
    value: str
    for_database: bool
    for_role: bool


_SETTINGS = """
SELECT s.name, s.setting, s.unit, s.source, s.pending_restart FROM pg_catalog.pg_settings s WHERE s.name = ANY (%s)
"""

# The server lets the narrower of two win: role in database, role, database, all.
_ROLE_SETTINGS = """
SELECT DISTINCT ON (c.name) c.name, c.value, c.for_database, c.for_role
  FROM (SELECT split_part(w.entry, '=', 1) AS name, substr(w.entry, strpos(w.entry, '=') + 1) AS value,
               r.setdatabase <> 0 AS for_database, r.setrole <> 0 AS for_role
          FROM pg_catalog.pg_db_role_setting r
         CROSS JOIN LATERAL unnest(r.setconfig) AS w (entry)
         WHERE r.setrole IN (0, %s::oid)
           AND r.setdatabase IN (0, (SELECT d.oid FROM pg_catalog.pg_database d
                                      WHERE d.datname = current_database()))) c
 ORDER BY c.name, c.for_role DESC, c.for_database DESC
"""


def read(conn: psycopg.Connection, names: Sequence[str]) -> dict[str, Setting]:
    """Read settings as they hold in this session, by name; one that this version does not have is absent."""
    return {row[0]: Setting(*row) for row in conn.execute(_SETTINGS, [list(names)])}


def of_role(conn: psycopg.Connection, role_oid: int) -> dict[str, RoleSetting]:
    """Read what is set for sessions of a role in this database, by name; of several that hold, the one that wins."""
    return {row[0]: RoleSetting(*row) for row in conn.execute(_ROLE_SETTINGS, [role_oid])}


_MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1e3, "min": 6e4, "h": 36e5, "d": 864e5}
_BYTES = {"B": 1.0, "kB": 1024.0, "MB": 1024.0**2, "GB": 1024.0**3, "TB": 1024.0**4}


def amount(text: str, unit: str | None) -> float:
    """Read a setting with or without a unit of its own, as it may stand in a file or an ALTER ROLE, in ``unit``.

    Raises ValueError for what is no number with a unit that the server knows.
    """
    match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None:
        raise ValueError(text)
    number, given = float(match[1]), match[2]
    if not given or unit is None or number < 0:
        return number
    for factors in (_MILLISECONDS, _BYTES):
        if unit in factors and given in factors:
            return number * factors[given] / factors[unit]
    raise ValueError(text)
