"""The contract's part "Publishing"."""

import asyncio
import time
from datetime import UTC, datetime

import pytest

from infra.broker.base import Broker, Outgoing, Queue, ToDead, ToEvents, ToWorkAfter
from schemas.errors import BrokerError, BrokerUnavailable, PublishRefused, PublishTimeout, Unroutable
from schemas.messages import HeaderValue, Message
from tests.contract.harness import Breakable, Harness
from tests.contract.steps import (
    PATIENCE_S,
    bodies,
    event,
    events,
    publish,
    receive,
    receive_count,
    takes_at_most,
    what_is_left,
)
from tests.support.proxy import Direction, Proxy

NOWHERE = Outgoing(ToEvents("x" * 256), Message(b"unroutable"))  # longer than a routing key may be: no queue takes it
TOO_LARGE = Outgoing(ToEvents("order.created"), Message(b"refused", {"number": 2**63}))  # fits no broker's integers


async def test_a_broker_killed_right_after_a_publish_still_has_the_message_and_serves_again(
    breakable: Breakable,
) -> None:
    async with breakable.harness.broker() as broker, broker.consume(Queue.WORK, prefetch=1) as waiting:
        await broker.publish(event("survivor"), timeout_s=PATIENCE_S)
        await breakable.kill()
        with pytest.raises(BrokerUnavailable), takes_at_most(1.5):
            await broker.publish(event("lost"), timeout_s=0.5)
        await breakable.start()
        # The same broker object, and a consumer that was waiting all the time.
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    await broker.publish(Outgoing(ToWorkAfter(0), Message(b"again")), timeout_s=PATIENCE_S)
                    break
                except BrokerUnavailable:
                    await asyncio.sleep(0.1)
        assert bodies(await receive(waiting)) == ["again"]
        assert await what_is_left(broker) == ["survivor"]


async def test_an_unroutable_message_is_an_error_and_nothing_is_stored(broker: Broker) -> None:
    with pytest.raises(Unroutable):
        await broker.publish(NOWHERE, timeout_s=PATIENCE_S)
    assert await what_is_left(broker) == []


async def test_what_the_broker_cannot_take_is_refused(broker: Broker) -> None:
    with pytest.raises(PublishRefused):
        await broker.publish(TOO_LARGE, timeout_s=PATIENCE_S)
    assert await what_is_left(broker) == []


async def test_a_broker_that_is_away_is_an_error_in_time(harness: Harness, proxy: Proxy) -> None:
    async with harness.broker(through=proxy) as broker:
        proxy.refuse()
        proxy.cut()
        with pytest.raises(BrokerUnavailable), takes_at_most(2):
            await broker.publish(event("away"), timeout_s=1)
        with takes_at_most(2):
            errors = await broker.publish_many(events(3), timeout_s=1)
        assert [type(error) for error in errors] == [BrokerUnavailable] * 3
        proxy.accept()


async def test_a_connection_cut_before_the_confirm_is_an_error_at_once(harness: Harness, proxy: Proxy) -> None:
    async with harness.broker(through=proxy) as broker:
        proxy.stall(Direction.TO_CLIENT)
        publishing = asyncio.create_task(broker.publish(event("cut"), timeout_s=PATIENCE_S))
        async with harness.broker() as other, other.consume(Queue.EVENTS, prefetch=1) as consumer:
            await receive(consumer)  # it is on the wire, and its confirm is not
            proxy.cut()
            proxy.resume()
            with pytest.raises(BrokerUnavailable), takes_at_most(2):
                await publishing


async def test_no_confirm_in_time_is_an_error_in_time(harness: Harness, proxy: Proxy) -> None:
    async with harness.broker(through=proxy) as broker:
        await broker.publish(event("before"), timeout_s=PATIENCE_S)
        proxy.stall()
        with pytest.raises(PublishTimeout), takes_at_most(1.5):
            await broker.publish(event("stalled"), timeout_s=0.5)
        with takes_at_most(1.5):
            errors = await broker.publish_many(events(2), timeout_s=0.5)
        assert [type(error) for error in errors] == [PublishTimeout] * 2
        proxy.resume()
        await publish(broker, event("after"))
        assert {"before", "after"} <= set(await what_is_left(broker))


async def test_a_publisher_that_is_cancelled_leaves_the_others_alone(harness: Harness, proxy: Proxy) -> None:
    async with harness.broker(through=proxy) as broker:
        proxy.stall(Direction.TO_CLIENT)
        tasks = [asyncio.create_task(broker.publish(one, timeout_s=PATIENCE_S)) for one in events(3)]
        await asyncio.sleep(0.1)
        tasks[1].cancel()
        proxy.resume()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [type(None), asyncio.CancelledError, type(None)]
        assert {"event 0", "event 2"} <= set(await what_is_left(broker))


async def test_publish_many_tells_the_outcome_of_each_in_order(broker: Broker) -> None:
    given = [event("first"), NOWHERE, event("second"), TOO_LARGE, event("third")]
    errors = await broker.publish_many(given, timeout_s=PATIENCE_S)
    assert [type(error) for error in errors] == [type(None), Unroutable, type(None), PublishRefused, type(None)]
    assert sorted(await what_is_left(broker)) == ["first", "second", "third"]
    assert list(await broker.publish_many([], timeout_s=PATIENCE_S)) == []


async def test_publish_many_pipelines(harness: Harness, proxy: Proxy) -> None:
    async with harness.broker(through=proxy) as broker, harness.broker() as direct:
        proxy.stall(Direction.TO_CLIENT)
        publishing = asyncio.create_task(broker.publish_many(events(200), timeout_s=PATIENCE_S))
        async with direct.consume(Queue.EVENTS, prefetch=200) as consumer:
            await receive_count(consumer, 200)  # all are stored while not one is confirmed
            assert not publishing.done()
            proxy.resume()
            assert list(await publishing) == [None] * 200


async def test_of_a_batch_that_is_cut_in_the_middle_all_that_is_confirmed_is_stored(
    harness: Harness, proxy: Proxy
) -> None:
    async with harness.broker(through=proxy) as broker:
        confirmed = set()
        for size_bytes in (2_000, 10_000, 25_000):  # of the confirms, or of the answers to statements
            proxy.cut_after(size_bytes // 100, Direction.TO_CLIENT)
            proxy.cut_after(size_bytes, Direction.TO_SERVER)
            given = [event(f"{size_bytes}: {number}") for number in range(300)]
            errors: list[BrokerError | None] = []
            for start in range(0, 300, 20):
                errors += await broker.publish_many(given[start : start + 20], timeout_s=PATIENCE_S)
            assert {type(error) for error in errors} <= {type(None), BrokerUnavailable}
            stored = zip(given, errors, strict=True)
            confirmed |= {one.message.body.decode() for one, error in stored if error is None}
        assert proxy.cuts >= 3
        assert confirmed <= set(await what_is_left(broker))


ROUND_TRIPS = {
    "empty": Message(b""),
    "any bytes": Message(bytes(range(256)) * 4),
    "large": Message(b"x" * 262_144),
    "headers": Message(
        b"{}",
        {
            "text": "Füße ☃",
            "empty": "",
            "number": -(2**63),
            "small": 7,
            "true": True,
            "false": False,
            "bytes": b"\x00\xff",
            "nothing": None,
            "cloudEvents_id": "1",
        },
    ),
    "properties": Message(
        b"{}",
        content_type="application/cloudevents+json; charset=utf-8",
        type="order.created",
        timestamp=datetime(2026, 11, 21, 12, 0, 1, tzinfo=UTC),
        app_id="shop",
    ),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
async def test_a_message_arrives_as_it_was_sent(broker: Broker, name: str) -> None:
    sent = ROUND_TRIPS[name]
    await publish(broker, Outgoing(ToEvents("order.created"), sent))
    async with broker.consume(Queue.EVENTS, prefetch=10) as consumer:
        (received,) = await receive(consumer)
        await consumer.ack([received])
    assert received.message.body == sent.body
    assert dict(received.message.headers) == dict(sent.headers)
    assert {key: type(value) for key, value in received.message.headers.items()} == {
        key: type(value) for key, value in sent.headers.items()
    }
    assert received.message.content_type == sent.content_type
    assert received.message.type == sent.type
    assert received.message.timestamp == sent.timestamp
    assert received.message.app_id == sent.app_id
    assert received.routing_key == "order.created"
    assert (received.delivery_count, received.redelivered, received.dead_lettered_from) == (0, False, None)


async def test_each_publish_has_a_message_id_of_its_own(broker: Broker) -> None:
    same = Outgoing(ToEvents("order.created"), Message(b"{}", message_id="mine"))
    await publish(broker, same, same)
    await broker.publish(same, timeout_s=PATIENCE_S)
    async with broker.consume(Queue.EVENTS, prefetch=10) as consumer:
        received = await receive_count(consumer, 3)
        await consumer.ack(received)
    ids = {one.message.message_id for one in received}
    assert len(ids) == 3
    assert not ids & {"mine", None}


async def test_death_headers_are_never_republished(broker: Broker) -> None:
    """Or a second walk up the ladder does not arrive."""
    forged: dict[str, HeaderValue] = {
        "x-death": "a",
        "x-first-death-queue": "hookhare.work",
        "x-delivery-count": 50,
        "kept": "b",
    }
    async with broker.consume(Queue.WORK, prefetch=10) as consumer:
        await publish(broker, Outgoing(ToWorkAfter(0), Message(b"item", forged)))
        (item,) = await receive(consumer)
        assert item.message.headers == {"kept": "b"}
        assert item.delivery_count == 0
        await publish(broker, Outgoing(ToWorkAfter(0), item.message))
        await consumer.ack([item])
        (item,) = await receive(consumer)
        assert item.message.headers == {"kept": "b"}
        await consumer.ack([item])


async def test_a_dead_letter_is_routed_by_its_kind(broker: Broker) -> None:
    await publish(broker, Outgoing(ToDead("unreadable"), Message(b"not an event", {"hookhare-reason": "because"})))
    async with broker.consume(Queue.DEAD_LETTERS, prefetch=10) as consumer:
        (letter,) = await receive(consumer)
        await consumer.ack([letter])
    assert (letter.message.body, letter.routing_key, letter.dead_lettered_from) == (b"not an event", "unreadable", None)
    assert letter.message.headers == {"hookhare-reason": "because"}


async def test_a_check_asks_the_broker(harness: Harness, proxy: Proxy) -> None:
    async with harness.broker(through=proxy) as broker:
        await broker.check(timeout_s=PATIENCE_S)
        proxy.stall()
        with pytest.raises(BrokerError), takes_at_most(1.5):
            await broker.check(timeout_s=0.5)
        proxy.refuse()
        proxy.cut()
        proxy.resume()
        with pytest.raises(BrokerError), takes_at_most(1.5):
            await broker.check(timeout_s=0.5)
        proxy.accept()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                await broker.check(timeout_s=PATIENCE_S)
                break
            except BrokerError:
                assert time.monotonic() < deadline
        assert await what_is_left(broker) == []


async def test_opening_a_broker_that_is_away_is_an_error_in_time(harness: Harness, proxy: Proxy) -> None:
    proxy.refuse()
    broker = harness.broker(through=proxy, timeout_s=1)
    with pytest.raises(BrokerUnavailable), takes_at_most(3):
        await broker.__aenter__()
