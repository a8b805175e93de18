"""Events sent again and expunged, over real brokers."""

import asyncio
from typing import Any

from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, System
from tests.support.waiting import eventually


async def test_an_event_sent_again_has_its_webhook_id_and_is_told_apart_by_its_cycle(
    system: System, api: Api, receiver: Receiver
) -> None:
    """To who had it, and to a subscription that was made later."""
    first = await api.subscribe(receiver.url("/first"), retry_policy={"delays_s": [], "max_age_s": 60})
    async with system.dispatcher(), system.publisher() as publisher:
        published = await publisher.publish("order.created", {"n": 1})
        await system.settled({"delivered": 1})
        later = await api.subscribe(receiver.url("/later"))
        done = await api.call("POST", f"/v1/events/{published.id}/redeliver", expect=202)
        assert [one["subscription_id"] for one in done["deliveries"]] == [first["id"]]
        named = {"subscription_id": later["id"]}
        made = await api.call("POST", f"/v1/events/{published.id}/redeliver", named, expect=202)
        await receiver.wait_for(2, path="/first")
        await receiver.wait_for(1, path="/later")
        await system.settled({"delivered": 2})
    assert {request.webhook_id for request in receiver.requests} == {published.id}
    assert len({request.body for request in receiver.requests}) == 1
    whole = await api.call("GET", f"/v1/deliveries/{done['deliveries'][0]['delivery_id']}")
    assert [(one["cycle"], one["number"]) for one in whole["attempts"]] == [(0, 1), (1, 1)]
    told = [one["what"] for one in whole["timeline"]]
    assert told == ["event_accepted", "event_admitted", "attempt", "cycle_began", "attempt"]
    new = await api.call("GET", f"/v1/deliveries/{made['deliveries'][0]['delivery_id']}")
    assert [(one["cycle"], one["outcome"]) for one in new["attempts"]] == [(1, "delivered")]


async def test_an_expunged_event_is_never_sent_again(system: System, api: Api, receiver: Receiver) -> None:
    """Neither what waits for a retry, nor by replay, retry or redelivery; and published again it is a duplicate."""
    subscription = await api.subscribe(
        receiver.behave("/hook", Behaviour(status=500)), retry_policy={"delays_s": [3600]}
    )
    async with system.dispatcher(), system.publisher() as publisher:
        published = await publisher.publish("order.created", {"n": 1}, id="e-1")
        await system.settled({"retrying": 1})
        (delivery,) = await api.all("/v1/deliveries")
        path = f"/v1/events/{published.id}"
        assert (await api.call("POST", f"{path}/expunge", expect=200))["canceled"] == 1
        for again in (
            f"{path}/redeliver",
            *(f"/v1/deliveries/{delivery['id']}/{verb}" for verb in ("retry", "replay")),
        ):
            status, answer = await api.ask("POST", again)
            assert (status, answer["error"]["code"]) == (409, "expunged")
        wanted = {"subscription_id": subscription["id"], "status": ["canceled"]}
        replay = await api.call("POST", "/v1/replays", wanted, expect=202)

        async def completed() -> bool:
            return bool((await api.call("GET", f"/v1/replays/{replay['id']}"))["state"] == "completed")

        await eventually(completed)
        # Whatever it says now: admitted, it would be another delivery, and a conflict would be a dead letter.
        await publisher.publish("order.created", {"n": 2}, id="e-1")
        receiver.behave("/hook", Behaviour())
        await publisher.publish("order.created", {"n": 3})
        await system.settled({"canceled": 1, "delivered": 1})
        assert await api.all("/v1/dead-letters") == []
    assert [request.body.count(b'"n":3') for request in receiver.requests] == [0, 1]
    assert (await api.call("GET", path))["data"] is None


async def test_what_is_in_hand_when_it_is_expunged_leaves_nothing_of_its_answer(
    system: System, api: Api, receiver: Receiver
) -> None:
    hold = asyncio.Event()
    await api.subscribe(receiver.behave("/slow", Behaviour(hold=hold)))
    async with system.dispatcher(), system.publisher() as publisher:
        published = await publisher.publish("order.created", {"n": 1})
        await receiver.wait_for(1)
        done = await api.call("POST", f"/v1/events/{published.id}/expunge", expect=200)
        assert (done["canceled"], done["in_progress"]) == (1, 1)
        hold.set()

        async def recorded() -> bool:
            return bool(await system.value("SELECT count(*) FROM attempts"))

        await eventually(recorded)
    (attempt,) = await system.fetch("SELECT superseded, status_code, response_body, response_headers FROM attempts")
    assert dict(attempt) == {"superseded": True, "status_code": 200, "response_body": None, "response_headers": None}
    assert await system.statuses() == {"canceled": 1}


async def test_a_waiting_delivery_of_what_was_expunged_ends_without_a_post(
    system: System, api: Api, receiver: Receiver
) -> None:
    """As one that a process of an earlier release has begun again, which does not know of expunging."""
    await api.subscribe(receiver.url("/hook"))
    async with system.dispatcher(), system.publisher() as publisher:
        published = await publisher.publish("order.created", {"n": 1})
        await system.settled({"delivered": 1})
        await api.call("POST", f"/v1/events/{published.id}/expunge", expect=200)
        await system.fetch("UPDATE deliveries SET status = 'held', cycle = 1, attempts = 0")
        await system.fetch("UPDATE subscriptions SET mode = 'held'")
        await system.settled({"canceled": 1})
    (row,) = await system.fetch("SELECT reason, attempts, claimed_by FROM deliveries")
    expected: dict[str, Any] = {"reason": "its event was expunged", "attempts": 0, "claimed_by": None}
    assert dict(row) == expected
    assert len(receiver.requests) == 1
