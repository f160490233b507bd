"""Protocol version 2: blocks of transactions that are going on, as servers sent them, made up, and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgrepl.errors import ProtocolError
from pgrepl.lsn import Lsn
from pgrepl.pgoutput.decoder import StreamDecoder, head, without_xid
from pgrepl.pgoutput.messages import (
    AnyMessage,
    Begin,
    Commit,
    Delete,
    Insert,
    Message,
    Origin,
    Relation,
    StreamAbort,
    StreamCommit,
    StreamMessage,
    StreamStart,
    StreamStop,
    Truncate,
    Type,
    Update,
)
from tests.pgoutput import encode
from tests.pgoutput.capture_streamed import STREAMED, blocks
from tests.servers.database import Database

FILES = sorted(STREAMED.glob("*.jsonl"))

# What STEPS of capture_streamed.py make the server send. Transactions and subtransactions are lettered as they come;
# the transaction of the other session after each step is left out.
SCENARIO = """
start A first
  A relation t id* name
  A insert t 1|a
  A insert t 2|~
stop
start A
  B insert t 3|c
  C update t key 3|~ -> 4|c
stop
start A
  B type mood
  B relation typed id* mood
  B insert typed 1|happy
stop
abort A C
abort A B
start A
  D relation t id* name
  D insert t 5|e
stop
start A
  D relation t id* name note
  D insert t 6|f|n
stop
start A
  E relation t id* name
  E insert t 7|g
stop
abort A E
start A
  F relation t id* name note
  F insert t 8|h|~
  F relation emptied id*
  F truncate emptied
  F delete t key 1|~|~
stop
commit A
start G first
  G relation emptied id*
  G insert emptied 1
stop
abort G G
start H first
  H message transactional in a subtransaction
stop
message aside
commit H
start I first
  origin 0/0 elsewhere
  I relation emptied id*
  I insert emptied 2
stop
commit I
"""


def describe(messages: list[tuple[int | None, AnyMessage | StreamMessage]]) -> str:
    """Write the messages as SCENARIO does."""
    relations: dict[int, str] = {}
    letters: dict[int, str] = {}
    lines: list[str] = []
    plain = False

    def letter(xid: int) -> str:
        return letters.setdefault(xid, chr(ord("A") + len(letters)))

    def row(values: object) -> str:
        assert isinstance(values, tuple)
        return "|".join("~" if value is None else value.decode() for value in values)

    for xid, message in messages:
        if isinstance(message, (Begin, Commit)):
            plain = isinstance(message, Begin)
        if plain or isinstance(message, Commit):
            assert xid is None
            continue
        who = "" if xid is None else f"  {letter(xid)} "
        match message:
            case StreamStart(top, first):
                lines.append(f"start {letter(top)}{' first' * first}")
            case StreamStop():
                # How often a block comes that holds nothing published depends on the version.
                if lines[-1].startswith("start") and "first" not in lines[-1]:
                    lines.pop()
                else:
                    lines.append("stop")
            case StreamAbort(top, sub):
                lines.append(f"abort {letter(top)} {letter(sub)}")
            case StreamCommit(top):
                assert message.commit_lsn < message.end_lsn
                lines.append(f"commit {letter(top)}")
            case Relation(oid, _, name):
                relations[oid] = name
                columns = " ".join(column.name + "*" * column.part_of_key for column in message.columns)
                lines.append(f"{who}relation {name} {columns}")
            case Type():
                lines.append(f"{who}type {message.name}")
            case Insert(oid, new):
                lines.append(f"{who}insert {relations[oid]} {row(new)}")
            case Update(oid, kind, old, new):
                lines.append(f"{who}update {relations[oid]} {kind} {row(old)} -> {row(new)}")
            case Delete(oid, kind, old):
                lines.append(f"{who}delete {relations[oid]} {kind} {row(old)}")
            case Truncate(oids):
                lines.append(f"{who}truncate {' '.join(relations[oid] for oid in oids)}")
            case Origin():
                lines.append(f"  origin {message.commit_lsn} {message.name}")
            case Message(transactional, _, prefix, content):
                words = [f"{who}message", "transactional" * transactional, prefix, content.decode()]
                lines.append(" ".join(filter(None, words)))
    return "\n".join(["", *lines, ""])


def decoded(data: list[bytes]) -> list[tuple[int | None, AnyMessage | StreamMessage]]:
    decoder = StreamDecoder()
    return [decoder.decode(each) for each in data]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_stored_capture(file: Path) -> None:
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    messages = decoded([bytes.fromhex(line["data"]) for line in lines])
    assert [(xid, repr(message)) for xid, message in messages] == [(line["xid"], line["message"]) for line in lines]
    assert describe(messages) == SCENARIO


def test_captures_of_all_versions_are_stored() -> None:
    assert [file.stem for file in FILES] == ["pg16", "pg17", "pg18"]


def test_live_capture(database: Database) -> None:
    assert describe(decoded(blocks(database.dsn()))) == SCENARIO


START = "53 000002ea 01"

VECTORS: dict[str, tuple[int | None, AnyMessage | StreamMessage]] = {
    START: (None, StreamStart(746, True)),
    "49 000002eb 00004000 4e 0001 74 00000002 3432": (747, Insert(0x4000, (b"42",))),
    "52 000002ea 00004000 00 7400 64 0000": (746, Relation(0x4000, "pg_catalog", "t", "d", ())),
    "59 000002ea 00004003 6100 6d6f6f6400": (746, Type(0x4003, "a", "mood")),
    "54 000002ea 00000001 03 00004000": (746, Truncate((0x4000,), True, True)),
    "4d 000002ea 01 000000000154b9c0 7000 00000001 78": (746, Message(True, Lsn(0x154B9C0), "p", b"x")),
    "4f 0000000000000000 6100": (None, Origin(Lsn(0), "a")),
    "45": (None, StreamStop()),
    "41 000002ea 000002eb": (None, StreamAbort(746, 747)),
    "63 000002ea 00 000000000154b9c0 000000000154b9f0 000303bc1690570b": (
        None,
        StreamCommit(746, 0, Lsn(0x154B9C0), Lsn(0x154B9F0), 848531297425163),
    ),
}

# Messages one after the other; the last is wrong.
FAULTS = {
    "a block in a block": ([START, START], "b'S' inside a block"),
    "a stop outside": (["45"], "outside of one"),
    "a second stop": ([START, "45", "45"], "outside of one"),
    "a commit in a block": ([START, "63 000002ea 00 " + "00" * 24], "b'c' inside a block"),
    "an abort in a block": ([START, "41 000002ea 000002eb"], "b'A' inside a block"),
    "a transaction in a block": ([START, "42 " + "00" * 20], "b'B' inside a block"),
    "its end in a block": ([START, "43 " + "00" * 25], "b'C' inside a block"),
    "an unknown message": ([START, "5a"], "unknown"),
    "nothing": ([START, ""], "empty"),
    "flags of a start": (["53 000002ea 02"], "flags 0x2"),
    "flags of a commit": (["63 000002ea 01 " + "00" * 24], "flags 0x1"),
    "a short start": (["53 000002ea"], "truncated"),
    "a long start": ([START + "00"], "left over"),
    "a long stop": ([START, "45 00"], "left over"),
    "a short abort": (["41 000002ea 000002"], "truncated"),
    "an abort of version 4": (["41 000002ea 000002eb" + "00" * 16], "left over"),
    "a change without an xid": ([START, "49 0000"], "truncated"),
    "a change without a relation": ([START, "49 000002ea 0000"], "truncated"),
    "a change of version 1": ([START, "49 00004000 4e 0001 6e"], "tuple|truncated"),
    "a change of version 2 outside": (["49 000002eb 00004000 4e 0001 6e"], "tuple"),
}


def test_known_bytes() -> None:
    assert decoded([bytes.fromhex(text) for text in VECTORS]) == list(VECTORS.values())


@pytest.mark.parametrize(("texts", "reason"), FAULTS.values(), ids=FAULTS)
def test_faults(texts: list[str], reason: str) -> None:
    decoder = StreamDecoder()
    for text in texts[:-1]:
        decoder.decode(bytes.fromhex(text))
    in_block = decoder.in_block
    with pytest.raises(ProtocolError, match=reason):
        decoder.decode(bytes.fromhex(texts[-1]))
    assert decoder.in_block == in_block


xids = st.integers(0, 2**32 - 1)


@given(encode.messages, xids)
def test_round_trip_in_a_block(message: AnyMessage, xid: int) -> None:
    decoder = StreamDecoder()
    decoder.decode(bytes.fromhex(START))
    data = encode.encode(message)
    if isinstance(message, (Begin, Commit, StreamAbort)):
        with pytest.raises(ProtocolError):
            decoder.decode(data)
    elif isinstance(message, Origin):
        assert decoder.decode(data) == (None, message)
    else:
        with_xid = data[:1] + xid.to_bytes(4) + data[1:]
        assert decoder.decode(with_xid) == (xid, message)
        assert without_xid(with_xid) == data


@given(encode.messages, xids)
def test_head(message: AnyMessage, xid: int) -> None:
    data = encode.encode(message)
    match message:
        case Insert(oid) | Update(oid) | Delete(oid) | Relation(oid):
            relation: int | None = oid
        case _:
            relation = None
    assert head(data) == (data[0], None, relation)
    if not isinstance(message, (Begin, Commit, Origin, StreamAbort)):
        assert head(data[:1] + xid.to_bytes(4) + data[1:], in_block=True) == (data[0], xid, relation)


CAPTURED = sorted(
    {
        bytes.fromhex(json.loads(line)["data"])
        for file in FILES
        for line in file.read_text(encoding="utf-8").splitlines()
    }
)


@given(st.data(), st.booleans())
def test_any_bytes(data: st.DataObject, in_block: bool) -> None:
    """Whatever comes, it is a message or a ProtocolError."""
    message = bytearray(data.draw(st.sampled_from(CAPTURED) | st.binary(max_size=60)))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(message)))
        message[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    decoder = StreamDecoder()
    decoder.in_block = in_block
    try:
        xid, _ = decoder.decode(bytes(message))
    except ProtocolError:
        assert decoder.in_block == in_block
        return
    assert (xid is not None) <= in_block


def test_every_prefix_of_a_captured_message_is_an_error() -> None:
    for file in FILES:
        decoder = StreamDecoder()
        for line in file.read_text(encoding="utf-8").splitlines():
            data = bytes.fromhex(json.loads(line)["data"])
            for length in range(len(data)):
                with pytest.raises(ProtocolError):
                    decoder.decode(data[:length])
            decoder.decode(data)
