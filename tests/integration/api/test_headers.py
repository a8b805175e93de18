"""A subscription's own headers over the API: secret ones are kept and never shown, the others are shown as they are."""

from infra.crypto import Vault
from infra.settings import Settings
from infra.store.store import Store
from schemas.ids import SUBSCRIPTION, parse_id
from schemas.subscription_headers import Header, decode_headers
from tests.support.api import ApiClient

SUBSCRIPTIONS = "/v1/subscriptions"
LEAST = {"url": "https://example.com/hook", "event_types": ["#"]}
OPEN = {"value": "blue", "secret": False}


async def _headers(store: Store, settings: Settings, public: str) -> tuple[bytes, dict[str, Header]]:
    """As they are stored, encrypted and not."""
    async with store.connection() as conn:
        stored = await conn.fetchval("SELECT headers FROM subscriptions WHERE id = $1", parse_id(SUBSCRIPTION, public))
    return stored, decode_headers(Vault.from_settings(settings).decrypt(stored))


async def test_only_what_is_said_to_be_no_secret_is_shown(api: ApiClient, store: Store, settings: Settings) -> None:
    wanted = {"X-Key": "hush-1", "X-Token": {"value": "hush-2"}, "X-Colour": OPEN}
    shown = {"X-Key": "[redacted]", "X-Token": "[redacted]", "X-Colour": OPEN}
    created = await api.post(SUBSCRIPTIONS, LEAST | {"headers": wanted}, status=201)
    one = f"{SUBSCRIPTIONS}/{created['id']}"
    for answer in (created, (await api.call("GET", one)).body, (await api.call("GET", SUBSCRIPTIONS)).body["data"][0]):
        assert answer["headers"] == shown
        assert "hush" not in str(answer)
    encrypted, stored = await _headers(store, settings, created["id"])
    assert stored == {"X-Key": Header("hush-1"), "X-Token": Header("hush-2"), "X-Colour": Header("blue", secret=False)}
    assert b"hush" not in encrypted
    assert b"blue" not in encrypted  # in one column with what is secret


async def test_a_header_becomes_secret_and_open_again_by_a_patch(
    api: ApiClient, store: Store, settings: Settings
) -> None:
    created = await api.post(SUBSCRIPTIONS, LEAST | {"headers": {"X-Colour": OPEN}}, status=201)
    one = f"{SUBSCRIPTIONS}/{created['id']}"
    assert (await api.patch(one, {"headers": {"X-Colour": "red"}}))["headers"] == {"X-Colour": "[redacted]"}
    assert (await api.patch(one, {"headers": {"X-Colour": OPEN}}))["headers"] == {"X-Colour": OPEN}
    assert (await _headers(store, settings, created["id"]))[1] == {"X-Colour": Header("blue", secret=False)}


async def test_what_was_shown_cannot_take_the_place_of_a_secret(
    api: ApiClient, store: Store, settings: Settings
) -> None:
    created = await api.post(SUBSCRIPTIONS, LEAST | {"headers": {"X-Key": "hush"}}, status=201)
    answer = await api.call("PATCH", f"{SUBSCRIPTIONS}/{created['id']}", {"headers": created["headers"]})
    assert answer.status == 400
    assert answer.body["error"]["details"][0]["field"] == "headers"
    assert (await _headers(store, settings, created["id"]))[1] == {"X-Key": Header("hush")}
