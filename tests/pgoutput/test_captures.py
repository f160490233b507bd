"""The scenario of ``capture.py`` on every server, stored and live, against what was done, written down by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pgrepl.pgoutput.decoder import decode
from pgrepl.pgoutput.messages import (
    UNCHANGED,
    AnyMessage,
    Begin,
    Commit,
    Delete,
    Insert,
    Message,
    Origin,
    Relation,
    Truncate,
    TupleData,
    Type,
    Update,
)
from pgrepl.pgoutput.walsender import XLogData, parse_copy_data
from tests.pgoutput.capture import CAPTURES, payloads
from tests.servers.database import Database

FILES = sorted(CAPTURES.glob("*.jsonl"))

# "*" is part of the key, "~" NULL, "=" unchanged, "3000x" three thousand times x.
SCENARIO = r"""
begin
  relation app.by_default d id* name body
  insert app.by_default 1|one|3000x
  insert app.by_default 2|~|
commit
begin
  update app.by_default 1|uno|=
commit
begin
  update app.by_default key 1|~|~ -> 3|uno|=
commit
begin
  delete app.by_default key 3|~|~
commit
begin
  relation app.by_index i a code* price
  insert app.by_index 1|a|1.50
  update app.by_index 2|a|1.50
  update app.by_index key ~|a|~ -> 2|b|1.50
  delete app.by_index key ~|b|~
commit
begin
  relation app.by_full f id* note* body*
  insert app.by_full 1|~|3000y
  update app.by_full full 1|~|3000y -> 1|n|=
  delete app.by_full full 1|n|3000y
commit
begin
  relation app.by_nothing n n
  insert app.by_nothing 1
commit
begin
  type app.mood
  type pg_catalog.int4
  type app._mood
  relation app.typed d id* mood size moods
  insert app.typed 1|happy|5|{sad,NULL}
commit
begin
  relation app.narrowed d id* kept
  insert app.narrowed 1|k
  relation app.narrowed d id* kept added
  insert app.narrowed 2|l|t
  relation app.narrowed d id* added
  insert app.narrowed 3|t
commit
begin
  relation app.columnless d
  insert app.columnless
commit
begin
  relation Mixed Case.Täble "1" x d Id* ünïcode 🐘
  insert Mixed Case.Täble "1" x 1|\t"\\🐘
commit
begin
  insert app.by_default 4|four|~
  insert app.by_nothing 2
  relation app.by_nothing n n
  truncate app.by_nothing
  relation app.by_default d id* name body
  relation app.by_full f id* note* body*
  truncate app.by_default app.by_full cascade restart
  type app.mood
  type pg_catalog.int4
  type app._mood
  relation app.typed d id* mood size moods
  truncate app.typed cascade
  relation app.narrowed d id* added
  truncate app.narrowed restart
commit
begin
  message transactional 'greeting' b'hello \xf0\x9f\x90\x98'
  message transactional '' b''
commit
  message 'aside' b'\x00\xff'
begin
  relation app.by_nothing n n
  insert app.by_nothing 3
  insert app.by_nothing 4
commit
begin
  origin 0/ABCDEF elsewhere
  insert app.by_nothing 5
commit
begin
  message transactional 'end' b''
commit
"""


def describe(messages: list[AnyMessage]) -> str:
    """Write the messages as SCENARIO does, checking on the way what belongs together."""
    relations: dict[int, Relation] = {}
    lines = [""]
    began = None

    def name(oid: int) -> str:
        return f"{relations[oid].namespace}.{relations[oid].name}"

    for message in messages:
        match message:
            case Begin():
                began = message
                lines.append("begin")
            case Commit():
                assert began is not None
                assert message.commit_lsn == began.final_lsn < message.end_lsn
                assert message.commit_time == began.commit_time
                lines.append("commit")
            case Origin():
                lines.append(f"  origin {message.commit_lsn} {message.name}")
            case Type():
                lines.append(f"  type {message.namespace}.{message.name}")
            case Relation():
                relations[message.oid] = message
                columns = [column.name + "*" * column.part_of_key for column in message.columns]
                lines.append(" ".join(["  relation", name(message.oid), message.replica_identity, *columns]))
            case Insert():
                lines.append(f"  insert {name(message.relation_oid)} {row(message.new)}".rstrip())
            case Update():
                old = f"{message.old_kind} {row(message.old)} -> " if message.old is not None else ""
                lines.append(f"  update {name(message.relation_oid)} {old}{row(message.new)}")
            case Delete():
                lines.append(f"  delete {name(message.relation_oid)} {message.old_kind} {row(message.old)}")
            case Truncate():
                options = ["cascade"] * message.cascade + ["restart"] * message.restart_identity
                lines.append(" ".join(["  truncate", *map(name, message.relation_oids), *options]))
            case Message():
                transactional = "transactional " * message.transactional
                lines.append(f"  message {transactional}{message.prefix!r} {message.content!r}")
    return "\n".join([*lines, ""])


def row(values: TupleData) -> str:
    def one(value: object) -> str:
        if value is None:
            return "~"
        if value is UNCHANGED:
            return "="
        assert isinstance(value, bytes)
        text = value.decode()
        return f"{len(text)}{text[0]}" if len(text) > 1000 else text.replace("\\", "\\\\").replace("\t", "\\t")

    return "|".join(map(one, values))


def unwrap(payload: bytes) -> bytes:
    frame = parse_copy_data(payload)
    assert isinstance(frame, XLogData)
    return frame.data


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_stored_capture(file: Path) -> None:
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    messages = [decode(unwrap(bytes.fromhex(line["payload"]))) for line in lines]
    assert [repr(message) for message in messages] == [line["message"] for line in lines]
    assert describe(messages) == SCENARIO


def test_captures_of_all_versions_are_stored() -> None:
    assert [file.stem for file in FILES] == ["pg16", "pg17", "pg18"]


def test_live_capture(database: Database) -> None:
    with database.connect() as connection:
        sent = payloads(connection, database.dsn())
    assert describe([decode(unwrap(payload)) for payload in sent]) == SCENARIO
