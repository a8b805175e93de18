"""How many deliveries a dispatcher makes of a CPU-second, over a bare POST loop; and the whole machine of a second.

Each round has a queue emptied by dispatchers that are warm, at the settings of production and with a database that
flushes. They are stopped (SIGSTOP, for less than their liveness) while the queue is filled, so nothing is done before
its time is taken; and it is taken until everything is on record.
"""

import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

import psutil

from infra.broker.base import Outgoing, ToEvents
from schemas.messages import Message
from tests.bench import figures, raw
from tests.bench.cpu import cpu_s
from tests.bench.installation import dispatchers, installation
from tests.bench.sink import Sink, sink
from tests.support.postgres import Postgres, running_postgres
from tests.support.rabbit_server import PrivateNode, running_server
from tests.support.system import Api, System
from tests.support.waiting import eventually

ROUNDS = 5
DELIVERIES = 20_000
WARM = 1000  # events before
TYPES = 20
FLEETS = (1, 2, 3)  # dispatcher processes, of which the best number counts
_AT_ONCE = 5000
_BODY = b'{"type": "t.n%d", "id": "%d", "data": {"text": "%b"}}'


@dataclass(frozen=True, slots=True)
class Emptied:
    """How fast a full queue was emptied: deliveries a second, per CPU-second of the dispatchers, and of everything but
    the publisher: dispatchers, broker, database and receiver. `memory_mb` is the largest dispatcher's, resident."""

    per_s: float
    per_cpu_s: float
    per_system_cpu_s: float
    memory_mb: float


async def measure_efficiency() -> figures.Figures:
    """One dispatcher over RabbitMQ, at two fan-outs, beside the bare loop."""
    found: dict[str, list[float]] = {}
    with private_node() as rabbit, running_postgres(durable=True) as postgres:
        for _ in range(ROUNDS):
            async with sink() as receiver:
                bare = await raw.posts_per_cpu_s(f"{receiver.url}/hook", DELIVERIES)
            found.setdefault("raw_post_per_cpu_s", []).append(bare)
            for fan_out in (1, 10):
                emptied = await empty(postgres, rabbit, rabbit.url, fan_out=fan_out, fleet=1)
                name = f"deliveries_per_cpu_s.fanout_{fan_out}"
                found.setdefault(name, []).append(emptied.per_cpu_s)
                found.setdefault(f"{name}.ratio_to_raw", []).append(emptied.per_cpu_s / bare)
    return found


async def measure_machine() -> figures.Figures:
    """Fleets of several sizes over each of the two brokers; the best of them."""
    found: dict[str, list[float]] = {}
    with private_node() as rabbit, running_postgres(durable=True) as postgres:
        rounds: dict[tuple[str, int], list[Emptied]] = {}
        for _, fleet, broker in itertools.product(range(ROUNDS), FLEETS, ("rabbitmq", "embedded")):
            url = rabbit.url if broker == "rabbitmq" else None
            rounds.setdefault((broker, fleet), []).append(await empty(postgres, rabbit, url, fan_out=1, fleet=fleet))
    for broker in ("rabbitmq", "embedded"):
        best = max(
            (rounds[broker, fleet] for fleet in FLEETS), key=lambda of: sorted(one.per_s for one in of)[ROUNDS // 2]
        )
        found[f"deliveries_per_s.{broker}"] = [one.per_s for one in best]
        found[f"deliveries_per_system_cpu_s.{broker}"] = [one.per_system_cpu_s for one in best]
    return found


async def empty(
    postgres: Postgres,
    rabbit: PrivateNode,
    broker_url: str | None,
    *,
    fan_out: int,
    fleet: int,
    types: int = TYPES,
    delay_ms: float = 0,
    prepare: Callable[[System, Api], Awaitable[None]] | None = None,
) -> Emptied:
    """Have so many dispatchers empty a full queue. Without a broker's URL the database is the broker.

    There are `types` types of events with `fan_out` endpoints each; `prepare` adds what else there is to be.
    """
    async with installation(postgres, broker_url) as system, sink(delay_ms=delay_ms) as receiver, system.api() as api:
        for number, copy in itertools.product(range(types), range(fan_out)):
            await api.subscribe(f"{receiver.url}/{number}/{copy}", f"t.n{number}")
        if prepare is not None:
            await prepare(system, api)
        servers = [receiver.pid, _pid(postgres), *([_pid(rabbit)] if broker_url else [])]
        async with dispatchers(system, fleet) as running:
            ours = [one.pid for one in running]
            await _publish(system, range(WARM), types)
            await _recorded(system, receiver, WARM * fan_out)
            for one in running:
                one.pause()
            await _publish(system, range(WARM, WARM + DELIVERIES // fan_out), types)
            ours_s, theirs_s, began_s = sum(map(cpu_s, ours)), sum(map(cpu_s, servers)), monotonic()
            for one in running:
                one.resume()
            await _recorded(system, receiver, WARM * fan_out + DELIVERIES)
            took_s = monotonic() - began_s
            ours_s, theirs_s = sum(map(cpu_s, ours)) - ours_s, sum(map(cpu_s, servers)) - theirs_s
            memory = max(psutil.Process(pid).memory_info().rss for pid in ours)
    return Emptied(DELIVERIES / took_s, DELIVERIES / ours_s, DELIVERIES / (ours_s + theirs_s), memory / 1e6)


@contextmanager
def private_node() -> Iterator[PrivateNode]:
    with running_server() as server:
        assert isinstance(server, PrivateNode), "its CPU time is measured, so it may not be in a container"
        yield server


async def _publish(system: System, numbers: Sequence[int], types: int) -> None:
    async with system.broker() as broker:
        for start in range(0, len(numbers), _AT_ONCE):
            some: Sequence[Outgoing] = [
                Outgoing(ToEvents(f"t.n{n % types}"), Message(_BODY % (n % types, n, b"x" * 900)))
                for n in numbers[start : start + _AT_ONCE]
            ]
            assert set(await broker.publish_many(some, timeout_s=60)) == {None}


async def _recorded(system: System, receiver: Sink, count: int) -> None:
    """Wait until so many deliveries have been received, and are on record."""
    delivered = "SELECT count(*) FROM deliveries WHERE status = 'delivered' AND event_type LIKE 't.n%'"

    async def all_are() -> bool:
        return bool(await system.value(delivered) == count)

    await receiver.reached(count, deadline_s=180)
    await eventually(all_are, deadline_s=60)


def _pid(server: Postgres | PrivateNode) -> int:
    assert server.pid is not None
    return server.pid


if __name__ == "__main__":
    figures.run(measure_efficiency, measure_machine)
