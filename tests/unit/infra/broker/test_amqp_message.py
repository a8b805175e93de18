"""What goes into AMQP comes out of it, and what a broker puts there does not."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from infra.broker.amqp_message import to_properties, to_received
from infra.broker.amqp_reader import Delivered
from infra.broker.base import Queue, Received
from schemas.errors import PublishRefused
from schemas.messages import HeaderValue, Message

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
PROPERTY = st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)  # empty is absent
HEADERS: st.SearchStrategy[dict[str, HeaderValue]] = st.dictionaries(
    # Not with x-, which is where the broker's own are: Hypothesis takes words from the source, those among them.
    st.text("abcdefghijklmnopqrstuvwxyz_-:", min_size=1, max_size=30).filter(lambda name: not name.startswith("x-")),
    st.one_of(TEXT, st.integers(-(2**63), 2**63 - 1), st.booleans(), st.binary(max_size=40), st.none()),
    max_size=8,
)


def received(properties: Basic.Properties, *, queue: Queue = Queue.EVENTS, redelivered: bool = False) -> Received:
    raw = ContentHeader(properties=properties).marshal()[12:]  # without class, weight and size
    return to_received(Delivered(1, redelivered, b"order.created", raw, b"body"), queue, token=None)


@given(headers=HEADERS, content_type=PROPERTY, kind=PROPERTY, seconds=st.integers(0, 2**32 - 1))
def test_headers_and_properties_come_back_as_they_were(
    headers: dict[str, HeaderValue], content_type: str | None, kind: str | None, seconds: int
) -> None:
    moment = datetime.fromtimestamp(seconds, UTC)
    sent = Message(b"body", headers, content_type=content_type, type=kind, timestamp=moment, app_id=kind)
    got = received(to_properties(sent)).message
    assert dict(got.headers) == headers
    assert {name: type(value) for name, value in got.headers.items()} == {
        name: type(value) for name, value in headers.items()
    }
    assert (got.content_type, got.type, got.timestamp, got.app_id) == (content_type, kind, moment, kind)


BROKERS_OWN: dict[str, Any] = {
    "x-death": [{"queue": "hookhare.work", "reason": "delivery_limit"}, {"queue": "hookhare.retry.1000"}],
    "x-first-death-queue": "hookhare.retry.1000",
    "x-first-death-reason": "expired",
    "x-first-death-exchange": "hookhare.retry",
    "x-last-death-queue": "hookhare.work",
    "x-delivery-count": 2,
    "x-acquired-count": 5,
    "CC": ["a"],
}


def test_what_the_broker_wrote_is_read_and_not_passed_on() -> None:
    properties = Basic.Properties(headers={**BROKERS_OWN, "x-deathly": "kept"})
    got = received(properties, queue=Queue.DEAD_LETTERS, redelivered=True)
    assert dict(got.message.headers) == {"x-deathly": "kept"}
    assert (got.delivery_count, got.dead_lettered_from) == (2, "hookhare.work")


def test_what_looks_like_the_brokers_is_not_published() -> None:
    forged: dict[str, HeaderValue] = {"BCC": "b", "kept": 1, **dict.fromkeys(BROKERS_OWN, "forged")}
    assert to_properties(Message(b"", forged)).headers == {"kept": 1}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"x-first-death-queue": "hookhare.events"}, "hookhare.events"),
        ({"x-first-death-queue": "a", "x-last-death-queue": "b"}, "b"),
        ({"x-death": "forged"}, None),
        ({"x-death": []}, None),
        ({"x-death": [7]}, None),
        ({"x-death": [{"queue": 7}]}, None),
    ],
)
def test_where_a_dead_letter_comes_from(headers: dict[str, Any], expected: str | None) -> None:
    properties = Basic.Properties(headers=headers)
    assert received(properties, queue=Queue.DEAD_LETTERS).dead_lettered_from == expected
    assert received(properties, queue=Queue.WORK).dead_lettered_from is None  # every retry has died in the ladder


@pytest.mark.parametrize(("count", "expected"), [(None, 1), ("forged", 1), (-1, 1), (0, 1), (7, 7)])
def test_the_delivery_count_of_a_redelivery_is_at_least_one(count: Any, expected: int) -> None:
    headers = {} if count is None else {"x-delivery-count": count}
    properties = Basic.Properties(headers=headers)
    assert received(properties, redelivered=True).delivery_count == expected
    assert received(properties).delivery_count == 0


@pytest.mark.parametrize("headers", [{"n": 2**63}, {"n": -(2**63) - 1}, {"t": "x" * 130_000}, {"t": "☃" * 40_000}])
def test_headers_that_do_not_fit_are_refused(headers: dict[str, HeaderValue]) -> None:
    with pytest.raises(PublishRefused):
        to_properties(Message(b"", headers))


@given(HEADERS)
def test_headers_that_are_accepted_fit_into_a_frame(headers: dict[str, HeaderValue]) -> None:
    large = headers | {f"filler {number}": "x" * 5_000 for number in range(22)}
    try:
        properties = to_properties(Message(b"", large))
    except PublishRefused:
        return
    assert len(ContentHeader(properties=properties).marshal()) < 131_072 - 8
