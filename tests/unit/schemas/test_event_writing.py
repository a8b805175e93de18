"""The round trip of our own messages, and the body of a webhook."""

import json
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InvalidInput
from schemas.event_headers import event_headers_fault
from schemas.events import (
    Event,
    build_event,
    event_message,
    read_event,
    validate_event_fields,
    webhook_body,
)
from schemas.fields import WORD
from schemas.messages import Message
from tests.unit.schemas.event_cases import (
    BIG_NUMBER,
    NOW,
    NOW_MS,
    TRACEPARENT,
)

TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters=""), min_size=1, max_size=100).filter(
    lambda text: not any(ord(letter) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(letter) <= 0xFDEF for letter in text)
)
DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
).map(lambda value: json.dumps(value).encode())
HEADERS = st.dictionaries(
    st.from_regex(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,20}", fullmatch=True),
    st.from_regex(r"([!-~]([ -~]{0,30}[!-~])?)?", fullmatch=True),
    max_size=4,
).filter(lambda headers: event_headers_fault(headers) is None)
EVENTS = st.builds(
    build_event,
    type=st.from_regex(rf"{WORD}(\.{WORD}){{0,5}}", fullmatch=True).filter(lambda text: len(text) <= 200),
    data=DATA,
    external_id=TEXT,
    source=TEXT,
    time=st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-14))])).filter(
        lambda at: at.year < 9999
    ),
    tenant=st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True),
    subject=st.none() | TEXT,
    accepted_ms=st.none() | st.integers(NOW_MS - 86_400_000, NOW_MS + 300_000),
    traceparent=st.sampled_from([None, TRACEPARENT, "junk"]),
    headers=st.none() | HEADERS,
)


class TestBuildAndMessage:
    @given(EVENTS)
    def test_our_own_messages_read_back_as_the_same_event(self, original: Event) -> None:
        message = event_message(original)
        assert read_event(message, now=NOW, fresh_id="fresh", max_bytes=1_000_000) == original

    def test_the_message_is_a_cloudevent_of_binary_mode(self) -> None:
        original = build_event(
            type="order.created",
            data=b'{"n": 1}',
            external_id="id-1",
            source="/shop",
            time=NOW,
            tenant="acme",
            subject="s",
            accepted_ms=NOW_MS,
            traceparent=TRACEPARENT,
            headers={"X-Region": 'e"u'},
        )
        assert event_message(original) == Message(
            body=b'{"n": 1}',
            headers={
                "cloudEvents_specversion": "1.0",
                "cloudEvents_id": "id-1",
                "cloudEvents_source": "/shop",
                "cloudEvents_type": "order.created",
                "cloudEvents_time": "2026-01-31T12:00:00+00:00",
                "cloudEvents_tenant": "acme",
                "cloudEvents_subject": "s",
                "hookhare-accepted-ms": NOW_MS,
                "traceparent": TRACEPARENT,
                "cloudEvents_hookhareheaders": '{"X-Region":"e\\"u"}',
            },
            content_type="application/json",
            type="order.created",
        )

    def test_every_fault_is_named_at_once(self) -> None:
        with pytest.raises(InvalidInput) as caught:
            build_event(
                type="",
                data=b"x",
                external_id="",
                source="",
                tenant="",
                subject="",
                time=NOW.replace(tzinfo=None),
                headers={"Host": "x"},
            )
        names = [problem.field for problem in caught.value.problems]
        assert names == ["tenant", "type", "source", "id", "subject", "time", "data", "headers"]

    def test_the_fields_alone(self) -> None:
        validate_event_fields(tenant="a", type="b", source="c", id="d", subject=None)
        with pytest.raises(InvalidInput, match=r"^type: must be words"):
            validate_event_fields(tenant="a", type="b..c", source="c", id="d", subject=None)

    def test_a_time_that_its_zone_moves_out_of_the_calendar(self) -> None:
        with pytest.raises(InvalidInput, match=r"^time: "):
            build_event(
                type="a",
                data=b"1",
                external_id="1",
                source="s",
                time=datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))),
            )

    def test_a_malformed_traceparent_is_left_out(self) -> None:
        made = build_event(type="a", data=b"1", external_id="1", source="s", time=NOW, traceparent="junk")
        assert made.traceparent is None


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    timestamp: datetime
    data: msgspec.Raw


class TestWebhookBody:
    @given(EVENTS)
    def test_data_is_there_byte_for_byte(self, one: Event) -> None:
        body = webhook_body(type=one.type, time=one.time, data=one.data)
        read_back = msgspec.json.decode(body, type=_Body)
        assert bytes(read_back.data) == one.data
        assert (read_back.type, read_back.timestamp) == (one.type, one.time)

    def test_its_form(self) -> None:
        there = timezone(timedelta(hours=2))
        body = webhook_body(type="a.b", time=NOW.replace(microsecond=5).astimezone(there), data=BIG_NUMBER)
        assert body == b'{"type":"a.b","timestamp":"2026-01-31T12:00:00.000005Z","data":12345678901234567890123}'
