"""Errors that many routes have, on each of them."""

import re
from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest
from uuid_utils.compat import uuid7

from consumer_api import exporting, searching
from consumer_api.app import all_routes
from consumer_api.caller import id_prefix
from consumer_api.queries import ListQuery
from infra.store import api_keys, event_types
from infra.store.store import Store
from schemas.ids import public_id
from tests.support.api import ApiClient

ROUTES = [route for route in all_routes() if route.scope is not None]
LOCKED = (
    *("subscriptions", "events", "deliveries", "attempts", "dead_letters"),
    *("replays", "audit_log", "event_type_versions"),
)


@pytest.fixture
async def lists(api: ApiClient) -> Sequence[str]:
    """The path of each list."""
    await api.post("/v1/event-types", {"name": "order.created", "schema": {}}, status=201)
    paths = [route.path for route in ROUTES if issubclass(route.query or object, ListQuery)]
    return [path.replace("{event_type}", "order.created") for path in paths]


def _path(template: str) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: public_id(id_prefix(found[1]) or "x", uuid7()), template)


async def test_a_key_that_has_no_requests_left_is_told_so(api: ApiClient) -> None:
    made = await api.post(
        "/v1/keys", {"name": "one", "tenant": None, "scopes": ["*"], "rate_limit": {"requests_per_min": 1}}, status=201
    )
    answers = [await api.call(route.method, _path(route.path), key=made["key"]) for route in ROUTES]
    refused = [answer for answer in answers if answer.status == 429]
    assert len(refused) >= len(answers) - 2  # a minute may have begun meanwhile
    assert {answer.code for answer in refused} == {"rate_limited"}
    assert all(int(answer.headers["Retry-After"]) <= 60 for answer in refused)


async def test_a_list_that_is_not_read_in_time_is_to_be_narrowed(
    lists: Sequence[str], api: ApiClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(conn: asyncpg.Connection, *_: Any, **__: Any) -> None:
        await conn.execute("SELECT pg_sleep(10)")

    # Who locks these tables keeps everybody's key, or the type, from being found.
    monkeypatch.setattr(api_keys, "list_page", slow)
    monkeypatch.setattr(event_types, "list_page", slow)
    monkeypatch.setattr(searching, "SEARCH_TIMEOUT_MS", 50)
    async with store.transaction() as conn:
        await conn.execute(f"LOCK TABLE {', '.join(LOCKED)} IN ACCESS EXCLUSIVE MODE")
        for path in lists:
            answer = await api.call("GET", path)
            assert (answer.status, answer.code) == (422, "query_too_broad"), path


async def test_an_export_beyond_those_that_may_be_under_way_is_to_be_asked_for_later(
    lists: Sequence[str], api: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "MAX_EXPORTS", 0)
    for path in lists:
        answer = await api.call("GET", path, format="csv")
        assert (answer.status, answer.code) == (503, "overloaded"), path
        assert int(answer.headers["Retry-After"]) > 0


async def test_a_list_names_the_field_that_is_wrong(lists: Sequence[str], api: ApiClient) -> None:
    wrong: list[dict[str, Any]] = [
        {"limit": "0"},
        {"limit": "201"},
        {"cursor": "none"},
        {"format": "pdf"},
        {"colour": "red"},
    ]
    for path in lists:
        for query in wrong:
            answer = await api.call("GET", path, **query)
            assert (answer.status, answer.code, answer.fields.keys()) == (400, "validation_failed", query.keys()), path
