"""Find out what keeps logical replication from working, and how to mend it."""

from __future__ import annotations

from pgrepl.doctor.check import Explanation
from pgrepl.doctor.context import ConfiguredDatabase
from pgrepl.doctor.engine import check_ids, explain, run
from pgrepl.doctor.findings import Finding, Fix, Status
from pgrepl.doctor.report import Report, ServerIdentity

__all__ = [
    "ConfiguredDatabase",
    "Explanation",
    "Finding",
    "Fix",
    "Report",
    "ServerIdentity",
    "Status",
    "check_ids",
    "explain",
    "run",
]
