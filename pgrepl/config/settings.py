"""The configuration as the program uses it: checked values, each with its origin, and the databases they make."""

from __future__ import annotations

import atexit
import functools
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pgrepl.config import keys
from pgrepl.config.keys import Store, Value
from pgrepl.config.source import KeyPath, Source, find, read, read_secret
from pgrepl.conninfo import ConnectionTarget
from pgrepl.errors import InputError, PgreplError

DEFAULT = "default"
_MASK = "****"


@dataclass(frozen=True)
class Setting:
    """One value and where it comes from: ``FILE:LINE``, the name of a variable, or ``default``."""

    key: str
    value: Value | None = field(repr=False)
    origin: str

    @property
    def shown(self) -> Value | None:
        """The value with its secrets masked."""
        if self.value is None:
            return None
        name = self.key.rpartition(".")[2]
        if name in keys.SECRETS:
            return _MASK
        if name in ("state_dsn", "dsn"):
            return _masked_dsn(str(self.value))
        return self.value


@dataclass(frozen=True)
class Pipeline:
    """The ``[pipeline]`` table. ``store`` is None when it is not configured; commands differ in what they take then.

    ``state_pool`` is a number of connections. What state_dsn holds may be a secret.
    """

    store: Store | None = None
    state_dsn: str | None = field(default=None, repr=False)
    state_table: str = str(keys.PIPELINE["state_table"].default)
    state_pool: int = cast(int, keys.PIPELINE["state_pool"].default)


@dataclass(frozen=True)
class Database:
    """One ``[[databases]]`` entry; ``settings`` are its values by their keys below the entry."""

    name: str
    settings: Mapping[str, Setting] = field(repr=False)
    place: str

    @property
    def identity(self) -> str:
        """host/dbname exactly as configured, from which the pipeline's id is derived."""
        return f"{self._text('host')}/{self._text('dbname')}"

    @property
    def publication(self) -> str | None:
        """The publication that is configured."""
        return self._text("publication")

    @functools.cached_property
    def target(self) -> ConnectionTarget:
        """The server and database to connect to. The password's file is read now, once; raises InputError."""
        host = str(self._text("host"))
        params = {
            "host": host,
            "port": str(self._text("port")),
            "dbname": str(self._text("dbname")),
            "user": str(self._text("username")),
        }
        password = self._text("password")
        file = self._text("password.file")
        if file is not None:
            password = read_secret(file, f"password file of {self.settings['password.file'].origin},")
        if password:
            params["password"] = password
        if self.settings["tls.enabled"].value:
            params |= {"sslmode": "verify-full"} | _trusted_roots(self._text("tls.trusted_root_certs") or "")
        return ConnectionTarget(params, f"{self.place}, database {self.name}", configured_host=host)

    def _text(self, key: str) -> str | None:
        value = self.settings[key].value
        return None if value is None else str(value)


@dataclass(frozen=True)
class Config:
    """What is configured. ``path`` is None without a file; ``warnings`` are pairs of a message and a hint."""

    path: Path | None = None
    pipeline: Pipeline = Pipeline()
    databases: tuple[Database, ...] = ()
    settings: tuple[Setting, ...] = ()
    warnings: tuple[tuple[str, str | None], ...] = ()

    def database(self, name: str | None) -> Database | None:
        """Choose the entry that ``name`` means (its name, or host/dbname); without a name the only one there is.

        None without entries and name. Raises InputError when the name fits none, or when several could be meant.
        """
        if name is None:
            if len(self.databases) > 1:
                raise InputError(
                    f"{self._place()} has several databases", hint=f"choose one with --database: {self._names()}"
                )
            return self.databases[0] if self.databases else None
        for entry in self.databases:
            if name == entry.name:
                return entry
        for entry in self.databases:
            if name == entry.identity:
                return entry
        raise InputError(
            f"no database {name!r} in {self._place()}",
            hint=f"it has: {self._names()}" if self.databases else "write a [[databases]] entry, or use --dsn",
        )

    def origin(self, key: str) -> str:
        """Say where the value of a key comes from: ``FILE:LINE``, a variable, or ``default``."""
        return next((setting.origin for setting in self.settings if setting.key == key), DEFAULT)

    def _place(self) -> str:
        return str(self.path) if self.path else "the configuration: there is no configuration file"

    def _names(self) -> str:
        return ", ".join(entry.name for entry in self.databases)


def load(named: str | os.PathLike[str] | None) -> Config:
    """Read the named file, or else the first that exists of ``source.places()``, with the environment above it.

    Raises InputError when a named file does not exist, cannot be read, is not TOML, or says something that is not
    understood. Files with secrets are not read before they are needed.
    """
    return check(read(find(named)))


def check(source: Source) -> Config:
    """Make a configuration of what was read; raises InputError for the first thing that is wrong."""
    foreign = _is_of_pgsense(source.values)
    warnings = [*_unknown_keys(source, foreign), *_refused_elsewhere(source)]
    pipeline = {name: _setting(source, ("pipeline",), "pipeline", name, key) for name, key in keys.PIPELINE.items()}
    databases = tuple(_database(source, number, foreign) for number in range(len(source.values.get("databases", []))))
    _refuse_duplicates(source, databases)
    store = pipeline["store"]
    settings = list(pipeline.values())
    for entry in databases:
        # A password stands in the file, or in one of its own.
        unused = "password.file" if entry.settings["password.file"].value is None else "password"
        settings += [each for name, each in entry.settings.items() if name != unused]
    return Config(
        source.path,
        Pipeline(
            store=None if store.origin == DEFAULT else cast(Store, store.value),
            state_dsn=cast("str | None", pipeline["state_dsn"].value),
            state_table=str(pipeline["state_table"].value),
            state_pool=cast(int, pipeline["state_pool"].value),
        ),
        databases,
        tuple(settings),
        tuple(warnings),
    )


def _is_of_pgsense(values: Mapping[str, Any]) -> bool:
    """Tell whether a file has something in it that only pgsense-rs knows."""
    return bool(
        keys.PGSENSE_TABLES & set(values)
        or keys.PGSENSE_PIPELINE & set(values.get("pipeline", {}))
        or any(keys.PGSENSE_DATABASE & set(entry) for entry in values.get("databases", []))
    )


def _unknown_keys(source: Source, foreign: bool) -> list[tuple[str, str | None]]:
    """Refuse unknown keys in a file of pgrepl's own, and warn of them in one of pgsense-rs, which says nothing."""
    tables: list[tuple[KeyPath, str, Mapping[str, Any], set[str], set[str]]] = [
        ((), "at the top", source.values, {"pipeline", "databases"}, keys.PGSENSE_TABLES),
        (
            ("pipeline",),
            "in [pipeline]",
            source.values.get("pipeline", {}),
            set(keys.PIPELINE),
            keys.PGSENSE_PIPELINE,
        ),
    ]
    for number, entry in enumerate(source.values.get("databases", [])):
        known = {name.partition(".")[0] for name in keys.DATABASE}
        path: KeyPath = ("databases", number)
        tables.append((path, "in [[databases]]", entry, known, keys.PGSENSE_DATABASE))
        for name in ("password", "tls"):
            if isinstance(entry.get(name), dict):
                below = {key.partition(".")[2] for key in keys.DATABASE if key.startswith(f"{name}.")}
                tables.append(((*path, name), f"in {name} of [[databases]]", entry[name], below, set()))
    warnings: list[tuple[str, str | None]] = []
    for path, place, table, known, elsewhere in tables:
        for name in table:
            if name in known or name in elsewhere:
                continue
            message = f"{source.origin((*path, name))}: unknown key {name!r} {place}"
            hint = keys.nearest(name, known | elsewhere if foreign else known)
            if not foreign:
                raise InputError(message, hint=hint)
            warnings.append((message, hint))
    return warnings


def _refused_elsewhere(source: Source) -> list[tuple[str, str | None]]:
    variables = sorted({source.origin(path) for path in source.from_environment if path[0] == "databases"})
    if not variables:
        return []
    return [
        (
            f"{', '.join(variables)}: pgsense-rs itself does not start with a variable for a database",
            "its documentation promises them, but it takes the number for a key and refuses what comes out",
        )
    ]


def _database(source: Source, number: int, foreign: bool) -> Database:
    path = ("databases", number)
    entry = source.values["databases"][number]
    if not isinstance(entry.get("tls", {}), dict):
        raise InputError(f"{source.origin((*path, 'tls'))}: tls must be a table", hint="tls = { enabled = true }")
    if isinstance(entry.get("password"), dict) and "file" not in entry["password"]:
        raise InputError(
            f'{source.origin((*path, "password"))}: password must be a text or {{ file = "…" }}',
            hint='password = { file = "/run/secrets/NAME" }',
        )
    host, dbname = (_setting(source, path, "", name, keys.DATABASE[name]).value for name in ("host", "dbname"))
    named = _setting(source, path, "", "name", keys.Key(keys.DATABASE["name"].read, f"{host}/{dbname}"))
    prefix = f"databases.{named.value}"
    settings = {name: _setting(source, path, prefix, name, key) for name, key in keys.DATABASE.items()}
    settings["name"] = Setting(f"{prefix}.name", named.value, named.origin)
    if foreign and settings["publication"].value is None:
        settings["publication"] = Setting(f"{prefix}.publication", keys.PGSENSE_PUBLICATION, DEFAULT)
    return Database(str(named.value), settings, str(source.path) if source.path else source.origin(path))


def _setting(source: Source, table: KeyPath, prefix: str, name: str, key: keys.Key) -> Setting:
    path = (*table, *name.split("."))
    raw: Any = source.values
    for part in path:
        raw = raw[part] if isinstance(part, int) else raw.get(part) if isinstance(raw, dict) else None
    if raw is None or (name == "password" and isinstance(raw, dict)):
        return Setting(f"{prefix}.{name}", key.default, DEFAULT)
    where = source.origin(path)
    return Setting(f"{prefix}.{name}", keys.value(key, name, raw, where), where)


def _refuse_duplicates(source: Source, databases: tuple[Database, ...]) -> None:
    names: dict[str, int] = {}
    identities: dict[str, int] = {}
    for number, entry in enumerate(databases):
        where = source.origin(("databases", number))
        # First: entries without a name are called by their identity.
        if entry.identity in identities:
            raise InputError(
                f"{where}: a second database {entry.identity}, after {_place(source, identities[entry.identity])}",
                hint="a pipeline is known by host/dbname, whatever the port: keep one entry",
            )
        if entry.name in names:
            raise InputError(
                f"{where}: a second database is called {entry.name!r}, after {_place(source, names[entry.name])}",
                hint="give each a name = of its own",
            )
        names[entry.name] = identities[entry.identity] = number


def _place(source: Source, number: int) -> str:
    return source.origin(("databases", number))


def _masked_dsn(dsn: str) -> str:
    from pgrepl.conninfo import parse

    try:
        return parse(dsn, "").masked()
    except PgreplError:
        return _MASK


# TLS ----------------------------------------------------------------------------------------------------------------

_files: list[Any] = []


def _trusted_roots(certificates: str) -> dict[str, str]:
    """Say by which certificates libpq is to know the server: the configured ones, else the user's, else the system's.

    libpq reads certificates from a file alone (PostgreSQL documentation, SSL Support), so certificates that are
    configured as text are written to a temporary one, which only its owner can read and which ends with the process.
    """
    if "-----BEGIN" in certificates:
        file = tempfile.NamedTemporaryFile("w", prefix="pgrepl-", suffix=".pem")  # noqa: SIM115  closed at exit
        file.write(certificates)
        file.flush()
        _files.append(file)
        atexit.register(file.close)
        return {"sslrootcert": file.name}
    if certificates.strip():
        return {"sslrootcert": certificates}
    if os.environ.get("PGSSLROOTCERT") or Path("~/.postgresql/root.crt").expanduser().exists():
        return {}
    return {"sslrootcert": _system_roots()}


def _system_roots() -> str:
    """Find the system's certificates: the OpenSSL that comes with psycopg looks for them where no system has them."""
    import ssl

    return ssl.get_default_verify_paths().cafile or "system"
