"""`/v1/audit-log`: what is recorded is read by whom it concerns, and is only added to."""

from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from uuid_utils.compat import uuid7

from infra.store import audit, upkeep
from infra.store.audit import Change
from infra.store.store import Store
from schemas.ids import API_KEY, AUDIT_ENTRY, public_id
from schemas.scopes import Scope
from tests.support.api import ApiClient

LOG = "/v1/audit-log"
WISH: dict[str, Any] = {"url": "https://example.com/hook", "event_types": ["order.#"]}


async def _subscription(client: ApiClient, tenant: str = "acme") -> dict[str, Any]:
    made: dict[str, Any] = await client.post("/v1/subscriptions", WISH | {"tenant": tenant}, status=201)
    return made


async def _own_key(client: ApiClient) -> dict[str, Any]:
    """The entry of the key that a client calls with."""
    found: list[dict[str, Any]] = (await client.get("/v1/keys"))["data"]
    return found[0]


async def test_an_entry_says_who_did_what_to_what_when_and_from_where(api: ApiClient) -> None:
    made = await _subscription(api)
    path = f"/v1/subscriptions/{made['id']}"
    headers = {"X-Request-Id": "r-17"}
    changed = await api.call("PATCH", path, {"description": "new"}, headers=headers)
    assert changed.status == 200
    newest, oldest = (await api.get(LOG))["data"]
    key = await _own_key(api)
    assert {name: newest[name] for name in ("actor", "key_id", "key_name", "key_prefix")} == {
        "actor": "admin_key",
        "key_id": key["id"],
        "key_name": "test",
        "key_prefix": key["prefix"],
    }
    assert (newest["action"], newest["target"], newest["tenant"]) == ("subscription.updated", made["id"], "acme")
    assert (newest["address"], newest["request_id"]) == ("127.0.0.1", "r-17")
    assert (newest["before"]["description"], newest["after"]["description"]) == ("", "new")
    assert newest["after"] == changed.body
    assert abs((datetime.fromisoformat(newest["created_at"]) - datetime.now(UTC)).total_seconds()) < 60
    assert (oldest["action"], oldest["before"]) == ("subscription.created", None)
    assert await api.get(f"{LOG}/{newest['id']}") == newest
    assert newest["id"].startswith("aud_")


async def test_it_is_asked_by_key_action_target_tenant_and_time(api: ApiClient) -> None:
    acme = await api.of_tenant("acme")
    mine = await _subscription(acme)
    await _subscription(api, "globex")
    await api.call("DELETE", f"/v1/subscriptions/{mine['id']}")
    key = (await acme.get("/v1/keys"))["data"][0]

    async def actions(**query: Any) -> list[str]:
        return [one["action"] for one in (await api.get(LOG, **query))["data"]]

    created, deleted = "subscription.created", "subscription.deleted"
    assert await actions() == [deleted, created, created, "key.created"]
    assert await actions(key_id=key["id"]) == [created]
    assert await actions(key_id=public_id(API_KEY, uuid7())) == []
    assert await actions(action="subscription.deleted") == [deleted]
    assert await actions(target=mine["id"]) == [deleted, created]
    assert await actions(tenant="globex") == [created]
    assert await actions(tenant="acme", target=mine["id"], action="subscription.created") == [created]
    moment = (await api.get(LOG))["data"][1]["created_at"]
    later, earlier = await actions(created_after=moment), await actions(created_before=moment)
    assert deleted in later
    assert earlier[-1] == "key.created"
    assert len(later) + len(earlier) == 4
    page = await api.get(LOG, limit=1)
    pages = page["data"]
    while page["has_more"]:
        page = await api.get(LOG, limit=1, cursor=page["next_cursor"])
        pages += page["data"]
    assert [one["action"] for one in pages] == await actions()


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"action": "Subscription updated"}, "action"),
        ({"action": "a." + "b" * 63}, "action"),
        ({"target": ""}, "target"),
        ({"target": "a\x00b"}, "target"),
        ({"key_id": "sub_x"}, "key_id"),
        ({"created_after": "yesterday"}, "created_after"),
        ({"cursor": "x"}, "cursor"),
        ({"limit": 201}, "limit"),
        ({"who": "x"}, "who"),
    ],
)
async def test_what_it_cannot_be_asked_is_named(api: ApiClient, query: dict[str, Any], field: str) -> None:
    answer = await api.call("GET", LOG, **query)
    assert (answer.status, answer.code, list(answer.fields)) == (400, "validation_failed", [field])


async def test_an_entry_that_is_not_there_is_404_and_an_id_of_another_kind_400(api: ApiClient) -> None:
    assert (await api.call("GET", f"{LOG}/{public_id(AUDIT_ENTRY, uuid7())}")).code == "not_found"
    assert list((await api.call("GET", f"{LOG}/key_x")).fields) == ["audit_entry_id"]


async def test_it_takes_its_own_scope(api: ApiClient) -> None:
    reader = await api.of_tenant("acme", Scope.AUDIT_READ)
    other = await api.of_tenant("acme", Scope.SUBSCRIPTIONS_READ, Scope.KEYS_ADMIN)
    assert (await reader.call("GET", LOG)).status == 200
    assert (await reader.call("GET", "/v1/keys")).code == "forbidden"
    assert (await other.call("GET", LOG)).code == "forbidden"


async def test_a_tenant_sees_what_became_of_its_own_and_not_which_admin_did_it(api: ApiClient) -> None:
    acme = await api.of_tenant("acme")
    mine, theirs = await _subscription(acme), await _subscription(api, "globex")
    await api.post(f"/v1/subscriptions/{mine['id']}/pause", status=200)
    await api.post("/v1/keys", {"name": "x", "tenant": None, "scopes": ["events:read"]}, status=201)
    paused, created, key_created = (await acme.get(LOG))["data"]
    assert (paused["action"], paused["actor"]) == ("subscription.paused", "admin_key")
    assert [paused[name] for name in ("key_id", "key_name", "key_prefix", "address")] == [None] * 4
    assert (created["actor"], created["key_name"], created["address"]) == ("key", "a tenant's", "127.0.0.1")
    assert (key_created["action"], key_created["actor"], key_created["key_id"]) == ("key.created", "admin_key", None)
    assert await acme.get(f"{LOG}/{paused['id']}") == paused
    admins = next(one for one in (await api.get(LOG))["data"] if one["target"] == theirs["id"])
    assert (await acme.call("GET", f"{LOG}/{admins['id']}")).code == "not_found"
    for query in ({"target": theirs["id"]}, {"key_id": admins["key_id"]}):
        assert (await acme.get(LOG, **query))["data"] == [], query


async def test_a_key_that_was_revoked_is_still_named(api: ApiClient) -> None:
    acme = await api.of_tenant("acme")
    made = await _subscription(acme)
    key = (await acme.get("/v1/keys"))["data"][0]
    await api.post(f"/v1/keys/{key['id']}/revoke", status=200)
    (entry,) = (await api.get(LOG, target=made["id"]))["data"]
    assert (entry["key_id"], entry["key_name"], entry["key_prefix"]) == (key["id"], "a tenant's", key["prefix"])


async def test_what_the_command_changed_has_no_key(api: ApiClient, store: Store) -> None:
    async with store.transaction() as conn:
        change = Change(
            tenant=None,
            key_id=None,
            action="key.created",
            target="key_x",
            address=None,
            request_id=None,
            after={"a": 1},
        )
        await audit.add(conn, change)
    (entry,) = (await api.get(LOG))["data"]
    assert (entry["actor"], entry["key_id"], entry["address"], entry["request_id"]) == ("cli", None, None, None)
    assert entry["after"] == {"a": 1}


async def test_it_is_exported_whole(api: ApiClient) -> None:
    for _ in range(3):
        await _subscription(api)
    lines = (await api.call("GET", LOG, format="csv")).raw.decode().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("id,tenant,actor,key_id,")
    assert len((await api.call("GET", LOG, format="ndjson")).raw.splitlines()) == 3
    assert (await api.call("GET", LOG, format="xml")).raw.count(b"<item>") == 3


async def test_a_page_is_bounded_in_bytes_and_what_is_too_large_is_left_out(api: ApiClient, store: Store) -> None:
    large = {"id": "x", "text": "a" * 120_000, "list": [1, 2]}
    too_large = {"id": "x", "small": "kept", "text": "a" * 140_000}
    async with store.transaction() as conn:
        for number in range(20):
            after = too_large if number == 0 else large
            change = Change(
                tenant="acme",
                key_id=None,
                action="a.b",
                target="x",
                address=None,
                request_id=None,
                before=large,
                after=after,
            )
            await audit.add(conn, change)
    page = await api.get(LOG)
    assert page["has_more"] is True
    assert 10 < len(page["data"]) < 20
    rest = await api.get(LOG, cursor=page["next_cursor"])
    assert len(page["data"]) + len(rest["data"]) == 20
    first = rest["data"][-1]
    assert first["before"] == large
    assert first["after"] == {"id": "x", "small": "kept", "text": "left out of the audit log: 140002 bytes"}


async def _try(conn: asyncpg.Connection, statement: str, may_forget: str | None) -> None:
    """Run a statement in a transaction that has said from which age on it may delete."""
    async with conn.transaction():
        if may_forget is not None:
            await conn.execute(upkeep.MAY_FORGET_AUDIT, may_forget)
        await conn.execute(statement)


async def test_it_is_only_added_to(api: ApiClient, store: Store) -> None:
    """Whatever age a deleting transaction says: these rows are of today."""
    await _subscription(api)
    async with store.connection() as conn:
        before = await conn.fetch("SELECT * FROM audit_log")
        for statement in (
            "UPDATE audit_log SET action = 'x'",
            "UPDATE audit_log SET created_at = created_at - interval '2 years'",
            "DELETE FROM audit_log",
            "TRUNCATE audit_log",
        ):
            for may_forget in (None, "", "0", "1", "86400", "31536000", "-1"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError, match="audit_log is only added to"):
                    await _try(conn, statement, may_forget)
        assert await conn.fetch("SELECT * FROM audit_log") == before


async def test_only_what_is_as_old_as_was_said_may_be_deleted(store: Store) -> None:
    insert = (
        "INSERT INTO audit_log (id, action, target, created_at) "
        "VALUES ($1, 'a.b', 'x', clock_timestamp() - make_interval(days => $2))"
    )
    delete, days = "DELETE FROM audit_log", 86_400
    async with store.connection() as conn:
        await conn.execute(insert, uuid7(), 10)
        for may_forget in (None, str(11 * days)):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await _try(conn, delete, may_forget)
        await _try(conn, delete, str(9 * days))
        assert await conn.fetchval("SELECT count(*) FROM audit_log") == 0
        await conn.execute(insert, uuid7(), 10)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):  # what was said ended with its transaction
            await _try(conn, delete, None)
