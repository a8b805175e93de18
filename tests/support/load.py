"""Events published all the time while a test does something to the servers: by the publisher and by the API.

What was confirmed is written down exactly, what was not is counted by the error that said so. Nothing may hang: each
publish has ended within `LIMIT_S`, well or badly.
"""

import asyncio
import itertools
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from producer.publisher import EventPublisher
from schemas.errors import BrokerError
from tests.support.accounting import Accounting
from tests.support.receivers import Receiver
from tests.support.system import Api, System
from tests.support.waiting import eventually

BY_PUBLISHER: Final = "publisher"
BY_API: Final = "API"
LIMIT_S: Final = 30.0  # far above every timeout in `QUICK`: what takes longer hangs
_PAUSE_S: Final = 0.03
_TRY_S: Final = 2.0  # of the publisher, each event


@dataclass(slots=True)
class Load:
    """`confirmed` are public ids by the event's own id, in order, for each way; `refused` counts by way and error."""

    confirmed: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)

    async def flows(self, receiver: Receiver, path: str, *, count: int = 10, deadline_s: float = 60) -> None:
        """Wait until so many events of either way that are published from now on have come to `path`."""
        before = {way: len(self.confirmed[way]) for way in (BY_PUBLISHER, BY_API)}

        def fresh() -> list[list[str]]:
            return [list(self.confirmed[way].values())[number:][:count] for way, number in before.items()]

        async def came() -> bool:
            ids = fresh()
            if any(len(some) < count for some in ids):
                return False
            return {one for some in ids for one in some} <= {request.webhook_id for request in receiver.to(path)}

        async def state() -> str:
            return f"confirmed since: {[len(some) for some in fresh()]}; refused so far: {dict(self.refused)}"

        await eventually(came, state, deadline_s=deadline_s)

    async def refuses(self, *ways: str, deadline_s: float = 60) -> None:
        """Wait until a publish by each of these ways has been refused since now."""
        before = self.refused.copy()

        async def refused() -> bool:
            return set(ways) <= {way for way, _ in self.refused - before}

        await eventually(refused, deadline_s=deadline_s)

    async def account(self, books: Accounting, *urls: str, deadline_s: float = 60) -> None:
        """Wait until all is done; then all that was confirmed, and what is stored unconfirmed, has to add up."""
        for external_id in itertools.chain.from_iterable(self.confirmed.values()):
            books.published(external_id, *urls)
        await books.settled(deadline_s=deadline_s)
        for row in await books.system.fetch("SELECT external_id FROM events"):
            books.published(row["external_id"], *urls)
        await books.check()


@asynccontextmanager
async def under_load(system: System, api: Api) -> AsyncIterator[Load]:
    """Publish while the context is open."""
    load = Load()

    async def by_publisher(external_id: str) -> str:
        return (await publisher.publish("order.created", {"n": external_id}, id=external_id)).id

    async def by_api(external_id: str) -> str:
        event = {"type": "order.created", "data": {"n": external_id}, "source": "tests", "id": external_id}
        status, answer = await api.ask("POST", "/v1/events", event)
        if status == 202:
            return str(answer["id"])
        assert status == 503, answer
        raise BrokerError(answer["error"]["code"])

    async with EventPublisher(system.broker_url, source="tests", timeout_s=_TRY_S) as publisher:
        tasks = [
            asyncio.create_task(_publish(load, BY_PUBLISHER, by_publisher), name="load by the publisher"),
            asyncio.create_task(_publish(load, BY_API, by_api), name="load by the API"),
        ]
        try:
            yield load
            for task in tasks:
                assert not task.done(), task.exception()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _publish(load: Load, way: str, publish: Callable[[str], Awaitable[str]]) -> None:
    number = 0
    while True:
        external_id = f"{way}-{number}"  # each is tried once
        number += 1
        try:
            async with asyncio.timeout(LIMIT_S):
                load.confirmed[way][external_id] = await publish(external_id)
        except BrokerError as error:
            load.refused[way, str(error) if way == BY_API else type(error).__name__] += 1
        await asyncio.sleep(_PAUSE_S)
