"""Pause and resume, with three dispatchers: a backlog that is kept, whoever dies meanwhile, and fed when it resumes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, DispatcherProcess, System
from tests.support.waiting import eventually

FLEET = 3
IN_FLIGHT = 2  # POSTs to one endpoint from one dispatcher: the others wait in hand


@asynccontextmanager
async def fleet(system: System, logs: Path) -> AsyncIterator[list[DispatcherProcess]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                DispatcherProcess(system, logs / f"{number}.log", endpoint_max_in_flight=IN_FLIGHT)
            )
            for number in range(FLEET)
        ]


async def publish(system: System, event_type: str, count: int) -> None:
    async with system.publisher() as publisher:
        await asyncio.gather(*(publisher.publish(event_type, {"n": n}) for n in range(count)))


async def seen_by_all(system: System, api: Api, receiver: Receiver) -> None:
    """Wait until every dispatcher knows what the API has answered by now.

    Each has admitted an event for a subscription that was made afterwards: it read what had changed before it did.
    """
    marker = await api.subscribe(receiver.url("/marker"), "marker")
    admitted_by = "SELECT count(DISTINCT dispatcher) FROM attempts WHERE url LIKE '%/marker'"
    async with system.publisher() as publisher:

        async def seen() -> bool:
            await publisher.publish("marker", {})
            return bool(await system.value(admitted_by) == FLEET)

        await eventually(seen, deadline_s=60)
    await api.call("DELETE", f"/v1/subscriptions/{marker['id']}")


async def of(system: System, subscription: dict[str, Any], what: str) -> Any:
    """`what` of the deliveries to this subscription."""
    return await system.value(
        f"SELECT {what} FROM deliveries JOIN subscriptions s ON s.id = subscription_id WHERE s.url = $1",
        subscription["url"],
    )


async def test_what_is_paused_is_kept_over_a_restart_of_all_and_delivered_once_when_it_resumes(
    system: System, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    answer = asyncio.Event()
    hook = await api.subscribe(receiver.behave("/hook", Behaviour(hold=answer)), "order.#", timeout_s=60)
    path = f"/v1/subscriptions/{hook['id']}"
    async with fleet(system, tmp_path) as dispatchers:
        await publish(system, "order.created", 60)
        await receiver.wait_for(IN_FLIGHT, path="/hook", deadline_s=30)

        async def all_admitted() -> bool:
            return bool(await of(system, hook, "count(*)") == 60)

        await eventually(all_admitted, deadline_s=30)
        assert (await api.call("POST", f"{path}/pause", expect=200))["state"] == "paused"
        await seen_by_all(system, api, receiver)
        begun = len(receiver.to("/hook"))
        assert begun <= FLEET * IN_FLIGHT
        answer.set()  # what is under way ends normally; what waits in hand goes back, and spends no attempt

        async def all_back() -> bool:
            return bool(await of(system, hook, "bool_and(claimed_by IS NULL)"))

        await eventually(all_back, deadline_s=30)
        assert await of(system, hook, "count(*) FILTER (WHERE status = 'delivered')") == begun
        assert await of(system, hook, "count(*) FILTER (WHERE status = 'held' AND attempts = 0)") == 60 - begun
        await publish(system, "order.paid", 20)
        await eventually_of(system, hook, "count(*) FILTER (WHERE status = 'held')", 80 - begun)
        dispatchers[0].kill()
        dispatchers[1].kill()
        await dispatchers[2].stop()
    async with fleet(system, tmp_path) as dispatchers:
        await seen_by_all(system, api, receiver)
        await publish(system, "order.late", 10)
        await eventually_of(system, hook, "count(*) FILTER (WHERE status = 'held')", 90 - begun)
        await leased(system, hook, dispatchers)
        # Nobody claims what may not be sent: a backlog that is paused costs no work at all.
        assert await of(system, hook, "max(fence) FILTER (WHERE event_type <> 'order.created')") == 0
        assert len(receiver.to("/hook")) == begun
        await api.call("POST", f"{path}/resume", expect=200)
        await eventually_of(system, hook, "count(*) FILTER (WHERE status = 'delivered')", 90)
        await eventually_open(system, hook)
    came = [request.webhook_id for request in receiver.to("/hook")]
    assert len(came) == len(set(came)) == 90
    assert await of(system, hook, "max(attempts)") == 1


async def test_a_retry_that_becomes_due_while_paused_waits_and_spends_no_attempt(
    system: System, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    failing = await api.subscribe(
        receiver.behave("/failing", Behaviour(fail_first=12)), "order.#", retry_policy={"delays_s": [2.0]}
    )
    path = f"/v1/subscriptions/{failing['id']}"
    async with fleet(system, tmp_path):
        await publish(system, "order.created", 12)
        await system.settled({"retrying": 12})
        await api.call("POST", f"{path}/pause", expect=200)
        await system.settled({"held": 12})
        assert len(receiver.to("/failing")) == 12
        paused_until = await system.value("SELECT clock_timestamp()")
        await api.call("POST", f"{path}/resume", expect=200)
        await system.settled({"delivered": 12})
    assert await system.value("SELECT max(attempts) FROM deliveries") == 2
    second = await system.fetch("SELECT started_at FROM attempts WHERE number = 2")
    assert len(second) == 12
    assert isinstance(paused_until, datetime)
    assert all(row["started_at"] > paused_until for row in second)


async def eventually_of(system: System, subscription: dict[str, Any], what: str, expected: int) -> None:
    async def there() -> bool:
        return bool(await of(system, subscription, what) == expected)

    await eventually(there, system.statuses, deadline_s=60)


async def leased(system: System, subscription: dict[str, Any], by: list[DispatcherProcess]) -> None:
    """Wait until one of these feeds the endpoint."""

    async def fed() -> bool:
        feeder = await system.value(
            "SELECT d.pid FROM subscriptions s JOIN dispatchers d ON d.id = s.feeder WHERE s.url = $1",
            subscription["url"],
        )
        return feeder in {one.pid for one in by}

    await eventually(fed, deadline_s=30)


async def eventually_open(system: System, subscription: dict[str, Any]) -> None:
    async def opened() -> bool:
        return bool(await system.value("SELECT mode = 'open' FROM subscriptions WHERE url = $1", subscription["url"]))

    await eventually(opened, deadline_s=30)
