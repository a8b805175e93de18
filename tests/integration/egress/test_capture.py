"""What is told of an answer besides its status and body: a few headers, and where the time went.

No time is asserted to be short; a part that is made to take `SLOW_S` is at least that long, and the parts together are
not longer than the whole, so no part has taken another one's time for its own.
"""

import asyncio
import socket
import ssl
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from infra.egress import Egress, open_egress
from infra.response_headers import MAX_VALUE_CHARS
from infra.settings import read_settings
from schemas.deliveries import Answered, AttemptResult, Failure, NoAnswer, Timings
from tests.support import hostile as scripts
from tests.support.certificates import NO_TLS, self_signed, server_tls
from tests.support.hostile import Hostile, Script, hostile
from tests.support.nameserver import SILENCE, name_server
from tests.support.receivers import Behaviour, Receiver
from tests.support.system import ANY_URL

SETTINGS = read_settings(egress_allow="127.0.0.0/8", **ANY_URL, response_keep_bytes=64)
SLOW_S: Final = 0.2
SLOW_MS: Final = 190  # less what a clock may round
NAMES: Final = {"hooks.test": ["127.0.0.1"], "silent.test": SILENCE}


async def post(egress: Egress, url: str, timeout_s: float = 10.0) -> AttemptResult:
    result = await egress.post(url, headers={"webhook-id": "evt_1"}, body=b"{}", timeout_s=timeout_s)
    parts = [part for part in result.timings if part is not None]
    assert all(part >= 0 for part in parts)
    assert sum(parts) <= result.duration_ms + len(parts)  # each is rounded
    return result


def happened(timings: Timings) -> set[str]:
    return {name for name, part in timings._asdict().items() if part is not None}


@contextmanager
def slow_to_begin_tls(folder: Path) -> Iterator[int]:
    """A server for hooks.test that answers what comes on one connection, after `SLOW_S` in which it reads nothing."""
    certificate, key = self_signed(folder, ["hooks.test"])
    over = threading.Event()

    def serve(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        over.wait(SLOW_S)
        with server_tls(certificate, key).wrap_socket(connection, server_side=True) as wrapped:
            while wrapped.recv(65_536):
                wrapped.sendall(scripts.OK)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            over.set()
            thread.join(10)


async def test_the_parts_of_a_first_request_and_of_the_next_on_its_connection(tmp_path: Path) -> None:
    with slow_to_begin_tls(tmp_path) as port:
        tls = ssl.create_default_context(cafile=str(tmp_path / "certificate.pem"))
        async with (
            name_server(NAMES, delay_s=SLOW_S) as server,
            open_egress(SETTINGS, tls=tls, nameservers=[server]) as egress,
        ):
            first, second = [await post(egress, f"https://hooks.test:{port}/") for _ in range(2)]
    assert isinstance(first, Answered)
    assert happened(first.timings) == {"dns_ms", "connect_ms", "tls_ms", "first_byte_ms"}
    assert first.timings.dns_ms is not None
    assert first.timings.dns_ms >= SLOW_MS
    assert first.timings.tls_ms is not None
    assert first.timings.tls_ms >= SLOW_MS
    assert isinstance(second, Answered)
    assert happened(second.timings) == {"first_byte_ms"}


async def test_the_wait_for_an_answer_is_each_requests_own(receiver: Receiver) -> None:
    receiver.behave("/slow", Behaviour(delay_s=SLOW_S))
    async with open_egress(SETTINGS, tls=NO_TLS) as egress:
        first, second, third = [await post(egress, receiver.url(path)) for path in ("/slow", "/", "/slow")]
    assert happened(first.timings) == {"connect_ms", "first_byte_ms"}  # an address needs no look-up
    assert happened(second.timings) == happened(third.timings) == {"first_byte_ms"}
    for slow in (first, third):
        assert slow.timings.first_byte_ms is not None
        assert slow.timings.first_byte_ms >= SLOW_MS


async def test_who_waits_for_anothers_look_up_has_waited_too(receiver: Receiver) -> None:
    async with (
        name_server(NAMES, delay_s=SLOW_S) as server,
        open_egress(SETTINGS, tls=NO_TLS, nameservers=[server]) as egress,
    ):
        url = f"http://hooks.test:{receiver.port}/"
        for result in await asyncio.gather(*(post(egress, url) for _ in range(3))):
            assert result.timings.dns_ms is not None
            assert result.timings.dns_ms >= SLOW_MS


async def ends_amid_its_head(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    await it.request(reader)
    await it.send(writer, scripts.HEAD)


@pytest.mark.parametrize(
    ("script", "scheme", "told"),
    [
        (scripts.accepts_and_hangs, "http", {"connect_ms"}),
        (scripts.accepts_and_hangs, "https", {"connect_ms"}),  # the handshake does not end
        (scripts.drips_its_head, "http", {"connect_ms", "first_byte_ms"}),
        (scripts.drips_its_body, "http", {"connect_ms", "first_byte_ms"}),
        (scripts.resets_instead_of_answering, "http", {"connect_ms"}),
        (ends_amid_its_head, "http", {"connect_ms", "first_byte_ms"}),
    ],
)
async def test_without_an_answer_the_parts_that_ended_are_told(script: Script, scheme: str, told: set[str]) -> None:
    async with hostile(script) as endpoint, open_egress(SETTINGS) as egress:
        result = await post(egress, f"{scheme}://127.0.0.1:{endpoint.port}/", timeout_s=0.4)
    assert isinstance(result, NoAnswer)
    assert happened(result.timings) == told


async def test_where_no_connection_came_about_no_part_of_one_is_told(receiver: Receiver) -> None:
    async with (
        name_server(NAMES) as server,
        open_egress(SETTINGS, tls=NO_TLS, nameservers=[server]) as egress,
    ):
        silent = await post(egress, "http://silent.test/", timeout_s=0.4)
        await receiver.stop()
        refused = await post(egress, f"http://hooks.test:{receiver.port}/")
        forbidden = await post(egress, "http://192.168.0.1/")
    assert isinstance(silent, NoAnswer)
    assert (silent.failure, happened(silent.timings)) == (Failure.TIMEOUT, set())
    assert isinstance(refused, NoAnswer)
    assert (refused.failure, happened(refused.timings)) == (Failure.CONNECT, {"dns_ms"})
    assert isinstance(forbidden, NoAnswer)
    assert (forbidden.failure, happened(forbidden.timings)) == (Failure.FORBIDDEN_ADDRESS, set())


async def test_headers_on_the_list_are_told_and_cookies_are_not(receiver: Receiver) -> None:
    answer = {"X-Request-ID": "7f3a", "Set-Cookie": "session=secret", "Location": "/there", "X-Token": "secret"}
    receiver.behave("/", Behaviour(status=307, headers=answer, body=b"moved"))
    async with open_egress(SETTINGS, tls=NO_TLS) as egress:
        result = await post(egress, receiver.url())
    assert isinstance(result, Answered)
    assert {"x-request-id": "7f3a", "location": "/there", "content-length": "5"}.items() <= result.headers.items()
    assert result.headers.keys() == {"x-request-id", "location", "content-length", "content-type", "date", "server"}


def answers_with(header: bytes) -> Script:
    async def script(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
        await it.request(reader)
        await it.send(writer, scripts.HEAD + header + b"\r\nContent-Length: 2\r\n\r\nok")

    return script


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"Server: caf\xc3\xa9", "café"),
        (b"Server: caf\xe9 \xff\xfe", "caf\ufffd \ufffd\ufffd"),
        (b"Server: \xed\xa0\x80", "\ufffd\ufffd\ufffd"),  # a surrogate, as UTF-8 would write it
        (b"Server: \xe2\x80\xae\xc2\x85x", "\ufffd\ufffdx"),  # turns the text around; a line break
        (b"Server: a\tb\x1b[31mc", "a\ufffdb\ufffd[31mc"),  # colours a terminal
        (b"Server: " + b"x" * 8000, "x" * (MAX_VALUE_CHARS - 1) + "…"),
        (b"Server: " + "\U0001f99d".encode() * 2000, "\U0001f99d" * (MAX_VALUE_CHARS - 1) + "…"),
        (b"Server:", ""),
    ],
)
async def test_a_hostile_value_is_cut_and_fit_to_be_stored(sent: bytes, kept: str) -> None:
    async with hostile(answers_with(sent)) as endpoint, open_egress(SETTINGS, tls=NO_TLS) as egress:
        result = await post(egress, endpoint.url())
    assert isinstance(result, Answered)
    assert result.headers == {"content-type": "text/plain", "content-length": "2", "server": kept}


@pytest.mark.parametrize("sent", [b"Server: a\x00b", b"Server: " + b"x" * 65_536, b"Ser\x00ver: x"])
async def test_what_no_header_may_hold_is_no_answer(sent: bytes) -> None:
    async with hostile(answers_with(sent)) as endpoint, open_egress(SETTINGS, tls=NO_TLS) as egress:
        result = await post(egress, endpoint.url())
    assert isinstance(result, NoAnswer)
    assert result.failure is Failure.INVALID_RESPONSE
    assert result.reason.isprintable()


async def test_of_an_answer_to_options_the_headers_that_were_asked_for_are_kept(receiver: Receiver) -> None:
    consent = {"WebHook-Allowed-Origin": "*", "WebHook-Allowed-Rate": "12", "Set-Cookie": "c00kie=1"}
    url = receiver.behave("/hook", Behaviour(consent=consent))
    async with open_egress(SETTINGS) as egress:
        names = ("webhook-allowed-origin", "webhook-allowed-rate", "x-none")
        result = await egress.options(url, headers={"x-asked": "1"}, timeout_s=10, keep_headers=names)
    assert isinstance(result, Answered)
    assert result.headers == {"webhook-allowed-origin": "*", "webhook-allowed-rate": "12"}
    (request,) = receiver.requests
    assert (request.method, request.headers["x-asked"]) == ("OPTIONS", "1")
    assert "content-type" not in request.headers
