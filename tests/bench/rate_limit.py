"""How much of its rate limit an endpoint with a backlog gets, and what that costs endpoints that have no limit.

Three dispatchers over RabbitMQ. The backlog of the fastest is 100,000 deliveries, which it does not come to the end of.
"""

import asyncio

from tests.bench import figures
from tests.bench.installation import dispatchers, installation
from tests.bench.traffic import beside, p, steady
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
    """Three limited endpoints, each by itself; then 20 healthy ones at 100/s in all, beside one more that gets so many.

    Either it drains a backlog at its limit, or it has no limit, and 50 events a second are published for it: then they
    are as much work for the machine, and `…_to_live` says what is left of the ratio. (With 500, publishing them from
    this one process is what would be measured.)
    """
    with running_server() as rabbit, running_postgres(durable=True) as postgres:
        used = {f"rate_limit.used_ratio_{rate}": [await _used(postgres, rabbit.url, rate)] for rate in RATES}
        alone_ms, live_ms, slow_ms, fast_ms = [], [], [], []
        for _ in range(ROUNDS):
            alone_ms.append(await _p99_ms(postgres, rabbit.url))
            live_ms.append(await _p99_ms(postgres, rabbit.url, live=50))
            slow_ms.append(await _p99_ms(postgres, rabbit.url, draining=50))
            fast_ms.append(await _p99_ms(postgres, rabbit.url, draining=500))
    return {
        **used,
        "rate_limit.others_alone_p99_ms": alone_ms,
        "rate_limit.others_p99_ratio_50": figures.ratios(slow_ms, alone_ms),
        "rate_limit.others_p99_ratio_50_to_live": figures.ratios(slow_ms, live_ms),
        "rate_limit.others_p99_ratio_500": figures.ratios(fast_ms, alone_ms),
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


async def _p99_ms(postgres: Postgres, broker_url: str, *, draining: int = 0, live: int = 0) -> float:
    """Of the healthy ones, beside an endpoint that drains a backlog at this limit, or gets so many events a second."""
    types = [f"well.n{number}" for number in range(ENDPOINTS)]
    async with installation(postgres, broker_url) as system, Receiver() as receiver, system.api() as api:
        for event_type in types:
            await api.subscribe(receiver.url("/well"), event_type)
        await api.subscribe(receiver.url("/live"), "live")
        if draining:
            await _drain(system, receiver, draining)
        for statement in "CHECKPOINT", "VACUUM (ANALYZE)":  # whose work comes later, in the midst of a measurement
            await system.fetch(statement)
        async with dispatchers(system, 3), system.publisher() as publisher:
            also = steady(publisher, receiver, ["live"], path="/live", per_s=live, seconds=STEADY_S) if live else None
            async with beside(also or asyncio.sleep(0)):
                came = await steady(publisher, receiver, types, path="/well", per_s=HEALTHY_PER_S, seconds=STEADY_S)
    return p(99, [one.latency_ms for one in came])


async def _drain(system: System, receiver: Receiver, rate: int) -> None:
    async with system.api() as api:
        limit = {"requests_per_s": rate, "burst": 1}
        limited = await api.subscribe(receiver.url("/limited"), "limited", rate_limit=limit)
    await add_deliveries(system.database_url, limited["id"], HELD)


if __name__ == "__main__":
    figures.run(measure)
