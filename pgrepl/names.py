"""The names that tools around supabase/etl agree on, of pipelines and slots, and how an identifier is quoted."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from pgrepl.errors import InputError

_FNV_START = 14695981039346656037
_FNV_PRIME = 1099511628211
_U64 = 1 << 64
_I64_END = 1 << 63

_APPLY = "supabase_etl_apply_"
_TABLE_SYNC = "supabase_etl_table_sync_"
_SLOT_NAME = re.compile(r"[a-z0-9_]{1,63}", re.ASCII)

SlotKind = Literal["apply", "table-sync", "other"]


class SlotName(NamedTuple):
    """What the name of a slot says: its kind, and for slots of an etl pipeline whose it is."""

    kind: SlotKind
    pipeline_id: int | None
    table_oid: int | None


def pipeline_id(host: str, dbname: str) -> int:
    """Derive the unsigned 64-bit id of the pipeline of a database: FNV-1a over ``host/dbname`` as configured."""
    value = _FNV_START
    for byte in f"{host}/{dbname}".encode():
        value = (value ^ byte) * _FNV_PRIME % _U64
    return value


def signed_id(pipeline: int) -> int:
    """Give the form of a pipeline id that a bigint column holds."""
    return pipeline - _U64 if pipeline >= _I64_END else pipeline


def unsigned_id(column: int) -> int:
    """Give the form of a pipeline id that stands in slot names, from either form."""
    return column % _U64


def apply_slot(pipeline: int) -> str:
    """Name the apply slot of a pipeline."""
    return f"{_APPLY}{unsigned_id(pipeline)}"


def table_sync_slot(pipeline: int, table_oid: int) -> str:
    """Name the slot with which supabase/etl copies one table."""
    return f"{_TABLE_SYNC}{unsigned_id(pipeline)}_{table_oid}"


def parse_slot(name: str) -> SlotName:
    """Say whose slot this is; every name that is not an etl slot's is of kind ``other``."""
    if name.startswith(_TABLE_SYNC):
        pipeline, _, oid = name[len(_TABLE_SYNC) :].rpartition("_")
        if _is_number(pipeline, _U64) and _is_number(oid, 1 << 32):
            return SlotName("table-sync", int(pipeline), int(oid))
    elif name.startswith(_APPLY):
        pipeline = name[len(_APPLY) :]
        if _is_number(pipeline, _U64):
            return SlotName("apply", int(pipeline), None)
    return SlotName("other", None, None)


def _is_number(text: str, end: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 20 and int(text) < end


def check_slot_name(name: str) -> str:
    """Return the name when the server would accept it for a slot; raises InputError otherwise."""
    if _SLOT_NAME.fullmatch(name) is None:
        raise InputError(
            f"{name!r} cannot be the name of a replication slot",
            hint="1 to 63 of lower-case letters, digits and underscores",
        )
    return name


def quote_ident(name: str) -> str:
    """Quote an identifier for SQL and for replication commands, always with double quotes.

    Raises InputError for what no identifier can be: an empty name, or one with a zero byte.
    """
    if not name or "\0" in name:
        raise InputError(f"{name!r} cannot be an identifier")
    return '"' + name.replace('"', '""') + '"'
