"""The way out: events to lines to the sink, and with them the position that is done."""

from __future__ import annotations

from pgrepl.engine.patience import Patience, at_once
from pgrepl.events import Event
from pgrepl.formats import Format
from pgrepl.lsn import Lsn
from pgrepl.sinks import Sink

WRITE_BYTES = 64 << 10
"""How many bytes are gathered before they are written, at the most plus one event."""


class Output:
    """Gather lines and write them; a position reaches the sink only after every line before it.

    ``printed`` is the position up to which all that was done is written. What the sink is asked to do goes through
    ``patiently``, which may ask again.
    """

    def __init__(self, output_format: Format, sink: Sink, patiently: Patience = at_once) -> None:
        self._format = output_format
        self._sink = sink
        self._patiently = patiently
        self._lines: list[bytes] = []
        # What the sink has been given and has not taken yet.
        self._unwritten = b""
        self._size = 0
        self._written = 0
        # The last boundary between transactions, once there is one: bytes up to it, and its position.
        self._boundary: tuple[int, Lsn] | None = None
        self.printed = Lsn(0)

    @property
    def full(self) -> bool:
        """Whether it is time to write."""
        return self._size >= WRITE_BYTES

    def format(self, event: Event) -> bytes:
        """Give the line of an event without printing it."""
        return self._format.encode(event)

    def emit(self, event: Event) -> None:
        """Print an event."""
        self.add(self._format.encode(event))

    def add(self, line: bytes) -> None:
        """Print a line, or several."""
        if line:
            self._lines.append(line)
            self._size += len(line)

    def boundary(self, position: Lsn) -> None:
        """Say that what has been printed so far holds whole transactions only, all those before ``position``."""
        if self._boundary is None or position >= self._boundary[1]:
            self._boundary = (self._written + self._size, position)

    def write(self) -> None:
        """Hand everything to the sink, however long it takes."""
        while self._unwritten or self._lines:
            if not self._unwritten:
                self._unwritten = b"".join(self._lines)
                self._lines.clear()
            self._patiently(lambda: self._sink.write(self._unwritten))
            self._written += len(self._unwritten)
            self._size -= len(self._unwritten)
            self._unwritten = b""
        if self._boundary is not None:
            written, position = self._boundary
            self._patiently(lambda: self._sink.mark(written, position))
            self.printed = position

    def sync(self) -> None:
        """Write everything, and make it durable up to the last boundary now."""
        self.write()
        self._patiently(self._sink.sync)

    def reopen(self) -> None:
        """Let the sink go on in a new file of the same name, when all that was printed are whole transactions."""
        self.sync()
        self._patiently(self._sink.reopen)

    def tick(self) -> None:
        """Let the sink do what is due."""
        self._patiently(self._sink.tick)

    def durable(self) -> Lsn:
        """The position up to which everything is durable."""
        return self._sink.durable()

    def discard(self) -> None:
        """Forget what was not written, of an attempt that is over, and where its last boundary was.

        The sink keeps the last one that it was told of.
        """
        self._lines.clear()
        self._unwritten = b""
        self._size = 0
        self._boundary = None

    def close(self) -> None:
        """Write the rest and make it durable."""
        self.write()
        self._patiently(self._sink.close)
