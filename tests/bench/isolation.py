"""What endpoints that hang cost those that are well: latency from publish to request, with them over without.

Three dispatchers over RabbitMQ. The healthy ones get a steady stream; in every other round there are endpoints beside
them that never answer, and time out after the 15 s that are the default.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from infra.broker.base import Outgoing, ToEvents
from producer.publisher import EventPublisher
from schemas.messages import Message
from tests.bench import figures
from tests.bench.installation import dispatchers, installation
from tests.bench.traffic import WARM_S, beside, p, steady
from tests.support.postgres import Postgres, running_postgres
from tests.support.rabbit_server import running_server
from tests.support.receivers import Receiver
from tests.support.system import Api, System
from tests.support.waiting import eventually

ROUNDS = 3
SECONDS = 20.0
BACKLOG = 10_000
HANGING = 100

Publishing = Callable[[EventPublisher], Awaitable[None]]
Trouble = Callable[[System, Api, str], Awaitable[Publishing]]  # with the URL of an endpoint that never answers


async def measure_one() -> figures.Figures:
    """20 healthy endpoints at 100/s in all; with one that hangs and has a backlog of 10,000."""
    return await _measure("isolation", _one_with_a_backlog, endpoints=20, per_s=100)


async def measure_many() -> figures.Figures:
    """400 healthy endpoints at 200/s in all; with 100 more that hang and get as much each."""
    return await _measure("isolation.many", _many, endpoints=400, per_s=200)


async def _measure(name: str, trouble: Trouble, *, endpoints: int, per_s: float) -> figures.Figures:
    alone, troubled = [], []
    with running_server() as rabbit, running_postgres(durable=True) as postgres:
        for _ in range(ROUNDS):
            alone.append(await _latencies_ms(postgres, rabbit.url, _none, endpoints=endpoints, per_s=per_s))
            troubled.append(await _latencies_ms(postgres, rabbit.url, trouble, endpoints=endpoints, per_s=per_s))
    joint = "." if name == "isolation" else "_"
    return {
        f"{name}{joint}alone_p50_ms": [p(50, one) for one in alone],
        f"{name}{joint}alone_p99_ms": [p(99, one) for one in alone],
        f"{name}{joint}p50_ms": [p(50, one) for one in troubled],
        f"{name}{joint}p99_ms": [p(99, one) for one in troubled],
        f"{name}{joint}p99_ratio": figures.ratios([p(99, one) for one in troubled], [p(99, one) for one in alone]),
    }


async def _latencies_ms(
    postgres: Postgres, broker_url: str, trouble: Trouble, *, endpoints: int, per_s: float
) -> list[float]:
    types = [f"well.n{number}" for number in range(endpoints)]
    async with (
        installation(postgres, broker_url) as system,
        Receiver() as receiver,
        _abyss() as abyss,
        system.api() as api,
        dispatchers(system, 3),
        system.publisher() as publisher,
    ):
        for event_type in types:
            await api.subscribe(receiver.url("/well"), event_type)
        publish = await trouble(system, api, abyss)
        async with beside(publish(publisher)):
            came = await steady(publisher, receiver, types, path="/well", per_s=per_s, seconds=SECONDS)
    return [one.latency_ms for one in came]


@asynccontextmanager
async def _abyss() -> AsyncIterator[str]:
    """A server that takes every connection and reads all that comes, and never says a word."""

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while await reader.read(65_536):
                pass
        writer.close()

    server = await asyncio.start_server(read, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hangs"


async def _none(_: System, __: Api, ___: str) -> Publishing:
    async def nothing(_: EventPublisher) -> None:
        pass

    return nothing


async def _one_with_a_backlog(system: System, api: Api, abyss: str) -> Publishing:
    await api.subscribe(abyss, "flood")
    body = b'{"type": "flood", "id": "%d", "data": {"text": "%b"}}'
    async with system.broker() as broker:
        flood = [Outgoing(ToEvents("flood"), Message(body % (number, b"x" * 900))) for number in range(BACKLOG)]
        assert set(await broker.publish_many(flood, timeout_s=60)) == {None}

    async def admitted() -> bool:
        return bool(await system.value("SELECT count(*) FROM deliveries") == BACKLOG)

    await eventually(admitted, deadline_s=60)
    return await _none(system, api, abyss)


async def _many(_: System, api: Api, abyss: str) -> Publishing:
    types = [f"hangs.n{number}" for number in range(HANGING)]
    for event_type in types:
        await api.subscribe(abyss, event_type)

    async def publish(publisher: EventPublisher) -> None:
        """As much for each of them as for each healthy one, from when those are measured."""
        await asyncio.sleep(WARM_S)
        for number in range(round(SECONDS * HANGING / 2)):
            await publisher.publish(types[number % HANGING], {"text": "x" * 900})
            await asyncio.sleep(2 / HANGING)

    return publish


if __name__ == "__main__":
    figures.run(measure_one, measure_many)
