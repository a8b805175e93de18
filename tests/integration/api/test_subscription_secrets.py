"""`GET /v1/subscriptions/{id}/secrets`, `POST …/expire-secrets`: told to whom it concerns, ended when it is time."""

from typing import Any

import pytest

from infra.crypto import Vault, new_key
from infra.settings import Settings
from infra.store import api_keys
from infra.store.store import Store
from schemas.ids import SUBSCRIPTION, parse_id
from schemas.scopes import Scope
from schemas.subscriptions import Secret, decode_secrets, encode_secrets
from tests.support.api import ApiClient, api_settings, running_api

SUBSCRIPTIONS = "/v1/subscriptions"
LEAST: dict[str, Any] = {"tenant": "acme", "url": "https://example.com/hook", "event_types": ["#"]}
BOTH = {"scheme": "standard", "versions": ["v1", "v1a"]}
HMAC = {"scheme": "hmac", "algorithm": "sha256", "header": "X-Signature", "prefix": ""}


@pytest.fixture
async def path(api: ApiClient) -> str:
    return f"{SUBSCRIPTIONS}/{(await api.post(SUBSCRIPTIONS, LEAST, status=201))['id']}"


async def _texts(store: Store, settings: Settings, path: str) -> list[str]:
    """The secrets as the dispatcher reads them."""
    key = parse_id(SUBSCRIPTION, path.rpartition("/")[2])
    async with store.connection() as conn:
        sealed = await conn.fetchval("SELECT secrets FROM subscriptions WHERE id = $1", key)
    return [secret.text for secret in decode_secrets(Vault.from_settings(settings).decrypt(sealed))]


async def _actions(store: Store) -> list[str]:
    async with store.connection() as conn:
        return [row["action"] for row in await conn.fetch("SELECT action FROM audit_log ORDER BY id")]


async def test_secrets_are_told_newest_first_with_those_that_do_not_sign_now(api: ApiClient, store: Store) -> None:
    created = await api.post(SUBSCRIPTIONS, LEAST | {"signature": BOTH}, status=201)
    path = f"{SUBSCRIPTIONS}/{created['id']}"
    v1, v1a = created["secrets"]
    rotated = await api.post(f"{path}/rotate-secret", {"version": "v1"}, status=200)
    told = await api.call("GET", f"{path}/secrets")
    assert told.headers["Cache-Control"] == "no-store"
    new, *others = told.body["data"]
    assert (new["secret"], new["signs"], new["expires_at"]) == (rotated["secret"], True, None)
    assert [one["secret"] for one in others] == [v1["secret"], v1a["secret"]]
    assert [one["id"] for one in others] == [v1["id"], v1a["id"]]
    assert (others[0]["expires_at"] is None, others[1]["public_key"]) == (False, v1a["public_key"])
    await api.patch(path, {"signature": HMAC})
    told = await api.call("GET", f"{path}/secrets")
    assert [(one["version"], one["signs"]) for one in told.body["data"]] == [
        (None, True),
        ("v1", False),
        ("v1", False),
        ("v1a", False),
    ]
    assert (await _actions(store)).count("subscription.secrets_shown") == 2


async def test_secrets_are_told_to_a_key_that_may_read_them_and_of_that_tenant(
    api: ApiClient, store: Store, path: str
) -> None:
    for tenant, scope, status in (
        ("acme", Scope.SECRETS_READ, 200),
        ("acme", Scope.SUBSCRIPTIONS_READ, 403),
        ("other", Scope.SECRETS_READ, 404),
    ):
        async with store.transaction() as conn:
            key, row = await api_keys.create(conn, "test")
            await conn.execute("UPDATE api_keys SET tenant = $2, scopes = $3 WHERE id = $1", row.id, tenant, [scope])
        answer = await api.call("GET", f"{path}/secrets", key=key)
        assert (answer.status, b"whsec_" in answer.raw) == (status, status == 200)
    assert (await _actions(store)).count("subscription.secrets_shown") == 1


async def test_all_but_the_newest_end_at_once(api: ApiClient, store: Store, settings: Settings, path: str) -> None:
    await api.post(f"{path}/rotate-secret", status=200)
    rotated = await api.post(f"{path}/rotate-secret", status=200)
    assert len(rotated["secrets"]) == 3
    expired = await api.call("POST", f"{path}/expire-secrets")
    assert [one["id"] for one in expired.body["secrets"]] == [rotated["secrets"][0]["id"]]
    assert "secret" not in expired.body
    assert await _texts(store, settings, path) == [rotated["secret"]]
    again = await api.call("POST", f"{path}/expire-secrets")
    assert (again.status, again.headers["ETag"]) == (200, expired.headers["ETag"])
    assert (await _actions(store)).count("subscription.secrets_expired") == 1


async def test_of_each_kind_the_newest_stays(api: ApiClient, store: Store, settings: Settings) -> None:
    created = await api.post(SUBSCRIPTIONS, LEAST | {"signature": BOTH}, status=201)
    path = f"{SUBSCRIPTIONS}/{created['id']}"
    rotated = await api.post(f"{path}/rotate-secret", {"version": "v1a"}, status=200)
    await api.post(f"{path}/expire-secrets", status=200)
    assert await _texts(store, settings, path) == [rotated["secret"], created["secret"]]


async def test_one_that_is_named_ends(api: ApiClient, store: Store, settings: Settings, path: str) -> None:
    first = (await api.get(f"{path}/secrets"))["data"][0]
    await api.post(f"{path}/rotate-secret", status=200)
    third = await api.post(f"{path}/rotate-secret", status=200)
    await api.post(f"{path}/expire-secrets", {"secret_id": first["id"]}, status=200)
    texts = await _texts(store, settings, path)
    assert (len(texts), texts[0], first["secret"] in texts) == (2, third["secret"], False)
    gone = await api.call("POST", f"{path}/expire-secrets", {"secret_id": first["id"]})
    assert (gone.status, gone.code) == (404, "not_found")


async def test_the_one_that_signs_does_not_end_but_by_a_rotation(api: ApiClient, path: str) -> None:
    (signs,) = (await api.get(path))["secrets"]
    answer = await api.call("POST", f"{path}/expire-secrets", {"secret_id": signs["id"]})
    assert (answer.status, answer.code) == (409, "conflict")
    assert "rotate" in answer.body["error"]["message"]
    await api.patch(path, {"signature": HMAC})
    expired = await api.post(f"{path}/expire-secrets", {"secret_id": signs["id"]}, status=200)
    assert [one["version"] for one in expired["secrets"]] == [None]
    back = await api.patch(path, {"signature": {"scheme": "standard", "versions": ["v1"]}})
    assert back["secret"].startswith("whsec_")


async def test_a_bad_expiry_is_refused_with_the_field_named(api: ApiClient, path: str) -> None:
    for body, field in (({"secret_id": "x"}, "secret_id"), ({"x": 1}, "x")):
        answer = await api.call("POST", f"{path}/expire-secrets", body)
        assert (answer.status, list(answer.fields)) == (400, [field])
    assert (await api.call("POST", f"{path}/expire-secrets", headers={"If-Match": '"x"'})).status == 412


async def test_what_an_earlier_release_stored_has_an_id_once_it_is_written_again(
    api: ApiClient, store: Store, settings: Settings, path: str
) -> None:
    (text,) = await _texts(store, settings, path)
    async with store.transaction() as conn:
        sealed = Vault.from_settings(settings).encrypt(encode_secrets([Secret(text)]))
        await conn.execute("UPDATE subscriptions SET secrets = $1", sealed)
    assert [one["id"] for one in (await api.get(path))["secrets"]] == [None]
    await api.post(f"{path}/rotate-secret", status=200)
    assert None not in [one["id"] for one in (await api.get(path))["secrets"]]


async def test_what_cannot_be_decrypted_is_neither_told_nor_ended(store: Store, database_url: str, path: str) -> None:
    async with running_api(api_settings(database_url, encryption_keys=new_key()), store) as other:
        for method, tail in (("GET", "/secrets"), ("POST", "/expire-secrets")):
            answer = await other.call(method, f"{path}{tail}")
            assert (answer.status, answer.code) == (409, "conflict")
    assert "subscription.secrets_shown" not in await _actions(store)
