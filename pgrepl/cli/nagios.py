"""A report as a monitoring plugin gives it: one line, performance data after a bar, and an exit code of its own."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgrepl.doctor import Report
    from pgrepl.doctor.report import FailOn


class PluginCode(IntEnum):
    """The exit codes of monitoring plugins (Monitoring Plugins Development Guidelines)."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


def line(report: Report, fail_on: FailOn) -> tuple[str, PluginCode]:
    """Give the line and the exit code.

    A failed check is critical, one to look at a warning. What could not run counts, as unknown, with
    ``--fail-on unknown`` alone; with ``never`` nothing counts.
    """
    from pgrepl.doctor import Status

    states = {Status.FAIL: PluginCode.CRITICAL, Status.WARN: PluginCode.WARNING}
    if fail_on == "unknown":
        states[Status.UNKNOWN] = PluginCode.UNKNOWN
    code = PluginCode.OK
    if fail_on != "never":
        code = next((code for status, code in states.items() if report.count(status)), PluginCode.OK)
    counts = {status: report.count(status) for status in Status}
    words = {Status.FAIL: "failed", Status.WARN: "to look at", Status.UNKNOWN: "could not run"}
    parts = [f"{counts[status]} {word}" for status, word in words.items() if counts[status]]
    parts = parts or [f"{counts[Status.PASS]} passed"]
    worst = next((status for status in states if counts[status]), None)
    named = [finding for finding in report.findings if finding.status is worst]
    detail = [f"{finding.id}{f' {finding.object}' if finding.object else ''}: {finding.summary}" for finding in named]
    data = " ".join(f"{status.value}={count}" for status, count in counts.items())
    return f"{_head(code, ', '.join(parts))}{' - ' if detail else ''}{_plain('; '.join(detail))} | {data}", code


def unknown(reason: str) -> tuple[str, PluginCode]:
    """Say that nothing could be found out."""
    return f"{_head(PluginCode.UNKNOWN, _plain(reason))}", PluginCode.UNKNOWN


def _head(code: PluginCode, text: str) -> str:
    return f"PGREPL {code.name}: {text}"


def _plain(text: str) -> str:
    # The bar begins the performance data, and the line ends the answer.
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text.replace("|", "/"))
