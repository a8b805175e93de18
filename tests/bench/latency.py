"""How long an event takes from being published to its request being received, at rates that the machine can carry.

One dispatcher over RabbitMQ and a database that flushes; 20 endpoints, each event for one of them.
"""

from tests.bench import figures
from tests.bench.installation import dispatchers, installation
from tests.bench.traffic import p, steady
from tests.support.postgres import Postgres, running_postgres
from tests.support.rabbit_server import running_server
from tests.support.receivers import Receiver

ROUNDS = 5
RATES = (50, 200)  # events a second
SECONDS = 10.0
ENDPOINTS = 20


async def measure() -> figures.Figures:
    """Percentiles of each round, in milliseconds."""
    found: dict[str, list[float]] = {}
    with running_server() as rabbit, running_postgres(durable=True) as postgres:
        for _ in range(ROUNDS):
            for rate in RATES:
                latencies_ms = await _latencies_ms(postgres, rabbit.url, rate)
                for percent in (50, 95, 99):
                    found.setdefault(f"latency_ms.at_{rate}.p{percent}", []).append(p(percent, latencies_ms))
    return found


async def _latencies_ms(postgres: Postgres, broker_url: str, rate: float) -> list[float]:
    types = [f"t.n{number}" for number in range(ENDPOINTS)]
    async with (
        installation(postgres, broker_url) as system,
        Receiver() as receiver,
        system.api() as api,
        dispatchers(system, 1),
        system.publisher() as publisher,
    ):
        for event_type in types:
            await api.subscribe(receiver.url("/hook"), event_type)
        came = await steady(publisher, receiver, types, path="/hook", per_s=rate, seconds=SECONDS)
    return [one.latency_ms for one in came]


if __name__ == "__main__":
    figures.run(measure)
