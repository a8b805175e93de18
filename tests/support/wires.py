"""An installation whose two wires, to the broker and to the database, go through a proxy each.

What runs `through` them meets their faults; who looks on, and publishes what has to be delivered, does it `direct`. In
the embedded mode both wires lead to the same server, and can be cut one without the other.
"""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from infra.broker.base import Broker, Outgoing, ToEvents
from infra.broker.open import open_broker
from producer.publisher import EventPublisher
from schemas.errors import BrokerError
from schemas.messages import Message
from tests.support.accounting import Accounting
from tests.support.points import Moment, Point, Step, Trap, trap
from tests.support.proxy import Direction, Proxy
from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, System

DEADLINE_S: Final = 120.0
_AGAIN_S: Final = 10.0
_SIZES_BYTES: Final = (1, 9, 50, 300, 2_000, 8_000)


@dataclass(frozen=True, slots=True)
class Wires:
    """`direct` and `through` are the same installation."""

    direct: System
    through: System
    broker: Proxy
    database: Proxy


@asynccontextmanager
async def open_wires(system: System) -> AsyncIterator[Wires]:
    """Put a proxy before the broker of an installation, and one before its database."""
    async with AsyncExitStack() as stack:
        database, database_url = await stack.enter_async_context(_before_postgres(system.database_url))
        if system.broker_url.startswith("amqp"):
            broker, broker_url = await stack.enter_async_context(_before_rabbitmq(system.broker_url))
        else:
            broker, broker_url = await stack.enter_async_context(_before_postgres(system.broker_url))
        through = System(database_url, broker_url)
        through._key = system._key
        yield Wires(system, through, broker, database)


@pytest.fixture
async def wires(system: System) -> AsyncIterator[Wires]:
    """Over each of the two brokers."""
    async with open_wires(system) as opened:
        yield opened


@asynccontextmanager
async def _before_rabbitmq(url: str) -> AsyncIterator[tuple[Proxy, str]]:
    there = urlsplit(url)
    async with Proxy((there.hostname or "127.0.0.1", there.port or 5672)) as proxy:
        place = f"{there.username}:{there.password}@" if there.username else ""
        # With a heartbeat of a second, a broker that says nothing any more is given up within six.
        yield proxy, f"amqp://{place}127.0.0.1:{proxy.port}{there.path}?heartbeat=1"


@asynccontextmanager
async def _before_postgres(dsn: str) -> AsyncIterator[tuple[Proxy, str]]:
    there = urlsplit(dsn)
    (folder,), (port,) = (parse_qs(there.query)[name] for name in ("host", "port"))
    here = Path(tempfile.mkdtemp(prefix="hookhare-wire-"))  # a test's own folder would be too long for a socket's path
    name = f".s.PGSQL.{port}"
    try:
        async with Proxy(f"{folder}/{name}", listen=str(here / name)) as proxy:
            yield proxy, there._replace(query=urlencode({"host": str(here), "port": port})).geturl()
    finally:
        shutil.rmtree(here, ignore_errors=True)


class Traffic:
    """Events to endpoints of three kinds, and messages that are no events, with the books of them.

    `/good` takes everything; `/flaky` fails the first attempt at the event published last; `/many` is good, too.
    """

    def __init__(
        self, wires: Wires, receiver: Receiver, direct: EventPublisher, through: EventPublisher, broker: Broker
    ) -> None:
        self.books = Accounting(wires.direct, [receiver])
        self.receiver = receiver
        self._direct = direct
        self._through = through
        self._broker = broker
        self._number = 0

    async def publish(self, path: str = "/good", *, through: bool = False) -> str:
        """Publish an event for an endpoint, and return its public id."""
        self._number += 1
        number = self._number
        publisher = self._through if through else self._direct
        for _ in range(10):
            with suppress(BrokerError):  # which says to publish it again as the same one
                told = await publisher.publish(path.strip("/"), {"n": number}, id=str(number))
                self.books.published(told.external_id, self.receiver.url(path))
                return told.id
        raise AssertionError(f"event {number} could not be published")

    async def publish_through(self) -> None:
        await self.publish(through=True)

    async def publish_failing(self) -> None:
        """An event whose first attempt fails."""
        self.receiver.behave("/flaky", Behaviour(fail_first=1))
        await self.publish("/flaky")

    async def publish_many(self) -> None:
        """More for one endpoint than it takes at once, if `max_in_hand` is 16: its backlog is fed."""
        for _ in range(4):
            await self.publish("/many")

    async def send_junk(self) -> None:
        self._number += 1
        body = b"junk %d" % self._number
        await self._broker.publish(
            Outgoing(ToEvents("junk"), Message(body, message_id=str(self._number))), timeout_s=20
        )
        self.books.buried("unreadable", body)

    async def flows(self) -> None:
        """An event that is published now arrives."""
        webhook_id = await self.publish()
        await self.receiver.wait_until(
            lambda came: any(one.webhook_id == webhook_id for one in came), path="/good", deadline_s=DEADLINE_S
        )

    async def broken_off(self, wire: Proxy) -> None:
        """Break a wire off after so many bytes of either direction, amid whatever they are, while all kinds flow.

        Connecting anew is broken off too, if that is so long.
        """
        for size_bytes in _SIZES_BYTES:
            for direction in Direction:
                before = wire.cuts
                wire.cut_after(size_bytes, direction)
                while wire.cuts == before:
                    await self.publish_failing()
                    await self.send_junk()
                    await self.flows()

    async def everything_flows(self) -> None:
        """Messages of every kind come through, and a retry by its work item, not by the reconciler."""
        with trap(Point(Moment.AFTER, Step.COMMIT, "CLAIM_DUE"), lambda: None) as claimed:
            while not claimed.sprung.is_set():
                await self.publish_failing()
                await self.send_junk()
                await self.publish_many()
                await self.publish_through()
                await self.books.settled(deadline_s=DEADLINE_S)


@asynccontextmanager
async def open_traffic(wires: Wires, api: Api, receiver: Receiver) -> AsyncIterator[Traffic]:
    await api.subscribe(receiver.url("/good"), "good")
    await api.subscribe(receiver.url("/flaky"), "flaky", retry_policy={"delays_s": [1.0] * 5})
    await api.subscribe(receiver.url("/many"), "many")
    async with (
        wires.direct.publisher() as direct,
        EventPublisher(wires.through.broker_url, source="tests", timeout_s=5) as through,
        open_broker(wires.direct.settings()) as broker,
    ):
        yield Traffic(wires, receiver, direct, through, broker)


async def provoked(provoke: Callable[[], Awaitable[object]], reached: Trap) -> None:
    """Give reason to come to a point, again and again until somebody does.

    Once may be too little: on a busy machine four events can come so slowly that their endpoint never has a backlog.
    """
    async with asyncio.timeout(DEADLINE_S):
        while not reached.sprung.is_set():
            await provoke()
            with suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN_S):
                    await reached.sprung.wait()


async def lose(
    proxy: Proxy, direction: Direction, step: Step, what: str, provoke: Callable[[], Awaitable[object]]
) -> None:
    """Cut the wire amid this conversation, with all that was said in this direction on its way."""

    def cut() -> None:
        proxy.cut()
        proxy.resume()

    with (
        trap(Point(Moment.BEFORE, step, what), lambda: proxy.stall(direction)),
        trap(Point(Moment.SENT, step, what), cut) as amid,
    ):
        await provoked(provoke, amid)
