"""How fast an endpoint may be sent to, and how fast a replay may go on.

An endpoint's limit is the generic cell rate algorithm (ITU-T I.371, annex A) as a leaky bucket: all that has to be
remembered is when the bucket will be full again. Of a replay, since when what it may do has been gathering. Times are
in seconds on one clock.
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


def narrowed(limit: RateLimit | None, allowed_per_min: int | None) -> RateLimit | None:
    """The limit that also keeps to so many requests in any minute, which the endpoint allows; None for no limit.

    One by one at its rate where the endpoint allows less than the limit, and with less of a burst where the two
    together would be more.
    """
    if allowed_per_min is None:
        return limit
    per_s = allowed_per_min / 60
    if limit is None or limit.per_s >= per_s:
        return RateLimit(per_s, 1)
    return RateLimit(limit.per_s, min(limit.burst, allowed_per_min - math.ceil(60 * limit.per_s) + 1))


def turns(limit: RateLimit, *, full_at_s: float, now_s: float, ahead_s: float = 0.0) -> int:
    """How many requests have their turn from `now_s` until `ahead_s` later: the burst that is left, and the rate."""
    gained_s = ahead_s - max(0.0, full_at_s - now_s)
    return max(0, math.floor(limit.burst + gained_s * limit.per_s + _EPSILON))


def wait_s(limit: RateLimit, *, full_at_s: float, now_s: float) -> float:
    """How long from `now_s` until one more may be sent."""
    return max(0.0, full_at_s - now_s - (limit.burst - 1) / limit.per_s)


def full_at_after_one(limit: RateLimit, *, full_at_s: float, now_s: float) -> float:
    """When the bucket is full again once one more was sent, or has its turn, from `now_s` on."""
    return max(full_at_s, now_s) + 1 / limit.per_s


@dataclass(frozen=True, slots=True)
class Step:
    """What a replay begins again now: so many deliveries, after which it gathers anew from `since_s` on."""

    count: int
    since_s: float


def replay_step(max_per_s: float, *, since_s: float, now_s: float, most: int) -> Step:
    """The next step of a replay at `max_per_s` that has gathered since `since_s`; of `most` deliveries at most.

    It gathers for a second and one delivery's time, and no longer: after an outage there is no flood, and a slow one
    that is looked at a little late loses nothing.
    """
    since_s = max(since_s, now_s - 1.0 - 1 / max_per_s)
    count = max(0, min(most, math.floor((now_s - since_s) * max_per_s + _EPSILON)))
    return Step(count, since_s + count / max_per_s)
