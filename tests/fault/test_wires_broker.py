"""The wire to the broker is cut, stalled and broken off amid its conversations, in each direction.

A dispatcher lives through all of it. After each fault an event arrives; at the end messages of every kind flow as
before, the books are right, and no POST was made twice.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from tests.support.points import Moment, Point, Step, trap
from tests.support.proxy import Direction
from tests.support.receivers import Receiver
from tests.support.system import Api
from tests.support.wires import DEADLINE_S, Traffic, Wires, lose, open_traffic

TIMES: dict[str, object] = {
    "broker_timeout_s": 1.5,
    "broker_lease_s": 2,
    "reconcile_period_s": 0.2,
    "reconcile_grace_s": 1,
    "max_in_hand": 64,
}
SHORT_S, LONG_S = 0.3, 2.5  # a stall that nobody may notice, and one that everybody gives up at


@asynccontextmanager
async def dispatching(wires: Wires, api: Api, receiver: Receiver) -> AsyncIterator[Traffic]:
    """A dispatcher at work over the proxied wires; at the end everything flows, and the books are right."""
    async with open_traffic(wires, api, receiver) as traffic:
        async with wires.through.dispatcher(**TIMES):
            await traffic.flows()
            yield traffic
            await traffic.everything_flows()
        await traffic.books.check()


async def test_cut_amid_each_conversation(wires: Wires, api: Api, receiver: Receiver) -> None:
    async with dispatching(wires, api, receiver) as traffic:
        conversations: Sequence[tuple[Step, str, Callable[[], Awaitable[object]]]] = [
            (Step.PUBLISH, "ToEvents", traffic.publish_through),
            (Step.ACK, "hookhare.events", traffic.publish),
            (Step.PUBLISH, "ToWorkAfter", traffic.publish_failing),
            (Step.ACK, "hookhare.work", traffic.publish_failing),
            (Step.PUBLISH, "ToDead", traffic.send_junk),
            (Step.ACK, "hookhare.dead-letters", traffic.send_junk),
        ]
        for step, what, provoke in conversations:
            for direction in Direction:
                before = wires.broker.connections
                await lose(wires.broker, direction, step, what, provoke)
                await traffic.flows()
                assert wires.broker.connections > before


async def test_broken_off_after_so_many_bytes(wires: Wires, api: Api, receiver: Receiver) -> None:
    """Amid a frame, a header or a body, whatever it was of."""
    async with dispatching(wires, api, receiver) as traffic:
        await traffic.broken_off(wires.broker)


async def test_stalled(wires: Wires, api: Api, receiver: Receiver) -> None:
    """For less than the timeouts, and nobody notices; for longer, in each direction; and for ever."""

    async def stall(*directions: Direction, seconds: float) -> None:
        with trap(Point(Moment.BEFORE, Step.ACK, "hookhare.events"), lambda: wires.broker.stall(*directions)) as begun:
            for _ in range(5):
                await traffic.publish()
                await traffic.publish_failing()
                await traffic.send_junk()
            async with asyncio.timeout(DEADLINE_S):
                await begun.sprung.wait()
        await asyncio.sleep(seconds)
        wires.broker.resume()

    async with dispatching(wires, api, receiver) as traffic:
        consumers = await consuming(wires)
        await stall(seconds=SHORT_S)
        await traffic.flows()
        assert await consuming(wires) == consumers
        for direction in Direction:
            await stall(direction, seconds=LONG_S)
            await traffic.flows()
        connections = wires.broker.connections
        wires.broker.freeze()
        await traffic.flows()
        assert wires.broker.connections > connections


async def consuming(wires: Wires) -> object:
    """What changes when a consumer has to connect again."""
    if wires.direct.broker_url.startswith("amqp"):
        return wires.broker.connections
    sessions = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'hookhare hookhare.%' ORDER BY pid"
    return await wires.direct.fetch(sessions)
