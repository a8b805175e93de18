"""An event's headers in the request: beneath everything that the endpoint's own side sets."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dispatcher.core.request import Composed, Content, Recipe, compose
from schemas.event_headers import event_headers_fault
from schemas.headers import header_key
from schemas.signatures import format_secret, parse_secret

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
CONTENT = Content(type="a.b", time=NOW, data=b"1", source="s", external_id="1")
KEYS = ((parse_secret(format_secret(bytes(32))), None),)
NAMES = st.sampled_from(["X-Key", "x-key", "X-KEY", "X-Region", "x-region", "Accept", "accept", "X-Other"])
HEADERS = st.dictionaries(NAMES, st.sampled_from(["1", "2"]), max_size=4)


def composed(own: Mapping[str, str], events: Mapping[str, str] | None, **more: Any) -> Composed:
    return compose(Recipe(own, KEYS), replace(CONTENT, headers=events), webhook_id="evt_1", now=NOW, **more)


def test_they_are_sent() -> None:
    sent = composed({"X-Own": "1"}, {"X-Region": "eu"}).headers
    assert sent["X-Region"] == "eu"
    assert sent["X-Own"] == "1"


@pytest.mark.parametrize("name", ["X-Key", "x-key", "X-KEY", "X_Key"])
def test_the_subscriptions_own_win_in_any_form_of_the_name(name: str) -> None:
    sent = composed({"X-Key": "own"}, {name: "event's"}).headers
    assert {one: value for one, value in sent.items() if header_key(one) == "x-key"} == {"X-Key": "own"}


@given(HEADERS, HEADERS)
def test_whatever_they_are_nothing_of_the_endpoints_changes_and_no_name_is_there_twice(
    own: dict[str, str], events: dict[str, str]
) -> None:
    own = {name: value for name, value in own.items() if name == next(n for n in own if n.lower() == name.lower())}
    without = composed(own, None, traceparent="00-1")
    sent = composed(own, events, traceparent="00-1")
    assert {name: sent.headers[name] for name in without.headers} == without.headers
    assert (sent.body, sent.content_type) == (without.body, without.content_type)
    if event_headers_fault(events) is None:
        assert len({name.lower() for name in sent.headers}) == len(sent.headers)
        assert {name.lower() for name in events} <= {name.lower() for name in sent.headers}
