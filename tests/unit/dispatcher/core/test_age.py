"""How old an event may be, as a truth table, and what always holds."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.age import expiry, time_left_s
from dispatcher.core.conclude import Expired, RetryIn, conclude
from schemas.deliveries import Answered
from schemas.ids import event_key
from schemas.subscriptions import ExponentialPolicy, ListPolicy, RetryPolicy

ACCEPTED = datetime(2026, 1, 31, 12, tzinfo=UTC)
EVENT = event_key(int(ACCEPTED.timestamp() * 1000), "default", "tests", "1")
A_MINUTE = ListPolicy(delays_s=(5,), max_age_s=60)
FOR_EVER = ListPolicy(delays_s=(5,))
AGES_S = st.floats(-86_400, 40 * 86_400)
MAX_AGES_S = st.floats(1, 30 * 86_400)


@pytest.mark.parametrize(
    ("policy", "cycle", "age_s", "left_s"),
    [
        (A_MINUTE, 0, 0, 60),
        (A_MINUTE, 0, 59.5, 0.5),
        (A_MINUTE, 0, 60, 0),  # as old as it may be
        (A_MINUTE, 0, 60.001, -0.001),
        (A_MINUTE, 0, -5, 65),  # accepted by a clock that is ahead of ours
        (A_MINUTE, 1, 86_400, None),  # replayed
        (A_MINUTE, 7, 86_400, None),
        (FOR_EVER, 0, 86_400, None),
        (
            ExponentialPolicy(max_attempts=2, initial_delay_s=1, multiplier=1, max_delay_s=1, max_age_s=1.5),
            0,
            1,
            0.5,
        ),
    ],
)
def test_the_time_that_is_left(policy: RetryPolicy, cycle: int, age_s: float, left_s: float | None) -> None:
    now = ACCEPTED + timedelta(seconds=age_s)
    left = time_left_s(policy, EVENT, cycle=cycle, now=now)
    assert left == (None if left_s is None else pytest.approx(left_s))
    expired = expiry(policy, EVENT, cycle=cycle, now=now)
    too_old = left_s is not None and left_s < 0
    assert expired == (Expired("expired: older than its policy's max_age_s of 60 s") if too_old else None)


@given(MAX_AGES_S, AGES_S, st.floats(0, 86_400), st.floats(0, 1, exclude_max=True), st.none() | st.integers(0, 10**6))
def test_no_retry_is_planned_for_when_it_would_be_expired(
    max_age_s: float, age_s: float, delay_s: float, jitter: float, retry_after_s: int | None
) -> None:
    """And one that is not has a time when it is not: the check before the POST agrees with the plan."""
    policy, now = ListPolicy(delays_s=(delay_s,), max_age_s=max_age_s), ACCEPTED + timedelta(seconds=age_s)
    verdict = conclude(
        Answered(500, b"", None if retry_after_s is None else str(retry_after_s), 1, None),
        policy,
        attempt=1,
        now=now,
        left_s=time_left_s(policy, EVENT, cycle=0, now=now),
        jitter=jitter,
    )
    if isinstance(verdict, RetryIn):
        # A microsecond is what datetime rounds to.
        then = now + timedelta(seconds=verdict.delay_s) - timedelta(microseconds=1)
        assert expiry(policy, EVENT, cycle=0, now=then) is None
    else:
        least_s = max(delay_s, min(retry_after_s or 0, 86_400))
        assert expiry(policy, EVENT, cycle=0, now=now + timedelta(seconds=1.1 * least_s, microseconds=1)) is not None


@given(MAX_AGES_S, AGES_S, st.floats(0, 86_400))
def test_what_is_expired_stays_so(max_age_s: float, age_s: float, later_s: float) -> None:
    policy, now = ListPolicy(delays_s=(), max_age_s=max_age_s), ACCEPTED + timedelta(seconds=age_s)
    if expiry(policy, EVENT, cycle=0, now=now) is not None:
        assert expiry(policy, EVENT, cycle=0, now=now + timedelta(seconds=later_s)) is not None
        assert expiry(policy, EVENT, cycle=1, now=now) is None
