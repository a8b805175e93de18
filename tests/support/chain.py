"""A chain of kills: dispatcher after dispatcher dies at its point, and the next one goes on with what it left.

So a kill costs a start, not a wait until somebody is taken for dead. The last dispatcher is left in peace and does all
that is left; then the books have to be right.
"""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final

import pytest

from infra.broker.base import Broker, Outgoing, ToEvents
from infra.broker.open import open_broker
from producer.publisher import EventPublisher
from schemas.messages import Message
from tests.support.accounting import Accounting
from tests.support.points import Moment, Point, Step
from tests.support.rabbitmq import reset
from tests.support.receivers import Receiver
from tests.support.system import DispatcherProcess, System

# Short, because who goes on waits so long for what the dead had claimed. Only one dispatcher lives at a time, so on a
# busy machine nobody is taken for dead who lives.
SHORT: Final[dict[str, object]] = {
    "heartbeat_s": 0.2,
    "renewal_timeout_s": 1,
    "begin_margin_s": 0.1,
    "liveness_s": 1.8,
    "reconcile_period_s": 0.2,
    "reconcile_grace_s": 1,
    "broker_lease_s": 1,
}
ONCE: Final[dict[str, Any]] = {"delays_s": []}
SOON: Final[dict[str, Any]] = {"delays_s": [1.0] * 5}


def around(step: Step, *what: str, nth: int = 1) -> tuple[Point, ...]:
    """Before, amid and after each of these."""
    return tuple(Point(moment, step, one, nth) for one in what for moment in Moment)


class Chain:
    """One installation, its books, and who is killed in it."""

    def __init__(
        self, system: System, receiver: Receiver, log: Path, publisher: EventPublisher, broker: Broker
    ) -> None:
        self.system = system
        self.receiver = receiver
        self.books = Accounting(system, [receiver])
        self.changes: dict[str, object] = {}  # of the settings
        self.log = log
        self._publisher = publisher
        self._broker = broker
        self._events = 0

    async def publish(self, *urls: str, event_type: str = "order.created", count: int = 1) -> None:
        """Publish events that these endpoints have to get."""
        for _ in range(count):
            await self.publish_as(f"order-{self._events}", *urls, event_type=event_type)
            self._events += 1

    async def publish_as(self, external_id: str, *urls: str, event_type: str = "order.created", n: int = 0) -> None:
        await self._publisher.publish(event_type, {"n": n}, id=external_id)
        self.books.published(external_id, *urls)

    async def publish_junk(self) -> None:
        """Publish what is no event, each time with other bytes."""
        body = b"junk %d" % self._events
        self._events += 1
        await self.send(Outgoing(ToEvents("order.created"), Message(body, message_id=f"id-{self._events}")))
        self.books.buried("unreadable", body)

    async def send(self, outgoing: Outgoing) -> None:
        await self._broker.publish(outgoing, timeout_s=10)

    def dispatcher(self, *at: Point, **more: Any) -> DispatcherProcess:
        return DispatcherProcess(self.system, self.log, at=at, **{**SHORT, **self.changes, **more})

    async def kill(self, point: Point, **more: Any) -> None:
        """A dispatcher, with these settings changed, comes to this point, and dies there."""
        async with self.dispatcher(point, **more) as one:
            await self.dies(one, point)

    async def dies(self, one: DispatcherProcess, point: Point, *, deadline_s: float = 120) -> None:
        """Wait until it has died at its point, and note what died with it."""
        try:
            code = await one.wait(deadline_s=deadline_s)
        except pytest.fail.Exception as error:
            raise AssertionError(f"nobody came to the point {point}: {error}") from None
        assert code == -signal.SIGKILL, f"it ended with {code} instead of at the point {point}"
        died = await self.books.after_death(str(point))
        here = [repeat for repeat in died if point.what in repeat.target[1].split("/")]
        if point.step is Step.POST and point.moment is not Moment.SENT:
            begun = point.moment is Moment.AFTER
            assert bool(here) == begun, f"{point}: {len(here)} POSTs had begun and were not committed"

    async def kill_at(self, points: Iterable[Point], provoke: Callable[[], Awaitable[None]]) -> None:
        """One dispatcher after the other dies, each after `provoke` has given it reason to come to its point."""
        for point in points:
            await provoke()
            await self.kill(point)

    async def lose_messages(self) -> None:
        """Nobody lives just now, and the broker forgets everything."""
        if self.system.broker_url.startswith("amqp"):
            await reset(self.system.broker_url)
        else:
            await self.system.fetch("DELETE FROM queue_messages")

    async def all_open(self) -> bool:
        """Whether every endpoint takes deliveries as they come."""
        return not await self.system.value("SELECT count(*) FROM subscriptions WHERE mode <> 'open'")

    async def finish(self, *, deadline_s: float = 120) -> None:
        """A dispatcher without a fault does all that is left, and stops in order. Then the books must be right."""
        settled = False
        while not settled:
            async with self.dispatcher() as last:
                await self.books.settled(deadline_s=deadline_s)
                assert await last.stop() == 0
            settled = await self.books.is_settled()  # a message that was taken and not admitted is in its queue again
        await self.books.check()


@pytest.fixture
async def chain(system: System, receiver: Receiver, tmp_path: Path) -> AsyncIterator[Chain]:
    async with system.publisher() as publisher, open_broker(system.settings()) as broker:
        yield Chain(system, receiver, tmp_path / "dispatchers.log", publisher, broker)
