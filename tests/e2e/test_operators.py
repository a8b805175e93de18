"""What an operator does while deliveries wait: change, pause, delete, cancel, retry, replay, test."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook

from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, System
from tests.support.waiting import eventually

SLOWLY = {"delays_s": [2.0, 2.0, 2.0]}
ONCE: dict[str, list[float]] = {"delays_s": []}


async def waiting_retry(system: System, api: Api, receiver: Receiver, **more: object) -> dict[str, Any]:
    """A subscription whose one delivery has failed once and waits for its retry."""
    subscription = await api.subscribe(
        receiver.behave("/hook", Behaviour(status=500)), **{"retry_policy": SLOWLY, **more}
    )
    async with system.publisher() as publisher:
        await publisher.publish("order.created", {"n": 1})
    await system.settled({"retrying": 1})
    return subscription


async def test_a_changed_url_takes_effect_on_a_waiting_retry(system: System, api: Api, receiver: Receiver) -> None:
    async with system.dispatcher():
        subscription = await waiting_retry(system, api, receiver)
        await api.call("PATCH", f"/v1/subscriptions/{subscription['id']}", {"url": receiver.url("/new")})
        await system.settled({"delivered": 1})
    assert [request.path for request in receiver.requests] == ["/hook", "/new"]
    assert len({request.webhook_id for request in receiver.requests}) == 1


async def test_a_rotated_secret_takes_effect_on_a_waiting_retry(system: System, api: Api, receiver: Receiver) -> None:
    """The new one signs at once; the old one until its grace is over."""
    async with system.dispatcher():
        subscription = await waiting_retry(system, api, receiver)
        rotated = await api.call("POST", f"/v1/subscriptions/{subscription['id']}/rotate-secret", {"grace_s": 3600})
        assert rotated["secret"] != subscription["secret"]
        (_, request) = await receiver.wait_for(2, deadline_s=20)
    for secret in (subscription["secret"], rotated["secret"]):
        Webhook(secret).verify(request.body, dict(request.headers))


async def test_a_changed_policy_takes_effect_on_a_waiting_retry(system: System, api: Api, receiver: Receiver) -> None:
    async with system.dispatcher():
        subscription = await waiting_retry(system, api, receiver)
        await api.call("PATCH", f"/v1/subscriptions/{subscription['id']}", {"retry_policy": {"delays_s": [2.0]}})
        await system.settled({"dead": 1})
    assert len(receiver.requests) == 2


async def test_deleting_a_subscription_cancels_its_waiting_retries(
    system: System, api: Api, receiver: Receiver
) -> None:
    async with system.dispatcher():
        subscription = await waiting_retry(system, api, receiver)
        await api.call("DELETE", f"/v1/subscriptions/{subscription['id']}")
        await system.settled({"canceled": 1})
        receiver.behave("/marker", Behaviour())
        await api.subscribe(receiver.url("/marker"), "marker", retry_policy=ONCE)
        async with system.publisher() as publisher:
            await publisher.publish("order.created", {"n": 2})
            await publisher.publish("marker", None)

        # The canceled one's work item comes and finds no row to claim.
        async def past_its_time() -> bool:
            due = await system.value("SELECT min(updated_at) FROM deliveries WHERE status = 'canceled'")
            return bool(due < datetime.now(UTC) - timedelta(seconds=4))

        await eventually(past_its_time)
    assert [request.path for request in receiver.requests] == ["/hook", "/marker"]


async def test_disabling_makes_the_waiting_dead_with_a_dead_letter_each(
    system: System, api: Api, receiver: Receiver
) -> None:
    async with system.dispatcher():
        subscription = await waiting_retry(system, api, receiver)
        await api.call("PATCH", f"/v1/subscriptions/{subscription['id']}", {"state": "disabled"})
        await system.settled({"dead": 1})
    (letter,) = await api.all("/v1/dead-letters")
    assert letter["kind"] == "delivery"


async def test_a_paused_subscription_keeps_its_backlog_and_is_fed_when_it_resumes(
    system: System, api: Api, receiver: Receiver
) -> None:
    subscription = await api.subscribe(receiver.url("/hook"))
    path = f"/v1/subscriptions/{subscription['id']}"
    async with system.dispatcher(), system.publisher() as publisher:
        await api.call("PATCH", path, {"state": "paused"})
        for number in range(20):
            await publisher.publish("order.created", {"n": number})
        await system.settled({"held": 20})
        assert not receiver.requests
        await api.call("PATCH", path, {"state": "enabled"})
        await system.settled({"delivered": 20})

        async def open_again() -> bool:
            return bool(await system.value("SELECT mode FROM subscriptions") == "open")

        await eventually(open_again)


async def test_410_disables_the_subscription(system: System, api: Api, receiver: Receiver) -> None:
    subscription = await api.subscribe(receiver.behave("/hook", Behaviour(status=410)))
    async with system.dispatcher(), system.publisher() as publisher:
        await publisher.publish("order.created", {"n": 1})
        await system.settled({"dead": 1})

        async def disabled() -> bool:
            shown = await api.call("GET", f"/v1/subscriptions/{subscription['id']}")
            return bool(shown["state"] == "disabled" and "410" in shown["state_reason"])

        await eventually(disabled)
        await publisher.publish("order.created", {"n": 2})
        await publisher.publish("order.last", None)
    assert len(receiver.requests) == 1


async def test_a_retry_by_hand_does_not_wait(system: System, api: Api, receiver: Receiver) -> None:
    async with system.dispatcher():
        await waiting_retry(system, api, receiver, retry_policy={"delays_s": [3600.0]})
        receiver.behave("/hook", Behaviour())
        (delivery,) = await api.all("/v1/deliveries")
        await api.call("POST", f"/v1/deliveries/{delivery['id']}/retry")
        await system.settled({"delivered": 1})
    whole = await api.call("GET", f"/v1/deliveries/{delivery['id']}")
    assert [attempt["number"] for attempt in whole["attempts"]] == [1, 2]


async def test_a_canceled_delivery_is_not_attempted_again(system: System, api: Api, receiver: Receiver) -> None:
    async with system.dispatcher():
        await waiting_retry(system, api, receiver, retry_policy={"delays_s": [3600.0]})
        (delivery,) = await api.all("/v1/deliveries")
        await api.call("POST", f"/v1/deliveries/{delivery['id']}/cancel")
    assert await system.statuses() == {"canceled": 1}


async def test_a_dead_letter_is_replayed_with_its_webhook_id(system: System, api: Api, receiver: Receiver) -> None:
    await api.subscribe(receiver.behave("/hook", Behaviour(status=500)), retry_policy=ONCE)
    async with system.dispatcher(), system.publisher() as publisher:
        published = await publisher.publish("order.created", {"n": 1})
        await system.settled({"dead": 1})
        receiver.behave("/hook", Behaviour())
        (letter,) = await api.all("/v1/dead-letters")
        await api.call("POST", f"/v1/dead-letters/{letter['id']}/replay")
        await system.settled({"delivered": 1})
    assert {request.webhook_id for request in receiver.requests} == {published.id}
    whole = await api.call("GET", f"/v1/deliveries/{letter['delivery_id']}")
    assert [(attempt["cycle"], attempt["number"]) for attempt in whole["attempts"]] == [(0, 1), (1, 1)]
    assert (await api.call("GET", f"/v1/dead-letters/{letter['id']}"))["state"] == "replayed"


async def test_a_replay_that_dies_again_leaves_a_second_dead_letter(
    system: System, api: Api, receiver: Receiver
) -> None:
    await api.subscribe(receiver.behave("/hook", Behaviour(status=500)), retry_policy=ONCE)
    async with system.dispatcher(), system.publisher() as publisher:
        await publisher.publish("order.created", {"n": 1})
        await system.settled({"dead": 1})
        (letter,) = await api.all("/v1/dead-letters")
        await api.call("POST", f"/v1/dead-letters/{letter['id']}/replay")

        async def died_again() -> bool:
            return len(await api.all("/v1/dead-letters")) == 2

        await eventually(died_again)


async def test_a_replay_by_filter_takes_what_died_and_nothing_else(
    system: System, api: Api, receiver: Receiver
) -> None:
    broken = await api.subscribe(receiver.behave("/broken", Behaviour(status=500)), retry_policy=ONCE)
    await api.subscribe(receiver.url("/well"))
    async with system.dispatcher(), system.publisher() as publisher:
        for number in range(30):
            await publisher.publish("order.created", {"n": number})
        await system.settled({"dead": 30, "delivered": 30})
        receiver.behave("/broken", Behaviour())
        replay = await api.call("POST", "/v1/replays", {"subscription_id": broken["id"], "status": ["dead"]})
        assert replay["matched"] == 30
        await system.settled({"delivered": 60})

        async def completed() -> bool:
            shown = await api.call("GET", f"/v1/replays/{replay['id']}")
            return bool(shown["state"] == "completed" and shown["replayed"] == 30 and shown["skipped"] == 0)

        await eventually(completed)
    assert len(receiver.to("/well")) == 30
    assert len(receiver.to("/broken")) == 60


async def test_a_test_event_is_signed_and_delivered_to_this_subscription_only(
    system: System, api: Api, receiver: Receiver
) -> None:
    asked = await api.subscribe(receiver.url("/asked"), "order.#")
    await api.subscribe(receiver.url("/other"), "#")
    async with system.dispatcher():
        answer = await api.call("POST", f"/v1/subscriptions/{asked['id']}/test?wait_s=20", expect=200)
        assert answer["attempt"]["outcome"] == "delivered"
        await system.settled({"delivered": 1})
    (request,) = receiver.requests
    assert request.path == "/asked"
    Webhook(asked["secret"]).verify(request.body, dict(request.headers))
    assert (await api.call("GET", f"/v1/deliveries/{answer['id']}"))["status"] == "delivered"


@pytest.mark.parametrize("event_type", ["order.created"])
async def test_a_stopping_dispatcher_finishes_what_is_in_flight_and_gives_back_the_rest(
    system: System, api: Api, receiver: Receiver, event_type: str
) -> None:
    await api.subscribe(receiver.behave("/slow", Behaviour(delay_s=0.5)))
    async with system.dispatcher(endpoint_max_in_flight=2), system.publisher() as publisher:
        for number in range(20):
            await publisher.publish(event_type, {"n": number})
        await receiver.wait_for(2)
    assert await system.value("SELECT count(*) FROM deliveries WHERE claimed_by IS NOT NULL") == 0
    assert await system.value("SELECT count(*) FROM dispatchers") == 0
    async with system.dispatcher():
        await system.settled({"delivered": 20}, deadline_s=30)
    assert len(receiver.requests) == 20
