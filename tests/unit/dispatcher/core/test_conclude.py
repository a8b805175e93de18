"""What an answer means: DESIGN section 7, one row a line."""

from datetime import UTC, datetime

import pytest

from dispatcher.core.conclude import Dead, Delivered, RetryIn, conclude
from schemas.deliveries import Answered, AttemptResult, Failure, NoAnswer
from schemas.subscriptions import DEFAULT_POLICY, ListPolicy

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
TWO_TRIES = ListPolicy(delays_s=(10.0,), final_statuses=(422,))


def answered(status: int, retry_after: str | None = None) -> Answered:
    return Answered(status, b"", retry_after, duration_ms=3, remote_address="192.0.2.1")


def judge(
    result: AttemptResult, *, attempt: int = 1, left_s: float | None = None, jitter: float = 0.0
) -> Delivered | RetryIn | Dead:
    return conclude(result, TWO_TRIES, attempt=attempt, now=NOW, left_s=left_s, jitter=jitter)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_2xx_is_delivered(status: int) -> None:
    assert judge(answered(status)) == Delivered()


@pytest.mark.parametrize("status", [100, 199, 300, 301, 302, 307, 308, 400, 401, 404, 408, 429, 500, 502, 503, 504])
def test_any_other_answer_is_retried(status: int) -> None:
    assert judge(answered(status)) == RetryIn(10.0, f"the endpoint answered {status}")


def test_410_ends_the_delivery_and_the_subscription() -> None:
    assert judge(answered(410)) == Dead("the endpoint answered 410 Gone", disables=True)


def test_a_status_that_the_policy_names_is_final() -> None:
    verdict = judge(answered(422))
    assert isinstance(verdict, Dead)
    assert not verdict.disables


@pytest.mark.parametrize("failure", sorted(Failure))
def test_no_answer_is_retried(failure: Failure) -> None:
    assert judge(NoAnswer(failure, "it hangs", 3, None)) == RetryIn(10.0, "it hangs")


def test_who_refuses_the_handshake_may_ask_for_patience() -> None:
    refused = NoAnswer(Failure.HANDSHAKE, "it did not agree", 3, None, retry_after="120")
    assert judge(refused) == RetryIn(120.0, "it did not agree")


def test_the_last_attempt_that_fails_is_dead_and_says_how_often_and_why() -> None:
    assert judge(answered(500), attempt=2) == Dead("attempts used up (2); the last: the endpoint answered 500")


@pytest.mark.parametrize(
    ("header", "delay_s"),
    [
        ("120", 120.0),
        ("Sat, 31 Jan 2026 12:02:00 GMT", 120.0),
        ("3", 10.0),  # the policy's own delay is longer
        ("999999999", 86_400.0),
        ("soon", 10.0),
    ],
)
@pytest.mark.parametrize("status", [429, 500, 503])
def test_retry_after_is_honoured_up_to_a_day_and_never_undercut(status: int, header: str, delay_s: float) -> None:
    verdict = judge(answered(status, header))
    assert isinstance(verdict, RetryIn)
    assert verdict.delay_s == delay_s


@pytest.mark.parametrize(
    ("result", "left_s", "jitter", "retried"),
    [
        (answered(500), None, 0.0, True),
        (answered(500), 10.0, 0.0, True),  # then it is just not older
        (answered(500), 9.999, 0.0, False),
        (answered(500), 10.0, 0.5, False),  # the jitter takes it beyond
        (answered(500), -1.0, 0.0, False),
        (answered(429, "60"), 60.0, 0.0, True),
        (answered(429, "60"), 59.0, 0.0, False),  # no earlier, for the endpoint asked for it; so not at all
        (answered(429, "Sat, 31 Jan 2026 12:01:00 GMT"), 59.0, 0.0, False),
        (NoAnswer(Failure.TIMEOUT, "it hangs", 3, None), 9.0, 0.0, False),
    ],
)
def test_a_retry_that_would_come_after_the_max_age_is_dead_now(
    result: AttemptResult, left_s: float | None, jitter: float, retried: bool
) -> None:
    verdict = judge(result, left_s=left_s, jitter=jitter)
    if retried:
        assert isinstance(verdict, RetryIn)
        return
    assert isinstance(verdict, Dead)
    assert verdict.reason.startswith("expired: the next attempt would come after its policy's max_age_s; the last: ")
    assert not verdict.disables


@pytest.mark.parametrize(
    ("result", "attempt", "verdict"),
    [
        (answered(200), 1, Delivered()),  # also an answer that came after the max age
        (answered(410), 1, Dead("the endpoint answered 410 Gone", disables=True)),
        (answered(422), 1, Dead("the endpoint answered 422, which its policy names as final")),
        (answered(500), 2, Dead("attempts used up (2); the last: the endpoint answered 500")),
    ],
)
def test_age_changes_nothing_else(result: AttemptResult, attempt: int, verdict: Delivered | Dead) -> None:
    assert judge(result, attempt=attempt, left_s=-1.0) == verdict


def test_the_default_schedule_is_the_documented_one() -> None:
    hours = 3600.0
    expected = [5, 300, 1800, 2 * hours, 5 * hours, 10 * hours, 14 * hours, 20 * hours, 24 * hours]
    for attempt, delay_s in enumerate(expected, start=1):
        for jitter in (0.0, 0.999):
            verdict = conclude(answered(500), DEFAULT_POLICY, attempt=attempt, now=NOW, left_s=None, jitter=jitter)
            assert isinstance(verdict, RetryIn)
            assert delay_s <= verdict.delay_s < 1.1 * delay_s
    assert isinstance(conclude(answered(500), DEFAULT_POLICY, attempt=10, now=NOW, left_s=None, jitter=0.0), Dead)
