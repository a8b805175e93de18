"""The catalogue of event types at the broker: what breaks a schema ends in the dead letters, the rest goes its way."""

import base64

import orjson
import pytest

from dispatcher import event_checks
from infra.broker.base import Broker, Outgoing, ToEvents
from schemas.messages import Message
from tests.support.receivers import Receiver
from tests.support.system import Api, System
from tests.support.waiting import eventually

WANTED = {
    "name": "order.created",
    "schema": {"properties": {"total": {"type": "string"}}, "required": ["total"]},
}
BAD = Message(b'{"type":"order.created","data":{"total":4711},"tenant":"acme"}')


async def publish(broker: Broker, *messages: Message) -> None:
    outgoing = [Outgoing(ToEvents("order.created"), message) for message in messages]
    assert set(await broker.publish_many(outgoing, timeout_s=5)) == {None}


async def letters(api: Api, number: int) -> list[dict[str, object]]:
    async def kept() -> bool:
        return len(await api.all("/v1/dead-letters")) == number

    await eventually(kept)
    return await api.all("/v1/dead-letters")


async def test_a_schema_holds_for_what_is_published_after_its_answer(
    system: System, api: Api, receiver: Receiver
) -> None:
    """Each time anew: an event that kept to no schema before is refused at once, and a good one beside it delivered."""
    await api.subscribe(receiver.url("/hook"))
    async with system.dispatcher(), system.broker() as broker:
        for number in range(3):
            name = f"order.v{number}"
            before = b'{"type":"%b","data":{"total":1}}' % name.encode()
            await publish(broker, Message(before))
            await system.settled({"delivered": 2 * number + 1})
            await api.call("POST", "/v1/event-types", WANTED | {"name": name}, expect=201)
            good = b'{"type":"%b","data":{"total":"1"}}' % name.encode()
            await publish(broker, Message(before), Message(good))
            await letters(api, number + 1)
            await system.settled({"delivered": 2 * number + 2})


async def test_what_takes_long_to_check_is_admitted_in_more_transactions_and_in_order_all_the_same(
    system: System, api: Api, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_checks, "_LONGEST_S", 0)  # one event in each
    await api.subscribe(receiver.url("/hook"), tenant="acme", ordered=True)
    await api.call("POST", "/v1/event-types", WANTED, expect=201)
    good = [Message(BAD.body.replace(b"4711", b'"%d"' % number)) for number in range(6)]
    async with system.dispatcher(ordered_admission=True), system.broker() as broker:
        for one in (*good[:3], BAD, BAD, *good[3:]):
            await publish(broker, one)
        await letters(api, 2)
        await system.settled({"delivered": 6})
    assert [orjson.loads(request.body)["data"]["total"] for request in receiver.requests] == list("012345")


async def test_its_dead_letter_says_why_and_is_checked_again_when_it_is_replayed(
    system: System, api: Api, receiver: Receiver
) -> None:
    await api.subscribe(receiver.url("/hook"), tenant="acme")
    await api.call("POST", "/v1/event-types", WANTED, expect=201)
    async with system.dispatcher(), system.broker() as broker:
        await publish(broker, BAD)
        (letter,) = await letters(api, 1)
        assert (letter["kind"], letter["tenant"]) == ("invalid", "acme")
        assert letter["reason"] == "data.total: must be text (#/properties/total/type)"
        whole = await api.call("GET", f"/v1/dead-letters/{letter['id']}")
        assert base64.b64decode(whole["body_base64"]) == BAD.body
        await api.call("POST", f"/v1/dead-letters/{letter['id']}/replay")
        again = next(one for one in await letters(api, 2) if one["id"] != letter["id"])
        await api.call("POST", "/v1/event-types/order.created/versions", {"schema": {}}, expect=201)
        await api.call("POST", f"/v1/dead-letters/{again['id']}/replay")
        await system.settled({"delivered": 1})
        (event,) = await api.all("/v1/events")
        assert event["external_id"] == letter["message_id"]  # whatever message_id each replay was published with
    assert len(receiver.requests) == 1
