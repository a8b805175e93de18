"""The walk of changes: every route that may change something is called, and leaves exactly its audit entries.

A new route fails it until it stands in `CHANGES`, or in `NO_CHANGES` with the reason.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
from uuid_utils.compat import uuid7

from consumer_api.app import all_routes
from consumer_api.route import Route
from infra.store import api_keys
from infra.store.store import Store
from schemas.ids import DEAD_LETTER, DELIVERY, SUBSCRIPTION, parse_id, public_id
from tests.support import rows
from tests.support.api import ApiClient
from tests.support.canaries import Canaries
from tests.support.certificates import Authority
from tests.support.strangers import PARAMETER, at

TENANT: Final = "acme"


@dataclass(frozen=True, slots=True)
class Step:
    """A call that succeeds, and the actions that it leaves, in order.

    `status` is of the delivery that it is done to. `first` are commands on the same path that are given before.
    `target` is what it is done to where that has no id; then there is a delivery.
    """

    leaves: tuple[str, ...]
    body: Callable[[Canaries], Any] | Any = None
    status: str = "dead"
    first: tuple[str, ...] = ()
    target: str | None = None
    shows: bool = True  # what was there before, or is there after


def _wish(canaries: Canaries) -> dict[str, Any]:
    issued = Authority().issue("client.example")
    return {
        "url": "https://example.com/hook",
        "event_types": ["order.#"],
        "tenant": TENANT,
        "headers": {"X-Key": canaries.text("a header")},
        "auth": {"type": "bearer", "token": canaries.text("a token")},
        "tls": {
            "client_certificate": issued.certificate,
            "client_key": canaries.add("a key in PEM form", issued.key),
        },
    }


def _changed(canaries: Canaries) -> dict[str, Any]:
    return {"auth": {"type": "basic", "username": "u", "password": canaries.text("a password")}}


_KEY: Final = {"name": "walk", "tenant": TENANT, "scopes": ["events:read"]}
_SINCE: Final = (datetime.now(UTC) - timedelta(hours=1)).isoformat()

CHANGES: Final[Mapping[str, Step]] = {
    "POST /v1/subscriptions": Step(("subscription.created",), _wish),
    "PATCH /v1/subscriptions/{subscription_id}": Step(("subscription.updated",), _changed),
    "DELETE /v1/subscriptions/{subscription_id}": Step(("subscription.deleted",)),
    "POST /v1/subscriptions/{subscription_id}/pause": Step(("subscription.paused",)),
    "POST /v1/subscriptions/{subscription_id}/resume": Step(("subscription.resumed",), first=("pause",)),
    "POST /v1/subscriptions/{subscription_id}/disable": Step(("subscription.disabled",)),
    "POST /v1/subscriptions/{subscription_id}/enable": Step(("subscription.enabled",), first=("disable",)),
    "POST /v1/subscriptions/{subscription_id}/recover": Step(("subscription.recovered",), {"since": _SINCE}),
    "POST /v1/subscriptions/{subscription_id}/rotate-secret": Step(("subscription.secret_rotated",)),
    "POST /v1/subscriptions/{subscription_id}/expire-secrets": Step(
        ("subscription.secrets_expired",), first=("rotate-secret",)
    ),
    "GET /v1/subscriptions/{subscription_id}/secrets": Step(("subscription.secrets_shown",), shows=False),
    "POST /v1/subscriptions/{subscription_id}/test": Step(("subscription.tested",)),
    "POST /v1/events/{event_id}/redeliver": Step(("event.redelivered",)),
    "POST /v1/events/{event_id}/expunge": Step(("event.expunged",)),
    "POST /v1/deliveries/retry": Step(
        ("deliveries.retried",), {"tenant": TENANT}, status="retrying", target="deliveries"
    ),
    "POST /v1/deliveries/cancel": Step(
        ("deliveries.canceled",), {"tenant": TENANT}, status="held", target="deliveries"
    ),
    "POST /v1/deliveries/{delivery_id}/retry": Step(("delivery.retried",), status="retrying"),
    "POST /v1/deliveries/{delivery_id}/cancel": Step(("delivery.canceled",), status="held"),
    "POST /v1/deliveries/{delivery_id}/replay": Step(("delivery.replayed",)),
    "POST /v1/dead-letters/{dead_letter_id}/replay": Step(("dead_letter.replayed",)),
    "POST /v1/dead-letters/{dead_letter_id}/discard": Step(("dead_letter.discarded",), {"reason": "of old"}),
    "POST /v1/replays": Step(("replay.created",), {"tenant": TENANT}),
    "POST /v1/replays/{replay_id}/cancel": Step(("replay.canceled",)),
    "POST /v1/event-types": Step(("event_type.created", "event_type.version_added"), {"name": "walk", "schema": {}}),
    "PATCH /v1/event-types/{event_type}": Step(("event_type.updated",), {"description": "another"}),
    "DELETE /v1/event-types/{event_type}": Step(("event_type.deleted",)),
    "POST /v1/event-types/{event_type}/versions": Step(
        ("event_type.updated", "event_type.version_added"), {"schema": {}, "example": 1}
    ),
    "POST /v1/keys": Step(("key.created",), _KEY),
    "PATCH /v1/keys/{key_id}": Step(("key.updated",), {"name": "another"}),
    "POST /v1/keys/{key_id}/rotate": Step(("key.rotated", "key.created")),
    "POST /v1/keys/{key_id}/revoke": Step(("key.revoked",)),
}

_EVENT: Final = {"type": "order.created", "data": {"n": 1}}
# What changes nothing that somebody set up: the history has every event, and a preview is only a look.
NO_CHANGES: Final[Mapping[str, Any]] = {
    "POST /v1/events": _EVENT,
    "POST /v1/events/batch": {"events": [_EVENT]},
    "POST /v1/subscriptions/preview": _EVENT,
}


class World:
    """Things of a tenant to do something to, made anew for each step."""

    def __init__(self, admin: ApiClient, tenant: ApiClient, store: Store) -> None:
        self.admin = admin
        self.tenant = tenant
        self.store = store
        self.canaries = Canaries()
        self._makers: dict[str, Callable[[Step], Awaitable[str]]] = {
            "subscription_id": self._subscription,
            "event_id": self._event,
            "delivery_id": self._delivery,
            "dead_letter_id": self._dead_letter,
            "replay_id": self._replay,
            "key_id": self._key,
            "event_type": self._event_type,
        }

    async def ids(self, path: str, step: Step) -> dict[str, str]:
        """Something for each parameter of a path."""
        return {name: await self._makers[name](step) for name in PARAMETER.findall(path)}

    def note(self, told: Any) -> None:
        """Whatever secret an answer shows is to be looked for."""
        if isinstance(told, Mapping):
            for name, value in told.items():
                if name in {"secret", "key"} and isinstance(value, str):
                    self.canaries.add("a secret that was shown", value)
                self.note(value)
        elif isinstance(told, list):
            for one in told:
                self.note(one)

    async def _subscription(self, _: Step) -> str:
        made = await self.tenant.post("/v1/subscriptions", _wish(self.canaries), status=201)
        self.note(made)
        return str(made["id"])

    async def _event(self, step: Step) -> str:
        shown = await self.tenant.get(f"/v1/deliveries/{await self._delivery(step)}")
        return str(shown["event_id"])

    async def _delivery(self, step: Step) -> str:
        subscription = parse_id(SUBSCRIPTION, await self._subscription(step))
        async with self.store.transaction() as conn:
            return public_id(DELIVERY, await rows.add_delivery(conn, subscription, step.status, tenant=TENANT))

    async def _dead_letter(self, step: Step) -> str:
        delivery = parse_id(DELIVERY, await self._delivery(step))
        async with self.store.transaction() as conn:
            (letter,) = await rows.letters(conn, delivery)
        return public_id(DEAD_LETTER, letter["id"])

    async def _replay(self, _: Step) -> str:
        return str((await self.tenant.post("/v1/replays", {"tenant": TENANT}))["id"])

    async def _event_type(self, _: Step) -> str:
        made = await self.admin.post("/v1/event-types", {"name": f"walk.{uuid7().hex}"}, status=201)
        return str(made["name"])

    async def _key(self, _: Step) -> str:
        made = await self.tenant.post("/v1/keys", _KEY, status=201)
        self.note(made)
        return str(made["id"])


def _name(route: Route) -> str:
    return f"{route.method} {route.path}"


async def _left_by(conn: asyncpg.Connection, request_id: str) -> list[dict[str, Any]]:
    found = await conn.fetch(
        "SELECT *, to_jsonb(a)::text AS text FROM audit_log AS a WHERE request_id = $1", request_id
    )
    return sorted((dict(one) for one in found), key=lambda one: one["id"])


def test_the_walk_knows_every_route_that_may_change_something() -> None:
    routes = {_name(route): route for route in all_routes() if route.scope is not None}
    changing = {name for name, route in routes.items() if route.method != "GET"}
    assert changing - CHANGES.keys() - NO_CHANGES.keys() == set()
    assert (CHANGES.keys() | NO_CHANGES.keys()) - routes.keys() == set()


async def test_every_change_leaves_exactly_its_entries_with_who_what_and_from_where_and_no_secret(
    api: ApiClient, store: Store
) -> None:
    routes = {_name(route): route for route in all_routes()}
    world = World(api, await api.of_tenant(TENANT), store)
    for name, step in CHANGES.items():
        route = routes[name]
        caller, tenant = (world.admin, None) if route.admin else (world.tenant, TENANT)
        ids = await world.ids(route.path if step.target is None else "{delivery_id}", step)
        path = at(route.path, ids)
        for command in step.first:
            world.note(await caller.post(f"{path.rpartition('/')[0]}/{command}", status=200))
        body = step.body(world.canaries) if callable(step.body) else step.body
        query: dict[str, Any] = {"wait_s": 0} if route.path.endswith("/test") else {}
        request_id, began = f"walk-{uuid7().hex}", datetime.now(UTC)
        answer = await caller.call(route.method, path, body, headers={"X-Request-Id": request_id}, **query)
        assert answer.status < 300, (name, answer.raw)
        world.note(answer.body)
        async with store.connection() as conn:
            entries = await _left_by(conn, request_id)
            key = await api_keys.find(conn, caller.key)
        assert key is not None
        assert tuple(entry["action"] for entry in entries) == step.leaves, name
        made = answer.body or {}
        known = {*ids.values(), made.get("id"), made.get("name")} if step.target is None else {step.target}
        for entry in entries:
            assert (entry["key_id"], entry["address"], entry["tenant"]) == (key.id, "127.0.0.1", tenant), name
            assert began - timedelta(seconds=1) <= entry["created_at"] <= datetime.now(UTC) + timedelta(seconds=1)
            assert entry["target"] in known, (name, entry["target"])
            assert (entry["before"] is not None or entry["after"] is not None) == step.shows, name
            assert entry["before"] != entry["after"] or not step.shows, name
            assert not world.canaries.found_in(entry["text"]), name
            assert caller.key not in entry["text"], name
    assert world.canaries.slots == {"a header", "a token", "a key in PEM form", "a password", "a secret that was shown"}
    async with store.connection() as conn:  # what led to the steps left nothing secret either
        told = await conn.fetchval("SELECT string_agg(to_jsonb(a)::text, ' ') FROM audit_log AS a")
    assert not world.canaries.found_in(told)


async def test_what_changes_nothing_leaves_no_entry(api: ApiClient, store: Store) -> None:
    for name, body in NO_CHANGES.items():
        method, path = name.split()
        assert (await api.call(method, path, body)).status in {200, 202}, name
    for route in all_routes():
        if route.method == "GET" and "{" not in route.path and route.scope is not None:
            assert (await api.call("GET", route.path)).status == 200, route.path
    async with store.connection() as conn:
        assert await conn.fetchval("SELECT count(*) FROM audit_log") == 0
