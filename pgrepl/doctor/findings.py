"""What a check found, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal


class Status(StrEnum):
    """How a check ended; ``unknown`` means that it could not run, which is neither good nor bad."""

    PASS = "pass"  # noqa: S105  no password
    INFO = "info"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"
    SKIP = "skip"


RELOAD = "SELECT pg_reload_conf();"


@dataclass(frozen=True)
class Fix:
    """One step of a fix: SQL that runs as it stands, a command of pgrepl's own, or an action outside of both."""

    kind: Literal["sql", "action", "command"]
    text: str


@dataclass(frozen=True)
class Finding:
    """The outcome of a check for one object, or for all that it looked at when ``object`` is None.

    ``evidence`` holds the values that were read, of types that JSON knows. The steps of ``fix`` go in their order; of
    a check that could not run they are what lets it run.
    """

    id: str
    title: str
    status: Status
    summary: str
    object: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    fix: tuple[Fix, ...] = ()

    def document(self) -> dict[str, Any]:
        """Give the finding as a JSON object."""
        return {
            "id": self.id,
            "status": self.status.value,
            "title": self.title,
            "summary": self.summary,
            "object": self.object,
            "evidence": dict(self.evidence),
            "fix": [{"kind": step.kind, "text": step.text} for step in self.fix],
        }
