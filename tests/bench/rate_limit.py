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
ENDPOINTS = 20
HEALTHY_PER_S = 100.0


async def measure() -> figures.Figures:
    """Three limited endpoints, each by itself; then 20 healthy ones at 100/s in all, without and with one draining."""
    with running_server() as rabbit, running_postgres(durable=True) as postgres:
        used = {f"rate_limit.used_ratio_{rate}": [await _used(postgres, rabbit.url, rate)] for rate in RATES}
        alone = await _latencies_ms(postgres, rabbit.url, draining=False)
        beside = await _latencies_ms(postgres, rabbit.url, draining=True)
    return used | {
        "rate_limit.others_alone_p99_ms": [p(99, alone)],
        "rate_limit.others_p99_ms": [p(99, beside)],
        "rate_limit.others_p99_ratio": figures.ratios([p(99, beside)], [p(99, alone)]),
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


async def _latencies_ms(postgres: Postgres, broker_url: str, *, draining: bool) -> list[float]:
    types = [f"well.n{number}" for number in range(ENDPOINTS)]
    async with installation(postgres, broker_url) as system, Receiver() as receiver, system.api() as api:
        for event_type in types:
            await api.subscribe(receiver.url("/well"), event_type)
        if draining:
            await _drain(system, receiver)
        async with dispatchers(system, 3), system.publisher() as publisher:
            came = await steady(publisher, receiver, types, path="/well", per_s=HEALTHY_PER_S, seconds=STEADY_S)
    return [one.latency_ms for one in came]


async def _drain(system: System, receiver: Receiver) -> None:
    async with system.api() as api:
        rate = {"requests_per_s": max(RATES), "burst": 1}
        limited = await api.subscribe(receiver.url("/limited"), "limited", rate_limit=rate)
    await add_deliveries(system.database_url, limited["id"], HELD)


if __name__ == "__main__":
    figures.run(measure)
