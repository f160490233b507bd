"""A sink and an observer for pipelines that run inside a test."""

from __future__ import annotations

from pgrepl.lsn import Lsn


class MemorySink:
    """Keep what is written."""

    can_go_back = False

    def __init__(self) -> None:
        self.data = b""
        self._durable = Lsn(0)

    def write(self, data: bytes) -> None:
        self.data += data

    def reopen(self) -> None: ...

    def mark(self, written: int, position: Lsn) -> None:
        self._durable = position

    def durable(self) -> Lsn:
        return self._durable

    def sync(self) -> None: ...

    def tick(self) -> None: ...

    def close(self) -> None: ...


class Listener:
    """Keep the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def notice(self, message: str) -> None: ...

    def warning(self, message: str, *, hint: str | None = None) -> None:
        self.warnings.append(message)

    def may_copy(self, tables: object) -> bool:
        return True

    def progress(self, progress: object) -> None: ...
