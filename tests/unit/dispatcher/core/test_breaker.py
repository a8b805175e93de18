"""The breaker: a truth table, and what holds for every history as properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.breaker import Breaker, BreakerPolicy, Closed, Health, Open, health, observe, probes
from schemas.deliveries import Answered, AttemptResult, Failure, NoAnswer

POLICY = BreakerPolicy(window_s=60, min_attempts=10, failure_ratio=0.5, timeouts=3, rest_s=30, longest_rest_s=600)
WELL, FAILING, TIMED_OUT, UNKNOWN = Health.WELL, Health.FAILING, Health.TIMED_OUT, Health.UNKNOWN


def after(*said: Health, apart_s: float = 0.1) -> Breaker:
    breaker: Breaker = Closed()
    for number, one in enumerate(said):
        breaker = observe(breaker, one, now_s=1000 + number * apart_s, policy=POLICY)
    return breaker


@pytest.mark.parametrize(
    ("said", "opens"),
    [
        ([FAILING] * 9, False),  # too few to judge
        ([FAILING] * 10, True),
        ([WELL] * 100 + [FAILING] * 10, True),  # counted from its first failure
        ([FAILING] + [WELL] * 6 + [FAILING] * 4, False),
        ([FAILING] + [WELL] * 6 + [FAILING] * 6, True),
        ([FAILING] * 9 + [UNKNOWN] * 5, False),  # our own faults say nothing of it
        ([TIMED_OUT] * 2, False),
        ([TIMED_OUT] * 3, True),
        ([TIMED_OUT, TIMED_OUT, WELL, TIMED_OUT], False),
        ([TIMED_OUT, TIMED_OUT, FAILING, TIMED_OUT], False),
        ([TIMED_OUT, TIMED_OUT, UNKNOWN, TIMED_OUT], True),
    ],
)
def test_when_it_opens(said: list[Health], opens: bool) -> None:
    assert isinstance(after(*said), Open) == opens


def test_what_is_older_than_the_window_is_forgotten() -> None:
    assert isinstance(after(*[FAILING] * 30, apart_s=15), Closed)  # 4 to 8 in any minute
    assert isinstance(after(*[FAILING] * 30, apart_s=5), Open)


@pytest.mark.parametrize(
    ("breaker", "said", "now_s", "next_breaker"),
    [
        (Open(100, 1), WELL, 99, Open(100, 1)),  # it was under way when the breaker opened
        (Open(100, 1), FAILING, 99, Open(100, 1)),
        (Open(100, 1), TIMED_OUT, 100, Open(160, 2)),
        (Open(100, 2), FAILING, 130, Open(250, 3)),
        (Open(100, 40), FAILING, 100, Open(700, 41)),
        (Open(100, 1), UNKNOWN, 130, Open(100, 1)),
        (Open(100, 3), WELL, 130, Closed()),
    ],
)
def test_what_a_probe_says(breaker: Open, said: Health, now_s: float, next_breaker: Breaker) -> None:
    assert observe(breaker, said, now_s=now_s, policy=POLICY) == next_breaker


@pytest.mark.parametrize(
    ("breaker", "in_hand", "now_s", "allowed"),
    [
        (Closed(), 50, 100, None),
        (Open(100, 1), 0, 99.9, 0),
        (Open(100, 1), 0, 100, 1),
        (Open(100, 1), 1, 100, 0),
        (Open(100, 1), 0, 1e9, 1),
    ],
)
def test_how_many_may_begin(breaker: Breaker, in_hand: int, now_s: float, allowed: int | None) -> None:
    assert probes(breaker, in_hand=in_hand, now_s=now_s) == allowed


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (Answered(200, b"", None, 1, None), WELL),
        (Answered(302, b"", None, 1, None), WELL),
        (Answered(404, b"", None, 1, None), WELL),
        (Answered(410, b"", None, 1, None), WELL),
        (Answered(408, b"", None, 1, None), FAILING),
        (Answered(429, b"", None, 1, None), FAILING),
        (Answered(500, b"", None, 1, None), FAILING),
        (Answered(503, b"", None, 1, None), FAILING),
        *(
            (NoAnswer(failure, "", 1, None), FAILING)
            for failure in sorted(set(Failure) - {Failure.TIMEOUT, Failure.INTERNAL})
        ),
        (NoAnswer(Failure.TIMEOUT, "", 1, None), TIMED_OUT),
        (NoAnswer(Failure.INTERNAL, "", 1, None), UNKNOWN),
    ],
    ids=lambda value: str(getattr(value, "status", getattr(value, "failure", value))),
)
def test_what_an_attempt_says_of_its_endpoint(result: AttemptResult, said: Health) -> None:
    assert health(result) is said


HISTORIES = st.lists(st.tuples(st.sampled_from(Health), st.floats(0, 100)), max_size=200)


@given(HISTORIES)
def test_it_is_never_stuck_open_and_never_lets_two_probes_through(history: list[tuple[Health, float]]) -> None:
    breaker: Breaker = Closed()
    now_s = 0.0
    for said, pause_s in history:
        now_s += pause_s
        breaker = observe(breaker, said, now_s=now_s, policy=POLICY)
        if isinstance(breaker, Open):
            assert breaker.until_s - now_s <= POLICY.longest_rest_s
            assert probes(breaker, in_hand=0, now_s=breaker.until_s) == 1
            assert probes(breaker, in_hand=1, now_s=breaker.until_s) == 0
            assert observe(breaker, WELL, now_s=breaker.until_s, policy=POLICY) == Closed()


@given(st.lists(st.tuples(st.just(WELL), st.floats(0, 100)), max_size=200))
def test_an_endpoint_that_is_well_is_never_left_alone(history: list[tuple[Health, float]]) -> None:
    breaker: Breaker = Closed()
    now_s = 0.0
    for said, pause_s in history:
        now_s += pause_s
        breaker = observe(breaker, said, now_s=now_s, policy=POLICY)
        assert isinstance(breaker, Closed)
