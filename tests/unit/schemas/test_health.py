"""How an endpoint fares, in one word."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.health import Health, judge_health

SOUND: dict[str, Any] = {"state": "enabled", "breaker_open": False, "failures": 0}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "healthy"),
        ({"state": "paused"}, "healthy"),
        ({"failures": 1}, "degraded"),
        ({"failures": 4}, "degraded"),
        ({"failures": 5}, "failing"),
        ({"breaker_open": True}, "failing"),
        ({"state": "paused", "breaker_open": True}, "failing"),
        ({"attempts": 19, "delivered": 0}, "healthy"),  # too few to say
        ({"attempts": 20, "delivered": 9}, "failing"),
        ({"attempts": 20, "delivered": 10}, "degraded"),
        ({"attempts": 20, "delivered": 18}, "degraded"),
        ({"attempts": 20, "delivered": 19}, "healthy"),
        ({"state": "disabled", "breaker_open": True, "failures": 9, "attempts": 20, "delivered": 0}, "disabled"),
    ],
)
def test_the_rules(given: dict[str, Any], expected: str) -> None:
    assert judge_health(**SOUND | given) == expected


@given(st.booleans(), st.integers(0, 10), st.integers(0, 100), st.data())
def test_it_is_never_better_for_more_failures(breaker: bool, failures: int, attempts: int, data: st.DataObject) -> None:
    order = list(Health)
    fewer, more = sorted(data.draw(st.lists(st.integers(0, attempts), min_size=2, max_size=2)))
    judged = [
        judge_health(state="enabled", breaker_open=open_now, failures=streak, attempts=attempts, delivered=delivered)
        for open_now, streak, delivered in (
            (False, failures, more),
            (False, failures, fewer),
            (False, failures + 1, fewer),
            (breaker, failures + 1, fewer),
        )
    ]
    assert all(order.index(before) <= order.index(after) for before, after in pairwise(judged))
