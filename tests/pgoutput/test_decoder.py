"""The decoder on known bytes, on any bytes, and on real messages that were damaged."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgrepl.errors import ProtocolError
from pgrepl.lsn import Lsn
from pgrepl.pgoutput.decoder import decode
from pgrepl.pgoutput.messages import (
    UNCHANGED,
    AnyMessage,
    Begin,
    Column,
    Commit,
    Delete,
    Insert,
    Relation,
    StreamAbort,
    Truncate,
    Update,
)
from tests.pgoutput import encode
from tests.pgoutput.capture import CAPTURES

VECTORS: dict[str, AnyMessage] = {
    "52 00004000 7075626c696300 757365727300 64 0002"
    " 01 696400 00000017 ffffffff 00 656d61696c00 00000019 ffffffff": Relation(
        0x4000, "public", "users", "d", (Column(True, "id", 23, -1), Column(False, "email", 25, -1))
    ),
    "49 00004000 4e 0002 74 00000002 3432 74 00000007 6140622e636f6d": Insert(0x4000, (b"42", b"a@b.com")),
    "44 00004000 4b 0002 74 00000002 3432 6e": Delete(0x4000, "key", (b"42", None)),
    # From a server of version 15.
    "42 000000000154b9c0 000303bc1690570b 000002ea": Begin(Lsn(0x154B9C0), 848531297425163, 746),
    "43 00 000000000154b9c0 000000000154b9f0 000303bc1690570b": Commit(
        0, Lsn(0x154B9C0), Lsn(0x154B9F0), 848531297425163
    ),
    "52 00004027 7075626c696300 743300 64 0003"
    " 01 696400 00000017 ffffffff 00 62696700 00000019 ffffffff 00 6e00 00000017 ffffffff": Relation(
        0x4027,
        "public",
        "t3",
        "d",
        (Column(True, "id", 23, -1), Column(False, "big", 25, -1), Column(False, "n", 23, -1)),
    ),
    "55 00004027 4e 0003 74 00000001 31 75 74 00000001 32": Update(0x4027, None, None, (b"1", UNCHANGED, b"2")),
    "55 00004027 4b 0003 74 00000001 31 6e 6e 4e 0003 74 00000001 32 75 74 00000001 32": Update(
        0x4027, "key", (b"1", None, None), (b"2", UNCHANGED, b"2")
    ),
    # From a server of version 18, between transactions.
    "41 000003d6 00000408": StreamAbort(982, 1032),
    "54 00000001 00 00004027": Truncate((0x4027,), False, False),
    "52 00004009 7075626c696300 743200 66 0003"
    " 01 696400 00000017 ffffffff 01 6100 00000019 ffffffff 01 6200 00000019 ffffffff": Relation(
        0x4009,
        "public",
        "t2",
        "f",
        (Column(True, "id", 23, -1), Column(True, "a", 25, -1), Column(True, "b", 25, -1)),
    ),
    "55 00004009 4f 0003 74 00000001 37 74 00000001 78 6e 4e 0003 74 00000001 37 74 00000001 79 6e": Update(
        0x4009, "full", (b"7", b"x", None), (b"7", b"y", None)
    ),
    "44 00004009 4f 0003 74 00000001 37 74 00000001 79 6e": Delete(0x4009, "full", (b"7", b"y", None)),
}

# What is wrong, and bytes that have no other fault.
FAULTS = {
    "empty": ("", "empty"),
    "unknown message": ("5a 0000", "unknown pgoutput message b'Z'"),
    "type without a name": ("59 0000", "truncated"),
    "protocol 2": ("53 000002ea 01", "unknown pgoutput message b'S'"),
    "insert without a row": ("49 00004000", "truncated"),
    "left over": ("44 00004000 4b 0001 6e 00", "left over"),
    "value past the end": ("49 00004000 4e 0001 74 00000003 3432", "truncated"),
    "negative length": ("49 00004000 4e 0001 74 ffffffff 3432", "truncated"),
    "huge length": ("49 00004000 4e 0002 74 7fffffff 3432 6e", "truncated"),
    "negative number of columns": ("49 00004000 4e ffff", "negative number of columns -1"),
    "too few columns": ("49 00004000 4e 0002 6e", "truncated"),
    "binary column": ("49 00004000 4e 0001 62 00000001 00", "binary"),
    "unknown kind of column": ("49 00004000 4e 0001 78", "kind 'x'"),
    "insert of an old row": ("49 00004000 4f 0001 6e", "tuple 'O'"),
    "update of two old rows": ("55 00004000 4b 0001 6e 4f 0001 6e", "tuple 'O'"),
    "update of an unknown row": ("55 00004000 58 0001 6e", "tuple 'X'"),
    "delete of a new row": ("44 00004000 4e 0001 6e", "tuple 'N'"),
    "commit with flags": ("43 01 000000000154b9c0 000000000154b9f0 000303bc1690570b", "flags 0x1"),
    "column with flags": ("52 00004000 00 7400 64 0001 02 696400 00000017 ffffffff", "flags 0x2"),
    "replica identity": ("52 00004000 00 7400 78 0000", "replica identity 'x'"),
    "truncate with options": ("54 00000000 04", "options 0x4"),
    "truncate of too many": ("54 ffffffff 00 00004027", "truncated"),
    "truncate of too few": ("54 00000001 00 00004027 00004028", "left over"),
    "message with flags": ("4d 02 000000000154b9c0 00 00000000", "flags 0x2"),
    "message past the end": ("4d 00 000000000154b9c0 00 00000001", "truncated"),
    "name that does not end": ("4f 000000000154b9c0 6162", "truncated"),
    "name that is not UTF-8": ("4f 000000000154b9c0 ff00", "not UTF-8"),
}

CAPTURED = [
    bytes.fromhex(json.loads(line)["payload"])[25:]
    for file in sorted(CAPTURES.glob("*.jsonl"))
    for line in file.read_text(encoding="utf-8").splitlines()
]


@pytest.mark.parametrize(("text", "message"), VECTORS.items(), ids=lambda value: type(value).__name__)
def test_known_bytes(text: str, message: AnyMessage) -> None:
    decoded = decode(bytes.fromhex(text))
    assert decoded == message
    assert type(decoded) is type(message)
    assert encode.encode(message) == bytes.fromhex(text)


@pytest.mark.parametrize(("text", "reason"), FAULTS.values(), ids=FAULTS)
def test_faults(text: str, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        decode(bytes.fromhex(text))


def test_empty_namespace_is_pg_catalog() -> None:
    relation = decode(bytes.fromhex("52 00004000 00 7400 64 0000"))
    assert relation == Relation(0x4000, "pg_catalog", "t", "d", ())


def test_lsns_are_lsns() -> None:
    commit = decode(bytes.fromhex("43 00 000000000154b9c0 000000000154b9f0 000303bc1690570b"))
    assert isinstance(commit, Commit)
    assert str(commit.end_lsn) == "0/154B9F0"


@given(encode.messages)
def test_round_trip(message: AnyMessage) -> None:
    decoded = decode(encode.encode(message))
    assert decoded == message
    assert type(decoded) is type(message)


def only_message_or_protocol_error(data: bytes) -> None:
    try:
        message = decode(data)
    except ProtocolError:
        return
    # Nothing is read that is not there, and nothing is left: writing the message gives the same bytes again, but for
    # the name of the namespace pg_catalog, which may be spelt out.
    written = encode.encode(message)
    assert written == data or b"pg_catalog\0" in data


@given(st.binary(max_size=80))
def test_any_bytes(data: bytes) -> None:
    only_message_or_protocol_error(data)


@given(st.sampled_from(b"BCOYRIUDTMA"), st.binary(max_size=80))
def test_any_bytes_after_a_known_tag(tag: int, data: bytes) -> None:
    only_message_or_protocol_error(bytes([tag]) + data)


@given(st.data())
def test_damaged_messages(data: st.DataObject) -> None:
    message = bytearray(data.draw(st.sampled_from(CAPTURED)))
    for _ in range(data.draw(st.integers(1, 4))):
        # Mostly near the start, where the structure is.
        at = data.draw(st.integers(0, min(len(message) - 1, 60)) | st.integers(0, len(message) - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert", "remove"])):
            case "set":
                message[at] = data.draw(st.integers(0, 255))
            case "cut":
                del message[max(at, 1) :]
            case "insert":
                message[at:at] = data.draw(st.binary(min_size=1, max_size=5))
            case _ if len(message) > 1:
                del message[at]
    only_message_or_protocol_error(bytes(message))


def test_every_prefix_of_a_message_is_an_error() -> None:
    for message in {message for message in CAPTURED if len(message) < 1000}:
        for length in range(len(message)):
            with pytest.raises(ProtocolError):
                decode(message[:length])
