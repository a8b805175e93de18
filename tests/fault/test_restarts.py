"""RabbitMQ and PostgreSQL are stopped, killed and started again under load; and RabbitMQ takes no publishes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

import pytest

from producer.publisher import EventPublisher
from schemas.errors import PublishRefused, PublishTimeout
from tests.support.accounting import Accounting
from tests.support.load import BY_API, BY_PUBLISHER, LIMIT_S, under_load
from tests.support.postgres import Postgres
from tests.support.rabbit_server import RabbitServer
from tests.support.receivers import Behaviour, Receiver
from tests.support.system import System
from tests.support.waiting import eventually

# Longer than a restart takes on a busy machine: so nobody loses the database for that long, and nothing may repeat.
LIVENESS_S = 30
EVENTS = 10


class Server(Protocol):
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...


@pytest.fixture(params=["rabbitmq", "postgres"])
def rabbit(request: pytest.FixtureRequest) -> RabbitServer | None:
    """The broker's server, or None where PostgreSQL is the broker too."""
    if request.param == "postgres":
        return None
    server: RabbitServer = request.getfixturevalue("rabbit_server")
    return server


async def test_servers_that_are_stopped_or_killed_under_load_cost_nothing(
    rabbit: RabbitServer | None, own_postgres: Postgres, receiver: Receiver
) -> None:
    """What was confirmed arrives, each attempt is made once; what cannot be confirmed is refused in time."""
    database_url = own_postgres.dsn(await own_postgres.create_database())
    system = System(database_url, rabbit.url if rabbit else database_url)
    # Each server, and who cannot publish without it. The API asks the database first whether it knows the event.
    servers: list[tuple[Server, tuple[str, ...]]] = [(own_postgres, (BY_API,) if rabbit else (BY_API, BY_PUBLISHER))]
    if rabbit is not None:
        servers.append((rabbit, (BY_API, BY_PUBLISHER)))
    well, fails = receiver.url("/well"), receiver.behave("/fails", Behaviour(fail_fraction=0.2))
    changes = {"liveness_s": LIVENESS_S, "max_in_hand": 400}
    async with system.api() as api, system.dispatcher(**changes), system.dispatcher(**changes):
        await api.subscribe(well)
        await api.subscribe(fails, retry_policy={"delays_s": [1.0] * 20})
        async with under_load(system, api) as load:
            await load.flows(receiver, "/well")
            for server, needed_by in servers:
                for end in (server.stop, server.kill):
                    await asyncio.to_thread(end)
                    await load.refuses(*needed_by)
                    await asyncio.to_thread(server.start)
                    await load.flows(receiver, "/well")
        await load.account(Accounting(system, [receiver]), well, fails)
    delivered = [(one.webhook_id, one.path) for one in receiver.requests if one.status == 200]
    assert len(delivered) == len(set(delivered))


async def test_an_alarm_that_blocks_publishers_holds_up_nothing_that_was_accepted(
    rabbit_server: RabbitServer, database_url: str, receiver: Receiver
) -> None:
    """Publishers are told, and truly. A dispatcher that starts now acks, delivers, and retries without its hints."""
    system = System(database_url, rabbit_server.url)
    retried = receiver.behave("/retried", Behaviour(fail_first=EVENTS))
    dies = receiver.behave("/dies", Behaviour(status=500))
    books = Accounting(system, [receiver])
    async with system.api() as api, AsyncExitStack() as later:
        await api.subscribe(retried, retry_policy={"delays_s": [1.0] * 5})
        await api.subscribe(dies, retry_policy={"delays_s": []})
        publisher = await later.enter_async_context(EventPublisher(system.broker_url, source="tests"))

        async def publish(external_id: str) -> None:
            await publisher.publish("order.created", {"n": 1}, id=external_id)
            books.published(external_id, retried, dies)

        async def post(external_id: str) -> tuple[int, str]:
            event = {"type": "order.created", "data": {}, "source": "tests", "id": external_id}
            async with asyncio.timeout(LIMIT_S):
                status, answer = await api.ask("POST", "/v1/events", event)
            if status == 202:
                books.published(external_id, retried, dies)
            return status, answer.get("error", {}).get("code", "")

        for number in range(EVENTS):
            await publish(f"before-{number}")
        async with alarm(rabbit_server):
            # RabbitMQ says so only when it meets a publish: what the first one brings may be stored after all.
            with pytest.raises(PublishTimeout, match="alarm"):
                async with asyncio.timeout(LIMIT_S):
                    await publish("unknown-1")
            assert await post("unknown-2") == (503, "broker_unavailable")
            with pytest.raises(PublishRefused, match="alarm"):
                async with asyncio.timeout(LIMIT_S):
                    await publish("refused-1")
            assert await post("refused-2") == (503, "broker_refused")
            await later.enter_async_context(system.dispatcher())
            await system.settled({"delivered": EVENTS, "dead": EVENTS}, deadline_s=60)
            told = "SELECT count(*) FROM dead_letters WHERE published_at IS NOT NULL"
            assert await system.value(told) == 0  # the letters of the dead wait, too

        async def taken_again() -> bool:
            return await post("after-1") == (202, "")

        await eventually(taken_again, deadline_s=30)
        await publish("after-2")
        await books.settled()
        stored = {row["external_id"] for row in await system.fetch("SELECT external_id FROM events")}
        for external_id in stored & {"unknown-1", "unknown-2"}:
            books.published(external_id, retried, dies)
        await books.check()


@asynccontextmanager
async def alarm(server: RabbitServer) -> AsyncIterator[None]:
    """As if RabbitMQ had no memory left."""
    await asyncio.to_thread(server.ctl, "set_vm_memory_high_watermark", "0.000001")
    try:
        yield
    finally:
        await asyncio.to_thread(server.ctl, "set_vm_memory_high_watermark", "0.4")
