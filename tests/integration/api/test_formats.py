"""`/v1/subscriptions`: format, signature, handshake, and the secrets that go with them."""

from datetime import UTC, datetime
from typing import Any

from infra.crypto import Vault, new_key
from infra.settings import Settings
from infra.store.store import Store
from schemas.formats import Scheme
from schemas.ids import SECRET, SUBSCRIPTION, parse_id
from schemas.signatures import Ed25519Key, HmacKey, format_keypair, format_secret, parse_secret, public_key
from schemas.subscriptions import Secret, decode_secrets
from tests.support.api import ApiClient, api_settings, running_api

SUBSCRIPTIONS = "/v1/subscriptions"
LEAST = {"url": "https://example.com/hook", "event_types": ["#"]}
V1: dict[str, Any] = {"scheme": "standard", "versions": ["v1"]}
V1A: dict[str, Any] = {"scheme": "standard", "versions": ["v1a"]}
BOTH: dict[str, Any] = {"scheme": "standard", "versions": ["v1", "v1a"]}
HMAC = {"scheme": "hmac", "algorithm": "sha256", "header": "X-Hub-Signature-256", "prefix": "sha256="}
SHARED, KEYPAIR = format_secret(bytes(range(32))), format_keypair(bytes(range(32)))


async def create(api: ApiClient, **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = await api.post(SUBSCRIPTIONS, LEAST | fields, status=201)
    return made


def path(subscription: dict[str, Any]) -> str:
    return f"{SUBSCRIPTIONS}/{subscription['id']}"


async def stored(store: Store, settings: Settings, subscription: dict[str, Any]) -> list[Secret]:
    async with store.connection() as conn:
        sealed = await conn.fetchval(
            "SELECT secrets FROM subscriptions WHERE id = $1", parse_id(SUBSCRIPTION, subscription["id"])
        )
    return decode_secrets(Vault.from_settings(settings).decrypt(sealed))


def public_half(secret: str) -> str:
    key = parse_secret(secret)
    assert isinstance(key, Ed25519Key)
    return public_key(key)


def unnamed(subscription: dict[str, Any]) -> list[dict[str, Any]]:
    """What is shown of its secrets but for their ids, which tell them apart."""
    shown = [dict(secret) for secret in subscription["secrets"]]
    ids = [parse_id(SECRET, secret.pop("id")) for secret in shown]
    assert len(set(ids)) == len(ids)
    return shown


async def test_without_a_word_it_is_as_it_always_was(api: ApiClient) -> None:
    made = await create(api)
    assert (made["format"], made["signature"]) == ("standard", V1)
    assert made["handshake"] == {"asked": False, "validated_at": None, "allowed_per_min": None}
    assert isinstance(parse_secret(made["secret"]), HmacKey)
    assert unnamed(made) == [{"version": "v1", "expires_at": None, "secret": made["secret"]}]


async def test_what_is_asked_for_is_shown_and_its_secrets_once(api: ApiClient, store: Store) -> None:
    made = await create(api, format="cloudevents_binary", signature=BOTH, handshake=True)
    assert (made["format"], made["signature"]) == ("cloudevents_binary", BOTH)
    assert made["handshake"]["asked"] is True
    first, second = made["secrets"]
    assert made["secret"] == first["secret"]
    assert (first["version"], second["version"]) == ("v1", "v1a")
    assert second["public_key"] == public_half(second["secret"])
    shown = await api.get(path(made))
    assert unnamed(shown) == [
        {"version": "v1", "expires_at": None},
        {"version": "v1a", "expires_at": None, "public_key": second["public_key"]},
    ]
    for answer in (await api.call("GET", path(made)), await api.call("GET", SUBSCRIPTIONS)):
        assert first["secret"].encode() not in answer.raw
        assert second["secret"].encode() not in answer.raw
        assert second["public_key"].encode() in answer.raw
    async with store.connection() as conn:
        assert first["secret"] not in repr([dict(row) for row in await conn.fetch("SELECT * FROM subscriptions")])


async def test_a_secret_of_ones_own_in_each_scheme(api: ApiClient, store: Store, settings: Settings) -> None:
    text = "It's a Secret to Everybody"
    for signature, secret in ((V1, SHARED), (V1A, KEYPAIR), (BOTH, KEYPAIR), (HMAC, text)):
        made = await create(api, signature=signature, secret=secret)
        assert secret in [one["secret"] for one in made["secrets"]]
        assert secret in [one.text for one in await stored(store, settings, made)]
    (made,) = [one for one in (await api.get(SUBSCRIPTIONS))["data"] if one["signature"] == HMAC]
    assert unnamed(made) == [{"version": None, "expires_at": None}]
    assert await stored(store, settings, made) == [Secret(text, scheme=Scheme.HMAC)]


async def test_what_does_not_go_together_is_refused_with_the_field_named(api: ApiClient) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"format": "xml"}, "format"),
        ({"signature": {"scheme": "md5"}}, "signature"),
        ({"signature": V1 | {"versions": []}}, "signature.versions"),
        ({"signature": HMAC | {"header": "Host"}}, "signature.header"),
        ({"signature": HMAC | {"algorithm": "md5"}}, "signature.algorithm"),
        ({"signature": HMAC | {"prefix": "\n"}}, "signature.prefix"),
        ({"signature": HMAC, "headers": {"x-hub-signature-256": "1"}}, "signature.header"),
        ({"signature": V1, "secret": KEYPAIR}, "secret"),
        ({"signature": V1A, "secret": SHARED}, "secret"),
        ({"signature": HMAC, "secret": "short"}, "secret"),
        ({"handshake": True}, "handshake"),
        ({"handshake": "yes", "format": "cloudevents_binary"}, "handshake"),
        ({"headers": {"ce-id": "1"}}, "headers"),
        ({"headers": {"Webhook-Signature": "1"}}, "headers"),
    ]
    for fields, field in cases:
        answer = await api.call("POST", SUBSCRIPTIONS, LEAST | fields)
        assert (answer.status, answer.code, list(answer.fields)) == (400, "validation_failed", [field]), fields
    assert (await api.get(SUBSCRIPTIONS))["data"] == []


async def test_a_patch_is_judged_with_what_it_leaves_as_it_is(api: ApiClient) -> None:
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({}, {"handshake": True}, "handshake"),
        ({"format": "cloudevents_binary", "handshake": True}, {"format": "standard"}, "handshake"),
        ({"signature": HMAC}, {"headers": {"X-HUB-SIGNATURE-256": "1"}}, "signature.header"),
        ({"headers": {"X-HUB-SIGNATURE-256": "1"}}, {"signature": HMAC}, "signature.header"),
        ({}, {"signature": None}, "signature"),
        ({}, {"format": None}, "format"),
        ({}, {"handshake": None}, "handshake"),
        ({}, {"signature": {"scheme": "hmac"}}, "signature.algorithm"),
    ]
    for fields, change, field in cases:
        made = await create(api, **fields)
        before = await api.get(path(made))
        answer = await api.call("PATCH", path(made), {"description": "new"} | change)
        assert (answer.status, answer.code) == (400, "validation_failed")
        assert field in answer.fields, change
        assert await api.get(path(made)) == before


async def test_a_changed_format_and_handshake(api: ApiClient, store: Store) -> None:
    made = await create(api)
    patched = await api.patch(path(made), {"format": "cloudevents_structured", "handshake": True})
    assert (patched["format"], patched["handshake"]["asked"]) == ("cloudevents_structured", True)
    assert "secret" not in patched
    key = parse_id(SUBSCRIPTION, made["id"])
    for change, stays in (
        ({"description": "x"}, True),
        ({"format": "cloudevents_binary"}, True),
        ({"url": "https://example.com/elsewhere"}, False),
        ({"handshake": False}, False),
    ):
        async with store.transaction() as conn:
            await conn.execute("UPDATE subscriptions SET validated_at = now(), allowed_per_min = 7 WHERE id = $1", key)
        shown = (await api.patch(path(made), change))["handshake"]
        assert (shown["validated_at"] is not None, shown["allowed_per_min"]) == (stays, 7 if stays else None), change


async def test_a_changed_signature_makes_what_is_missing_and_keeps_what_no_longer_signs(
    api: ApiClient, store: Store, settings: Settings
) -> None:
    made = await create(api)
    first = made["secret"]
    both = await api.patch(path(made), {"signature": BOTH})
    assert [one["version"] for one in both["secrets"]] == ["v1a", "v1"]
    keypair = both["secret"]
    assert both["secrets"][0]["public_key"] == public_half(keypair)
    assert [one.get("secret") for one in both["secrets"]] == [keypair, None]
    text = await api.patch(path(made), {"signature": HMAC})
    assert [one["secret"] for one in text["secrets"]] == [text["secret"]]
    assert len(text["secret"]) == 43
    assert {one.text for one in await stored(store, settings, made)} == {first, keypair, text["secret"]}
    again = await api.patch(path(made), {"signature": V1})
    assert "secret" not in again
    assert unnamed(again) == [{"version": "v1", "expires_at": None}]
    back = await api.patch(path(made), {"signature": HMAC | {"algorithm": "sha1", "header": "X-Other"}})
    assert "secret" not in back
    assert {one.text for one in await stored(store, settings, made)} == {first, keypair, text["secret"]}


async def test_a_rotation_of_both_versions_of_one_and_by_a_given_secret(
    api: ApiClient, store: Store, settings: Settings
) -> None:
    made = await create(api, signature=BOTH)
    rotation = f"{path(made)}/rotate-secret"
    v1, v1a = (one["secret"] for one in made["secrets"])
    rotated = await api.post(rotation, {"grace_s": 0}, status=200)
    assert [one["version"] for one in rotated["secrets"]] == ["v1", "v1a"]
    assert {one["secret"] for one in rotated["secrets"]}.isdisjoint({v1, v1a})
    v1, v1a = (one["secret"] for one in rotated["secrets"])

    one = await api.post(rotation, {"version": "v1a"}, status=200)
    assert [(kind["version"], kind["expires_at"] is None) for kind in one["secrets"]] == [
        ("v1a", True),
        ("v1", True),
        ("v1a", False),
    ]
    assert one["secrets"][2]["public_key"] == public_half(v1a)
    given = await api.post(rotation, {"secret": SHARED, "grace_s": 0}, status=200)
    assert given["secret"] == SHARED
    assert {secret.text for secret in await stored(store, settings, made)} == {SHARED, one["secret"], v1a}
    for body, field in (
        ({"secret": "It's a Secret to Everybody"}, "secret"),
        ({"secret": SHARED, "version": "v1a"}, "secret"),
        ({"version": "v2"}, "version"),
    ):
        answer = await api.call("POST", rotation, body)
        assert (answer.status, list(answer.fields)) == (400, [field]), body


async def test_a_rotation_of_a_text(api: ApiClient) -> None:
    made = await create(api, signature=HMAC)
    rotation = f"{path(made)}/rotate-secret"
    rotated = await api.post(rotation, status=200)
    assert [one["expires_at"] is None for one in rotated["secrets"]] == [True, False]
    given = await api.post(rotation, {"secret": "a text of my own", "grace_s": 0}, status=200)
    assert unnamed(given) == [{"version": None, "expires_at": None, "secret": "a text of my own"}]
    answer = await api.call("POST", rotation, {"version": "v1"})
    assert (answer.status, list(answer.fields)) == (400, ["version"])


async def test_graces_are_of_a_day_unless_said_and_of_a_week_at_most(api: ApiClient) -> None:
    for grace_s, seconds in ((None, 86_400), (604_800, 604_800), (0, None)):
        rotation = f"{path(await create(api))}/rotate-secret"
        began = datetime.now(UTC)
        rotated = await api.post(rotation, {} if grace_s is None else {"grace_s": grace_s}, status=200)
        ends = [one["expires_at"] for one in rotated["secrets"][1:]]
        assert len(ends) == (0 if seconds is None else 1)
        for end in ends:
            assert seconds is not None
            assert seconds <= (datetime.fromisoformat(end) - began).total_seconds() < seconds + 60
    answer = await api.call("POST", rotation, {"grace_s": 604_801})
    assert (answer.status, list(answer.fields)) == (400, ["grace_s"])


async def test_what_cannot_be_decrypted_is_rotated_before_its_signature_is_changed(
    api: ApiClient, store: Store, database_url: str
) -> None:
    made = await create(api, signature=BOTH)
    async with running_api(api_settings(database_url, encryption_keys=new_key()), store) as other:
        answer = await other.call("PATCH", path(made), {"signature": V1A})
        assert (answer.status, answer.code) == (409, "conflict")
        mended = await other.post(f"{path(made)}/rotate-secret", {"version": "v1a"}, status=200)
        assert sorted(one["version"] for one in mended["secrets"]) == ["v1", "v1a"]
        assert all("secret" in one for one in mended["secrets"])
