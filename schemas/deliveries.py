"""The life of a delivery: one event on its way to one subscription."""

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """Where a delivery stands. It ends as one of `ENDED`, and only a replay begins it again."""

    PENDING = "pending"  # claimed by the dispatcher that admitted it, first attempt under way
    HELD = "held"  # waits in the store, in its endpoint's backlog
    RETRYING = "retrying"  # waits in the broker, on the ladder, for its next attempt
    DELIVERED = "delivered"
    DEAD = "dead"
    CANCELED = "canceled"


UNFINISHED = frozenset({Status.PENDING, Status.HELD, Status.RETRYING})
ENDED = frozenset({Status.DELIVERED, Status.DEAD, Status.CANCELED})


class Failure(StrEnum):
    """Why an attempt got no answer from the endpoint."""

    TIMEOUT = "timeout"  # the deadline passed: connect, TLS, headers and body together
    DNS = "dns"  # the name does not resolve
    CONNECT = "connect"  # no connection could be made: refused, unreachable
    TLS = "tls"  # handshake or certificate
    FORBIDDEN_ADDRESS = "forbidden_address"  # the egress guard refused where it would have gone
    DISCONNECTED = "disconnected"  # the connection ended before a whole answer
    INVALID_RESPONSE = "invalid_response"  # what came is not HTTP
    INTERNAL = "internal"  # our own fault; the reason says what


@dataclass(frozen=True, slots=True)
class Answered:
    """The endpoint answered. `body` is its beginning, cut at the cap; `retry_after` the raw header."""

    status: int
    body: bytes
    retry_after: str | None
    duration_ms: int
    remote_address: str | None


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """The endpoint gave no answer; `reason` is a sentence for a person."""

    failure: Failure
    reason: str
    duration_ms: int
    remote_address: str | None


AttemptResult = Answered | NoAnswer


class DeadLetterKind(StrEnum):
    """What was given up on."""

    DELIVERY = "delivery"  # a delivery that ended as dead
    UNREADABLE = "unreadable"  # an event message that cannot be read, or is too large
    CONFLICT = "conflict"  # an event with a known (tenant, source, id) and another body
    OVER_DELIVERY_LIMIT = "over_delivery_limit"  # an event message that kept killing its consumers
    UNROUTABLE = "unroutable"  # a message that the broker had no queue for
