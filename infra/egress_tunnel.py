"""Asks an HTTP proxy for a tunnel (RFC 9110 section 9.3.6), and reads no more of its answer than the head."""

import asyncio
from typing import Final, cast

from infra.egress_failures import ProxyFailure
from infra.request_head import USER_AGENT
from schemas.deliveries import Failure

_HEADS_MAX_BYTES: Final = 16_384  # of the answer and the interim ones (1xx) before it, together
_END: Final = b"\r\n\r\n"


class Tunnel(asyncio.Protocol):
    """The connection to the proxy until `opened` is done; then reading is paused, for who takes the connection over.

    `opened` fails with ProxyFailure.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.opened: asyncio.Future[None] = loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._authority = ""
        self._came = bytearray()
        self._read_bytes = 0  # of what came, interim answers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def ask(self, authority: str, authorization: str | None) -> None:
        """Ask for a connection to `authority`, host and port."""
        assert self._transport is not None
        self._authority = authority
        credentials = f"Proxy-Authorization: {authorization}\r\n" if authorization is not None else ""
        head = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{USER_AGENT}{credentials}\r\n"
        self._transport.write(head.encode("ascii"))

    def data_received(self, data: bytes) -> None:
        if self.opened.done():
            return
        self._came += data
        while (end := self._came.find(_END, self._read_bytes, _HEADS_MAX_BYTES)) >= 0:
            status = _status(bytes(self._came[self._read_bytes : end]))
            self._read_bytes = end + len(_END)
            if status is None or not 100 <= status <= 199:
                self._answered(status, more=len(self._came) > self._read_bytes)
                return
        if len(self._came) > _HEADS_MAX_BYTES:
            self._pause()
            self._fail(Failure.INTERNAL, f"the outbound proxy's answer did not end within {_HEADS_MAX_BYTES} bytes")

    def _answered(self, status: int | None, *, more: bool) -> None:
        self._pause()
        if status is None:
            self._fail(Failure.INTERNAL, "the outbound proxy's answer is not HTTP")
        elif not 200 <= status <= 299:
            self._fail(*_refusal(status, self._authority))
        elif more:
            # A client speaks first, in TLS and in HTTP: what comes unasked is not the endpoint's answer.
            self._fail(Failure.INTERNAL, "the outbound proxy sent more than its answer")
        else:
            self.opened.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(Failure.INTERNAL, "the outbound proxy closed the connection without an answer")

    def _pause(self) -> None:
        assert self._transport is not None
        self._transport.pause_reading()

    def _fail(self, failure: Failure, reason: str) -> None:
        if not self.opened.done():
            self.opened.set_exception(ProxyFailure(failure, reason))


def _status(head: bytes) -> int | None:
    version, _, rest = head.partition(b"\r\n")[0].partition(b" ")
    code = rest[:3]
    if not version.startswith(b"HTTP/1.") or not code.isdigit() or len(code) != 3 or rest[3:4] not in {b"", b" "}:
        return None
    return int(code)


def _refusal(status: int, authority: str) -> tuple[Failure, str]:
    """What a status means: what the proxy says of the endpoint is the endpoint's failure, what it says of us is not."""
    match status:
        case 407:
            return Failure.INTERNAL, (
                "the outbound proxy wants other credentials (407); an operator gives them in HOOKHARE_EGRESS_PROXY"
            )
        case 403:
            return Failure.FORBIDDEN_ADDRESS, (
                f"the outbound proxy does not allow {authority} (403); an operator may allow it there, "
                "or go around the proxy with HOOKHARE_EGRESS_NO_PROXY"
            )
        case _:
            return Failure.CONNECT, f"the outbound proxy gave no connection to {authority} (status {status})"
