"""The outcome of a run as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pgrepl.doctor.findings import RELOAD, Finding, Status
from pgrepl.errors import ConnectError

FailOn = Literal["warn", "fail", "unknown", "never"]

_AT_FAULT: Mapping[FailOn, frozenset[Status]] = {
    "fail": frozenset({Status.FAIL}),
    "warn": frozenset({Status.FAIL, Status.WARN}),
    "unknown": frozenset({Status.FAIL, Status.UNKNOWN}),
    "never": frozenset(),
}


@dataclass(frozen=True)
class ServerIdentity:
    """Which server was looked at; everything is None when none could be reached."""

    version: str | None = None
    version_num: int | None = None
    provider: str | None = None
    database: str | None = None
    system_identifier: str | None = None
    in_recovery: bool | None = None


@dataclass(frozen=True)
class Report:
    """What a run found. ``error`` is set when there was no connection."""

    server: ServerIdentity
    publications: Sequence[str]
    role: str | None
    store: str
    slot: str | None
    findings: Sequence[Finding]
    error: ConnectError | None = None

    def count(self, status: Status) -> int:
        """Count the findings of one status."""
        return sum(finding.status is status for finding in self.findings)

    def fails(self, fail_on: FailOn = "fail") -> bool:
        """Whether there is a finding that counts as a failure: ``warn`` and ``unknown`` include fail."""
        return any(finding.status in _AT_FAULT[fail_on] for finding in self.findings)

    @property
    def unseen(self) -> list[str]:
        """The ids of the checks that could not run, each once."""
        return list(dict.fromkeys(finding.id for finding in self.findings if finding.status is Status.UNKNOWN))

    @property
    def grants(self) -> list[str]:
        """The statements that let checks run that could not, each once."""
        unknown = (finding for finding in self.findings if finding.status is Status.UNKNOWN)
        return list(dict.fromkeys(step.text for finding in unknown for step in finding.fix if step.kind == "sql"))

    def document(self) -> dict[str, Any]:
        """Give the report as a JSON object."""
        return {
            "server": dict(self.server.__dict__),
            "target": {
                "publications": list(self.publications),
                "role": self.role,
                "store": self.store,
                "slot": self.slot,
            },
            "checks": [finding.document() for finding in self.findings],
            "summary": {status.value: self.count(status) for status in Status},
        }

    def fix_sql(self) -> str:
        """Give all fixes as one script for psql; what is no SQL stands in it as a comment, and no statement twice.

        The configuration is read again once, at the end.
        """
        lines: list[str] = []
        written: set[str] = set()
        reload = False
        for finding in self.findings:
            if finding.status not in (Status.FAIL, Status.WARN):
                continue
            about = f" ({finding.object})" if finding.object else ""
            lines.append(_comment(f"{finding.id}{about}: {finding.summary}"))
            for step in finding.fix:
                line = step.text if step.kind == "sql" else _comment(f"{step.kind}: {step.text}")
                if line == RELOAD:
                    reload = True
                elif step.kind != "sql" or line not in written:
                    lines.append(line)
                    written.add(line)
        if reload:
            lines.append(RELOAD)
        return "".join(f"{line}\n" for line in lines)


def _comment(text: str) -> str:
    # A comment ends with its line; a name may hold a line feed, and what follows it must not become SQL.
    return f"-- {' '.join(text.split())}"
