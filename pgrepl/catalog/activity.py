"""What goes on in the cluster at this moment: transactions that others wait for, and readers of WAL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psycopg


@dataclass(frozen=True)
class Transaction:
    """A session whose transaction has written something; ``seconds`` is the transaction's age."""

    pid: int
    user: str | None
    database: str
    application: str | None
    state: str | None
    seconds: float
    query: str | None


@dataclass(frozen=True)
class Prepared:
    """A transaction that waits for its COMMIT PREPARED or ROLLBACK PREPARED, for so many seconds."""

    gid: str
    owner: str
    database: str
    seconds: float


@dataclass(frozen=True)
class Sender:
    """A walsender; ``state`` and ``application`` are None where the asker may not see them."""

    pid: int
    application: str | None
    state: str | None


@dataclass(frozen=True)
class Activity:
    """``transactions`` are the writing ones, the oldest first; ``hidden`` counts the sessions of which nothing shows.

    Other roles' sessions show to members of pg_read_all_stats alone; prepared transactions and the walsenders' pids
    show to everybody.
    """

    transactions: tuple[Transaction, ...]
    prepared: tuple[Prepared, ...]
    senders: tuple[Sender, ...]
    hidden: int


# A session without a database (the checkpointer, a standby's walsender) never has a transaction of its own.
_SESSIONS = """
SELECT a.backend_type IS NULL, a.pid, a.usename::text, a.datname::text, a.application_name, a.state,
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8, a.query
FROM pg_catalog.pg_stat_activity a
WHERE a.datid IS NOT NULL AND a.pid <> pg_backend_pid() AND (a.backend_type IS NULL OR a.backend_xid IS NOT NULL)
ORDER BY a.xact_start
"""

_PREPARED = """
SELECT p.gid, p.owner::text, p.database::text, extract(epoch FROM clock_timestamp() - p.prepared)::float8
FROM pg_catalog.pg_prepared_xacts p
ORDER BY p.prepared, p.gid
"""

_SENDERS = "SELECT pid, application_name, state FROM pg_catalog.pg_stat_replication ORDER BY pid"


def read(conn: psycopg.Connection) -> Activity:
    """Look at the sessions of the whole cluster; any role that can connect may, and sees more or less."""
    transactions, hidden = [], 0
    for unseen, *session in conn.execute(_SESSIONS).fetchall():
        if unseen:
            hidden += 1
        else:
            transactions.append(Transaction(*session))
    return Activity(
        tuple(transactions),
        tuple(Prepared(*row) for row in conn.execute(_PREPARED)),
        tuple(Sender(*row) for row in conn.execute(_SENDERS)),
        hidden,
    )
