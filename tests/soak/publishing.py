"""The publisher of a soak: a steady rate and bursts, by the library and by the API, and a book of what was answered.

What is not confirmed may be there or not; half of it is published again as the same event. Some of what is confirmed
is published again too, on purpose, and a little of it with another content.
"""

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import aiohttp

from producer.publisher import EventPublisher
from schemas.errors import BrokerError
from tests.soak.chronicle import Chronicle
from tests.soak.endpoints import EVENT_TYPES
from tests.support.system import Api

SOURCE: Final = "soak"
_IN_FLIGHT: Final = 400
_TICK_S: Final = 0.1
_OVER_THE_API: Final = 0.1
_AGAIN: Final = 0.05
_CONFLICTING: Final = 0.01


@dataclass(slots=True)
class Event:
    """`begun_at` is from before it was first sent; `confirmed` how often, `tried` how often at all."""

    id: str
    type: str
    begun_at: float
    tried: int = 0
    confirmed: int = 0
    conflicts: int = 0  # of `tried`, those with another content
    conflicts_confirmed: int = 0


@dataclass(slots=True, eq=False)
class Publishing:
    """Publishes from `running()` on; `events` is the book."""

    publisher: EventPublisher
    api: Api
    chronicle: Chronicle
    rate_per_s: float
    chance: random.Random
    events: list[Event] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _stopping: bool = False

    async def run(self) -> None:
        """Until `stop`. When too many are under way, because the broker is away, less is published."""
        owed = 0.0
        while not self._stopping:
            owed = min(owed + self.rate_per_s * _TICK_S, self.rate_per_s)
            self.publish(int(owed))
            owed -= int(owed)
            await asyncio.sleep(_TICK_S)
        await asyncio.gather(*self._tasks)

    def stop(self) -> None:
        """Begin nothing new; `run` ends when all has been answered."""
        self._stopping = True

    def publish(self, count: int) -> None:
        for _ in range(min(count, _IN_FLIGHT - len(self._tasks))):
            (event_type,) = self.chance.choices(list(EVENT_TYPES), list(EVENT_TYPES.values()))
            event = Event(f"event-{len(self.events)}", event_type, time.time())
            self.events.append(event)
            task = asyncio.create_task(self._life(event))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _life(self, event: Event) -> None:
        await self._publish(event)
        again = self.chance.random()
        if again < (_AGAIN if event.confirmed else 0.5):
            await asyncio.sleep(self.chance.uniform(0, 2))
            await self._publish(event)
        elif event.confirmed and again > 1 - _CONFLICTING:
            await self._publish(event, conflicting=True)

    async def _publish(self, event: Event, *, conflicting: bool = False) -> None:
        data = {"event": event.id, "filler": ("y" if conflicting else "x") * 200}
        with self._counted(event, conflicting=conflicting):
            if conflicting or self.chance.random() > _OVER_THE_API:
                await self.publisher.publish(event.type, data, id=event.id, source=SOURCE)
                return
            body = {"type": event.type, "data": data, "id": event.id, "source": SOURCE}
            status, answer = await self.api.ask("POST", "/v1/events", body)
            if status >= 300:
                if status < 500 or status == 500:
                    self.chronicle.found(f"the API answered {status} to a publish: {answer}")
                raise ConnectionError

    @contextmanager
    def _counted(self, event: Event, *, conflicting: bool) -> Iterator[None]:
        event.tried += 1
        event.conflicts += conflicting
        try:
            yield
        except (BrokerError, aiohttp.ClientError, TimeoutError, ConnectionError):
            return
        event.confirmed += 1
        event.conflicts_confirmed += conflicting
