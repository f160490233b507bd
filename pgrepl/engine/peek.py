"""The next changes of a slot, decoded as tail decodes them, without consuming them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import psycopg

from pgrepl import connection
from pgrepl.catalog import slots
from pgrepl.engine import relations
from pgrepl.engine.changes import Changes
from pgrepl.engine.versions import Versions
from pgrepl.errors import OperationError, PositionError
from pgrepl.lsn import Lsn
from pgrepl.names import quote_ident
from pgrepl.pgoutput.decoder import decode

if TYPE_CHECKING:
    from pgrepl.catalog.slots import Slot
    from pgrepl.conninfo import ConnectionTarget
    from pgrepl.events import Event

# A transaction is read whole, and brings BEGIN, COMMIT and what it tells of its tables beside its changes.
_MESSAGES_PER_EVENT = 3
_MORE = 4
_MOST_MESSAGES = (1 << 31) - 1

_PEEK = """
SELECT lsn::text, data FROM pg_catalog.pg_logical_slot_peek_binary_changes(
    %s, NULL, %s, 'proto_version', '1', 'publication_names', %s, 'messages', 'true')
"""


@dataclass(frozen=True)
class Peeked:
    """The next events of a slot; ``more`` says that there are others behind them.

    ``skipped`` is the server's word that it left out changes from before a publication was there (PostgreSQL 18).
    """

    events: tuple[Event, ...]
    more: bool
    skipped: str | None


def readable(conn: psycopg.Connection, name: str) -> Slot:
    """Find a slot that can be peeked into.

    Raises OperationError when there is none, it is physical, of another database or plugin, not finished, or in use,
    and PositionError when it is lost.
    """
    slot = next((slot for slot in slots.all_of(conn) if slot.name == name), None)
    if slot is None:
        raise OperationError(f"there is no slot {name}", hint="pgrepl slots list --all shows those there are")
    if slot.physical:
        raise OperationError(f"slot {name} is physical: it has whole WAL, no changes to decode")
    if slot.database != conn.info.dbname:
        raise OperationError(f"slot {name} is of database {slot.database}", hint="connect to that database")
    if slot.plugin != "pgoutput":
        raise OperationError(f"slot {name} decodes with {slot.plugin}, pgrepl reads pgoutput")
    if slot.lost:
        raise PositionError(f"slot {name} is {slot.verdict.text}")
    if slot.holder is not None:
        holder = slot.holder
        who = f"pid {holder.pid}" + (f" ({holder.application_name})" if holder.application_name else "")
        doing = slot.verdict.text if slot.unfinished else f"in use by {who}"
        raise OperationError(
            f"slot {name} cannot be peeked into: {doing}",
            hint="only one client at a time can read a slot",
            sqlstate="55006",
        )
    if slot.unfinished:
        raise OperationError(f"slot {name} cannot be peeked into: {slot.verdict.text}")
    return slot


def peek(
    conn: psycopg.Connection, target: ConnectionTarget, name: str, publications: Sequence[str], limit: int
) -> Peeked:
    """Decode the next ``limit`` events of a slot; they stay in it.

    The slot is held meanwhile, which resets inactive_since. ``target`` is where ``conn`` goes to: tables are looked up
    over a second connection. Raises PositionError when the slot was lost, and OperationError.
    """
    skipped: list[str] = []

    def notice(diagnostic: psycopg.errors.Diagnostic) -> None:
        # PostgreSQL 18 goes on without a publication that did not exist at the time of a change.
        if diagnostic.sqlstate == "55000" and "publication" in (diagnostic.message_primary or ""):
            skipped.append(diagnostic.message_primary or "")

    conn.add_notice_handler(notice)
    try:
        with connection.connect(target, "pgrepl slots") as lookup:
            messages = min(limit * _MESSAGES_PER_EVENT, _MOST_MESSAGES)
            while True:
                found, whole = _read(conn, lookup, name, publications, limit + 1, messages)
                if whole or len(found) > limit:
                    break
                messages = min(messages * _MORE, _MOST_MESSAGES)
    except psycopg.Error as error:
        raise _refused(error, name) from None
    finally:
        conn.remove_notice_handler(notice)
    return Peeked(tuple(found[:limit]), len(found) > limit, skipped[0] if skipped else None)


def _read(
    conn: psycopg.Connection,
    lookup: psycopg.Connection,
    name: str,
    publications: Sequence[str],
    limit: int,
    messages: int,
) -> tuple[list[Event], bool]:
    """Read up to ``limit`` events out of about ``messages`` messages; the second value says that it was all there is.

    The server gives whole transactions, and more messages than asked for only to finish the last one.
    """
    changes = Changes(
        lambda relation, transaction: relations.resolve(lookup, relation, transaction.xid),
        printed=lambda _table: True,
        known={},
    )
    versions = Versions()
    found: list[Event] = []
    count = 0
    names = ",".join(quote_ident(publication) for publication in publications)
    with conn.cursor(binary=True) as cursor:
        # Closing the stream breaks the query off.
        rows = cast(Generator[tuple[str, bytes], None, None], cursor.stream(_PEEK, [name, messages, names]))
        for lsn, data in rows:
            count += 1
            for event in changes.apply(Lsn.parse(lsn), decode(data)):
                found += [*versions.before(event), event]
            if len(found) >= limit:
                rows.close()
                return found, False
    return found, count < messages


def _refused(error: psycopg.Error, name: str) -> OperationError | PositionError:
    state = error.sqlstate
    text = error.diag.message_primary or connection.one_line(error)
    message = f"slot {name} cannot be peeked into: {text}"
    if state == "55000" and "can no longer" in text:
        return PositionError(message, hint="the slot is lost: a new one and a new snapshot are needed", sqlstate=state)
    hint = error.diag.message_hint
    if state == "42501":
        hint = "the role needs REPLICATION, or on a managed service the role that stands for it"
    elif state == "42704" and "publication" in text:
        hint = "the publication did not exist when the change was made; create publications before slots"
    return OperationError(message, hint=hint, sqlstate=state)
