"""What the API answers when it does not do what was asked.

Every error has the one shape `{"error": {"code", "message", "details", "timestamp", "request_id"}}`. Programs branch on
`code`, people read `message`; `details` lists the fields at fault, each `{"field", "message"}`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

from aiohttp import web

from schemas.errors import (
    BrokerError,
    BrokerUnavailable,
    InvalidInput,
    Problem,
    PublishRefused,
    PublishTimeout,
    StoreError,
    Unroutable,
)

RETRY_AFTER_S: Final = 5


class ErrorCode(StrEnum):
    """Every `code` there is. They are part of the API: added to, never renamed. What each means, `MEANINGS` says."""

    INVALID_REQUEST = "invalid_request"
    INVALID_JSON = "invalid_json"
    VALIDATION_FAILED = "validation_failed"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TIMEOUT = "request_timeout"
    CONFLICT = "conflict"
    EXPUNGED = "expunged"
    PRECONDITION_FAILED = "precondition_failed"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    IDEMPOTENCY_IN_FLIGHT = "idempotency_in_flight"
    IDEMPOTENCY_MISMATCH = "idempotency_mismatch"
    EXPECTATION_FAILED = "expectation_failed"
    EVENT_INVALID = "event_invalid"
    UNKNOWN_EVENT_TYPE = "unknown_event_type"
    QUERY_TOO_BROAD = "query_too_broad"
    RATE_LIMITED = "rate_limited"
    INTERNAL = "internal"
    BROKER_UNAVAILABLE = "broker_unavailable"
    BROKER_REFUSED = "broker_refused"
    OVERLOADED = "overloaded"
    STORE_UNAVAILABLE = "store_unavailable"


class Meaning(NamedTuple):
    """The status that a code comes with, and what it says."""

    status: int
    text: str


MEANINGS: Final[Mapping[ErrorCode, Meaning]] = {
    ErrorCode.INVALID_REQUEST: Meaning(400, "HTTP that cannot be understood, such as a broken body encoding"),
    ErrorCode.INVALID_JSON: Meaning(400, "the body is not JSON"),
    ErrorCode.VALIDATION_FAILED: Meaning(400, "`details` names each field and what would be right"),
    ErrorCode.UNAUTHORIZED: Meaning(401, "no key, or one that is unknown, revoked or expired"),
    ErrorCode.FORBIDDEN: Meaning(403, "the key has not the scope that the route asks for, or is of another tenant"),
    ErrorCode.NOT_FOUND: Meaning(404, "no such route, or nothing with that id"),
    ErrorCode.METHOD_NOT_ALLOWED: Meaning(405, "the header Allow says which are"),
    ErrorCode.REQUEST_TIMEOUT: Meaning(408, "the body did not come in time"),
    ErrorCode.CONFLICT: Meaning(409, "what is there does not allow it; the message says why"),
    ErrorCode.EXPUNGED: Meaning(409, "the event was expunged, so there is nothing to send any more"),
    ErrorCode.PRECONDITION_FAILED: Meaning(412, "it was changed since the version that If-Match names"),
    ErrorCode.PAYLOAD_TOO_LARGE: Meaning(413, "the body, or a part of it, is too large"),
    ErrorCode.EXPECTATION_FAILED: Meaning(417, "an Expect header other than 100-continue"),
    ErrorCode.IDEMPOTENCY_IN_FLIGHT: Meaning(409, "a request with this Idempotency-Key is under way; ask again"),
    ErrorCode.IDEMPOTENCY_MISMATCH: Meaning(422, "the Idempotency-Key was used for another request"),
    ErrorCode.EVENT_INVALID: Meaning(
        422, "the event breaks the schema of its type; `details` names the place and the rule"
    ),
    ErrorCode.UNKNOWN_EVENT_TYPE: Meaning(422, "the event's type is not in the catalogue, and only those are taken"),
    ErrorCode.QUERY_TOO_BROAD: Meaning(422, "the search took too long; ask for something narrower"),
    ErrorCode.RATE_LIMITED: Meaning(
        429, "the key has made its requests of this minute, or its address sent too many wrong ones; wait Retry-After"
    ),
    ErrorCode.INTERNAL: Meaning(500, "our fault; the log has it under the request id"),
    ErrorCode.BROKER_UNAVAILABLE: Meaning(503, "nothing was stored, or it is not known; publish it again"),
    ErrorCode.BROKER_REFUSED: Meaning(503, "the broker takes no message now; nothing was stored"),
    ErrorCode.OVERLOADED: Meaning(503, "as many requests are under way as the API works on at once; nothing was done"),
    ErrorCode.STORE_UNAVAILABLE: Meaning(503, "the database is away or has another schema"),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """An error answer before it is written."""

    status: int
    code: ErrorCode
    message: str
    details: tuple[Problem, ...] = ()
    headers: Mapping[str, str] = dataclass_field(default_factory=dict)


class ApiError(Exception):
    """Ends a request with a fault."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


def not_found(what: str) -> ApiError:
    return ApiError(Fault(404, ErrorCode.NOT_FOUND, f"there is no such {what}"))


def conflict(reason: str, details: Sequence[Problem] = ()) -> ApiError:
    return ApiError(Fault(409, ErrorCode.CONFLICT, reason, tuple(details)))


def expunged(reason: str) -> ApiError:
    return ApiError(Fault(409, ErrorCode.EXPUNGED, reason))


def too_large(field: str, max_bytes: int) -> ApiError:
    problem = Problem(field, f"must be at most {max_bytes} bytes")
    return ApiError(Fault(413, ErrorCode.PAYLOAD_TOO_LARGE, f"{problem.field}: {problem.message}", (problem,)))


def rate_limited(message: str, *, retry_after_s: int) -> ApiError:
    return ApiError(Fault(429, ErrorCode.RATE_LIMITED, message, headers={"Retry-After": str(retry_after_s)}))


def overloaded(most: int) -> ApiError:
    return ApiError(_unavailable(ErrorCode.OVERLOADED, f"{most} requests are under way already; nothing was done"))


def too_many_exports(most: int) -> ApiError:
    return ApiError(_unavailable(ErrorCode.OVERLOADED, f"{most} exports are under way already"))


def too_many_searches() -> ApiError:
    return ApiError(_unavailable(ErrorCode.OVERLOADED, "as many searches are under way already as may be at once"))


def not_published(error: BrokerError, external_id: str) -> ApiError:
    """A publish that failed. Its id is told, which may be one that we made: published again with it, it is the same."""
    return ApiError(
        replace(_broker_fault(error), details=(Problem("id", f"publish it again with the id {external_id}"),))
    )


def error_body(fault: Fault, *, now: datetime, request_id: str) -> dict[str, Any]:
    """The body of an error answer."""
    return {
        "error": {
            "code": fault.code,
            "message": fault.message,
            "details": [{"field": problem.field, "message": problem.message} for problem in fault.details],
            "timestamp": now,
            "request_id": request_id,
        }
    }


def fault_of(error: Exception) -> Fault | None:
    """The answer to an error that we know, None for one that is a surprise."""
    match error:
        case ApiError():
            return error.fault
        case InvalidInput():
            return Fault(400, ErrorCode.VALIDATION_FAILED, str(error), error.problems)
        case BrokerError():
            return _broker_fault(error)
        case StoreError():
            # Its own text names hosts and statements: for the log.
            return _unavailable(ErrorCode.STORE_UNAVAILABLE, "the database cannot be reached, or is not up to date")
        case web.HTTPException() if error.status >= 400:
            return _http_fault(error)
        case _:
            return None


def _broker_fault(error: BrokerError) -> Fault:
    match error:
        case PublishRefused() | Unroutable():
            return _unavailable(ErrorCode.BROKER_REFUSED, "the broker takes no events now; nothing was stored")
        case BrokerUnavailable() | PublishTimeout():
            message = "the broker did not confirm; whether it was stored is not known, so publish it again with its id"
            return _unavailable(ErrorCode.BROKER_UNAVAILABLE, message)
        case _:
            return _unavailable(ErrorCode.BROKER_UNAVAILABLE, "the broker did not do what was asked")


def _unavailable(code: ErrorCode, message: str) -> Fault:
    return Fault(503, code, message, headers={"Retry-After": str(RETRY_AFTER_S)})


def _http_fault(error: web.HTTPException) -> Fault:
    """An error that aiohttp itself raised."""
    match error:
        case web.HTTPNotFound():
            return Fault(404, ErrorCode.NOT_FOUND, "there is no such route")
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            message = f"this route takes {allowed}"
            return Fault(405, ErrorCode.METHOD_NOT_ALLOWED, message, headers={"Allow": allowed})
        case web.HTTPRequestEntityTooLarge():
            return Fault(413, ErrorCode.PAYLOAD_TOO_LARGE, "the request's body is too large")
        case web.HTTPExpectationFailed():
            return Fault(417, ErrorCode.EXPECTATION_FAILED, "the only expectation that is met is 100-continue")
        case _:
            return Fault(400, ErrorCode.INVALID_REQUEST, "the request cannot be understood")
