"""Whatever is sent to whichever route, it is answered, and never by a 5xx: an error is one of ours, in the one shape.

Beside Schemathesis, which keeps to what the document describes, this sends bytes: paths, queries and headers that no
client writes, bodies that are nearly JSON.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote_from_bytes

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consumer_api.app import all_routes
from consumer_api.errors import ErrorCode
from consumer_api.route import Route
from infra.store.store import Store
from tests.support.api import ApiClient
from tests.support.strangers import PARAMETER, Tenant, Ways, populate

EXAMPLES: Final = 300
ROUTES: Final = all_routes()
WAYS: Final = Ways(ROUTES)
# What no answer says of us.
INWARD: Final = (b"Traceback", b"asyncpg", b"aiohttp", b"pydantic", b"orjson", b"SELECT ", b"Error(", b".py")

_AWKWARD: Final = (
    *(
        b"",
        b"\x00",
        b"%",
        b"%zz",
        b"%00",
        b"%ff%fe",
        b"%ED%A0%80",
        b"..",
        b"%2e%2e%2f",
        b"%2F",
        b"//",
        b"\xff",
        b"+",
        b"'",
    ),
    *(b"null", b"true", b"[]", b"-1", b"0", b"1e999", b"9" * 400, b"NaN", b"-0", b"0x10", b"1_0"),
    *(b"9999-12-31T23:59:59Z", b"0001-01-01T00:00:00%2B23:59", b"2026-02-30T00:00:00Z", b"sub_" + b"7" * 26, b"evt_"),
    *("é".encode(), "\u202e".encode(), "\U0001f600".encode(), b"a" * 5000, b"a,b,,c", b"{}", b"*", b'"', b";drop"),
)
_AWKWARD_JSON: Final = (
    *(b"NaN", b"-Infinity", b"1e999", b"9" * 400, b"1." + b"0" * 400 + b"1", b'"\\ud800"', b'"\\u0000"', b'"\x00"'),
    *(
        b"\xef\xbb\xbf1",
        b'"\xed\xa0\x80"',
        b"[" * 500 + b"]" * 500,
        b'{"a":1,"a":2}',
        b'{"":{"":{}}}',
        b"[[[]]",
        b"'a'",
    ),
    *(b"null", b"true", b'""', b"[]", b"{}", b"-0", b"0.1e-400", b'"' + b"\\" * 1001 + b'"', b'"sub_"', b"[null]"),
    *(
        b'"9999-12-31T23:59:59Z"',
        b'"0001-01-01T00:00:00+23:59"',
        b'"http://[::1"',
        b'"http://a:99999/"',
        b'"https://%00/"',
    ),
)
_HEADERS: Final = (
    *(b"Content-Type", b"Content-Encoding", b"Accept", b"If-Match", b"If-None-Match", b"Idempotency-Key", b"Origin"),
    *(
        b"X-Request-Id",
        b"X-Forwarded-For",
        b"Range",
        b"Cookie",
        b"Expect",
        b"traceparent",
        b"Access-Control-Request-Method",
    ),
    *(b"Accept-Encoding", b"If-Modified-Since", b"Transfer-Encoding", b"Upgrade", b"Connection", b"Host", b"X"),
)

_junk = st.sampled_from(_AWKWARD) | st.binary(max_size=12)
_value = st.sampled_from(_AWKWARD_JSON) | st.binary(max_size=12)


@dataclass(frozen=True, slots=True)
class Sent:
    """A request, as bytes."""

    route: Route
    target: bytes
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes

    def written(self, key: str) -> bytes:
        lines = [
            b"%b %b HTTP/1.1" % (self.route.method.encode(), self.target),
            b"Host: x",
            b"X-API-Key: " + key.encode(),
        ]
        lines += [b"%b: %b" % (name, value) for name, value in self.headers]
        return b"\r\n".join([*lines, b"Content-Length: %d" % len(self.body), b"", b""]) + self.body


@st.composite
def _sent(draw: st.DrawFn, ids: dict[str, str]) -> Sent:
    route = draw(st.sampled_from(ROUTES))
    path = b"/".join(
        draw(_segment(part.strip("{}").split(":")[0], ids)) if PARAMETER.fullmatch(part) else part.encode()
        for part in route.path.split("/")
    )
    fields = [name.encode() for name in route.query.model_fields] if route.query else []
    names = draw(st.lists(st.sampled_from([*fields, b"x", b"%00"]), max_size=2))
    pairs = [(name, draw(_junk)) for name in names]
    if b"wait_s" in fields:
        pairs.append((b"wait_s", b"0"))  # or it waits for an attempt that nobody makes
    query = b"&".join(b"%b=%b" % pair for pair in pairs)
    target = path + (b"?" + query if query else b"")
    headers = draw(st.lists(st.tuples(st.sampled_from(_HEADERS), _junk), max_size=2))
    if draw(st.integers(0, 7)):  # mostly what a parser takes
        target = quote_from_bytes(target, safe="/?&=%:,+*").encode()
        headers = [(name, re.sub(rb"[\x00-\x1f\x7f]", b"", value)) for name, value in headers]
    return Sent(route, target, headers, draw(_body(route)))


def _segment(name: str, ids: dict[str, str]) -> st.SearchStrategy[bytes]:
    known = st.just(ids.get(name, "x").encode())
    return known | known | known | _junk.filter(lambda junk: b"?" not in junk and b"#" not in junk)


def _body(route: Route) -> st.SearchStrategy[bytes]:
    if route.body is None:
        return st.just(b"") | _value
    example = {name: orjson.dumps(value) for name, value in WAYS.body(route, "acme").items()}
    names = [*route.body.model_fields, "x", "\x00"]
    changes = st.dictionaries(st.sampled_from(names), _value, max_size=2)
    nearly = changes.map(lambda changed: _object([*(example | changed).items()]))
    twice = changes.map(lambda changed: _object([*example.items(), *changed.items()]))
    return nearly | nearly | twice | _value | st.binary(max_size=40)


def _object(members: list[tuple[str, bytes]]) -> bytes:
    return b"{" + b",".join(orjson.dumps(name) + b":" + value for name, value in members) + b"}"


async def _answer(host: str, port: int, sent: bytes) -> tuple[int, bytes, bytes]:
    """Status, head and body of what comes back; the connection ends after it, whatever was asked."""
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(sent)
            head = await reader.readuntil(b"\r\n\r\n")
            length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b":0")
            body = b"" if sent.startswith(b"HEAD") else await reader.readexactly(int(length.partition(b":")[2]))
            return int(head.split()[1]), head, body
        finally:
            writer.close()


def _check(sent: Sent, status: int, head: bytes, body: bytes) -> None:
    assert status < 500, (sent, body)
    assert b"Server: hookhare" in head, (sent, head)
    assert b"X-Content-Type-Options: nosniff" in head
    if status >= 400:
        error: dict[str, Any] = orjson.loads(body)["error"]
        assert error.keys() == {"code", "message", "details", "timestamp", "request_id"}
        assert error["code"] in set(ErrorCode)
        assert b"Content-Type: application/json" in head
        assert not [word for word in INWARD if word in body], (sent, body)


@pytest.fixture
async def things(api: ApiClient, store: Store) -> Tenant:
    return await populate(api, store, "acme")


async def test_whatever_is_sent_is_answered_and_never_by_a_5xx(api: ApiClient, things: Tenant) -> None:
    host, port = api.url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(_sent(dict(things.ids)))
    def send(sent: Sent) -> None:
        answering = asyncio.run_coroutine_threadsafe(_answer(host, int(port), sent.written(api.key)), loop)
        _check(sent, *answering.result())

    await asyncio.to_thread(send)
