"""Comparing what the tracker records, the published values, files, and the catalog."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from pgrepl.catalog import etl_schema
from pgrepl.catalog.etl_manifest import MIGRATIONS
from pgrepl.catalog.etl_schema import MigrationStatus

if TYPE_CHECKING:
    import psycopg


@dataclass(frozen=True)
class Mismatch:
    """One thing that is not as expected, of a version: its record, its file, or an object; None for what is absent."""

    version: int
    subject: Literal["record", "file", "object"]
    object: str | None
    expected: str | None
    found: str | None

    def document(self) -> dict[str, Any]:
        """Give what is printed as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Verification:
    """How each version stands, and everything that is not as expected."""

    statuses: tuple[MigrationStatus, ...]
    mismatches: tuple[Mismatch, ...]


def verify(conn: psycopg.Connection, files: Mapping[int, str] | None = None) -> Verification:
    """Compare everything with everything; ``files`` are the checksums of ``files.checksums``.

    Records and files are compared with the published values, objects with those after the newest version.
    Raises OperationError when the connected role may not read the tracker.
    """
    schema = etl_schema.read(conn)
    statuses = schema.statuses()
    mismatches: list[Mismatch] = []
    for status in statuses:
        version, expected, recorded = status.version, status.expected_checksum, status.recorded_checksum
        if recorded != expected or status.failed:
            found = "failed" if status.failed else recorded
            mismatches.append(Mismatch(version, "record", None, expected, found))
        if files is not None and files.get(version) != expected:
            mismatches.append(Mismatch(version, "file", None, expected, files.get(version)))
    for version in sorted((files or {}).keys() - {status.version for status in statuses}):
        mismatches.append(Mismatch(version, "file", None, None, (files or {})[version]))
    for lacking in schema.differences(MIGRATIONS[-1].version):
        mismatches.append(Mismatch(lacking.version, "object", lacking.object, lacking.expected, lacking.found))
    return Verification(tuple(statuses), tuple(mismatches))
