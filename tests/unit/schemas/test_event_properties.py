"""Reading events: what AMQP's properties and our own headers add, the size, and the digest."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from schemas.event_envelopes import CLOUDEVENTS_JSON
from schemas.events import ACCEPTED_MS_HEADER, ID_HEADER, Event, Unreadable, build_event, read_event
from schemas.messages import HeaderValue, Message
from tests.unit.schemas.event_cases import (
    BIG_NUMBER,
    BINARY,
    NOW,
    NOW_MS,
    PLAIN,
    STRUCTURED,
    TRACEPARENT,
    event,
    unreadable,
)


class TestAmqpProperties:
    def test_they_fill_what_is_missing(self) -> None:
        read_one = event(
            b'{"n":' + BIG_NUMBER + b"}\n",
            type="order.created",
            message_id="m-1",
            timestamp=NOW - timedelta(days=1),
            app_id="billing",
        )
        assert (read_one.type, read_one.external_id, read_one.time, read_one.source) == (
            *("order.created", "m-1"),
            NOW - timedelta(days=1),
            "billing",
        )
        assert read_one.data == b'{"n":' + BIG_NUMBER + b"}\n"

    @pytest.mark.parametrize("body", [{**PLAIN, **STRUCTURED, "time": "2026-01-31T11:00:00Z"}])
    def test_they_do_not_override(self, body: dict[str, Any]) -> None:
        filled = {"message_id": "m", "type": "other", "timestamp": NOW - timedelta(days=1), "app_id": "a"}
        inside = event(body, **filled)
        binary = event(headers={**BINARY, "cloudEvents:time": "2026-01-31T11:00:00Z"}, **filled)
        for read_one in (inside, binary):
            assert (read_one.type, read_one.external_id, read_one.time, read_one.source) == (
                *("order.created", "id-1"),
                NOW - timedelta(hours=1),
                "/shop",
            )

    @pytest.mark.parametrize(
        "body",
        [
            b'{"n":1}',
            b'{"data":1,"extra":2}',  # has a member that no envelope has
            b'{"type":"other","id":"x"}',  # has no data
            b'{"specversion":"1.0","type":"other"}',
            b'{"type":"other","data":1,"extra":2}',
            b"[1]",
            b"1",
            b"null",
            b'"text"',
            b"  {}  ",
        ],
    )
    def test_with_a_type_the_body_is_the_data(self, body: bytes) -> None:
        read_one = event(body, type="order.created")
        assert (read_one.type, read_one.data) == ("order.created", body)

    @pytest.mark.parametrize(
        ("body", "kind", "data"),
        [
            (b'{"data":{"n":1}}', "order.created", b'{"n":1}'),
            (b'{"type":"other","data":1}', "other", b"1"),
            (b'{"type":null,"data":1}', "order.created", b"1"),
            (b'{"specversion":"1.0","type":"other","id":"x","data":1}', "other", b"1"),
        ],
    )
    def test_with_a_type_an_envelope_is_one_still(self, body: bytes, kind: str, data: bytes) -> None:
        read_one = event(body, type="order.created")
        assert (read_one.type, read_one.data) == (kind, data)

    def test_an_envelope_of_another_version_is_not_guessed_at(self) -> None:
        assert unreadable(b'{"specversion":"0.3","type":"a","data":1}', type="b").field == "specversion"

    def test_empty_ones_are_missing(self) -> None:
        """Some clients send what they were not given as an empty text."""
        read_one = event(PLAIN, type="", message_id="", app_id="")
        assert (read_one.type, read_one.external_id, read_one.source) == ("order.created", "fresh", "unknown")

    @pytest.mark.parametrize(
        ("properties", "field"),
        [
            ({"type": "not a type"}, "AMQP type"),
            ({"type": "a", "message_id": "x" * 513}, "AMQP message_id"),
            ({"type": "a", "app_id": "a\x00"}, "AMQP app_id"),
            ({"type": "a", "timestamp": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))}, "AMQP timestamp"),
        ],
    )
    def test_bad_ones_are_named(self, properties: dict[str, Any], field: str) -> None:
        assert unreadable(b"{}", **properties).field == field

    def test_times_are_in_utc(self) -> None:
        there = timezone(timedelta(hours=2))
        assert event(type="a", timestamp=NOW.astimezone(there)).time.tzinfo is UTC
        assert event(type="a", timestamp=NOW.replace(tzinfo=None)).time == NOW


class TestSize:
    def test_the_bound_is_on_the_body_and_exact(self) -> None:
        message = Message(body=b'"' + b"x" * 98 + b'"', type="a")
        assert isinstance(read_event(message, now=NOW, fresh_id="f", max_bytes=100), Event)
        assert read_event(message, now=NOW, fresh_id="f", max_bytes=99) == Unreadable(
            "body", "must be at most 99 bytes, and has 100"
        )


class TestOurHeaders:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (NOW_MS, NOW_MS),
            (NOW_MS - 86_400_000, NOW_MS - 86_400_000),
            (NOW_MS - 86_400_001, None),
            (NOW_MS + 300_000, NOW_MS + 300_000),
            (NOW_MS + 300_001, None),
            (0, None),
            (-1, None),
            (10**400, None),
            (True, None),
            (str(NOW_MS), None),
            (b"1", None),
            (None, None),
        ],
    )
    def test_accepted_ms_is_believed_only_near_now(self, value: HeaderValue, expected: int | None) -> None:
        assert event(headers={ACCEPTED_MS_HEADER: value}, type="a").accepted_ms == expected

    @pytest.mark.parametrize(
        ("headers", "expected"),
        [
            ({"traceparent": TRACEPARENT}, TRACEPARENT),
            ({"traceparent": TRACEPARENT.encode()}, TRACEPARENT),
            ({"traceparent": TRACEPARENT.upper()}, None),
            ({"traceparent": "junk"}, None),
            ({"traceparent": b"\xff"}, None),
            ({"traceparent": 1}, None),
            ({"traceparent": None}, None),
            ({**BINARY, "cloudEvents:traceparent": TRACEPARENT}, TRACEPARENT),
            ({**BINARY, "cloudEvents:traceparent": TRACEPARENT, "traceparent": "junk"}, TRACEPARENT),
        ],
    )
    def test_traceparent_is_kept_only_in_its_form(self, headers: dict[str, HeaderValue], expected: str | None) -> None:
        assert event(headers=headers, type="a").traceparent == expected

    @pytest.mark.parametrize(("header", "said", "known"), [("h", None, "h"), ("h", "said", "said"), (7, None, "m-1")])
    def test_the_id_of_what_is_published_again_is_its_own_and_not_the_message_id(
        self, header: HeaderValue, said: str | None, known: str
    ) -> None:
        body = PLAIN if said is None else b'{"type":"a","data":1,"id":"%b"}' % said.encode()
        assert event(body, message_id="m-1", headers={ID_HEADER: header}).external_id == known


class TestDigest:
    """It tells a repeat from a conflict: what the event says is in it, when and how it was sent is not."""

    BASE = build_event(type="a", data=b"{}", external_id="1", source="s", time=NOW, subject="x")

    @pytest.mark.parametrize(
        "changes",
        [{"type": "b"}, {"data": b"{ }"}, {"data": b"1"}, {"subject": "y"}, {"subject": None}],
    )
    def test_another_content(self, changes: dict[str, Any]) -> None:
        fields: dict[str, Any] = {"type": "a", "data": b"{}", "subject": "x"} | changes
        assert build_event(**fields, external_id="1", source="s", time=NOW).digest != self.BASE.digest

    def test_the_same_content(self) -> None:
        again = build_event(
            type="a",
            data=b"{}",
            external_id="1",
            source="s",
            time=NOW + timedelta(seconds=5),
            subject="x",
            accepted_ms=NOW_MS,
            traceparent=TRACEPARENT,
            headers={"X-Request": "2"},
        )
        assert again.digest == self.BASE.digest

    def test_the_same_in_every_mode(self) -> None:
        digests = {
            event(b'{"n":1}', {**BINARY}).digest,
            event({**STRUCTURED, "data": 0} | {}, content_type=CLOUDEVENTS_JSON).digest,
            event(b'{"type":"order.created","data":{"n":1}}').digest,
            event(b'{"n":1}', type="order.created").digest,
        }
        assert len(digests) == 2  # one for {"n":1}, one for 0

    def test_parts_do_not_run_into_each_other(self) -> None:
        one = build_event(type="a", data=b"1", external_id="1", source="s", time=NOW, subject="2")
        other = build_event(type="a", data=b"21", external_id="1", source="s", time=NOW)
        assert one.digest != other.digest
