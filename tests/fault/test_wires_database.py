"""The wire to the database is cut, stalled and broken off amid each transaction of the protocol, in each direction.

What was sent may have been committed or not, and may still be committed later, when the wire is well again: in every
case nothing is lost, and no POST is made twice but those that had begun when the database was lost for longer than the
liveness time.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from dispatcher.clock import boot_s
from tests.support.parts import parts_in_sight
from tests.support.points import Moment, Point, Step, trap
from tests.support.proxy import Direction
from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, DispatcherProcess, System
from tests.support.waiting import eventually
from tests.support.wires import DEADLINE_S, Traffic, Wires, lose, open_traffic, provoked

TIMES: dict[str, object] = {
    "database_timeout_s": 1,
    "reconcile_period_s": 0.2,
    "reconcile_grace_s": 1,
    "max_in_hand": 16,  # so that an endpoint has one delivery in hand
}
SHORT_S, LONG_S = 0.3, 2.0  # a stall that nobody may notice, and one that every statement gives up at
LIVENESS_S: Final = 10.0  # where a stall must be shorter than that

Provoke = Callable[[], Awaitable[object]]


@asynccontextmanager
async def dispatching(wires: Wires, api: Api, receiver: Receiver, **changes: object) -> AsyncIterator[Traffic]:
    """A dispatcher at work over the proxied wires; at the end everything flows, and the books are right."""
    async with open_traffic(wires, api, receiver) as traffic:
        async with wires.through.dispatcher(**{**TIMES, **changes}):
            await traffic.flows()
            yield traffic
            await traffic.everything_flows()
        await traffic.books.check()


def transactions(traffic: Traffic) -> Sequence[tuple[str, Provoke]]:
    return [
        ("TAKE_EVENT_KEYS", traffic.publish),
        ("INSERT_ATTEMPTS", traffic.publish),
        ("CLAIM_DUE", traffic.publish_failing),
        ("LEASE_ENDPOINTS", traffic.publish_many),
        ("CLAIM_HELD", traffic.publish_many),
        ("CLOSE_BACKLOGS", traffic.publish_many),
        ("KEEP_DEAD_LETTERS", traffic.send_junk),
        ("RENEW_HEARTBEAT", nothing),
    ]


async def nothing() -> None:
    """A heart beats without a reason."""


async def test_cut_amid_each_transaction(wires: Wires, api: Api, receiver: Receiver) -> None:
    async with dispatching(wires, api, receiver) as traffic:
        for what, provoke in transactions(traffic):
            for direction in Direction:
                before = wires.database.connections
                await lose(wires.database, direction, Step.COMMIT, what, provoke)
                await traffic.flows()
                assert wires.database.connections > before


async def test_broken_off_after_so_many_bytes(wires: Wires, api: Api, receiver: Receiver) -> None:
    """Amid a statement's text, its arguments or its rows."""
    async with dispatching(wires, api, receiver) as traffic:
        await traffic.broken_off(wires.database)


async def test_stalled_amid_each_transaction(wires: Wires, api: Api, receiver: Receiver) -> None:
    """For longer than a statement may take: what did not arrive in time arrives late, what was done is not known."""
    async with dispatching(wires, api, receiver) as traffic:
        for number, (what, provoke) in enumerate(transactions(traffic)[:-1]):
            stall = partial(wires.database.stall, list(Direction)[number % 2])
            with trap(Point(Moment.BEFORE, Step.COMMIT, what), stall) as begun:
                await provoked(provoke, begun)
            await asyncio.sleep(LONG_S)
            wires.database.resume()
            await traffic.flows()


async def test_a_short_stall_is_not_noticed_and_dead_connections_are_given_up(
    wires: Wires, api: Api, receiver: Receiver
) -> None:
    """The heart does not wait for them, although statements may take longer than the liveness time."""
    times = {"database_timeout_s": 7, "liveness_s": 6, "renewal_timeout_s": 1, "database_pool": 2}
    with parts_in_sight() as parts:
        async with dispatching(wires, api, receiver, **times) as traffic:
            started_s = boot_s()
            wires.database.stall()
            await traffic.publish()
            await asyncio.sleep(SHORT_S)
            wires.database.resume()
            await traffic.flows()
            await traffic.publish_many()
            wires.database.freeze()
            await traffic.flows()
            assert not parts.heartbeat.lapsed_since(started_s)


async def test_a_database_lost_for_longer_than_the_liveness_repeats_only_what_had_begun(
    wires: Wires, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    """Another dispatcher takes the deliveries over. Lost for less, none is repeated."""
    hanging = asyncio.Event()
    hooks = receiver.behave("/hook", Behaviour(hold=hanging))
    await api.subscribe(hooks, "hook", timeout_s=60)
    lives: dict[str, Any] = {"liveness_s": LIVENESS_S}
    async with wires.through.dispatcher(database_timeout_s=1, endpoint_max_in_flight=4, **lives) as first:
        async with wires.direct.publisher() as publisher:
            for number in range(12):
                await publisher.publish("hook", {"n": number}, id=str(number))
        begun = {request.webhook_id for request in await receiver.wait_for(4)}

        async def in_hand() -> bool:
            claimed = "SELECT count(*) FROM deliveries WHERE claimed_by = $1"
            return bool(await wires.direct.value(claimed, first.incarnation) == 12)

        await eventually(in_hand, wires.direct.statuses)
        async with DispatcherProcess(wires.direct, tmp_path / "second.log", **lives) as second:
            # Who has just started judges nobody, however long the other one is silent.
            await eventually(lambda: steady(wires.direct, second.pid, LIVENESS_S), deadline_s=DEADLINE_S)
            wires.database.stall()
            await asyncio.sleep(LONG_S)  # far less than the liveness time, also on a busy machine
            wires.database.resume()
            resumed_at = await wires.direct.value("SELECT clock_timestamp()")
            await eventually(lambda: renewed_since(wires.direct, first.incarnation, resumed_at), deadline_s=DEADLINE_S)
            assert len(receiver.requests) == 4
            wires.database.stall()
            receiver.behave("/hook", Behaviour())  # those that hang go on hanging
            await wires.direct.settled({"delivered": 12}, deadline_s=DEADLINE_S)
            hanging.set()
            wires.database.resume()

            async def superseded() -> bool:
                return bool(await wires.direct.value("SELECT count(*) FROM attempts WHERE superseded") == 4)

            await eventually(superseded, wires.direct.statuses, deadline_s=DEADLINE_S)
    times = Counter(request.webhook_id for request in receiver.requests)
    assert {one for one, number in times.items() if number > 1} == begun
    assert sum(times.values()) == 16
    assert await wires.direct.statuses() == {"delivered": 12}


async def test_a_dispatcher_that_stops_without_its_database_does_not_wait_for_ever(
    wires: Wires, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    """What it could not commit within its time is begun again by the next one, as after a crash."""
    hanging = asyncio.Event()
    await api.subscribe(receiver.behave("/hook", Behaviour(hold=hanging)), "hook")
    times: dict[str, Any] = {**TIMES, "drain_s": 5, "settle_allowance_s": 1, "liveness_s": LIVENESS_S}
    async with DispatcherProcess(wires.through, tmp_path / "first.log", **times) as first:
        async with wires.direct.publisher() as publisher:
            await publisher.publish("hook", {"n": 1})
        await receiver.wait_for(1)
        wires.database.stall()
        hanging.set()
        assert await first.stop() == 0
        assert "dispatcher.not_settled" in first.log
    wires.database.resume()
    async with wires.direct.dispatcher(liveness_s=LIVENESS_S):
        await wires.direct.settled({"delivered": 1}, deadline_s=DEADLINE_S)
    assert len({request.webhook_id for request in receiver.requests}) == 1
    assert len(receiver.requests) == 2


async def steady(system: System, pid: int, for_s: float) -> bool:
    """Whether this dispatcher has renewed its heartbeat without a gap for so long, and may judge others."""
    asked = "SELECT renewed_at - steady_since > make_interval(secs => $2) FROM dispatchers WHERE pid = $1"
    return bool(await system.value(asked, pid, for_s))


async def renewed_since(system: System, incarnation: UUID, moment: object) -> bool:
    return bool(await system.value("SELECT renewed_at > $2 FROM dispatchers WHERE id = $1", incarnation, moment))
