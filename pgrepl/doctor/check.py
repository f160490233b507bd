"""The shape of a check."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status


class Check(ABC):
    """One question to a server.

    The docstring of a check is its documentation: what is asked, what goes wrong otherwise, and what to do. ``needs``
    names the checks that must not have failed; the others need nothing of each other. With ``samples`` it looks at
    how fast WAL grows, and runs when the others have.
    """

    id: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ("conn.sql",)
    samples: ClassVar[bool] = False

    @abstractmethod
    def run(self, context: Context) -> Iterable[Finding]:
        """Answer it: one finding for each object at fault, or a single one when all is well.

        Raises what the server raises; the engine makes that ``unknown``.
        """

    def finding(
        self,
        status: Status,
        summary: str,
        evidence: Mapping[str, Any] | None = None,
        *,
        object: str | None = None,
        fix: Iterable[Fix] = (),
    ) -> Finding:
        """Make a finding of this check."""
        return Finding(self.id, self.title, status, summary, object, evidence or {}, tuple(fix))
