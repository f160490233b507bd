"""One replication connection: commands to the walsender, with a wait that can be watched and broken off."""

from __future__ import annotations

import logging
import re
import select
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from psycopg import Error, pq
from psycopg import connect as psycopg_connect

from pgrepl.connection import log_connected, one_line, session_params
from pgrepl.errors import OperationError
from pgrepl.lsn import Lsn
from pgrepl.names import check_slot_name, quote_ident
from pgrepl.replication.verdicts import ConnectionLost, refused, result_error

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.errors import Diagnostic

    from pgrepl.conninfo import ConnectionTarget

_log = logging.getLogger(__name__)

_WAIT_STEP = 0.25
_CANCEL_SECONDS = 5.0
_SKIPS_PUBLICATION = "LoadPublications"

# What takes time is told to the caller: how many seconds so far. It may raise to break the wait off.
Waiting = Callable[[float], None]


class Notice(NamedTuple):
    """Something that the server says beside its answers."""

    text: str
    hint: str | None


@dataclass(frozen=True)
class CreatedSlot:
    """What CREATE_REPLICATION_SLOT answers.

    Every transaction with ``commit_lsn >= consistent_point`` is streamed, every other one is in the snapshot.
    """

    name: str
    consistent_point: Lsn
    snapshot_name: str | None


class Walsender:
    """A connection in replication mode to one database (PostgreSQL documentation, Streaming Replication Protocol)."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.pgconn = connection.pgconn
        self.skipped_publication: str | None = None
        self._notices: deque[Notice] = deque()
        connection.add_notice_handler(self._notice)

    @classmethod
    def open(cls, target: ConnectionTarget, application_name: str) -> Walsender:
        """Connect. Raises ConnectError, and OperationError when the role may not replicate or no walsender is free."""
        # A role setting could hide the warning that the server skips a publication.
        params = session_params(target, application_name, client_min_messages="warning")
        params["replication"] = "database"
        try:
            connection = psycopg_connect("", autocommit=True, **params)  # type: ignore[arg-type]
        except Error as error:
            raise refused(error, target) from None
        log_connected(connection, "walsender")
        return cls(connection)

    def _notice(self, diagnostic: Diagnostic) -> None:
        text = diagnostic.message_primary or ""
        # PostgreSQL 18 goes on without a publication that did not exist at the time of a change; its changes are lost.
        # Its messages may be in any language, its functions are not.
        skipped = diagnostic.source_function == _SKIPS_PUBLICATION or text.startswith("skipped loading publication")
        if diagnostic.sqlstate == "55000" and skipped:
            self.skipped_publication = text
            return
        detail = f" ({diagnostic.message_detail})" if diagnostic.message_detail else ""
        self._notices.append(Notice(text + detail, diagnostic.message_hint))

    def take_notices(self) -> list[Notice]:
        """Take what the server has said beside its answers and the stream."""
        notices = []
        while self._notices:
            notices.append(self._notices.popleft())
        return notices

    @property
    def pid(self) -> int:
        """The process id of the walsender."""
        return self._connection.info.backend_pid

    def close(self) -> None:
        """Close the connection; a temporary slot goes with it."""
        self._connection.close()

    def cancel(self) -> None:
        """Break off the command that runs: a walsender that waits does not see by itself that its client is gone."""
        self._connection.cancel_safe(timeout=_CANCEL_SECONDS)

    def query(self, command: str, waiting: Waiting | None = None) -> list[tuple[str | None, ...]]:
        """Send one command and return its rows as text.

        ``waiting`` is called about every quarter of a second. Raises OperationError with the server's SQLSTATE, or
        ConnectionLost.
        """
        result = self._execute(command, waiting)
        if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
            raise OperationError(f"unexpected answer to {command.split()[0]}")
        return [
            tuple(_text(result.get_value(row, column)) for column in range(result.nfields))
            for row in range(result.ntuples)
        ]

    def setting(self, name: str) -> str:
        """Read a setting as it holds for this walsender."""
        return self.query(f"SHOW {quote_ident(name)}")[0][0] or ""

    def wal_sender_timeout(self) -> float:
        """Read after how many seconds of silence the server hangs up; 0 for never."""
        text = self.setting("wal_sender_timeout")
        match = re.fullmatch(r"(\d+)(ms|s|min|h|d)?", text)
        if match is None:
            raise OperationError(f"wal_sender_timeout has the unexpected value {text!r}")
        return int(match[1]) * {"ms": 0.001, "s": 1, "min": 60, "h": 3600, "d": 86400, None: 0.001}[match[2]]

    def identify(self) -> tuple[str, int]:
        """Ask for the system identifier and the timeline of the server."""
        ((system_identifier, timeline, *_rest),) = self.query("IDENTIFY_SYSTEM")
        assert system_identifier is not None
        assert timeline is not None
        return system_identifier, int(timeline)

    def timeline_history(self, timeline: int) -> dict[int, Lsn]:
        """Read where each earlier timeline was left on the way to this one, by number."""
        if timeline == 1:
            return {}
        ((_, content),) = self.query(f"TIMELINE_HISTORY {timeline}")
        lines = (line.split("\t") for line in (content or "").splitlines() if line.strip() and line[0] != "#")
        return {int(number): Lsn.parse(left_at) for number, left_at, *_ in lines}

    def create_slot(self, name: str, *, temporary: bool, waiting: Waiting | None = None) -> CreatedSlot:
        """Create a slot and export the snapshot that fits its consistent point.

        A temporary one lives as long as this connection. The server waits for all running transactions to end; when
        ``waiting`` raises meanwhile, nothing is left behind. The snapshot can be imported until the next command.
        """
        quoted = quote_ident(check_slot_name(name))
        kind = "TEMPORARY " if temporary else ""
        command = f"CREATE_REPLICATION_SLOT {quoted} {kind}LOGICAL pgoutput (SNAPSHOT 'export')"
        point, snapshot = self.build_slot(name, command, temporary=temporary, waiting=waiting)
        return CreatedSlot(name, point, snapshot)

    def build_slot(
        self, name: str, command: str, *, temporary: bool, waiting: Waiting | None
    ) -> tuple[Lsn, str | None]:
        """Send a command that creates the slot ``name``; returns its consistent point and the name of its snapshot.

        A wait that is broken off, by ``waiting`` or an interrupt, leaves nothing behind. Raises OperationError when
        that cannot be told, beside what ``query`` raises.
        """
        try:
            ((_, point, snapshot, _plugin),) = self.query(command, waiting)
        except BaseException:
            # Unless it is the server that has ended it.
            if self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
                self._abandon(name, temporary=temporary)
            raise
        assert point is not None
        _log.info("slot %s has its consistent point at %s", name, point)
        return Lsn.parse(point), snapshot

    def _abandon(self, name: str, *, temporary: bool) -> None:
        """Break off the creation of a slot.

        A walsender that waits for a transaction does not see that its client is gone. It would go on with the creation,
        and leave a slot that keeps WAL and that nobody knows.
        """

        def waiting(seconds: float) -> None:
            if seconds >= _CANCEL_SECONDS:
                raise OperationError(
                    f"the server does not break off the creation of slot {name}",
                    hint="it may come into being later: 'pgrepl slots list'",
                )

        with suppress(Error):
            self.cancel()
        try:
            with lost_connection():
                result = self._result(waiting)
            self._finish(waiting)
        except ConnectionLost:
            # The server has ended the session, and the creation with it.
            return
        except OperationError:
            # A temporary slot cannot outlive the session.
            if not temporary:
                raise
            return
        if result is not None and result.status == pq.ExecStatus.TUPLES_OK and not temporary:
            # It has come into being just before.
            self.drop_slot(name)

    def copy_slot(self, source: str, name: str) -> None:
        """Make a temporary slot that stands where ``source`` does, which may be in use."""
        names = ", ".join(f"'{check_slot_name(each)}'" for each in (source, name))
        self.query(f"SELECT pg_catalog.pg_copy_logical_replication_slot({names}, true)")

    def drop_slot(self, name: str) -> None:
        """Drop a slot, waiting for whoever lets go of it just now."""
        self.query(f"DROP_REPLICATION_SLOT {quote_ident(name)} WAIT")

    def start_replication(
        self, slot: str, start: Lsn, publications: Sequence[str], *, protocol: int = 1, streaming: bool = False
    ) -> None:
        """Begin to stream the slot from ``start``, logical messages included.

        With ``streaming``, which needs protocol version 2, large transactions come in blocks while they are still going
        on; without it the server keeps them on its own disk until they commit. With it, 16 to 18 fail on a table whose
        file a large transaction replaces twice (TRUNCATE), the first time in a savepoint that was rolled back ("could
        not map filenumber …"): read such a transaction without it.
        From here on the connection carries CopyData both ways, and is a Receiver's.
        """
        names = ",".join(quote_ident(name) for name in publications)
        literal = "'" + names.replace("'", "''") + "'"
        command = (
            f"START_REPLICATION SLOT {quote_ident(slot)} LOGICAL {start}"
            f" (proto_version '{protocol}', publication_names {literal}, messages 'true'"
            + (", streaming 'on')" if streaming else ")")
        )
        if self._execute(command, None).status != pq.ExecStatus.COPY_BOTH:
            raise OperationError("unexpected answer to START_REPLICATION")

    def _execute(self, command: str, waiting: Waiting | None) -> pq.abc.PGresult:
        _log.info("walsender %s: %s", self.pid, command)
        with lost_connection():
            self.pgconn.send_query(command.encode())
            result = self._result(waiting)
        if result is None:
            raise ConnectionLost("the server ended the replication connection")
        if result.status == pq.ExecStatus.FATAL_ERROR:
            # Only then can the next command be sent, for instance the same one again; what was said first counts.
            with suppress(ConnectionLost):
                self._finish(waiting)
            raise result_error(result, f"{command.split()[0]} failed")
        if result.status != pq.ExecStatus.COPY_BOTH:
            # The rest has been sent with it, and what was done must not be given up for an interruption.
            self._finish(None)
        return result

    def _finish(self, waiting: Waiting | None) -> None:
        """Read to the end of a command's results."""
        with lost_connection():
            while self._result(waiting) is not None:
                pass

    def _result(self, waiting: Waiting | None) -> pq.abc.PGresult | None:
        began = time.monotonic()
        while self.pgconn.flush() == 1:
            select.select([], [self.pgconn.socket], [], _WAIT_STEP)
        while self.pgconn.is_busy():
            ready, _, _ = select.select([self.pgconn.socket], [], [], _WAIT_STEP)
            if ready:
                self.pgconn.consume_input()
            elif waiting is not None:
                waiting(time.monotonic() - began)
        return self.pgconn.get_result()


@contextmanager
def lost_connection() -> Iterator[None]:
    """Turn libpq's errors of a broken connection into ConnectionLost."""
    try:
        yield
    except Error as error:
        raise ConnectionLost(f"the replication connection was lost: {one_line(error)}") from None


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
