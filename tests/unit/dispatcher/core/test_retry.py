"""When a delivery is tried again: the truth table of both policies, Retry-After, and what always holds."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.retry import next_delay_s, parse_retry_after
from schemas.subscriptions import DEFAULT_POLICY, ExponentialPolicy, ListPolicy, RetryPolicy

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
DAY_S = 86_400
LIST = ListPolicy(delays_s=(5, 300))
DOUBLING = ExponentialPolicy(max_attempts=5, initial_delay_s=10, multiplier=2, max_delay_s=60)
DELAYS = st.floats(0, DAY_S)
POLICIES: st.SearchStrategy[RetryPolicy] = st.one_of(
    st.builds(ListPolicy, delays_s=st.lists(DELAYS, max_size=49).map(tuple)),
    st.builds(
        lambda attempts, delays, multiplier: ExponentialPolicy(
            max_attempts=attempts, initial_delay_s=min(delays), multiplier=multiplier, max_delay_s=max(delays)
        ),
        st.integers(1, 50),
        st.tuples(DELAYS, DELAYS),
        st.floats(1, 100),
    ),
)
JITTER = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(
    ("policy", "attempt", "retry_after_s", "jitter", "expected"),
    [
        (LIST, 1, None, 0.0, 5),
        (LIST, 2, None, 0.0, 300),
        (LIST, 3, None, 0.0, None),
        (LIST, 4, None, 0.0, None),
        (ListPolicy(delays_s=()), 1, None, 0.0, None),
        (ListPolicy(delays_s=()), 1, 60.0, 0.0, None),  # asking for later does not give more attempts
        (LIST, 1, None, 0.5, 5.25),
        (LIST, 2, None, 0.5, 315),
        (LIST, 1, 60.0, 0.0, 60),
        (LIST, 1, 4.0, 0.0, 5),
        (LIST, 1, 5.1, 0.5, 5.25),
        (LIST, 1, 0.0, 0.0, 5),
        (LIST, 1, 10.0**9, 0.0, DAY_S),
        (DOUBLING, 1, None, 0.0, 10),
        (DOUBLING, 2, None, 0.0, 20),
        (DOUBLING, 3, None, 0.0, 40),
        (DOUBLING, 4, None, 0.0, 60),
        (DOUBLING, 5, None, 0.0, None),
        (DOUBLING, 6, None, 0.0, None),
        (DOUBLING, 4, None, 0.5, 63),
        (ExponentialPolicy(max_attempts=1, initial_delay_s=1, multiplier=1, max_delay_s=1), 1, None, 0.0, None),
        (
            ExponentialPolicy(max_attempts=50, initial_delay_s=1, multiplier=100, max_delay_s=DAY_S),
            49,
            None,
            0.0,
            DAY_S,
        ),
    ],
)
def test_next_delay(
    policy: RetryPolicy, attempt: int, retry_after_s: float | None, jitter: float, expected: float | None
) -> None:
    delay_s = next_delay_s(policy, attempt=attempt, retry_after_s=retry_after_s, jitter=jitter)
    assert delay_s == (None if expected is None else pytest.approx(expected))


def test_the_default_policy_makes_ten_attempts() -> None:
    delays = [next_delay_s(DEFAULT_POLICY, attempt=attempt, retry_after_s=None, jitter=0.0) for attempt in range(1, 12)]
    assert delays == [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400, None, None]


@given(POLICIES, st.integers(1, 60), st.none() | st.floats(0, 10**12), JITTER)
def test_what_always_holds(policy: RetryPolicy, attempt: int, retry_after_s: float | None, jitter: float) -> None:
    delay_s = next_delay_s(policy, attempt=attempt, retry_after_s=retry_after_s, jitter=jitter)
    allowed = len(policy.delays_s) + 1 if isinstance(policy, ListPolicy) else policy.max_attempts
    assert (delay_s is None) == (attempt >= allowed)
    if delay_s is not None:
        assert 0 <= delay_s <= DAY_S * 1.1
        plain_s = next_delay_s(policy, attempt=attempt, retry_after_s=None, jitter=0.0)
        assert plain_s is not None
        assert delay_s >= plain_s
        assert delay_s >= min(retry_after_s or 0, DAY_S)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        (" ", None),
        ("0", 0),
        ("120", 120),
        (" 120 ", 120),
        ("007", 7),
        ("Sat, 31 Jan 2026 12:01:30 GMT", 90),
        ("Saturday, 31-Jan-26 12:01:30 GMT", 90),  # RFC 850, which recipients must still read
        ("Sat Jan 31 12:01:30 2026", 90),  # asctime, the same
        ("Sat, 31 Jan 2026 14:01:30 +0200", 90),
        ("Sat, 31 Jan 2026 11:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", (datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC) - NOW).total_seconds()),
        ("-1", None),
        ("+5", None),
        ("1.5", None),
        ("1e3", None),
        ("٣", None),
        ("12 seconds", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("9" * 19, None),
        ("9" * 5000, None),
        ("Sat, 99 Jan 2026 12:00:00 GMT", None),
        ("Sat, 31 Jan 2026 25:00:00 GMT", None),
        ("2026-01-31T12:01:30Z", None),
        ("Sat, 31 Jan 99999999999999999999 12:00:00 GMT", None),
        ("Sat, 31 Jan 0000 12:00:00 GMT", 0),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0),
        ("Sat, 31 Jan 2026 12:00:00 GMT" + " " * 200, 0),
    ],
)
def test_retry_after(value: str | None, expected: float | None) -> None:
    assert parse_retry_after(value, now=NOW) == expected


@given(st.integers(-(10**6), 10**6))
def test_http_dates_are_seconds_from_now(seconds: int) -> None:
    value = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)
    assert parse_retry_after(value, now=NOW) == max(0, seconds)


@given(
    st.text()
    | st.text("0123456789: ,+-.GMTSatJanFeb")
    | st.builds("{}, {} {} {} {}:{}:{} {}".format, *[st.text("0123456789SatJn+-", max_size=6)] * 8)
)
def test_junk_never_raises_and_is_never_negative(value: str) -> None:
    seconds = parse_retry_after(value, now=NOW)
    assert seconds is None or 0 <= seconds <= 10**18
