"""TLS is verified, and a handshake that never ends has the same deadline as everything else."""

import asyncio
import socket
import ssl
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from infra.egress import Egress, open_egress
from infra.settings import read_settings
from schemas.deliveries import Answered, AttemptResult, Failure, NoAnswer
from tests.support import hostile as scripts
from tests.support.certificates import self_signed, server_tls
from tests.support.hostile import Hostile, connections_end, hostile
from tests.support.nameserver import name_server
from tests.support.system import ANY_URL

SETTINGS = read_settings(egress_allow="127.0.0.0/8", **ANY_URL)
NAMES = {"hooks.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]}


async def post(egress: Egress, url: str, timeout_s: float = 5.0) -> AttemptResult:
    return await egress.post(url, headers={"webhook-id": "evt_1"}, body=b"{}", timeout_s=timeout_s)


@asynccontextmanager
async def endpoint(
    folder: Path, *, trusted: bool = True, valid: timedelta = timedelta(hours=1)
) -> AsyncIterator[tuple[Hostile, Egress]]:
    """An endpoint with a certificate for hooks.test, and an egress that trusts it or not."""

    async def answer(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
        while True:
            await it.request(reader)
            await it.send(writer, scripts.OK)

    certificate, key = self_signed(folder, ["hooks.test"], valid=valid)
    tls = ssl.create_default_context(cafile=str(certificate)) if trusted else None
    async with AsyncExitStack() as stack:
        nameserver = await stack.enter_async_context(name_server(NAMES))
        server = await stack.enter_async_context(hostile(answer, tls=server_tls(certificate, key)))
        yield server, await stack.enter_async_context(open_egress(SETTINGS, tls=tls, nameservers=[nameserver]))


async def test_a_trusted_endpoint_is_reached_and_its_connection_kept(tmp_path: Path) -> None:
    async with endpoint(tmp_path) as (server, egress):
        results = [await post(egress, server.url(host="hooks.test")) for _ in range(3)]
        assert [one.body for one in results if isinstance(one, Answered)] == [b"ok"] * 3
        assert results[0].remote_address == f"127.0.0.1:{server.port}"
        assert server.connections == 1


async def test_a_self_signed_certificate_is_refused(tmp_path: Path) -> None:
    async with endpoint(tmp_path, trusted=False) as (server, egress):
        result = await post(egress, server.url(host="hooks.test"))
        assert isinstance(result, NoAnswer)
        assert result.failure is Failure.TLS
        assert result.reason.startswith("the certificate of hooks.test is not trusted: self")
        assert result.remote_address == f"127.0.0.1:{server.port}"
        assert server.requests == 0


@pytest.mark.parametrize(("host", "about"), [("other.test", "other.test"), ("127.0.0.1", "127.0.0.1")])
async def test_a_certificate_for_another_name_is_refused(host: str, about: str, tmp_path: Path) -> None:
    async with endpoint(tmp_path) as (server, egress):
        result = await post(egress, server.url(host=host))
        assert isinstance(result, NoAnswer)
        assert result.failure is Failure.TLS
        assert about in result.reason
        assert server.requests == 0


async def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    async with endpoint(tmp_path, valid=timedelta(hours=-1)) as (server, egress):
        result = await post(egress, server.url(host="hooks.test"))
        assert isinstance(result, NoAnswer)
        assert result.failure is Failure.TLS
        assert "expired" in result.reason
        assert server.requests == 0


async def test_a_handshake_that_never_ends_ends_at_the_deadline() -> None:
    async with hostile(scripts.accepts_and_hangs) as server, open_egress(SETTINGS) as egress:
        result = await post(egress, f"https://127.0.0.1:{server.port}/", timeout_s=0.4)
        assert isinstance(result, NoAnswer)
        assert result.failure is Failure.TIMEOUT
        where = f"127.0.0.1 at 127.0.0.1:{server.port}"
        assert result.reason == f"TLS with {where} did not finish its handshake within 0.4 s"


async def test_what_does_not_speak_tls_is_told() -> None:
    async with hostile(speaks_plainly) as server, open_egress(SETTINGS) as egress:
        result = await post(egress, f"https://127.0.0.1:{server.port}/")
        assert isinstance(result, NoAnswer)
        assert result.failure is Failure.TLS
        assert result.reason == "TLS with 127.0.0.1 failed: wrong version number"


@contextmanager
def deaf_once_asked(folder: Path, answer: bytes = b"") -> Iterator[tuple[int, threading.Event]]:
    """A TLS server that reads a request, sends `answer`, and reads nothing more: its port, and whether it was asked."""
    certificate, key = self_signed(folder, ["127.0.0.1"])
    asked, over = threading.Event(), threading.Event()

    def serve(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with server_tls(certificate, key).wrap_socket(connection, server_side=True) as wrapped:
            wrapped.recv(65_536)
            asked.set()
            wrapped.sendall(answer)
            over.wait(30)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        thread.start()
        try:
            yield listening.getsockname()[1], asked
        finally:
            over.set()
            thread.join(10)


# A polite end of TLS waits half a minute for the peer's part of it.


async def test_who_does_not_end_tls_holds_no_connection_past_the_deadline(tmp_path: Path) -> None:
    async with trusting(tmp_path) as (port, egress, _):
        result = await post(egress, f"https://127.0.0.1:{port}/", timeout_s=0.5)
        assert isinstance(result, NoAnswer)
        assert result.reason == f"no answer came from 127.0.0.1:{port} within 0.5 s"
        await connections_end(port)


async def test_nor_when_the_request_was_canceled(tmp_path: Path) -> None:
    async with trusting(tmp_path) as (port, egress, asked):
        task = asyncio.create_task(post(egress, f"https://127.0.0.1:{port}/", timeout_s=30))
        assert await asyncio.to_thread(asked.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await connections_end(port)


async def test_nor_when_its_body_was_cut(tmp_path: Path) -> None:
    async with trusting(tmp_path, scripts.HEAD + b"\r\n" + b"b" * 100_000) as (port, egress, _):
        result = await post(egress, f"https://127.0.0.1:{port}/")
        assert isinstance(result, Answered)
        await connections_end(port)


@pytest.mark.parametrize(("last", "within_s"), [(b"Connection: close\r\n", 2), (b"", 10)])  # at once, or kept for 4 s
async def test_nor_when_it_was_answered(last: bytes, within_s: float, tmp_path: Path) -> None:
    async with trusting(tmp_path, scripts.HEAD + last + b"Content-Length: 2\r\n\r\nok") as (port, egress, _):
        result = await post(egress, f"https://127.0.0.1:{port}/")
        assert isinstance(result, Answered)
        await connections_end(port, within_s=within_s)


@asynccontextmanager
async def trusting(folder: Path, answer: bytes = b"") -> AsyncIterator[tuple[int, Egress, threading.Event]]:
    """A deaf server's port, an egress that trusts it, and whether it was asked."""
    with deaf_once_asked(folder, answer) as (port, asked):
        tls = ssl.create_default_context(cafile=str(folder / "certificate.pem"))
        async with open_egress(SETTINGS, tls=tls) as egress:
            yield port, egress, asked


async def speaks_plainly(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    await reader.read(1)
    await it.send(writer, scripts.OK)
    await scripts.until_closed(reader)
