"""What changes while a delivery waits for a token holds for it: the rate limit's turns, the subscription, its age."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, System
from tests.support.token_server import TokenServer
from tests.support.waiting import eventually

Change = Callable[[Api, dict[str, Any]], Awaitable[object]]
ONCE: dict[str, Any] = {"delays_s": []}


@pytest.fixture
async def tokens() -> AsyncIterator[TokenServer]:
    """One that gives nothing until its `hold` is set."""
    async with TokenServer({"c": {"s"}}, hold=asyncio.Event()) as tokens:
        yield tokens


def let_go(tokens: TokenServer) -> None:
    assert tokens.hold is not None
    tokens.hold.set()


async def asked(tokens: TokenServer) -> bool:
    return tokens.waiting > 0


async def publish(system: System, count: int) -> None:
    async with system.publisher() as publisher:
        await asyncio.gather(*(publisher.publish("order.created", {"n": n}) for n in range(count)))


def most_within_a_second(receiver: Receiver) -> int:
    times = [request.at_s for request in receiver.requests]
    return max(sum(start <= one < start + 1 for one in times) for start in times)


async def test_turns_that_passed_during_the_wait_are_not_made_up_for(
    system: System, api: Api, receiver: Receiver, tokens: TokenServer
) -> None:
    auth = tokens.auth("c", "s")
    await api.subscribe(receiver.url("/hook"), auth=auth, timeout_s=30, rate_limit={"requests_per_s": 2, "burst": 1})
    async with system.dispatcher():
        await publish(system, 8)

        async def several_wait() -> bool:
            claimed = await system.value("SELECT count(*) FROM deliveries WHERE claimed_by IS NOT NULL")
            return bool(claimed >= 5)

        await eventually(several_wait)
        let_go(tokens)
        await system.settled({"delivered": 8})
    assert most_within_a_second(receiver) <= 3
    assert await system.value("SELECT count(*) FROM attempts") == 8


async def test_a_request_that_is_made_again_after_a_401_takes_a_turn_too(
    system: System, api: Api, receiver: Receiver, tokens: TokenServer
) -> None:
    let_go(tokens)
    url = receiver.behave("/hook", Behaviour(status=401))
    limit = {"requests_per_s": 3, "burst": 1}
    await api.subscribe(url, auth=tokens.auth("c", "s"), retry_policy=ONCE, rate_limit=limit)
    async with system.dispatcher():
        await publish(system, 6)
        await system.settled({"dead": 6})
    assert most_within_a_second(receiver) <= 4


async def delete(api: Api, made: dict[str, Any]) -> None:
    await api.ask("DELETE", f"/v1/subscriptions/{made['id']}")


async def pause(api: Api, made: dict[str, Any]) -> None:
    await api.call("PATCH", f"/v1/subscriptions/{made['id']}", {"state": "paused"})


async def disable(api: Api, made: dict[str, Any]) -> None:
    await api.call("PATCH", f"/v1/subscriptions/{made['id']}", {"state": "disabled"})


@pytest.mark.parametrize(
    ("change", "status"), [(delete, "canceled"), (pause, "held"), (disable, "dead")], ids=["delete", "pause", "disable"]
)
async def test_nothing_goes_to_a_subscription_that_is_stopped_during_the_wait(
    system: System, api: Api, receiver: Receiver, tokens: TokenServer, change: Change, status: str
) -> None:
    made = await api.subscribe(receiver.url("/hook"), auth=tokens.auth("c", "s"), timeout_s=30)
    async with system.dispatcher(feeder_period_s=0.1):
        await publish(system, 1)
        await eventually(lambda: asked(tokens))
        await change(api, made)
        # Another one's delivery makes this dispatcher know of the change, as the feeder does within its period.
        await api.subscribe(receiver.url("/other"), "other")
        async with system.publisher() as publisher:
            await publisher.publish("other", {})
        await receiver.wait_for(1)
        let_go(tokens)

        async def freed() -> bool:
            rows = await system.fetch("SELECT status, claimed_by FROM deliveries WHERE event_type = 'order.created'")
            return [(row["status"], row["claimed_by"]) for row in rows] == [(status, None)]

        await eventually(freed)
    assert not receiver.to("/hook")


async def test_what_waited_goes_where_the_subscription_leads_by_then(
    system: System, api: Api, receiver: Receiver, tokens: TokenServer
) -> None:
    made = await api.subscribe(receiver.url("/old"), auth=tokens.auth("c", "s"), timeout_s=30)
    async with system.dispatcher():
        await publish(system, 1)
        await eventually(lambda: asked(tokens))
        await api.call("PATCH", f"/v1/subscriptions/{made['id']}", {"url": receiver.url("/new"), "auth": None})
        await publish(system, 1)
        await receiver.wait_for(1)  # so this dispatcher knows it
        let_go(tokens)
        await system.settled({"delivered": 2})
    assert not receiver.to("/old")
    assert not any("authorization" in request.headers for request in receiver.requests)
