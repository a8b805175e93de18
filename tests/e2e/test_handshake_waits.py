"""What time does to a delivery while its endpoint is asked: a turn that passes, an age that is reached, a stop."""

import asyncio
from typing import Any

import pytest

from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, System
from tests.support.waiting import eventually

AGREED = {"WebHook-Allowed-Origin": "*"}
ASKED: dict[str, Any] = {"format": "cloudevents_structured", "handshake": True, "timeout_s": 30}


async def publish(system: System, count: int) -> None:
    async with system.publisher() as publisher:
        await asyncio.gather(*(publisher.publish("order.created", {"n": n}) for n in range(count)))


@pytest.mark.parametrize("consent", [AGREED, AGREED | {"WebHook-Allowed-Rate": "60"}])
async def test_turns_that_passed_during_the_handshake_are_not_made_up_for(
    system: System, api: Api, receiver: Receiver, consent: dict[str, str]
) -> None:
    hold = asyncio.Event()
    url = receiver.behave("/hook", Behaviour(consent=consent, hold=hold))
    await api.subscribe(url, rate_limit={"requests_per_s": 1, "burst": 1}, **ASKED)
    async with system.dispatcher():
        await publish(system, 6)
        await receiver.wait_for(1)

        async def several_wait() -> bool:
            claimed = await system.value("SELECT count(*) FROM deliveries WHERE claimed_by IS NOT NULL")
            return bool(claimed >= 4)

        await eventually(several_wait)
        hold.set()
        await system.settled({"delivered": 6})
    posts = [request.at_s for request in receiver.requests if request.method == "POST"]
    assert max(sum(start <= one < start + 1 for one in posts) for start in posts) <= 2
    assert await system.value("SELECT count(*) FROM attempts") == 6


async def test_what_becomes_too_old_during_the_handshake_is_not_sent(
    system: System, api: Api, receiver: Receiver
) -> None:
    hold = asyncio.Event()
    url = receiver.behave("/hook", Behaviour(consent=AGREED, hold=hold))
    await api.subscribe(url, retry_policy={"delays_s": [1.0], "max_age_s": 2}, **ASKED)
    async with system.dispatcher():
        await publish(system, 1)
        await receiver.wait_for(1)

        async def is_old() -> bool:
            return bool(await system.value("SELECT clock_timestamp() - admitted_at > interval '2.5 s' FROM events"))

        await eventually(is_old)
        hold.set()
        await system.settled({"dead": 1})
    assert [request.method for request in receiver.requests] == ["OPTIONS"]


async def test_a_stop_during_the_handshake_spends_no_attempt(system: System, api: Api, receiver: Receiver) -> None:
    hold = asyncio.Event()
    url = receiver.behave("/hook", Behaviour(consent=AGREED, hold=hold))
    await api.subscribe(url, retry_policy={"delays_s": []}, **ASKED)
    async with system.dispatcher(drain_s=0.5):
        await publish(system, 3)
        await receiver.wait_for(1)

        async def all_wait() -> bool:
            return await system.statuses() == {"pending": 3}

        await eventually(all_wait)
    assert await system.statuses() == {"held": 3}
    assert await system.value("SELECT count(*) FROM attempts") == 0
    hold.set()
    async with system.dispatcher():
        await system.settled({"delivered": 3})


async def test_what_an_endpoint_says_back_of_its_credentials_is_hidden_in_the_reason(
    system: System, api: Api, receiver: Receiver, capfd: pytest.CaptureFixture[str]
) -> None:
    token = "a-token-4be9c1d7"
    url = receiver.behave("/hook", Behaviour(consent={"WebHook-Allowed-Origin": f"Bearer {token}"}))
    await api.subscribe(url, auth={"type": "bearer", "token": token}, retry_policy={"delays_s": []}, **ASKED)
    async with system.dispatcher():
        await publish(system, 1)
        await system.settled({"dead": 1})
    (request,) = receiver.requests
    assert request.headers["authorization"] == f"Bearer {token}"
    (reason,) = [row["reason"] for row in await system.fetch("SELECT reason FROM attempts")]
    assert "WebHook-Allowed-Origin" in reason
    captured = capfd.readouterr()
    assert token not in reason + captured.out + captured.err
