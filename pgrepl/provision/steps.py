"""What a plan is made of: statements as data, gathered in steps, each with the state it is in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

StepName = Literal["check", "role", "grant", "publication", "schema", "migrations", "state", "slot"]
Status = Literal["created", "altered", "dropped", "exists", "skipped", "planned", "needs_superuser"]


@dataclass(frozen=True)
class Statement:
    """One SQL statement.

    ``text`` is what is shown, and what psql can run. A statement that carries a secret has it in ``secret``, which is
    run instead and never shown; its ``text`` is then a comment. ``locks`` are the OIDs of the tables that it locks, and
    ``advisory`` is the key of the advisory lock that it takes.
    """

    text: str
    secret: str | None = field(default=None, repr=False)
    locks: tuple[int, ...] = ()
    advisory: int | None = None

    @property
    def sql(self) -> str:
        """What the server is sent."""
        return self.secret or self.text

    @property
    def is_comment(self) -> bool:
        """Whether its text is a comment, which no semicolon ends."""
        return self.text.startswith("--")


@dataclass(frozen=True)
class Step:
    """One thing to take care of: what it is about, how it stands, and the statements that are left to run.

    ``planned`` becomes ``outcome`` once its statements have run. ``needs_superuser`` is what the connected role may not
    do. ``summary`` says in words for a person what the step is about. ``attempt`` marks a planned step of which nobody
    knows beforehand whether the connected role may do it: refused, it is undone and becomes ``needs_superuser``.
    """

    name: StepName
    status: Status
    object: str
    summary: str
    statements: tuple[Statement, ...] = ()
    outcome: Literal["created", "altered", "dropped"] = "created"
    attempt: bool = False


@dataclass(frozen=True)
class Note:
    """Something worth knowing that is no step, with a hint on what to do."""

    text: str
    hint: str | None = None


@dataclass(frozen=True)
class Plan:
    """What ``command`` found in ``database`` and what it would do, in the order in which it would do it.

    ``system_identifier`` is the server's, None where the connected role may not see it. ``address`` is host and port of
    the database where psql has to be told to go there.
    """

    database: str
    steps: tuple[Step, ...]
    notes: tuple[Note, ...] = ()
    system_identifier: str | None = None
    address: tuple[str, int] | None = None
    command: str = "setup"

    def statements(self) -> Iterator[tuple[Step, Statement]]:
        """Give the statements to run, with their steps."""
        for step in self.steps:
            if step.status == "planned":
                for statement in step.statements:
                    yield step, statement

    @property
    def has_work(self) -> bool:
        """Whether there is anything that the connected role would run."""
        return any(True for _ in self.statements())

    @property
    def left_out(self) -> tuple[Step, ...]:
        """The steps that somebody with more privileges must run."""
        return tuple(step for step in self.steps if step.status == "needs_superuser")

    @property
    def skipped(self) -> tuple[Step, ...]:
        """The steps that are not taken; the summary says why."""
        return tuple(step for step in self.steps if step.status == "skipped")
