"""The contract's part "Consuming in order"."""

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from itertools import pairwise

from infra.broker.base import SUSPECT_DELIVERY_COUNT, Broker, Queue
from tests.contract.harness import Harness
from tests.contract.steps import (
    PATIENCE_S,
    bodies,
    come_back,
    event,
    events,
    publish,
    receive,
    receive_count,
    what_is_left,
)
from tests.contract.victim import Victim
from tests.support.proxy import Proxy

COUNT = 60
IN_ORDER = [f"event {number}" for number in range(COUNT)]


async def drain(broker: Broker, count: int, *, prefetch: int = 20) -> list[str]:
    """So many, in the order in which they are handed out."""
    found: list[str] = []
    async with broker.consume(Queue.EVENTS, prefetch=prefetch, in_order=True) as consumer, asyncio.timeout(PATIENCE_S):
        while len(found) < count:
            batch = await consumer.receive(7)
            found += bodies(batch)
            await consumer.ack(batch)
    return found


async def test_what_came_back_is_handed_out_before_the_rest_in_its_order(broker: Broker) -> None:
    """From consumers that closed with some acked, again and again, but not so often that they are suspects."""
    await publish(broker, *events(COUNT))
    acked = 0
    for _ in range(4):
        async with broker.consume(Queue.EVENTS, prefetch=20, in_order=True) as consumer:
            batch = await receive_count(consumer, 20)
            assert bodies(batch) == IN_ORDER[acked : acked + 20]
            await consumer.ack(batch[:10])
            acked += 10
            (next_one,) = await receive(consumer, 1)
            assert next_one.message.body.decode() == IN_ORDER[acked + 10]
    assert await drain(broker, COUNT - acked) == IN_ORDER[acked:]


async def test_the_order_outlives_a_lost_connection(harness: Harness, proxy: Proxy) -> None:
    async with harness.broker() as publisher:
        await publish(publisher, *events(COUNT))
    async with (
        harness.broker(through=proxy) as broker,
        broker.consume(Queue.EVENTS, prefetch=20, in_order=True) as consumer,
    ):
        await consumer.ack((await receive_count(consumer, 20))[:5])
        await receive_count(consumer, 5)
        proxy.cut()
        found: list[str] = []
        async with asyncio.timeout(PATIENCE_S):
            while len(found) < COUNT:
                batch = await consumer.receive(7)
                found += bodies(batch)
                await consumer.ack(batch)
                if found[-1] == IN_ORDER[-1]:
                    break
    assert found in (IN_ORDER, IN_ORDER[5:])  # the acks may have been lost with the connection


async def test_the_order_outlives_a_consumer_that_is_killed(harness: Harness) -> None:
    async with harness.broker() as broker:
        await publish(broker, *events(COUNT))
        with Victim(harness, prefetch=20, in_order=True) as victim:
            assert await victim.received(20) == IN_ORDER[:20]
            os.kill(victim.pid, signal.SIGKILL)
            assert await drain(broker, COUNT) == IN_ORDER


async def test_nothing_is_handed_out_that_comes_after_what_another_one_has_in_hand(
    harness: Harness, broker: Broker
) -> None:
    """Also while the other one, which should have ended, goes on. RabbitMQ waits for it, PostgreSQL takes over."""
    await publish(broker, *events(COUNT))
    found: list[str] = []
    async with harness.broker() as other, AsyncExitStack() as stack:
        before = await stack.enter_async_context(other.consume(Queue.EVENTS, prefetch=20, in_order=True))
        in_hand = await receive_count(before, 20)
        async with broker.consume(Queue.EVENTS, prefetch=20, in_order=True) as consumer:
            receiving = asyncio.create_task(consumer.receive(20))
            await asyncio.wait({receiving}, timeout=1)
            await before.ack(in_hand[:5])  # in time, or too late
            going_on = asyncio.create_task(before.receive(20))
            await asyncio.wait({going_on}, timeout=1)
            if receiving.done():
                found += bodies(receiving.result())
                await consumer.ack(receiving.result())
                receiving = asyncio.create_task(consumer.receive(20))
                await asyncio.wait({receiving}, timeout=1)
            going_on.cancel()
            await asyncio.wait({going_on})
            await stack.aclose()
            async with asyncio.timeout(PATIENCE_S):
                batch = await receiving
                while True:
                    found += bodies(batch)
                    await consumer.ack(batch)
                    if found[-1] == IN_ORDER[-1]:
                        break
                    batch = await consumer.receive(20)
    numbers = [IN_ORDER.index(body) for body in found]
    assert numbers[0] in (0, 5)
    assert all(later <= earlier + 1 for earlier, later in pairwise(numbers)), numbers  # it may begin anew


async def test_a_suspect_is_handed_out_alone_in_its_place(broker: Broker) -> None:
    await publish(broker, *events(5))
    for _ in range(SUSPECT_DELIVERY_COUNT):
        async with broker.consume(Queue.EVENTS, prefetch=10, in_order=True) as consumer:
            await receive_count(consumer, 5)
    await publish(broker, *[event(name) for name in IN_ORDER[5:12]])
    found: list[str] = []
    async with broker.consume(Queue.EVENTS, prefetch=10, in_order=True) as consumer, asyncio.timeout(PATIENCE_S):
        while len(found) < 12:
            batch = await consumer.receive(10)
            if any(one.delivery_count >= SUSPECT_DELIVERY_COUNT for one in batch):
                assert len(batch) == 1
                more = asyncio.create_task(consumer.receive(10))
                await asyncio.wait({more}, timeout=0.2)
                assert not more.done()
                await consumer.ack(batch)
                found += bodies(batch)
                batch = await more
                if any(one.delivery_count >= SUSPECT_DELIVERY_COUNT for one in batch):
                    assert len(batch) == 1
            found += bodies(batch)
            await consumer.ack(batch)
    assert found == IN_ORDER[:12]
    assert await what_is_left(broker) == []


async def test_a_suspect_among_others_waits_for_those_before_it_and_keeps_back_those_behind(
    harness: Harness, broker: Broker
) -> None:
    """As it may be where messages were consumed out of order before."""
    await publish(broker, event("event 0"), event("event 1"))
    async with AsyncExitStack() as one, AsyncExitStack() as other:
        first = await one.enter_async_context(
            (await one.enter_async_context(harness.broker())).consume(Queue.EVENTS, prefetch=1)
        )
        assert bodies(await receive(first, 1)) == ["event 0"]
        second = await other.enter_async_context(
            (await other.enter_async_context(harness.broker())).consume(Queue.EVENTS, prefetch=1)
        )
        (suspect,) = await receive(second, 1)
        await come_back(second, suspect, SUSPECT_DELIVERY_COUNT)
        await publish(broker, event("event 2"))
        await one.aclose()
    found: list[str] = []
    async with broker.consume(Queue.EVENTS, prefetch=10, in_order=True) as consumer, asyncio.timeout(PATIENCE_S):
        while len(found) < 3:
            batch = await consumer.receive(10)
            if any(message.delivery_count >= SUSPECT_DELIVERY_COUNT for message in batch):
                assert bodies(batch) == ["event 1"]
            found += bodies(batch)
            await consumer.ack(batch)
    assert found == IN_ORDER[:3]
