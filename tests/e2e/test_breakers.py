"""Breakers: an endpoint that fails is left alone by three dispatchers together, and asked again by one."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, DispatcherProcess, System
from tests.support.waiting import eventually

SOON: dict[str, Any] = {
    "breaker_min_attempts": 10,
    "breaker_failure_ratio": 0.8,
    "breaker_timeouts": 4,
    "breaker_rest_s": 1,
}
RETRIES = {"delays_s": [1.0] * 20}


async def publish(system: System, count: int) -> None:
    async with system.publisher() as publisher:
        await asyncio.gather(*(publisher.publish("order.created", {"n": n}) for n in range(count)))


async def breaker(api: Api, subscription: str) -> str:
    answer = await api.call("GET", f"/v1/subscriptions/{subscription}")
    state: str = answer["breaker"]["state"]
    return state


async def test_an_endpoint_that_fails_is_asked_by_one_probe_at_a_time_and_gets_all_once_it_is_well(
    system: System, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    failing = await api.subscribe(receiver.behave("/failing", Behaviour(status=503)), retry_policy=RETRIES)
    await api.subscribe(receiver.url("/well"))
    async with AsyncExitStack() as stack:
        for number in range(3):
            await stack.enter_async_context(DispatcherProcess(system, tmp_path / f"{number}.log", **SOON))
        await publish(system, 100)

        async def opened() -> bool:
            return await breaker(api, failing["id"]) == "open"

        await eventually(opened, deadline_s=30)
        await receiver.wait_for(100, path="/well", deadline_s=30)

        # It rests 1, 2, 4 s: every probe fails, and no two of them at once.
        async def failed_probes() -> bool:
            return bool(await system.value("SELECT breaker_times >= 3 FROM subscriptions WHERE breaker_until > now()"))

        await eventually(failed_probes, deadline_s=30)
        before = len(receiver.to("/failing"))
        assert before <= 3 * (10 + 32) + 3  # what three dispatchers had begun until each had seen ten, and the probes
        attempts = await system.fetch(
            """
            SELECT started_at, started_at + duration_ms * interval '1 ms' AS ended_at FROM attempts
            JOIN deliveries ON deliveries.id = delivery_id WHERE url LIKE '%/failing' ORDER BY started_at DESC LIMIT 2
            """
        )
        assert attempts[1]["ended_at"] <= attempts[0]["started_at"]
        receiver.behave("/failing", Behaviour())
        await system.settled({"delivered": 200}, deadline_s=60)

        async def closed() -> bool:
            return await breaker(api, failing["id"]) == "closed"

        await eventually(closed, deadline_s=30)
    most = await system.value("SELECT max(attempts) FROM deliveries")
    assert most < 10  # what was held spent no attempts


async def test_an_endpoint_that_times_out_is_left_alone_and_a_new_url_begins_anew(
    system: System, api: Api, receiver: Receiver
) -> None:
    hanging = asyncio.Event()
    subscription = await api.subscribe(
        receiver.behave("/hanging", Behaviour(hold=hanging)), timeout_s=1, retry_policy=RETRIES
    )
    async with system.dispatcher(**SOON | {"breaker_rest_s": 60, "endpoint_max_in_flight": 2}):
        await publish(system, 20)

        async def opened() -> bool:
            return await breaker(api, subscription["id"]) == "open"

        await eventually(opened, deadline_s=30)
        assert len(receiver.to("/hanging")) <= 4 + 2
        path = f"/v1/subscriptions/{subscription['id']}"
        await api.call("PATCH", path, {"url": receiver.url("/new")})
        await system.settled({"delivered": 20}, deadline_s=60)
        assert await breaker(api, subscription["id"]) == "closed"
        hanging.set()
    assert len(receiver.to("/new")) == 20


async def test_an_open_breaker_outlives_the_dispatcher_that_opened_it(
    system: System, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    subscription = await api.subscribe(receiver.behave("/failing", Behaviour(status=500)), retry_policy=RETRIES)
    rest = SOON | {"breaker_rest_s": 60}
    async with DispatcherProcess(system, tmp_path / "first.log", **rest) as first:
        await publish(system, 30)

        async def opened() -> bool:
            return await breaker(api, subscription["id"]) == "open"

        await eventually(opened, deadline_s=30)
        await system.settled({"held": 30}, deadline_s=30)
        first.kill()
        await first.wait()
    before = len(receiver.requests)
    marker = await api.subscribe(receiver.url("/marker"), "marker")
    async with DispatcherProcess(system, tmp_path / "second.log", **rest) as second:
        await eventually_leased(system, second)
        async with system.publisher() as publisher:
            await publisher.publish("marker", {})
        await receiver.wait_for(1, path="/marker", deadline_s=30)
        assert len(receiver.requests) == before + 1
        assert await breaker(api, subscription["id"]) == "open"
        assert marker["breaker"] == {"state": "closed", "rests_until": None}


async def eventually_leased(system: System, by: DispatcherProcess) -> None:
    async def leased() -> bool:
        return bool(
            await system.value(
                "SELECT count(*) FROM subscriptions s JOIN dispatchers d ON d.id = s.feeder WHERE d.pid = $1", by.pid
            )
        )

    await eventually(leased, deadline_s=30)
