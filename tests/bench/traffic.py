"""Events published at a steady rate, whatever becomes of them, and how long each took to its endpoint."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from statistics import quantiles
from time import monotonic, time

from producer.publisher import EventPublisher
from tests.support.receivers import Receiver

WARM_S = 3.0  # at first: connections are made, statements are prepared
_TEXT = "x" * 900  # a body of 1 KiB or so
_LATE_S = 60.0  # after the last one: what has not come by then never will


@dataclass(frozen=True, slots=True)
class Arrival:
    """One event's way: when it was published and received (`time.time`), by its public id."""

    id: str
    published_at: float
    received_at: float

    @property
    def latency_ms(self) -> float:
        return (self.received_at - self.published_at) * 1000


async def steady(
    publisher: EventPublisher,
    receiver: Receiver,
    types: Sequence[str],
    *,
    path: str,
    per_s: float,
    seconds: float,
    tenant: str = "default",
) -> list[Arrival]:
    """Publish these types in turn, and wait until all have come to `path`. Those of the first seconds do not count."""
    published: dict[str, float] = {}
    wall_s = time() - monotonic()

    async def publish(event_type: str) -> None:
        at = time()
        sent = await publisher.publish(event_type, {"text": _TEXT}, tenant=tenant)
        published[sent.id] = at

    loop = asyncio.get_running_loop()
    begin_s, pending = loop.time(), set[asyncio.Task[None]]()
    count = round(per_s * (WARM_S + seconds))
    for number in range(count):
        if (pause_s := begin_s + number / per_s - loop.time()) > 0:
            await asyncio.sleep(pause_s)
        task = asyncio.create_task(publish(types[number % len(types)]))
        pending.add(task)
        task.add_done_callback(pending.discard)
    await asyncio.gather(*pending)
    came = await receiver.wait_until(
        lambda requests: len({one.webhook_id for one in requests} & published.keys()) == count,
        path=path,
        deadline_s=_LATE_S,
        what=f"all {count}",
    )
    counts_from = min(published.values()) + WARM_S
    first: dict[str, float] = {}
    for one in came:
        first.setdefault(one.webhook_id, one.at_s + wall_s)
    return [Arrival(one, at, first[one]) for one, at in published.items() if at >= counts_from]


@asynccontextmanager
async def beside(work: Awaitable[object]) -> AsyncIterator[None]:
    """Something else goes on for as long as the context is open."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def p(percent: int, values: Sequence[float]) -> float:
    """A percentile."""
    return quantiles(values, n=100, method="inclusive")[percent - 1]
