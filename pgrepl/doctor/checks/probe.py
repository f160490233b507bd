"""Does a message get through, all the way?"""

from __future__ import annotations

import secrets
import select
import time
from collections.abc import Iterator

from pgrepl.catalog import blockers
from pgrepl.catalog.blockers import Blocker
from pgrepl.doctor.check import Check
from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status
from pgrepl.errors import OperationError, PgreplError, TimeLimitError
from pgrepl.lsn import Lsn
from pgrepl.pgoutput.decoder import decode
from pgrepl.pgoutput.messages import Message
from pgrepl.pgoutput.walsender import XLogData, parse_copy_data
from pgrepl.replication.walsender import Walsender, lost_connection

_SECONDS = 10.0
# Readers of pgrepl pass over messages with this prefix.
_PREFIX = "pgrepl"


class EndToEnd(Check):
    """A message that is written here comes out of a temporary slot.

    With --probe alone, since it changes something: a temporary slot is made and goes with its connection, and one
    logical message of a few bytes is written into the WAL, which every reader of a slot passes over that does not ask
    for messages. Slot, walsender, plugin and network are all tried; a running transaction that keeps slots from being
    made is named after ten seconds.

    Risk: what every other check calls good may still not work, for a reason that no catalog holds.

    Fix: that of the error which came back.

    See: https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-REPLICATION
    """

    id = "live.end_to_end"
    title = "a message gets through"
    needs = ("conn.sql", "conn.replication", "server.version", "cfg.wal_level")

    def run(self, context: Context) -> Iterator[Finding]:
        if not context.wanted.probe:
            yield self.finding(Status.SKIP, "only with --probe")
            return
        if context.server.in_recovery:
            yield self.finding(Status.SKIP, "a standby writes no message")
            return
        publications = context.publications or context.all_publications
        if not publications:
            yield self.finding(Status.SKIP, "a stream needs a publication, and there is none")
            return
        yield self._try(context, publications[0].name)

    def _try(self, context: Context, publication: str) -> Finding:
        walsender = Walsender.open(context.target, "pgrepl doctor")
        found: list[Blocker] = []

        def waiting(passed: float) -> None:
            if passed >= _SECONDS:
                # Asked while it still waits: the creation is broken off with this error.
                found.extend(blockers.of_backend(context.conn, walsender.pid))
                raise TimeLimitError(f"a slot could not be made within {_SECONDS:g} s")

        try:
            name = f"pgrepl_tmp_{walsender.pid}_{secrets.token_hex(4)}"
            began = time.monotonic()
            walsender.create_slot(name, temporary=True, waiting=waiting)
            made = time.monotonic()
            # Messages are part of no publication, but it has to be there when others write meanwhile.
            walsender.start_replication(name, Lsn(0), [publication])
            nonce = secrets.token_hex(16)
            sent = time.monotonic()
            context.conn.execute("SELECT pg_logical_emit_message(true, %s, %s)", [_PREFIX, nonce])
            _await(walsender, nonce.encode(), sent + _SECONDS)
            came = time.monotonic()
        except TimeLimitError as error:
            waits = f", which waits for {'; '.join(map(str, found))}" if found else ""
            return self.finding(
                Status.FAIL,
                f"{error}{waits}",
                {"blockers": [{"pid": other.pid, "gid": other.gid} for other in found]},
                fix=[_end(blocker) for blocker in found]
                or [Fix("action", "look into the server's log, and try again")],
            )
        except PgreplError as error:
            return self.finding(
                Status.FAIL,
                str(error),
                {"sqlstate": error.sqlstate},
                fix=[Fix("action", error.hint)] if error.hint else [],
            )
        finally:
            walsender.close()
        milliseconds = (came - sent) * 1000
        return self.finding(
            Status.PASS,
            f"it came back after {milliseconds:.1f} ms, the slot took {(made - began) * 1000:.0f} ms",
            {"round_trip_ms": round(milliseconds, 1), "slot_ms": round((made - began) * 1000, 1)},
        )


def _await(walsender: Walsender, nonce: bytes, deadline: float) -> None:
    pgconn = walsender.pgconn
    while True:
        size, payload = pgconn.get_copy_data(1)
        if size > 0:
            packet = parse_copy_data(bytes(payload))
            if isinstance(packet, XLogData):
                message = decode(packet.data)
                if isinstance(message, Message) and message.prefix == _PREFIX and bytes(message.content) == nonce:
                    return
            continue
        if size < 0:
            raise OperationError("the server ended the stream before the message came")
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeLimitError(f"the message did not come out of the slot within {_SECONDS:g} s")
        select.select([pgconn.socket], [], [], left)
        with lost_connection():
            pgconn.consume_input()


def _end(blocker: blockers.Blocker) -> Fix:
    if blocker.gid is not None:
        return Fix("action", f"commit or roll back the prepared transaction {blocker.gid!r}: see live.prepared")
    return Fix("action", f"end that transaction: SELECT pg_terminate_backend({blocker.pid});")
