"""Webhooks through an outbound proxy: tunnels for all, TLS end to end, and a password that nobody else sees."""

import asyncio
import socket
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from dispatcher.core.breaker import Health, health
from infra import egress_connector
from infra.egress import Egress, open_egress
from infra.egress_rules import EgressRules
from infra.settings import read_settings
from schemas.deliveries import Answered, AttemptResult, Failure, NoAnswer
from tests.support import hostile as scripts
from tests.support.certificates import NO_TLS, self_signed, server_tls
from tests.support.connect_proxy import connect_proxy
from tests.support.hostile import Hostile, connections_end, hostile
from tests.support.nameserver import SILENCE, name_server
from tests.support.receivers import Receiver
from tests.support.system import ANY_URL
from tests.support.waiting import eventually

SECRET = "s3cret/word"
CREDENTIALS = "hookhare:s3cret%2Fword"
BASIC = f"Basic {b64encode(f'hookhare:{SECRET}'.encode()).decode()}"


async def post(egress: Egress, url: str, timeout_s: float = 5.0) -> AttemptResult:
    return await egress.post(url, headers={"webhook-id": "evt_1"}, body=b'{"n":1}', timeout_s=timeout_s)


@asynccontextmanager
async def through(
    proxy: str, *, tls: ssl.SSLContext = NO_TLS, no_proxy: str = "", allow: str = "", nameserver: str | None = None
) -> AsyncIterator[Egress]:
    """An egress that goes through the proxy; nothing on loopback is allowed to be reached directly."""
    settings = read_settings(egress_proxy=proxy, egress_no_proxy=no_proxy, egress_allow=allow, **ANY_URL)
    async with open_egress(settings, tls=tls, nameservers=[nameserver] if nameserver else None) as egress:
        yield egress


async def test_a_plain_endpoint_is_reached_through_a_tunnel_although_loopback_is_forbidden(receiver: Receiver) -> None:
    async with connect_proxy(leads={"hooks.example:80": receiver.port}) as proxy, through(proxy.url()) as egress:
        result = await post(egress, "http://hooks.example/hook?x=1")
    assert isinstance(result, Answered), result
    assert result.status == 200
    assert result.remote_address == f"127.0.0.1:{proxy.port}"  # the proxy's: nobody here knows the endpoint's
    assert proxy.asked == ["CONNECT hooks.example:80 HTTP/1.1"]
    (request,) = receiver.requests
    assert (request.path, request.headers["host"], request.body) == ("/hook", "hooks.example", b'{"n":1}')


@asynccontextmanager
async def tls_endpoint(folder: Path) -> AsyncIterator[tuple[Hostile, ssl.SSLContext]]:
    """An endpoint with a certificate for hooks.example, and a client's context that trusts it."""

    async def answer(it: Hostile, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append(await it.request(reader))
            await it.send(writer, scripts.OK)

    heads: list[bytes] = []
    certificate, key = self_signed(folder, ["hooks.example"])
    async with hostile(answer, tls=server_tls(certificate, key)) as server:
        yield server, ssl.create_default_context(cafile=str(certificate))
    assert not any(b"proxy" in head.lower() for head in heads)


async def test_tls_goes_end_to_end_and_the_password_only_to_the_proxy(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        server, tls = await stack.enter_async_context(tls_endpoint(tmp_path))
        proxy = await stack.enter_async_context(connect_proxy(leads={"hooks.example:443": server.port}))
        egress = await stack.enter_async_context(through(proxy.url(CREDENTIALS), tls=tls))
        results = [await post(egress, "https://hooks.example/hook") for _ in range(3)]
        assert [one.body for one in results if isinstance(one, Answered)] == [b"ok"] * 3, results
        assert proxy.asked == ["CONNECT hooks.example:443 HTTP/1.1"]  # once: the tunnel is kept
        assert server.connections == 1
        assert f"\r\nProxy-Authorization: {BASIC}\r\n" in proxy.heads[0]
        assert b"webhook-id" not in proxy.passed
        assert BASIC.encode() not in proxy.passed
        first, *kept = [one.timings for one in results]
        assert None not in {first.connect_ms, first.tls_ms, first.first_byte_ms}
        assert {(one.connect_ms, one.tls_ms) for one in kept} == {(None, None)}


async def test_a_certificate_for_another_name_is_refused_in_the_tunnel_too(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        server, tls = await stack.enter_async_context(tls_endpoint(tmp_path))
        proxy = await stack.enter_async_context(connect_proxy(leads={"other.example:443": server.port}))
        egress = await stack.enter_async_context(through(proxy.url(), tls=tls))
        result = await post(egress, "https://other.example/")
        assert isinstance(result, NoAnswer)
        assert result.failure is Failure.TLS
        assert result.reason.startswith("the certificate of other.example is not trusted")
        assert server.requests == 0
        await connections_end(proxy.port)


async def test_the_endpoint_of_a_plain_url_does_not_see_the_password(receiver: Receiver) -> None:
    leads = {"hooks.example:80": receiver.port}
    async with connect_proxy(leads=leads) as proxy, through(proxy.url(CREDENTIALS)) as egress:
        assert isinstance(await post(egress, "http://hooks.example/"), Answered)
        assert isinstance(await post(egress, "http://hooks.example/"), Answered)
    assert len(proxy.heads) == 1
    assert f"\r\nProxy-Authorization: {BASIC}\r\n" in proxy.heads[0]
    for request in receiver.requests:
        assert not any("proxy" in name for name in request.headers)
    assert BASIC.encode() not in proxy.passed


async def test_tunnels_are_not_shared_between_endpoints(receiver: Receiver) -> None:
    async with Receiver() as other:
        leads = {"one.example:80": receiver.port, "two.example:80": other.port, "one.example:81": other.port}
        async with connect_proxy(leads=leads) as proxy, through(proxy.url()) as egress:
            for _ in range(2):
                for url in ("http://one.example/1", "http://two.example/2", "http://one.example:81/3"):
                    assert isinstance(await post(egress, url), Answered)
    assert [one.path for one in receiver.requests] == ["/1", "/1"]
    assert [one.path for one in other.requests] == ["/2", "/3", "/2", "/3"]
    assert sorted(proxy.asked) == [
        f"CONNECT {authority} HTTP/1.1" for authority in ("one.example:80", "one.example:81", "two.example:80")
    ]


@pytest.mark.parametrize("no_proxy", ["near.test", ".test", "far.example, near.test."])
async def test_exceptions_are_reached_directly_and_under_the_guard(no_proxy: str, receiver: Receiver) -> None:
    names = {"near.test": ["127.0.0.1"], "far.example": ["10.0.0.1"]}
    async with name_server(names) as nameserver, connect_proxy() as proxy:
        async with through(proxy.url(), no_proxy=no_proxy, nameserver=nameserver) as egress:
            refused = await post(egress, f"http://near.test:{receiver.port}/")
        assert isinstance(refused, NoAnswer)
        assert refused.failure is Failure.FORBIDDEN_ADDRESS
        assert not receiver.requests
        async with through(proxy.url(), no_proxy=no_proxy, nameserver=nameserver, allow="127.0.0.0/8") as egress:
            result = await post(egress, f"http://near.test:{receiver.port}/")
        assert isinstance(result, Answered)
        assert result.remote_address == f"127.0.0.1:{receiver.port}"
    assert not proxy.heads


async def test_a_network_of_the_exceptions_is_held_against_literals(receiver: Receiver) -> None:
    async with (
        connect_proxy() as proxy,
        through(proxy.url(), no_proxy="127.0.0.0/8", allow="127.0.0.0/8") as egress,
    ):
        assert isinstance(await post(egress, receiver.url()), Answered)
    assert not proxy.heads
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "10.0.0.1", "169.254.169.254", "[::1]", "[64:ff9b::7f00:1]", "localhost"],
)
async def test_a_forbidden_literal_is_not_asked_of_the_proxy(host: str, receiver: Receiver) -> None:
    async with connect_proxy() as proxy, through(proxy.url()) as egress:
        for port in (receiver.port, proxy.port):  # the proxy's own address is nobody's endpoint either
            result = await post(egress, f"http://{host}:{port}/")
            assert isinstance(result, NoAnswer)
            assert result.failure is Failure.FORBIDDEN_ADDRESS
            assert "HOOKHARE_EGRESS_ALLOW" in result.reason
    assert not proxy.heads
    assert not receiver.requests


async def test_a_name_that_leads_to_the_proxy_is_no_way_around_the_guard() -> None:
    """What goes directly may not go to the proxy's address, be it reached for another request at the same time."""
    names = {"near.test": ["127.0.0.1"]}

    async def asked() -> bool:
        return bool(proxy.heads)

    async with (
        name_server(names) as nameserver,
        connect_proxy(answer=b"") as proxy,
        through(proxy.url(), no_proxy="near.test", nameserver=nameserver) as egress,
    ):
        hanging = asyncio.create_task(post(egress, "http://far.example/"))
        await eventually(asked)
        result = await post(egress, f"http://near.test:{proxy.port}/")
        hanging.cancel()
    assert isinstance(result, NoAnswer)
    assert result.failure is Failure.FORBIDDEN_ADDRESS
    assert not any("near.test" in head for head in proxy.heads)


INTERIM = b"HTTP/1.1 100 \r\n\r\n"


def head(status: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("answer", "failure", "told"),
    [
        (
            head("403 Forbidden"),
            Failure.FORBIDDEN_ADDRESS,
            "does not allow hooks.example:{port} (403)",
        ),
        (
            head("407 Who"),
            Failure.INTERNAL,
            "other credentials (407); an operator gives them in HOOKHARE_EGRESS_PROXY",
        ),
        (head("502 Bad Gateway"), Failure.CONNECT, "gave no connection to hooks.example:{port} (status 502)"),
        (head("301 Moved"), Failure.CONNECT, "gave no connection to hooks.example:{port} (status 301)"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", Failure.INTERNAL, "answer is not HTTP"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", Failure.INTERNAL, "answer is not HTTP"),
        (b"x" * 100_000, Failure.INTERNAL, "answer did not end within 16384 bytes"),
        (INTERIM * 5_000, Failure.INTERNAL, "answer did not end within 16384 bytes"),
        (INTERIM * 950 + head("403 No"), Failure.FORBIDDEN_ADDRESS, "(403)"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + scripts.OK, Failure.INTERNAL, "sent more than its answer"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + head("403 No"), Failure.FORBIDDEN_ADDRESS, "(403)"),
    ],
)
@pytest.mark.parametrize(("scheme", "port"), [("http", 80), ("https", 443)])
async def test_what_a_proxy_says_instead_of_a_tunnel_is_told(
    answer: bytes, failure: Failure, told: str, scheme: str, port: int
) -> None:
    async with connect_proxy(answer) as proxy, through(proxy.url(CREDENTIALS)) as egress:
        result = await post(egress, f"{scheme}://hooks.example/")
        assert isinstance(result, NoAnswer)
        assert result.failure is failure
        assert result.reason.startswith("the outbound proxy")
        assert told.format(port=port) in result.reason
        assert not any(part in result.reason for part in (SECRET, "hookhare", BASIC))
        assert len(proxy.heads) == 1
        await connections_end(proxy.port)


async def test_a_proxy_that_never_ends_its_interim_answers_is_cut_and_is_not_the_endpoints_fault() -> None:
    async def pour(it: Hostile, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await it.request(reader)
        await it.pour(writer, INTERIM * 10)

    async with hostile(pour) as proxy, through(f"http://127.0.0.1:{proxy.port}") as egress:
        result = await post(egress, "http://hooks.example/")
        assert isinstance(result, NoAnswer)
        assert (result.failure, result.reason) == (
            Failure.INTERNAL,
            "the outbound proxy's answer did not end within 16384 bytes",
        )
        await connections_end(proxy.port)


async def test_a_proxy_that_is_down_is_told_and_is_not_the_endpoints_fault() -> None:
    async with connect_proxy() as proxy:
        url = proxy.url(CREDENTIALS)
    async with through(url) as egress:
        result = await post(egress, "https://hooks.example/")
    assert isinstance(result, NoAnswer)
    assert (result.failure, result.reason) == (
        Failure.INTERNAL,
        f"no connection to the outbound proxy at 127.0.0.1:{proxy.port}: connection refused",
    )


async def test_a_proxy_that_does_not_resolve_is_told() -> None:
    async with (
        name_server({}) as nameserver,
        through(f"http://{CREDENTIALS}@proxy.test:3128", nameserver=nameserver) as egress,
    ):
        result = await post(egress, "https://hooks.example/")
    assert isinstance(result, NoAnswer)
    assert result.failure is Failure.INTERNAL
    assert result.reason.startswith("the outbound proxy proxy.test:3128 does not resolve: ")


@contextmanager
def black_hole(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """A port whose backlog is full: Linux drops the SYNs to it. A host that is down keeps as silent."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind((host, port))
        server.listen(0)
        stack.enter_context(socket.create_connection(server.getsockname()))
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("bound_s", "timeout_s", "told"), [(3.0, 0.4, " within 0.4 s"), (0.2, 5.0, ": no answer within 0.2 s")]
)
async def test_a_proxy_whose_host_is_down_is_not_the_endpoints_fault(
    bound_s: float, timeout_s: float, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress_connector, "_PROXY_CONNECT_S", bound_s)
    with black_hole() as port:
        async with through(f"http://127.0.0.1:{port}") as egress:
            result = await post(egress, "https://hooks.example/", timeout_s)
    assert isinstance(result, NoAnswer)
    assert (result.failure, result.reason) == (
        Failure.INTERNAL,
        f"no connection to the outbound proxy at 127.0.0.1:{port}{told}",
    )
    assert health(result) is Health.UNKNOWN


async def test_a_look_up_of_the_proxy_that_hangs_is_not_the_endpoints_fault() -> None:
    async with (
        name_server({"proxy.test": SILENCE}) as nameserver,
        through("http://proxy.test:3128", nameserver=nameserver) as egress,
    ):
        result = await post(egress, "https://hooks.example/", timeout_s=0.4)
    assert isinstance(result, NoAnswer)
    assert (result.failure, result.reason) == (
        Failure.INTERNAL,
        "the look-up of the outbound proxy proxy.test:3128 got no answer within 0.4 s",
    )


async def test_an_address_of_the_proxy_that_keeps_silent_leaves_time_for_the_next(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress_connector, "_PROXY_CONNECT_S", 0.2)
    async with AsyncExitStack() as stack:
        nameserver = await stack.enter_async_context(name_server({"proxy.test": ["127.0.0.2", "127.0.0.1"]}))
        proxy = await stack.enter_async_context(connect_proxy(leads={"hooks.example:80": receiver.port}))
        stack.enter_context(black_hole("127.0.0.2", proxy.port))
        egress = await stack.enter_async_context(through(f"http://proxy.test:{proxy.port}", nameserver=nameserver))
        result = await post(egress, "http://hooks.example/")
    assert isinstance(result, Answered), result
    assert result.remote_address == f"127.0.0.1:{proxy.port}"


async def test_a_proxy_by_name_is_reached_at_the_address_that_takes_a_connection(receiver: Receiver) -> None:
    async with (
        name_server({"proxy.test": ["127.0.0.2", "127.0.0.1"]}) as nameserver,
        connect_proxy(leads={"hooks.example:80": receiver.port}) as proxy,
        through(f"http://proxy.test:{proxy.port}", nameserver=nameserver) as egress,
    ):
        result = await post(egress, "http://hooks.example/")
    assert isinstance(result, Answered), result
    assert result.timings.dns_ms is not None


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_hangs_ends_at_the_deadline(scheme: str) -> None:
    async with connect_proxy(answer=b"") as proxy, through(proxy.url()) as egress:
        result = await post(egress, f"{scheme}://hooks.example/", timeout_s=0.4)
        assert isinstance(result, NoAnswer)
        assert (result.failure, result.reason) == (
            Failure.TIMEOUT,
            f"the outbound proxy at 127.0.0.1:{proxy.port} gave no connection to hooks.example within 0.4 s",
        )
        await connections_end(proxy.port)


async def test_closing_while_a_proxy_hangs_is_a_value() -> None:
    async with connect_proxy(answer=b"") as proxy:

        async def asked() -> bool:
            return bool(proxy.heads)

        async with through(proxy.url()) as egress:
            task = asyncio.create_task(post(egress, "http://hooks.example/", timeout_s=30))
            await eventually(asked)
        result = await asyncio.wait_for(task, 2)
    assert isinstance(result, NoAnswer)
    assert (result.failure, result.reason) == (Failure.INTERNAL, "the dispatcher is stopping")


async def test_an_endpoint_that_hangs_behind_a_proxy_ends_at_the_deadline() -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(hostile(scripts.accepts_and_hangs))
        leads = {"hooks.example:80": server.port, "hooks.example:443": server.port}
        proxy = await stack.enter_async_context(connect_proxy(leads=leads))
        egress = await stack.enter_async_context(through(proxy.url()))
        results = [await post(egress, f"{scheme}://hooks.example/", timeout_s=0.4) for scheme in ("http", "https")]
        assert [one.reason for one in results if isinstance(one, NoAnswer)] == [
            "no answer came from hooks.example through the outbound proxy within 0.4 s",
            "TLS with hooks.example through the outbound proxy did not finish its handshake within 0.4 s",
        ]
        await connections_end(proxy.port)


async def test_a_proxy_of_the_operators_is_no_secret_in_a_repr() -> None:
    async with connect_proxy() as proxy:
        settings = read_settings(egress_proxy=proxy.url(CREDENTIALS), **ANY_URL)
        rules = EgressRules.from_settings(settings)
        assert not any(part in f"{settings!r}{rules!r}" for part in (SECRET, "s3cret", BASIC))
