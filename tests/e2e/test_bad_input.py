"""Bad input on the queue: never a crash, never a blocked queue, never a silent drop."""

import base64

import pytest

from infra.broker.base import Broker, Outgoing, ToEvents
from schemas.messages import Message
from tests.support.receivers import Receiver
from tests.support.system import Api, System
from tests.support.waiting import eventually

BAD = {
    "not json": (Message(b"\xff\x00 not json", type="order.created"), "body"),
    "no type": (Message(b'{"data": {"n": 1}}'), "type"),
    "no data": (Message(b'{"type": "order.created"}'), "data"),
    "a type that is no topic": (Message(b'{"type": "order created", "data": 1}'), "type"),
    "a wrong version": (
        Message(b"{}", headers={"cloudEvents_specversion": "0.3", "cloudEvents_type": "order.created"}),
        "specversion",
    ),
    "not text": (Message(b'{"type": "a.b", "data": 1, "tenant": "a/b"}'), "tenant"),
    "too large": (Message(b'{"type": "a.b", "data": "' + b"x" * 300_000 + b'"}'), "body"),
    "nested too deep": (Message(b'{"type": "a.b", "data": ' + b"[" * 5000 + b"]" * 5000 + b"}"), "body"),
    "empty": (Message(b""), "body"),
}


async def publish(broker: Broker, message: Message) -> None:
    await broker.publish(Outgoing(ToEvents("order.created"), message), timeout_s=5)


@pytest.mark.parametrize("name", BAD)
async def test_it_ends_in_the_dead_letters_with_the_reason_and_its_bytes(system: System, api: Api, name: str) -> None:
    message, field = BAD[name]
    async with system.dispatcher(), system.broker() as broker:
        await publish(broker, message)

        async def kept() -> bool:
            return len(await api.all("/v1/dead-letters")) == 1

        await eventually(kept)
        (letter,) = await api.all("/v1/dead-letters")
    assert letter["kind"] == "unreadable"
    assert letter["reason"].startswith(f"{field}: "), letter["reason"]
    whole = await api.call("GET", f"/v1/dead-letters/{letter['id']}")
    assert base64.b64decode(whole["body_base64"]) == message.body


async def test_poison_one_in_three_keeps_the_good_ones_going(system: System, api: Api, receiver: Receiver) -> None:
    await api.subscribe(receiver.url("/hook"))
    good = 200
    async with system.dispatcher(), system.broker() as broker:
        batch = []
        for number in range(good):
            batch.append(Message(b'{"type": "order.created", "data": {"n": %d}, "id": "%d"}' % (number, number)))
            if number % 2:
                batch.append(Message(b"poison %d" % number))
        errors = await broker.publish_many([Outgoing(ToEvents("order.created"), one) for one in batch], timeout_s=10)
        assert set(errors) == {None}
        await system.settled({"delivered": good})

        async def kept() -> bool:
            return bool(await system.value("SELECT count(*) FROM dead_letters") == good // 2)

        await eventually(kept, deadline_s=20)
    assert len(receiver.requests) == good


async def test_what_was_unreadable_is_replayed_as_it_came(system: System, api: Api) -> None:
    async with system.dispatcher(), system.broker() as broker:
        await publish(broker, Message(b"poison"))

        async def letters(number: int) -> bool:
            return len(await api.all("/v1/dead-letters")) == number

        await eventually(lambda: letters(1))
        (letter,) = await api.all("/v1/dead-letters")
        await api.call("POST", f"/v1/dead-letters/{letter['id']}/replay")
        await eventually(lambda: letters(2))
    states = {one["id"]: one["state"] for one in await api.all("/v1/dead-letters")}
    assert states.pop(letter["id"]) == "replayed"
    assert set(states.values()) == {"open"}


async def test_a_conflict_that_is_replayed_and_still_is_one_is_a_dead_letter_anew(system: System, api: Api) -> None:
    async with system.dispatcher(), system.broker() as broker:
        for said in (b"1", b"2"):
            await publish(broker, Message(b'{"type":"a.b","id":"e-1","source":"shop","data":%b}' % said))

        async def letters(number: int) -> bool:
            return len(await api.all("/v1/dead-letters")) == number

        await eventually(lambda: letters(1))
        (letter,) = await api.all("/v1/dead-letters")
        await api.call("POST", f"/v1/dead-letters/{letter['id']}/replay")
        await eventually(lambda: letters(2))
    told = {one["id"]: (one["kind"], one["state"], one["event_id"]) for one in await api.all("/v1/dead-letters")}
    assert told.pop(letter["id"]) == ("conflict", "replayed", letter["event_id"])
    assert list(told.values()) == [("conflict", "open", letter["event_id"])]
