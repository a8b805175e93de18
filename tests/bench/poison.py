"""What good events lose when every third message is poison: RabbitMQ, PostgreSQL, dispatcher, receiver on one machine.

In two ways. How long good ones take, published at a steady rate that the machine can carry: no longer, if they never
wait for a burial. And how fast a full queue is emptied, by a dispatcher that has more to do than it can: there a burial
costs what it costs.
"""

import asyncio
import itertools
from collections.abc import Sequence
from time import monotonic

from infra.broker.base import Outgoing, ToEvents
from schemas.messages import Message
from tests.bench import figures
from tests.bench.installation import dispatchers, installation
from tests.bench.traffic import beside, p, steady
from tests.support.postgres import Postgres, running_postgres
from tests.support.rabbit_server import running_server
from tests.support.receivers import Receiver
from tests.support.system import System
from tests.support.waiting import eventually

GOOD = 3000
ROUNDS = 5
PER_S = 100
SECONDS = 15.0


async def measure() -> figures.Figures:
    """With poison and without: milliseconds from publish to request, and good events delivered a second."""
    alone_ms, amid_ms, alone_per_s, amid_per_s = [], [], [], []
    with running_server() as rabbit, running_postgres(durable=True) as postgres:
        for _ in range(ROUNDS):
            alone_ms.append(await _latencies_ms(postgres, rabbit.url, poison=False))
            amid_ms.append(await _latencies_ms(postgres, rabbit.url, poison=True))
            alone_per_s.append(await _per_s(postgres, rabbit.url, poison=0))
            amid_per_s.append(await _per_s(postgres, rabbit.url, poison=GOOD // 2))
    return {
        "poison.alone_p50_ms": [p(50, one) for one in alone_ms],
        "poison.p50_ratio": figures.ratios([p(50, one) for one in amid_ms], [p(50, one) for one in alone_ms]),
        "poison.p99_ratio": figures.ratios([p(99, one) for one in amid_ms], [p(99, one) for one in alone_ms]),
        "poison.saturated_alone_per_s": alone_per_s,
        "poison.saturated_ratio": figures.ratios(amid_per_s, alone_per_s),
    }


async def _latencies_ms(postgres: Postgres, broker_url: str, *, poison: bool) -> list[float]:
    """Of good ones at a steady rate, with half as many poisonous ones among them."""
    async with (
        installation(postgres, broker_url) as system,
        Receiver() as receiver,
        system.api() as api,
        dispatchers(system, 1),
        system.publisher() as publisher,
        system.broker() as broker,
    ):
        await api.subscribe(receiver.url("/hook"))

        async def poisoning() -> None:
            for number in itertools.count():
                junk = Message(b"poison %d %b" % (number, b"x" * 900))
                await broker.publish(Outgoing(ToEvents("order.created"), junk), timeout_s=10)
                await asyncio.sleep(2 / PER_S)

        async with beside(poisoning() if poison else asyncio.sleep(0)):
            came = await steady(publisher, receiver, ["order.created"], path="/hook", per_s=PER_S, seconds=SECONDS)
        return [one.latency_ms for one in came]


async def _per_s(postgres: Postgres, broker_url: str, *, poison: int) -> float:
    """Good events delivered a second, of a queue that has so much poison among them."""
    async with installation(postgres, broker_url) as system, Receiver() as receiver, system.api() as api:
        await api.subscribe(receiver.url("/hook"))
        async with system.broker() as broker:
            assert set(await broker.publish_many(_stream(poison), timeout_s=60)) == {None}
        async with dispatchers(system, 1):
            requests = await receiver.wait_for(GOOD, deadline_s=120)
            ended_s = monotonic()
            # All of it is paid for within a round: what is buried is also kept.
            await eventually(lambda: _kept(system, poison), deadline_s=120)
        return (GOOD - 1) / (ended_s - requests[0].at_s)


def _stream(poison: int) -> Sequence[Outgoing]:
    messages = []
    for number in range(GOOD):
        body = b'{"type": "order.created", "id": "%d", "data": {"n": %d, "text": "%b"}}' % (number, number, b"x" * 500)
        messages.append(Message(body))
        if number % 2 and number // 2 < poison:
            messages.append(Message(b"poison %d %b" % (number, b"x" * 500)))
    return [Outgoing(ToEvents("order.created"), message) for message in messages]


async def _kept(system: System, poison: int) -> bool:
    return bool(await system.value("SELECT count(*) FROM dead_letters") == poison)


if __name__ == "__main__":
    figures.run(measure)
