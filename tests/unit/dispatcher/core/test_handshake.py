"""The handshake: what is asked, and which answer is a consent."""

import pytest
from msgspec.structs import replace

from dispatcher.core.handshake import Agreed, judge, question
from dispatcher.core.pace import RateLimit
from schemas.deliveries import Answered, Failure, NoAnswer, Timings

ORIGIN = "hooks.example.com"
TIMINGS = Timings(first_byte_ms=3)


def answered(status: int = 200, **headers: str) -> Answered:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answered(status, b"", None, 7, "192.0.2.1:443", names, TIMINGS)


@pytest.mark.parametrize(
    ("limit", "rate"),
    [
        (None, None),
        (RateLimit(2, 5), "120"),
        (RateLimit(0.01, 1), "1"),
        (RateLimit(0.51, 1), "31"),
        (RateLimit(10_000, 1), "600000"),
    ],
)
def test_what_is_asked(limit: RateLimit | None, rate: str | None) -> None:
    asked = question(origin=ORIGIN, limit=limit)
    assert asked == {"webhook-request-origin": ORIGIN} | ({} if rate is None else {"webhook-request-rate": rate})


@pytest.mark.parametrize("status", [200, 204, 299])
@pytest.mark.parametrize("named", [ORIGIN, "*", f" {ORIGIN} ", "Hooks.Example.COM"])
def test_a_consent_names_us_or_everybody(status: int, named: str) -> None:
    assert judge(answered(status, webhook_allowed_origin=named), origin=ORIGIN) == Agreed(None)


@pytest.mark.parametrize(
    ("rate", "per_min"),
    [
        ("*", None),
        (" * ", None),
        ("1", 1),
        ("100", 100),
        ("007", 7),
        ("600000", 600_000),
        ("600001", 600_000),
        ("9" * 5000, 600_000),
    ],
)
def test_the_rate_that_it_allows(rate: str, per_min: int | None) -> None:
    said = judge(answered(webhook_allowed_origin="*", webhook_allowed_rate=rate), origin=ORIGIN)
    assert said == Agreed(per_min)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (answered(405, webhook_allowed_origin="*"), "it answered 405"),
        (answered(302, webhook_allowed_origin="*"), "it answered 302"),
        (answered(410, webhook_allowed_origin="*"), "it answered 410"),
        (answered(), "WebHook-Allowed-Origin is missing"),
        (answered(webhook_allowed_origin=""), "WebHook-Allowed-Origin is ''"),
        (answered(webhook_allowed_origin="other.example"), "'other.example', and not hooks.example.com or *"),
        (answered(webhook_allowed_origin=f"{ORIGIN}, *"), "and not hooks.example.com or *"),
        *(
            (answered(webhook_allowed_origin="*", webhook_allowed_rate=rate), "WebHook-Allowed-Rate is")
            for rate in ("", "0", "000", "-1", "1.5", "10/s", "\u0661", "many")
        ),
    ],
)
def test_anything_else_is_none(answer: Answered, why: str) -> None:
    said = judge(answer, origin=ORIGIN)
    assert isinstance(said, NoAnswer)
    assert said.failure is Failure.HANDSHAKE
    assert said.reason.startswith("the endpoint did not agree to take deliveries: ")
    assert said.reason.endswith("; nothing was sent")
    assert why in said.reason
    assert (said.duration_ms, said.remote_address, said.timings) == (7, "192.0.2.1:443", TIMINGS)


def test_who_refuses_may_say_when_to_ask_again() -> None:
    said = judge(replace(answered(503), retry_after="120"), origin=ORIGIN)
    assert isinstance(said, NoAnswer)
    assert said.retry_after == "120"


def test_a_failure_is_the_failure_that_it_is() -> None:
    said = judge(NoAnswer(Failure.TIMEOUT, "no answer came within 5 s", 5000, None), origin=ORIGIN)
    assert said == NoAnswer(Failure.TIMEOUT, "the handshake (OPTIONS) failed: no answer came within 5 s", 5000, None)
