"""The guard's smaller rules. What it is for is shown with real endpoints: tests/integration/egress/test_hostile.py."""

import asyncio
from typing import Any

import pytest
from aiohttp import StreamReader
from aiohttp.client_proto import ResponseHandler

from infra.response_guard import HEAD_MAX_BYTES, ResponseGuard, printable_address


class Transport(asyncio.Transport):
    """Notes what is done to it."""

    def __init__(self, unsent_bytes: int = 0) -> None:
        super().__init__({"peername": ("203.0.113.7", 443)})
        self.unsent_bytes = unsent_bytes
        self.aborted = False
        self.reading = True

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def is_closing(self) -> bool:
        return self.aborted

    def is_reading(self) -> bool:
        return self.reading and not self.aborted

    def pause_reading(self) -> None:
        self.reading = False

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.aborted = True


def guarded(transport: Transport) -> tuple[ResponseGuard, ResponseHandler]:
    handler = ResponseHandler(asyncio.get_running_loop())
    handler.connection_made(transport)
    handler.set_response_params(read_until_eof=True, auto_decompress=False, read_bufsize=4096)
    return ResponseGuard(transport, handler), handler


@pytest.mark.parametrize(("unsent_bytes", "aborted"), [(0, False), (1, True)])
async def test_a_connection_with_unsent_bytes_does_not_wait_in_the_pool(unsent_bytes: int, aborted: bool) -> None:
    # The answer came before the request was read, and the rest of it waits in our memory. Closed politely, later, the
    # connection would stay for as long as the peer does not read.
    transport = Transport(unsent_bytes)
    guard, _ = guarded(transport)
    guard.begin()
    guard.end()
    assert transport.aborted is aborted


async def test_what_comes_unasked_ends_the_connection_and_is_not_parsed() -> None:
    transport = Transport()
    guard, handler = guarded(transport)
    guard.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert transport.aborted
    assert len(handler) == 0


@pytest.mark.parametrize("piece", [100, 1000, 60_000, 262_144])
async def test_a_head_is_bounded_however_it_is_cut(piece: int) -> None:
    transport = Transport()
    guard, handler = guarded(transport)
    guard.begin()
    interim = b"HTTP/1.1 102\r\n" + (b"X-Filler: %s\r\n" % (b"f" * 5000)) * 4 + b"\r\n"  # each line within its bound
    stream = interim * 20
    for start in range(0, len(stream), piece):
        guard.data_received(stream[start : start + piece])
        if transport.aborted:
            break
    assert guard.fault == f"sent {HEAD_MAX_BYTES} bytes without an answer in them"
    assert len(handler) * len(interim) <= HEAD_MAX_BYTES


async def test_a_long_body_in_the_same_read_as_its_head_is_no_flood() -> None:
    transport = Transport()
    guard, handler = guarded(transport)
    guard.begin()
    guard.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 250000\r\n\r\n" + b"b" * 250_000)
    assert not transport.aborted
    assert guard.fault is None
    _, content = await handler.read()
    assert isinstance(content, StreamReader)
    assert await content.read(10) == b"b" * 10


@pytest.mark.parametrize(
    ("address", "printed"),
    [
        (("203.0.113.7", 443), "203.0.113.7:443"),
        (("2001:db8::7", 443, 0, 0), "[2001:db8::7]:443"),
        (None, None),
        ("/run/some.sock", None),
    ],
)
def test_addresses_are_printed_as_in_urls(address: Any, printed: str | None) -> None:
    assert printable_address(address) == printed
