"""What the audit log keeps of the commands on deliveries, dead letters and replays."""

from typing import Any

from uuid_utils.compat import uuid7

from infra.store import api_keys
from infra.store.store import Store
from schemas.ids import DEAD_LETTER, DELIVERY, public_id
from tests.support import rows
from tests.support.api import ApiClient


async def _delivery(store: Store, status: str) -> tuple[str, str | None]:
    """Paths of a delivery of the tenant acme, and of its dead letter if it has one."""
    async with store.transaction() as conn:
        key = await rows.add_delivery(conn, (await rows.add_subscription(conn)).id, status, tenant="acme")
        letters = [f"/v1/dead-letters/{public_id(DEAD_LETTER, one['id'])}" for one in await rows.letters(conn, key)]
    return f"/v1/deliveries/{public_id(DELIVERY, key)}", letters[0] if letters else None


async def _log(store: Store) -> list[dict[str, Any]]:
    async with store.connection() as conn:
        return [dict(one) for one in await conn.fetch("SELECT * FROM audit_log ORDER BY id")]


async def test_each_command_is_recorded_with_who_gave_it_and_what_it_changed(api: ApiClient, store: Store) -> None:
    async with store.connection() as conn:
        caller = await api_keys.find(conn, api.key)
    assert caller is not None
    for status, command, action, after in (
        ("retrying", "retry", "delivery.retried", "held"),
        ("held", "cancel", "delivery.canceled", "canceled"),
        ("dead", "replay", "delivery.replayed", "held"),
    ):
        path, _ = await _delivery(store, status)
        await api.call("POST", f"{path}/{command}", headers={"X-Request-Id": command})
        last = (await _log(store))[-1]
        assert (last["action"], last["target"], last["tenant"]) == (action, path.rpartition("/")[2], "acme")
        assert (last["key_id"], last["request_id"]) == (caller.id, command)
        assert (last["before"]["status"], last["after"]["status"]) == (status, after)
    for command, action, after in (
        ("replay", "dead_letter.replayed", "replayed"),
        ("discard", "dead_letter.discarded", "discarded"),
    ):
        _, letter = await _delivery(store, "dead")
        assert letter is not None
        await api.call("POST", f"{letter}/{command}")
        last = (await _log(store))[-1]
        assert (last["action"], last["target"], last["tenant"]) == (action, letter.rpartition("/")[2], "acme")
        assert (last["before"]["state"], last["after"]["state"]) == ("open", after)
    replay = await api.post("/v1/replays", {"tenant": "acme"})
    await api.post(f"/v1/replays/{replay['id']}/cancel", status=200)
    created, canceled = (await _log(store))[-2:]
    assert (created["action"], created["target"], created["before"]) == ("replay.created", replay["id"], None)
    assert created["after"] == replay
    assert (canceled["action"], canceled["target"], canceled["tenant"]) == ("replay.canceled", replay["id"], "acme")
    assert (canceled["before"]["state"], canceled["after"]["state"]) == ("running", "canceled")


async def test_what_was_refused_or_is_not_there_is_not_recorded(api: ApiClient, store: Store) -> None:
    path, _ = await _delivery(store, "delivered")
    assert (await api.call("POST", f"{path}/cancel")).status == 409
    assert (await api.call("POST", f"/v1/deliveries/{public_id(DELIVERY, uuid7())}/retry")).status == 404
    assert await _log(store) == []
