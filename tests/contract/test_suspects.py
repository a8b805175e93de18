"""The contract's sentence about suspects: what may have killed its consumers is handled alone."""

import asyncio
from contextlib import AsyncExitStack

from infra.broker.base import SUSPECT_DELIVERY_COUNT, Broker, Queue, Received
from tests.contract.harness import Harness
from tests.contract.steps import (
    PATIENCE_S,
    bodies,
    come_back,
    event,
    events,
    nothing_comes,
    publish,
    receive,
    receive_count,
    what_is_left,
)
from tests.support.proxy import Proxy


async def make_suspect(broker: Broker, *, times: int = SUSPECT_DELIVERY_COUNT) -> None:
    """A message in the events queue that came back so often."""
    await publish(broker, event("suspect"))
    async with broker.consume(Queue.EVENTS, prefetch=1) as consumer:
        (one,) = await receive(consumer)
        await come_back(consumer, one, times - 1)  # closing gives it back once more


async def test_a_suspect_is_handed_out_alone_until_it_is_acked(harness: Harness, broker: Broker) -> None:
    await make_suspect(broker)
    await publish(broker, *events(5))
    async with broker.consume(Queue.EVENTS, prefetch=10) as consumer:
        batch = await receive(consumer)
        while bodies(batch) != ["suspect"]:  # a neighbour may be met first
            assert "suspect" not in bodies(batch)
            await consumer.ack(batch)
            batch = await receive(consumer)
        assert batch[0].delivery_count >= SUSPECT_DELIVERY_COUNT
        await nothing_comes(consumer)
        await publish(broker, event("late"))
        # Neither handed out nor held by this consumer: somebody else gets them.
        async with harness.broker() as other, other.consume(Queue.EVENTS, prefetch=10) as elsewhere:
            others: list[Received] = []
            while "late" not in bodies(others):
                others += await receive(elsewhere)
            await elsewhere.ack(others)
        await consumer.ack(batch)
        # And then the window is as wide as before.
        await publish(broker, *events(10))
        await consumer.ack(await receive_count(consumer, 10))
    assert await what_is_left(broker) == []


async def test_a_suspect_that_turns_up_among_others_waits_for_them(harness: Harness, broker: Broker) -> None:
    async with AsyncExitStack() as stack:
        async with harness.broker() as other, other.consume(Queue.EVENTS, prefetch=1) as elsewhere:
            await publish(broker, event("suspect"))
            (one,) = await receive(elsewhere)
            await come_back(elsewhere, one, SUSPECT_DELIVERY_COUNT - 1)
            await publish(broker, *events(2))
            consumer = await stack.enter_async_context(broker.consume(Queue.EVENTS, prefetch=10))
            neighbours = await receive_count(consumer, 2)
        # Closing gave it back, for the last time that it needed; only `consumer` is left to have it.
        await nothing_comes(consumer)
        await consumer.ack(neighbours[:1])
        await nothing_comes(consumer)
        await consumer.ack(neighbours[1:])
        suspect = await receive(consumer)
        assert bodies(suspect) == ["suspect"]
        assert suspect[0].delivery_count >= SUSPECT_DELIVERY_COUNT
        await consumer.ack(suspect)
        await publish(broker, *events(10))
        await consumer.ack(await receive_count(consumer, 10))
    assert await what_is_left(broker) == []


async def test_several_suspects_are_handed_out_one_by_one(broker: Broker) -> None:
    await publish(broker, *events(4))
    for _ in range(SUSPECT_DELIVERY_COUNT):
        async with broker.consume(Queue.EVENTS, prefetch=4) as consumer:
            await receive_count(consumer, 4)
    await publish(broker, event("innocent"))
    async with broker.consume(Queue.EVENTS, prefetch=10) as consumer:
        suspects = 0
        while suspects < 4:
            batch = await receive(consumer)
            if any(one.delivery_count >= SUSPECT_DELIVERY_COUNT for one in batch):
                assert len(batch) == 1
                assert batch[0].delivery_count == SUSPECT_DELIVERY_COUNT  # waiting for its turn made it no older
                suspects += 1
            await consumer.ack(batch)
    assert await what_is_left(broker) in ([], ["innocent"])


async def test_a_message_that_kills_its_consumer_takes_no_neighbour_along(harness: Harness, proxy: Proxy) -> None:
    """Each time that it is handed out, the connection dies."""
    async with harness.broker() as broker:
        await publish(broker, event("poison"), *events(8))
        async with harness.broker(through=proxy) as dying, dying.consume(Queue.EVENTS, prefetch=20) as consumer:
            counts: dict[str, int] = {}
            acked: set[str] = set()
            while counts.get("poison", 0) < SUSPECT_DELIVERY_COUNT + 3:
                batch = await receive(consumer)
                counts |= {one.message.body.decode(): one.delivery_count for one in batch}
                if "poison" in bodies(batch):
                    proxy.cut()
                elif counts.get("poison", 0) >= SUSPECT_DELIVERY_COUNT:
                    await consumer.ack(batch)
                    acked |= set(bodies(batch))
            # It is always met first, so its neighbours came back with it only until it was a suspect.
            neighbours = {name: count for name, count in counts.items() if name != "poison"}
            assert max(neighbours.values(), default=0) <= SUSPECT_DELIVERY_COUNT
            left = {f"event {number}" for number in range(8)} - acked
            async with asyncio.timeout(PATIENCE_S):
                while left:
                    batch = await consumer.receive(20)
                    left -= set(bodies(batch))
                    await consumer.ack(batch)
