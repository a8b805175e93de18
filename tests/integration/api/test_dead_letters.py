"""`/v1/dead-letters`: list, get with the original bytes, replay, discard."""

import base64
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from infra.broker.base import Queue
from infra.broker.open import open_broker
from infra.settings import Settings
from infra.store.dead_letters import pack_properties
from infra.store.store import Store
from schemas.events import ACCEPTED_MS_HEADER, ID_HEADER, Event, read_event
from schemas.ids import DEAD_LETTER, DELIVERY, EVENT, event_key, key_time, public_id
from schemas.messages import Message
from tests.support import rows
from tests.support.api import ApiClient

LETTERS = "/v1/dead-letters"
MESSAGE = Message(
    body=b'{"n":12345678901234567890123}',
    headers={
        "cloudEvents_specversion": "1.0",
        "cloudEvents_type": "order.created",
        "cloudEvents_source": "shop",
        "cloudEvents_id": "4711",
        "hookhare-reason": "it came back too often",
        ACCEPTED_MS_HEADER: 1,
    },
    content_type="application/json",
    app_id="shop",
)


def _path(key: UUID) -> str:
    return f"{LETTERS}/{public_id(DEAD_LETTER, key)}"


async def _add_message(store: Store, message: Message = MESSAGE, kind: str = "over_delivery_limit") -> UUID:
    async with store.transaction() as conn:
        return await rows.add_message_letter(
            conn, kind=kind, body=message.body, headers=pack_properties(message), routing_key="events"
        )


async def _add_delivery(store: Store) -> tuple[UUID, UUID]:
    """A dead delivery and its dead letter."""
    async with store.transaction() as conn:
        delivery = await rows.add_delivery(conn, (await rows.add_subscription(conn)).id, "dead", tenant="acme")
        (letter,) = await rows.letters(conn, delivery)
        return delivery, letter["id"]


async def test_a_message_is_shown_with_its_original_bytes(api: ApiClient, store: Store) -> None:
    shown = await api.get(_path(await _add_message(store)))
    assert base64.b64decode(shown["body_base64"]) == MESSAGE.body
    assert shown["body_text"] == MESSAGE.body.decode()
    assert (shown["kind"], shown["state"], shown["routing_key"]) == ("over_delivery_limit", "open", "events")
    assert shown["message"]["content_type"] == "application/json"
    assert ["cloudEvents_type", "order.created"] in shown["message"]["headers"]


async def test_the_original_bytes_are_downloaded_as_they_came(api: ApiClient, store: Store) -> None:
    raw = b"\x00\xff<script>"
    for key, body in (
        (await _add_message(store, Message(raw), kind="unreadable"), raw),
        (await _add_message(store, Message(b""), kind="unreadable"), b""),
        ((await _add_delivery(store))[1], b'{"n":1}'),
    ):
        answer = await api.call("GET", f"{_path(key)}/body")
        assert (answer.status, answer.raw) == (200, body)
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        disposition = f'attachment; filename="{public_id(DEAD_LETTER, key)}.bin"'
        assert answer.headers["Content-Disposition"] == disposition


async def test_a_dead_letter_without_bytes_has_none_to_download(api: ApiClient, store: Store) -> None:
    """As of a delivery whose event is past its retention."""
    _, letter = await _add_delivery(store)
    async with store.transaction() as conn:
        await conn.execute("DELETE FROM events")
    answer = await api.call("GET", f"{_path(letter)}/body")
    assert (answer.status, answer.code) == (404, "not_found")
    assert "none any more" in answer.body["error"]["message"]


async def test_bytes_that_are_no_text_are_shown_in_base64_alone(api: ApiClient, store: Store) -> None:
    shown = await api.get(_path(await _add_message(store, Message(b"\x00\xff"), kind="unreadable")))
    assert base64.b64decode(shown["body_base64"]) == b"\x00\xff"
    assert shown["body_text"] is None


async def test_a_deliverys_dead_letter_is_shown_with_its_events_data(api: ApiClient, store: Store) -> None:
    delivery, letter = await _add_delivery(store)
    shown = await api.get(_path(letter))
    assert (shown["kind"], shown["reason"], shown["tenant"]) == ("delivery", "it is dead", "acme")
    assert shown["delivery_id"] == public_id(DELIVERY, delivery)
    assert shown["body_text"] == '{"n":1}'


async def test_dead_letters_are_listed_without_bodies_and_filtered(api: ApiClient, store: Store) -> None:
    delivery, letter = await _add_delivery(store)
    message = await _add_message(store)
    page = await api.get(LETTERS)
    assert {one["id"] for one in page["data"]} == {public_id(DEAD_LETTER, key) for key in (letter, message)}
    assert not any("body_base64" in one for one in page["data"])
    shown = await api.get(_path(letter))
    later = key_time(message).isoformat()
    for query in (
        {"kind": "delivery"},
        {"tenant": "acme"},
        {"subscription_id": shown["subscription_id"]},
        {"delivery_id": public_id(DELIVERY, delivery)},
        {"event_id": shown["event_id"]},
    ):
        listed = await api.get(LETTERS, **query)
        assert [one["id"] for one in listed["data"]] == [shown["id"]], query
    await api.post(f"{_path(letter)}/discard", status=200)
    assert [one["id"] for one in (await api.get(LETTERS, state="open"))["data"]] == [public_id(DEAD_LETTER, message)]
    assert [one["id"] for one in (await api.get(LETTERS, created_after=later))["data"]] == [
        public_id(DEAD_LETTER, message)
    ]
    answer = await api.call("GET", LETTERS, kind="letter", state="lost")
    assert answer.fields.keys() == {"kind", "state"}


async def test_replaying_a_deliverys_dead_letter_replays_the_delivery(api: ApiClient, store: Store) -> None:
    delivery, letter = await _add_delivery(store)
    answer = await api.post(f"{_path(letter)}/replay")
    assert (answer["state"], answer["settled_at"] is None) == ("replayed", False)
    shown = await api.get(f"/v1/deliveries/{public_id(DELIVERY, delivery)}")
    assert (shown["status"], shown["cycle"]) == ("held", 1)


async def test_a_deliverys_dead_letter_that_cannot_be_replayed_says_why_and_stays_open(
    api: ApiClient, store: Store
) -> None:
    _, letter = await _add_delivery(store)
    async with store.transaction() as conn:
        await conn.execute("UPDATE subscriptions SET state = 'disabled'")
    answer = await api.call("POST", f"{_path(letter)}/replay")
    assert (answer.status, answer.code) == (409, "conflict")
    assert "disabled" in answer.body["error"]["message"]
    assert (await api.get(_path(letter)))["state"] == "open"


async def test_replaying_a_message_publishes_its_bytes_and_headers_again_without_ours(
    api: ApiClient, store: Store, settings: Settings
) -> None:
    letter = await _add_message(store)
    assert (await api.post(f"{_path(letter)}/replay"))["state"] == "replayed"
    async with open_broker(settings) as broker, broker.consume(Queue.EVENTS, prefetch=10) as consumer:
        (received,) = await consumer.receive(10)
    assert received.routing_key == "order.created"
    assert received.message.body == MESSAGE.body
    assert received.message.content_type == MESSAGE.content_type
    assert received.message.app_id == "shop"
    accepted_ms = received.message.headers[ACCEPTED_MS_HEADER]
    theirs = {name: value for name, value in MESSAGE.headers.items() if name != "hookhare-reason"}
    assert received.message.headers == theirs | {ACCEPTED_MS_HEADER: accepted_ms, ID_HEADER: "4711"}
    event = read_event(received.message, now=key_time(uuid7()), fresh_id="x", max_bytes=1000)
    assert isinstance(event, Event)
    assert (event.external_id, event.data) == ("4711", MESSAGE.body)
    assert event.accepted_ms == accepted_ms  # of now, and so near enough to be believed
    key = event_key(event.accepted_ms or 0, "default", "shop", "4711")
    assert (await api.get(_path(letter)))["event_id"] == public_id(EVENT, key)


async def test_a_replayed_message_is_of_the_event_that_is_known_by_its_id_and_is_expunged_with_it(
    api: ApiClient, store: Store
) -> None:
    letter = await _add_message(store)
    async with store.transaction() as conn:
        event = await rows.add_event(conn, external_id="4711", digest=b"d" * 32)
    assert (await api.post(f"{_path(letter)}/replay"))["event_id"] == public_id(EVENT, event)
    await api.post(f"/v1/events/{public_id(EVENT, event)}/expunge", status=200)
    shown = await api.get(_path(letter))
    assert (shown["body_base64"], shown["message"]) == (None, None)


async def test_an_event_whose_id_is_its_message_id_is_the_same_event_when_it_is_replayed(
    api: ApiClient, store: Store, settings: Settings
) -> None:
    """And when it comes back and is replayed once more; the broker gives it another message id each time."""
    message = Message(b'{"type":"order.created","data":{}}', message_id="m-1")
    async with open_broker(settings) as broker, broker.consume(Queue.EVENTS, prefetch=10) as consumer:
        for message_id in ("m-1", "another"):
            async with store.transaction() as conn:
                letter = await rows.add_message_letter(
                    conn, message_id=message_id, body=message.body, headers=pack_properties(message)
                )
            shown = await api.post(f"{_path(letter)}/replay")
            (received,) = await consumer.receive(10)
            await consumer.ack([received])
            message = received.message
            assert message.message_id != "m-1"
            event = read_event(message, now=key_time(uuid7()), fresh_id="x", max_bytes=1000)
            assert isinstance(event, Event)
            assert event.external_id == "m-1"
            key = event_key(event.accepted_ms or 0, event.tenant, event.source, "m-1")
            assert shown["event_id"] == public_id(EVENT, key)


@pytest.mark.parametrize("kind", ["unreadable", "conflict", "unroutable"])
async def test_every_kind_of_message_can_be_published_again_also_what_is_no_event(
    api: ApiClient, store: Store, settings: Settings, kind: str
) -> None:
    message = Message(b"not json", headers={"x-raw": b"\xff"}, type="spaces are not allowed")
    letter = await _add_message(store, message, kind=kind)
    await api.post(f"{_path(letter)}/replay")
    async with open_broker(settings) as broker, broker.consume(Queue.EVENTS, prefetch=10) as consumer:
        (received,) = await consumer.receive(10)
    assert (received.message.body, received.message.type) == (b"not json", "spaces are not allowed")
    assert received.message.headers == {"x-raw": b"\xff"}


async def test_the_reason_for_a_discard_is_kept_and_shown(api: ApiClient, store: Store) -> None:
    _, letter = await _add_delivery(store)
    assert (await api.get(_path(letter)))["discard_reason"] is None
    for body, fields in (({"reason": ""}, ["reason"]), ({"reason": "a\x00"}, ["reason"]), ({"why": "x"}, ["why"])):
        answer = await api.call("POST", f"{_path(letter)}/discard", body)
        assert (answer.status, answer.code, list(answer.fields)) == (400, "validation_failed", fields)
    discarded = await api.post(f"{_path(letter)}/discard", {"reason": "the shop is closed"}, status=200)
    assert (discarded["state"], discarded["discard_reason"]) == ("discarded", "the shop is closed")
    assert (await api.get(LETTERS))["data"][0]["discard_reason"] == "the shop is closed"


@pytest.mark.parametrize(("first", "then"), [("replay", "discard"), ("discard", "replay"), ("replay", "replay")])
async def test_a_dead_letter_is_settled_once(api: ApiClient, store: Store, first: str, then: str) -> None:
    for letter in (await _add_message(store), (await _add_delivery(store))[1]):
        assert (await api.call("POST", f"{_path(letter)}/{first}")).status in {200, 202}
        answer = await api.call("POST", f"{_path(letter)}/{then}")
        assert (answer.status, answer.code) == (409, "conflict")
        assert ("replayed" if first == "replay" else "discarded") in answer.body["error"]["message"]


async def test_what_is_not_there_is_404_and_what_is_no_id_names_the_field(api: ApiClient) -> None:
    cases: list[str] = ["", "/body", "/replay", "/discard"]
    for tail in cases:
        method = "GET" if tail in {"", "/body"} else "POST"
        assert (await api.call(method, f"{_path(uuid7())}{tail}")).code == "not_found"
        answer = await api.call(method, f"{LETTERS}/{public_id(DELIVERY, uuid7())}{tail}")
        assert (answer.status, list(answer.fields)) == (400, ["dead_letter_id"])
