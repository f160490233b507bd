"""The framing of a walsender, on known bytes and on any."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgrepl.errors import ProtocolError
from pgrepl.lsn import Lsn
from pgrepl.pgoutput.walsender import Keepalive, XLogData, parse_copy_data, status_update

NOW = 848531297425163


def test_xlog_data() -> None:
    payload = bytes.fromhex("77 0000000000000001 0000000200000003 000303bc1690570b 4200")
    frame = parse_copy_data(payload)
    assert frame == XLogData(Lsn(1), Lsn(0x200000003), NOW, b"B\0")
    assert isinstance(frame, XLogData)
    assert str(frame.wal_end) == "2/3"


@pytest.mark.parametrize("reply", [True, False])
def test_keepalive(reply: bool) -> None:
    payload = bytes.fromhex("6b 000000000154b9f0 000303bc1690570b") + bytes([reply])
    assert parse_copy_data(payload) == Keepalive(Lsn(0x154B9F0), NOW, reply)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "77",
        "77 0000000000000001 0000000200000003 000303bc169057",
        "6b 000000000154b9f0 000303bc1690570b",
        "6b 000000000154b9f0 000303bc1690570b 00 00",
        "6b 000000000154b9f0 000303bc1690570b 02",
        "72 000000000154b9f0 000303bc1690570b 00",
    ],
)
def test_faults(text: str) -> None:
    with pytest.raises(ProtocolError):
        parse_copy_data(bytes.fromhex(text))


@given(st.binary(max_size=60) | st.builds(bytes.__add__, st.sampled_from([b"w", b"k"]), st.binary(max_size=40)))
def test_any_bytes(payload: bytes) -> None:
    try:
        frame = parse_copy_data(payload)
    except ProtocolError:
        return
    assert not isinstance(frame, XLogData) or frame.data == payload[25:]


def test_status_update() -> None:
    update = status_update(Lsn(3), Lsn(2), Lsn(1), NOW)
    assert update.hex() == "72000000000000000300000000000000020000000000000001000303bc1690570b00"
    assert status_update(Lsn(3), Lsn(2), Lsn(1), NOW, reply_requested=True)[-1] == 1
