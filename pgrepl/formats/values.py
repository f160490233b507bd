"""A column's PostgreSQL text to its JSON bytes, one function chosen per column.

The text is what a session gives that has set DateStyle ISO, TimeZone UTC, extra_float_digits 1 and client_encoding
UTF8; pgoutput and COPY give the same. A value never fails: text that is not what its type promises becomes a JSON
string of that text. Bytes that are not UTF-8 (a database in SQL_ASCII holds what was put in) become the text ``\\xNN``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Final, TypeAlias

import orjson

from pgrepl.pgoutput.types import Kind, ValueType

Encoder: TypeAlias = Callable[[bytes], bytes]

_ZERO: Final = ord("0")
_INTEGER: Final = re.compile(rb"-?(?:0|[1-9][0-9]*)")
_FLOAT: Final = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_TIMESTAMP: Final = re.compile(rb"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?")
_TIMESTAMPTZ: Final = re.compile(_TIMESTAMP.pattern + rb"\+00")

# Possessive quantifiers: a string that does not end costs no more than its length.
_JSON_NO_SPACE: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[^" \t\n\r]++')

_ARRAY_ESCAPE: Final = re.compile(rb"\\(.)", re.DOTALL)


@cache
def encoder(value_type: ValueType) -> Encoder:
    """Return the function that turns the text of a column of this type (not NULL) into JSON bytes."""
    if value_type.element is not None:
        return _array_encoder(encoder(value_type.element), value_type.delimiter.encode())
    return _SCALARS[value_type.kind]


def text_value(text: bytes) -> bytes:
    """Write a JSON string."""
    try:
        return orjson.dumps(text.decode())
    except UnicodeDecodeError:
        return orjson.dumps(text.decode(errors="backslashreplace"))


def bool_value(text: bytes) -> bytes:
    """Write true or false."""
    if text == b"t":
        return b"true"
    return b"false" if text == b"f" else text_value(text)


def number_value(text: bytes) -> bytes:
    """Write an integer as it stands."""
    if text.isdigit() and text[0] != _ZERO:  # most are, and this is ten times faster than the pattern
        return text
    return text if _INTEGER.fullmatch(text) else text_value(text)


def float_value(text: bytes) -> bytes:
    """Write the server's digits; NaN and the infinities, which JSON does not know, as strings.

    ``-0`` gets a fraction, since readers take the integer ``-0`` for 0.
    """
    if _FLOAT.fullmatch(text):
        return text if text != b"-0" else b"-0.0"
    return text_value(text)


def json_value(text: bytes) -> bytes:
    """Embed json or jsonb: digits, order of keys and escapes stay, whitespace outside strings goes."""
    try:
        compact = orjson.dumps(orjson.loads(text))
    except ValueError:
        # orjson refuses what PostgreSQL does not: lone surrogates and deep nesting.
        return _without_json_space(text) if _is_json(text) else text_value(text)
    # orjson rounds long numbers, drops repeated keys and resolves escapes, so its answer counts only where the text
    # itself is the same without the spaces that jsonb is written with. A space taken out of a string makes them differ.
    if compact == text.replace(b": ", b":").replace(b", ", b","):
        return compact
    return _without_json_space(text)


def timestamp_value(text: bytes) -> bytes:
    """Write ISO 8601; infinity, BC and years beyond 9999 as they stand."""
    if _TIMESTAMP.fullmatch(text):
        return b'"' + text[:10] + b"T" + text[11:] + b'"'
    return text_value(text)


def timestamptz_value(text: bytes) -> bytes:
    """Write ISO 8601 with a Z; infinity, BC, years beyond 9999 and zones other than UTC as they stand."""
    if _TIMESTAMPTZ.fullmatch(text):
        return b'"' + text[:10] + b"T" + text[11:-3] + b'Z"'
    return text_value(text)


_SCALARS: Final[dict[Kind, Encoder]] = {
    Kind.BOOL: bool_value,
    Kind.NUMBER: number_value,
    Kind.FLOAT: float_value,
    Kind.JSON: json_value,
    Kind.TIMESTAMP: timestamp_value,
    Kind.TIMESTAMPTZ: timestamptz_value,
    Kind.TEXT: text_value,
}


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text.decode(), parse_int=str, parse_float=str, parse_constant=_not_json)
    except ValueError:
        return False
    except RecursionError:
        pass  # the server has parsed it, deeper than can be followed here
    return True


def _not_json(constant: str) -> None:
    raise ValueError(constant)


def _without_json_space(text: bytes) -> bytes:
    """Remove the whitespace outside the strings of well-formed JSON."""
    return b"".join(_JSON_NO_SPACE.findall(text))


def _array_encoder(element: Encoder, delimiter: bytes) -> Encoder:
    """Return the function for arrays, by PostgreSQL documentation, Array Input and Output Syntax."""
    special = re.escape(delimiter)
    token = re.compile(rb"[{}]|" + special + rb'|"((?:[^"\\]++|\\.)*+)"|[^{}"\\' + special + rb"]++", re.DOTALL)

    def one(text: bytes) -> bytes:
        return b"null" if text == b"NULL" else element(text)

    def array_value(text: bytes) -> bytes:
        if b'"' in text or b"\\" in text or text.rfind(b"{") != 0 or text.find(b"}") != len(text) - 1:
            return nested(text) or text_value(text)
        if len(text) == 2:
            return b"[]"
        elements = text[1:-1].split(delimiter)
        if b"" in elements:
            return text_value(text)
        return b"[" + b",".join(map(one, elements)) + b"]"

    def nested(text: bytes) -> bytes | None:
        """Encode an array with quotes or several dimensions; None for text that is none or sets lower bounds."""
        output: list[bytes] = []
        offset = depth = leaf_depth = 0
        opens = True  # whether an element or a dimension may begin here
        for match in token.finditer(text):
            if match.start() != offset or (depth == 0 and offset):
                return None
            offset = match.end()
            found = match[0]
            if found == b"{" and opens:
                depth += 1
                output.append(b"[")
            elif found == b"}" and not opens:
                depth -= 1
                output.append(b"]")
            elif found == delimiter and not opens:
                opens = True
                output.append(b",")
            elif opens and depth and found not in (b"}", delimiter):
                leaf_depth = leaf_depth or depth
                if depth != leaf_depth:
                    return None
                opens = False
                quoted = match[1]
                output.append(one(found) if quoted is None else element(_ARRAY_ESCAPE.sub(rb"\1", quoted)))
            else:
                return None
        return b"".join(output) if output and depth == 0 and offset == len(text) else None

    return array_value
