"""What the contract tests do again and again."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from infra.broker.base import Broker, Consumer, Outgoing, Queue, Received, ToEvents
from schemas.messages import Message

PATIENCE_S = 15.0  # how long a test waits for what must come
QUIET_S = 0.4  # how long nothing must come; what is there comes within milliseconds


def event(body: str, event_type: str = "order.created") -> Outgoing:
    return Outgoing(ToEvents(event_type), Message(body.encode()))


def events(count: int) -> list[Outgoing]:
    return [event(f"event {number}") for number in range(count)]


def bodies(received: Sequence[Received]) -> list[str]:
    return [one.message.body.decode() for one in received]


async def publish(broker: Broker, *outgoing: Outgoing) -> None:
    """Publish, all of it stored."""
    errors = await broker.publish_many(outgoing, timeout_s=PATIENCE_S)
    assert [error for error in errors if error is not None] == []


async def receive(consumer: Consumer, limit: int = 100, *, within_s: float = PATIENCE_S) -> Sequence[Received]:
    return await asyncio.wait_for(consumer.receive(limit), within_s)


async def receive_count(consumer: Consumer, count: int, *, within_s: float = PATIENCE_S) -> list[Received]:
    """Exactly so many, unacked all of them."""
    received: list[Received] = []
    async with asyncio.timeout(within_s):
        while len(received) < count:
            received += await consumer.receive(count - len(received))
    return received


async def receive_until(consumer: Consumer, body: str) -> None:
    """Receive and ack until this one came. Others may come again: an ack can be lost with its connection."""
    async with asyncio.timeout(PATIENCE_S):
        found: list[str] = []
        while body not in found:
            batch = await consumer.receive(100)
            found = bodies(batch)
            await consumer.ack(batch)


async def nothing_comes(consumer: Consumer, *, for_s: float = QUIET_S) -> None:
    with pytest.raises(TimeoutError):
        await receive(consumer, within_s=for_s)


async def what_is_left(broker: Broker) -> list[str]:
    """The bodies of all messages of the events queue, which is empty after this."""
    last = f"last, at {time.monotonic_ns()}"
    await publish(broker, event(last))
    found: list[str] = []
    async with broker.consume(Queue.EVENTS, prefetch=1000) as consumer:
        while last not in found:
            batch = await receive(consumer, 1000)
            found += bodies(batch)
            await consumer.ack(batch)
    return found[: found.index(last)]


async def come_back(consumer: Consumer, one: Received, times: int) -> Received:
    """Release a message so often, receiving it again each time."""
    for _ in range(times):
        await consumer.release([one])
        (one,) = await receive(consumer, 1)
    return one


@contextmanager
def takes_at_most(limit_s: float) -> Iterator[None]:
    """Whether what is done ends well or with the error that is expected."""
    began = time.monotonic()
    try:
        yield
    finally:
        took_s = time.monotonic() - began
        assert took_s < limit_s, f"took {took_s:.1f} s"
