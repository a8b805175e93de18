"""The contract's part "Connections"."""

import asyncio

import pytest

from infra.broker.base import Outgoing, Queue, ToEvents
from schemas.errors import BrokerUnavailable
from schemas.messages import Message
from tests.contract.harness import Harness
from tests.contract.steps import bodies, event, events, publish, receive, receive_until, takes_at_most, what_is_left
from tests.support.proxy import Direction, Proxy

A_FEW_S = 10.0


async def test_a_cut_connection_restores_itself_and_its_consumers(harness: Harness, proxy: Proxy) -> None:
    async with (
        harness.broker(through=proxy) as broker,
        broker.consume(Queue.EVENTS, prefetch=10) as consumer,
        harness.broker() as other,
    ):
        for number in range(3):
            expected = f"while away {number}"
            receiving = asyncio.create_task(receive_until(consumer, expected))
            await asyncio.sleep(0)  # it waits, as it would when nothing happens
            proxy.cut()
            await publish(other, event(expected))
            await receiving
        await publish(broker, event("published again"))
        await receive_until(consumer, "published again")


async def test_a_broker_that_was_away_is_used_again(harness: Harness, proxy: Proxy) -> None:
    async with harness.broker(through=proxy) as broker, broker.consume(Queue.EVENTS, prefetch=10) as consumer:
        proxy.refuse()
        proxy.cut()
        with pytest.raises(BrokerUnavailable):
            await broker.publish(event("lost"), timeout_s=0.5)
        receiving = asyncio.create_task(receive(consumer))
        proxy.accept()
        await publish(broker, event("back"))
        assert bodies(await receiving) == ["back"]


async def test_nothing_is_lost_over_a_connection_that_is_cut_again_and_again(harness: Harness, proxy: Proxy) -> None:
    async with harness.broker() as direct:
        await publish(direct, *events(300))
        async with harness.broker(through=proxy) as broker:
            seen: set[str] = set()
            async with broker.consume(Queue.EVENTS, prefetch=50) as consumer:
                armed = 0
                while len(seen) < 300:
                    if armed == proxy.cuts < 3:
                        proxy.cut_after(10_000, Direction.TO_CLIENT)
                        armed += 1
                    for one in await receive(consumer, 10):
                        seen.add(one.message.body.decode())
                        await consumer.ack([one])
            assert proxy.cuts == 3
        assert len(await what_is_left(direct)) < 50  # acks that were cut off; all others are done


async def test_an_ack_over_a_lost_connection_is_passed_over(harness: Harness, proxy: Proxy) -> None:
    async with harness.broker() as direct, harness.broker(through=proxy) as broker:
        await publish(direct, event("once"))
        async with broker.consume(Queue.EVENTS, prefetch=10) as consumer:
            (first,) = await receive(consumer)
            proxy.cut()
            (second,) = await receive(consumer)
            assert bodies([first]) == bodies([second])
            await consumer.ack([first])
            await consumer.release([first])
        assert await what_is_left(direct) == ["once"]


async def test_closing_returns_soon_when_the_broker_is_gone(harness: Harness, proxy: Proxy) -> None:
    broker = await harness.broker(through=proxy).__aenter__()
    consuming = broker.consume(Queue.EVENTS, prefetch=10)
    await consuming.__aenter__()
    proxy.refuse()
    proxy.cut()
    with takes_at_most(A_FEW_S):
        await consuming.__aexit__(None, None, None)
        await broker.__aexit__(None, None, None)


async def test_closing_returns_soon_when_the_broker_does_not_answer(harness: Harness, proxy: Proxy) -> None:
    async with harness.broker() as direct:
        await publish(direct, *events(3))
        broker = await harness.broker(through=proxy).__aenter__()
        consuming = broker.consume(Queue.EVENTS, prefetch=10)
        consumer = await consuming.__aenter__()
        await receive(consumer)
        proxy.stall()
        many = [Outgoing(ToEvents("many"), Message(b"x" * 16_000))] * 1000  # more than the buffers on the way hold
        assert None not in await broker.publish_many(many, timeout_s=0.5)
        with takes_at_most(A_FEW_S):
            await consuming.__aexit__(None, None, None)
            await broker.__aexit__(None, None, None)
        proxy.cut()
        proxy.resume()
