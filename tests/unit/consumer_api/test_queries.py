"""Query strings: what is taken, what is refused, and never a crash."""

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_api.commands import ReplayCreate, SecretRotation
from consumer_api.queries import (
    DeadLettersQuery,
    DeliveriesQuery,
    EventsQuery,
    ListQuery,
    ReplaysQuery,
    SubscriptionsQuery,
)
from infra.store.history import DeliveryFilter, TimeRange
from schemas.deliveries import Status
from schemas.errors import InvalidInput
from schemas.ids import SUBSCRIPTION, parse_id
from schemas.inputs import Input, read_input

SUB = "sub_01h455vb4pex5vsknk084sn02q"
MODELS: list[type[Input]] = [
    DeadLettersQuery,
    DeliveriesQuery,
    EventsQuery,
    ReplayCreate,
    ReplaysQuery,
    SecretRotation,
    SubscriptionsQuery,
]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31t12:00:00z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31T12:00:00.123456789+01:30", datetime(2026, 1, 31, 10, 30, 0, 123456, tzinfo=UTC)),
        ("1970-01-01T00:00:00Z", datetime(1970, 1, 1, tzinfo=UTC)),
        ("9999-12-31T23:59:59Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_times_are_rfc_3339(text: str, moment: datetime) -> None:
    query = read_input(DeliveriesQuery, {"created_after": text, "created_before": text})
    assert query.created() == TimeRange(moment, moment)


@pytest.mark.parametrize(
    "value",
    [
        *("", "now", "2026-01-31", "2026-01-31T12:00:00", "20260131T120000Z", "2026-02-30T12:00:00Z", "1700000000"),
        *("1969-12-31T23:59:59Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"),
        *("2026-01-31T12:00:00 00:00", "\uff12026-01-31T12:00:00Z", 1700000000, 1.5, True, ["x"]),
    ],
)
def test_other_times_are_refused(value: Any) -> None:
    with pytest.raises(InvalidInput) as raised:
        read_input(DeliveriesQuery, {"created_after": value})
    assert [problem.field for problem in raised.value.problems] == ["created_after"]


@pytest.mark.parametrize(("limit", "taken"), [("1", 1), ("200", 200), (None, 50)])
def test_limits_are_bounded(limit: str | None, taken: int) -> None:
    assert read_input(ListQuery, {} if limit is None else {"limit": limit}).limit == taken


def test_a_replays_filter_is_what_was_asked_for() -> None:
    wanted = read_input(ReplayCreate, {"subscription_id": SUB, "status": ["canceled", "dead"]}).wanted()
    assert wanted == DeliveryFilter(
        subscription_id=parse_id(SUBSCRIPTION, SUB), statuses=(Status.CANCELED, Status.DEAD)
    )
    wanted = read_input(ReplayCreate, {"tenant": "acme"}).wanted()
    assert wanted == DeliveryFilter(tenant="acme", statuses=(Status.DEAD,))


@pytest.mark.parametrize(
    "narrowing",
    [
        {"subscription_id": SUB},
        {"tenant": "acme"},
        {"event_type": "order.created"},
        {"created_after": "2026-01-31T12:00:00Z"},
        {"created_before": "2026-01-31T12:00:00Z"},
    ],
)
def test_one_thing_that_narrows_a_replay_is_enough_and_a_status_alone_is_not(narrowing: dict[str, str]) -> None:
    assert read_input(ReplayCreate, narrowing).status == (Status.DEAD,)
    with pytest.raises(InvalidInput) as raised:
        read_input(ReplayCreate, dict.fromkeys(narrowing) | {"status": ["dead"]})
    assert [problem.field for problem in raised.value.problems] == ["body"]


_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_names = sorted({name for model in MODELS for name in model.model_fields})


@given(st.sampled_from(MODELS), st.dictionaries(st.sampled_from(_names) | st.text(max_size=5), _anything) | _anything)
def test_whatever_comes_is_taken_or_refused_as_invalid(model: Any, data: Any) -> None:
    with suppress(InvalidInput):
        assert isinstance(read_input(model, data), model)
