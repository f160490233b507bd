"""Does every connection lead to the same server, with nothing in between that spoils replication?"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import psycopg

from pgrepl.doctor.check import Check
from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status
from pgrepl.errors import PgreplError

_POOLER_PORTS = ("6432", "6543")
_POOLER_HOST = re.compile(r"-pooler\.|(^|\.)pooler\.|\.proxy-[^.]+\..*\.rds\.")
_POOLER_TEXT = re.compile(r"unsupported startup parameter|pgbouncer|pooler|supavisor|pgcat|odyssey", re.IGNORECASE)
_READERS = 3


def signs_of_a_pooler(host: str, port: str, announced: int | None, pids: Sequence[int], error: str) -> list[str]:
    """Name what gives a pooler away.

    ``announced`` is the process id that the server gave when the session began, ``pids`` what it says of itself in
    transactions one after the other, ``error`` why there was no connection. A pooler hands out a number of its own,
    and may change the server process from transaction to transaction.
    """
    signs = []
    if _POOLER_HOST.search(host):
        signs.append(f"the host is called {host}")
    if port in _POOLER_PORTS:
        signs.append(f"the port is {port}")
    if announced is not None and any(pid != announced for pid in pids):
        signs.append("the session was announced with another process id than it has")
    if len(set(pids)) > 1:
        signs.append("the process id changes between transactions")
    if _POOLER_TEXT.search(error):
        signs.append("the connection was refused in a pooler's words")
    return signs


class Pooler(Check):
    """The connection goes to the server itself and not through a pooler.

    A pooler such as PgBouncer, Supavisor or RDS Proxy shares the connections of the server among its clients. It
    shows by its host's name (``-pooler``), by its port (6432, 6543), by its words when it refuses a start-up
    parameter, or by a process id that is not the server's or changes between two transactions.

    Risk: most poolers pass no replication connections at all. In transaction mode a session's settings, its temporary
    slots and its exported snapshots get lost between two statements.

    Fix: use the direct host and port. PgBouncer passes replication connections from 1.23 on, in session mode.

    See: https://www.pgbouncer.org/features.html https://www.postgresql.org/docs/current/protocol-replication.html
    """

    id = "conn.pooler"
    title = "the connection goes to the server itself"
    needs = ()

    def run(self, context: Context) -> Iterator[Finding]:
        pids: list[int] = []
        if context.connection is None:
            host, port = context.target.params.get("host", ""), context.target.params.get("port", "")
            announced, error = None, str(context.error)
        else:
            info = context.conn.info
            host, port, announced, error = info.host, str(info.port), info.backend_pid, ""
            for _ in range(2):
                row = context.conn.execute("SELECT pg_catalog.pg_backend_pid()").fetchone()
                assert row is not None
                pids.append(row[0])
            if context.role_is_connected and isinstance(context.replication, PgreplError):
                error = str(context.replication)
        signs = signs_of_a_pooler(host, port, announced, pids, error)
        # A server may well listen on such a port: there is more to a pooler than that.
        answers = context.role_is_connected and not isinstance(context.replication, PgreplError) if pids else False
        evidence = {"host": host, "port": port, "announced_pid": announced, "pids": pids, "signs": signs}
        if not signs and context.connection is None:
            yield self.finding(Status.SKIP, "no connection to look at", evidence)
        elif not signs:
            yield self.finding(Status.PASS, "the process id is the server's own", evidence)
        else:
            yield self.finding(
                Status.WARN if answers else Status.FAIL,
                "; ".join(signs) + (", but replication connections work" if answers else ""),
                evidence,
                fix=[Fix("action", context.provider.direct if pids else "connect to the server itself")],
            )


def judge_tls(host: str, address: str, encrypted: bool, sslmode: str) -> tuple[Status, str]:
    """Say how safe the way to the server is. ``host`` is a directory for a socket, ``address`` may be empty."""
    if host.startswith(("/", "@")) or not (host or address):
        return Status.PASS, "a socket of this machine"
    try:
        local = ipaddress.ip_address(address or host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not encrypted:
        if local:
            return Status.PASS, "not encrypted, and it does not leave this machine"
        return Status.WARN, f"not encrypted on its way to {host or address}"
    if sslmode == "verify-full" or local:
        return Status.PASS, f"encrypted, sslmode={sslmode}"
    return Status.INFO, f"encrypted, but with sslmode={sslmode} nobody checks that it is the right server"


class Tls(Check):
    """A connection that leaves this machine is encrypted.

    libpq's default, ``sslmode=prefer``, falls back to plain text without a word where the server offers no TLS.
    Only ``verify-full`` also checks that the certificate is the server's.

    Risk: everything that is replicated, and with some methods the password, can be read on the way.

    Fix: turn TLS on at the server, and connect with ``sslmode=verify-full sslrootcert=system``, or with the file of
    the provider's root certificate.

    See: https://www.postgresql.org/docs/current/libpq-ssl.html
    """

    id = "conn.tls"
    title = "the way to the server is encrypted"

    def run(self, context: Context) -> Iterator[Finding]:
        info = context.conn.info
        encrypted, sslmode = bool(context.conn.pgconn.ssl_in_use), info.get_parameters().get("sslmode", "prefer")
        status, summary = judge_tls(info.host, info.hostaddr, encrypted, sslmode)
        row = context.conn.execute(
            "SELECT version, cipher FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()"
        ).fetchone()
        version, cipher = row or (None, None)
        yield self.finding(
            status,
            summary,
            {"encrypted": encrypted, "sslmode": sslmode, "version": version, "cipher": cipher},
            fix=[]
            if status is Status.PASS
            else [Fix("action", "connect with sslmode=verify-full and sslrootcert=system (or the provider's file)")],
        )


class SameServer(Check):
    """The ordinary and the replication connection end at the same server.

    Both ask for the identifier that initdb gave the server. A balancer, a DNS name with several addresses, or a list
    of hosts can lead each connection elsewhere.

    Risk: what is checked and copied on one server is streamed from another.

    Fix: name one server: its own host, or with several hosts ``target_session_attrs=read-write``.

    See: https://www.postgresql.org/docs/current/libpq-connect.html
    """

    id = "conn.same_server"
    title = "both kinds of connection reach the same server"
    needs = ("conn.sql", "conn.replication")

    def run(self, context: Context) -> Iterator[Finding]:
        identity = context.replication
        assert not isinstance(identity, PgreplError)
        ordinary, streaming = context.server.system_identifier, identity["system_identifier"]
        evidence = {"sql": ordinary, "replication": streaming}
        if ordinary is None:
            yield self.finding(
                Status.UNKNOWN, "this role may not read the control file", evidence, fix=context.let_read_control_file()
            )
        elif ordinary != streaming:
            yield self.finding(
                Status.FAIL,
                f"the SQL connection reaches server {ordinary}, the replication connection {streaming}",
                evidence,
                fix=[Fix("action", context.provider.direct)],
            )
        else:
            yield self.finding(Status.PASS, f"system identifier {ordinary}", evidence)


class SingleInstance(Check):
    """Several connections at a time see one exported snapshot.

    A table is copied through several connections that all import the snapshot of the slot. A snapshot lives in one
    instance: behind an endpoint that spreads connections over several, as Aurora's reader endpoint does, some
    connections do not find it (SQLSTATE 42704).

    Risk: the copy fails, or copies tables as of different times.

    Fix: use the endpoint of the writer, or of one instance.

    See: https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-SNAPSHOT-SYNCHRONIZATION
    """

    id = "conn.single_instance"
    title = "one snapshot is seen by several connections"

    def run(self, context: Context) -> Iterator[Finding]:
        refused: list[str | None] = []
        with ExitStack() as readers, context.conn.transaction():
            row = context.conn.execute("SELECT pg_catalog.pg_export_snapshot()").fetchone()
            assert row is not None
            for _ in range(_READERS):
                reader = readers.enter_context(context.another_connection())
                try:
                    reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                    reader.execute(f"SET TRANSACTION SNAPSHOT '{row[0]}'".encode())
                except (psycopg.errors.UndefinedObject, psycopg.errors.InvalidParameterValue) as error:
                    refused.append(error.sqlstate)
        evidence = {"connections": _READERS, "refused": len(refused), "sqlstate": refused[0] if refused else None}
        if refused:
            yield self.finding(
                Status.FAIL,
                f"{len(refused)} of {_READERS} connections do not find it: they reach other instances",
                evidence,
                fix=[Fix("action", context.provider.direct)],
            )
        else:
            yield self.finding(Status.PASS, f"seen by {_READERS} connections", evidence)
