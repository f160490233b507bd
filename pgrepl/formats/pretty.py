"""Changes for people: one aligned, coloured line each, an update with the old and the new value of what changed."""

from __future__ import annotations

from pgrepl.events import (
    Begin,
    Commit,
    Delete,
    Event,
    Insert,
    Message,
    Read,
    SchemaChange,
    SnapshotBegin,
    SnapshotEnd,
    Table,
    Truncate,
    Update,
)
from pgrepl.pgoutput.messages import UNCHANGED, TupleData, Unchanged

_COLORS = {"read": 34, "insert": 32, "update": 33, "delete": 31, "truncate": 35, "schema": 36, "message": 36}
_IDENTITIES = {"d": "default", "n": "nothing", "f": "full", "i": "using index"}
_DIM = 2
_LONGEST_VALUE = 60
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:+/@%")


class Pretty:
    """Write an event as a line of text; values longer than 60 characters are shortened."""

    def __init__(self, *, color: bool) -> None:
        self._color = color
        self._width = 0

    def encode(self, event: Event) -> bytes:
        """Give the line."""
        match event:
            case Read(table, new):
                return self._line("read", table, self._columns(table, new))
            case Insert(table, new):
                return self._line("insert", table, self._columns(table, new))
            case Update(table):
                return self._line("update", table, self._changes(event))
            case Delete(table, old, old_kind):
                return self._line("delete", table, self._columns(table, old, old_kind == "key"))
            case Truncate(tables, cascade, restart_identity):
                flags = " cascade" * cascade + " restart identity" * restart_identity
                return b"".join(self._line("truncate", table, flags.strip()) for table in tables)
            case SchemaChange(table, diff):
                changes = [f"+{_name(name)}" for name in diff.added] + [f"-{_name(name)}" for name in diff.dropped]
                changes += [f"{_name(before)}→{_name(after)}" for before, after in diff.renamed]
                types = {column.name: column.type_name for column in table.columns}
                changes += [f"{_name(name)} is now {_name(types[name])}" for name in diff.retyped]
                identity = f"replica identity {_IDENTITIES[table.replica_identity]}"
                return self._line("schema", table, " ".join(changes) or identity)
            case Message(prefix, content, _, start_lsn):
                return self._text("message", _value(prefix.encode()), f"{_value(content)} at {start_lsn}")
            case SnapshotBegin(table, attempt, snapshot_lsn):
                again = f", attempt {attempt}" if attempt > 1 else ""
                return self._frame(f"-- snapshot of {_name(table.qualified)} at {snapshot_lsn}{again}")
            case SnapshotEnd(table, _, rows):
                return self._frame(f"-- {rows} {'row' if rows == 1 else 'rows'} of {_name(table.qualified)}")
            case Begin(transaction):
                return self._frame(f"-- begin {transaction.xid}, commits at {transaction.commit_lsn}")
            case Commit(transaction, end_lsn, rows):
                return self._frame(
                    f"-- commit {transaction.xid}, {rows} {'row' if rows == 1 else 'rows'}, ends at {end_lsn}"
                )

    def _line(self, op: str, table: Table, text: str) -> bytes:
        return self._text(op, _name(table.qualified), text)

    def _text(self, op: str, subject: str, text: str) -> bytes:
        # The column grows with the longest name seen, so that lines stay aligned without knowing all names beforehand.
        self._width = max(self._width, len(subject))
        return f"{self._paint(f'{op:<8}', _COLORS[op])} {subject:<{self._width}}  {text}".rstrip().encode() + b"\n"

    def _frame(self, text: str) -> bytes:
        return self._paint(text, _DIM).encode() + b"\n"

    def _columns(self, table: Table, row: TupleData, key_only: bool = False) -> str:
        indexes = table.key if key_only else range(len(row))
        return " ".join(f"{self._label(table, index)}{_value(row[index])}" for index in indexes)

    def _changes(self, event: Update) -> str:
        """Show the key, and what changed where the old row tells; all that was sent where it does not."""
        table, new, old = event.table, event.new, event.old
        parts = []
        for index, value in enumerate(new):
            known = old is not None and (event.old_kind == "full" or index in table.key)
            if known and old is not None and old[index] != value:
                parts.append(f"{self._label(table, index)}{_value(old[index])}{self._paint('→', _DIM)}{_value(value)}")
            elif index in table.key or (not known and value is not UNCHANGED):
                parts.append(f"{self._label(table, index)}{_value(value)}")
        return " ".join(parts)

    def _label(self, table: Table, index: int) -> str:
        return self._paint(f"{_name(table.columns[index].name)}=", _DIM)

    def _paint(self, text: str, code: int) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._color else text


def _name(name: str) -> str:
    return name if name.isprintable() else repr(name)


def _value(value: bytes | Unchanged | None) -> str:
    """Write a value so that its ends are seen and no control character reaches the terminal."""
    if value is None:
        return "null"
    if isinstance(value, Unchanged):
        return "(unchanged)"
    text = value.decode(errors="backslashreplace")
    if len(text) > _LONGEST_VALUE:
        text = f"{text[: _LONGEST_VALUE - 1]}…"
    if value and _PLAIN.issuperset(value):
        return text
    shown = "".join(c if c.isprintable() and c not in "'\\" else c.encode("unicode_escape").decode() for c in text)
    return "'" + shown.replace("'", "''") + "'"
