"""Which server is meant: connection strings, their parts, and how they are shown without their secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pgrepl.errors import InputError

_SECRETS = frozenset({"password", "sslpassword", "oauth_client_secret"})


@dataclass(frozen=True)
class ConnectionTarget:
    """A server and database to connect to.

    ``params`` are libpq keywords that were given; what is absent comes from libpq's own environment, service and
    password files. ``origin`` says in words where they came from. ``configured_host`` is the host of a configured
    database, by which its pipeline is known. The repr shows no secret.
    """

    params: Mapping[str, str] = field(repr=False)
    origin: str
    configured_host: str | None = None

    @property
    def has_password(self) -> bool:
        """Whether a secret stands in the connection string itself."""
        return any(self.params.get(name) for name in _SECRETS)

    def masked(self) -> str:
        """Show the target as a connection string in which secrets are stars."""
        from psycopg.conninfo import make_conninfo

        shown = {name: "****" if name in _SECRETS else value for name, value in self.params.items()}
        return make_conninfo("", **shown)

    def with_database(self, dbname: str) -> ConnectionTarget:
        """The same server, another database."""
        return replace(self, params={**self.params, "dbname": dbname})

    def pipeline_host(self) -> str:
        """Give the host as it goes into a pipeline id, its text unchanged: the configured one, else the first as libpq
        resolves it, where a socket directory or nothing gives ``localhost``.
        """
        if self.configured_host is not None:
            return self.configured_host
        host = (self._resolved("host") or "").split(",")[0]
        return host if host and not host.startswith(("/", "@")) else "localhost"

    def database(self) -> str:
        """Give the name of the database as libpq resolves it: without one it is the user's name."""
        return self._resolved("dbname") or self._resolved("user") or ""

    def _resolved(self, keyword: str) -> str | None:
        if self.params.get(keyword):
            return self.params[keyword]
        service = self.params.get("service")
        if service:
            return _service_entry(service).get(keyword) or _default(keyword)
        return _default(keyword)


def _default(keyword: str) -> str | None:
    """What libpq itself would take: PQconndefaults looks at the environment and at the service that PGSERVICE names."""
    from psycopg import pq

    for option in pq.Conninfo.get_defaults():
        if option.keyword == keyword.encode():
            return option.val.decode() if option.val else None
    return None


def _service_entry(service: str) -> dict[str, str]:
    """Read an entry of the service file (PostgreSQL documentation, The Connection Service File)."""
    paths = [Path(os.environ.get("PGSERVICEFILE") or "~/.pg_service.conf").expanduser()]
    if os.environ.get("PGSYSCONFDIR"):
        paths.append(Path(os.environ["PGSYSCONFDIR"]) / "pg_service.conf")
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        entry: dict[str, str] | None = None
        for line in lines:
            line = line.strip()
            if line.startswith("["):
                if entry is not None:
                    return entry
                entry = {} if line == f"[{service}]" else None
            elif entry is not None and line and not line.startswith("#") and "=" in line:
                name, _, value = line.partition("=")
                entry[name.strip()] = value.strip()
        if entry is not None:
            return entry
    return {}


def parse(text: str, origin: str) -> ConnectionTarget:
    """Read a URI or a libpq connection string.

    Raises InputError; its message leaves out everything that libpq quotes from the string, since that may be the
    password.
    """
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        params = conninfo_to_dict(text)
    except ProgrammingError as error:
        reason = re.sub('".*"|".*', '"…"', " ".join(str(error).split()))
        raise InputError(
            f"the connection string of {origin} cannot be read: {reason}",
            hint="postgresql://user@host:5432/dbname, or host=… port=… dbname=… user=…",
        ) from None
    given = {name: str(value) for name, value in params.items() if value is not None}
    for port in given.get("port", "").split(","):
        if port and not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
            raise InputError(
                f"the port in the connection string of {origin} is not a number from 1 to 65535",
                hint="PostgreSQL's own is 5432; without port=… that one is taken",
            )
    return ConnectionTarget(given, origin)
