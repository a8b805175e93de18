"""`/v1/keys`: made, shown once, changed, rotated, revoked at once; and no key can raise itself."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from infra.store import api_keys
from infra.store.store import Store
from schemas.ids import API_KEY, parse_id, public_id
from schemas.scopes import Scope
from tests.support.api import Answer, ApiClient
from tests.support.waiting import eventually

KEY: dict[str, Any] = {"name": "shop", "tenant": "acme", "scopes": ["events:write", "events:read"]}
_WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
MANAGER = ("keys:admin", "events:read")


def at(**later: float) -> str:
    return (datetime.now(UTC) + timedelta(**later)).isoformat()


async def make(api: ApiClient, **given: Any) -> Any:
    return await api.post("/v1/keys", KEY | given, status=201)


async def works(api: ApiClient, key: str) -> bool:
    return (await api.call("GET", "/v1/events", key=key)).status == 200


def refused(answer: Answer, field: str) -> bool:
    """Whether it was refused for the rights that a field would hand on."""
    return answer.status == 403 and answer.body["error"]["message"].startswith(f"{field}: ")


async def audit(store: Store) -> list[tuple[str, str, str | None]]:
    async with store.connection() as conn:
        rows = await conn.fetch("SELECT action, target, tenant FROM audit_log ORDER BY id")
    return [tuple(row) for row in rows]


async def test_a_key_is_shown_once_and_its_text_is_nowhere_else(api: ApiClient, store: Store) -> None:
    answer = await api.call("POST", "/v1/keys", KEY | {"rate_limit": {"requests_per_min": 50}})
    made = answer.body
    key = made.pop("key")
    assert answer.status == 201
    assert answer.headers["Location"] == f"/v1/keys/{made['id']}"
    assert made["scopes"] == ["events:read", "events:write"]
    assert (made["tenant"], made["state"], made["rate_limit"]) == ("acme", "active", {"requests_per_min": 50})
    assert await works(api, key)
    shown = await api.get(f"/v1/keys/{made['id']}")
    listed = await api.get("/v1/keys", tenant="acme")
    assert shown == made
    assert listed["data"] == [made]
    async with store.connection() as conn:
        logged = await conn.fetch("SELECT after::text AS after FROM audit_log")
    assert key.startswith(made["prefix"])
    assert not any(key[11:] in str(kept) for kept in (shown, listed, [row["after"] for row in logged]))
    assert await audit(store) == [("key.created", made["id"], "acme")]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": None}, "name"),
        ({"tenant": "a b"}, "tenant"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["events:fly"]}, "scopes.0"),
        ({"scopes": ["events:read", "events:read"]}, "scopes"),
        ({"scopes": ["*", "events:read"]}, "scopes"),
        ({"expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": 7}, "expires_at"),
        ({"rate_limit": {"requests_per_min": 0}}, "rate_limit.requests_per_min"),
        ({"rate_limit": {"requests_per_min": 1_000_001}}, "rate_limit.requests_per_min"),
        ({"more": 1}, "more"),
    ],
)
async def test_what_no_key_can_be_is_refused_by_field(api: ApiClient, given: dict[str, Any], field: str) -> None:
    answer = await api.call("POST", "/v1/keys", KEY | given)
    assert (answer.status, answer.code) == (400, "validation_failed")
    assert any(name.startswith(field) for name in answer.fields), answer.fields


async def test_that_a_key_is_an_admins_has_to_be_said(api: ApiClient) -> None:
    answer = await api.call("POST", "/v1/keys", {"name": "x", "scopes": ["*"]})
    assert answer.fields == {"tenant": "is required"}
    assert (await make(api, tenant=None, scopes=["*"]))["tenant"] is None


async def test_a_key_may_do_what_its_scopes_say(api: ApiClient) -> None:
    reader = await api.of_tenant("acme", "events:read")
    assert (await reader.call("GET", "/v1/events")).status == 200
    answer = await reader.call("POST", "/v1/events", {"type": "a", "data": 1})
    assert (answer.status, answer.code) == (403, "forbidden")
    assert "events:write" in answer.body["error"]["message"]


async def test_a_change_is_in_force_for_the_next_request(api: ApiClient, store: Store) -> None:
    made = await make(api)
    path = f"/v1/keys/{made['id']}"
    changed = await api.patch(path, {"name": "till", "scopes": ["deliveries:read"], "expires_at": at(days=1)})
    assert (changed["name"], changed["scopes"]) == ("till", ["deliveries:read"])
    assert not await works(api, made["key"])
    assert (await api.patch(path, {"expires_at": None, "rate_limit": None}))["expires_at"] is None
    assert [action for action, *_ in await audit(store)] == ["key.created", "key.updated", "key.updated"]
    await api.patch(path, {})  # nothing changed, nothing to tell
    assert len(await audit(store)) == 3
    for body, field in (
        ({"name": None}, "name"),
        ({"scopes": None}, "scopes"),
        ({"expires_at": "1990-01-01T00:00:00Z"}, "expires_at"),
        ({"tenant": "globex"}, "tenant"),
    ):
        answer = await api.call("PATCH", path, body)
        assert (answer.status, list(answer.fields)) == (400, [field])


async def test_a_revoked_key_ends_at_once_and_for_good(api: ApiClient, store: Store) -> None:
    made = await make(api)
    path = f"/v1/keys/{made['id']}"
    assert await works(api, made["key"])
    revoked = await api.post(f"{path}/revoke", status=200)
    assert revoked["state"] == "revoked"
    assert not await works(api, made["key"])
    again = await api.post(f"{path}/revoke", status=200)
    assert again == revoked
    for method, below, body in (("PATCH", "", {"expires_at": None}), ("POST", "/rotate", None)):
        answer = await api.call(method, f"{path}{below}", body)
        assert (answer.status, answer.code) == (409, "conflict")
    assert [action for action, *_ in await audit(store)] == ["key.created", "key.revoked"]


async def test_a_key_that_expired_is_no_key_and_does_not_come_back(api: ApiClient, store: Store) -> None:
    made = await make(api, expires_at=at(hours=1))
    assert await works(api, made["key"])
    async with store.connection() as conn:
        await conn.execute(
            "UPDATE api_keys SET expires_at = clock_timestamp() WHERE id = $1", parse_id(API_KEY, made["id"])
        )
    assert not await works(api, made["key"])
    path = f"/v1/keys/{made['id']}"
    assert (await api.get(path))["state"] == "expired"
    assert (await api.call("PATCH", path, {"expires_at": at(days=1)})).status == 409


async def test_a_rotated_key_goes_on_for_the_overlap_beside_the_new_one(api: ApiClient, store: Store) -> None:
    end = at(days=30)
    made = await make(api, expires_at=end, rate_limit={"requests_per_min": 77})
    path = f"/v1/keys/{made['id']}"
    new = await api.post(f"{path}/rotate", {"overlap_s": 60}, status=201)
    assert await works(api, made["key"])
    assert await works(api, new["key"])
    same = ("name", "tenant", "scopes", "rate_limit", "expires_at")
    assert [new[name] for name in same] == [made[name] for name in same]
    old = new["replaces"]
    assert (old["id"], old["replaced_by"], old["state"]) == (made["id"], new["id"], "active")
    left = datetime.fromisoformat(old["expires_at"]) - datetime.now(UTC)
    assert timedelta(seconds=50) < left <= timedelta(seconds=61)
    assert (await api.call("POST", f"{path}/rotate")).status == 409  # or each overlap would make another
    assert [one[:2] for one in await audit(store)][1:] == [
        ("key.rotated", made["id"]),
        ("key.created", new["id"]),
    ]


async def test_without_overlap_the_old_key_ends_at_once(api: ApiClient) -> None:
    made = await make(api)
    new = await api.post(f"/v1/keys/{made['id']}/rotate", {"overlap_s": 0}, status=201)
    assert new["replaces"]["state"] == "revoked"
    assert not await works(api, made["key"])
    assert await works(api, new["key"])


async def test_the_overlap_is_a_day_unless_said_and_a_week_at_most(api: ApiClient) -> None:
    made = await make(api)
    for overlap_s in (-1, 604_801, 1.5, "60", None):
        answer = await api.call("POST", f"/v1/keys/{made['id']}/rotate", {"overlap_s": overlap_s})
        assert (answer.status, list(answer.fields)) == (400, ["overlap_s"])
    new = await api.post(f"/v1/keys/{made['id']}/rotate", status=201)
    left = datetime.fromisoformat(new["replaces"]["expires_at"]) - datetime.now(UTC)
    assert timedelta(hours=23) < left <= timedelta(hours=24, seconds=1)


async def test_a_key_that_is_not_there_is_404(api: ApiClient) -> None:
    key_id = public_id(API_KEY, parse_id(API_KEY, "key_01h455vb4pex5vsknk084sn02q"))
    for method, path in (("GET", ""), ("PATCH", ""), ("POST", "/rotate"), ("POST", "/revoke")):
        answer = await api.call(method, f"/v1/keys/{key_id}{path}", {} if method == "PATCH" else None)
        assert (answer.status, answer.code) == (404, "not_found")
    assert list((await api.call("GET", "/v1/keys/sub_x")).fields) == ["key_id"]


async def test_a_tenants_key_makes_and_sees_keys_of_its_tenant_alone(api: ApiClient) -> None:
    manager = await api.of_tenant("acme", *MANAGER)
    await make(api, tenant="globex")
    made = await manager.post("/v1/keys", {"name": "x", "scopes": ["events:read"]}, status=201)
    assert made["tenant"] == "acme"
    for tenant in ("globex", None, 7):
        answer = await manager.call("POST", "/v1/keys", {"name": "x", "tenant": tenant, "scopes": ["events:read"]})
        if tenant is None:  # its own is meant: there is no other that it could mean
            assert (answer.status, answer.body["tenant"]) == (201, "acme")
        else:
            assert (answer.status, answer.code) == (403, "forbidden")
    assert {one["tenant"] for one in (await manager.get("/v1/keys"))["data"]} == {"acme"}
    assert (await manager.call("GET", "/v1/keys", tenant="globex")).status == 403


async def test_no_key_makes_one_that_may_more_lasts_longer_or_is_answered_more_often(api: ApiClient) -> None:
    end = at(days=2)
    limits = {"expires_at": end, "rate_limit": {"requests_per_min": 100}}
    manager = await api.of_tenant("acme", *MANAGER, **limits)
    own = {"name": "x", "scopes": ["events:read"]}
    for field, more in (
        ("scopes", {"scopes": ["events:read", "events:write"]}),
        ("scopes", {"scopes": ["*"]}),
        ("expires_at", {"expires_at": at(days=3)}),
        ("expires_at", {"expires_at": None}),
        ("rate_limit", {"rate_limit": {"requests_per_min": 101}}),
        ("rate_limit", {"rate_limit": None}),
    ):
        assert refused(await manager.call("POST", "/v1/keys", own | more), field), more
    made = await manager.post("/v1/keys", own, status=201)  # what is not said is its own
    assert datetime.fromisoformat(made["expires_at"]) == datetime.fromisoformat(end)
    assert made["rate_limit"] == {"requests_per_min": 100}


async def test_no_key_raises_itself_or_another_by_a_change(api: ApiClient) -> None:
    limits = {"expires_at": at(days=2), "rate_limit": {"requests_per_min": 100}}
    manager = await api.of_tenant("acme", *MANAGER, **limits)
    itself = (await manager.get("/v1/keys"))["data"][0]
    made = await manager.post("/v1/keys", {"name": "x", "scopes": ["events:read"]}, status=201)
    for one in (itself, made):
        path = f"/v1/keys/{one['id']}"
        for field, more in (
            ("scopes", {"scopes": ["events:read", "events:write"]}),
            ("scopes", {"scopes": ["*"]}),
            ("expires_at", {"expires_at": at(days=3)}),
            ("expires_at", {"expires_at": None}),
            ("rate_limit", {"rate_limit": {"requests_per_min": 101}}),
            ("rate_limit", {"rate_limit": None}),
        ):
            assert refused(await manager.call("PATCH", path, more), field), more
        await manager.patch(path, {"name": "y", "expires_at": at(days=1), "rate_limit": {"requests_per_min": 99}})


async def test_a_key_may_lessen_one_that_may_more_but_neither_rotate_nor_raise_it(api: ApiClient) -> None:
    manager = await api.of_tenant("acme", *MANAGER, expires_at=at(days=1))
    made = await make(api, scopes=["secrets:read", "events:write"])
    path = f"/v1/keys/{made['id']}"
    # The new text would be the manager's to read.
    assert refused(await manager.call("POST", f"{path}/rotate"), "scopes")
    assert refused(await manager.call("PATCH", path, {"scopes": ["secrets:read", "deliveries:read"]}), "scopes")
    assert (await manager.patch(path, {"scopes": ["events:write"], "expires_at": at(days=9)}))["scopes"] == [
        "events:write"
    ]
    lasting = await make(api, scopes=["events:read"])
    assert refused(await manager.call("POST", f"/v1/keys/{lasting['id']}/rotate"), "expires_at")
    quick = await make(api, scopes=["events:read"], rate_limit={"requests_per_min": 1_000_000}, expires_at=at(hours=1))
    assert refused(await manager.call("POST", f"/v1/keys/{quick['id']}/rotate"), "rate_limit")
    assert (await manager.post(f"{path}/revoke", status=200))["state"] == "revoked"


async def test_a_key_rotates_itself_and_gains_no_time_by_it(api: ApiClient) -> None:
    manager = await api.of_tenant("acme", *MANAGER, expires_at=at(days=2))
    itself = (await manager.get("/v1/keys"))["data"][0]
    new = await manager.post(f"/v1/keys/{itself['id']}/rotate", {"overlap_s": 60}, status=201)
    assert new["expires_at"] == itself["expires_at"]
    # In its overlap it makes nothing that outlives it, and does not take its end back.
    assert refused(
        await manager.call("POST", "/v1/keys", {**KEY, "scopes": ["events:read"], "expires_at": at(hours=1)}),
        "expires_at",
    )
    assert refused(await manager.call("PATCH", f"/v1/keys/{itself['id']}", {"expires_at": at(hours=1)}), "expires_at")


async def test_all_scopes_of_today_are_not_those_of_tomorrow(api: ApiClient) -> None:
    manager = await api.of_tenant("acme", *Scope)
    every = await make(api, scopes=["*"])
    assert every["scopes"] == ["*"]
    assert refused(await manager.call("POST", "/v1/keys", {"name": "x", "scopes": ["*"]}), "scopes")
    assert refused(await manager.call("POST", f"/v1/keys/{every['id']}/rotate"), "scopes")
    assert (await manager.patch(f"/v1/keys/{every['id']}", {"scopes": ["events:read"]}))["scopes"] == ["events:read"]


async def test_a_key_that_is_revoked_meanwhile_leaves_no_key_behind(api: ApiClient, store: Store) -> None:
    """The request has passed the check of its key, and waits; then the key is revoked."""
    manager = await api.of_tenant("acme", *MANAGER)
    itself = parse_id(API_KEY, (await manager.get("/v1/keys"))["data"][0]["id"])
    async with store.transaction() as conn:
        await api_keys.revoke(conn, itself)  # holds the row until it commits
        creating = asyncio.create_task(manager.call("POST", "/v1/keys", {"name": "x", "scopes": ["events:read"]}))

        async def waits() -> bool:
            return bool(await conn.fetchval(_WAITING))

        await eventually(waits)
    answer = await creating
    assert (answer.status, answer.code) == (401, "unauthorized")
    assert len((await api.get("/v1/keys", tenant="acme"))["data"]) == 1


async def test_keys_that_rotate_each_other_at_once_wait_and_do_not_deadlock(api: ApiClient) -> None:
    """Whichever comes second has an end by then, and makes nothing that outlives it."""
    for _ in range(3):
        pair = [await make(api, scopes=list(MANAGER)) for _ in range(2)]
        answers = await asyncio.gather(
            *(
                api.call("POST", f"/v1/keys/{other['id']}/rotate", key=own["key"])
                for own, other in (pair, reversed(pair))
            )
        )
        assert sorted(answer.status for answer in answers) == [201, 403]


async def test_a_tenant_has_a_hundred_keys_at_most(api: ApiClient, store: Store) -> None:
    manager = await api.of_tenant("acme", *MANAGER)
    async with store.transaction() as conn:
        await conn.execute(
            """
            INSERT INTO api_keys (id, name, prefix, sha256, tenant)
            SELECT gen_random_uuid(), 'x', 'hh_', int4send(n), 'acme' FROM generate_series(1, 98) AS n
            """
        )
    body = {"name": "x", "scopes": ["events:read"]}
    answers = await asyncio.gather(*(manager.call("POST", "/v1/keys", body) for _ in range(3)))
    assert sorted(answer.status for answer in answers) == [201, 409, 409]
    last = next(answer.body for answer in answers if answer.status == 201)
    assert (await manager.call("POST", f"/v1/keys/{last['id']}/rotate")).status == 409
    await manager.post(f"/v1/keys/{last['id']}/revoke", status=200)
    assert (await manager.call("POST", "/v1/keys", body)).status == 201
    assert (await api.call("POST", "/v1/keys", KEY | {"tenant": "globex"})).status == 201
