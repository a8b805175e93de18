"""Strict order, kept by three dispatchers together: one delivery at a time, as admitted, whatever fails or dies."""

import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from producer.events import NewEvent
from schemas.ids import EVENT, SUBSCRIPTION, parse_id, public_id
from tests.support.points import Moment, Point, Step
from tests.support.receivers import Behaviour, Receiver, Request
from tests.support.system import Api, DispatcherProcess, System
from tests.support.waiting import eventually

SOON = {"delays_s": [1.0] * 20}
COUNT = 200


@asynccontextmanager
async def fleet(system: System, folder: Path) -> AsyncIterator[list[DispatcherProcess]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(DispatcherProcess(system, folder / f"{number}.log")) for number in range(3)
        ]


async def publish(system: System, count: int, event_type: str = "order.created") -> None:
    async with system.publisher() as publisher:
        for n in range(count):
            await publisher.publish(event_type, {"n": n})


async def feeder(system: System, subscription: str) -> int | None:
    """The process that has its lease."""
    pid: int | None = await system.value(
        "SELECT d.pid FROM subscriptions AS s JOIN dispatchers AS d ON d.id = s.feeder WHERE s.id = $1",
        parse_id(SUBSCRIPTION, subscription),
    )
    return pid


async def places(system: System, subscription: str) -> dict[str, int]:
    """Of each event, as how manieth it was admitted, from 0."""
    rows = await system.fetch(
        "SELECT event_id FROM deliveries WHERE subscription_id = $1 ORDER BY ordinal",
        parse_id(SUBSCRIPTION, subscription),
    )
    return {public_id(EVENT, row["event_id"]): place for place, row in enumerate(rows)}


def overtakings(requests: list[Request], place: dict[str, int]) -> list[tuple[int, int]]:
    """Requests that came although one before them had not succeeded, or one behind them had been begun already."""
    found = []
    succeeded: set[int] = set()
    furthest = 0
    for number, request in enumerate(requests):
        mine = place[request.webhook_id]
        if not succeeded.issuperset(range(mine)) or mine < furthest:
            found.append((number, mine))
        furthest = max(furthest, mine)
        if request.status == 200:
            succeeded.add(mine)
    return found


async def test_each_waits_for_the_success_of_the_one_before(
    system: System, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    failing = Behaviour(fail_first=2, fail_fraction=0.05)
    count = COUNT // 2
    ordered = await api.subscribe(receiver.behave("/ordered", failing), retry_policy=SOON, ordered=True)
    await api.subscribe(receiver.url("/plain"))
    async with fleet(system, tmp_path):
        await publish(system, count)
        await receiver.wait_for(count, path="/plain", deadline_s=30)
        await system.settled({"delivered": 2 * count}, deadline_s=120)
    came = receiver.to("/ordered")
    assert overtakings(came, await places(system, ordered["id"])) == []
    assert len([one for one in came if one.status == 200]) == count
    assert len(came) >= count + 2  # some did fail
    assert failing.most_in_flight == 1


async def test_a_dead_one_lets_the_next_one_go(system: System, api: Api, receiver: Receiver, tmp_path: Path) -> None:
    await api.subscribe(
        receiver.behave("/ordered", Behaviour(fail_first=2)), retry_policy={"delays_s": [1.0]}, ordered=True
    )
    async with fleet(system, tmp_path):
        await publish(system, 3)
        await system.settled({"dead": 1, "delivered": 2}, deadline_s=60)
    assert [one.status for one in receiver.requests] == [503, 503, 200, 200]
    assert len({one.webhook_id for one in receiver.requests[:2]}) == 1


async def test_a_canceled_one_lets_the_next_one_go(
    system: System, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    """And so does one that is canceled amid its POST, but only once that is over."""
    behaviour = Behaviour(fail_first=1)
    await api.subscribe(
        receiver.behave("/ordered", behaviour), "order.#", retry_policy={"delays_s": [3600]}, ordered=True
    )
    await api.subscribe(receiver.url("/marker"), "marker")
    async with fleet(system, tmp_path):
        await publish(system, 3)
        await system.settled({"retrying": 1, "held": 2}, deadline_s=60)
        await publish(system, 30, "marker")  # all three have looked after their endpoints meanwhile
        await receiver.wait_for(30, path="/marker", deadline_s=30)
        assert len(receiver.to("/ordered")) == 1
        (waiting,) = await api.all("/v1/deliveries?status=retrying")
        await api.call("POST", f"/v1/deliveries/{waiting['id']}/cancel")
        await system.settled({"canceled": 1, "delivered": 2 + 30}, deadline_s=60)
    assert [one.status for one in receiver.to("/ordered")] == [503, 200, 200]


@pytest.mark.parametrize("fault", ["killed", "stopped"])
async def test_the_order_outlives_who_has_the_lease(
    system: System, api: Api, receiver: Receiver, tmp_path: Path, fault: str
) -> None:
    """What it had in hand may come again; of one that was stopped, also late: its own POST, once."""
    behaviour = Behaviour(delay_s=0.01)
    ordered = await api.subscribe(receiver.behave("/ordered", behaviour), retry_policy=SOON, ordered=True)
    async with fleet(system, tmp_path) as dispatchers:
        await publish(system, COUNT)
        await receiver.wait_for(COUNT // 4, deadline_s=30)
        pid = await feeder(system, ordered["id"])
        (leasing,) = [one for one in dispatchers if one.pid == pid]
        leasing.kill() if fault == "killed" else leasing.pause()

        async def taken_over() -> bool:
            return await feeder(system, ordered["id"]) not in (None, pid)

        await eventually(taken_over, deadline_s=60)
        await receiver.wait_for(COUNT // 2, deadline_s=60)
        leasing.resume()
        await system.settled({"delivered": COUNT}, deadline_s=60)
    late = overtakings(receiver.requests, await places(system, ordered["id"]))
    assert len(late) <= (fault == "stopped"), late
    assert COUNT <= len(receiver.requests) <= COUNT + 1


async def admitting(system: System) -> int | None:
    """The process that admits."""
    pid: int | None = await system.value("SELECT d.pid FROM roles AS r JOIN dispatchers AS d ON d.id = r.holder")
    return pid


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
async def test_the_order_of_publish_outlives_who_admits(
    system: System, api: Api, receiver: Receiver, tmp_path: Path, fault: signal.Signals
) -> None:
    """It dies, or stands still until another one has taken over, with events admitted and not acked, others in hand."""
    ordered = await api.subscribe(receiver.url("/ordered"), ordered=True)
    settings: dict[str, Any] = {"ordered_admission": True, "batch_rows": 20, "prefetch": 100}
    amid = Point(Moment.AFTER, Step.COMMIT, "INSERT_DELIVERIES", nth=10)
    first = DispatcherProcess(system, tmp_path / "first.log", at=[amid], fault=fault, **settings)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(first)

        async def admits() -> bool:
            return await admitting(system) == first.pid

        await eventually(admits, deadline_s=30)
        for number in range(2):
            await stack.enter_async_context(DispatcherProcess(system, tmp_path / f"{number}.log", **settings))
        async with system.publisher() as publisher:
            await publisher.publish_many([NewEvent("order.created", {"n": n}) for n in range(400)])
            for n in range(400, 500):
                await publisher.publish("order.created", {"n": n})

            async def taken_over() -> bool:
                return await admitting(system) not in (None, first.pid)

            await eventually(taken_over, deadline_s=60)
            first.resume()
            await publisher.publish_many([NewEvent("order.created", {"n": n}) for n in range(500, 600)])
        await system.settled({"delivered": 600}, deadline_s=300)  # one after the other
    rows = await system.fetch(
        "SELECT e.data FROM deliveries AS d JOIN events AS e ON e.id = d.event_id ORDER BY d.ordinal"
    )
    assert [orjson.loads(row["data"])["n"] for row in rows] == list(range(600))
    assert overtakings(receiver.requests, await places(system, ordered["id"])) == []
