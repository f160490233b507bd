"""Events to bytes."""

from __future__ import annotations

from typing import Protocol

from pgrepl.events import Event


class Format(Protocol):
    """Turn an event into the bytes that stand for it, its line end included; empty when the format has none for it."""

    def encode(self, event: Event) -> bytes: ...
