"""What the RabbitMQ adapter does beyond the contract that it shares with PostgreSQL (`tests/contract/`)."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aio_pika
import aiormq
import pytest

from infra.broker import rabbit_session
from infra.broker.amqp_message import to_received
from infra.broker.base import Outgoing, Queue, Received, ToEvents
from infra.broker.rabbit_consumer import RabbitConsumer
from infra.broker.rabbitmq import RabbitBroker
from infra.broker.topology import TopologyOptions
from schemas.errors import (
    BrokerError,
    BrokerUnavailable,
    ConfigurationError,
    PublishRefused,
    PublishTimeout,
    Unroutable,
)
from schemas.messages import Message
from tests.contract.steps import (
    event,
    events,
    publish,
    receive,
    receive_until,
    takes_at_most,
    what_is_left,
)
from tests.support.certificates import self_signed, server_tls
from tests.support.proxy import Direction, Proxy
from tests.support.rabbit_server import RabbitServer
from tests.support.rabbitmq import delete_topology, rabbit
from tests.support.waiting import eventually


@contextmanager
def memory_alarm(server: RabbitServer) -> Iterator[None]:
    server.ctl("set_vm_memory_high_watermark", "0.000001")
    try:
        yield
    finally:
        server.ctl("set_vm_memory_high_watermark", "0.4")


async def publish_when_possible(broker: RabbitBroker, body: str) -> None:
    async def published() -> bool:
        try:
            await broker.publish(event(body), timeout_s=5)
        except BrokerError:
            return False
        return True

    await eventually(published)


async def test_an_alarm_blocks_publishing_with_an_error_and_leaves_consuming_alone(rabbit_server: RabbitServer) -> None:
    async with rabbit(rabbit_server.url) as broker, broker.consume(Queue.EVENTS, prefetch=1) as consumer:
        await publish(broker, *events(3))
        first = await receive(consumer)
        with memory_alarm(rabbit_server):
            # RabbitMQ says so only when it meets a publish, so this one is on its way, and is stored in the end.
            with pytest.raises(PublishTimeout, match=r"alarm.* may be stored"), takes_at_most(2):
                await broker.publish(event("sent before it was told"), timeout_s=30)
            with takes_at_most(1):
                errors = await broker.publish_many(events(3), timeout_s=30)
            assert [type(error) for error in errors] == [PublishRefused] * 3
            with pytest.raises(PublishRefused), takes_at_most(1):
                await broker.check(timeout_s=30)
            await consumer.ack(first)
            second = await receive(consumer)  # so the ack came through
            await consumer.ack(second)
        await publish_when_possible(broker, "after the alarm")
        await broker.check(timeout_s=5)
        await receive_until(consumer, "sent before it was told")
        await receive_until(consumer, "after the alarm")


async def test_a_thousand_publishes_wait_for_their_confirms_and_no_more(rabbit_url: str) -> None:
    """The others wait to be sent, and lose nothing by it."""
    there = aio_pika.connection.make_url(rabbit_url)
    async with Proxy((str(there.host), there.port or 5672)) as proxy, rabbit(rabbit_url) as direct:
        async with rabbit(str(there.with_port(proxy.port).with_host("127.0.0.1"))) as broker:
            await broker.publish(event("first"), timeout_s=5)
            proxy.stall(Direction.TO_CLIENT)
            publishing = asyncio.gather(*(broker.publish(event(str(n)), timeout_s=60) for n in range(1200)))

            async def a_thousand_came() -> bool:
                return await stored(rabbit_url) == 1001

            await eventually(a_thousand_came, deadline_s=30)
            await direct.publish(event("by another connection"), timeout_s=5)
            assert await stored(rabbit_url) == 1002
            proxy.resume()
            await publishing
        assert await stored(rabbit_url) == 1202


async def stored(url: str) -> int:
    """How many messages are ready in the events queue."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(Queue.EVENTS.value, passive=True)
        return queue.declaration_result.message_count or 0


async def test_an_event_that_no_queue_is_bound_for_is_an_error_and_not_stored(rabbit_url: str) -> None:
    async with (
        rabbit(rabbit_url) as broker,
        await aio_pika.connect(rabbit_url) as connection,
        connection.channel() as channel,
    ):
        queue = await channel.get_queue("hookhare.events", ensure=False)
        await queue.unbind("hookhare.events", "#")
        with pytest.raises(Unroutable, match=r"order\.created"):
            await broker.publish(event("nowhere"), timeout_s=5)
        await queue.bind("hookhare.events", "#")
        assert await what_is_left(broker) == []


async def test_a_publisher_without_a_topology_declares_nothing_and_is_told_what_is_missing(
    bare_rabbit_url: str,
) -> None:
    async with rabbit(bare_rabbit_url, options=None) as publisher:
        with pytest.raises(Unroutable, match=r"no exchange hookhare\.events"):
            await publisher.publish(event("too soon"), timeout_s=5)
        async with rabbit(bare_rabbit_url) as broker:
            await publisher.publish(event("in time"), timeout_s=5)
            assert await what_is_left(broker) == ["in time"]


async def test_a_consumer_whose_queue_is_deleted_declares_it_again_and_goes_on(rabbit_url: str) -> None:
    async with rabbit(rabbit_url) as broker, broker.consume(Queue.EVENTS, prefetch=10) as consumer:
        await publish(broker, event("before"))
        await receive_until(consumer, "before")
        receiving = asyncio.create_task(receive_until(consumer, "after"))
        connection = await aiormq.connect(rabbit_url)
        channel = await connection.channel()
        await channel.queue_delete("hookhare.events")
        await connection.close()
        await publish_when_possible(broker, "after")  # nobody but the consumer knows, and puts it back
        await receiving
        await broker.check(timeout_s=5)


async def test_a_consumer_whose_channel_the_broker_closes_begins_again(rabbit_url: str) -> None:
    async with rabbit(rabbit_url) as broker, broker.consume(Queue.EVENTS, prefetch=10) as consumer:
        await publish(broker, event("unacked"))
        (first,) = await receive(consumer)
        assert isinstance(consumer, RabbitConsumer)
        assert consumer._session is not None
        await consumer._session._channel.basic_ack(4711)  # an unknown tag: RabbitMQ closes the channel
        (again,) = await receive(consumer)
        assert (again.message.body, again.delivery_count) == (first.message.body, 1)
        await consumer.ack([first])  # of the old channel, where it had the same tag as something else now
        await consumer.ack([again])
    async with rabbit(rabbit_url) as broker:
        assert await what_is_left(broker) == []


async def test_a_consumer_that_fails_over_a_message_begins_again(
    rabbit_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At once and for this reason, not when something notices that nothing is consumed any more."""
    faults = [ValueError("of ours")]

    def fails_once(*arguments: Any) -> Received:
        if faults:
            raise faults.pop()
        return to_received(*arguments)

    monkeypatch.setattr(rabbit_session, "to_received", fails_once)
    async with rabbit(rabbit_url) as broker, broker.consume(Queue.EVENTS, prefetch=10) as consumer:
        await publish(broker, event("again"))
        (again,) = await receive(consumer)
        assert again.delivery_count == 1
        await consumer.ack([again])
    assert "consuming hookhare.events: a message cannot be read" in caplog.text


async def test_a_check_names_what_is_missing(rabbit_url: str) -> None:
    async with rabbit(rabbit_url) as broker:
        await broker.check(timeout_s=5)
        connection = await aiormq.connect(rabbit_url)
        channel = await connection.channel()
        await channel.queue_delete("hookhare.work")
        await connection.close()
        with pytest.raises(BrokerUnavailable, match=r"queue hookhare\.work"):
            await broker.check(timeout_s=5)
    async with rabbit(rabbit_url) as broker:
        await broker.check(timeout_s=5)


async def test_a_broker_that_was_wiped_is_declared_again_on_reconnecting(rabbit_url: str) -> None:
    target = aio_pika.connection.make_url(rabbit_url)
    async with (
        Proxy((target.host or "", target.port or 5672)) as proxy,
        rabbit(str(target.with_port(proxy.port))) as broker,
    ):
        await delete_topology(rabbit_url)
        proxy.cut()
        await publish_when_possible(broker, "after")
        assert await what_is_left(broker) == ["after"]


async def test_a_body_that_is_larger_than_the_broker_takes_is_refused_for_good(rabbit_server: RabbitServer) -> None:
    """As unfit: what was taken when the limit was larger cannot be published again, however often one tries."""
    large = Outgoing(ToEvents("large"), Message(b"x" * 300_000))
    with largest_message(rabbit_server, 100_000):
        async with rabbit(rabbit_server.url) as broker:
            with pytest.raises(PublishRefused, match="size 300000") as caught:
                await broker.publish(large, timeout_s=5)
            assert caught.value.unfit
            await publish_when_possible(broker, "fits")
    async with rabbit(rabbit_server.url) as broker:
        await broker.publish(large, timeout_s=5)


@contextmanager
def largest_message(server: RabbitServer, size_bytes: int) -> Iterator[None]:
    """Taken on channels that are opened from now on."""

    def limit(size: object) -> None:
        server.ctl("eval", f"application:set_env(rabbit, max_message_size, {size}).")
        server.ctl("eval", f"persistent_term:put(max_message_size, {size}).")  # of later versions

    before = server.ctl("eval", "element(2, application:get_env(rabbit, max_message_size)).").strip()
    limit(size_bytes)
    try:
        yield
    finally:
        limit(before)


async def test_headers_larger_than_a_frame_are_refused_and_the_connection_stays(rabbit_url: str) -> None:
    async with rabbit(rabbit_url) as broker:
        large = Outgoing(ToEvents("order.created"), Message(b"{}", {"large": "x" * 130_000}))
        fits = Outgoing(ToEvents("order.created"), Message(b"fits", {"large": "x" * 110_000}))
        errors = await broker.publish_many([event("before"), large, fits, event("after")], timeout_s=5)
        assert [type(error) for error in errors] == [type(None), PublishRefused, type(None), type(None)]
        assert sorted(await what_is_left(broker)) == ["after", "before", "fits"]


@pytest.mark.parametrize(
    "message",
    [
        Message(b"{}", content_type="x" * 256),
        Message(b"{}", type="\ud800"),
        Message(b"{}", {"half": "\ud800"}),
    ],
    ids=["long", "surrogate", "surrogate in a header"],
)
async def test_what_amqp_cannot_carry_is_refused(rabbit_url: str, message: Message) -> None:
    async with rabbit(rabbit_url) as broker:
        errors = await broker.publish_many(
            [event("before"), Outgoing(ToEvents("a"), message), event("after")], timeout_s=5
        )
        assert [type(error) for error in errors] == [type(None), PublishRefused, type(None)]
        assert sorted(await what_is_left(broker)) == ["after", "before"]


async def test_a_wrong_password_is_told_at_once_and_never_shown(rabbit_url: str) -> None:
    url = aio_pika.connection.make_url(rabbit_url).with_password("s3cret-and-wrong")
    with pytest.raises(ConfigurationError, match="HOOKHARE_BROKER_URL") as caught, takes_at_most(4):
        await rabbit(str(url)).__aenter__()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["amqp://", "http://localhost", "amqp://host:port", "postgresql://localhost/db", "", "amqp://u:s3cret@[::1"]
)
def test_a_url_that_cannot_be_one_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError, match="HOOKHARE_BROKER_URL") as caught:
        rabbit(url)
    assert "s3cret" not in str(caught.value)


async def test_a_vhost_that_does_not_exist_is_told(rabbit_url: str) -> None:
    url = aio_pika.connection.make_url(rabbit_url).with_path("/no-such-vhost")
    broker = RabbitBroker(str(url), topology=TopologyOptions(), timeout_s=1)
    with pytest.raises(BrokerUnavailable, match="no-such-vhost"), takes_at_most(4):
        await broker.__aenter__()


async def test_amqps_is_encrypted_and_its_certificate_checked(rabbit_url: str, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path, ["127.0.0.1"])
    target = aio_pika.connection.make_url(rabbit_url)
    async with Proxy((target.host or "", target.port or 5672), tls=server_tls(certificate, key)) as proxy:
        url = f"amqps://{target.user}:{target.password}@127.0.0.1:{proxy.port}{target.path}"
        async with rabbit(f"{url}?cafile={certificate}") as broker:
            await publish(broker, event("encrypted"))
            assert await what_is_left(broker) == ["encrypted"]
        with pytest.raises(BrokerUnavailable, match="certificate"):
            await RabbitBroker(url, topology=None, timeout_s=1).__aenter__()


async def test_closing_leaves_no_task_behind_when_nothing_can_be_written(rabbit_url: str) -> None:
    target = aio_pika.connection.make_url(rabbit_url)
    async with Proxy((target.host or "", target.port or 5672)) as proxy:
        before = asyncio.all_tasks()
        broker = await rabbit(str(target.with_port(proxy.port))).__aenter__()
        consuming = broker.consume(Queue.EVENTS, prefetch=10)
        await consuming.__aenter__()
        proxy.stall()
        many = [Outgoing(ToEvents("many"), Message(b"x" * 16_000))] * 1000  # more than the buffers on the way hold
        assert None not in await broker.publish_many(many, timeout_s=0.5)
        await consuming.__aexit__(None, None, None)
        await broker.__aexit__(None, None, None)

        async def left() -> list[str]:
            tasks = asyncio.all_tasks() - before
            names = [getattr(task.get_coro(), "__qualname__", "") for task in tasks]
            return [name for name in names if not name.startswith("Proxy.")]

        async def none_left() -> bool:
            return not await left()

        await eventually(none_left, left, deadline_s=5)
