"""The way out: events to bytes to the sink, and with them the position that is done."""

from __future__ import annotations

from pgrepl import events
from pgrepl.events import Event
from pgrepl.formats import Format
from pgrepl.lsn import Lsn
from pgrepl.sinks import Sink

WRITE_BYTES = 64 << 10
"""How many bytes are gathered before they are written, at the most plus one event."""

_ROWS = (events.Read, events.Insert, events.Update, events.Delete)


class Output:
    """Gather the lines of events and write them; a position reaches the sink only after every line before it.

    ``rows`` counts the row events, ``printed`` is the position up to which all that was done is written.
    """

    def __init__(self, output_format: Format, sink: Sink) -> None:
        self._format = output_format
        self._sink = sink
        self._lines: list[bytes] = []
        self._size = 0
        self._done = Lsn(0)
        self.printed = Lsn(0)
        self.rows = 0

    @property
    def full(self) -> bool:
        """Whether it is time to write."""
        return self._size >= WRITE_BYTES

    def emit(self, event: Event) -> bool:
        """Take an event; tells whether it is a row event."""
        line = self._format.encode(event)
        if line:
            self._lines.append(line)
            self._size += len(line)
        if isinstance(event, _ROWS):
            self.rows += 1
            return True
        return False

    def done(self, position: Lsn) -> None:
        """Say that every transaction before ``position`` has been emitted; it only goes forward."""
        if position > self._done:
            self._done = position

    def write(self) -> None:
        """Hand everything to the sink, however long it takes."""
        if self._lines:
            data = b"".join(self._lines)
            self._lines.clear()
            self._size = 0
            self._sink.write(data)
        self._sink.position(self._done)
        self.printed = self._done

    def tick(self) -> None:
        """Let the sink do what is due."""
        self._sink.tick()

    def durable(self) -> Lsn:
        """The position up to which everything is durable."""
        return self._sink.durable()

    def discard(self) -> None:
        """Forget what was not written, of an attempt that is over."""
        self._lines.clear()
        self._size = 0

    def close(self) -> None:
        """Write the rest and make it durable."""
        self.write()
        self._sink.close()
