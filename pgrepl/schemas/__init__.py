"""JSON Schemas (2020-12) of what the commands print with ``--json``, and of the lines of ``tail``.

Each is the file of a command, its words joined by hyphens: ``slots-list.json`` is what ``pgrepl slots list --json``
prints. With ``--format jsonl`` a list comes as one element a line. Nothing is printed that is not in the schema.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

_SUFFIX = ".json"


def names() -> list[str]:
    """List the commands that have a schema, such as ``slots list``."""
    found = (file.name for file in files(__name__).iterdir())
    return sorted(name.removesuffix(_SUFFIX).replace("-", " ") for name in found if name.endswith(_SUFFIX))


def read(command: str) -> dict[str, Any]:
    """Read the schema of a command by its words, such as ``slots list``; raises FileNotFoundError."""
    file = files(__name__) / f"{command.replace(' ', '-')}{_SUFFIX}"
    schema: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return schema
