"""What the layers below the egress learn about one request, and when. They find it in the context it runs in."""

from contextvars import ContextVar
from time import monotonic
from typing import Final

from infra.response_guard import ResponseGuard
from schemas.deliveries import Timings


class Attempt:
    """One request on its way. A moment, in seconds by `monotonic`, is None until it has come."""

    __slots__ = (
        *("address", "began_s", "first_byte_s", "forbidden", "guard", "handshake_s", "host", "is_named"),
        *("opened_s", "proxy", "sent_s", "status", "tunnel_asked"),
    )

    def __init__(self) -> None:
        self.began_s = monotonic()
        self.host = ""  # of the URL
        self.address: str | None = None  # tried last; the proxy's where there is one
        self.proxy: str | None = None  # host and port of the outbound proxy, when a connection is made through it
        self.tunnel_asked = False  # a connection to the proxy stands: from now on it may be the endpoint that is late
        self.forbidden: str | None = None  # why an address was refused
        self.is_named = False  # `host` had to be looked up
        self.opened_s: float | None = None  # the first socket is made
        self.handshake_s: float | None = None  # connected to `address`, TLS has begun
        self.sent_s: float | None = None  # a connection stands, and the request is written to it
        self.first_byte_s: float | None = None  # of the answer
        self.guard: ResponseGuard | None = None  # over the connection; None until there is one
        self.status: int | None = None  # the answer has begun

    def tries(self, address: str | None, *, literal: bool) -> None:
        """A socket is about to be made for an address."""
        self.address = address
        self.handshake_s = None
        if self.opened_s is None:
            self.opened_s, self.is_named = monotonic(), not literal

    def handshakes(self) -> None:
        """TLS goes on, or begins."""
        if self.handshake_s is None:
            self.handshake_s = monotonic()

    def sends(self, guard: ResponseGuard) -> None:
        """The request is about to be written to the connection under `guard`."""
        self.guard = guard
        self.sent_s = monotonic()

    def answers(self, status: int) -> None:
        """The answer's head was taken. Its connection may soon be another request's, so what it knows is taken now."""
        self.status = status
        self.first_byte_s = self.guard.first_byte_s if self.guard is not None else None

    def elapsed_ms(self) -> int:
        return _ms(self.began_s, monotonic())

    def timings(self) -> Timings:
        """Where the time went; on a connection that was there already, only the wait for the answer."""
        first_byte_s = self.first_byte_s
        if first_byte_s is None and self.guard is not None:
            first_byte_s = self.guard.first_byte_s
        first_byte_ms = None if self.sent_s is None or first_byte_s is None else _ms(self.sent_s, first_byte_s)
        if self.opened_s is None:
            return Timings(first_byte_ms=first_byte_ms)
        connected_s = self.sent_s if self.handshake_s is None else self.handshake_s
        return Timings(
            dns_ms=_ms(self.began_s, self.opened_s) if self.is_named else None,
            connect_ms=None if connected_s is None else _ms(self.opened_s, connected_s),
            tls_ms=None if self.handshake_s is None or self.sent_s is None else _ms(self.handshake_s, self.sent_s),
            first_byte_ms=first_byte_ms,
        )


def _ms(from_s: float, to_s: float) -> int:
    return round((to_s - from_s) * 1000)


ATTEMPT: Final[ContextVar[Attempt]] = ContextVar("hookhare_egress_attempt")
