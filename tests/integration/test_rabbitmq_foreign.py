"""What other producers publish over AMQP, and what of it no Python client would have written."""

import asyncio
import struct
from datetime import UTC, datetime

import aio_pika
import aiormq
import pytest
from aiormq.abc import ChannelFrame
from aiormq.channel import Channel

from infra.broker.amqp_properties import UNREADABLE_HEADER
from infra.broker.base import Outgoing, Queue, Received, ToEvents
from tests.contract.steps import PATIENCE_S, event, publish, receive, receive_count, receive_until, what_is_left
from tests.support.rabbitmq import rabbit


async def test_a_foreign_producers_headers_come_in_a_form_of_ours(rabbit_url: str) -> None:
    moment = datetime(2026, 11, 21, tzinfo=UTC)
    async with (
        rabbit(rabbit_url) as broker,
        await aio_pika.connect(rabbit_url) as connection,
        connection.channel() as channel,
    ):
        exchange = await channel.get_exchange("hookhare.events")
        await exchange.publish(
            aio_pika.Message(
                b"theirs",
                headers={
                    "text": "a",
                    "table": {"b": [1, 2]},
                    "list": ["c"],
                    "float": 1.5,
                    "moment": moment,
                    "bytes": bytearray(b"\xff"),
                    "x-delivery-count": 99,
                    "CC": ["another.key"],
                },
                message_id="theirs",
                timestamp=moment,
            ),
            "order.created",
        )
        async with broker.consume(Queue.EVENTS, prefetch=10) as consumer:
            (received,) = await receive_count(consumer, 1)
            assert received.message.headers == {
                "text": "a",
                "table": "{'b': [1, 2]}",
                "list": "['c']",
                "float": "1.5",
                "moment": str(moment),
                "bytes": b"\xff",
            }
            assert (received.message.message_id, received.message.timestamp) == ("theirs", moment)
            assert received.delivery_count == 0  # whatever a producer says
            # And all of it can be published again.
            await publish(broker, Outgoing(ToEvents("order.created"), received.message))
            await consumer.ack([received])
        assert await what_is_left(broker) == ["theirs"]


def short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def table(*entries: bytes) -> bytes:
    return struct.pack(">I", len(b"".join(entries))) + b"".join(entries)


# Properties as flags and bytes, which no Python client would write, and other clients do.
UNDECODABLE = {
    "timestamp in microseconds": (1 << 6, struct.pack(">Q", 1_763_766_000_000_000)),
    "timestamp of all ones": (1 << 6, b"\xff" * 8),
    "type in Latin-1": (1 << 5, short("Füße".encode("latin-1"))),
    "moment in a header": (
        1 << 13,
        table(short(b"kept") + b"S" + struct.pack(">I", 1) + b"a", short(b"when") + b"T" + b"\xff" * 8),
    ),
    "header's name in Latin-1": (1 << 13, table(short(b"\xfc") + b"t\x01")),
}


async def publish_raw(
    url: str, properties: tuple[int, bytes], body: bytes, routing_key: bytes = b"order.created"
) -> None:
    """Publish what pamqp would refuse to write."""
    connection = await aiormq.connect(url)
    channel = await connection.channel(publisher_confirms=False)
    assert isinstance(channel, Channel)

    def frame(kind: int, payload: bytes) -> bytes:
        return struct.pack(">BHI", kind, channel.number, len(payload)) + payload + b"\xce"

    flags, values = properties
    method = struct.pack(">HHH", 60, 40, 0) + short(b"hookhare.events") + short(routing_key) + b"\x00"
    header = struct.pack(">HHQH", 60, 0, len(body), flags) + values
    payload = frame(1, method) + frame(2, header) + frame(3, body)
    await channel.write_queue.put(ChannelFrame(payload=payload, should_close=False))
    await channel.queue_declare("hookhare.events", passive=True, timeout=5)  # when it answers, the other is there
    await connection.close()


@pytest.mark.parametrize("name", UNDECODABLE)
async def test_a_message_that_cannot_be_decoded_is_handed_out_with_its_body(rabbit_url: str, name: str) -> None:
    """And does not keep its neighbours from being consumed, nor its consumer from consuming."""
    async with rabbit(rabbit_url) as broker, broker.consume(Queue.EVENTS, prefetch=10) as consumer:
        await publish_raw(rabbit_url, UNDECODABLE[name], b"original bytes")
        await publish(broker, event("neighbour"))
        received: dict[bytes, Received] = {}
        async with asyncio.timeout(PATIENCE_S):
            while len(received) < 2:
                batch = await consumer.receive(10)
                received |= {one.message.body: one for one in batch}
                await consumer.ack(batch)
        assert received[b"original bytes"].delivery_count == 0  # no connection was lost over it
        message = received[b"original bytes"].message
        assert message.headers[UNREADABLE_HEADER] in {"timestamp", "message_type", "headers"}
        if b"kept" in UNDECODABLE[name][1]:
            assert message.headers["kept"] in {"a", True}
        if name == "type in Latin-1":
            assert message.type == "F??e"
        # It can be published again, as admission does with what it cannot read.
        await publish(broker, Outgoing(ToEvents("again"), message))
        await receive_until(consumer, "original bytes")
    async with rabbit(rabbit_url) as broker:
        assert await what_is_left(broker) == []


async def test_a_routing_key_that_is_not_text_keeps_nobody_from_consuming(rabbit_url: str) -> None:
    async with rabbit(rabbit_url) as broker, broker.consume(Queue.EVENTS, prefetch=10) as consumer:
        await publish_raw(rabbit_url, (0, b""), b"original bytes", routing_key="Füße".encode("latin-1"))
        (received,) = await receive(consumer)
        assert (received.message.body, received.routing_key) == (b"original bytes", "F??e")
        assert received.delivery_count == 0
        await consumer.ack([received])
