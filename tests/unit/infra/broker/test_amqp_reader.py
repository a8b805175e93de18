"""Messages are taken off the stream wherever it is cut, and aiormq gets all else, byte for byte."""

import asyncio
import struct
from collections.abc import Sequence
from itertools import pairwise

import pytest
from aiormq.exceptions import InvalidFrameError
from hypothesis import given
from hypothesis import strategies as st
from pamqp import frame
from pamqp.body import ContentBody
from pamqp.commands import Basic, Queue
from pamqp.frame import FrameTypes
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from infra.broker.amqp_reader import Delivered, MessageReader

OURS, ANOTHER = 3, 4
HEARTBEAT = frame.marshal(Heartbeat(), 0)
DELIVER = Basic.Deliver("tag", 1, False, "exchange", "key")
PROPERTIES = Basic.Properties(content_type="text/plain", headers={"a": 1})

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.text("abc.-", max_size=20)
delivers = st.builds(Basic.Deliver, texts, st.integers(0, 2**63 - 1), st.booleans(), names, texts)
bodies = st.lists(st.binary(min_size=1, max_size=50), max_size=4)
other_frames: st.SearchStrategy[FrameTypes] = st.sampled_from(
    [Heartbeat(), Basic.ConsumeOk("tag"), Queue.DeclareOk("name", 1, 2), Basic.Ack(7)]
)


def content(body: Sequence[bytes]) -> list[FrameTypes]:
    return [ContentHeader(body_size=sum(map(len, body)), properties=PROPERTIES), *map(ContentBody, body)]


def written(frames: Sequence[FrameTypes], channel: int) -> bytes:
    return b"".join(frame.marshal(one, channel) for one in frames)


async def read(pieces: Sequence[bytes]) -> tuple[list[Delivered], bytes]:
    """What is handed over of channel OURS, and what goes on to aiormq."""
    taken: list[Delivered] = []
    reader = MessageReader(loop=asyncio.get_running_loop())
    reader.hand_over(OURS, taken.append)
    for piece in pieces:
        reader.feed_data(piece)
    reader.feed_eof()
    reader.feed_eof()  # as asyncio does: when the peer ends, and when the connection is over
    return taken, await reader.read()


@given(st.data())
def test_every_message_is_taken_and_every_other_byte_is_passed_on(data: st.DataObject) -> None:
    expected: list[tuple[Basic.Deliver, bytes]] = []
    stream, passed_on = b"", b""
    for kind in data.draw(st.lists(st.sampled_from(["ours", "another channel's", "no message"]), max_size=5)):
        deliver, body = data.draw(delivers), data.draw(bodies)
        if kind == "ours":
            expected.append((deliver, b"".join(body)))
            stream += written([deliver, *content(body)], OURS)
            continue
        one = written([deliver, *content(body)], ANOTHER)
        if kind == "no message":
            one = written([data.draw(other_frames)], data.draw(st.sampled_from([0, OURS, ANOTHER])))
        stream += one
        passed_on += one
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[start:end] for start, end in pairwise([0, *cuts, len(stream)])]

    taken, rest = asyncio.run(read(pieces))

    assert rest.replace(HEARTBEAT, b"") == passed_on.replace(HEARTBEAT, b"")
    assert [(one.tag, one.redelivered, one.routing_key, one.body) for one in taken] == [
        (deliver.delivery_tag, deliver.redelivered, (deliver.routing_key or "").encode(), body)
        for deliver, body in expected
    ]
    assert {one.properties for one in taken} <= {PROPERTIES_WRITTEN}


PROPERTIES_WRITTEN = ContentHeader(properties=PROPERTIES).marshal()[12:]


async def test_channels_take_turns_within_their_messages() -> None:
    frames: list[FrameTypes] = [DELIVER, *content([b"a", b"b"])]
    ours, others = [written([one], OURS) for one in frames], written(content([b"x"]), ANOTHER)
    taken, rest = await read([ours[0] + others, ours[1] + others + ours[2], ours[3]])
    assert [one.body for one in taken] == [b"ab"]
    assert rest.replace(HEARTBEAT, b"") == 2 * others


async def test_a_connection_that_brings_only_messages_shows_aiormq_that_it_lives() -> None:
    _, rest = await read([written([DELIVER, *content([b"body"])], OURS)] * 50)
    assert rest == HEARTBEAT  # one, as it takes less than a second


@pytest.mark.parametrize("refused", [b"AMQP\x00\x00\x09\x01", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_what_is_no_amqp_is_passed_on_as_it_came(refused: bytes) -> None:
    assert await read([refused[:3], refused[3:], b"more"]) == ([], refused + b"more")


async def test_a_frame_without_its_end_mark_is_passed_on_with_all_that_follows() -> None:
    first, broken = written([DELIVER, *content([b"body"])], OURS), HEARTBEAT[:-1] + b"\x00" + HEARTBEAT
    taken, rest = await read([first + broken])
    assert len(taken) == 1
    assert rest == broken


async def test_the_beginning_of_a_frame_is_passed_on_at_the_end() -> None:
    assert await read([HEARTBEAT + HEARTBEAT[:5]]) == ([], HEARTBEAT + HEARTBEAT[:5])


def raw(kind: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, OURS, len(payload)) + payload + b"\xce"


@pytest.mark.parametrize(
    "broken",
    [
        written([DELIVER, DELIVER], OURS),
        written([DELIVER, ContentBody(b"no header")], OURS),
        written([DELIVER, ContentHeader(body_size=1), ContentBody(b"more")], OURS),
        written([DELIVER, ContentHeader(body_size=1), ContentHeader(body_size=1)], OURS),
        written([DELIVER], OURS) + raw(2, b"short"),
        raw(1, struct.pack(">HH", 60, 60)) + written(content([b"body"]), OURS),
        raw(1, struct.pack(">HH", 60, 60) + b"\xff") + written(content([b"body"]), OURS),
    ],
    ids=["again", "no header", "too much", "two headers", "short header", "no tag", "short tag"],
)
async def test_a_message_that_breaks_the_rules_ends_the_connection(broken: bytes) -> None:
    with pytest.raises(InvalidFrameError, match="breaks AMQP's rules"):
        await read([broken + HEARTBEAT])
