"""Operational events: their types are valid and their own, and rows' keys leave as public ids."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from consumer_api.publishing import requested_event
from producer.events import NewEvent, as_event, filled
from schemas.errors import InvalidInput
from schemas.events import build_event
from schemas.fields import is_operational, type_fault
from schemas.ids import DELIVERY, SUBSCRIPTION, public_id
from schemas.operational import OPERATIONAL_SOURCE, OperationalType, public_data

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
REFUSED = "must not begin with the word hookhare: it is for its own events"


def test_types_are_valid_and_begin_with_the_word() -> None:
    assert [kind for kind in OperationalType if type_fault(kind) or not is_operational(kind)] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hookhare", True),
        ("hookhare.#", True),
        ("hookhare.test", True),
        ("hookhares.x", False),
        ("order.hookhare", False),
        ("#", False),
        ("*.x", False),
        ("", False),
    ],
)
def test_what_is_operational(text: str, expected: bool) -> None:
    assert is_operational(text) is expected


def test_keys_leave_as_public_ids_and_the_rest_as_it_is() -> None:
    key = UUID(int=7)
    stored: dict[str, Any] = {"subscription_id": str(key), "delivery_id": str(key), "reason": None, "attempts": 3}
    assert public_data(stored) == {
        "subscription_id": public_id(SUBSCRIPTION, key),
        "delivery_id": public_id(DELIVERY, key),
        "reason": None,
        "attempts": 3,
    }


def test_no_producer_may_use_the_word() -> None:
    for problem in (_of_api(), _of_publisher(), _of_anybody()):
        assert problem == ("type", REFUSED)


def test_hookhare_itself_may() -> None:
    event = build_event(
        type=OperationalType.DEAD, data=b"{}", external_id="1", source=OPERATIONAL_SOURCE, time=NOW, operational=True
    )
    assert event.type == "hookhare.delivery.dead"


def _of_api() -> tuple[str, str]:
    with pytest.raises(InvalidInput) as raised:
        requested_event(b'{"type": "hookhare.delivery.dead", "data": 1}', now=NOW, fresh_id="1")
    return _only(raised.value)


def _of_publisher() -> tuple[str, str]:
    event = filled(NewEvent("hookhare.x", {}), source="s", fresh_id="1", now_ms=1)
    with pytest.raises(InvalidInput) as raised:
        as_event(event, traceparent=None, max_bytes=100)
    return _only(raised.value)


def _of_anybody() -> tuple[str, str]:
    with pytest.raises(InvalidInput) as raised:
        build_event(type="hookhare", data=b"{}", external_id="1", source="s", time=NOW)
    return _only(raised.value)


def _only(error: InvalidInput) -> tuple[str, str]:
    (problem,) = error.problems
    return problem.field, problem.message
