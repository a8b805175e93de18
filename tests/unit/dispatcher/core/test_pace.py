"""The pace: a table of what may go when, and the promise of a limit as a property."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.pace import RateLimit, full_at_after_one, narrowed, replay_step, turns, wait_s

LIMIT = RateLimit(per_s=2, burst=4)
RATES = st.floats(0.01, 10_000)
BURSTS = st.integers(1, 100)


@pytest.mark.parametrize(
    ("full_in_s", "allowed", "wait"),
    [
        (-5, 4, 0),  # at rest
        (0, 4, 0),
        (0.5, 3, 0),  # one request's worth is missing
        (1.5, 1, 0),
        (1.6, 0, 0.1),
        (2, 0, 0.5),  # empty
        (4, 0, 2.5),  # turns are given away ahead
    ],
)
def test_what_may_go_by_how_full_the_bucket_is(full_in_s: float, allowed: int, wait: float) -> None:
    assert turns(LIMIT, full_at_s=100 + full_in_s, now_s=100) == allowed
    assert wait_s(LIMIT, full_at_s=100 + full_in_s, now_s=100) == pytest.approx(wait)


def test_a_full_bucket_holds_its_burst_however_long_it_rested() -> None:
    full_at_s = 0.0
    for _ in range(LIMIT.burst):
        assert wait_s(LIMIT, full_at_s=full_at_s, now_s=1e6) == 0
        full_at_s = full_at_after_one(LIMIT, full_at_s=full_at_s, now_s=1e6)
    assert wait_s(LIMIT, full_at_s=full_at_s, now_s=1e6) == pytest.approx(1 / LIMIT.per_s)


@given(RATES, BURSTS, st.floats(-10, 10), st.floats(0, 10))
def test_the_turns_ahead_are_those_that_come_by_then(
    per_s: float, burst: int, full_in_s: float, ahead_s: float
) -> None:
    """Also with a burst of one: a feeder that saw only the burst would go back to the store for each request."""
    limit = RateLimit(per_s, burst)
    count = min(200, turns(limit, full_at_s=100 + full_in_s, now_s=100, ahead_s=ahead_s))
    full_at_s = 100 + full_in_s
    for _ in range(count):
        assert wait_s(limit, full_at_s=full_at_s, now_s=100) <= ahead_s + 1e-3
        full_at_s = full_at_after_one(limit, full_at_s=full_at_s, now_s=100)
    if count < 200:
        assert wait_s(limit, full_at_s=full_at_s, now_s=100) > ahead_s - 1e-3


def sent(limit: RateLimit, asked_s: list[float]) -> list[float]:
    """When requests that ask for their turn at these moments go."""
    full_at_s, times = 0.0, []
    for now_s in asked_s:
        times.append(now_s + wait_s(limit, full_at_s=full_at_s, now_s=now_s))
        full_at_s = full_at_after_one(limit, full_at_s=full_at_s, now_s=now_s)
    return times


@given(RATES, BURSTS, st.lists(st.floats(0, 100), min_size=1, max_size=60), st.floats(0.001, 50))
def test_no_window_sees_more_than_the_burst_and_the_rate(
    per_s: float, burst: int, asked_s: list[float], window_s: float
) -> None:
    times = sent(RateLimit(per_s, burst), sorted(asked_s))
    assert times == sorted(times)
    for start in times:
        within = sum(start <= time < start + window_s for time in times)
        assert within <= burst + per_s * window_s + 1e-6


@given(RATES, BURSTS, st.integers(1, 60))
def test_a_backlog_goes_at_the_whole_rate(per_s: float, burst: int, count: int) -> None:
    times = sent(RateLimit(per_s, burst), [0.0] * count)
    assert times[-1] == pytest.approx(max(0, count - burst) / per_s)


@pytest.mark.parametrize(
    ("max_per_s", "gathered_s", "count", "left_s"),
    [
        (50, 0.0, 0, 0.0),
        (50, 0.25, 12, 0.01),  # what is not a whole one stays
        (50, 0.02, 1, 0.0),
        (50, 1.0, 50, 0.0),
        (50, 3600.0, 51, 0.0),  # a second's worth and one more, however long it stood still
        (50, -5.0, 0, -5.0),  # a clock that was set back
        (5000, 1.0, 500, 0.9),  # a whole batch, and the rest is there at once
        (0.1, 9.9, 0, 9.9),
        (0.1, 10.0, 1, 0.0),
        (0.1, 3600.0, 1, 1.0),
    ],
)
def test_a_replay_begins_what_it_has_gathered(max_per_s: float, gathered_s: float, count: int, left_s: float) -> None:
    step = replay_step(max_per_s, since_s=1000 - gathered_s, now_s=1000, most=500)
    assert step.count == count
    assert step.since_s == pytest.approx(1000 - left_s)


@given(RATES, st.lists(st.floats(0, 100), min_size=1, max_size=60), st.floats(0.001, 50), st.integers(1, 500))
def test_no_window_sees_more_of_a_replay_than_a_seconds_worth_and_the_rate(
    per_s: float, looked_s: list[float], window_s: float, most: int
) -> None:
    since_s, begun = 0.0, []
    for now_s in sorted(looked_s):
        step = replay_step(per_s, since_s=since_s, now_s=now_s, most=most)
        since_s = step.since_s
        begun.append((now_s, step.count))
    for start, _ in begun:
        within = sum(count for now_s, count in begun if start <= now_s < start + window_s)
        assert within <= per_s + 1 + per_s * window_s + 1e-3


@given(RATES, st.lists(st.floats(0.001, 0.9), min_size=1, max_size=60))
def test_a_replay_loses_nothing_by_being_looked_at_often(per_s: float, pauses_s: list[float]) -> None:
    now_s = since_s = 0.0
    count = 0
    for pause_s in pauses_s:
        now_s += pause_s
        step = replay_step(per_s, since_s=since_s, now_s=now_s, most=10**6)
        count, since_s = count + step.count, step.since_s
    assert count >= per_s * now_s - 1 - 1e-3


@pytest.mark.parametrize(
    ("limit", "allowed_per_min", "both"),
    [
        (None, None, None),
        (LIMIT, None, LIMIT),
        (None, 30, RateLimit(0.5, 1)),
        (RateLimit(10, 100), 60, RateLimit(1, 1)),
        (RateLimit(1, 5), 60, RateLimit(1, 1)),
        (RateLimit(1, 5), 62, RateLimit(1, 3)),
        (RateLimit(1, 5), 600, RateLimit(1, 5)),
        (RateLimit(0.01, 3), 1, RateLimit(0.01, 1)),
    ],
)
def test_a_limit_is_narrowed_by_what_the_endpoint_allows(
    limit: RateLimit | None, allowed_per_min: int | None, both: RateLimit | None
) -> None:
    assert narrowed(limit, allowed_per_min) == both


@given(st.none() | st.builds(RateLimit, st.floats(0.01, 5), st.integers(1, 50)), st.integers(1, 120), st.data())
def test_no_minute_sees_more_than_the_endpoint_allows(
    limit: RateLimit | None, allowed_per_min: int, data: st.DataObject
) -> None:
    both = narrowed(limit, allowed_per_min)
    assert both is not None
    pauses = st.lists(st.sampled_from([0.0, 0.0, 0.5, 20.0]), min_size=1, max_size=300)
    asked, now_s = [], 1000.0
    for pause in data.draw(pauses):
        now_s += pause
        asked.append(now_s)
    times = sent(both, asked)
    assert all(sum(start <= one < start + 60 - 1e-3 for one in times) <= allowed_per_min for start in times)
    if limit is not None:
        assert both.per_s <= limit.per_s
        assert both.burst <= limit.burst
