"""The cap of a slow endpoint: a truth table, and what holds for every history as properties."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.cap import NOT_SLOW, QUICK_S, SLOW_DOWN, Slow, cap, observe
from dispatcher.core.gate import fair_share
from infra.settings import Settings
from schemas.deliveries import Answered, AttemptResult, Failure, NoAnswer
from schemas.subscriptions import MAX_DELAY_S

MOST = 32
DAY_S = 86_400


def answered(status: int = 200, *, took_ms: int = 20) -> Answered:
    return Answered(status, b"", None, took_ms, None)


def timed_out(took_ms: int = 15_000) -> NoAnswer:
    return NoAnswer(Failure.TIMEOUT, "no answer within 15 s", took_ms, None)


def after(*results: AttemptResult, slow: Slow = NOT_SLOW, apart_s: float = 60.0, asked_s: float | None = None) -> Slow:
    """What is known after these, none of which was under way with another."""
    for number, one in enumerate(results):
        slow = observe(slow, one, most_at_once=MOST, asked_s=asked_s, now_s=1000 + number * apart_s)
    return slow


@pytest.mark.parametrize(
    ("answer_s", "oldest_s", "share", "expected"),
    [
        (0.0, 0.0, 250, None),
        (0.5, 0.5, 250, None),
        (1.0, 0.0, 250, 125),
        (5.0, 0.0, 250, 25),
        (15.0, 0.0, 250, 8),
        (60.0, 0.0, 250, 2),
        (0.0, 1.0, 250, 125),  # the age of a POST under way says as much as an answer
        (0.0, 15.0, 250, 8),
        (1.0, 15.0, 250, 8),
        (15.0, 1.0, 250, 8),
        (60.0, 0.0, 16, 1),
        (60.0, 0.0, 0, 1),  # never less: the share is a bound of its own
    ],
)
def test_what_is_in_hand_shrinks_as_answers_take_longer(
    answer_s: float, oldest_s: float, share: int, expected: int | None
) -> None:
    assert cap(Slow(answer_s=answer_s), oldest_s=oldest_s, share=share, now_s=0) == expected


@pytest.mark.parametrize(
    ("at_once", "answer_s", "expected"),
    [(16.0, 0.0, 64), (1.0, 0.0, 4), (1.9, 0.0, 4), (1.0, 60.0, 2), (16.0, 5.0, 25)],
)
def test_what_is_in_hand_goes_with_what_may_be_under_way(at_once: float, answer_s: float, expected: int) -> None:
    assert cap(Slow(answer_s=answer_s, at_once=at_once), oldest_s=0, share=250, now_s=0) == expected


def test_it_is_a_moving_average() -> None:
    late = after(*[answered()] * 3, answered(took_ms=10_000))
    assert QUICK_S < late.answer_s < 10 / 3
    assert not after(*[answered()] * 10, slow=late).is_worth_keeping(now_s=DAY_S)
    hanging = after(*[timed_out()] * 10)
    assert 14 < hanging.answer_s <= 15


def test_our_own_fault_says_nothing_of_the_endpoint() -> None:
    ours = NoAnswer(Failure.INTERNAL, "internal error", 60_000, None)
    assert after(ours) == NOT_SLOW


@pytest.mark.parametrize("status", sorted(SLOW_DOWN))
def test_an_answer_that_asks_for_less_halves_what_is_under_way_down_to_one(status: int) -> None:
    halves = [after(*[answered(status)] * times).at_once for times in range(1, 8)]
    assert halves == [16, 8, 4, 2, 1, 1, 1]


@pytest.mark.parametrize("status", [200, 400, 404, 408, 500, 501])
def test_another_answer_does_not(status: int) -> None:
    assert after(*[answered(status)] * 8).at_once is None


def test_those_under_way_together_halve_it_once() -> None:
    together = after(*[answered(429, took_ms=1000)] * 20, apart_s=0.01)
    assert together.at_once == 16
    assert after(answered(took_ms=1000), slow=together).at_once == 16  # nor does one of them add anything


@pytest.mark.parametrize("result", [answered(500), answered(408), timed_out()])
def test_only_a_success_adds_to_it(result: AttemptResult) -> None:
    slow = Slow(at_once=4.0)
    assert after(result, slow=slow).at_once == 4
    assert after(*[answered()] * 5, slow=slow).at_once == pytest.approx(5, abs=0.2)  # one more a round of POSTs


def test_in_the_end_nothing_is_known_of_it_any_more() -> None:
    slow = after(*[answered(503)] * 10)
    well = after(*[answered()] * 600, slow=slow)
    assert well.at_once is None
    assert not well.is_worth_keeping(now_s=DAY_S)


@pytest.mark.parametrize(
    ("asked_s", "rests_s"), [(None, 0), (0.0, 0), (-5.0, 0), (30.0, 30), (1e18, MAX_DELAY_S), (float(DAY_S), DAY_S)]
)
def test_nothing_begins_while_a_retry_after_runs(asked_s: float | None, rests_s: float) -> None:
    slow = after(answered(503), asked_s=asked_s)
    assert slow.rests_until_s == 1000 + rests_s
    for now_s in (1000.0, 1000 + rests_s / 2):
        assert (cap(slow, oldest_s=0, share=250, now_s=now_s) == 0) == (rests_s > 0)
    assert cap(slow, oldest_s=0, share=250, now_s=1000 + rests_s) == 64


def test_a_shorter_retry_after_does_not_undercut_a_longer_one_and_another_answers_counts_for_nothing() -> None:
    slow = after(answered(429), asked_s=100.0)
    assert after(answered(429), slow=slow, asked_s=10.0).rests_until_s == 1100
    assert after(answered(500), asked_s=100.0) == after(answered(500))


RESULTS = st.one_of(
    st.builds(answered, st.sampled_from([200, 400, 408, 429, 500, 502, 503, 504]), took_ms=st.integers(0, 60_000)),
    st.builds(timed_out, st.integers(0, 60_000)),
)
HISTORIES = st.lists(st.tuples(RESULTS, st.none() | st.floats(0, 1e9), st.floats(0, 100)), max_size=60)


@given(history=HISTORIES, share=st.integers(0, 10_000), oldest_s=st.floats(0, 1e6), later_s=st.floats(0, DAY_S))
def test_whatever_happened_it_is_asked_again_and_its_places_are_within_the_budget(
    history: list[tuple[AttemptResult, float | None, float]], share: int, oldest_s: float, later_s: float
) -> None:
    slow, now_s = NOT_SLOW, 0.0
    for result, asked_s, apart_s in history:
        now_s += apart_s
        slow = observe(slow, result, most_at_once=MOST, asked_s=asked_s, now_s=now_s)
        assert slow.at_once is None or 1 <= slow.at_once < MOST
        assert slow.rests_until_s <= now_s + DAY_S
    now = max(now_s, slow.rests_until_s) + later_s  # when its Retry-After is over
    left = cap(slow, oldest_s=oldest_s, share=share, now_s=now)
    assert left is None or left >= 1
    assert cap(slow, oldest_s=0, share=share, now_s=now) != 0  # nothing in hand: there is always room for one
    if left is not None and left > 1:
        assert left * max(slow.answer_s, oldest_s) <= max(share * QUICK_S, 4 * MOST * QUICK_S)
    if not slow.is_worth_keeping(now_s=now):
        assert replace(slow, answer_s=0.0, slowed_s=0.0, rests_until_s=0.0) == Slow(slowed_s=0.0, rests_until_s=0.0)


@given(seconds=st.floats(0, 120), more_s=st.floats(0, 120), share=st.integers(0, 1000))
def test_who_is_slower_never_has_more(seconds: float, more_s: float, share: int) -> None:
    def left(answer_s: float) -> int:
        most = cap(Slow(answer_s=answer_s), oldest_s=0, share=share, now_s=0)
        return max(1, share) if most is None else most

    assert left(seconds + more_s) <= left(seconds) <= max(1, share)


def fill(places: int, endpoints: int, *, oldest_s: float) -> int:
    """The places that are left when so many endpoints have taken what they can, one after the other."""
    free = places
    for _ in range(endpoints):
        mine = 0
        while True:
            share = fair_share(free)
            most = cap(NOT_SLOW, oldest_s=oldest_s if mine else 0.0, share=share, now_s=0)
            if mine >= (share if most is None else min(share, most)):
                break
            mine, free = mine + 1, free - 1
    return free


def test_a_thousand_that_hang_leave_room_for_the_others() -> None:
    places = Settings.model_fields["max_in_hand"].default
    assert fill(places, 1000, oldest_s=0.0) < 16
    assert fair_share(fill(places, 1000, oldest_s=15.0)) > 32
