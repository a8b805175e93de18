"""From the moments of a request to its timings. Real requests: tests/integration/egress/test_capture.py."""

import asyncio

import pytest
from aiohttp.client_proto import ResponseHandler

from infra.egress_attempt import Attempt
from infra.response_guard import ResponseGuard
from schemas.deliveries import Timings

MOMENTS = {
    "began_s": 100.0,
    "opened_s": 100.001,
    "handshake_s": 100.011,
    "sent_s": 100.111,
    "first_byte_s": 101.111,
}


@pytest.mark.parametrize(
    ("missing", "named", "timings"),
    [
        ((), True, Timings(1, 10, 100, 1000)),
        ((), False, Timings(None, 10, 100, 1000)),
        (("handshake_s",), False, Timings(None, 110, None, 1000)),  # plain HTTP: connected until it is sent
        (("opened_s", "handshake_s"), False, Timings(None, None, None, 1000)),  # a kept connection
        (("first_byte_s",), True, Timings(1, 10, 100, None)),
        (("sent_s", "first_byte_s"), True, Timings(1, 10, None, None)),  # the handshake did not end
        (("handshake_s", "sent_s", "first_byte_s"), True, Timings(1, None, None, None)),  # no connection
        (("opened_s", "handshake_s", "sent_s", "first_byte_s"), False, Timings(None, None, None, None)),
    ],
)
def test_what_did_not_happen_or_did_not_end_has_no_time(
    missing: tuple[str, ...], named: bool, timings: Timings
) -> None:
    attempt = Attempt()
    attempt.is_named = named
    for name, moment_s in MOMENTS.items():
        if name not in missing:
            setattr(attempt, name, moment_s)
    assert attempt.timings() == timings


def test_a_handshake_belongs_to_the_address_that_it_was_made_with() -> None:
    """With the next address of a name the connection comes first again: no handshake is under way."""
    attempt = Attempt()
    attempt.tries("192.0.2.1:443", literal=False)
    attempt.handshakes()
    opened_s, handshake_s = attempt.opened_s, attempt.handshake_s
    attempt.handshakes()  # it goes on
    assert attempt.handshake_s == handshake_s is not None
    attempt.tries("192.0.2.2:443", literal=False)
    assert attempt.handshake_s is None
    assert attempt.opened_s == opened_s
    assert attempt.address == "192.0.2.2:443"


async def test_what_a_connection_knows_of_the_next_request_is_not_told_of_this_one() -> None:
    """It goes back to the pool as soon as the body has come, which may be before who waits for that is called."""
    guard = ResponseGuard(asyncio.Transport(), ResponseHandler(asyncio.get_running_loop()))
    attempt = Attempt()
    attempt.sends(guard)
    guard.begin()
    guard.data_received(b"HTTP/1.1 200 OK\r\n")
    attempt.answers(200)
    guard.begin()
    assert attempt.timings().first_byte_ms is not None
