"""Promise 6, second half: no answer is read past its cap or its deadline, whatever an endpoint does.

Each test ends within its deadline, with the right failure, and looks at how much the endpoint could get rid of.
"""

import asyncio
import random
from time import monotonic
from typing import Final

import pytest

from infra.egress import open_egress
from infra.settings import read_settings
from schemas.deliveries import Answered, AttemptResult, Failure, NoAnswer
from tests.support import hostile as scripts
from tests.support.certificates import NO_TLS
from tests.support.hostile import Hostile, Script, connections_end, hostile
from tests.support.system import ANY_URL

KEEP_BYTES: Final = 64
SETTINGS = read_settings(egress_allow="127.0.0.0/8", **ANY_URL, response_keep_bytes=KEEP_BYTES)
DEADLINE_S: Final = 1.0
# Slack for a busy machine. What does not keep to its deadline hangs for good, or for many seconds.
LATE_S: Final = 3.0
# What fits into the kernel's buffers on both sides, and what was read before it was noticed.
UNREAD_BYTES: Final = 12_000_000


async def meet(script: Script, *, body: bytes = b"{}") -> tuple[AttemptResult, Hostile]:
    """POST to an endpoint with that script; the deadline is kept, and the endpoint finds nobody reading."""
    async with hostile(script) as endpoint, open_egress(SETTINGS, tls=NO_TLS) as egress:
        began = monotonic()
        result = await egress.post(endpoint.url(), headers={}, body=body, timeout_s=DEADLINE_S)
        assert monotonic() - began < DEADLINE_S + LATE_S
        await connections_end(endpoint.port)
        assert endpoint.sent_bytes < UNREAD_BYTES
        return result, endpoint


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (scripts.accepts_and_hangs, "no answer came from 127.0.0.1:{port} within 1 s"),
        (scripts.drips_its_head, "no answer came from 127.0.0.1:{port} within 1 s"),
        (scripts.drips_its_body, "the answer (status 200) did not end within 1 s"),
    ],
)
async def test_who_is_slow_is_left_at_the_deadline(script: Script, told: str) -> None:
    result, endpoint = await meet(script)
    assert isinstance(result, NoAnswer)
    assert (result.failure, result.reason) == (Failure.TIMEOUT, told.format(port=endpoint.port))
    assert result.remote_address == f"127.0.0.1:{endpoint.port}"
    assert result.duration_ms >= DEADLINE_S * 1000 - 10


@pytest.mark.parametrize(
    ("script", "first"),
    [
        (scripts.sends_a_body_without_end, b"y"),
        (scripts.sends_chunks_without_end, b"z"),
        (scripts.announces_ten_gigabytes, b"G"),
    ],
)
async def test_a_long_body_is_cut_at_the_cap_and_the_connection_dropped(script: Script, first: bytes) -> None:
    result, _ = await meet(script)
    assert isinstance(result, Answered)
    assert (result.status, result.body) == (200, first * KEEP_BYTES)


async def test_a_compressed_bomb_is_not_unpacked() -> None:
    scripts.bomb()
    result, _ = await meet(scripts.sends_a_compressed_bomb)
    assert isinstance(result, Answered)
    assert result.body[:2] == b"\x1f\x8b"
    assert len(result.body) == KEEP_BYTES


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (scripts.sends_headers_without_end, "Too many headers"),
        (scripts.sends_trailers_without_end, "Too many headers"),
        (scripts.sends_one_header_without_end, "Got more than 8190 bytes"),
        (scripts.sends_a_status_line_without_end, "Got more than 8190 bytes"),
        (scripts.sends_interim_answers_without_end, "the endpoint sent many answers to one request"),
        (scripts.sends_a_chunk_extension_without_end, "the endpoint sent much around a small body"),
        (scripts.speaks_no_http, "the endpoint's answer is not HTTP: "),
        (scripts.breaks_its_chunks, "the endpoint's answer is not HTTP: "),
    ],
)
async def test_what_is_no_answer_is_noticed_at_once(script: Script, told: str) -> None:
    result, _ = await meet(script)
    assert isinstance(result, NoAnswer)
    assert result.failure is Failure.INVALID_RESPONSE, result
    assert told in result.reason
    assert result.reason.isprintable()
    assert len(result.reason) < 300
    assert result.duration_ms < DEADLINE_S * 1000


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (scripts.closes_instead_of_answering, "the endpoint closed the connection without an answer"),
        (scripts.resets_instead_of_answering, "the connection broke before an answer: connection reset by peer"),
        (scripts.ends_within_its_body, "the connection ended within the answer (status 200)"),
        (scripts.resets_within_its_body, "the connection ended within the answer (status 200)"),
    ],
)
async def test_a_connection_that_ends_early_is_told(script: Script, told: str) -> None:
    result, endpoint = await meet(script)
    assert isinstance(result, NoAnswer)
    assert (result.failure, result.reason) == (Failure.DISCONNECTED, told)
    assert endpoint.connections == 1  # and nothing is sent again


async def test_redirects_are_answers_and_not_followed() -> None:
    async with hostile(scripts.redirects_to_itself) as endpoint, open_egress(SETTINGS, tls=NO_TLS) as egress:
        result = await egress.post(endpoint.url(), headers={}, body=b"{}", timeout_s=DEADLINE_S)
        assert isinstance(result, Answered)
        assert (result.status, endpoint.requests) == (307, 1)


async def test_a_connection_that_becomes_another_protocol_is_dropped() -> None:
    result, _ = await meet(scripts.switches_protocols)
    assert isinstance(result, Answered)
    assert result.status == 101


@pytest.mark.parametrize("script", [scripts.never_reads, scripts.answers_without_reading])
async def test_who_does_not_read_holds_no_connection_and_no_body_of_ours(script: Script) -> None:
    """`meet` waits for the connection's end: closing it politely would wait for the peer to read."""
    result, _ = await meet(script, body=b"b" * 16_000_000)
    if script is scripts.never_reads:
        assert isinstance(result, NoAnswer)
        assert result.failure is Failure.TIMEOUT
    else:
        assert isinstance(result, Answered)


async def test_a_flood_on_an_idle_connection_ends_it() -> None:
    async with hostile(scripts.floods_once_idle) as endpoint, open_egress(SETTINGS, tls=NO_TLS) as egress:
        first = await egress.post(endpoint.url(), headers={}, body=b"{}", timeout_s=DEADLINE_S)
        await connections_end(endpoint.port)
        assert endpoint.sent_bytes < UNREAD_BYTES
        second = await egress.post(endpoint.url(), headers={}, body=b"{}", timeout_s=DEADLINE_S)
    assert isinstance(first, Answered)
    assert isinstance(second, Answered)
    assert endpoint.connections == 2


@pytest.mark.parametrize("script", [scripts.answers_ahead, scripts.answers_twice_in_one_piece])
async def test_an_answer_that_came_ahead_is_not_the_next_requests(script: Script) -> None:
    async with hostile(script) as endpoint, open_egress(SETTINGS, tls=NO_TLS) as egress:
        first = await egress.post(endpoint.url(), headers={}, body=b"{}", timeout_s=DEADLINE_S)
        await connections_end(endpoint.port)
        second = await egress.post(endpoint.url(), headers={}, body=b"{}", timeout_s=DEADLINE_S)
    assert isinstance(first, Answered)
    assert isinstance(second, Answered)
    assert (first.body, second.body) == (b"ok", b"ok")


async def test_many_hostile_endpoints_do_not_delay_a_good_one() -> None:
    async def good(it: Hostile, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await it.request(reader)
            await it.send(writer, scripts.OK)

    async with (
        hostile(scripts.accepts_and_hangs) as bad,
        hostile(good) as fine,
        open_egress(SETTINGS, tls=NO_TLS) as egress,
    ):
        hanging = [asyncio.create_task(egress.post(bad.url(), headers={}, body=b"{}", timeout_s=5)) for _ in range(300)]
        deadline = monotonic() + 5
        while bad.connections < 300:  # no limit of the connector's own: a hundred would wait for nobody
            assert monotonic() < deadline
            await asyncio.sleep(0.01)
        result = await egress.post(fine.url(), headers={}, body=b"{}", timeout_s=DEADLINE_S)
        assert isinstance(result, Answered)
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)


async def test_no_bytes_whatsoever_make_it_raise_or_hang() -> None:
    """Answers with random damage, after which the connection ends: always a result, at once, and a foreseen one."""
    chance = random.Random(20)
    whole = [
        scripts.OK,
        scripts.HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        b"HTTP/1.1 103 Early\r\nLink: </x>\r\n\r\nHTTP/1.0 503 Busy\r\nRetry-After: 7\r\nSet-Cookie: a=b\r\n\r\nbody",
        b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
    ]

    def damaged() -> bytes:
        data = bytearray(chance.choice(whole))
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data))
            match chance.randrange(3):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    del data[at : at + chance.randint(1, 8)]
                case _:
                    data[at:at] = chance.randbytes(chance.randint(1, 8))
        return bytes(data or b"\x00")

    async def answer(it: Hostile, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await it.request(reader)
        data = damaged()
        cut = chance.randrange(len(data))
        await it.send(writer, data[:cut])
        await asyncio.sleep(0)
        await it.send(writer, data[cut:])

    results: list[AttemptResult] = []
    async with hostile(answer) as endpoint, open_egress(SETTINGS, tls=NO_TLS) as egress:
        for _ in range(20):
            posts = (egress.post(endpoint.url(), headers={}, body=b"{}", timeout_s=5) for _ in range(20))
            results += await asyncio.gather(*posts)
    failures = {one.failure for one in results if isinstance(one, NoAnswer)}
    assert failures == {Failure.INVALID_RESPONSE, Failure.DISCONNECTED}, results
    assert any(isinstance(one, Answered) for one in results)
