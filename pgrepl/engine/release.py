"""Leave a slot where the next tool, which may read a position differently, misses nothing.

supabase/etl goes on one byte after the confirmed position. That is the same place for all positions but one: when a
commit record starts exactly at the confirmed position, its transaction is lost. So a slot is left *inside* a record,
where one byte more or less makes no difference, or where a record other than a commit follows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg import sql

from pgrepl.catalog import server, slots
from pgrepl.catalog.slots import Slot
from pgrepl.connection import one_line
from pgrepl.engine.changes import OWN_PREFIX
from pgrepl.engine.resume import ahead
from pgrepl.errors import OperationError, PositionError
from pgrepl.lsn import Lsn
from pgrepl.names import quote_ident
from pgrepl.pgoutput import messages
from pgrepl.pgoutput.decoder import decode

_PEEK_SECONDS = 2.0
_SECONDS = 10.0
# PostgreSQL tells nobody when a slot comes free or WAL is flushed, so it is asked again and again.
_STEP = 0.02

_PEEK = """
SELECT data FROM pg_catalog.pg_logical_slot_peek_binary_changes(
    %s, %s, NULL, 'proto_version', '1', 'publication_names', %s, 'messages', 'true')
"""
_MESSAGE = "SELECT pg_catalog.pg_logical_emit_message(false, %s, 'release')::text"
_ADVANCE = "SELECT end_lsn::text FROM pg_catalog.pg_replication_slot_advance(%s, %s)"


def release(
    connection: psycopg.Connection,
    name: str,
    position: Lsn,
    publications: Sequence[str],
    store: Callable[[Lsn], None],
    *,
    seconds: float = _SECONDS,
) -> Lsn:
    """Leave the slot of a pipeline that is done up to ``position``, and give where it stands then.

    Where nothing has been written since, it takes a message of our own to have a record to stand in; ``store`` is told
    the position behind it first. A reader that is just going is waited for. Raises PositionError when the slot is gone,
    lost or ahead of the position, and OperationError when it is in use or two-phase, when a transaction that has not
    been read commits exactly at the position, and when it cannot be done in ``seconds``.
    """
    work = _Release(connection, name, publications, time.monotonic() + seconds)
    return work.run(position, store)


class _Release:
    def __init__(self, connection: psycopg.Connection, name: str, publications: Sequence[str], deadline: float) -> None:
        self._connection = connection
        self._name = name
        self._publications = ",".join(quote_ident(publication) for publication in publications)
        self._deadline = deadline

    def run(self, position: Lsn, store: Callable[[Lsn], None]) -> Lsn:
        confirmed = self._confirmed(position)
        if confirmed < position:
            # Inside the record that ends at the position; one before it would be read twice.
            inside = Lsn(position - 1)
            return inside if confirmed == inside else self._advance(inside)
        flushed, _ = server.wal_ends(self._connection)
        end = None if flushed > position else self._write_message()
        # Up to the first byte of the record at the position: decoding goes on to that record's end and no further.
        seen = self._peek(Lsn(position + 1) if end is None else end)
        commits = [message.final_lsn for message in seen if isinstance(message, messages.Begin)]
        if position in commits:
            raise OperationError(
                f"a transaction commits exactly at {position}, where the slot {self._name} stands:"
                " supabase/etl would miss it",
                hint="read it first: pgrepl tail … --store postgres --until-lsn now",
            )
        others = [m for m in seen if isinstance(m, messages.Message) and m.prefix != OWN_PREFIX]
        if end is None or commits or others:
            # A record stands at the position that is no commit of ours to lose.
            return confirmed
        store(end)
        return self._advance(Lsn(end - 1))

    def _confirmed(self, position: Lsn) -> Lsn:
        slot = self._find()
        while slot is not None and slot.active and time.monotonic() < self._deadline:
            time.sleep(_STEP)
            slot = self._find()
        if slot is None or slot.lost or slot.confirmed_flush_lsn is None:
            raise PositionError(
                f"the slot {self._name} {'is gone' if slot is None else 'is lost'}, so there is nothing to release",
                hint="reset the state of all tables ('pgrepl state reset --all') and take a new snapshot",
            )
        if slot.active:
            raise OperationError(f"the slot {self._name} is active", hint="stop its reader first", sqlstate="55006")
        if slot.two_phase:
            raise OperationError(f"the slot {self._name} is two-phase, which supabase/etl cannot read")
        if slot.confirmed_flush_lsn > position:
            raise PositionError(ahead(self._name, slot.confirmed_flush_lsn, position))
        return slot.confirmed_flush_lsn

    def _find(self) -> Slot | None:
        return next((slot for slot in slots.all_of(self._connection) if slot.name == self._name), None)

    def _write_message(self) -> Lsn:
        """Write a record, and give its end once it is flushed: the server advances no slot beyond that."""
        row = self._connection.execute(_MESSAGE, [OWN_PREFIX]).fetchone()
        assert row is not None
        end = Lsn.parse(row[0])
        while server.wal_ends(self._connection)[0] < end:
            if time.monotonic() >= self._deadline:
                raise OperationError(f"the server has not flushed its WAL up to {end} in time", hint="try again")
            time.sleep(_STEP)
        return end

    def _peek(self, upto: Lsn) -> list[messages.AnyMessage]:
        rows = self._execute(_PEEK, [self._name, str(upto), self._publications], binary=True)
        return [decode(data) for (data,) in rows]

    def _advance(self, target: Lsn) -> Lsn:
        ((text,),) = self._execute(_ADVANCE, [self._name, str(target)])
        if Lsn.parse(text) != target:
            raise OperationError(f"the slot {self._name} was to stand at {target}, and stands at {text}")
        return target

    def _execute(self, query: str, values: list[str], *, binary: bool = False) -> list[tuple[Any, ...]]:
        left = min(_PEEK_SECONDS, max(self._deadline - time.monotonic(), _STEP))
        timeout = sql.SQL("SET LOCAL statement_timeout = {}").format(sql.Literal(round(left * 1000)))
        try:
            with self._connection.transaction():
                self._connection.execute(timeout)
                return self._connection.execute(query, values, binary=binary).fetchall()
        except psycopg.errors.QueryCanceled:
            raise OperationError(
                f"the slot {self._name} keeps more WAL than can be decoded in {left:.1f} s",
                hint="let it catch up first: pgrepl tail … --store postgres --until-lsn now",
                sqlstate="57014",
            ) from None
        except psycopg.Error as error:
            if self._connection.closed:
                raise
            text = error.diag.message_primary or one_line(error)
            raise OperationError(
                f"the slot {self._name} cannot be released: {text}",
                hint=error.diag.message_hint,
                sqlstate=error.sqlstate,
            ) from None
