"""The shape of a check."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status


@dataclass(frozen=True)
class Explanation:
    """The documentation of a check: what it asks and why it fails, what then goes wrong, what to do, where to read."""

    id: str
    title: str
    cause: str
    risk: str
    fix: str
    links: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Give it as a JSON object."""
        return {**self.__dict__, "links": list(self.links)}


class Check(ABC):
    """One question to a server.

    The docstring of a check is its documentation, and what ``pgrepl explain`` prints: paragraphs on what is asked and
    what is behind it, then one that begins with ``Risk:``, one with ``Fix:``, and one with ``See:`` and addresses.
    ``needs`` names the checks that must not have failed; the others need nothing of each other. ``grant`` is the role
    whose members can see what the check looks at, where not everyone can. With
    ``samples`` it looks at how fast WAL grows, and runs when the others have.
    """

    id: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ("conn.sql",)
    samples: ClassVar[bool] = False
    grant: ClassVar[str | None] = None

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

    @classmethod
    def explanation(cls) -> Explanation:
        """Read the documentation of the check from its docstring."""
        parts: dict[str, list[str]] = {"Cause": [], "Risk": [], "Fix": [], "See": []}
        for paragraph in inspect.cleandoc(cls.__doc__ or "").split("\n\n"):
            label, colon, text = paragraph.partition(":")
            if colon and label in parts:
                parts[label].append(text.strip())
            else:
                parts["Cause"].append(paragraph)
        cause, risk, fix = ("\n\n".join(_sentence(text) for text in parts[label]) for label in ("Cause", "Risk", "Fix"))
        return Explanation(cls.id, cls.title, cause, risk, fix, tuple(" ".join(parts["See"]).split()))


def _sentence(text: str) -> str:
    line = " ".join(text.split()).replace("``", "")
    return line[:1].upper() + line[1:]
