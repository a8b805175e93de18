"""`EventPublisher` over both brokers: what arrives, and what its caller is told when it does not."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from infra.broker.base import Broker, Queue
from infra.broker.open import open_broker
from infra.settings import read_settings
from producer.events import NewEvent, NotAllPublished, RawJSON
from producer.publisher import EventPublisher
from schemas.errors import BrokerUnavailable, ConfigurationError, InvalidInput, Unroutable
from schemas.events import Event, read_event
from tests.support.rabbit_server import free_port

LIMIT_S = 20


@pytest.fixture(params=["rabbitmq", "postgresql"])
def broker_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue("rabbit_url" if request.param == "rabbitmq" else "database_url")
    return url


@pytest.fixture
async def dispatcher_side(broker_url: str) -> AsyncIterator[Broker]:
    async with open_broker(read_settings(broker_url=broker_url)) as broker:
        yield broker


async def arrived(broker: Broker, count: int) -> Sequence[Event]:
    """The next `count` events in the queue, in order."""
    events: list[Event] = []
    async with asyncio.timeout(LIMIT_S), broker.consume(Queue.EVENTS, prefetch=500) as consumer:
        while len(events) < count:
            received = await consumer.receive(count - len(events))
            for one in received:
                event = read_event(one.message, now=datetime.now(UTC), fresh_id="none", max_bytes=1 << 20)
                assert isinstance(event, Event)
                events.append(event)
            await consumer.ack(received)
    return events


async def test_an_event_arrives_as_it_was_published(broker_url: str, dispatcher_side: Broker) -> None:
    when = datetime(2025, 6, 15, 12, 30, 1, 250_000, tzinfo=UTC)
    async with EventPublisher(broker_url, source="shop") as events:
        told = await events.publish(
            "order.created",
            RawJSON(b'{"total":1.10}'),
            tenant="acme",
            id="4711",
            subject="order/4711",
            time=when,
            headers={"X-Region": 'e"u'},
        )
    (event,) = await arrived(dispatcher_side, 1)
    assert (event.tenant, event.source, event.external_id) == ("acme", "shop", "4711")
    assert (event.type, event.subject, event.time, event.data) == (
        "order.created",
        "order/4711",
        when,
        b'{"total":1.10}',
    )
    assert event.headers == {"X-Region": 'e"u'}
    assert event.accepted_ms is not None
    assert abs(event.accepted_ms / 1000 - time.time()) < LIMIT_S
    assert told.external_id == "4711"
    assert told.id.startswith("evt_")


async def test_many_arrive_and_each_is_told_of_in_order(broker_url: str, dispatcher_side: Broker) -> None:
    async with EventPublisher(broker_url, source="shop") as events:
        told = await events.publish_many(NewEvent("order.created", number, id=str(number)) for number in range(2500))
    assert [event.external_id for event in told] == [str(number) for number in range(2500)]
    came = await arrived(dispatcher_side, 2500)
    assert {(event.external_id, event.data) for event in came} == {
        (str(number), str(number).encode()) for number in range(2500)
    }


async def test_tasks_share_one_publisher(broker_url: str, dispatcher_side: Broker) -> None:
    async with EventPublisher(broker_url) as events:
        told = await asyncio.gather(*(events.publish("order.created", number) for number in range(300)))
    came = await arrived(dispatcher_side, 300)
    assert {event.external_id for event in came} == {event.external_id for event in told}


async def test_one_invalid_event_keeps_all_from_being_sent(broker_url: str, dispatcher_side: Broker) -> None:
    async with EventPublisher(broker_url) as events:
        with pytest.raises(InvalidInput) as caught:
            await events.publish_many([NewEvent("good", 1), NewEvent("bad type", {2}), NewEvent("good", 3)])
        assert [problem.field for problem in caught.value.problems] == ["events[1].data"]
        await events.publish("after", None)
    assert [event.type for event in await arrived(dispatcher_side, 1)] == ["after"]


async def test_the_callers_trace_travels_along(broker_url: str, dispatcher_side: Broker) -> None:
    caller = NonRecordingSpan(SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1)))
    async with EventPublisher(broker_url) as events:
        with trace.use_span(caller):
            await events.publish("order.created", {})
        await events.publish("order.created", {})
    traced, untraced = await arrived(dispatcher_side, 2)
    assert traced.traceparent == f"00-{0xABC:032x}-{0xDEF:016x}-01"
    assert untraced.traceparent is None


async def test_publishing_is_a_span_and_the_event_continues_it(
    broker_url: str, dispatcher_side: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("producer.publisher._tracer", provider.get_tracer("test"))
    async with EventPublisher(broker_url) as events:
        await events.publish_many([NewEvent("order.created", 1), NewEvent("order.created", 2)])
    (span,) = exporter.get_finished_spans()
    assert span.name == "publish hookhare.events"
    assert span.attributes is not None
    assert span.attributes["messaging.batch.message_count"] == 2
    context = span.get_span_context()
    assert context is not None
    expected = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    for event in await arrived(dispatcher_side, 2):
        assert event.traceparent == expected


@pytest.mark.parametrize("scheme", ["amqp://guest:hunter2@", "postgresql://me:hunter2@"])
async def test_a_broker_that_is_away_is_an_error_in_time(scheme: str) -> None:
    started_s = time.monotonic()
    with pytest.raises(BrokerUnavailable) as caught:
        async with EventPublisher(f"{scheme}127.0.0.1:{free_port()}/x", timeout_s=2):
            pass
    assert time.monotonic() - started_s < 2 + 3
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "localhost:5672", "redis://localhost", "amqp", "http://me:hunter2@[::1"])
def test_a_url_that_names_no_broker_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ConfigurationError, match="must begin with amqp://") as caught:
        EventPublisher(url)
    assert "hunter2" not in str(caught.value)


def test_without_a_url_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOOKHARE_BROKER_URL", "HOOKHARE_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match="HOOKHARE_BROKER_URL: is not set"):
        EventPublisher()
    monkeypatch.setenv("HOOKHARE_DATABASE_URL", "postgresql://localhost/x")
    assert EventPublisher()._system == "postgresql"
    monkeypatch.setenv("HOOKHARE_BROKER_URL", "amqp://localhost")
    assert EventPublisher()._system == "rabbitmq"


async def test_without_the_topology_nothing_is_taken(bare_rabbit_url: str) -> None:
    async with EventPublisher(bare_rabbit_url, timeout_s=5) as events:
        with pytest.raises(Unroutable, match="hookhare topology --declare"):
            await events.publish("order.created", {})
        with pytest.raises(NotAllPublished) as caught:
            await events.publish_many([NewEvent("order.created", 1, id="a", source="s"), NewEvent("order.created", 2)])
    assert [type(failure.error) for failure in caught.value.failed] == [Unroutable, Unroutable]
    assert caught.value.failed[0].event.id == "a"
    assert caught.value.failed[1].event.id is not None
    assert caught.value.published == ()


async def test_it_must_be_open() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await EventPublisher("amqp://localhost").publish("order.created", {})
