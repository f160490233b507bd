"""pgrepl: set up, check, clean and tail PostgreSQL logical replication.

What stands in ``__all__`` is the public API; each part is loaded when it is first asked for. docs/library.md shows how
it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# What a type checker reads; _HOMES says the same to Python, so that no command loads what it does not use.
if TYPE_CHECKING:
    from pgrepl import connection, conninfo, doctor, provision
    from pgrepl.conninfo import ConnectionTarget
    from pgrepl.engine.pipeline import Observer, Options, Outcome, Pipeline, Progress
    from pgrepl.engine.selection import Selection
    from pgrepl.errors import (
        ConnectError,
        InputError,
        OperationError,
        OutputError,
        PgreplError,
        PositionError,
        ProtocolError,
        SyncError,
        TimeLimitError,
    )
    from pgrepl.events import (
        Begin,
        Column,
        Commit,
        Delete,
        Event,
        Insert,
        Message,
        Read,
        SchemaChange,
        SchemaDiff,
        SnapshotBegin,
        SnapshotEnd,
        Table,
        Transaction,
        Truncate,
        Update,
    )
    from pgrepl.formats import Format
    from pgrepl.formats.json import JsonLines
    from pgrepl.formats.pretty import Pretty
    from pgrepl.lsn import Lsn
    from pgrepl.sinks import Sink
    from pgrepl.sinks.file import FileSink
    from pgrepl.sinks.stream import StreamSink
    from pgrepl.stores import Store
    from pgrepl.stores.memory import MemoryStore
    from pgrepl.stores.postgres import PostgresStore

__all__ = [
    "Begin",
    "Column",
    "Commit",
    "ConnectError",
    "ConnectionTarget",
    "Delete",
    "Event",
    "FileSink",
    "Format",
    "InputError",
    "Insert",
    "JsonLines",
    "Lsn",
    "MemoryStore",
    "Message",
    "Observer",
    "OperationError",
    "Options",
    "Outcome",
    "OutputError",
    "PgreplError",
    "Pipeline",
    "PositionError",
    "PostgresStore",
    "Pretty",
    "Progress",
    "ProtocolError",
    "Read",
    "SchemaChange",
    "SchemaDiff",
    "Selection",
    "Sink",
    "SnapshotBegin",
    "SnapshotEnd",
    "Store",
    "StreamSink",
    "SyncError",
    "Table",
    "TimeLimitError",
    "Transaction",
    "Truncate",
    "Update",
    "connection",
    "conninfo",
    "doctor",
    "provision",
]

_MODULES = ("connection", "conninfo", "doctor", "provision")
_HOMES = {
    "pgrepl.conninfo": ("ConnectionTarget",),
    "pgrepl.engine.pipeline": (
        "Observer",
        "Options",
        "Outcome",
        "Pipeline",
        "Progress",
    ),
    "pgrepl.engine.selection": ("Selection",),
    "pgrepl.errors": (
        "ConnectError",
        "InputError",
        "OperationError",
        "OutputError",
        "PgreplError",
        "PositionError",
        "ProtocolError",
        "SyncError",
        "TimeLimitError",
    ),
    "pgrepl.events": (
        "Begin",
        "Column",
        "Commit",
        "Delete",
        "Event",
        "Insert",
        "Message",
        "Read",
        "SchemaChange",
        "SchemaDiff",
        "SnapshotBegin",
        "SnapshotEnd",
        "Table",
        "Transaction",
        "Truncate",
        "Update",
    ),
    "pgrepl.formats": ("Format",),
    "pgrepl.formats.json": ("JsonLines",),
    "pgrepl.formats.pretty": ("Pretty",),
    "pgrepl.lsn": ("Lsn",),
    "pgrepl.sinks": ("Sink",),
    "pgrepl.sinks.file": ("FileSink",),
    "pgrepl.sinks.stream": ("StreamSink",),
    "pgrepl.stores": ("Store",),
    "pgrepl.stores.memory": ("MemoryStore",),
    "pgrepl.stores.postgres": ("PostgresStore",),
}


def _load(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"pgrepl.{name}")
    for module, names in _HOMES.items():
        if name in names:
            value: object = getattr(importlib.import_module(module), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'pgrepl' has no attribute {name!r}")


if not TYPE_CHECKING:
    # A type checker would take it for a promise that every name is there.
    __getattr__ = _load


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
