"""`Idempotency-Key`: a POST that creates is done once."""

import asyncio
from typing import Any
from unittest.mock import patch

from uuid_utils.compat import uuid7

from infra.broker.postgres import PostgresBroker
from infra.settings import Settings
from infra.store import api_keys, subscriptions, upkeep
from infra.store.store import Store
from schemas.errors import BrokerUnavailable, PublishTimeout
from schemas.ids import SUBSCRIPTION, public_id
from tests.support.api import Answer, ApiClient

EVENTS = "/v1/events"
SUBSCRIPTIONS = "/v1/subscriptions"
EVENT = {"type": "a", "data": {"n": 1}}
REPLAYED = "Idempotency-Replayed"


async def _post(
    api: ApiClient, body: Any, key: str = "k-1", *, path: str = EVENTS, api_key: str | None = None
) -> Answer:
    return await api.call("POST", path, body, headers={"Idempotency-Key": key}, key=api_key)


async def _count(store: Store, table: str) -> int:
    async with store.connection() as conn:
        return int(await conn.fetchval(f"SELECT count(*) FROM {table}"))


async def test_the_second_request_is_given_the_first_ones_answer_and_nothing_is_done(
    api: ApiClient, store: Store
) -> None:
    first = await _post(api, EVENT)
    second = await _post(api, EVENT)
    assert (first.status, first.headers.get(REPLAYED)) == (202, None)
    assert (second.status, second.raw, second.headers[REPLAYED]) == (202, first.raw, "true")
    assert second.headers["Content-Type"] == first.headers["Content-Type"]
    assert await _count(store, "queue_messages") == 1
    assert (await _post(api, EVENT, "k-2")).body["external_id"] != first.body["external_id"]


async def test_a_subscription_is_made_once_and_its_secret_is_shown_again_but_not_stored_readable(
    api: ApiClient, store: Store
) -> None:
    body = {"url": "https://example.com", "event_types": ["#"]}
    first = await _post(api, body, path="/v1/subscriptions")
    second = await _post(api, body, path="/v1/subscriptions")
    assert first.status == 201
    assert (second.raw, second.headers["Location"]) == (first.raw, first.headers["Location"])
    assert await _count(store, "subscriptions") == 1
    async with store.connection() as conn:
        stored = await conn.fetchval("SELECT answer FROM idempotency_keys")
    assert first.body["secret"].encode() not in stored


async def test_another_body_is_422_and_another_route_or_api_key_is_another_request(
    api: ApiClient, store: Store
) -> None:
    await _post(api, EVENT)
    other = await _post(api, EVENT | {"data": 2})
    assert (other.status, other.code) == (422, "idempotency_mismatch")
    async with store.transaction() as conn:
        api_key, _ = await api_keys.create(conn, "another")
    assert (await _post(api, EVENT | {"data": 2}, api_key=api_key)).status == 202
    batch = await _post(api, {"events": [EVENT]}, path=f"{EVENTS}/batch")
    assert (batch.status, batch.headers.get(REPLAYED)) == (200, None)
    assert await _count(store, "queue_messages") == 3


async def test_while_the_first_is_under_way_the_second_is_409_and_a_dead_ones_is_released(
    api: ApiClient, store: Store, settings: Settings
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    whole = PostgresBroker.publish

    async def slow(self: PostgresBroker, *given: Any, **named: Any) -> None:
        begun.set()
        await go_on.wait()
        await whole(self, *given, **named)

    with patch.object(PostgresBroker, "publish", slow):
        first = asyncio.create_task(_post(api, EVENT))
        await begun.wait()
        second = await _post(api, EVENT)
        assert (second.status, second.code, second.headers["Retry-After"]) == (409, "idempotency_in_flight", "5")
        async with store.transaction() as conn:
            # However old the key is: it may have been released and begun anew.
            await conn.execute("UPDATE idempotency_keys SET created_at = created_at - make_interval(days => 2)")
            assert await conn.fetch(upkeep.FORGET_IDEMPOTENCY_KEYS, settings.idempotency_s, 10) == []
        assert (await _post(api, EVENT)).code == "idempotency_in_flight"
        async with store.transaction() as conn:
            await conn.execute(
                """
                UPDATE idempotency_keys
                SET created_at = clock_timestamp(), claimed_at = claimed_at - make_interval(secs => 121)
                """
            )
        third = asyncio.create_task(_post(api, EVENT))
        go_on.set()
        answers = await asyncio.gather(first, third)
    # Both published, under one id: admission drops the second.
    assert len({answer.body["external_id"] for answer in answers}) == 1
    assert (await _post(api, EVENT)).headers[REPLAYED] == "true"


async def test_a_503_is_not_kept_and_an_event_without_an_id_is_the_same_one_the_next_time(
    api: ApiClient, store: Store
) -> None:
    with patch.object(PostgresBroker, "publish", side_effect=BrokerUnavailable("away")):
        failed = await _post(api, EVENT)
    assert failed.status == 503
    done = await _post(api, EVENT)
    assert (done.status, done.headers.get(REPLAYED)) == (202, None)
    assert done.body["external_id"] in failed.fields["id"]


async def test_a_batch_that_was_published_in_part_is_done_again_with_the_same_ids(api: ApiClient) -> None:
    body = {"events": [EVENT, EVENT]}
    errors = [None, PublishTimeout("no confirm")]
    with patch.object(PostgresBroker, "publish_many", return_value=errors):
        first = await _post(api, body, path=f"{EVENTS}/batch")
    second = await _post(api, body, path=f"{EVENTS}/batch")
    assert [one["result"] for one in first.body["results"]] == ["accepted", "not_published"]
    assert [one["result"] for one in second.body["results"]] == ["accepted", "accepted"]
    ids = [[one["external_id"] for one in answer.body["results"]] for answer in (first, second)]
    assert ids[0] == ids[1]
    assert (await _post(api, body, path=f"{EVENTS}/batch")).headers[REPLAYED] == "true"


async def test_an_error_of_the_callers_is_kept_and_a_key_that_is_none_is_refused(api: ApiClient) -> None:
    first, second = await _post(api, {"type": "a"}), await _post(api, {"type": "a"})
    assert (first.status, second.raw, second.headers[REPLAYED]) == (400, first.raw, "true")
    for key in ("", "a b", "é", "k" * 256):
        refused = await _post(api, EVENT, key)
        assert (refused.status, list(refused.fields)) == (400, ["Idempotency-Key"])
    twice = [("X-API-Key", api.key), ("Idempotency-Key", "k-1"), ("Idempotency-Key", "k-2")]
    async with api.session.post(f"{api.url}{EVENTS}", json=EVENT, headers=twice) as answer:
        assert answer.status == 400


async def test_past_its_time_a_key_is_new_again_and_upkeep_forgets_it(
    api: ApiClient, store: Store, settings: Settings
) -> None:
    first = await _post(api, EVENT)
    async with store.transaction() as conn:
        assert await conn.fetch(upkeep.FORGET_IDEMPOTENCY_KEYS, settings.idempotency_s, 10) == []
        await conn.execute("UPDATE idempotency_keys SET created_at = created_at - make_interval(days => 1)")
    again = await _post(api, EVENT | {"data": 2})
    assert (again.status, again.headers.get(REPLAYED)) == (202, None)
    assert again.body["external_id"] != first.body["external_id"]
    async with store.transaction() as conn:
        await conn.execute("UPDATE idempotency_keys SET created_at = created_at - make_interval(days => 1)")
        assert len(await conn.fetch(upkeep.FORGET_IDEMPOTENCY_KEYS, settings.idempotency_s, 10)) == 1
    assert await _count(store, "idempotency_keys") == 0


async def test_what_was_done_and_its_answer_are_stored_together(api: ApiClient, store: Store) -> None:
    """A process that dies once it has done the work does not have it done again, nor waited for."""
    subscription = {"url": "https://example.com", "event_types": ["#"]}

    async def dies(*_: Any) -> None: ...

    with patch("consumer_api.idempotency._finish", dies):
        first = await _post(api, subscription, path=SUBSCRIPTIONS)
        at = f"{SUBSCRIPTIONS}/{first.body['id']}"
        replay = await _post(api, {"subscription_id": first.body["id"]}, path="/v1/replays")
        recovery = await _post(api, {"since": replay.body["created_at"]}, path=f"{at}/recover")
    assert (first.status, replay.status, recovery.status) == (201, 202, 202)
    for answer, path, body in (
        (first, SUBSCRIPTIONS, subscription),
        (replay, "/v1/replays", {"subscription_id": first.body["id"]}),
        (recovery, f"{at}/recover", {"since": replay.body["created_at"]}),
    ):
        again = await _post(api, body, path=path)
        assert (again.status, again.raw, again.headers.get("ETag")) == (
            answer.status,
            answer.raw,
            answer.headers.get("ETag"),
        )
        assert again.headers[REPLAYED] == "true"
    assert (await _count(store, "subscriptions"), await _count(store, "replays")) == (1, 2)
    elsewhere = at.replace(first.body["id"], public_id(SUBSCRIPTION, uuid7()))
    other = await _post(api, {"since": replay.body["created_at"]}, path=f"{elsewhere}/recover")
    assert (other.status, other.code) == (422, "idempotency_mismatch")


async def test_who_was_taken_for_dead_does_nothing(api: ApiClient, store: Store) -> None:
    """It was in flight for so long that the next request with its key does the work."""
    whole = subscriptions.create

    async def slow(*given: Any, **named: Any) -> Any:
        async with store.transaction() as conn:
            await conn.execute("UPDATE idempotency_keys SET claim = gen_random_uuid(), claimed_at = clock_timestamp()")
        return await whole(*given, **named)

    with patch.object(subscriptions, "create", slow):
        late = await _post(api, {"url": "https://example.com", "event_types": ["#"]}, path=SUBSCRIPTIONS)
    assert (late.status, late.code) == (409, "idempotency_in_flight")
    assert await _count(store, "subscriptions") == 0


async def test_what_stands_in_the_way_now_may_be_gone_the_next_time(api: ApiClient) -> None:
    made = await api.post(SUBSCRIPTIONS, {"url": "https://example.com", "event_types": ["#"]}, status=201)
    at, wanted = f"{SUBSCRIPTIONS}/{made['id']}", {"subscription_id": made["id"]}
    await api.post(f"{at}/pause", status=200)
    refused = await _post(api, wanted, path="/v1/replays")
    assert (refused.status, refused.code) == (409, "conflict")
    await api.post(f"{at}/resume", status=200)
    assert (await _post(api, wanted, path="/v1/replays")).status == 202
