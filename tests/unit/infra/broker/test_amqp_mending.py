"""Frames that can be decoded stay as they are; those that cannot become such that can."""

import asyncio
import struct

from hypothesis import example, given
from hypothesis import strategies as st
from pamqp import frame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from infra.broker.amqp_mending import UNREADABLE_HEADER, MendingReader, mend

METHOD, HEADER, BODY = 1, 2, 3
BASIC = 60


def short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def properties(*given: tuple[int, bytes]) -> bytes:
    flags = sum(1 << bit for bit, _ in given)
    return struct.pack(">HHQH", BASIC, 0, 5, flags) + b"".join(value for _, value in given)


def decoded(payload: bytes) -> ContentHeader:
    header = ContentHeader()
    header.unmarshal(payload)
    return header


@given(st.integers(1, 3), st.binary(max_size=200))
def test_mending_never_fails(kind: int, payload: bytes) -> None:
    mend(kind, payload)


@given(
    content_type=st.binary(max_size=255),
    moment=st.integers(0, 2**64 - 1),
    kind=st.binary(max_size=255),
    broken=st.booleans(),
)
@example(b"a", 1_763_766_000_000_000, b"b", False)
def test_any_properties_can_be_decoded_once_mended(content_type: bytes, moment: int, kind: bytes, broken: bool) -> None:
    entry = short(b"kept") + b"t\x01" + (short(b"when") + b"T" + struct.pack(">Q", moment)) + short(b"last") + b"t\x01"
    table = struct.pack(">I", len(entry)) + entry + b""
    if broken:
        table = table.replace(b"kept", b"k\xffpt")
    given_bytes = properties(
        (15, short(content_type)), (13, table), (12, b"\x02"), (6, struct.pack(">Q", moment)), (5, short(kind))
    )
    header = decoded(mend(HEADER, given_bytes))
    assert header.body_size == 5
    assert header.properties.delivery_mode == 2
    headers = header.properties.headers or {}
    assert headers["k?pt" if broken else "kept"] is True
    assert headers["last"] is True
    try:
        decoded(given_bytes)
    except (ValueError, OverflowError):
        assert headers[UNREADABLE_HEADER]
    else:
        assert mend(HEADER, given_bytes) == given_bytes


def test_a_routing_key_that_is_not_utf8_becomes_ascii_and_all_else_stays() -> None:
    payload = struct.pack(">HH", BASIC, 60) + short(b"tag") + struct.pack(">QB", 2**40 + 200, 1) + short(b"exchange")
    mended = mend(METHOD, payload + short(b"caf\xe9"))
    deliver = Basic.Deliver()
    deliver.unmarshal(mended[4:])
    assert (deliver.consumer_tag, deliver.delivery_tag, deliver.redelivered) == ("tag", 2**40 + 200, True)
    assert (deliver.exchange, deliver.routing_key) == ("exchange", "caf?")
    readable = payload + short("café".encode())
    assert mend(METHOD, readable) == readable


async def test_the_reader_hands_over_frames_in_the_three_steps_that_aiormq_reads_them_in() -> None:
    reader = MendingReader()
    bad = properties((6, b"\xff" * 8))
    frames = [
        frame.marshal(Heartbeat(), 0),
        frame.marshal(Basic.Deliver("tag", 1, False, "e", "k"), 3),
        struct.pack(">BHI", HEADER, 3, len(bad)) + bad + b"\xce",
        frame.marshal(ContentBody(b"12345"), 3),
        frame.marshal(Heartbeat(), 0),
    ]
    reader.feed_data(b"".join(frames))
    reader.feed_eof()
    read = []
    while not reader.at_eof():
        start = await reader.readexactly(1) + await reader.readexactly(6)
        (size,) = struct.unpack(">I", start[3:])
        read.append(frame.unmarshal(start + await reader.readexactly(size + 1))[2])
    assert [type(one).__name__ for one in read] == ["Heartbeat", "Deliver", "ContentHeader", "ContentBody", "Heartbeat"]
    assert isinstance(read[2], ContentHeader)
    assert read[2].properties.headers == {UNREADABLE_HEADER: "timestamp"}


async def test_the_end_of_the_connection_in_a_frame_is_told() -> None:
    reader = MendingReader()
    reader.feed_data(b"\x01\x00")
    reader.feed_eof()
    await reader.readexactly(1)
    try:
        await reader.readexactly(6)
    except asyncio.IncompleteReadError:
        return
    raise AssertionError
