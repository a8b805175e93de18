"""A subscription's rate limit, kept by three dispatchers together."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, DispatcherProcess, System
from tests.support.waiting import eventually


async def started_at_s(system: System) -> list[float]:
    """When each attempt began, by the clock of the machine that they all ran on."""
    rows = await system.fetch("SELECT extract(epoch FROM started_at)::float8 AS at FROM attempts ORDER BY started_at")
    return [row["at"] for row in rows]


def most_within(times: list[float], window_s: float) -> int:
    return max(sum(start <= one < start + window_s for one in times) for start in times)


async def publish(system: System, count: int) -> None:
    async with system.publisher() as publisher:
        await asyncio.gather(*(publisher.publish("order.created", {"n": n}) for n in range(count)))


async def test_no_second_sees_more_than_the_rate_and_the_burst(
    system: System, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    """A flood to a limited endpoint, of which some attempts fail; an unlimited one gets all of it meanwhile."""
    limited = await api.subscribe(
        receiver.behave("/limited", Behaviour(fail_first=5)),
        rate_limit={"requests_per_s": 40, "burst": 8},
        retry_policy={"delays_s": [1.0] * 5},
    )
    assert limited["rate_limit"] == {"requests_per_s": 40, "burst": 8}
    async with AsyncExitStack() as stack:
        for number in range(3):
            await stack.enter_async_context(DispatcherProcess(system, tmp_path / f"{number}.log"))
        await publish(system, 100)
        await system.settled({"delivered": 100}, deadline_s=60)
    times = await started_at_s(system)
    assert len(times) == 105  # a wait for its turn is no attempt
    assert most_within(times, 1.0) <= 40 + 8
    assert most_within(times, 0.01) <= 8 + 1
    assert len(receiver.to("/limited")) == 105


async def test_a_killed_dispatchers_successor_begins_with_an_empty_bucket(
    system: System, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    await api.subscribe(receiver.url("/limited"), rate_limit={"requests_per_s": 10, "burst": 5})
    async with DispatcherProcess(system, tmp_path / "killed.log") as killed:
        await publish(system, 25)
        await receiver.wait_for(8)
        killed.kill()
        await killed.wait()
    async with DispatcherProcess(system, tmp_path / "second.log"):
        await system.settled({"delivered": 25}, deadline_s=60)
    times = [request.at_s for request in receiver.requests]
    assert most_within(times, 1.0) <= 10 + 5


async def test_a_changed_limit_reaches_what_waits(system: System, api: Api, receiver: Receiver) -> None:
    subscription = await api.subscribe(receiver.url("/limited"), rate_limit={"requests_per_s": 0.05, "burst": 1})
    async with system.dispatcher():
        await publish(system, 60)
        await receiver.wait_for(1)
        path = f"/v1/subscriptions/{subscription['id']}"
        await api.call("PATCH", path, {"rate_limit": {"requests_per_s": 1000, "burst": 10}})
        await system.settled({"delivered": 60}, deadline_s=30)
        changed = await api.call("PATCH", path, {"rate_limit": None})
        assert changed["rate_limit"] is None
        await publish(system, 1)
        await system.settled({"delivered": 61}, deadline_s=30)


async def test_a_rest_fills_the_bucket_again(system: System, api: Api, receiver: Receiver) -> None:
    """The endpoint opens in between, and its lease is given back: its pace is remembered all the same."""
    await api.subscribe(receiver.url("/limited"), rate_limit={"requests_per_s": 2, "burst": 2})

    async def opened() -> bool:
        return bool(await system.value("SELECT count(*) FROM subscriptions WHERE mode = 'open'"))

    async with system.dispatcher():
        for number in (2, 4, 6):
            await publish(system, 2)
            await system.settled({"delivered": number}, deadline_s=30)
            await eventually(opened)
    assert most_within([request.at_s for request in receiver.requests], 1.0) <= 2 + 2
