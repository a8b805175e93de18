"""Connections: how long one may keep the API waiting, how many there may be, and what is said to what is no HTTP."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from unittest.mock import MagicMock

import orjson
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from consumer_api import connections, documentation, exporting
from consumer_api.connections import BoundedServer
from infra.store.store import Store
from tests.support import rows
from tests.support.api import ApiClient, api_settings, running_api
from tests.support.waiting import eventually

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


class Wire:
    """A connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer: its status, its headers by lower case names, and its body."""
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.rstrip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            return int(first.split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))

    async def ended(self) -> bool:
        """Whether the other side ends it without a further byte."""
        async with asyncio.timeout(10):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True


@asynccontextmanager
async def wire(api: ApiClient) -> AsyncIterator[Wire]:
    host, port = api.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.3)
    monkeypatch.setattr(connections, "STALLED_S", 0.3)
    monkeypatch.setattr(connections, "LOOK_S", 0.05)


@pytest.fixture
async def api(database_url: str, store: Store, impatient: None) -> AsyncIterator[ApiClient]:
    async with running_api(api_settings(database_url), store) as client:
        yield client


async def _drip(to: Wire, data: bytes) -> None:
    while True:
        for byte in data:
            await to.send(bytes([byte]))
            await asyncio.sleep(0.02)


async def test_a_head_that_drips_or_does_not_begin_is_cut(api: ApiClient) -> None:
    with capture_logs() as lines:
        async with wire(api) as silent, wire(api) as dripping, wire(api) as later:
            await later.send(HEALTH)
            assert (await later.answer())[0] == 200
            drips = [asyncio.create_task(_drip(one, b"GET /healthz HTTP/1.1\r\nA: ")) for one in (dripping, later)]
            for one in (silent, dripping, later):
                assert await one.ended()
            for drip in drips:
                drip.cancel()
            await asyncio.gather(*drips, return_exceptions=True)
    cut = [line for line in lines if line["event"] == "api.connection_cut"]
    assert [line["reason"] for line in cut] == ["the head of a request did not come"] * 3
    assert {line["address"] for line in cut} == {"127.0.0.1"}


async def test_one_that_is_kept_between_requests_is_not_cut_for_its_silence(api: ApiClient) -> None:
    async with wire(api) as kept, wire(api) as silent:
        await kept.send(HEALTH)
        assert (await kept.answer())[0] == 200
        assert await silent.ended()  # and by now the other one has been silent for as long
        await kept.send(HEALTH)
        assert (await kept.answer())[0] == 200


async def test_one_that_is_kept_is_closed_after_a_while(
    database_url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "KEEPALIVE_S", 0.3)
    async with running_api(api_settings(database_url), store) as api, wire(api) as kept:
        await kept.send(HEALTH)
        assert (await kept.answer())[0] == 200
        assert await kept.ended()


@contextmanager
def deaf(api: ApiClient, ask: bytes) -> Iterator[None]:
    """A caller that asks and takes nothing of the answers."""
    host, port = api.url.removeprefix("http://").split(":")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((host, int(port)))
        client.sendall(ask)
        yield


async def _cut_for(lines: list[MutableMapping[str, Any]], reason: str) -> None:
    async def cut() -> bool:
        return reason in [line.get("reason") for line in lines]

    await eventually(cut)


async def _large_page(api: ApiClient, store: Store) -> bytes:
    """What asks for a page of 4 MB."""
    async with store.transaction() as conn:
        for _ in range(20):
            await rows.add_event(conn, data=b'"' + b"x" * 200_000 + b'"')
    return f"GET /v1/events HTTP/1.1\r\nHost: x\r\nX-API-Key: {api.key}\r\n\r\n".encode()


async def test_an_answer_that_is_not_taken_ends_its_connection(api: ApiClient, store: Store) -> None:
    ask = await _large_page(api, store)
    with capture_logs() as lines, deaf(api, ask * 3):
        await _cut_for(lines, "its answer was not taken")
    assert (await api.call("GET", "/v1/events", limit=1)).status == 200


@pytest.mark.parametrize("path", [b"/v1/events", b"/v1/events?format=ndjson"])
async def test_an_answer_that_is_taken_slowly_and_steadily_is_not_cut(
    api: ApiClient, store: Store, monkeypatch: pytest.MonkeyPatch, path: bytes
) -> None:
    """A page of 4 MB over a line of 1 Mbit/s takes longer than an answer may stand still."""
    for module in (connections, exporting):
        monkeypatch.setattr(module, "STALLED_S", 0.25)
    ask = await _large_page(api, store)
    host, port = api.url.removeprefix("http://").split(":")
    loop, taken = asyncio.get_running_loop(), 0
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 131_072)
        client.connect((host, int(port)))
        client.setblocking(False)
        ask = ask.replace(b"/v1/events", path).replace(b"X-API-Key", b"Connection: close\r\nX-API-Key")
        await loop.sock_sendall(client, ask)
        while some := await loop.sock_recv(client, 131_072):
            taken += len(some)
            await asyncio.sleep(0.02)
    assert taken > 3_950_000


async def test_answers_that_wait_in_memory_are_bounded_together(
    database_url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_UNSENT_BYTES", 100_000)
    monkeypatch.setattr(connections, "LOOK_S", 0.05)
    async with running_api(api_settings(database_url), store) as api:
        ask = await _large_page(api, store)
        with capture_logs() as lines, deaf(api, ask * 3):
            await _cut_for(lines, "too much is waiting to be taken")
        assert (await api.call("GET", "/v1/events", limit=1)).status == 200


async def test_one_more_connection_takes_the_place_of_the_one_that_waited_longest(
    database_url: str, store: Store
) -> None:
    async with (
        running_api(api_settings(database_url, api_max_connections=3), store) as api,
        wire(api) as busy,
        wire(api) as first,
        wire(api) as second,
    ):
        body = f"POST /v1/events HTTP/1.1\r\nHost: x\r\nX-API-Key: {api.key}\r\nContent-Length: 9\r\n\r\n[".encode()
        await busy.send(body)
        for one in (first, second):
            await one.send(HEALTH)
            assert (await one.answer())[0] == 200
        with capture_logs() as lines:
            async with wire(api) as third:
                await third.send(HEALTH)
                assert (await third.answer())[0] == 200
                assert await first.ended()
                await second.send(HEALTH)
                assert (await second.answer())[0] == 200
                async with wire(api) as fourth:  # and now the second is the oldest that waits
                    await fourth.send(HEALTH)
                    assert (await fourth.answer())[0] == 200
                    assert await second.ended()
        assert [line["event"] for line in lines].count("api.connections_full") == 1
        await busy.send(b"12345678")
        assert (await busy.answer())[0] == 400


async def test_one_whose_request_has_just_come_whole_gives_its_place_to_nobody() -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response()

    server = BoundedServer(answer, most=1)
    connection, wire_to_it = server(), MagicMock(asyncio.Transport)
    wire_to_it.get_write_buffer_size.return_value = 0
    connection.connection_made(wire_to_it)
    await asyncio.sleep(0)
    waits = connection.waits
    connection.data_received(HEALTH)
    assert (waits, connection.waits) == (True, False)
    assert not server.makes_room()
    connection.connection_lost(None)
    await server.shutdown()


async def test_where_every_connection_has_a_request_under_way_a_further_one_is_closed(
    database_url: str, store: Store
) -> None:
    async with (
        running_api(api_settings(database_url, api_max_connections=2), store) as api,
        wire(api) as first,
        wire(api) as second,
    ):
        head = f"POST /v1/events HTTP/1.1\r\nHost: x\r\nX-API-Key: {api.key}\r\n".encode()
        for one in (first, second):
            await one.send(head + b"Content-Length: 9\r\nExpect: 100-continue\r\n\r\n")
            assert await one.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        async with wire(api) as third:
            assert await third.ended()
        for one in (first, second):
            await one.send(b"[12345678")
            assert (await one.answer())[0] == 400
        async with wire(api) as third:
            await third.send(HEALTH)
            assert (await third.answer())[0] == 200


def _envelope(answer: tuple[int, dict[str, str], bytes]) -> dict[str, Any]:
    _, headers, body = answer
    assert headers["content-type"] == "application/json"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["server"] == "hookhare"
    error: dict[str, Any] = orjson.loads(body)["error"]
    assert error.keys() == {"code", "message", "details", "timestamp", "request_id"}
    return error


NO_HTTP = [
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03secret\r\n\r\n", "no HTTP"),
    (b"GET\r\n\r\n", "no HTTP"),
    (b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", "no HTTP"),
    (b"GET /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization Bearer secret\r\n\r\n", "no HTTP"),
    (b"GET /v1/events HTTP/1.1\r\nHost: x\r\nX: secret\x00\r\n\r\n", "no HTTP"),
    (b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "no HTTP"),
    (b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", "no HTTP"),
    (b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "no HTTP"),
    (b"GET /" + b"secret" * 2000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", "longer than 8190 bytes"),
    (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"secret" * 2000 + b"\r\n\r\n", "longer than 8190 bytes"),
    (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: secret\r\n" * 129 + b"\r\n", "more than 128 headers"),
]


async def test_what_is_no_http_is_400_in_the_shape_of_errors_and_is_not_repeated_in_the_log(
    api: ApiClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), capture_logs() as lines:
        for sent, told in NO_HTTP:
            async with wire(api) as one:
                await one.send(sent)
                answer = await one.answer()
                assert await one.ended()
            error = _envelope(answer)
            assert (answer[0], error["code"]) == (400, "invalid_request"), sent[:80]
            assert told in error["message"], sent[:80]
            assert "secret" not in error["message"]
    assert [(line["event"], line["log_level"]) for line in lines] == [("api.unreadable", "info")] * len(NO_HTTP)
    assert "secret" not in repr(lines) + caplog.text
    assert "Traceback" not in caplog.text


async def test_an_expectation_that_is_not_met_is_417_in_the_shape_of_errors(api: ApiClient) -> None:
    for path, expected in ((b"/v1/events", b"a miracle"), (b"/nothing", b"100-continued"), (b"/v1/events", b"\x80")):
        async with wire(api) as one:
            await one.send(b"GET %b HTTP/1.1\r\nHost: x\r\nExpect: %b\r\n\r\n" % (path, expected))
            answer = await one.answer()
        assert (answer[0], _envelope(answer)["code"]) == (417, "expectation_failed")


async def test_a_file_that_is_not_taken_ends_its_connection(
    database_url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documentation, "FILE_S", 0.3)
    ask = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
    async with running_api(api_settings(database_url), store) as api:
        with capture_logs() as lines, deaf(api, ask * 20):
            await _cut_for(lines, "a file was not taken")
        assert (await api.call("GET", "/docs/swagger-ui-bundle.js")).status == 200
