"""The file beside an output file that says how much of it counts."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from pgrepl.errors import InputError, OperationError
from pgrepl.lsn import Lsn

SUFFIX = ".pgrepl"


@dataclass
class Sidecar:
    """What is known of an output file: its first ``offset`` bytes hold every transaction before ``position``.

    ``system_identifier`` and ``slot`` say whose changes they are, ``format`` how they are written, and ``copies`` how
    often each table (by OID) has been copied into it.
    """

    offset: int
    position: Lsn
    system_identifier: str
    slot: str
    format: str
    copies: dict[int, int] = field(default_factory=dict)


def path_of(output: Path) -> Path:
    """Name the sidecar of an output file."""
    return output.with_name(output.name + SUFFIX)


def read(output: Path) -> Sidecar | None:
    """Read the sidecar of an output file, None when there is none. Raises InputError for a broken one."""
    path = path_of(output)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        copies = {int(oid): int(count) for oid, count in document["copies"].items()}
        offset = document["offset"]
        if not isinstance(offset, int) or offset < 0:
            raise ValueError("offset")
        system_identifier, slot, format_name = (document[key] for key in ("system_identifier", "slot", "format"))
        if not all(isinstance(name, str) for name in (system_identifier, slot, format_name)):
            raise ValueError("names")
        return Sidecar(offset, Lsn.parse(document["position"]), system_identifier, slot, format_name, copies)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, InputError):
        raise InputError(
            f"{path} is not a sidecar that pgrepl has written", hint="--overwrite begins the output anew"
        ) from None


def write(output: Path, sidecar: Sidecar) -> None:
    """Replace the sidecar as one step that survives a crash of the machine. Raises OperationError."""
    path = path_of(output)
    temporary = path.with_name(path.name + ".new")
    document = {
        "pgrepl_output": 1,
        "offset": sidecar.offset,
        "position": str(sidecar.position),
        "system_identifier": sidecar.system_identifier,
        "slot": sidecar.slot,
        "format": sidecar.format,
        "copies": {str(oid): count for oid, count in sorted(sidecar.copies.items())},
    }
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(document) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise OperationError(f"cannot write {path}: {error.strerror}") from None


def _sync_directory(directory: Path) -> None:
    # A rename is durable only once its directory is.
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
