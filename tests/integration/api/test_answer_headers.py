"""The headers of every answer: what browsers may make of it, and which pages may read it."""

from typing import Any

import pytest

from consumer_api.app import all_routes
from infra.settings import read_settings
from infra.store.store import Store
from schemas.errors import ConfigurationError
from tests.support.api import Answer, ApiClient, api_settings, running_api

DATA = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Server": "hookhare",
}
PAGE = "https://app.example.com"
OTHER = "https://app.example.com.evil.example"
ASKED = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


def _cors(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.lower().startswith("access-control-")}


async def _every_kind(api: ApiClient, origin: str = "") -> list[Answer]:
    """Answers of every kind: good ones, a stream, errors of ours and of the router's."""
    headers = {"Origin": origin} if origin else {}
    limited = await api.post("/v1/keys", {"name": "x", "tenant": None, "scopes": ["*"], "rate_limit": RATE}, status=201)
    answers = [await api.call("GET", "/v1/subscriptions", headers=headers, key=limited["key"]) for _ in range(2)]
    assert [one.status for one in answers] == [200, 429]
    for method, path, status, more in (
        ("GET", "/v1/subscriptions", 200, {}),
        ("HEAD", "/v1/subscriptions", 200, {}),
        ("GET", "/v1/subscriptions?format=csv", 200, {}),
        ("GET", "/v1/subscriptions?limit=x", 400, {}),
        ("GET", "/v1/subscriptions", 401, {"key": ""}),
        ("GET", "/v1/nothing", 404, {}),
        ("GET", "/nothing", 404, {}),
        ("PUT", "/v1/subscriptions", 405, {}),
        ("POST", "/v1/subscriptions", 413, {"body": b" " * 1_000_000}),
    ):
        answer = await api.call(method, path, headers=headers, **more)
        assert answer.status == status, path
        answers.append(answer)
    return answers


RATE = {"requests_per_min": 1}


async def test_every_answer_says_what_browsers_may_make_of_it(api: ApiClient) -> None:
    for answer in [*await _every_kind(api), *[await api.call("GET", path) for path in ("/healthz", "/metrics")]]:
        assert {name: answer.headers.get(name) for name in DATA} == DATA
        assert answer.headers["X-Request-Id"]


async def test_the_page_and_the_document_have_their_own(api: ApiClient) -> None:
    page, document = await api.call("GET", "/docs"), await api.call("GET", "/openapi.json")
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    for answer in (page, document):
        assert answer.headers["Cache-Control"] == "no-cache"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Server"] == "hookhare"


async def test_no_page_may_read_anything_unless_it_is_said(api: ApiClient) -> None:
    for answer in await _every_kind(api, PAGE):
        assert _cors(answer) == {}
        assert "Vary" not in answer.headers
    answer = await api.call("OPTIONS", "/v1/subscriptions", key="", headers={"Origin": PAGE, **ASKED})
    assert (answer.status, _cors(answer)) == (401, {})


async def test_a_page_that_is_named_may_call_and_read_errors_too(database_url: str, store: Store) -> None:
    async with running_api(api_settings(database_url, api_cors_origins=f"{PAGE}, http://localhost:3000"), store) as api:
        for answer in await _every_kind(api, PAGE):
            assert _cors(answer)["Access-Control-Allow-Origin"] == PAGE
            exposed = _cors(answer)["Access-Control-Expose-Headers"].split(", ")
            assert {"X-Request-Id", "X-RateLimit-Reset", "Retry-After", "ETag", "Idempotency-Replayed"} <= set(exposed)
            assert "Access-Control-Allow-Credentials" not in answer.headers
            assert answer.headers["Vary"] == "Origin"
        for origin in (OTHER, "null", PAGE.upper(), f"{PAGE}:443", "http://app.example.com", ""):
            for answer in await _every_kind(api, origin):
                assert _cors(answer) == {}, origin
                assert answer.headers["Vary"] == "Origin"


async def test_what_a_browser_asks_beforehand_is_answered_without_a_key(database_url: str, store: Store) -> None:
    async with running_api(api_settings(database_url, api_cors_origins=PAGE), store) as api:
        for route in all_routes():
            if route.scope is None:
                continue
            headers = {"Origin": PAGE, "Access-Control-Request-Method": route.method}
            answer = await api.call("OPTIONS", route.path, key="", headers=headers)
            assert (answer.status, answer.raw) == (204, b""), route.path
            told = _cors(answer)
            assert told["Access-Control-Allow-Origin"] == PAGE
            assert route.method in told["Access-Control-Allow-Methods"].split(", ")
            allowed = told["Access-Control-Allow-Headers"].lower()
            assert all(one in allowed for one in ("authorization", "x-api-key", "if-match", "idempotency-key"))
            assert int(told["Access-Control-Max-Age"]) > 0
        refused: list[dict[str, Any]] = [{"Origin": OTHER, **ASKED}, {**ASKED}, {"Origin": PAGE}]
        for headers in refused:  # no question of a browser's, or of another page's
            answer = await api.call("OPTIONS", "/v1/subscriptions", key="", headers=headers)
            assert answer.status == 401
            assert "Access-Control-Allow-Methods" not in answer.headers
        for path in ("/healthz", "/metrics"):  # no page's business
            assert _cors(await api.call("GET", path, headers={"Origin": PAGE})) == {}
            assert (await api.call("OPTIONS", path, headers={"Origin": PAGE, **ASKED})).status == 405


async def test_any_page_may_where_that_is_said_but_without_what_the_browser_keeps(
    database_url: str, store: Store
) -> None:
    async with running_api(api_settings(database_url, api_cors_origins="*"), store) as api:
        for answer in await _every_kind(api, OTHER):
            assert _cors(answer)["Access-Control-Allow-Origin"] == "*"
            assert "Access-Control-Allow-Credentials" not in answer.headers
        answer = await api.call("OPTIONS", "/v1/events", key="", headers={"Origin": OTHER, **ASKED})
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (204, "*")


def test_origins_are_exact() -> None:
    for wrong in (
        *("app.example.com", "https://app.example.com/", "https://*.example.com", "https://App.example.com"),
        *("https://a.example,*", "null", "https://a.example:0", "https://u@a.example", "ftp://a.example"),
    ):
        with pytest.raises(ConfigurationError, match="HOOKHARE_API_CORS_ORIGINS: must be origins"):
            read_settings(api_cors_origins=wrong)
    for right in ("*", PAGE, "http://localhost:3000", "http://[::1]:8080", f"{PAGE},http://127.0.0.1"):
        assert read_settings(api_cors_origins=right).api_cors_origins == tuple(right.split(","))
