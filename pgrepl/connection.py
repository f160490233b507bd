"""Ordinary SQL connections, all with the same session settings, so that a value has one text wherever it is read."""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING

from pgrepl.errors import ConnectError, InputError, OperationError

if TYPE_CHECKING:
    import psycopg

    from pgrepl.conninfo import ConnectionTarget

_log = logging.getLogger(__name__)

# lc_monetary is here because money prints by it; the empty search_path makes every printed name a qualified one.
_SETTINGS = {
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "search_path": "",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
}

_CONNECT_TIMEOUT = "10"


def session_params(target: ConnectionTarget, application_name: str, **settings: str) -> dict[str, str]:
    """Build the libpq parameters of a session: the target, the settings that pgrepl relies on, and ``settings`` more.

    The user's own ``options`` come first and so lose where both name a setting; an application_name of the user's wins.
    """
    given = target.params.get("options") or os.environ.get("PGOPTIONS") or ""
    ours = " ".join(f"-c {name}={value}" for name, value in {**_SETTINGS, **settings}.items())
    params = dict(target.params)
    params["options"] = f"{given} {ours}".strip()
    params["client_encoding"] = "UTF8"
    params["fallback_application_name"] = application_name
    if "connect_timeout" not in params and not os.environ.get("PGCONNECT_TIMEOUT"):
        params["connect_timeout"] = _CONNECT_TIMEOUT
    return params


def connect(
    target: ConnectionTarget, application_name: str = "pgrepl", *, row_security: bool = True
) -> psycopg.Connection:
    """Open a connection in autocommit mode.

    With ``row_security=False`` a table whose policies would hide rows is an error instead of a part of itself, which a
    copy must have. Raises ConnectError.
    """
    import psycopg

    more = {} if row_security else {"row_security": "off"}
    params = session_params(target, application_name, **more)
    try:
        connection: psycopg.Connection = psycopg.connect("", autocommit=True, **params)  # type: ignore[arg-type]
    except psycopg.Error as error:
        raise connect_error(error, target) from None
    if connection.info.server_version >= 170000:
        # As a start-up option this is fatal on 16, which does not know it.
        connection.execute("SET transaction_timeout = 0")
    log_connected(connection)
    return connection


def connect_as_any(target: ConnectionTarget, application_name: str) -> psycopg.Connection:
    """Open a connection in autocommit mode with the settings that the server gives to any client of this role.

    Raises ConnectError.
    """
    import psycopg

    params = {"connect_timeout": _CONNECT_TIMEOUT, **target.params, "client_encoding": "UTF8"}
    params["fallback_application_name"] = application_name
    try:
        connection: psycopg.Connection = psycopg.connect("", autocommit=True, **params)  # type: ignore[arg-type]
    except psycopg.Error as error:
        raise connect_error(error, target) from None
    log_connected(connection)
    return connection


def log_connected(connection: psycopg.Connection, kind: str = "backend") -> None:
    """Log which server was reached: where, what version, which database, as whom, and the process that serves us."""
    info = connection.info
    version = info.parameter_status("server_version")
    _log.info(
        "connected to PostgreSQL %s at %s port %s, database %s, as %s, %s %s",
        *(version, info.host, info.port, info.dbname, info.user, kind, info.backend_pid),
    )


def connect_error(error: psycopg.Error, target: ConnectionTarget) -> ConnectError | InputError:
    """Turn libpq's report of a failed connection into one line and, where the cause is known, a hint.

    A parameter that libpq could not make sense of, so that no connection was tried, is an InputError.
    """
    text = one_line(error)
    mistake = _MISTAKE.search(text)
    if mistake is not None:
        return InputError(
            f"the connection string of {target.origin} cannot be used: {mistake[1]}",
            hint=_SERVICE_HINT if "service" in mistake[1] else _PARAMETER_HINT,
        )
    # The multi-host preamble repeats the whole address list for each failure.
    hint, state = None, error.sqlstate
    for pattern, advice, known_state in _CONNECT_HINTS:
        if re.search(pattern, text):
            # Of several hosts one may refuse for good while another is only away.
            hint, state = advice, state or (None if _SEVERAL in text else known_state)
            break
    return ConnectError(f"cannot connect ({target.origin}): {text}", hint=hint, sqlstate=state)


_MISTAKE = re.compile(
    'connection is bad: (invalid [^:]*value: ".*"|invalid value .*|invalid .* for connection option .*'
    "|invalid port number: .*|definition of service .* not found|could not match [0-9].*)"
)
_PARAMETER_HINT = "PostgreSQL's documentation says what it may be, under Parameter Key Words of libpq"
_SERVICE_HINT = "services stand in ~/.pg_service.conf, or in the file that PGSERVICEFILE names"
_SEVERAL = "Multiple connection attempts failed"
# libpq gives no SQLSTATE for a connection that was refused. The ones here are those that waiting does not cure.
_CONNECT_HINTS: list[tuple[str, str, str | None]] = [
    (
        "password authentication failed",
        "check the user and the password; ~/.pgpass and PGPASSWORD are read too",
        "28P01",
    ),
    ("no password supplied", "give the password in ~/.pgpass, PGPASSWORD or a service file", "28P01"),
    ("no pg_hba.conf entry", "the server's pg_hba.conf needs a line for this user, database and address", "28000"),
    ("role .* does not exist|is not permitted to log in", "check the user: it must be a role with LOGIN", "28000"),
    ("unsupported startup parameter", "this looks like a connection pooler: connect to the server itself", None),
    ("database .* does not exist", "name the database with dbname=… in the connection string", "3D000"),
    ("Name or service not known|could not translate host name", "check the host name", None),
    ("No route to host|Network is unreachable", "check the address; some providers' direct hosts have IPv6 only", None),
    ("Connection refused|No such file or directory", "is the server running, and does it listen there?", None),
    ("timeout expired|timed out|connection timeout", "is a firewall in between? connect_timeout=… waits longer", None),
    ("certificate|SSL|TLS", "check sslmode, sslrootcert and the server's certificate", None),
    (
        "too many clients|remaining connection slots",
        "the server has no connection free: raise max_connections",
        "53300",
    ),
]


_LOST = re.compile("57P0[1-4]|08...|53300", re.ASCII)


def is_lost(error: Exception) -> bool:
    """Tell whether an error means that the connection is gone or not to be had, which waiting may cure."""
    import psycopg

    if not isinstance(error, ConnectError | psycopg.OperationalError):
        return False
    return error.sqlstate is None or _LOST.fullmatch(error.sqlstate) is not None


def one_line(error: Exception) -> str:
    """Give an error's message without its line breaks."""
    return " ".join(str(error).split())


def server_error(error: psycopg.Error, doing: str) -> OperationError:
    """Turn an error of the server into one of ours that says what was being done."""
    text = error.diag.message_primary or one_line(error)
    # The server has no hint of its own for this one; its messages may be in any language, its functions are not.
    by_policy = error.diag.source_function == "check_enable_rls"
    advice = "ALTER ROLE … BYPASSRLS lets a role read all rows, run by a superuser" if by_policy else None
    return OperationError(f"{doing}: {text}", hint=error.diag.message_hint or advice, sqlstate=error.sqlstate)
