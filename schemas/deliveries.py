"""The life of a delivery: one event on its way to one subscription."""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

import msgspec


class Status(StrEnum):
    """Where a delivery stands. It ends as one of `ENDED`, and only a replay begins it again."""

    PENDING = "pending"  # claimed by a dispatcher, which attempts it
    HELD = "held"  # waits in the store, in its endpoint's backlog
    RETRYING = "retrying"  # waits in the broker, on the ladder, for its next attempt
    DELIVERED = "delivered"
    DEAD = "dead"
    CANCELED = "canceled"


UNFINISHED = frozenset({Status.PENDING, Status.HELD, Status.RETRYING})
ENDED = frozenset({Status.DELIVERED, Status.DEAD, Status.CANCELED})


class Failure(StrEnum):
    """Why an attempt got no answer from the endpoint to what is delivered."""

    TIMEOUT = "timeout"  # the deadline passed: connect, TLS, headers and body together
    DNS = "dns"  # the name does not resolve
    CONNECT = "connect"  # no connection could be made: refused, unreachable
    TLS = "tls"  # handshake or certificate
    FORBIDDEN_ADDRESS = "forbidden_address"  # the egress guard refused where it would have gone
    DISCONNECTED = "disconnected"  # the connection ended before a whole answer
    AUTH = "auth"  # the endpoint wants an access token, and none could be had for it
    INVALID_RESPONSE = "invalid_response"  # what came is not HTTP
    HANDSHAKE = "handshake"  # asked before anything was sent, the endpoint did not agree to take deliveries
    INTERNAL = "internal"  # our own fault; the reason says what


class StatusClass(StrEnum):
    """What kind of answer an attempt got."""

    INFORMATIONAL = "1xx"
    SUCCESS = "2xx"
    REDIRECTION = "3xx"
    CLIENT_ERROR = "4xx"
    SERVER_ERROR = "5xx"
    NONE = "none"  # no answer: see `Failure`


class Outcome(StrEnum):
    """What became of a delivery by an attempt."""

    DELIVERED = "delivered"
    RETRY = "retry"
    DEAD = "dead"


class Timings(NamedTuple):
    """Where an attempt's time went, one part after the other; None for what did not happen, or did not end.

    The look-up of a name (0 from a cache); from the first address that was tried until a connection stood; the TLS
    handshake; from the request's first byte to the answer's.
    """

    dns_ms: int | None = None
    connect_ms: int | None = None
    tls_ms: int | None = None
    first_byte_ms: int | None = None


NO_TIMINGS = Timings()


class Answered(msgspec.Struct, frozen=True):
    """The endpoint answered. `body` is its beginning, cut at the cap; `retry_after` the raw header.

    `headers` are a few of the answer's, with lower-case names, fit to be stored and shown.
    """

    status: int
    body: bytes
    retry_after: str | None
    duration_ms: int
    remote_address: str | None
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    timings: Timings = NO_TIMINGS


class NoAnswer(msgspec.Struct, frozen=True):
    """The endpoint gave no answer; `reason` is a sentence for a person.

    `retry_after` is the raw header of an answer to something else: who refuses the handshake may say when to ask again.
    """

    failure: Failure
    reason: str
    duration_ms: int
    remote_address: str | None
    timings: Timings = NO_TIMINGS
    retry_after: str | None = None


AttemptResult = Answered | NoAnswer


class DeadLetterKind(StrEnum):
    """What was given up on."""

    DELIVERY = "delivery"  # a delivery that ended as dead
    UNREADABLE = "unreadable"  # an event message that cannot be read, or is too large
    INVALID = "invalid"  # an event that the catalogue of event types refuses
    CONFLICT = "conflict"  # an event with a known (tenant, source, id) and another body
    OVER_DELIVERY_LIMIT = "over_delivery_limit"  # an event message that kept killing its consumers
    UNROUTABLE = "unroutable"  # a message that the broker had no queue for
