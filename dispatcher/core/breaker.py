"""The breaker: when an endpoint that fails is left alone, and when it is asked again.

A pure function of (state, health of an attempt, now). Times are in seconds on one clock.

A closed breaker counts the attempts of a sliding window (the last whole window, weighed by how much of it is left, and
the one under way) and the timeouts in a row. It begins to count at a failure: an endpoint that is well costs nothing.
An open one rests until a moment; then it lets one probe through at a time, and closes or rests again, twice as long,
by what that says.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from schemas.deliveries import Answered, AttemptResult, Failure


class Health(StrEnum):
    """What an attempt says about its endpoint, whatever it means for the delivery."""

    WELL = "well"
    FAILING = "failing"
    TIMED_OUT = "timed out"
    UNKNOWN = "unknown"  # our own fault


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """It opens when, of at least `min_attempts` in a window, `failure_ratio` failed, or after `timeouts` in a row."""

    window_s: float
    min_attempts: int
    failure_ratio: float
    timeouts: int
    rest_s: float
    longest_rest_s: float


@dataclass(frozen=True, slots=True)
class Closed:
    """`attempts` and `failures` of the window that began at `since_s`, and of the one before."""

    since_s: float = float("-inf")
    attempts: int = 0
    failures: int = 0
    attempts_before: int = 0
    failures_before: int = 0
    timeouts_in_a_row: int = 0


@dataclass(frozen=True, slots=True)
class Open:
    """Rests until `until_s`, for the `times`th time in a row; after that, probes go one at a time."""

    until_s: float
    times: int


Breaker = Closed | Open

WELL: Final = Closed()  # of an endpoint that is well: nothing is counted


def health(result: AttemptResult) -> Health:
    """Judge an endpoint by an attempt. A 4xx is the answer of an endpoint that is well; 408 and 429 say otherwise."""
    if isinstance(result, Answered):
        failing = result.status >= 500 or result.status in {408, 429}
        return Health.FAILING if failing else Health.WELL
    match result.failure:
        case Failure.TIMEOUT:
            return Health.TIMED_OUT
        case Failure.INTERNAL:
            return Health.UNKNOWN
        case _:
            return Health.FAILING


def observe(breaker: Breaker, said: Health, *, now_s: float, policy: BreakerPolicy) -> Breaker:
    """The breaker after an attempt that ended at `now_s`."""
    if said is Health.UNKNOWN:
        return breaker
    if isinstance(breaker, Open):
        if now_s < breaker.until_s:
            return breaker  # no probe: it was under way when the breaker opened, and tells nothing new
        return WELL if said is Health.WELL else rested(breaker.times + 1, now_s=now_s, policy=policy)
    if said is Health.WELL and not (breaker.failures or breaker.failures_before):
        return WELL
    window = _slid(breaker, now_s, policy.window_s)
    failed = said is not Health.WELL
    counted = replace(
        window,
        attempts=window.attempts + 1,
        failures=window.failures + failed,
        timeouts_in_a_row=window.timeouts_in_a_row + 1 if said is Health.TIMED_OUT else 0,
    )
    return rested(1, now_s=now_s, policy=policy) if _is_too_much(counted, now_s, policy) else counted


def rested(times: int, *, now_s: float, policy: BreakerPolicy) -> Open:
    """A breaker that opens at `now_s` for the `times`th time in a row."""
    return Open(now_s + min(policy.rest_s * 2 ** min(times - 1, 30), policy.longest_rest_s), times)


def probes(breaker: Breaker, *, in_hand: int, now_s: float) -> int | None:
    """How many more attempts may begin; None for as many as there are."""
    if isinstance(breaker, Closed):
        return None
    return 1 if now_s >= breaker.until_s and in_hand == 0 else 0


def _slid(window: Closed, now_s: float, window_s: float) -> Closed:
    age_s = now_s - window.since_s
    if age_s < window_s:
        return window
    recent = age_s < 2 * window_s
    return Closed(
        since_s=window.since_s + window_s if recent else now_s,
        attempts_before=window.attempts if recent else 0,
        failures_before=window.failures if recent else 0,
        timeouts_in_a_row=window.timeouts_in_a_row,
    )


def _is_too_much(window: Closed, now_s: float, policy: BreakerPolicy) -> bool:
    if window.timeouts_in_a_row >= policy.timeouts:
        return True
    left = max(0.0, 1 - (now_s - window.since_s) / policy.window_s)
    attempts = window.attempts + left * window.attempts_before
    failures = window.failures + left * window.failures_before
    return attempts >= policy.min_attempts and failures >= policy.failure_ratio * attempts
