"""What an attempt's result means for its delivery: delivered, retried at a time, or dead."""

from dataclasses import dataclass
from datetime import datetime
from typing import assert_never

from dispatcher.core.retry import next_delay_s, parse_retry_after
from schemas.deliveries import Answered, AttemptResult, NoAnswer
from schemas.subscriptions import RetryPolicy

GONE = 410  # the endpoint asks for no more: DESIGN section 7, and the Standard Webhooks specification


@dataclass(frozen=True, slots=True)
class Delivered:
    """The endpoint took it."""


@dataclass(frozen=True, slots=True)
class RetryIn:
    """Try again, not before `delay_s` seconds from now."""

    delay_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Dead:
    """Give it up. `disables`: and the subscription with it."""

    reason: str
    disables: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """It was not attempted; it joins its endpoint's backlog."""

    reason: str


@dataclass(frozen=True, slots=True)
class Expired:
    """It was not attempted, and never will be: it is too old."""

    reason: str


@dataclass(frozen=True, slots=True)
class Canceled:
    """It was not attempted, and never will be: there is nothing to send any more."""

    reason: str


Verdict = Delivered | RetryIn | Dead | Held | Expired | Canceled


def conclude(
    result: AttemptResult, policy: RetryPolicy, *, attempt: int, now: datetime, left_s: float | None, jitter: float
) -> Delivered | RetryIn | Dead:
    """Judge the result of attempt number `attempt` (from 1). `jitter` is in [0, 1).

    `left_s`: for how long an attempt may still begin (core.age). A retry that would come later is none.
    """
    match result:
        case Answered(status=status) if 200 <= status < 300:
            return Delivered()
        case Answered(status=status):
            reason = f"the endpoint answered {status}"
            if status == GONE:
                return Dead(f"{reason} Gone", disables=True)
            if status in policy.final_statuses:
                return Dead(f"{reason}, which its policy names as final")
        case NoAnswer():
            reason = result.reason
        case _:
            assert_never(result)
    retry_after_s = parse_retry_after(result.retry_after, now=now)
    delay_s = next_delay_s(policy, attempt=attempt, retry_after_s=retry_after_s, jitter=jitter)
    if delay_s is None:
        return Dead(f"attempts used up ({attempt}); the last: {reason}")
    if left_s is not None and delay_s > left_s:
        return Dead(f"expired: the next attempt would come after its policy's max_age_s; the last: {reason}")
    return RetryIn(delay_s, reason)
