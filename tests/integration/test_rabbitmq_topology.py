"""What stands in RabbitMQ once a broker was opened, and what its arguments are there for."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel

from infra.broker.base import Outgoing, Queue, ToDead, ToEvents, ToWorkAfter
from infra.broker.ladder import RUNGS_MS
from infra.broker.rabbitmq import RabbitBroker
from infra.broker.topology import TopologyOptions
from schemas.errors import ConfigurationError
from schemas.messages import Message
from tests.contract.steps import bodies, publish, receive, receive_count
from tests.support.rabbit_server import RabbitServer
from tests.support.waiting import eventually

DEFAULT = TopologyOptions()
AT_LEAST_ONCE = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}


def rabbit(url: str, options: TopologyOptions = DEFAULT) -> RabbitBroker:
    return RabbitBroker(url, topology=options, timeout_s=5)


@asynccontextmanager
async def raw(url: str) -> AsyncIterator[AbstractChannel]:
    """A channel of a client that knows nothing of us."""
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        yield channel


def listed(server: RabbitServer, what: str, *columns: str) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = json.loads(server.ctl("--quiet", what, *columns, "--formatter", "json"))
    return answer


def arguments(row: dict[str, Any]) -> dict[str, str | int]:
    given = row["arguments"]
    return given if isinstance(given, dict) else {name: value for name, _, value in given}


async def test_queues_exchanges_and_bindings_are_as_designed(rabbit_server: RabbitServer) -> None:
    async with rabbit(rabbit_server.url):
        pass
    worked = {"x-queue-type": "quorum", "x-delivery-limit": 100, "x-dead-letter-exchange": "hookhare.dead"}
    kept = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}
    queues = {
        "hookhare.events": worked | AT_LEAST_ONCE | {"x-dead-letter-routing-key": "events"},
        "hookhare.work": worked | AT_LEAST_ONCE | {"x-dead-letter-routing-key": "work"},
        "hookhare.dead-letters": kept,
        "hookhare.unrouted": kept,
    }
    for ms in RUNGS_MS:
        queues[f"hookhare.retry.{ms}"] = AT_LEAST_ONCE | {
            "x-queue-type": "quorum",
            "x-message-ttl": ms,
            "x-dead-letter-exchange": "hookhare.due",
        }
    found = listed(rabbit_server, "list_queues", "name", "durable", "arguments")
    assert {row["name"]: arguments(row) for row in found} == queues
    assert all(row["durable"] for row in found)
    assert len(queues) == 71

    unrouted = {"alternate-exchange": "hookhare.unrouted"}
    found = listed(rabbit_server, "list_exchanges", "name", "type", "durable", "arguments")
    assert {row["name"]: (row["type"], arguments(row)) for row in found if row["name"].startswith("hookhare")} == {
        "hookhare.events": ("topic", {}),
        "hookhare.retry": ("topic", {}),
        "hookhare.due": ("topic", unrouted),
        "hookhare.dead": ("topic", unrouted),
        "hookhare.unrouted": ("fanout", {}),
    }
    assert all(row["durable"] for row in found if row["name"].startswith("hookhare"))

    found = listed(rabbit_server, "list_bindings", "source_name", "destination_name", "routing_key")
    bindings = {(row["source_name"], row["destination_name"], row["routing_key"]) for row in found}
    assert {binding for binding in bindings if binding[0]} == {
        ("hookhare.events", "hookhare.events", "#"),
        ("hookhare.due", "hookhare.work", "#"),
        ("hookhare.dead", "hookhare.dead-letters", "#"),
        ("hookhare.unrouted", "hookhare.unrouted", ""),
        *(("hookhare.retry", f"hookhare.retry.{ms}", str(ms)) for ms in RUNGS_MS),
    }


async def test_a_companys_own_exchange_is_bound(rabbit_url: str) -> None:
    options = TopologyOptions(event_bindings=("Shop.Messages:OrderCreated:order.#",))
    async with raw(rabbit_url) as channel:
        exchange = await channel.declare_exchange("Shop.Messages:OrderCreated", "topic")
        try:
            async with rabbit(rabbit_url, options) as broker, broker.consume(Queue.EVENTS, prefetch=10) as consumer:
                await exchange.publish(aio_pika.Message(b"theirs", type="order.created"), "order.created")
                (received,) = await receive(consumer)
                assert (received.message.body, received.message.type) == (b"theirs", "order.created")
                assert received.routing_key == "order.created"
                await consumer.ack([received])
        finally:
            await exchange.delete()


async def test_an_exchange_to_bind_that_does_not_exist_is_named(rabbit_url: str) -> None:
    options = TopologyOptions(event_bindings=("no.such:#",))
    with pytest.raises(ConfigurationError, match=r"no\.such.*HOOKHARE_EVENT_BINDINGS"):
        await rabbit(rabbit_url, options).__aenter__()


@pytest.mark.parametrize("text", ["", "exchange", ":order.#"])
def test_an_event_binding_that_cannot_be_one_is_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match="HOOKHARE_EVENT_BINDINGS"):
        rabbit("amqp://localhost", TopologyOptions(event_bindings=(text,)))


async def test_a_queue_with_other_arguments_is_named_and_stays_as_it_is(rabbit_url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"queue hookhare\.events .*x-delivery-limit.*DELIVERY_LIMIT"):
        await rabbit(rabbit_url, TopologyOptions(events_delivery_limit=7)).__aenter__()
    async with rabbit(rabbit_url) as broker:
        await broker.check(timeout_s=5)


async def test_retries_that_no_queue_is_bound_for_are_kept_and_stall_nothing(rabbit_url: str) -> None:
    """40, because RabbitMQ holds 32 of them before everything stands still."""
    async with (
        rabbit(rabbit_url) as broker,
        raw(rabbit_url) as channel,
        broker.consume(Queue.UNROUTED, prefetch=100) as keeper,
    ):
        await eventually(lambda: has_consumer(channel, Queue.UNROUTED))  # or its connection would bind the queue again
        work = await channel.get_queue("hookhare.work", ensure=False)
        await work.unbind("hookhare.due", "#")
        await publish(broker, *(Outgoing(ToWorkAfter(0), Message(f"{number}".encode())) for number in range(40)))
        unrouted = await receive_count(keeper, 40)
        assert sorted(map(int, bodies(unrouted))) == list(range(40))
        await keeper.ack(unrouted)
        await work.bind("hookhare.due", "#")
        await publish(broker, Outgoing(ToWorkAfter(0), Message(b"after")))
        async with broker.consume(Queue.WORK, prefetch=100) as consumer:
            assert bodies(await receive(consumer)) == ["after"]


async def test_dead_letters_that_no_queue_is_bound_for_are_kept(rabbit_url: str) -> None:
    async with (
        rabbit(rabbit_url) as broker,
        raw(rabbit_url) as channel,
        broker.consume(Queue.UNROUTED, prefetch=100) as keeper,
    ):
        await eventually(lambda: has_consumer(channel, Queue.UNROUTED))
        letters = await channel.get_queue("hookhare.dead-letters", ensure=False)
        await letters.unbind("hookhare.dead", "#")
        await publish(broker, Outgoing(ToDead("unreadable"), Message(b"ours")))
        (ours,) = await receive(keeper)
        assert (ours.message.body, ours.routing_key, ours.dead_lettered_from) == (b"ours", "unreadable", None)
        exchange = await channel.get_exchange("hookhare.events")
        await exchange.publish(aio_pika.Message(b"expired", expiration=timedelta(milliseconds=1)), "order.created")
        (theirs,) = await receive(keeper)
        assert (theirs.message.body, theirs.dead_lettered_from) == (b"expired", "hookhare.events")
        await keeper.ack([ours, theirs])


async def has_consumer(channel: AbstractChannel, queue: Queue) -> bool:
    declared = await channel.declare_queue(queue.value, passive=True)
    return bool(declared.declaration_result.consumer_count)


async def test_what_is_published_is_persistent(rabbit_url: str) -> None:
    async with rabbit(rabbit_url) as broker, raw(rabbit_url) as channel:
        await publish(broker, Outgoing(ToEvents("order.created"), Message(b"{}")))
        queue = await channel.get_queue("hookhare.events", ensure=False)
        message = await queue.get(timeout=5)
        assert message is not None
        assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
        await message.ack()
