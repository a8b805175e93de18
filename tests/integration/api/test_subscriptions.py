"""`/v1/subscriptions`: create, list, get, patch, delete, rotate-secret, test."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
import pytest

from infra.crypto import Vault, new_key
from infra.settings import Settings
from infra.store.store import Store
from schemas.ids import DELIVERY, SUBSCRIPTION, parse_id
from schemas.signatures import HmacKey, parse_secret
from schemas.subscriptions import decode_secrets
from tests.support import rows
from tests.support.api import ApiClient, api_settings, running_api

SUBSCRIPTIONS = "/v1/subscriptions"
WANTED = {
    "tenant": "acme",
    "url": "https://example.com/hook",
    "event_types": ["order.#", "*.paid"],
    "description": "orders",
    "headers": {"Authorization": "Bearer s3cret"},
    "retry_policy": {"delays_s": [5, 60], "final_statuses": [404], "max_age_s": 86_400},
    "timeout_s": 20,
    "ordered": True,
}
GIVEN_SECRET = "whsec_" + "QUJD" * 8


async def _create(api: ApiClient, **changes: Any) -> dict[str, Any]:
    created: dict[str, Any] = await api.post(SUBSCRIPTIONS, WANTED | changes, status=201)
    return created


async def _stored(store: Store, public: str) -> dict[str, Any]:
    async with store.connection() as conn:
        record = await conn.fetchrow("SELECT * FROM subscriptions WHERE id = $1", parse_id(SUBSCRIPTION, public))
    assert record is not None
    return dict(record)


async def test_create_answers_201_with_what_was_asked_for_and_the_secret(api: ApiClient) -> None:
    answer = await api.call("POST", SUBSCRIPTIONS, WANTED)
    assert answer.status == 201
    created = answer.body
    assert answer.headers["Location"] == f"{SUBSCRIPTIONS}/{created['id']}"
    assert {name: created[name] for name in WANTED if name != "headers"} == {
        name: value for name, value in WANTED.items() if name != "headers"
    }
    assert (created["state"], created["state_reason"], created["decryptable"]) == ("enabled", None, True)
    assert isinstance(parse_secret(created["secret"]), HmacKey)
    assert datetime.fromisoformat(created["created_at"]) > datetime.now(UTC) - timedelta(minutes=1)


async def test_create_fills_what_is_left_out(api: ApiClient) -> None:
    answer = await api.call("POST", SUBSCRIPTIONS, {"url": "https://example.com", "event_types": ["#"]})
    created = answer.body
    assert (created["tenant"], created["timeout_s"], created["headers"]) == ("default", 15, {})
    assert created["ordered"] is False
    assert len(created["retry_policy"]["delays_s"]) == 9
    assert created["retry_policy"]["max_age_s"] is None


async def test_a_secret_of_ones_own_is_taken(api: ApiClient) -> None:
    assert (await _create(api, secret=GIVEN_SECRET))["secret"] == GIVEN_SECRET


async def test_secrets_and_header_values_are_shown_by_nothing_but_create_and_rotate(
    api: ApiClient, store: Store
) -> None:
    created = await _create(api)
    path = f"{SUBSCRIPTIONS}/{created['id']}"
    answers = [
        await api.call("GET", path),
        await api.call("GET", SUBSCRIPTIONS),
        await api.call("PATCH", path, {"description": "new"}),
    ]
    for answer in answers:
        assert answer.status == 200
        assert created["secret"].encode() not in answer.raw
        assert b"whsec_" not in answer.raw
        assert b"s3cret" not in answer.raw
        assert b'"Authorization":"[redacted]"' in answer.raw
    assert "s3cret" not in orjson.dumps(created).decode()
    stored = await _stored(store, created["id"])
    assert created["secret"] not in repr(stored)
    assert "s3cret" not in repr(stored)


async def test_secrets_and_headers_are_stored_encrypted_as_the_dispatcher_reads_them(
    api: ApiClient, store: Store, settings: Settings
) -> None:
    created = await _create(api)
    stored = await _stored(store, created["id"])
    vault = Vault.from_settings(settings)
    assert [secret.text for secret in decode_secrets(vault.decrypt(stored["secrets"]))] == [created["secret"]]
    assert orjson.loads(vault.decrypt(stored["headers"])) == WANTED["headers"]


async def test_a_bad_subscription_is_refused_with_the_field_named(api: ApiClient) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"url": "ftp://example.com"}, "url"),
        ({"url": "https://user:pw@example.com"}, "url"),
        ({"url": "https://example.com/\x00"}, "url"),
        ({"url": None}, "url"),
        ({"event_types": ["a..b"]}, "event_types.0"),
        ({"event_types": []}, "event_types"),
        ({"event_types": ["a\x00"]}, "event_types.0"),
        ({"retry_policy": {"delays_s": [-1]}}, "retry_policy.delays_s.0"),
        ({"retry_policy": {"max_attempts": 5}}, "retry_policy"),
        ({"headers": {"X\r\n": "1"}}, "headers"),
        ({"headers": {"Host": "evil"}}, "headers"),
        ({"headers": {"X-A": "a\x00b"}}, "headers"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"tenant": "a b"}, "tenant"),
        ({"tenant": "a\x00"}, "tenant"),
        ({"description": "\x00"}, "description"),
        ({"secret": "whsec_short"}, "secret"),
        ({"colour": "red"}, "colour"),
    ]
    for changes, field in cases:
        answer = await api.call("POST", SUBSCRIPTIONS, WANTED | changes)
        assert (answer.status, answer.code) == (400, "validation_failed")
        assert field in answer.fields
        assert (await api.get(SUBSCRIPTIONS))["data"] == []


async def test_a_url_that_leads_to_a_forbidden_address_is_refused_early_and_says_what_would_allow_it(
    api: ApiClient,
) -> None:
    cases: list[tuple[str, str]] = [
        ("http://169.254.169.254/latest", "HOOKHARE_EGRESS_ALLOW"),
        ("http://10.0.0.1", "HOOKHARE_EGRESS_ALLOW"),
        ("http://[::1.2.3.4]:80/", "HOOKHARE_EGRESS_ALLOW"),
        ("http://[64:ff9b::10.0.0.1]/", "HOOKHARE_EGRESS_ALLOW"),
        ("http://0x7f.1/", "four decimal numbers"),
        ("http://2130706433", "four decimal numbers"),
        ("https://xn--a.example/", "xn--a in its host, which is not the punycode of any name"),
        ("https://bücher.example/", "write its host as xn--bcher-kva.example"),
        ("https://①②⑦.0.0.1/", "must be an ASCII URL, with"),
    ]
    for url, told in cases:
        for answer in (
            await api.call("POST", SUBSCRIPTIONS, WANTED | {"url": url}),
            await api.call("PATCH", f"{SUBSCRIPTIONS}/{(await _create(api))['id']}", {"url": url}),
        ):
            assert answer.status == 400
            assert told in answer.fields["url"]


async def test_what_an_operator_has_not_allowed_is_refused_early_all_at_once(settings: Settings, store: Store) -> None:
    defaults = {name: Settings.model_fields[name].default for name in ("egress_allow", "egress_http", "egress_ports")}
    async with running_api(settings.model_copy(update=defaults), store) as api:
        answer = await api.call("POST", SUBSCRIPTIONS, WANTED | {"url": "http://localhost:3000/hook"})
        assert answer.status == 400
        assert answer.fields["url"] == (
            "must lead to a public address: localhost is this machine, and 127.0.0.1 is a loopback address; "
            "an operator may allow its network with HOOKHARE_EGRESS_ALLOW; and "
            "must begin with https://, because http:// sends events in the clear; "
            "an operator may allow it with HOOKHARE_EGRESS_HTTP=true; and "
            "must have a port that webhooks may go to (80, 443, 8080, 8443), and not 3000; "
            "an operator may allow it with HOOKHARE_EGRESS_PORTS"
        )
        assert (await _create(api, url="https://hooks.example:8443/"))["url"] == "https://hooks.example:8443/"


async def test_an_address_that_the_operator_allows_is_taken(api: ApiClient) -> None:
    assert (await _create(api, url="http://127.0.0.1:9/hook"))["url"] == "http://127.0.0.1:9/hook"


async def test_lists_page_newest_first_and_filter(api: ApiClient) -> None:
    made = [(await _create(api, tenant=f"t{number % 2}"))["id"] for number in range(5)]
    await api.patch(f"{SUBSCRIPTIONS}/{made[4]}", {"state": "paused"})
    found: list[str] = []
    page = await api.get(SUBSCRIPTIONS, limit=2)
    while True:
        found += [one["id"] for one in page["data"]]
        assert page["has_more"] == (page["next_cursor"] is not None)
        if not page["has_more"]:
            break
        page = await api.get(SUBSCRIPTIONS, limit=2, cursor=page["next_cursor"])
    assert found == made[::-1]
    of_t0 = await api.get(SUBSCRIPTIONS, tenant="t0", state="enabled")
    assert [one["id"] for one in of_t0["data"]] == [made[2], made[0]]


async def test_patch_changes_what_is_given_and_keeps_the_rest(api: ApiClient, store: Store, settings: Settings) -> None:
    created = await _create(api)
    path = f"{SUBSCRIPTIONS}/{created['id']}"
    changes = {
        "url": "https://example.com/new",
        "event_types": ["#"],
        "description": "",
        "retry_policy": {"max_attempts": 3, "initial_delay_s": 1, "multiplier": 2, "max_delay_s": 10},
        "timeout_s": 1,
        "ordered": False,
        "headers": {"X-New": "n3w"},
    }
    kept = await api.get(path)
    for name, value in changes.items():
        patched = await api.patch(path, {name: value})
        shown = {"X-New": "[redacted]"} if name == "headers" else value
        if name == "retry_policy":
            shown = {**value, "final_statuses": [], "max_age_s": None}  # type: ignore[dict-item]
        assert patched[name] == shown
        assert {key for key in patched if patched[key] != kept[key]} <= {name, "updated_at"}
        kept = patched
    assert kept == await api.get(path)
    stored = await _stored(store, created["id"])
    assert orjson.loads(Vault.from_settings(settings).decrypt(stored["headers"])) == {"X-New": "n3w"}
    await api.patch(path, {"headers": {}})
    assert (await _stored(store, created["id"]))["headers"] is None


async def test_a_max_age_is_set_and_taken_away_with_its_policy(api: ApiClient, store: Store) -> None:
    """What is null is not stored: dispatchers of the release before refuse a field that they do not know."""
    created = await _create(api)
    path = f"{SUBSCRIPTIONS}/{created['id']}"
    assert created["retry_policy"]["max_age_s"] == 86_400
    for none in ({}, {"max_age_s": None}):
        patched = await api.patch(path, {"retry_policy": {"delays_s": [5]} | none})
        assert patched["retry_policy"] == {"delays_s": [5], "final_statuses": [], "max_age_s": None}
        assert (await _stored(store, created["id"]))["retry_policy"] == {"delays_s": [5], "final_statuses": []}
    patched = await api.patch(path, {"retry_policy": {"delays_s": [5], "max_age_s": 2.5}})
    assert patched["retry_policy"]["max_age_s"] == 2.5
    answer = await api.call("PATCH", path, {"retry_policy": {"delays_s": [5], "max_age_s": 0.5}})
    assert (answer.status, list(answer.fields)) == (400, ["retry_policy.max_age_s"])


async def test_what_affects_webhooks_is_stored_with_a_higher_version(api: ApiClient, store: Store) -> None:
    cases: list[dict[str, Any]] = [
        {"url": "https://example.com/new"},
        {"retry_policy": {"delays_s": []}},
        {"headers": {}},
        {"timeout_s": 1},
        {"ordered": False},
        {"event_types": ["#"]},
        {"state": "paused"},
    ]
    for changes in cases:
        created = await _create(api)
        before = await _stored(store, created["id"])
        await api.patch(f"{SUBSCRIPTIONS}/{created['id']}", changes)
        assert (await _stored(store, created["id"]))["version"] > before["version"]


async def test_rotating_is_stored_with_a_higher_version(api: ApiClient, store: Store) -> None:
    created = await _create(api)
    before = await _stored(store, created["id"])
    await api.post(f"{SUBSCRIPTIONS}/{created['id']}/rotate-secret", status=200)
    assert (await _stored(store, created["id"]))["version"] > before["version"]


async def test_a_bad_patch_is_refused_with_the_field_named_and_changes_nothing(api: ApiClient) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"url": "nonsense"}, "url"),
        ({"url": None}, "url"),
        ({"state": "gone"}, "state"),
        ({"tenant": "other"}, "tenant"),
        ({"secret": GIVEN_SECRET}, "secret"),
        ({"headers": {"Webhook-Id": "1"}}, "headers"),
    ]
    for changes, field in cases:
        created = await _create(api)
        path = f"{SUBSCRIPTIONS}/{created['id']}"
        before = await api.get(path)
        answer = await api.call("PATCH", path, {"description": "new"} | changes)
        assert (answer.status, answer.code) == (400, "validation_failed")
        assert field in answer.fields
        assert await api.get(path) == before


async def test_pausing_disabling_and_enabling_say_why(api: ApiClient, store: Store) -> None:
    created = await _create(api)
    path = f"{SUBSCRIPTIONS}/{created['id']}"
    key = parse_id(SUBSCRIPTION, created["id"])
    async with store.transaction() as conn:
        held = await rows.add_delivery(conn, key, "held")
    paused = await api.patch(path, {"state": "paused"})
    assert (paused["state"], paused["state_reason"]) == ("paused", "paused by operator")
    async with store.connection() as conn:
        assert (await rows.delivery(conn, held))["status"] == "held"
    disabled = await api.patch(path, {"state": "disabled"})
    assert (disabled["state"], disabled["state_reason"]) == ("disabled", "disabled by operator")
    async with store.connection() as conn:
        assert (await rows.delivery(conn, held))["status"] == "dead"
        assert len(await rows.letters(conn, held)) == 1
    enabled = await api.patch(path, {"state": "enabled"})
    assert (enabled["state"], enabled["state_reason"]) == ("enabled", None)


async def test_a_reason_stays_while_the_state_does(api: ApiClient, store: Store) -> None:
    created = await _create(api)
    async with store.transaction() as conn:
        await conn.execute("UPDATE subscriptions SET state = 'disabled', state_reason = 'it answered 410'")
    patched = await api.patch(f"{SUBSCRIPTIONS}/{created['id']}", {"state": "disabled", "description": "x"})
    assert patched["state_reason"] == "it answered 410"


async def test_delete_cancels_what_waits_and_hides_the_subscription_but_not_its_history(
    api: ApiClient, store: Store, settings: Settings
) -> None:
    created = await _create(api)
    path = f"{SUBSCRIPTIONS}/{created['id']}"
    key = parse_id(SUBSCRIPTION, created["id"])
    async with store.transaction() as conn:
        await rows.add_delivery(conn, key, "retrying")
    answer = await api.call("DELETE", path)
    assert (answer.status, answer.raw) == (204, b"")
    for method, tail, body in (
        ("GET", "", None),
        ("PATCH", "", {"state": "paused"}),
        ("DELETE", "", None),
        ("POST", "/rotate-secret", None),
        ("POST", "/test", None),
    ):
        gone = await api.call(method, f"{path}{tail}", body)
        assert (gone.status, gone.code) == (404, "not_found"), (method, tail)
    assert (await api.get(SUBSCRIPTIONS))["data"] == []
    (delivery,) = (await api.get("/v1/deliveries", subscription_id=created["id"]))["data"]
    assert (delivery["status"], delivery["reason"]) == ("canceled", "the subscription was deleted")
    stored = await _stored(store, created["id"])
    assert decode_secrets(Vault.from_settings(settings).decrypt(stored["secrets"])) == []
    assert stored["headers"] is None


async def test_a_rotated_secret_signs_at_once_and_the_old_one_until_its_grace_is_over(
    api: ApiClient, store: Store, settings: Settings
) -> None:
    created = await _create(api)
    path = f"{SUBSCRIPTIONS}/{created['id']}"
    began = datetime.now(UTC)
    rotated = await api.post(f"{path}/rotate-secret", status=200)
    assert rotated["secret"] not in {created["secret"], None}
    secrets = decode_secrets(Vault.from_settings(settings).decrypt((await _stored(store, created["id"]))["secrets"]))
    assert [secret.text for secret in secrets] == [rotated["secret"], created["secret"]]
    assert secrets[0].expires_at is None
    assert secrets[1].expires_at is not None
    assert timedelta(hours=24) <= secrets[1].expires_at - began < timedelta(hours=24, minutes=1)
    assert all(secret.live(began) for secret in secrets)
    assert [one["expires_at"] is None for one in rotated["secrets"]] == [True, False]
    assert "secret" not in await api.get(path)


async def test_a_rotation_without_grace_ends_the_old_secret_and_takes_a_given_new_one(api: ApiClient) -> None:
    created = await _create(api)
    path = f"{SUBSCRIPTIONS}/{created['id']}/rotate-secret"
    rotated = await api.post(path, {"secret": GIVEN_SECRET, "grace_s": 0}, status=200)
    assert rotated["secret"] == GIVEN_SECRET
    assert len(rotated["secrets"]) == 1


async def test_a_bad_rotation_is_refused_with_the_field_named(api: ApiClient) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"grace_s": -1}, "grace_s"),
        ({"grace_s": 604_801}, "grace_s"),
        ({"secret": "x"}, "secret"),
        ({"x": 1}, "x"),
    ]
    for body, field in cases:
        answer = await api.call("POST", f"{SUBSCRIPTIONS}/{(await _create(api))['id']}/rotate-secret", body)
        assert (answer.status, answer.code) == (400, "validation_failed")
        assert field in answer.fields


async def test_only_so_many_secrets_sign_at_once(api: ApiClient) -> None:
    path = f"{SUBSCRIPTIONS}/{(await _create(api))['id']}/rotate-secret"
    for _ in range(4):
        await api.post(path, status=200)
    answer = await api.call("POST", path)
    assert (answer.status, answer.code) == (409, "conflict")
    assert "grace_s" in answer.body["error"]["message"]
    await api.post(path, {"grace_s": 0}, status=200)


async def test_test_puts_one_delivery_of_a_test_event_into_the_backlog(api: ApiClient, store: Store) -> None:
    created = await _create(api)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = await api.call("POST", f"{SUBSCRIPTIONS}/{created['id']}/test?wait_s=0", headers={"traceparent": parent})
    assert answer.status == 202
    delivery = answer.body
    assert (delivery["event_type"], delivery["status"], delivery["tenant"]) == ("hookhare.test", "held", "acme")
    assert delivery["subscription_id"] == created["id"]
    event = await api.get(f"/v1/events/{delivery['event_id']}")
    assert event["data"]["subscription"] == created["id"]
    async with store.connection() as conn:
        assert await rows.mode(conn, parse_id(SUBSCRIPTION, created["id"])) == "held"
        assert (await rows.delivery(conn, parse_id(DELIVERY, delivery["id"])))["cycle"] == 0
        assert await conn.fetchval("SELECT traceparent FROM events") == parent


async def test_an_attempt_that_is_not_recorded_in_time_is_202(
    api: ApiClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{SUBSCRIPTIONS}/{(await _create(api))['id']}/test"
    asked: list[UUID] = []

    async def never(_: object, delivery: UUID, **__: object) -> list[object]:
        asked.append(delivery)
        return []

    monkeypatch.setattr("infra.store.history.attempts_of", never)
    answer = await api.call("POST", path, wait_s="0.1")
    assert (answer.status, answer.body["attempt"], len(asked) in range(2, 6)) == (202, None, True)
    for wait_s in ("-1", "21", "nan", "x"):
        assert list((await api.call("POST", path, wait_s=wait_s)).fields) == ["wait_s"]
    asked.clear()
    monkeypatch.setattr("asyncio.Semaphore.locked", lambda _: True)  # as many wait as may
    assert (await api.call("POST", path, wait_s="20")).status == 202
    assert asked == []


async def test_a_paused_subscription_is_not_tested(api: ApiClient) -> None:
    path = f"{SUBSCRIPTIONS}/{(await _create(api))['id']}"
    await api.patch(path, {"state": "paused"})
    answer = await api.call("POST", f"{path}/test")
    assert (answer.status, answer.code) == (409, "conflict")
    assert "paused" in answer.body["error"]["message"]


async def test_without_the_key_that_encrypted_it_a_subscription_is_shown_without_secrets_and_mended_by_a_rotation(
    api: ApiClient, store: Store, database_url: str
) -> None:
    created = await _create(api)
    path = f"{SUBSCRIPTIONS}/{created['id']}"
    async with running_api(api_settings(database_url, encryption_keys=new_key()), store) as other:
        shown = await other.get(path)
        assert (shown["decryptable"], shown["secrets"], shown["headers"]) == (False, None, None)
        assert len((await other.get(SUBSCRIPTIONS))["data"]) == 1
        await other.post(f"{path}/rotate-secret", status=200)
        mended = await other.patch(path, {"headers": {"X-New": "1"}})
        assert (mended["decryptable"], len(mended["secrets"])) == (True, 1)
