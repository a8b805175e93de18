"""The validation handshake: whether an endpoint agrees to take deliveries, and how many.

CloudEvents, "HTTP 1.1 Web Hooks for Event Delivery" 1.0.2, section 4: an OPTIONS request that asks, and an answer that
names us. Consent that comes later, by a callback, is left out: an endpoint is asked again with the next attempt.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from dispatcher.core.pace import RateLimit
from schemas.deliveries import Answered, AttemptResult, Failure, NoAnswer
from schemas.subscriptions import MAX_RATE_PER_S

ORIGIN_HEADER: Final = "webhook-request-origin"  # of the OPTIONS, and then of every delivery (sections 2.1 and 4.1.2)
RATE_HEADER: Final = "webhook-request-rate"
ALLOWED_ORIGIN_HEADER: Final = "webhook-allowed-origin"
ALLOWED_RATE_HEADER: Final = "webhook-allowed-rate"
ANSWER_HEADERS: Final = (ALLOWED_ORIGIN_HEADER, ALLOWED_RATE_HEADER)

_MAX_PER_MIN: Final = 60 * MAX_RATE_PER_S
_RATE: Final = re.compile(r"0*[1-9][0-9]*")


@dataclass(frozen=True, slots=True)
class Agreed:
    """The endpoint agreed to so many requests a minute; None for as many as there are."""

    allowed_per_min: int | None


def question(*, origin: str, limit: RateLimit | None) -> dict[str, str]:
    """The headers that ask. A rate is asked for where there is a limit: there is no word for "any" (section 4.1.4)."""
    headers = {ORIGIN_HEADER: origin}
    if limit is not None:
        headers[RATE_HEADER] = str(math.ceil(60 * limit.per_s))
    return headers


def judge(result: AttemptResult, *, origin: str) -> Agreed | NoAnswer:
    """What the answer says. Anything but a clear consent is none, with a reason for a person."""
    if isinstance(result, NoAnswer):
        return replace(result, reason=f"the handshake (OPTIONS) failed: {result.reason}")
    if not 200 <= result.status < 300:
        return _refused(result, f"it answered {result.status}")
    named = result.headers.get(ALLOWED_ORIGIN_HEADER)
    if named is None:
        return _refused(result, "WebHook-Allowed-Origin is missing in its answer")
    if named.strip() != "*" and named.strip().lower() != origin.lower():
        return _refused(result, f"WebHook-Allowed-Origin is {named!r}, and not {origin} or *")
    return _allowed(result, result.headers)


def _allowed(result: Answered, headers: Mapping[str, str]) -> Agreed | NoAnswer:
    rate = headers.get(ALLOWED_RATE_HEADER, "*").strip()
    if rate == "*":
        return Agreed(None)
    if not _RATE.fullmatch(rate):
        return _refused(result, f"WebHook-Allowed-Rate is {rate!r}, and neither a number from 1 nor *")
    # What is beyond every rate limit is cut to the greatest; and int() refuses what has thousands of digits.
    return Agreed(_MAX_PER_MIN if len(rate.lstrip("0")) > 9 else min(int(rate), _MAX_PER_MIN))


def _refused(result: Answered, why: str) -> NoAnswer:
    return NoAnswer(
        Failure.HANDSHAKE,
        f"the endpoint did not agree to take deliveries: {why}; nothing was sent",
        result.duration_ms,
        result.remote_address,
        result.timings,
        result.retry_after,
    )
