"""A subscription's filter decides at admission; what it keeps out is no delivery."""

from tests.support.receivers import Receiver
from tests.support.system import Api, System


async def test_only_what_passes_the_filter_is_delivered_and_a_changed_one_holds_for_the_next_event(
    system: System, api: Api, receiver: Receiver
) -> None:
    filtered = await api.subscribe(receiver.url("/large"), filter={"data.amount": {"$gte": 100}})
    await api.subscribe(receiver.url("/all"))
    async with system.dispatcher(), system.publisher() as publisher:
        for data in ({"amount": 99}, {"amount": 100}, {"amount": "100"}, None):
            await publisher.publish("order.created", data)
        await system.settled({"delivered": 5})
        await api.call("PATCH", f"/v1/subscriptions/{filtered['id']}", {"filter": None})
        await publisher.publish("order.created", {"amount": 1})
        await system.settled({"delivered": 7})
    assert [len(receiver.to(path)) for path in ("/large", "/all")] == [2, 5]


async def test_the_previewed_request_is_the_one_that_is_sent(system: System, api: Api, receiver: Receiver) -> None:
    subscription = await api.subscribe(
        receiver.url("/hook?a=%62"), headers={"X-Region": {"value": "eu", "secret": False}, "X-Key": "s3cret"}
    )
    event = {"type": "order.created", "data": {"n": 1}, "time": "2026-01-31T12:00:00Z", "headers": {"X-Event": "e"}}
    path = f"/v1/subscriptions/preview?subscription_id={subscription['id']}"
    previewed = (await api.call("POST", path, event, expect=200))["subscription"]["request"]
    async with system.dispatcher():
        await api.call("POST", "/v1/events", event)
        (request,) = await receiver.wait_for(1)
    assert previewed["url"] == receiver.url("/hook?a=%62")
    assert previewed["body"].encode() == request.body
    varies = {"webhook-id", "webhook-timestamp", "webhook-signature", "x-key"}
    sent = {name.lower(): value for name, value in request.all_headers}
    shown = {name.lower(): value for name, value in previewed["headers"]}
    assert list(shown) == [name for name in sent if name != "traceparent"]
    assert all(shown[name] == sent[name] for name in shown.keys() - varies)
