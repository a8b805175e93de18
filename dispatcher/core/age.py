"""Max age: when a policy says that an event is too old to be sent.

The age counts from when the event was accepted, which its key tells, and in cycle 0 only. A replay is an operator's
will, of an event that is old on purpose: what waits in a later cycle never expires.
"""

from datetime import datetime
from uuid import UUID

from dispatcher.core.conclude import Expired
from schemas.ids import key_time
from schemas.subscriptions import RetryPolicy


def time_left_s(policy: RetryPolicy, event: UUID, *, cycle: int, now: datetime) -> float | None:
    """For how many seconds an attempt may still begin, less than 0 when it is too late; None when it always may."""
    if policy.max_age_s is None or cycle > 0:
        return None
    return policy.max_age_s - (now - key_time(event)).total_seconds()


def expiry(policy: RetryPolicy, event: UUID, *, cycle: int, now: datetime) -> Expired | None:
    """What becomes of a delivery that is about to be attempted, if it is too old for that."""
    left_s = time_left_s(policy, event, cycle=cycle, now=now)
    if left_s is None or left_s >= 0:
        return None
    return Expired(f"expired: older than its policy's max_age_s of {policy.max_age_s:g} s")
