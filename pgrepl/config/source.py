"""Where configured values come from: the file, the environment above it, and the line or variable of each value."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgrepl.config import keys
from pgrepl.errors import InputError

FILE_NAME = "pgrepl.toml"
# Far more than a configuration needs, and little enough to be read whole.
_MOST_BYTES = 1 << 20
# For a key a.b.c… tomllib needs memory by the square of its length, and a megabyte of it takes all there is.
_MOST_DOTS = 1000

_PGSENSE = "PGSENSE__"

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Source:
    """Values as they were written, and where: ``origins`` has a line of the file or a variable for each of them."""

    path: Path | None = None
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    from_environment: list[KeyPath] = field(default_factory=list)

    def origin(self, path: KeyPath) -> str:
        """Say where a value stands, or else what it stands in."""
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins.get(path, str(self.path))


def places() -> list[Path]:
    """List the files that are looked for when none is named: here, then in the user's configuration directory."""
    home = os.environ.get("XDG_CONFIG_HOME")
    try:
        directory = Path(home) if home else Path("~/.config").expanduser()
    except RuntimeError:
        return [Path(FILE_NAME)]
    return [Path(FILE_NAME), directory / "pgrepl" / FILE_NAME]


def find(named: str | os.PathLike[str] | None) -> Path | None:
    """Give the file that is used: the named one, else the first of ``places`` that is there."""
    if named is not None:
        return Path(named)
    return next((place for place in places() if os.path.lexists(place)), None)


def read(path: Path | None, *, environment: bool = True) -> Source:
    """Read the file, and the environment above it. Raises InputError."""
    source = read_text(path, read_file(path)) if path else Source()
    if environment:
        _add_environment(source)
    return source


def read_file(path: Path) -> str:
    """Read the text of a configuration file; raises InputError when it cannot be read or is no text."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read the configuration file {path}: {_reason(error)}",
            hint="--config and PGREPL_CONFIG name a TOML file; without them ./pgrepl.toml is read, where it exists",
        ) from None
    if len(data) > _MOST_BYTES:
        raise InputError(
            f"the configuration file {path} is longer than {_MOST_BYTES >> 20} MB", hint="is it the right file?"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(
            f"the configuration file {path} is not UTF-8 text", hint="TOML is always UTF-8: save it as that"
        ) from None


def read_secret(path: str, what: str) -> str:
    """Read a file that holds one secret, without its trailing white space. Raises InputError."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError("it is far too long")
        text = data.decode().rstrip()
        if "\0" in text:
            raise ValueError("there is a zero byte in it")
    except UnicodeDecodeError:
        raise InputError(
            f"cannot read the {what} {path}: it is not UTF-8 text", hint="put nothing but the text of it into the file"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read the {what} {path}: {_reason(error)}", hint="the user that runs pgrepl must be able to read it"
        ) from None
    return text


def _reason(error: OSError | ValueError) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return (text or str(error)).lower()


def read_text(path: Path, text: str) -> Source:
    """Read the text of the file. Raises InputError when it is no TOML or its tables are not where they belong."""
    try:
        if any(line.count(".") > _MOST_DOTS for line in text.splitlines()):
            raise RecursionError
        values = tomllib.loads(text)
        lines = _lines(text.replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as error:
        raise InputError(
            f"the configuration file {path} is not TOML: {str(error)[:1].lower()}{str(error)[1:]}",
            hint="'pgrepl config set' writes such a file",
        ) from None
    except RecursionError:
        raise InputError(f"the configuration file {path} is nested too deeply", hint="is it the right file?") from None
    source = Source(path, values, {key: f"{path}:{line}" for key, line in lines.items()})
    if not isinstance(values.get("pipeline", {}), dict):
        raise InputError(f"{source.origin(('pipeline',))}: pipeline must be a table", hint="write [pipeline]")
    entries = values.get("databases", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(
            f"{source.origin(('databases',))}: databases must be an array of tables",
            hint="begin each entry with [[databases]]",
        )
    return source


# A piece of TOML: a string in one of its four forms, a comment, a bracket, the end of a line, or what is between them.
_PIECE = re.compile(
    r'''"""(?:[^\\]|\\.)*?"""+ | \'\'\'.*?\'\'\'+ | "(?:[^"\\\n]|\\.)*" | '[^'\n]*' | \#[^\n]* | [\[\]{}\n]
      | [^"'\#\[\]{}\n]+''',
    re.DOTALL | re.VERBOSE,
)


def _lines(text: str) -> dict[KeyPath, int]:
    """Find the line on which each table and each value of a TOML text begins, which tomllib does not tell."""
    found: dict[KeyPath, int] = {}
    entries: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for line, statement in _statements(text):
        header = tomllib.loads(statement)
        if statement.lstrip().startswith("["):
            *above, name = _only_path(header)
            table = (*_in_last_entries(above, entries), name)
            if statement.lstrip().startswith("[["):
                found.setdefault(table, line)
                entries[table] = entries.get(table, -1) + 1
            table = _in_last_entries([name], entries, table[:-1])
            found[table] = line
        else:
            for path in _paths(header, table):
                found.setdefault(path, line)
    return found


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield headers and assignments, each whole, with the number of its first line."""
    line = 1
    depth = 0
    begun: list[str] = []
    first = 1
    for piece in [*_PIECE.findall(text), "\n"]:
        if piece == "\n" and depth == 0:
            statement = "".join(begun)
            if statement.strip() and not statement.lstrip().startswith("#"):
                yield first, statement
            begun, first = [], line + 1
        else:
            begun.append(piece)
            depth += (piece in "[{") - (piece in "]}")
        line += piece.count("\n")


def _only_path(header: Mapping[str, Any]) -> list[str]:
    """Give the names in ``[a.b]`` or ``[[a.b]]``, as it was read on its own."""
    names: list[str] = []
    below: Any = header
    while below:
        name, below = next(iter(below.items()))
        names.append(name)
        below = below[0] if isinstance(below, list) else below
    return names


def _in_last_entries(names: list[str], entries: Mapping[KeyPath, int], above: KeyPath = ()) -> KeyPath:
    """Go down by name, and in an array of tables into the entry that was begun last."""
    path = above
    for name in names:
        path = (*path, name)
        if path in entries:
            path = (*path, entries[path])
    return path


def _paths(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    if path:
        yield path
    parts: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield from _paths(part, (*path, name))


def _add_environment(source: Source) -> None:
    """Put PGSENSE__… and then PGREPL_… over the values of the file. An empty variable is none."""
    found = [(path, text, name) for path, text, name in _pgsense_variables() if text]
    found += [(("pipeline", key), os.environ.get(name, ""), name) for key, name in PIPELINE_VARIABLES.items()]
    for path, text, name in found:
        if not text:
            continue
        if path[0] == "databases":
            _make_entry(source, path, name)
        _put(source.values, path, text)
        for below in [each for each in source.origins if each[: len(path)] == path]:
            del source.origins[below]
        source.origins[path] = name
        source.from_environment.append(path)


PIPELINE_VARIABLES = {key: f"PGREPL_{key.upper()}" for key in keys.PIPELINE}


def _pgsense_variables() -> list[tuple[KeyPath, str, str]]:
    """Find the variables of pgsense-rs that mean something here; their names may be in any case."""
    found: list[tuple[KeyPath, str, str]] = []
    # Upper case comes first in this order, and is to win; later ones replace earlier ones.
    for name in sorted(os.environ, reverse=True):
        if not name.upper().startswith(_PGSENSE):
            continue
        table, *rest = name[len(_PGSENSE) :].lower().split("__")
        if table == "pipeline" and len(rest) == 1 and rest[0] in keys.PIPELINE:
            found.append(((table, *rest), os.environ[name], name))
        elif table == "databases":
            number, *key = rest or [""]
            if not (number.isascii() and number.isdigit() and len(number) < 5):
                raise InputError(f"{name} cannot be understood", hint=f"{_PGSENSE}DATABASES__0__HOST is the first host")
            if ".".join(key) in keys.DATABASE:
                found.append(((table, int(number), *key), os.environ[name], name))
    # Entries that the file does not have are added in their order.
    return sorted(found, key=lambda each: int(each[0][1]) if each[0][0] == "databases" else -1)


def _make_entry(source: Source, path: KeyPath, variable: str) -> None:
    entries = source.values.setdefault("databases", [])
    number = int(path[1])
    if number > len(entries):
        raise InputError(f"{variable}: there is no database {len(entries)} before it", hint="they are counted from 0")
    if number == len(entries):
        entries.append({})
        source.origins.setdefault(path[:2], variable)


def _put(values: Any, path: KeyPath, value: str) -> None:
    *above, last = path
    for name in above:
        below = values[name] if isinstance(name, int) else values.get(name)
        if not isinstance(below, dict | list):
            below = values[name] = {}
        values = below
    values[last] = value
