"""The configuration file: where it is looked for, what it may hold, and what is wrong with one that cannot be used."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgrepl.conninfo import ConnectionTarget
from pgrepl.errors import InputError

FILE_NAME = "pgrepl.toml"

_DATABASE_KEYS = {"name", "host", "port", "dbname", "username", "password", "publication"}


@dataclass(frozen=True)
class Database:
    """One ``[[databases]]`` entry."""

    name: str
    target: ConnectionTarget
    publication: str | None


@dataclass(frozen=True)
class Config:
    """What the configuration file says; ``path`` is None when there is none."""

    path: Path | None = None
    databases: tuple[Database, ...] = ()

    def database(self, name: str | None) -> Database | None:
        """Choose the entry that ``name`` means (its name, or host/dbname); without a name the only one there is.

        None without entries and name. Raises InputError when the name fits none, or when several could be meant.
        """
        if name is None:
            if len(self.databases) > 1:
                raise InputError(
                    f"{self.path} has several databases", hint=f"choose one with --database: {self._names()}"
                )
            return self.databases[0] if self.databases else None
        for entry in self.databases:
            if name in (entry.name, f"{entry.target.params['host']}/{entry.target.params['dbname']}"):
                return entry
        raise InputError(
            f"no database {name!r} in {self.path or 'the configuration: there is no configuration file'}",
            hint=f"the file has: {self._names()}" if self.databases else "write a [[databases]] entry, or use --dsn",
        )

    def _names(self) -> str:
        return ", ".join(entry.name for entry in self.databases)


def load(path: str | os.PathLike[str] | None) -> Config:
    """Read the named file, or else the first that exists of ./pgrepl.toml and the user's configuration directory.

    Raises InputError when a named file does not exist, cannot be read, is not TOML, or says something that is not
    understood.
    """
    if path is not None:
        return _parse(Path(path))
    for candidate in _default_paths():
        if candidate.exists():
            return _parse(candidate)
    return Config()


def _default_paths() -> list[Path]:
    home = os.environ.get("XDG_CONFIG_HOME")
    return [Path(FILE_NAME), (Path(home) if home else Path("~/.config").expanduser()) / "pgrepl" / FILE_NAME]


def _parse(path: Path) -> Config:
    import tomlkit
    import tomlkit.exceptions

    try:
        document = tomlkit.parse(path.read_text(encoding="utf-8")).unwrap()
    except OSError as error:
        raise InputError(f"cannot read the configuration file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"the configuration file {path} is not UTF-8 text") from None
    except tomlkit.exceptions.ParseError as error:
        raise InputError(f"the configuration file {path} is not TOML: {error}") from None
    _check_keys(path, document, {"databases"}, "at the top")
    entries = document.get("databases", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{path}: databases must be an array of tables", hint="begin each entry with [[databases]]")
    databases = tuple(_database(path, number, entry) for number, entry in enumerate(entries, 1))
    names = [entry.name for entry in databases]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: two databases are called {name!r}", hint="give each a name = of its own")
    return Config(path, databases)


def _database(path: Path, number: int, entry: Mapping[str, Any]) -> Database:
    place = f"in [[databases]] entry {number}"
    _check_keys(path, entry, _DATABASE_KEYS, place)
    params = {
        "host": _text(path, entry, "host", place) or "localhost",
        "port": str(_port(path, entry, place)),
        "dbname": _text(path, entry, "dbname", place) or "postgres",
        "user": _text(path, entry, "username", place) or "postgres",
    }
    password = entry.get("password")
    if isinstance(password, dict):
        params["password"] = _secret_file(path, password, place)
    elif password is not None:
        params["password"] = _text(path, entry, "password", place) or ""
    name = _text(path, entry, "name", place) or f"{params['host']}/{params['dbname']}"
    target = ConnectionTarget(params, f"{path}, database {name}")
    return Database(name, target, _text(path, entry, "publication", place))


def _text(path: Path, entry: Mapping[str, Any], key: str, place: str) -> str | None:
    value = entry.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{path}: {key} {place} must be a text that is not blank")
    return value


def _port(path: Path, entry: Mapping[str, Any], place: str) -> int:
    value = entry.get("port", 5432)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65535:
        raise InputError(f"{path}: port {place} must be a number from 1 to 65535")
    return value


def _secret_file(path: Path, secret: Mapping[str, Any], place: str) -> str:
    file = secret.get("file")
    if set(secret) != {"file"} or not isinstance(file, str):
        raise InputError(f'{path}: password {place} must be a text or {{ file = "…" }}')
    try:
        return Path(file).read_text(encoding="utf-8").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the password file {file} {place} of {path}: {error}") from None


def _check_keys(path: Path, table: Mapping[str, Any], known: set[str], place: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise InputError(
                f"{path}: unknown key {key!r} {place}",
                hint=f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}",
            )
