"""From a message to a signed POST: any AMQP client, the version check, and the dedupe window."""

import asyncio
from datetime import UTC, datetime
from uuid import uuid4

import aio_pika
import orjson
import pytest
from opentelemetry import context
from opentelemetry import trace as traces
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from standardwebhooks.webhooks import Webhook

from producer.publisher import EventPublisher
from tests.support.points import Moment, Point, Step, trap
from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, System
from tests.support.waiting import eventually


async def test_a_plain_amqp_client_reaches_a_subscriber_that_verifies_with_the_official_library(
    rabbit_url: str, database_url: str, receiver: Receiver
) -> None:
    """It knows nothing of us: a type in the properties and a JSON body."""
    system = System(database_url, rabbit_url)
    async with system.api() as api, system.dispatcher():
        subscription = await api.subscribe(receiver.url("/hook"), "invoice.*")
        async with await aio_pika.connect(rabbit_url) as connection:
            channel = await connection.channel()
            exchange = await channel.get_exchange("hookhare.events")
            body = b'{"total": 12345678901234567890123, "note": "caf\xc3\xa9", "ratio": 1.10}'
            await exchange.publish(
                aio_pika.Message(body, type="invoice.paid", content_type="application/json"), "invoice.paid"
            )
        (request,) = await receiver.wait_for(1, path="/hook")
    Webhook(subscription["secret"]).verify(request.body, dict(request.headers))
    assert b'"data":' + body + b"}" in request.body
    assert orjson.loads(request.body)["type"] == "invoice.paid"


async def test_an_event_published_right_after_the_201_reaches_the_subscription(
    system: System, api: Api, receiver: Receiver
) -> None:
    """Some hundred times, with three dispatchers: the version is read where it cannot move."""
    rounds = 400
    async with (
        system.dispatcher(),
        system.dispatcher(),
        system.dispatcher(),
        EventPublisher(system.broker_url) as publisher,
    ):
        at_once = asyncio.Semaphore(8)

        async def one(number: int) -> None:
            async with at_once:
                await api.subscribe(receiver.url(f"/{number}"), f"round.{number}")
                await publisher.publish(f"round.{number}", {"number": number})

        await asyncio.gather(*(one(number) for number in range(rounds)))
        requests = await receiver.wait_for(rounds, deadline_s=120)
    assert {request.path for request in requests} == {f"/{number}" for number in range(rounds)}


async def test_an_event_published_twice_is_delivered_once(system: System, api: Api, receiver: Receiver) -> None:
    await api.subscribe(receiver.url("/hook"))
    async with system.dispatcher(), system.dispatcher(), system.publisher() as publisher:
        for _ in range(5):
            await publisher.publish("order.created", {"n": 1}, id="order-1")
        await publisher.publish("order.created", {"n": 1}, id="order-1", source="another")
        await publisher.publish("order.created", {"n": 1}, id="order-1", tenant="another")
        await publisher.publish("order.last", None)
        await system.settled({"delivered": 3})
    assert len(receiver.requests) == 3  # the other source's is another event; the other tenant has no subscription
    assert await system.value("SELECT count(*) FROM events") == 4


async def test_the_same_id_with_another_body_is_recorded_as_a_conflict(
    system: System, api: Api, receiver: Receiver
) -> None:
    await api.subscribe(receiver.url("/hook"))
    async with system.dispatcher(), system.publisher() as publisher:
        first = await publisher.publish("order.created", {"n": 1}, id="order-1")
        await receiver.wait_for(1)
        for _ in range(2):
            await publisher.publish("order.created", {"n": 2}, id="order-1")
        await publisher.publish("order.last", None)
        await receiver.wait_for(2)
    (letter,) = [one for one in await api.all("/v1/dead-letters") if one["kind"] == "conflict"]
    assert "order-1" in letter["reason"]
    assert letter["event_id"] == first.id
    whole = await api.call("GET", f"/v1/dead-letters/{letter['id']}")
    assert whole["body_text"] == '{"n":2}'


async def test_an_event_that_matches_nothing_is_stored_and_acked(system: System, api: Api) -> None:
    async with system.dispatcher(), system.publisher() as publisher:
        published = await publisher.publish("nobody.cares", {"n": 1})

        async def stored() -> bool:
            return bool(await system.value("SELECT count(*) FROM events"))

        await eventually(stored)
    event = await api.call("GET", f"/v1/events/{published.id}")
    assert event["type"] == "nobody.cares"
    assert await system.statuses() == {}


async def test_a_subscription_is_deleted_before_or_after_an_admission_and_never_amid(
    system: System, api: Api, receiver: Receiver
) -> None:
    """Whoever deletes it ends what the admission that is just being committed made for it."""
    answers = asyncio.Event()
    subscription = await api.subscribe(receiver.behave("/hook", Behaviour(hold=answers)))
    waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    deleting: list[asyncio.Task[object]] = []

    async def delete_meanwhile() -> None:
        call = api.call("DELETE", f"/v1/subscriptions/{subscription['id']}")
        deleting.append(asyncio.create_task(call))

        async def waiting() -> bool:
            assert not deleting[0].done()
            return bool(await system.value(waits))

        await eventually(waiting, deadline_s=30)

    with trap(Point(Moment.BEFORE, Step.COMMIT, "INSERT_DELIVERIES"), delete_meanwhile) as amid:
        async with system.dispatcher(), system.publisher() as publisher:
            await publisher.publish("order.created", {"n": 1})
            async with asyncio.timeout(60):
                await amid.sprung.wait()
                await eventually(lambda: has_ended(system), system.statuses, deadline_s=30)
                await deleting[0]
            answers.set()
    assert await system.statuses() == {"canceled": 1}


async def has_ended(system: System) -> bool:
    return set(await system.statuses()) == {"canceled"}


async def test_the_trace_of_the_publisher_reaches_the_endpoint(system: System, api: Api, receiver: Receiver) -> None:
    trace = f"{uuid4().hex}"
    await api.subscribe(receiver.url("/hook"))
    async with system.dispatcher():
        span = NonRecordingSpan(SpanContext(int(trace, 16), 1, is_remote=True, trace_flags=TraceFlags(1)))
        token = context.attach(traces.set_span_in_context(span))
        try:
            async with system.publisher() as publisher:
                await publisher.publish("order.created", {"n": 1})
        finally:
            context.detach(token)
        (request,) = await receiver.wait_for(1)
    assert request.headers["traceparent"].split("-")[1] == trace


@pytest.mark.parametrize("attempts", [3])
async def test_every_attempt_has_the_same_id_and_a_fresh_signature(
    system: System, api: Api, receiver: Receiver, attempts: int
) -> None:
    subscription = await api.subscribe(
        receiver.behave("/hook", Behaviour(fail_first=attempts - 1)), retry_policy={"delays_s": [0.5] * attempts}
    )
    async with system.dispatcher(), system.publisher() as publisher:
        published = await publisher.publish("order.created", {"n": 1}, time=datetime(2026, 1, 31, 12, tzinfo=UTC))
        requests = await receiver.wait_for(attempts, deadline_s=20)
    assert {request.webhook_id for request in requests} == {published.id}
    assert {request.body for request in requests} == {
        b'{"type":"order.created","timestamp":"2026-01-31T12:00:00Z","data":{"n":1}}'
    }
    for request in requests:
        Webhook(subscription["secret"]).verify(request.body, dict(request.headers))
    stamps = [int(request.headers["webhook-timestamp"]) for request in requests]
    assert stamps == sorted(set(stamps))
