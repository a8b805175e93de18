"""How fast an endpoint may be sent to.

The generic cell rate algorithm (ITU-T I.371, annex A) as a leaky bucket: all that has to be remembered is when the
bucket will be full again. Times are in seconds on one clock.
"""

import math
from dataclasses import dataclass

_EPSILON = 1e-6  # of a request, so that what has been regained exactly is not lost to rounding


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most `per_s` requests a second, up to `burst` at once after a rest: in any T seconds, burst + per_s * T."""

    per_s: float
    burst: int

    @property
    def refill_s(self) -> float:
        """How long an empty bucket takes to be full."""
        return self.burst / self.per_s


def allowance(limit: RateLimit, *, full_at_s: float, now_s: float) -> int:
    """How many requests may be sent at once at `now_s`."""
    missing = max(0.0, full_at_s - now_s) * limit.per_s
    return max(0, math.floor(limit.burst - missing + _EPSILON))


def wait_s(limit: RateLimit, *, full_at_s: float, now_s: float) -> float:
    """How long from `now_s` until one more may be sent."""
    return max(0.0, full_at_s - now_s - (limit.burst - 1) / limit.per_s)


def full_at_after_one(limit: RateLimit, *, full_at_s: float, now_s: float) -> float:
    """When the bucket is full again once one more was sent, or has its turn, from `now_s` on."""
    return max(full_at_s, now_s) + 1 / limit.per_s
