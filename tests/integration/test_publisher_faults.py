"""`EventPublisher` over a network that fails: a proxy stands between it and the broker."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest

from infra.broker.base import Broker, Queue
from infra.broker.open import open_broker
from infra.settings import read_settings
from producer.events import NewEvent, NotAllPublished
from producer.publisher import EventPublisher
from schemas.errors import BrokerError, BrokerUnavailable, PublishTimeout
from schemas.events import Event, read_event
from tests.support.postgres import Postgres
from tests.support.proxy import Direction, Proxy
from tests.support.waiting import eventually

LIMIT_S = 20
SLACK_S = 3


@dataclass(frozen=True)
class Line:
    """A proxied broker: `url` leads through the proxy, `direct` and `broker` do not."""

    url: str
    direct: str
    proxy: Proxy
    broker: Broker

    async def stored(self) -> Sequence[Event]:
        """What the broker has by now, up to a last event of our own."""
        async with EventPublisher(self.direct) as events:
            await events.publish("the.end", None)
        found: list[Event] = []
        async with asyncio.timeout(LIMIT_S), self.broker.consume(Queue.EVENTS, prefetch=1000) as consumer:
            while True:
                received = await consumer.receive(1000)
                await consumer.ack(received)
                for one in received:
                    event = read_event(one.message, now=datetime.now(UTC), fresh_id="none", max_bytes=1 << 20)
                    assert isinstance(event, Event)
                    if event.type == "the.end":
                        return found
                    found.append(event)


@pytest.fixture(params=["rabbitmq", "postgresql"])
def direct_url(request: pytest.FixtureRequest) -> str:
    if request.param == "rabbitmq":
        url: str = request.getfixturevalue("rabbit_url")
        return url
    server: Postgres = request.getfixturevalue("postgres")
    return server.tcp_dsn(urlsplit(request.getfixturevalue("database_url")).path.removeprefix("/"))


@pytest.fixture
async def line(direct_url: str) -> AsyncIterator[Line]:
    there = urlsplit(direct_url)
    assert there.hostname is not None
    assert there.port is not None
    async with (
        Proxy((there.hostname, there.port)) as proxy,
        open_broker(read_settings(broker_url=direct_url)) as broker,
    ):
        url = direct_url.replace(f"{there.hostname}:{there.port}", f"127.0.0.1:{proxy.port}")
        yield Line(url, direct_url, proxy, broker)


async def test_a_connection_cut_before_the_confirm_is_made_up_for_with_the_same_event(line: Line) -> None:
    async with EventPublisher(line.url, source="shop") as events:
        await events.publish("order.created", 0)
        line.proxy.stall(Direction.TO_CLIENT)  # RabbitMQ stores what is published, and its confirm never comes
        before = line.proxy.passed_bytes[Direction.TO_SERVER]
        publishing = asyncio.create_task(events.publish("order.created", 1))

        async def sent() -> bool:
            return line.proxy.passed_bytes[Direction.TO_SERVER] > before

        await eventually(sent, deadline_s=LIMIT_S)
        assert not publishing.done()
        line.proxy.cut()
        line.proxy.resume()
        told = await publishing
    copies = [event for event in await line.stored() if event.data == b"1"]
    assert copies
    assert {event.external_id for event in copies} == {told.external_id}
    assert len({event.accepted_ms for event in copies}) == 1  # so that each has the public id that was told


async def test_many_are_all_stored_although_the_connection_was_cut_amid_them(line: Line) -> None:
    async with EventPublisher(line.url, source="shop") as events:
        await events.publish("order.created", "first")
        line.proxy.cut_after(200_000, Direction.TO_SERVER)
        told = await events.publish_many(NewEvent("order.created", "x" * 500, id=str(number)) for number in range(900))
        assert line.proxy.cuts == 1
    stored = {event.external_id for event in await line.stored()}
    assert {event.external_id for event in told} == {str(number) for number in range(900)} <= stored


async def test_a_broker_that_answers_nothing_is_a_timeout_with_the_id_to_try_again(line: Line) -> None:
    async with EventPublisher(line.url, source="shop", timeout_s=1) as events:
        await events.publish("order.created", 0)
        line.proxy.stall()
        started_s = time.monotonic()
        with pytest.raises(BrokerError) as caught:
            await events.publish("order.created", 1)
        assert time.monotonic() - started_s < 1 + SLACK_S
        assert isinstance(caught.value, PublishTimeout)
        (note,) = caught.value.__notes__
        assert "publish this event again as the same one: id='" in note
        line.proxy.resume()


async def test_a_broker_that_is_away_is_told_once_by_the_error_and_not_by_aiormqs_log(
    unused_tcp_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(BrokerUnavailable):
        async with EventPublisher(f"amqp://127.0.0.1:{unused_tcp_port}/", source="shop", timeout_s=1) as events:
            await events.publish("order.created", 0)
    assert not [record for record in caplog.records if record.name.startswith("aiormq")]


async def test_a_broker_that_went_away_is_an_error_in_time_and_then_it_works_again(line: Line) -> None:
    async with EventPublisher(line.url, source="shop", timeout_s=1) as events:
        await events.publish("order.created", 0)
        line.proxy.refuse()
        line.proxy.cut()
        started_s = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            await events.publish("order.created", 1)
        with pytest.raises(NotAllPublished) as caught:
            await events.publish_many(NewEvent("order.created", number) for number in range(10_000))
        # Not a second for each thousand: when one thousand fails, the rest is not tried.
        assert time.monotonic() - started_s < 2 * (1 + SLACK_S)
        assert len(caught.value.failed) == 10_000
        failed = caught.value.failed[:1500]
        line.proxy.accept()
        async with asyncio.timeout(LIMIT_S):
            while True:
                try:
                    again = await events.publish_many(failure.event for failure in failed)
                    break
                except NotAllPublished:
                    pass  # the connection is not back yet
    assert [event.external_id for event in again] == [failure.event.id for failure in failed]
    assert len(await line.stored()) >= 1501
