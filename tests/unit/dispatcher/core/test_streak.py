"""The streak: truth tables, and what holds for every history as properties."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.conclude import Dead, Delivered, Held, RetryIn, Verdict
from dispatcher.core.streak import Failures, Judgement, Said, Streak, Thresholds, judge, said, tally
from schemas.deliveries import Answered, AttemptResult, Failure, NoAnswer

THRESHOLDS = Thresholds(failing_failures=10, failing_s=300, disable_failures=20, disable_s=3600)
OK, NO = Answered(200, b"", None, 1, None), Answered(500, b"", None, 1, None)


@pytest.mark.parametrize(
    ("verdict", "result", "superseded", "expected"),
    [
        (Delivered(), OK, False, Said.DELIVERED),
        (Delivered(), OK, True, Said.DELIVERED),  # too late for its delivery, and a success all the same
        (RetryIn(5, "no"), NO, False, Said.FAILED),
        (RetryIn(5, "no"), NO, True, Said.NOTHING),
        (Dead("no"), NO, False, Said.FAILED),
        (Dead("no"), Answered(404, b"", None, 1, None), False, Said.FAILED),  # well, to the breaker
        (Dead("no", disables=True), Answered(410, b"", None, 1, None), False, Said.FAILED),
        (RetryIn(5, "no"), NoAnswer(Failure.TIMEOUT, "", 1, None), False, Said.FAILED),
        (RetryIn(5, "no"), NoAnswer(Failure.FORBIDDEN_ADDRESS, "", 1, None), False, Said.FAILED),
        (RetryIn(5, "no"), NoAnswer(Failure.INTERNAL, "", 1, None), False, Said.NOTHING),
        (Dead("no"), NoAnswer(Failure.INTERNAL, "", 1, None), False, Said.NOTHING),
        (Held("full"), NO, False, Said.NOTHING),
    ],
)
def test_what_an_attempt_says(verdict: Verdict, result: AttemptResult, superseded: bool, expected: Said) -> None:
    assert said(verdict, result, superseded=superseded) is expected


@pytest.mark.parametrize(
    ("streak", "ordinary", "expected"),
    [
        (Streak(9, 9999, told=False), True, Judgement(tell=False, disable=False)),
        (Streak(10, 299, told=False), True, Judgement(tell=False, disable=False)),
        (Streak(10, 300, told=False), True, Judgement(tell=True, disable=False)),
        (Streak(10, 300, told=False), False, Judgement(tell=False, disable=False)),
        (Streak(10, 300, told=True), True, Judgement(tell=False, disable=False)),
        (Streak(19, 9999, told=True), True, Judgement(tell=False, disable=False)),
        (Streak(99999, 3599, told=True), True, Judgement(tell=False, disable=False)),
        (Streak(20, 3600, told=True), True, Judgement(tell=False, disable=True)),
        (Streak(20, 3600, told=True), False, Judgement(tell=False, disable=True)),  # disabled once, whatever failed
        (Streak(20, 3600, told=False), True, Judgement(tell=True, disable=True)),
    ],
)
def test_what_a_streak_leads_to(streak: Streak, ordinary: bool, expected: Judgement) -> None:
    assert judge(streak, THRESHOLDS, ordinary=ordinary) == expected


def test_a_tally_sums_the_failures_of_each_endpoint_and_remembers_the_last() -> None:
    total = tally(
        [
            ("a", Said.FAILED, Failures(1, ordinary=False, last="500")),
            ("b", Said.FAILED, Failures(1, ordinary=False, last="404")),
            ("a", Said.NOTHING, Failures(1, ordinary=True, last="a fault of ours")),
            ("a", Said.FAILED, Failures(1, ordinary=True, last="503")),
            ("a", Said.FAILED, Failures(1, ordinary=False, last="502")),
        ]
    )
    assert total.delivered == set()
    assert total.failures == {
        "a": Failures(3, ordinary=True, last="502"),
        "b": Failures(1, ordinary=False, last="404"),
    }


@pytest.mark.parametrize("order", [[Said.DELIVERED, Said.FAILED], [Said.FAILED, Said.DELIVERED]])
def test_where_anything_was_delivered_nothing_counts_as_failed(order: list[Said]) -> None:
    total = tally([("a", what, Failures(1, ordinary=True, last="500")) for what in order])
    assert (total.delivered, total.failures) == ({"a"}, {})


SAID = st.sampled_from(Said)
BATCHES = st.lists(
    st.tuples(st.lists(st.tuples(SAID, st.booleans()), min_size=1, max_size=30), st.floats(0, 1200)), max_size=60
)


@dataclass
class House:
    """One endpoint's row, as the store keeps it."""

    since_s: float | None = None
    failures: int = 0
    told: bool = False
    enabled: bool = True

    def batch(self, attempts: list[tuple[Said, bool]], now_s: float) -> Judgement | None:
        total = tally([("a", what, Failures(1, ordinary, "no")) for what, ordinary in attempts])
        if total.delivered:
            self.since_s, self.failures, self.told = None, 0, False
        if "a" not in total.failures or not self.enabled:
            return None
        self.since_s = now_s if self.since_s is None else self.since_s
        self.failures += total.failures["a"].number
        judgement = judge(
            Streak(self.failures, now_s - self.since_s, self.told),
            THRESHOLDS,
            ordinary=total.failures["a"].ordinary,
        )
        self.told = self.told or judgement.tell
        self.enabled = not judgement.disable
        return judgement


@given(BATCHES)
def test_it_is_disabled_only_after_so_long_and_so_many_without_a_success(
    batches: list[tuple[list[tuple[Said, bool]], float]],
) -> None:
    house, now_s = House(), 0.0
    success_s, failed_since = 0.0, 0
    for attempts, pause_s in batches:
        now_s += pause_s
        judgement = house.batch(attempts, now_s)
        if any(what is Said.DELIVERED for what, _ in attempts):
            success_s, failed_since = now_s, 0
        else:
            failed_since += sum(what is Said.FAILED for what, _ in attempts)
        if judgement is not None and judgement.disable:
            assert now_s - success_s >= THRESHOLDS.disable_s
            assert failed_since >= THRESHOLDS.disable_failures
            return
        if house.failures >= THRESHOLDS.disable_failures and house.since_s is not None and judgement is not None:
            assert now_s - house.since_s < THRESHOLDS.disable_s  # it would have been


@given(BATCHES)
def test_a_streak_is_told_at_most_once_and_never_without_an_ordinary_failure(
    batches: list[tuple[list[tuple[Said, bool]], float]],
) -> None:
    house, now_s, told, ordinary_failures = House(), 0.0, 0, 0
    tellings = 0
    for attempts, pause_s in batches:
        now_s += pause_s
        judgement = house.batch(attempts, now_s)
        if any(what is Said.DELIVERED for what, _ in attempts):
            told = 0
        ordinary_failures += sum(what is Said.FAILED and ordinary for what, ordinary in attempts)
        if judgement is not None and judgement.tell:
            told += 1
            tellings += 1
        assert told <= 1
        assert tellings <= ordinary_failures  # so they end when ordinary events do, whoever listens


@given(st.lists(st.tuples(st.sampled_from("ab"), SAID), max_size=50), st.integers(0, 50))
def test_sums_may_be_summed_up(attempts: list[tuple[str, Said]], cut: int) -> None:
    """Two batches, one after the other, count as one, where nothing was delivered."""
    counted = [(key, what, Failures(1, ordinary=False, last="no")) for key, what in attempts]
    whole, one, other = tally(counted), tally(counted[:cut]), tally(counted[cut:])
    assert whole.delivered == one.delivered | other.delivered
    for key, failures in whole.failures.items():
        parts = [part.failures[key].number for part in (one, other) if key in part.failures]
        assert failures.number == sum(parts)
