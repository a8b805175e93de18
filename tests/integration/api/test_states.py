"""`POST /v1/subscriptions/{id}/pause`, `/resume`, `/enable`, `/disable`."""

import pytest

from infra.store.store import Store
from schemas.ids import SUBSCRIPTION, parse_id
from tests.support import rows
from tests.support.api import ApiClient

SUBSCRIPTIONS = "/v1/subscriptions"


async def _create(api: ApiClient) -> str:
    body = {"url": "https://127.0.0.1/hook", "event_types": ["order.#"]}
    return f"{SUBSCRIPTIONS}/{(await api.post(SUBSCRIPTIONS, body, status=201))['id']}"


@pytest.mark.parametrize(
    ("command", "state", "reason"),
    [
        ("pause", "paused", "paused by operator"),
        ("resume", "enabled", None),
        ("enable", "enabled", None),
        ("disable", "disabled", "disabled by operator"),
    ],
)
async def test_a_command_may_be_repeated_and_says_the_state_and_why(
    api: ApiClient, command: str, state: str, reason: str | None
) -> None:
    path = await _create(api)
    first = await api.post(f"{path}/{command}", status=200)
    assert (first["state"], first["state_reason"]) == (state, reason)
    assert await api.post(f"{path}/{command}", status=200) == first
    assert await api.get(path) == first


@pytest.mark.parametrize("command", ["pause", "resume"])
async def test_what_is_disabled_is_neither_paused_nor_resumed_but_enabled(api: ApiClient, command: str) -> None:
    path = await _create(api)
    await api.post(f"{path}/disable", status=200)
    answer = await api.call("POST", f"{path}/{command}")
    assert (answer.status, answer.code) == (409, "conflict")
    assert "disabled by operator" in answer.body["error"]["message"]
    assert (await api.get(path))["state"] == "disabled"
    assert (await api.post(f"{path}/enable", status=200))["state"] == "enabled"


async def test_the_first_reason_stays(api: ApiClient, store: Store) -> None:
    path = await _create(api)
    async with store.transaction() as conn:
        await conn.execute("UPDATE subscriptions SET state = 'disabled', state_reason = 'it answered 410'")
    assert (await api.post(f"{path}/disable", status=200))["state_reason"] == "it answered 410"


async def test_pausing_keeps_the_backlog_and_disabling_ends_it(api: ApiClient, store: Store) -> None:
    path = await _create(api)
    key = parse_id(SUBSCRIPTION, path.rpartition("/")[2])
    async with store.transaction() as conn:
        held = await rows.add_delivery(conn, key, "held")
    for command, status in (("pause", "held"), ("resume", "held"), ("disable", "dead")):
        await api.post(f"{path}/{command}", status=200)
        async with store.connection() as conn:
            assert (await rows.delivery(conn, held))["status"] == status


async def test_a_subscription_that_is_deleted_or_no_id_is_told(api: ApiClient) -> None:
    path = await _create(api)
    assert (await api.call("DELETE", path)).status == 204
    for command in ("pause", "resume", "enable", "disable"):
        assert (await api.call("POST", f"{path}/{command}")).code == "not_found"
        assert list((await api.call("POST", f"{SUBSCRIPTIONS}/x/{command}")).fields) == ["subscription_id"]


@pytest.mark.parametrize("command", ["pause", "resume", "enable", "disable"])
async def test_it_changes_the_version_that_is_named_and_no_other(api: ApiClient, command: str) -> None:
    path = await _create(api)
    stale = await api.call("POST", f"{path}/{command}", headers={"If-Match": '"0"'})
    assert (stale.status, stale.code) == (412, "precondition_failed")
    etag = (await api.call("GET", path)).headers["ETag"]
    assert (await api.call("POST", f"{path}/{command}", headers={"If-Match": etag})).status == 200
