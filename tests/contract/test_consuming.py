"""The contract's part "Consuming", but for suspects."""

import asyncio
import os
import signal
import time

import pytest

from infra.broker.base import Broker, Outgoing, Queue, ToDead, ToEvents, ToWorkAfter
from schemas.messages import Message
from tests.contract.conftest import SHORT_LIMIT
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
    takes_at_most,
    what_is_left,
)
from tests.contract.victim import Victim
from tests.support.proxy import Proxy
from tests.support.waiting import eventually


async def test_what_is_not_acked_is_handed_out_again_when_its_consumer_closes(broker: Broker) -> None:
    await publish(broker, event("kept"), event("acked"))
    async with broker.consume(Queue.EVENTS, prefetch=10) as first:
        received = await receive_count(first, 2)
        assert [(one.delivery_count, one.redelivered) for one in received] == [(0, False)] * 2
        await first.ack([one for one in received if one.message.body == b"acked"])
    async with broker.consume(Queue.EVENTS, prefetch=10) as second:
        (again,) = await receive(second)
        assert (again.message.body, again.delivery_count, again.redelivered) == (b"kept", 1, True)
        await second.ack([again])


async def test_one_consumers_death_moves_its_work_to_another(harness: Harness) -> None:
    async with harness.broker() as broker:
        await publish(broker, *events(5))
        with Victim(harness, prefetch=10) as victim:
            assert sorted(await victim.received(5)) == [f"event {number}" for number in range(5)]
            os.kill(victim.pid, signal.SIGKILL)
            async with broker.consume(Queue.EVENTS, prefetch=10) as consumer:
                received = await receive_count(consumer, 5)
                assert {(one.delivery_count, one.redelivered) for one in received} == {(1, True)}
                await consumer.ack(received)


async def test_what_is_not_acked_is_handed_out_again_when_its_connection_is_lost(
    harness: Harness, proxy: Proxy
) -> None:
    async with harness.broker(through=proxy) as broker, broker.consume(Queue.EVENTS, prefetch=10) as consumer:
        await publish(broker, event("again"))
        await receive(consumer)
        proxy.cut()
        (again,) = await receive(consumer)
        assert (again.message.body, again.delivery_count, again.redelivered) == (b"again", 1, True)
        await consumer.ack([again])


async def test_an_acked_message_is_never_handed_out_again(broker: Broker) -> None:
    await publish(broker, *events(20))
    async with broker.consume(Queue.EVENTS, prefetch=20) as consumer:
        received = await receive_count(consumer, 20)
        # Out of order, in parts, one of them twice: each way in which acks leave.
        await consumer.ack(received[15:])
        await consumer.ack(received[3:4])
        await consumer.ack([*received[:3], *received[10:12]])
        await consumer.ack(received[2:9])
    assert sorted(await what_is_left(broker)) == sorted(bodies([received[9], *received[12:15]]))


async def test_a_released_message_is_handed_out_again_at_once(broker: Broker) -> None:
    await publish(broker, *events(3))
    async with broker.consume(Queue.EVENTS, prefetch=10) as consumer:
        received = await receive_count(consumer, 3)
        with takes_at_most(1):
            await consumer.release(received[1:])
            again = await receive_count(consumer, 2)
        assert sorted(bodies(again)) == sorted(bodies(received[1:]))
        assert {(one.delivery_count, one.redelivered) for one in again} == {(1, True)}
        await consumer.ack([received[0], *again])
    assert await what_is_left(broker) == []


async def test_a_consumer_knows_what_is_still_its_own(harness: Harness, proxy: Proxy, broker: Broker) -> None:
    await publish(broker, *events(3))
    async with harness.broker(through=proxy) as cut, cut.consume(Queue.EVENTS, prefetch=10) as consumer:
        acked, released, kept = await receive_count(consumer, 3)
        await consumer.ack([acked])
        await consumer.release([released])
        assert [consumer.holds(one) for one in (acked, released, kept)] == [False, False, True]
        (back,) = await receive_count(consumer, 1)  # so the broker has heard of the ack, too
        assert (consumer.holds(back), consumer.holds(released)) == (True, False)
        proxy.cut()

        async def noticed() -> bool:
            return not consumer.holds(kept)  # the broker takes it back

        await eventually(noticed, deadline_s=PATIENCE_S)
        again = await receive_count(consumer, 2)
        assert {one.message.body for one in again} == {released.message.body, kept.message.body}
        assert not consumer.holds(kept)  # handed out anew, which is another one
        assert all(consumer.holds(one) for one in again)
        await consumer.ack(again)
        assert not any(consumer.holds(one) for one in again)


@pytest.mark.parametrize("prefetch", [1, 2, 3])
async def test_at_most_prefetch_messages_are_unacked_and_the_others_wait_in_the_broker(
    harness: Harness, broker: Broker, prefetch: int
) -> None:
    await publish(broker, *events(10))
    async with broker.consume(Queue.EVENTS, prefetch=prefetch) as narrow:
        mine = await receive_count(narrow, prefetch)
        await nothing_comes(narrow)
        async with harness.broker() as other, other.consume(Queue.EVENTS, prefetch=100) as wide:
            others = await receive_count(wide, 10 - prefetch)
            assert not set(bodies(mine)) & set(bodies(others))
            await wide.release(others[:1])
            await wide.ack(others[1:])
        await narrow.ack(mine[:1])
        (further,) = await receive(narrow)
        assert bodies([further]) == bodies(others[:1])
        await narrow.ack([*mine[1:], further])


async def test_receive_returns_what_is_there_at_once_and_at_most_the_limit(broker: Broker) -> None:
    async with broker.consume(Queue.EVENTS, prefetch=100) as consumer:
        receiving = asyncio.create_task(receive(consumer, 3))
        await publish(broker, event("alone"))
        with takes_at_most(1):
            received = list(await receiving)
        assert bodies(received) == ["alone"]
        await publish(broker, *events(10))
        while len(received) < 11:
            batch = await receive(consumer, 3)
            assert 1 <= len(batch) <= 3
            received += batch
        await consumer.ack(received)


async def test_a_receive_that_is_cancelled_loses_nothing(broker: Broker) -> None:
    async with broker.consume(Queue.EVENTS, prefetch=10) as consumer:
        for number in range(20):
            receiving = asyncio.create_task(consumer.receive(1))
            await asyncio.sleep(0.001 * (number % 5))
            publishing = asyncio.create_task(publish(broker, event(f"event {number}")))
            await asyncio.sleep(0.002 * (number % 7))
            receiving.cancel()
            await asyncio.wait({receiving, publishing})
            if not receiving.cancelled():
                await consumer.ack(receiving.result())
                continue
            batch = await receive(consumer)
            assert bodies(batch) == [f"event {number}"]
            await consumer.ack(batch)


@pytest.mark.parametrize(
    ("to", "queue"),
    [(ToEvents("order.created"), Queue.EVENTS), (ToWorkAfter(0), Queue.WORK)],
    ids=["events", "work"],
)
async def test_what_comes_back_more_often_than_the_limit_goes_to_the_dead_letters(
    strict: Harness, to: ToEvents | ToWorkAfter, queue: Queue
) -> None:
    poison = Message(b"poison", {"traceparent": "00-1", "bytes": b"\x00"}, content_type="text/plain", type="t")
    async with strict.broker() as broker, broker.consume(Queue.DEAD_LETTERS, prefetch=10) as keeper:
        await publish(broker, Outgoing(to, poison))
        async with broker.consume(queue, prefetch=10) as consumer:
            (one,) = await receive(consumer)
            one = await come_back(consumer, one, SHORT_LIMIT)
            assert one.delivery_count == SHORT_LIMIT  # as often as it may
            await consumer.release([one])
            await nothing_comes(consumer)
        (letter,) = await receive(keeper)
        await keeper.ack([letter])
    assert letter.message.body == poison.body
    assert letter.message.headers == poison.headers
    assert (letter.message.content_type, letter.message.type) == ("text/plain", "t")
    assert letter.dead_lettered_from == queue.value
    assert (letter.delivery_count, letter.redelivered) == (0, False)


async def test_what_kills_its_consumers_goes_to_the_dead_letters(strict: Harness) -> None:
    async with strict.broker() as broker, Proxy(strict.target) as proxy:
        await publish(broker, event("poison"))
        async with strict.broker(through=proxy) as dying, dying.consume(Queue.EVENTS, prefetch=10) as consumer:
            for times in range(SHORT_LIMIT + 1):
                (one,) = await receive(consumer)
                assert one.delivery_count == times
                proxy.cut()
            still_consuming = asyncio.create_task(consumer.receive(10))  # or nobody would meet it once more
            async with broker.consume(Queue.DEAD_LETTERS, prefetch=10) as keeper:
                (letter,) = await receive(keeper)
                assert (letter.message.body, letter.dead_lettered_from) == (b"poison", Queue.EVENTS.value)
                await keeper.ack([letter])
            still_consuming.cancel()


async def test_a_dead_letter_stays_until_it_is_acked_however_often_it_is_looked_at(strict: Harness) -> None:
    async with strict.broker() as broker:
        await publish(broker, Outgoing(ToDead("unreadable"), Message(b"letter")))
        for _ in range(5):
            async with broker.consume(Queue.DEAD_LETTERS, prefetch=10) as keeper:
                (letter,) = await receive(keeper)
                await come_back(keeper, letter, 6)  # 30 times and more: beyond any broker's own limit
        async with broker.consume(Queue.DEAD_LETTERS, prefetch=10) as keeper:
            (letter,) = await receive(keeper)
            assert letter.message.body == b"letter"
            await keeper.ack([letter])
        began = time.monotonic()
        async with broker.consume(Queue.DEAD_LETTERS, prefetch=10) as keeper:
            await nothing_comes(keeper)
        assert time.monotonic() - began < PATIENCE_S
