"""Find out what keeps logical replication from working, and how to mend it."""

from __future__ import annotations

from pgrepl.doctor.engine import run
from pgrepl.doctor.findings import Finding, Fix, Status
from pgrepl.doctor.report import Report, ServerIdentity

__all__ = ["Finding", "Fix", "Report", "ServerIdentity", "Status", "run"]
