"""What goes over the wire, what comes back of it, and what a caller cannot do."""

import asyncio
import errno
import socket
import tracemalloc
from asyncio import StreamReader, StreamWriter
from importlib.metadata import version
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest

from infra import egress_connector
from infra.egress import Egress, open_egress
from infra.response_guard import ResponseGuard
from infra.settings import read_settings
from schemas.deliveries import Answered, AttemptResult, Failure, NoAnswer
from tests.support import hostile as scripts
from tests.support.certificates import NO_TLS
from tests.support.hostile import Hostile, hostile
from tests.support.nameserver import SILENCE, name_server
from tests.support.receivers import Behaviour, Receiver
from tests.support.system import ANY_URL

KEEP_BYTES = 64
SETTINGS = read_settings(egress_allow="127.0.0.0/8", **ANY_URL, response_keep_bytes=KEEP_BYTES)
HEADERS = {
    "webhook-id": "evt_01h455vb4pex5vsknk084sn02q",
    "webhook-timestamp": "1700000000",
    "webhook-signature": "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
}


async def post(egress: Egress, url: str, *, timeout_s: float = 5.0, body: bytes = b'{"data":1}') -> AttemptResult:
    return await egress.post(url, headers=HEADERS, body=body, timeout_s=timeout_s)


class Listener:
    """A script that keeps the heads of the requests that it answers."""

    def __init__(self, answer: bytes = scripts.OK) -> None:
        self.heads: list[bytes] = []
        self._answer = answer

    async def __call__(self, it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
        while True:
            self.heads.append(await it.request(reader))
            await it.send(writer, self._answer)


async def test_the_request_is_ours_the_callers_headers_and_nothing_else() -> None:
    listener = Listener()
    async with hostile(listener) as endpoint, open_egress(SETTINGS, tls=NO_TLS) as egress:
        await post(egress, endpoint.url("/hook/%c3%bc/../a%2Fb?a=1&b=%2F&c=%7e+"))
    line, *headers, _, _ = listener.heads[0].split(b"\r\n")
    assert line == b"POST /hook/%c3%bc/../a%2Fb?a=1&b=%2F&c=%7e+ HTTP/1.1"
    assert sorted(headers, key=bytes.lower) == sorted(
        [
            b"Accept: */*",
            b"Accept-Encoding: identity",
            b"Content-Length: 10",
            b"Content-Type: application/json",
            f"Host: 127.0.0.1:{endpoint.port}".encode(),
            f"User-Agent: Hookhare/{version('hookhare')}".encode(),
            *(f"{name}: {value}".encode() for name, value in HEADERS.items()),
        ],
        key=bytes.lower,
    )


async def test_the_body_is_sent_byte_for_byte(receiver: Receiver) -> None:
    body = bytes(range(256)) * 8000  # 2 MB
    async with open_egress(SETTINGS, tls=NO_TLS) as egress:
        assert isinstance(await post(egress, receiver.url("/big"), body=body), Answered)
        assert isinstance(await post(egress, receiver.url("/empty"), body=b""), Answered)
    assert [one.body for one in receiver.requests] == [body, b""]
    assert receiver.requests[1].headers["content-length"] == "0"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("Content-Length", "0"), ("content-length", "5"), ("Transfer-Encoding", "chunked"), ("Host", "internal")),
        *(("HOST", "internal"), ("Connection", "close"), ("Content-Type", "text/plain"), ("User-Agent", "curl")),
        *(("Expect", "100-continue"), ("Upgrade", "h2c"), ("Content-Encoding", "gzip")),
        *(("TE", "trailers"), ("Trailer", "x"), ("Proxy-Authorization", "x")),
        *(("Content-Length: 0\r\nX", "y"), ("X: y\r\nContent-Length", "0"), ("Content-Length: 0, X", "y")),
        *(("X\n", "y"), ("X ", "y"), (" X", "y"), ("X:", "y"), ("", "y"), ("\u2169", "y"), ("X\x00", "y")),
        *(
            ("Ho\u017ft", "y"),
            ("\u212aeep-Alive", "y"),
            ("X-\u212aey", "y"),
        ),  # the long s and the Kelvin sign have plain small letters
        *(("X", "a\r\nContent-Length: 0"), ("X", "a\nb"), ("X", "a\rb"), ("X", "a\x00b"), ("X", "a\x7fb")),
        *(("X", "é"), ("X", "a\u2028b"), ("X", "a\x85b"), ("X", "a\udcffb")),
    ],
)
async def test_no_header_of_the_callers_reaches_into_the_message(name: str, value: str, receiver: Receiver) -> None:
    async with open_egress(SETTINGS, tls=NO_TLS) as egress:
        result = await egress.post(receiver.url(), headers={**HEADERS, name: value}, body=b"{}", timeout_s=5)
        assert isinstance(result, NoAnswer), result
        assert result.failure is Failure.INTERNAL
        assert result.reason.startswith("the header ")
        assert value not in result.reason or value in {"x", "y"}  # values are often secrets
    assert not receiver.requests


@pytest.mark.parametrize(
    "url",
    [
        *("", "nonsense", "ftp://example.com/", "file:///etc/passwd", "//example.com/", "http://", "http:///x"),
        *("http://h:99999/", "http://[::1", "http://a b/", "http://exa\nmple/", "http://user:pass@example.com/"),
        *("http://example.com/\r\nX: y", "http://exämple.com/", "ws://example.com/", "unix:///run/docker.sock"),
    ],
)
async def test_what_is_no_url_for_a_webhook_is_said_and_not_raised(url: str) -> None:
    async with open_egress(SETTINGS, tls=NO_TLS) as egress:
        result = await post(egress, url)
    assert isinstance(result, NoAnswer)
    assert (result.failure, result.remote_address) == (Failure.FORBIDDEN_ADDRESS, None)
    assert result.reason.startswith("the URL must ")
    assert ":pass" not in result.reason


async def test_the_answer_is_told_as_it_came(receiver: Receiver) -> None:
    receiver.behave("/ok", Behaviour(body=b"fine"))
    receiver.behave("/busy", Behaviour(status=503, headers={"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}))
    receiver.behave("/gone", Behaviour(status=410, body=b""))
    receiver.behave("/none", Behaviour(status=204, body=b""))
    async with open_egress(SETTINGS, tls=NO_TLS) as egress:
        told = [await post(egress, receiver.url(path)) for path in ("/ok", "/busy", "/gone", "/none")]
    assert [(one.status, one.body, one.retry_after) for one in told if isinstance(one, Answered)] == [
        (200, b"fine", None),
        (503, b"ok", "Fri, 31 Dec 1999 23:59:59 GMT"),
        (410, b"", None),
        (204, b"", None),
    ]
    assert {one.remote_address for one in told} == {f"127.0.0.1:{receiver.port}"}


@pytest.mark.parametrize(
    ("length", "kept", "connections"),
    # One byte too many is there already when it is noticed, and costs no connection; ten thousand are not.
    [(0, 0, 1), (KEEP_BYTES, KEEP_BYTES, 1), (KEEP_BYTES + 1, KEEP_BYTES, 1), (100_000, KEEP_BYTES, 2)],
)
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_connection_is_kept_when_the_body_ended_within_the_cap(
    length: int, kept: int, connections: int, chunked: bool
) -> None:
    if chunked:
        parts = b"".join(b"1\r\n%c\r\n" % (97 + at % 26) for at in range(length))
        answer = scripts.HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + parts + b"0\r\n\r\n"
    else:
        answer = scripts.HEAD + b"Content-Length: %d\r\n\r\n" % length + b"b" * length
    listener = Listener(answer)
    async with hostile(listener) as endpoint, open_egress(SETTINGS, tls=NO_TLS) as egress:
        results = [await post(egress, endpoint.url()) for _ in range(2)]
        assert [len(one.body) for one in results if isinstance(one, Answered)] == [kept, kept]
        assert endpoint.connections == connections


async def test_a_body_in_many_pieces_is_put_together() -> None:
    async def trickle(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
        await it.request(reader)
        await it.send(writer, scripts.HEAD + b"Content-Length: 26\r\n\r\n")
        for letter in b"abcdefghijklmnopqrstuvwxyz":
            await it.send(writer, bytes([letter]))
            await asyncio.sleep(0.002)
        await scripts.until_closed(reader)

    async with hostile(trickle) as endpoint, open_egress(SETTINGS, tls=NO_TLS) as egress:
        result = await post(egress, endpoint.url())
    assert isinstance(result, Answered)
    assert result.body == b"abcdefghijklmnopqrstuvwxyz"


async def test_interim_answers_are_passed_over() -> None:
    listener = Listener(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + scripts.OK)
    async with hostile(listener) as endpoint, open_egress(SETTINGS, tls=NO_TLS) as egress:
        result = await post(egress, endpoint.url())
    assert isinstance(result, Answered)
    assert (result.status, result.body) == (200, b"ok")


async def test_cookies_are_not_kept() -> None:
    listener = Listener(scripts.HEAD + b"Set-Cookie: session=1; Path=/\r\nContent-Length: 0\r\n\r\n")
    async with hostile(listener) as endpoint, open_egress(SETTINGS, tls=NO_TLS) as egress:
        for _ in range(2):
            await post(egress, endpoint.url())
    assert len(listener.heads) == 2
    assert b"session" not in listener.heads[1]


async def test_a_proxy_of_the_environment_is_not_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hostile(Listener()) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url())
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv("no_proxy", "")
        async with open_egress(SETTINGS, tls=NO_TLS) as egress:
            assert isinstance(await post(egress, receiver.url()), Answered)
        assert proxy.connections == 0
    assert len(receiver.requests) == 1


async def test_a_refused_connection_is_told(receiver: Receiver) -> None:
    await receiver.stop()
    async with open_egress(SETTINGS, tls=NO_TLS) as egress:
        result = await post(egress, receiver.url())
    assert isinstance(result, NoAnswer)
    assert result.failure is Failure.CONNECT
    assert result.reason == f"no connection to 127.0.0.1:{receiver.port}: connection refused"
    assert result.remote_address == f"127.0.0.1:{receiver.port}"


async def test_a_connection_that_is_never_made_ends_at_the_deadline() -> None:
    # A full backlog: the kernel leaves further connections unanswered, as a firewall would.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        fillers = []
        try:
            for _ in range(8):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
                fillers.append(filler)
            async with open_egress(SETTINGS, tls=NO_TLS) as egress:
                result = await post(egress, f"http://127.0.0.1:{port}/", timeout_s=0.4)
        finally:
            for filler in fillers:
                filler.close()
    assert isinstance(result, NoAnswer)
    assert (result.failure, result.reason) == (Failure.TIMEOUT, f"no connection to 127.0.0.1:{port} within 0.4 s")


async def test_want_of_sockets_is_our_own_fault(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    async with open_egress(SETTINGS, tls=NO_TLS) as egress:
        monkeypatch.setattr(egress_connector, "socket", SimpleNamespace(socket=none_left))
        result = await post(egress, receiver.url())
    assert isinstance(result, NoAnswer)
    assert (result.failure, result.reason) == (
        Failure.INTERNAL,
        "this dispatcher is short of resources: too many open files",
    )


async def test_what_nobody_foresaw_is_a_value_too(receiver: Receiver) -> None:
    async with open_egress(SETTINGS, tls=NO_TLS) as egress:
        number: Any = 5
        results = [
            await egress.post(receiver.url(), headers={"x-number": number}, body=b"{}", timeout_s=5),
            await egress.post(number, headers={}, body=b"{}", timeout_s=5),
            await egress.post(receiver.url(), headers={}, body=number, timeout_s=5),
        ]
    for result in results:
        assert isinstance(result, NoAnswer)
        assert result.failure is Failure.INTERNAL
        assert result.reason in {"unforeseen: AttributeError", "unforeseen: TypeError"}
    assert not receiver.requests


async def test_a_connection_that_is_lost_before_the_request_is_told(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ResponseGuard, "over", lambda _: None)  # what it says of a connection that is lost already
    async with open_egress(SETTINGS, tls=NO_TLS) as egress:
        result = await post(egress, receiver.url("/hook"))
    assert isinstance(result, NoAnswer)
    assert result.failure is Failure.DISCONNECTED
    assert result.reason == "127.0.0.1 closed the connection before the request was sent"
    assert not receiver.requests


async def test_canceling_ends_the_request_and_is_not_swallowed() -> None:
    async with hostile(scripts.accepts_and_hangs) as endpoint, open_egress(SETTINGS, tls=NO_TLS) as egress:
        task = asyncio.create_task(post(egress, endpoint.url(), timeout_s=30))
        await reached(endpoint)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        deadline = monotonic() + 2
        while not endpoint.closed:
            assert monotonic() < deadline
            await asyncio.sleep(0.01)


async def test_closing_under_a_request_is_a_value() -> None:
    async with hostile(scripts.accepts_and_hangs) as endpoint:
        async with open_egress(SETTINGS, tls=NO_TLS) as egress:
            task = asyncio.create_task(post(egress, endpoint.url(), timeout_s=30))
            await reached(endpoint)
        result = await asyncio.wait_for(task, 2)
        assert isinstance(result, NoAnswer)
        connections = endpoint.connections
        after = await post(egress, endpoint.url())
        assert endpoint.connections == connections  # nothing is begun any more
        assert isinstance(after, NoAnswer)
        for one in (result, after):
            assert (one.failure, one.reason) == (Failure.INTERNAL, "the dispatcher is stopping")


async def test_closing_under_a_look_up_is_a_value_and_no_cancellation() -> None:
    async with name_server({"silent.test": SILENCE}) as server:
        async with open_egress(SETTINGS, tls=NO_TLS, nameservers=[server]) as egress:
            task = asyncio.create_task(post(egress, "http://silent.test/", timeout_s=30))
            await asyncio.sleep(0.05)  # let the look-up begin
        result = await asyncio.wait_for(task, 2)
    assert isinstance(result, NoAnswer)
    assert (result.failure, result.reason) == (Failure.INTERNAL, "the dispatcher is stopping")


async def test_who_waits_for_an_answer_holds_no_copy_of_its_body() -> None:
    async def reads_and_hangs(_: Hostile, reader: StreamReader, __: StreamWriter) -> None:
        while await reader.read(65_536):
            pass

    body, count = b"b" * 262_144, 20
    async with hostile(reads_and_hangs) as endpoint, open_egress(SETTINGS, tls=NO_TLS) as egress:
        tracemalloc.start()
        try:
            tasks = [asyncio.create_task(post(egress, endpoint.url(), timeout_s=30, body=body)) for _ in range(count)]
            deadline = monotonic() + 10
            while endpoint.connections < count or tracemalloc.get_traced_memory()[0] > count * len(body) / 2:
                assert monotonic() < deadline
                await asyncio.sleep(0.05)
        finally:
            tracemalloc.stop()
    await asyncio.gather(*tasks)


async def test_closing_is_quick_whatever_is_open() -> None:
    async with hostile(scripts.never_reads) as endpoint:
        async with open_egress(SETTINGS, tls=NO_TLS) as egress:
            task = asyncio.create_task(post(egress, endpoint.url(), timeout_s=30, body=b"b" * 16_000_000))
            await reached(endpoint)
            began = monotonic()
        assert monotonic() - began < 2
        assert isinstance(await asyncio.wait_for(task, 2), NoAnswer)


async def reached(endpoint: Hostile) -> None:
    """Wait until the endpoint has accepted, and the request was written as far as it goes."""
    deadline = monotonic() + 2
    while not endpoint.connections:
        assert monotonic() < deadline
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
