"""The tables of pgrepl's own in which stores keep their state; docs/state.md describes their columns."""

from __future__ import annotations

import re

from pgrepl.errors import InputError
from pgrepl.names import quote_ident

PIPELINES = "pgrepl_pipelines"
# The bookmarks' table is named without a schema wherever it is named, and this is where such a name leads by default.
BOOKMARKS_SCHEMA = "public"
DEFAULT_BOOKMARKS = "faucet_state"

CREATE_PIPELINES = f"""\
CREATE TABLE etl.{PIPELINES} (
    pipeline_id bigint PRIMARY KEY,
    slot_name text NOT NULL,
    publications text[] NOT NULL,
    system_identifier text NOT NULL,
    timeline integer NOT NULL,
    position pg_lsn NOT NULL,
    attempts jsonb NOT NULL DEFAULT '{{}}',
    told jsonb NOT NULL DEFAULT '{{}}',
    updated_at timestamp with time zone NOT NULL DEFAULT now()
)"""

_NAME_BYTES = 63
_ILLEGAL = re.compile(r"[^A-Za-z0-9_]", re.ASCII)


def create_bookmarks(table: str) -> str:
    """Write the statement that makes a table of bookmarks, of the layout that faucet-stream uses."""
    return f"""\
CREATE TABLE {qualified_bookmarks(table)} (
    key text PRIMARY KEY,
    value jsonb NOT NULL,
    updated_at timestamp with time zone NOT NULL DEFAULT now()
)"""


def qualified_bookmarks(table: str) -> str:
    """Give the name of a table of bookmarks in SQL."""
    return f"{quote_ident(BOOKMARKS_SCHEMA)}.{quote_ident(table)}"


def check_bookmarks_name(table: str) -> str:
    """Return the name when faucet-stream would take it for a table of bookmarks; raises InputError otherwise."""
    if not table:
        raise InputError("the name of the table of bookmarks is empty")
    if len(table.encode()) > _NAME_BYTES:
        raise InputError(f"the name of the table of bookmarks {table!r} is longer than {_NAME_BYTES} bytes")
    illegal = _ILLEGAL.search(table)
    if illegal:
        raise InputError(
            f"the name of the table of bookmarks {table!r} has {illegal[0]!r} in it",
            hint="letters A to Z, digits and underscores, and no schema",
        )
    return table
