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


def judge(result: AttemptResult, *, attempt: int = 1) -> Delivered | RetryIn | Dead:
    return conclude(result, TWO_TRIES, attempt=attempt, now=NOW, jitter=0.0)


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


def test_the_default_schedule_is_the_documented_one() -> None:
    hours = 3600.0
    expected = [5, 300, 1800, 2 * hours, 5 * hours, 10 * hours, 14 * hours, 20 * hours, 24 * hours]
    for attempt, delay_s in enumerate(expected, start=1):
        for jitter in (0.0, 0.999):
            verdict = conclude(answered(500), DEFAULT_POLICY, attempt=attempt, now=NOW, jitter=jitter)
            assert isinstance(verdict, RetryIn)
            assert delay_s <= verdict.delay_s < 1.1 * delay_s
    assert isinstance(conclude(answered(500), DEFAULT_POLICY, attempt=10, now=NOW, jitter=0.0), Dead)
