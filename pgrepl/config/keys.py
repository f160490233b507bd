"""What may be configured: the keys, the values they take, and the keys of pgsense-rs that mean nothing here.

Values are taken as pgsense-rs takes them: a number or a switch may be written as text, as it is in the environment,
and a text may be written as a whole number.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, get_args

from pgrepl.errors import InputError

Store = Literal["memory", "postgres", "bookmarks"]
Value = str | int | bool

_SWITCHES = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}


class Key(NamedTuple):
    """A key below its table: how its value is read, and what it is when it is not configured.

    ``read`` raises ValueError with what the value must be, and never with the value.
    """

    read: Callable[[Any], Value]
    default: Value | None = None


def _text(raw: Any) -> str:
    text = str(raw) if isinstance(raw, int) and not isinstance(raw, bool) else raw
    if not isinstance(text, str):
        raise ValueError("must be a text")
    if not text.strip():
        raise ValueError("is blank")
    if "\0" in text:
        raise ValueError("has a zero byte in it")
    return text


def _password(raw: Any) -> str:
    if not isinstance(raw, str):
        raise ValueError('must be a text or { file = "…" }')
    if "\0" in raw:
        raise ValueError("has a zero byte in it")
    return raw


def _certificates(raw: Any) -> str:
    if not isinstance(raw, str) or "\0" in raw:
        raise ValueError("must be a text: certificates in PEM, or the path of a file of them")
    return raw


def _switch(raw: Any) -> bool:
    found = _SWITCHES.get(str(raw).lower()) if isinstance(raw, str | int) else None
    if found is None:
        raise ValueError("must be true or false")
    return found


def _number(first: int, last: int) -> Callable[[Any], int]:
    def read(raw: Any) -> int:
        digits = isinstance(raw, str) and raw.isascii() and raw.isdigit() and len(raw) <= 9
        number = int(raw) if digits else raw
        if not isinstance(number, int) or isinstance(number, bool) or not first <= number <= last:
            raise ValueError(f"must be a number from {first} to {last}")
        return number

    return read


def _store(raw: Any) -> str:
    if raw not in get_args(Store):
        raise ValueError(f"must be one of {', '.join(get_args(Store))}")
    return str(raw)


PIPELINE = {
    "store": Key(_store, "memory"),
    "state_dsn": Key(_text),
    "state_table": Key(_text, "faucet_state"),
    "state_pool": Key(_number(1, 1000), 5),
}
DATABASE = {
    "name": Key(_text),
    "host": Key(_text, "localhost"),
    "port": Key(_number(1, 65535), 5432),
    "dbname": Key(_text, "postgres"),
    "username": Key(_text, "postgres"),
    "password": Key(_password),
    "password.file": Key(_text),
    "publication": Key(_text),
    "tls.enabled": Key(_switch, False),
    "tls.trusted_root_certs": Key(_certificates),
}
SECRETS = {"password"}

# pgsense-rs takes this publication where an entry names none.
PGSENSE_PUBLICATION = "pgsense_pub"
PGSENSE_TABLES = {"alerts", "log", "profiling", "rules_file", "scan", "server", "telemetry"}
PGSENSE_DATABASE = {"scan"}
PGSENSE_PIPELINE = {
    "batch_max_fill_ms",
    "batch_memory_budget_ratio",
    "max_copy_connections_per_table",
    "max_table_sync_workers",
    "memory_refresh_interval_ms",
    "table_error_retry_delay_ms",
    "table_error_retry_max_attempts",
}


def value(key: Key, name: str, raw: Any, where: str) -> Value:
    """Read one value; raises InputError that says where it stands and what it must be."""
    try:
        return key.read(raw)
    except ValueError as error:
        hint = (
            "'pgrepl config set --help' has an example" if key.default is None else f"without it, it is {key.default}"
        )
        raise InputError(f"{where}: {name} {error}", hint=hint) from None


def nearest(name: str, known: Iterable[str]) -> str:
    """Give the hint for a key that is not known."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
