"""Slots as tables and, where a terminal is too narrow for one, as paragraphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgrepl.units import duration_text, size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from pgrepl.catalog.slots import Holder, Slot

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
"""How each level of a verdict is drawn."""

TABLE_WIDTH = 150
"""Below this the columns would break every name; each slot gets a paragraph of its own instead."""


def table(found: Sequence[Slot], everything: bool) -> RenderableType:
    """Draw a line for each slot, with ``everything`` also whose database it is of."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    drawn.add_column("name", no_wrap=True)
    drawn.add_column("kind", no_wrap=True)
    if everything:
        drawn.add_column("database", overflow="fold")
    drawn.add_column("active", overflow="fold")
    drawn.add_column("wal_status", no_wrap=True)
    for name in ("retained", "lag", "safe", "inactive for"):
        drawn.add_column(name, justify="right", no_wrap=True)
    drawn.add_column("failover", no_wrap=True)
    drawn.add_column("verdict", overflow="fold", min_width=30)
    for slot in found:
        verdict = slot.verdict
        drawn.add_row(
            slot.name,
            kind(slot),
            *([printable(slot.database or "")] if everything else []),
            holder(slot.holder) if slot.holder else "no",
            slot.wal_status or "",
            size(slot.retained_bytes),
            size(slot.lag_bytes),
            size(slot.safe_wal_size),
            _inactive_for(slot),
            "" if slot.failover is None else "yes" if slot.failover else "no",
            Text(printable(verdict.text), style=STYLES[verdict.level]),
        )
    return drawn


def paragraphs(found: Sequence[Slot], everything: bool) -> RenderableType:
    """Draw three lines or more for each slot: its name, the verdict, and the figures."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    parts: list[RenderableType] = []
    for slot in found:
        verdict = slot.verdict
        facts = [
            (
                "",
                f"{kind(slot)} slot"
                + (f" of database {printable(slot.database)}" if everything and slot.database else ""),
            ),
            ("wal_status", slot.wal_status),
            ("keeps", size(slot.retained_bytes)),
            ("lag", size(slot.lag_bytes)),
            ("safe", size(slot.safe_wal_size)),
            ("failover", "yes" if slot.failover else None),
            ("used by", holder(slot.holder) if slot.holder else None),
        ]
        line = ", ".join(f"{name} {value}".strip() for name, value in facts if value)
        parts += [
            Text(slot.name, style="bold"),
            Padding(Text(printable(verdict.text), style=STYLES[verdict.level]), (0, 0, 0, 2)),
            Padding(Text(line, style="dim"), (0, 0, 0, 2)),
        ]
    return Group(*parts)


def kind(slot: Slot) -> str:
    """Name the kind of a slot."""
    return "physical" if slot.physical else slot.kind


def holder(session: Holder) -> str:
    """Say who uses a slot."""
    text = f"pid {session.pid}"
    if session.application_name:
        text += f" {printable(session.application_name)}"
    return f"{text} from {session.client_addr}" if session.client_addr else text


def size(count: int | None) -> str:
    """Write a number of bytes, nothing for one that is not known."""
    return "" if count is None else size_text(count)


def _inactive_for(slot: Slot) -> str:
    return "" if slot.active or slot.inactive_for is None else duration_text(slot.inactive_for)


def printable(text: str) -> str:
    """Show what would move the cursor, in names that others gave, as an escape."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
