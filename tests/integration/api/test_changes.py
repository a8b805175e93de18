"""Changes of a subscription: each is recorded, and made only to the version that `If-Match` names."""

import re
from typing import Any

import pytest

from consumer_api.changing import matches
from infra.store import api_keys
from infra.store.store import Store
from schemas.errors import InvalidInput
from schemas.ids import API_KEY, public_id
from schemas.scopes import Scope
from tests.support.api import ApiClient

SUBSCRIPTIONS = "/v1/subscriptions"
WANTED = {
    "tenant": "acme",
    "url": "https://example.com/hook",
    "event_types": ["#"],
    "headers": {"X-Key": "c4nary-header"},
    "auth": {"type": "bearer", "token": "c4nary-token"},
}


async def create(api: ApiClient, **more: Any) -> dict[str, Any]:
    created: dict[str, Any] = await api.post(SUBSCRIPTIONS, WANTED | more, status=201)
    return created


async def audited(store: Store) -> list[dict[str, Any]]:
    async with store.connection() as conn:
        return [dict(record) for record in await conn.fetch("SELECT * FROM audit_log ORDER BY id")]


async def test_every_change_is_recorded_with_who_and_what_and_no_secret(api: ApiClient, store: Store) -> None:
    created = await create(api)
    path = f"{SUBSCRIPTIONS}/{created['id']}"
    await api.patch(path, {"description": "new"})
    for command in ("pause", "pause", "resume", "disable", "enable"):  # the second pause changes nothing
        await api.post(f"{path}/{command}", status=200)
    rotated = await api.post(f"{path}/rotate-secret", status=200)
    await api.post(f"{path}/expire-secrets", status=200)
    await api.get(f"{path}/secrets")
    await api.post(f"{path}/test?wait_s=0")
    await api.post(f"{path}/recover", {"since": created["created_at"]})
    await api.call("PATCH", path, {"url": "nonsense"})
    await api.call("DELETE", path)
    await api.call("DELETE", path)
    records = await audited(store)
    assert [record["action"].removeprefix("subscription.") for record in records] == [
        *("created", "updated", "paused", "resumed", "disabled", "enabled"),
        *("secret_rotated", "secrets_expired", "secrets_shown", "tested", "recovered", "deleted"),
    ]
    async with store.connection() as conn:
        key = await api_keys.find(conn, api.key)
    assert key is not None
    for record in records:
        assert (record["tenant"], record["target"], record["key_id"]) == ("acme", created["id"], key.id)
        assert (record["address"], bool(record["request_id"])) == ("127.0.0.1", True)
    assert public_id(API_KEY, key.id).startswith("key_")
    by_action = {record["action"]: record for record in records}
    updated = by_action["subscription.updated"]
    assert (updated["before"]["description"], updated["after"]["description"]) == ("", "new")
    assert (records[0]["before"], by_action["subscription.deleted"]["after"]) == (None, None)
    for secret in (created["secret"], rotated["secret"], "c4nary"):
        assert secret not in str(records)


async def test_the_secrets_that_sign_are_shown_to_who_may_see_them(api: ApiClient, store: Store) -> None:
    created = await create(api)
    path = f"{SUBSCRIPTIONS}/{created['id']}"
    rotated = await api.post(f"{path}/rotate-secret", status=200)
    answer = await api.call("GET", f"{path}/secrets")
    assert answer.headers["Cache-Control"] == "no-store"
    assert [(one["version"], one["secret"]) for one in answer.body["data"]] == [
        ("v1", rotated["secret"]),
        ("v1", created["secret"]),
    ]
    assert [one["expires_at"] is None for one in answer.body["data"]] == [True, False]
    async with store.transaction() as conn:
        no_secrets = frozenset(Scope) - {Scope.SECRETS_READ}
        key, _ = await api_keys.create(conn, "reader", scopes=no_secrets)
        others, _ = await api_keys.create(conn, "other's", tenant="other")
    assert (await api.call("GET", f"{path}/secrets", key=key)).code == "forbidden"
    assert (await api.call("GET", f"{path}/secrets", key=others)).code == "not_found"
    assert (await api.call("POST", f"{path}/expire-secrets", key=others)).code == "not_found"


async def test_expiring_ends_all_but_the_newest_at_once(api: ApiClient) -> None:
    created = await create(api, signature={"scheme": "standard", "versions": ["v1", "v1a"]})
    path = f"{SUBSCRIPTIONS}/{created['id']}"
    await api.post(f"{path}/rotate-secret", {"version": "v1"}, status=200)
    newest = await api.post(f"{path}/rotate-secret", {"version": "v1"}, status=200)
    assert len(newest["secrets"]) == 4
    answer = await api.post(f"{path}/expire-secrets", status=200)
    assert [(one["version"], one["expires_at"]) for one in answer["secrets"]] == [("v1", None), ("v1a", None)]
    assert "secret" not in answer
    left = (await api.get(f"{path}/secrets"))["data"]
    assert newest["secret"] in [one["secret"] for one in left]
    assert created["secret"] not in str(left)


async def test_secrets_that_cannot_be_decrypted_are_409(api: ApiClient, store: Store) -> None:
    path = f"{SUBSCRIPTIONS}/{(await create(api))['id']}"
    async with store.transaction() as conn:
        await conn.execute("UPDATE subscriptions SET secrets = 'x'")
    for method, tail in (("GET", "secrets"), ("POST", "expire-secrets")):
        answer = await api.call(method, f"{path}/{tail}")
        assert (answer.status, answer.code) == (409, "conflict")


async def test_a_change_is_made_to_the_version_that_was_seen_and_to_no_other(api: ApiClient) -> None:
    answer = await api.call("POST", SUBSCRIPTIONS, WANTED)
    path, first = f"{SUBSCRIPTIONS}/{answer.body['id']}", answer.headers["ETag"]
    assert (await api.call("GET", path)).headers["ETag"] == first
    answer = await api.call("PATCH", path, {"description": "a"}, headers={"If-Match": f'"other", {first}'})
    assert (answer.status, answer.headers["ETag"] != first) == (200, True)
    second = answer.headers["ETag"]
    kept = await api.get(path)
    for method, tail, body in (
        ("PATCH", "", {"description": "b"}),
        ("DELETE", "", None),
        ("POST", "/pause", None),
        ("POST", "/enable", None),
        ("POST", "/rotate-secret", None),
        ("POST", "/expire-secrets", None),
    ):
        for tag in (first, f"W/{second}"):
            answer = await api.call(method, f"{path}{tail}", body, headers={"If-Match": tag})
            assert (answer.status, answer.code, answer.headers["ETag"]) == (412, "precondition_failed", second)
    assert await api.get(path) == kept
    answer = await api.call("PATCH", path, {"description": "b"}, headers={"If-Match": "7"})
    assert (answer.status, list(answer.fields)) == (400, ["If-Match"])
    answer = await api.call("POST", f"{path}/pause", headers={"If-Match": second})
    assert answer.status == 200
    assert (await api.call("DELETE", path, headers={"If-Match": "*"})).status == 204
    assert (await api.call("DELETE", path, headers={"If-Match": "*"})).status == 404


@pytest.mark.parametrize("tail", ["/pause", "/disable", "/expire-secrets"])
async def test_what_changes_nothing_leaves_the_version_that_was_seen(api: ApiClient, store: Store, tail: str) -> None:
    path = f"{SUBSCRIPTIONS}/{(await create(api))['id']}"
    await api.post(f"{path}{tail}", status=200)
    seen = (await api.call("GET", path)).headers["ETag"]
    records = len(await audited(store))
    again = await api.call("POST", f"{path}{tail}")
    assert (again.status, again.headers["ETag"]) == (200, seen)
    assert len(await audited(store)) == records
    assert (await api.call("PATCH", path, {"description": "x"}, headers={"If-Match": seen})).status == 200


async def test_a_tag_tells_nothing_of_how_much_others_change(api: ApiClient) -> None:
    first, second = [await api.call("POST", SUBSCRIPTIONS, WANTED) for _ in range(2)]
    for answer in (first, second):
        assert re.fullmatch(r'"[0-9a-f]{32}"', answer.headers["ETag"])
    assert first.headers["ETag"] != second.headers["ETag"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('"7"', True),
        (" * ", True),
        ('"6","7"', True),
        ('"a,b" , , "7",', True),
        ('W/"7"', False),
        ('"77"', False),
        ('"a"7"b"', None),
        ("7", None),
        ("", None),
        ('*, "7"', None),
    ],
)
def test_if_match_is_read_as_rfc_9110_has_it(given: str, expected: bool | None) -> None:
    if expected is None:
        with pytest.raises(InvalidInput):
            matches(given, '"7"')
    else:
        assert matches(given, '"7"') is expected
