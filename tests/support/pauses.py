"""Dispatchers that are stopped, each at a point of its own, and go on when another one has taken over all their work.

All of a test start together and share the work until each stands still at its point (SIGSTOP). Then one without a fault
starts, takes them for dead and finishes everything; then they go on, find themselves superseded, and stop in order. So
a dozen points cost one wait for the liveness time.

They stand still for longer than their heartbeat, the liveness time, the lease of the embedded broker and the database's
patience with an open transaction. RabbitMQ's patience (AMQP heartbeats of 10 s) is not waited for: what it had handed
out to them stays with them, which is only late. When it runs out RabbitMQ cuts the connection, and that is what
`tests/contract/test_connections.py` tries.
"""

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import pytest

from infra.broker.open import open_broker
from tests.support.chain import Chain
from tests.support.points import Point
from tests.support.receivers import Receiver
from tests.support.system import QUICK, DispatcherProcess, System
from tests.support.waiting import eventually
from tests.support.witness import call_witness, witnessed

_LIVENESS_S: Final = float(str(QUICK["liveness_s"]))
# One thing at a time, so that each comes to its point with little else in hand; and a database that ends the open
# transaction of who stands still after three times its timeout.
STOPPED: Final[dict[str, Any]] = {
    "prefetch": 1,
    "batch_rows": 1,
    "endpoint_max_in_flight": 1,
    "database_timeout_s": 2,
}
NOTHING: Final[Mapping[str, Any]] = {}


async def nothing() -> None:
    """What is there already is reason enough."""


async def stop(*dispatchers: DispatcherProcess) -> bool:
    """Stop them in order (SIGTERM); whether each had nothing to complain of."""
    return not any(await asyncio.gather(*(one.stop() for one in dispatchers)))


class Pauses(Chain):
    """One installation, its books, and who is stopped in it."""

    def dispatcher(self, *at: Point, **more: Any) -> DispatcherProcess:
        """One that stops itself at its point, or none that does."""
        log = self.log.with_name(f"dispatcher-{next(self._numbers)}.log")
        settings = {**STOPPED, **self.changes, **more}
        return DispatcherProcess(self.system, log, at=at, fault=signal.SIGSTOP, **settings)

    _numbers = itertools.count(1)

    @property
    def liveness_s(self) -> float:
        return float(str(self.changes.get("liveness_s", _LIVENESS_S)))

    @asynccontextmanager
    async def standing_still(
        self, points: Sequence[Point], provoke: Callable[[], Awaitable[None]], *, own: Mapping[str, Any] = NOTHING
    ) -> AsyncIterator[list[DispatcherProcess]]:
        """A dispatcher for each point. `provoke` gives them reason to come there, until all stand still.

        `own` are settings of those that are stopped at a commit of that name.
        """
        async with AsyncExitStack() as stack:
            fleet = [self.dispatcher(point, **own.get(point.what, {})) for point in points]
            await asyncio.gather(*(stack.enter_async_context(one) for one in fleet))

            async def all_stand_still() -> bool:
                if all(one.stands_still for one in fleet):
                    return True
                await provoke()
                return False

            async def who_does_not() -> str:
                left = [str(point) for one, point in zip(fleet, points, strict=True) if not one.stands_still]
                return f"nobody came to the points {left}"

            await eventually(all_stand_still, who_does_not, deadline_s=180)
            await self.books.at_standstill([one for stopped in fleet for one in stopped.under_way()])
            yield fleet

    async def pause_at(
        self,
        points: Sequence[Point],
        provoke: Callable[[], Awaitable[None]],
        *,
        own: Mapping[str, Any] = NOTHING,
        meanwhile: Callable[[], Awaitable[object]] = nothing,
    ) -> None:
        """Stop a dispatcher at each point, let another one take over, and have them go on. The books must be right."""
        async with self.standing_still(points, provoke, own=own) as stopped:
            await meanwhile()
            async with self.dispatcher(batch_rows=500, prefetch=100) as other:
                await self.taken_for_dead(stopped)
                await eventually(self.books.is_idle, self.books.rows_at_fault, deadline_s=180)
                await self.go_on(stopped)
                await self.books.settled()
                assert await stop(*stopped)
                await self.books.settled()
                assert await stop(other)
        await self.check()

    async def taken_for_dead(self, stopped: Sequence[DispatcherProcess]) -> None:
        """Wait until these have been silent for longer than the liveness time."""

        async def silent() -> bool:
            pids = [one.pid for one in stopped]
            return not await self.system.value(
                "SELECT count(*) FROM dispatchers WHERE pid = ANY($1::int[]) "
                "AND renewed_at > clock_timestamp() - make_interval(secs => $2)",
                *(pids, self.liveness_s),
            )

        await eventually(silent, deadline_s=180)

    async def go_on(self, stopped: Sequence[DispatcherProcess]) -> None:
        """Continue them, and wait until each has noticed that it was away."""
        for one in stopped:
            one.resume()

        async def noticed() -> bool:
            return all("heartbeat.resumed" in one.log for one in stopped)

        await eventually(noticed, deadline_s=180)

    async def check(self) -> None:
        """Nobody works any more. The books have to be right, and no row may have changed after its end."""
        await self.books.check()
        assert not (seen := await witnessed(self.system)), "\n".join(seen)


@pytest.fixture
async def pauses(system: System, receiver: Receiver, tmp_path: Any) -> AsyncIterator[Pauses]:
    await call_witness(system, liveness_s=_LIVENESS_S)
    async with system.publisher() as publisher, open_broker(system.settings()) as broker:
        yield Pauses(system, receiver, tmp_path / "dispatchers.log", publisher, broker)
