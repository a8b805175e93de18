"""The walk of a stranger: a tenant's key asks, by every route, for what is another tenant's.

It is answered byte for byte as for what is not there, sees nothing of the other in any list, filter or count, and
changes nothing. And the walk of the scopes: no route does anything for a key that has every scope but its own.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel
from uuid_utils.compat import uuid7

from consumer_api.app import all_routes
from consumer_api.route import Route
from infra.store.store import Store
from schemas.scopes import ALL_SCOPES, Scope
from tests.support import rows
from tests.support.api import Answer, ApiClient
from tests.support.strangers import (
    OF_NOBODY,
    PARAMETER,
    Tenant,
    Ways,
    absent,
    as_text,
    at,
    fields_of,
    naming,
    populate,
    put,
    rows_that_tell_of,
    told,
)

WAYS = Ways(all_routes())


@dataclass(frozen=True, slots=True)
class World:
    """A stranger, and whose things it asks for."""

    stranger: Tenant
    other: Tenant
    admin: ApiClient
    store: Store

    async def ask(self, route: Route, path: str, body: Any = None, **query: Any) -> Answer:
        return await self.stranger.client.call(route.method, path, body, **query)

    def check_nothing_shown(self, answer: Answer, asked_for: str = "") -> None:
        text = as_text(answer)
        if asked_for:
            text = text.replace(asked_for, "")
        shown = [mark for mark in self.other.marks if mark in text]
        assert not shown, (shown, text)


@pytest.fixture
async def world(api: ApiClient, store: Store) -> World:
    other, stranger = await populate(api, store, "initech"), await populate(api, store, "globex")
    return World(stranger, other, api, store)


def name_of(route: Route) -> str:
    return f"{route.method} {route.path}"


def test_the_walk_knows_every_way_to_ask_for_something() -> None:
    """A new parameter of a path, or a new field that names something, has to be added to `populate`."""
    known = {
        *("subscription_id", "event_id", "delivery_id", "attempt_id", "dead_letter_id", "replay_id", "key_id"),
        *("audit_entry_id", "secret_id", "tenant", "cursor", "external_id", *OF_NOBODY),
    }
    assert WAYS.unknown(known) == set()


def test_a_route_with_something_new_would_be_noticed() -> None:
    class Inner(BaseModel):
        things: list[dict[str, str]]
        other_thing_ids: list[str]

    class Body(BaseModel):
        deep: list[Inner] | None = None

    class Query(BaseModel):
        some_thing_id: str

    async def handler(_: Any) -> Any: ...

    new = Route(
        method="POST",
        path="/v1/things/{thing_id}/{part:\\w+}",
        handler=handler,
        scope=Scope.EVENTS_READ,
        query=Query,
        body=Body,
    )
    assert Ways([new]).unknown(()) == {"thing_id", "part", "some_thing_id", "other_thing_id"}
    assert naming(Body) == [("deep", "[]", "other_thing_ids")]


async def test_what_is_anothers_is_answered_as_what_is_not_there(world: World) -> None:
    """Every route with an id in its path: with a body that fits, with one that is none, and told apart by nothing."""
    before = await rows_that_tell_of(world.store, world.other)
    assert {"subscriptions", "events", "deliveries", "attempts", "dead_letters", "replays", "api_keys"} <= {
        table for table, found in before.items() if found
    }
    asked = 0
    for route in WAYS.routes:
        for parameter in set(PARAMETER.findall(route.path)) - OF_NOBODY:
            theirs = world.other.ids[parameter]
            nobodys = absent(parameter, theirs)
            for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
                for body in (WAYS.body(route, "globex"), b"{") if route.body is not None else (None,):
                    answers = []
                    for wanted in (theirs, nobodys):
                        path = at(route.path, {**world.stranger.ids, parameter: wanted})
                        headers = {"Idempotency-Key": str(uuid7())}
                        answer = await world.stranger.client.call(method, path, body, headers=headers)
                        world.check_nothing_shown(answer, wanted)
                        answers.append(told(answer, wanted))
                    assert answers[0] == answers[1], name_of(route)
                    assert answers[0][0] == 404, (name_of(route), answers[0])
                    asked += 1
    assert asked > 25
    assert await rows_that_tell_of(world.store, world.other) == before


async def test_what_is_anothers_in_a_query_is_as_what_is_not_there(world: World) -> None:
    before = await rows_that_tell_of(world.store, world.other)
    asked = 0
    for route in WAYS.routes:
        for field in fields_of(route.query):
            theirs = world.other.ids[field]
            path = at(route.path, world.stranger.ids)
            further: tuple[dict[str, str], ...] = ({},)
            if route.query is not None and "limit" in route.query.model_fields:
                further += ({"limit": "1"},)
            if route.query is not None and "format" in route.query.model_fields:
                further += ({"format": "csv"},)
            for more in further:
                answers = []
                for wanted in (theirs, absent(field, theirs)):
                    answer = await world.ask(route, path, WAYS.body(route, "globex"), **{field: wanted}, **more)
                    world.check_nothing_shown(answer, wanted)
                    answers.append(told(answer, wanted))
                assert answers[0] == answers[1], (name_of(route), field)
                assert answers[0][0] in {200, 403, 404}, (name_of(route), field, answers[0])
                assert (answers[0][0] == 403) == (field == "tenant"), (name_of(route), field)
                asked += 1
    assert asked > 40
    assert await rows_that_tell_of(world.store, world.other) == before


async def test_what_is_anothers_in_a_body_is_as_what_is_not_there(world: World) -> None:
    before = await rows_that_tell_of(world.store, world.other)
    asked = 0
    for route in WAYS.routes:
        for field in naming(route.body):
            name = field[-1].removesuffix("s")
            theirs = world.other.ids[name]
            answers = []
            for wanted in (theirs, absent(name, theirs)):
                body = put(WAYS.body(route, "globex"), field, wanted)
                answer = await world.ask(route, at(route.path, world.stranger.ids), body)
                world.check_nothing_shown(answer, wanted)
                answers.append(told(answer, wanted))
            assert answers[0] == answers[1], (name_of(route), field)
            code = "forbidden" if name == "tenant" else "not_found"  # of the answer, or of one in a batch
            assert f'"code":"{code}"' in answers[0][2], (name_of(route), field, answers[0])
            asked += 1
    assert asked >= 4
    assert await rows_that_tell_of(world.store, world.other) == before


async def test_nothing_that_a_tenant_is_told_of_its_own_depends_on_another(api: ApiClient, store: Store) -> None:
    """Every list, filter, count, preview and thing of its own: asked before there is another tenant, and after."""
    stranger = await populate(api, store, "globex")
    populated = datetime.now(UTC).isoformat()

    async def everything() -> dict[str, Any]:
        answers: dict[str, Any] = {}
        for route in WAYS.routes:
            if route.method != "GET" and not route.path.endswith("/preview"):
                continue
            path = at(route.path, stranger.ids)
            queries: list[dict[str, Any]] = [{}]
            if route.query is not None and "limit" in route.query.model_fields:
                queries += [{"limit": 1}]
            queries += [{field: stranger.ids[field]} for field in fields_of(route.query)]
            if route.query is not None and "format" in route.query.model_fields:
                queries += [{"format": written} for written in ("csv", "ndjson", "xml")]
            for query in queries:
                if route.path == "/v1/audit-log":
                    query |= {"created_before": populated}  # who is shown its secrets is recorded
                answer = await stranger.client.call(route.method, path, WAYS.body(route, "globex"), **query)
                answers[f"{name_of(route)} {query}"] = told(answer)
        dry = {"event_type": "order.created", "dry_run": True}
        for path in ("/v1/replays", "/v1/deliveries/retry", "/v1/deliveries/cancel"):
            answers[f"dry run {path}"] = 200, (await stranger.client.post(path, dry, status=200))["matched"]
        return answers

    alone = await everything()
    assert sum(status == 200 for status, *_ in alone.values()) > 60
    await populate(api, store, "initech")
    await api.post("/v1/replays", {"event_type": "order.created", "max_per_s": 0.01})  # of all tenants
    async with store.transaction() as conn:
        await rows.add_message_letter(conn)  # of no tenant
    beside = await everything()
    for asked, answer in alone.items():
        assert beside[asked] == answer, asked


async def test_a_tenants_events_have_ids_of_their_own(world: World) -> None:
    """The same id and source that another has: neither a duplicate, nor a conflict, nor another answer."""
    path, answers = "/v1/events", []
    for external_id in (world.other.ids["external_id"], "nobodys"):
        body = {"type": "order.created", "data": {"n": 2}, "source": "shop", "id": external_id}
        answer = await world.stranger.client.call("POST", path, body)
        world.check_nothing_shown(answer, external_id)
        assert (answer.status, answer.body["duplicate"], answer.body["tenant"]) == (202, False, "globex")
        answers.append(answer.body.keys())
    assert answers[0] == answers[1]


async def test_what_needs_no_key_tells_of_no_tenant(world: World) -> None:
    await world.stranger.client.call("GET", "/v1/subscriptions")
    for route in all_routes():
        if route.scope is None and "{" not in route.path:
            answer = await world.admin.call(route.method, route.path, key="")
            world.check_nothing_shown(answer)
            for mark in world.stranger.marks:
                assert mark not in as_text(answer), route.path


async def test_each_route_is_forbidden_to_a_key_with_every_scope_but_its_own(world: World) -> None:
    keys = {scope: await world.admin.of_tenant("globex", *sorted(ALL_SCOPES - {scope})) for scope in ALL_SCOPES}
    admins: dict[Scope, str] = {}
    for scope in ALL_SCOPES:
        wanted = {"name": "x", "tenant": None, "scopes": sorted(ALL_SCOPES - {scope})}
        admins[scope] = (await world.admin.post("/v1/keys", wanted, status=201))["key"]
    before = await rows_that_tell_of(world.store, world.stranger)
    for route in WAYS.routes:
        assert route.scope is not None
        path = at(route.path, world.stranger.ids)
        for key in (keys[route.scope].key, admins[route.scope]):
            answer = await world.admin.call(route.method, path, WAYS.body(route, "globex"), key=key)
            assert (answer.status, answer.code) == (403, "forbidden"), name_of(route)
            assert route.scope in answer.body["error"]["message"], name_of(route)
    assert await rows_that_tell_of(world.store, world.stranger) == before


async def test_what_is_for_admins_is_forbidden_to_a_tenants_key_with_every_scope(world: World) -> None:
    before = await rows_that_tell_of(world.store, world.stranger)
    for route in WAYS.routes:
        if route.admin:
            answer = await world.ask(route, at(route.path, world.stranger.ids), WAYS.body(route, "globex"))
            assert (answer.status, answer.code) == (403, "forbidden"), name_of(route)
    assert await rows_that_tell_of(world.store, world.stranger) == before
