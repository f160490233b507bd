"""Change values in the configuration file, and leave the rest of it as it is, comments included."""

from __future__ import annotations

import contextlib
import os
import tempfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pgrepl.config import keys
from pgrepl.config.keys import Value
from pgrepl.config.settings import check
from pgrepl.config.source import places, read_file, read_text
from pgrepl.conninfo import parse
from pgrepl.errors import InputError, OperationError

if TYPE_CHECKING:
    from tomlkit import TOMLDocument


class _Place(NamedTuple):
    """A key taken apart: the database that it belongs to, or None for ``[pipeline]``, and its names below that."""

    database: str | None
    name: str


class _Kinds(NamedTuple):
    """How the parts of a document are made: of what tomlkit can write, or of plain dicts and lists to compare with."""

    table: Callable[[], Any]
    inline_table: Callable[[], Any]
    array_of_tables: Callable[[], Any]


_PLAIN = _Kinds(dict, dict, list)


def _toml(document: TOMLDocument) -> _Kinds:
    import tomlkit

    above = document.as_string()

    def table() -> Any:
        made = tomlkit.table()
        # A blank line above it, where there is something above.
        made.trivia.indent = "\n" if above and not above.endswith("\n\n") else ""
        return made

    return _Kinds(table, tomlkit.inline_table, tomlkit.aot)


def set_values(path: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Set ``pipeline.KEY`` or ``databases.NAME.KEY`` in a file, which is made, readable by its owner alone, if missing.

    ``databases.NAME.name NAME`` adds an entry. The file is replaced as a whole, with its mode, once the new content is
    known to be a valid configuration. Raises InputError, and OperationError when the file cannot be written.
    """
    import tomlkit

    changes = [_read(key, text) for key, text in pairs]
    old = read_file(path) if os.path.lexists(path) else ""
    wanted = read_text(path, old).values
    document = tomlkit.parse(old if not old or old.endswith("\n") else f"{old}\n")
    for place, value in changes:
        _set(document, _toml(document), place, value)
        _set(wanted, _PLAIN, place, value)
    new = document.as_string()
    if not _says(new, wanted):
        keys_set = ", ".join(key for key, _ in pairs)
        raise OperationError(f"{keys_set} cannot be set without changing more of {path}", hint="edit the file by hand")
    check(read_text(path, new))
    _replace(path, new)


def _says(text: str, wanted: Mapping[str, Any]) -> bool:
    try:
        return tomllib.loads(text) == wanted
    except tomllib.TOMLDecodeError:
        return False


def new_file() -> Path:
    """Say where a file is made when there is none: in the user's configuration directory."""
    return places()[-1]


def _place(key: str) -> _Place:
    table, _, rest = key.partition(".")
    if table == "pipeline":
        if rest not in keys.PIPELINE:
            raise InputError(f"unknown key {key!r}", hint=keys.nearest(rest, keys.PIPELINE))
        return _Place(None, rest)
    if table != "databases":
        raise InputError(f"unknown key {key!r}", hint="keys are pipeline.KEY and databases.NAME.KEY")
    # A database's name may have dots in it; of the keys the longest that fits is meant.
    for name in sorted(keys.DATABASE, key=len, reverse=True):
        if rest.endswith(f".{name}") and len(rest) > len(name) + 1:
            return _Place(rest[: -len(name) - 1], name)
    raise InputError(f"unknown key {key!r}", hint=keys.nearest(rest.rpartition(".")[2], keys.DATABASE))


def _read(key: str, text: str) -> tuple[_Place, Value]:
    place = _place(key)
    known = keys.PIPELINE if place.database is None else keys.DATABASE
    value = keys.value(known[place.name], key, text, "nothing was changed")
    if place.name == "state_dsn":
        parse(text, key)
    return place, value


def _table(document: Any, kinds: _Kinds, place: _Place, value: Value) -> Any:
    """Find the table that the key is in, and make it if it is not there."""
    if place.database is None:
        if "pipeline" not in document:
            document["pipeline"] = kinds.table()
        return document["pipeline"]
    entries = document.get("databases", [])
    found = [entry for entry in entries if _name(entry) == place.database] or [
        entry for entry in entries if _identity(entry) == place.database
    ]
    if found:
        return found[0]
    if place.name != "name" or value != place.database:
        names = ", ".join(_name(entry) for entry in entries)
        raise InputError(
            f"no database {place.database!r} in the file",
            hint=f"{f'it has {names}; ' if names else ''}pgrepl config set databases.NAME.name NAME adds one",
        )
    if not entries:
        document.pop("databases", None)
        document["databases"] = kinds.array_of_tables()
    document["databases"].append(kinds.table())
    return document["databases"][-1]


def _name(entry: Mapping[str, Any]) -> str:
    return str(entry.get("name") or _identity(entry))


def _identity(entry: Mapping[str, Any]) -> str:
    host, dbname = (entry.get(name, keys.DATABASE[name].default) for name in ("host", "dbname"))
    return f"{host}/{dbname}"


def _set(document: Any, kinds: _Kinds, place: _Place, value: Value) -> None:
    table = _table(document, kinds, place, value)
    above, _, last = place.name.rpartition(".")
    # password.file and tls.… are in a table of their own.
    if above:
        if not isinstance(table.get(above), Mapping):
            table[above] = kinds.inline_table()
        table = table[above]
    table[last] = value


def _replace(path: Path, text: str) -> None:
    """Write a file beside the old one and put it in its place; a symbolic link goes on leading to it."""
    real = Path(os.path.realpath(path))
    temporary: str | None = None
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=real.parent, prefix=f".{real.name}.")
        with os.fdopen(descriptor, "wb") as file:
            if real.exists():
                status = real.stat()
                os.fchmod(descriptor, status.st_mode & 0o7777)
                with contextlib.suppress(PermissionError):
                    os.fchown(descriptor, status.st_uid, status.st_gid)
            file.write(text.encode())
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, real)  # noqa: PTH105  as a pair with mkstemp
        temporary = None
    except OSError as error:
        raise OperationError(f"cannot write the configuration file {path}: {error.strerror or error}") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
