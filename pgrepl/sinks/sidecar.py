"""The file beside an output file that says how much of it counts."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgrepl.errors import InputError, OutputError
from pgrepl.lsn import Lsn

SUFFIX = ".pgrepl"
_HEAD_BYTES = 1024


@dataclass
class Sidecar:
    """What is known of an output file: its first ``offset`` bytes hold every transaction before ``position``.

    ``system_identifier`` and ``slot`` say whose changes they are, ``format`` how they are written, and ``copies`` how
    often each table (by OID) has been copied into it. ``told`` are the versions of tables, as JSON, that the file tells
    of before the position and the store does not know of yet. By ``inode`` the file is found under another name, and by
    the ``digest`` of its first ``head`` bytes, which may be more than count, it is told from any other.
    """

    offset: int
    position: Lsn
    system_identifier: str
    slot: str
    format: str
    copies: dict[int, int] = field(default_factory=dict)
    inode: int = 0
    head: int = 0
    digest: str = ""
    told: dict[int, dict[str, Any]] = field(default_factory=dict)

    def describe(self, fd: int, coming: bytes = b"") -> None:
        """Take down what the file is known by that is open as ``fd``; ``coming`` is what an empty one will hold."""
        self.inode = os.fstat(fd).st_ino
        beginning = os.pread(fd, _HEAD_BYTES, 0) or coming[:_HEAD_BYTES]
        self.head, self.digest = len(beginning), _digest(beginning)

    def contradicts(self, fd: int) -> bool:
        """Whether a file begins with something else than what was written; one that was cut has less of it."""
        beginning = os.pread(fd, self.head, 0)
        return len(beginning) == self.head and _digest(beginning) != self.digest

    def find(self, directory: Path) -> Path | None:
        """Find the file by whatever name it has in a directory."""
        with os.scandir(directory) as entries:
            same = [entry for entry in entries if entry.inode() == self.inode]
            names = [entry.path for entry in same if entry.is_file(follow_symlinks=False)]
        for name in names if self.head else ():
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                # An inode's number is given out again once its file is deleted.
                if os.fstat(fd).st_size >= max(self.head, self.offset) and not self.contradicts(fd):
                    return Path(name)
            finally:
                os.close(fd)
        return None


def _digest(beginning: bytes) -> str:
    return hashlib.sha256(beginning).hexdigest()[:16]


def path_of(output: Path) -> Path:
    """Name the sidecar of an output file."""
    return output.with_name(output.name + SUFFIX)


def read(output: Path) -> Sidecar | None:
    """Read the sidecar of an output file, None when there is none. Raises InputError for a broken one."""
    path = path_of(output)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        copies = {int(oid): int(count) for oid, count in document["copies"].items()}
        told = {int(oid): dict(version) for oid, version in document["told"].items()}
        offset, inode, head = numbers = [document[key] for key in ("offset", "inode", "head")]
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError("numbers")
        names = [document[key] for key in ("system_identifier", "slot", "format", "digest")]
        if not all(isinstance(name, str) for name in names):
            raise ValueError("names")
        system_identifier, slot, format_name, digest = names
        position = Lsn.parse(document["position"])
        return Sidecar(offset, position, system_identifier, slot, format_name, copies, inode, head, digest, told)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, InputError):
        raise InputError(
            f"{path} is not a sidecar that pgrepl has written", hint="--overwrite begins the output anew"
        ) from None


def write(output: Path, sidecar: Sidecar) -> None:
    """Replace the sidecar as one step that survives a crash of the machine. Raises OutputError."""
    path = path_of(output)
    temporary = path.with_name(path.name + ".new")
    document = {
        "pgrepl_output": 1,
        "offset": sidecar.offset,
        "position": str(sidecar.position),
        "system_identifier": sidecar.system_identifier,
        "slot": sidecar.slot,
        "format": sidecar.format,
        "inode": sidecar.inode,
        "head": sidecar.head,
        "digest": sidecar.digest,
        "told": {str(oid): version for oid, version in sorted(sidecar.told.items())},
        "copies": {str(oid): count for oid, count in sorted(sidecar.copies.items())},
    }
    try:
        # Another file each time: one whose sync has failed is not trusted again.
        temporary.unlink(missing_ok=True)
        with temporary.open("x", encoding="utf-8") as file:
            file.write(json.dumps(document) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}", hint="make room, and it goes on by itself"
        ) from None


def _sync_directory(directory: Path) -> None:
    # A rename is durable only once its directory is.
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
