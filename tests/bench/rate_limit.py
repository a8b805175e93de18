"""How much of its rate limit an endpoint with a backlog gets, and what that costs endpoints that have no limit.

Three dispatchers over RabbitMQ. The backlog of the fastest is 100,000 deliveries, which it does not come to the end of.
"""

import asyncio

from tests.bench import figures
from tests.bench.installation import dispatchers, installation
from tests.bench.traffic import p, steady
from tests.support.backlog import add_deliveries
from tests.support.postgres import Postgres, running_postgres
from tests.support.rabbit_server import running_server
from tests.support.receivers import Receiver
from tests.support.system import System

RATES = (5, 50, 500)  # requests a second
HELD = 100_000
MEASURED_S = 10.0
STEADY_S = 12.0
ROUNDS = 3
ENDPOINTS = 20
HEALTHY_PER_S = 100.0


async def measure() -> figures.Figures:
    """Three limited endpoints, each by itself; then 20 healthy ones at 100/s in all, without and with one draining.

    The aim is that it costs the others nothing at 50/s. At 500/s there are six times as many deliveries on one machine,
    and the others feel that work, whoever it is for.
    """
    with running_server() as rabbit, running_postgres(durable=True) as postgres:
        used = {f"rate_limit.used_ratio_{rate}": [await _used(postgres, rabbit.url, rate)] for rate in RATES}
        latencies_ms: dict[int, list[list[float]]] = {0: [], 50: [], 500: []}
        for _ in range(ROUNDS):
            for rate, rounds in latencies_ms.items():
                rounds.append(await _latencies_ms(postgres, rabbit.url, draining=rate))
    p99s = {rate: [p(99, one) for one in rounds] for rate, rounds in latencies_ms.items()}
    return used | {
        "rate_limit.others_alone_p99_ms": p99s[0],
        "rate_limit.others_p99_ratio_50": figures.ratios(p99s[50], p99s[0]),
        "rate_limit.others_p99_ratio_500": figures.ratios(p99s[500], p99s[0]),
    }


async def _used(postgres: Postgres, broker_url: str, rate: int) -> float:
    """The share of its rate that came, from the first request on, while there was a backlog."""
    held = HELD if rate == max(RATES) else 3 * round(rate * MEASURED_S)
    async with installation(postgres, broker_url) as system, Receiver() as receiver, system.api() as api:
        limited = await api.subscribe(receiver.url("/limited"), rate_limit={"requests_per_s": rate, "burst": 1})
        await add_deliveries(system.database_url, limited["id"], held)
        async with dispatchers(system, 3):
            await receiver.wait_for(1, deadline_s=30)
            await asyncio.sleep(MEASURED_S)
            began_s = receiver.requests[0].at_s
            came = sum(one.at_s <= began_s + MEASURED_S for one in receiver.requests)
    return came / (rate * MEASURED_S)


async def _latencies_ms(postgres: Postgres, broker_url: str, *, draining: int) -> list[float]:
    """Of the healthy ones, with an endpoint of so many requests a second, which has a backlog, or without one."""
    types = [f"well.n{number}" for number in range(ENDPOINTS)]
    async with installation(postgres, broker_url) as system, Receiver() as receiver, system.api() as api:
        for event_type in types:
            await api.subscribe(receiver.url("/well"), event_type)
        if draining:
            await _drain(system, receiver, draining)
        async with dispatchers(system, 3), system.publisher() as publisher:
            came = await steady(publisher, receiver, types, path="/well", per_s=HEALTHY_PER_S, seconds=STEADY_S)
    return [one.latency_ms for one in came]


async def _drain(system: System, receiver: Receiver, rate: int) -> None:
    async with system.api() as api:
        limit = {"requests_per_s": rate, "burst": 1}
        limited = await api.subscribe(receiver.url("/limited"), "limited", rate_limit=limit)
    await add_deliveries(system.database_url, limited["id"], HELD)


if __name__ == "__main__":
    figures.run(measure)
