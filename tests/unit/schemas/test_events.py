"""Reading events: every mode by tables, the round trip of our own messages, and the body of a webhook."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InvalidInput
from schemas.events import (
    ACCEPTED_MS_HEADER,
    CLOUDEVENTS_JSON,
    Event,
    Unreadable,
    build_event,
    event_message,
    read_event,
    validate_event_fields,
    webhook_body,
)
from schemas.fields import WORD
from schemas.messages import HeaderValue, Message

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BIG_NUMBER = b"12345678901234567890123"
BINARY: dict[str, HeaderValue] = {
    "cloudEvents:specversion": "1.0",
    "cloudEvents:id": "id-1",
    "cloudEvents:source": "/shop",
    "cloudEvents:type": "order.created",
}
STRUCTURED: dict[str, Any] = {"specversion": "1.0", "id": "id-1", "source": "/shop", "type": "order.created"}
PLAIN: dict[str, Any] = {"type": "order.created", "data": {"n": 1}}


def read(
    body: bytes | Mapping[str, object] = b"{}", headers: Mapping[str, HeaderValue] | None = None, **properties: Any
) -> Event | Unreadable:
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    message = Message(body=encoded, headers=headers or {}, **properties)
    return read_event(message, now=NOW, fresh_id="fresh", max_bytes=1_000_000)


def event(*args: Any, **kwargs: Any) -> Event:
    outcome = read(*args, **kwargs)
    assert isinstance(outcome, Event), outcome
    return outcome


def unreadable(*args: Any, **kwargs: Any) -> Unreadable:
    outcome = read(*args, **kwargs)
    assert isinstance(outcome, Unreadable), outcome
    return outcome


class TestBinaryMode:
    @pytest.mark.parametrize("prefix", ["cloudEvents:", "cloudEvents_"])
    def test_all_attributes(self, prefix: str) -> None:
        attributes = {
            "specversion": "1.0",
            "id": "id-1",
            "source": "/shop",
            "type": "order.created",
            "time": "2026-01-31T13:00:00.25+01:00",
            "subject": "order 1",
            "tenant": "acme",
            "dataschema": "https://example.com/schema",
            "colour": "red",  # an extension that is not ours to know
        }
        read_one = event(b' {"n" :1.10} ', {prefix + name: value for name, value in attributes.items()})
        assert read_one == replace(
            read_one,
            tenant="acme",
            source="/shop",
            external_id="id-1",
            type="order.created",
            time=datetime(2026, 1, 31, 12, 0, 0, 250_000, tzinfo=UTC),
            subject="order 1",
            data=b' {"n" :1.10} ',
            accepted_ms=None,
            traceparent=None,
        )

    def test_the_spec_s_own_prefix_wins(self) -> None:
        assert event(headers={"cloudEvents_type": "other", **BINARY}).type == "order.created"

    def test_defaults(self) -> None:
        least = event(headers={"cloudEvents:specversion": "1.0", "cloudEvents:type": "a"})
        assert (least.tenant, least.source, least.external_id, least.time) == ("default", "unknown", "fresh", NOW)
        assert least.subject is None

    @pytest.mark.parametrize(
        ("value", "text"),
        [(b"abc", "abc"), (7, "7"), (-7, "-7"), (True, "true"), (False, "false"), (None, "fresh"), ("é", "é")],
    )
    def test_values_of_other_types_are_their_canonical_text(self, value: HeaderValue, text: str) -> None:
        assert event(headers={**BINARY, "cloudEvents:id": value}).external_id == text

    @pytest.mark.parametrize("value", [b"\xff", 1 << 64, b"x" * 8193, b"a\x00b", "", "a\x00", "\ud800", "x" * 513])
    def test_values_that_no_text_field_can_hold(self, value: HeaderValue) -> None:
        assert unreadable(headers={**BINARY, "cloudEvents:id": value}).field == "id"

    @pytest.mark.parametrize("version", ["0.3", "1", "1.0 ", "2.0", b"1.1", 1, None])
    def test_other_versions(self, version: HeaderValue) -> None:
        assert unreadable(headers={**BINARY, "cloudEvents:specversion": version}) == Unreadable(
            "specversion", 'must be "1.0"'
        )

    def test_no_version(self) -> None:
        assert unreadable(headers={"cloudEvents:type": "a"}).field == "specversion"

    @pytest.mark.parametrize(
        "media_type", ["application/json", "text/json; charset=utf-8", "application/vnd.a.b+json", ""]
    )
    def test_json_media_types(self, media_type: str) -> None:
        assert isinstance(read(headers=BINARY, content_type=media_type), Event)
        assert isinstance(read(headers={**BINARY, "cloudEvents:datacontenttype": media_type or None}), Event)

    @pytest.mark.parametrize(
        "media_type", ["text/plain", "application/xml", "application/jsonp", "application/json-seq", "json"]
    )
    def test_other_media_types(self, media_type: str) -> None:
        assert unreadable(headers=BINARY, content_type=media_type).field == "content_type"
        assert unreadable(headers={**BINARY, "cloudEvents:datacontenttype": media_type}).field == "datacontenttype"

    def test_no_data_is_null(self) -> None:
        assert event(b"", BINARY).data == b"null"

    @pytest.mark.parametrize("body", [b"{", b"nope", b"\xff", b"\xef\xbb\xbf{}", b"NaN", b" ", b'"\\ud800"'])
    def test_data_that_is_no_json(self, body: bytes) -> None:
        assert unreadable(body, BINARY).field == "data"


class TestStructuredMode:
    @pytest.mark.parametrize("content_type", [None, CLOUDEVENTS_JSON, "Application/CloudEvents+JSON; charset=UTF-8"])
    def test_all_attributes(self, content_type: str | None) -> None:
        body = (
            b'{"specversion":"1.0","id":"id-1","source":"/shop","type":"order.created","time":"2026-01-31T11:00:00Z",'
            b'"subject":"caf\\u00e9","tenant":"acme","colour":"red","datacontenttype":"application/json",'
            b'"traceparent":"' + TRACEPARENT.encode() + b'", "data" : {"n": ' + BIG_NUMBER + b"} }"
        )
        read_one = event(body, content_type=content_type)
        assert read_one == replace(
            read_one,
            tenant="acme",
            source="/shop",
            external_id="id-1",
            type="order.created",
            time=NOW - timedelta(hours=1),
            subject="café",
            data=b'{"n": ' + BIG_NUMBER + b"}",
            traceparent=TRACEPARENT,
        )

    def test_null_means_unset(self) -> None:
        body = {
            **STRUCTURED,
            "subject": None,
            "time": None,
            "tenant": None,
            "datacontenttype": None,
            "data_base64": None,
        }
        read_one = event(body)
        assert (read_one.subject, read_one.time, read_one.tenant) == (None, NOW, "default")

    def test_absent_data_is_null_and_null_is_null(self) -> None:
        assert event(STRUCTURED).data == b"null"
        assert event({**STRUCTURED, "data": None}).data == b"null"

    def test_an_integer_is_its_digits(self) -> None:
        assert event({**STRUCTURED, "id": 42}).external_id == "42"

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"specversion": "0.3"}, "specversion"),
            ({"specversion": 1.0}, "specversion"),
            ({"specversion": None}, "specversion"),
            ({"type": 5.5}, "type"),
            ({"type": "not a type"}, "type"),
            ({"type": ""}, "type"),
            ({"id": ""}, "id"),
            ({"id": True}, "id"),
            ({"id": 10**20}, "id"),
            ({"id": "x" * 9000}, "id"),
            ({"source": ["x"]}, "source"),
            ({"source": "a\u0000b"}, "source"),
            ({"subject": ""}, "subject"),
            ({"subject": "\n"}, "subject"),
            ({"time": "yesterday"}, "time"),
            ({"time": 1769860800}, "time"),
            ({"time": "2026-01-31T12:00:00"}, "time"),
            ({"tenant": "a b"}, "tenant"),
            ({"data_base64": "aGk="}, "data_base64"),
            ({"data": "<a/>", "datacontenttype": "application/xml"}, "datacontenttype"),
        ],
    )
    def test_bad_attributes_are_named(self, changes: dict[str, object], field: str) -> None:
        assert unreadable({**STRUCTURED, **changes}, content_type=CLOUDEVENTS_JSON).field == field

    @pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"x"'])
    def test_what_is_no_object(self, body: bytes) -> None:
        assert unreadable(body, content_type=CLOUDEVENTS_JSON) == Unreadable("body", "must be a JSON object")

    def test_no_version(self) -> None:
        assert unreadable(PLAIN, content_type=CLOUDEVENTS_JSON).field == "specversion"

    @pytest.mark.parametrize("content_type", ["application/cloudevents+avro", "application/cloudevents-batch+json"])
    def test_other_formats(self, content_type: str) -> None:
        assert unreadable(STRUCTURED, content_type=content_type).field == "content_type"

    def test_the_content_type_decides_over_headers(self) -> None:
        """The AMQP binding lets a structured message carry the binary mode's headers as well."""
        assert event({**STRUCTURED, "id": "inside"}, BINARY, content_type=CLOUDEVENTS_JSON).external_id == "inside"


class TestPlainJson:
    def test_type_and_data(self) -> None:
        read_one = event(b'{"type":"order.created", "data": [1.10,2] }')
        assert (read_one.type, read_one.data) == ("order.created", b"[1.10,2]")
        assert (read_one.tenant, read_one.source, read_one.external_id, read_one.time) == (
            *("default", "unknown", "fresh"),
            NOW,
        )

    def test_the_other_members_of_an_envelope(self) -> None:
        read_one = event(
            {**PLAIN, "id": 5, "source": "shop", "time": "2026-01-31T11:00:00Z", "subject": "s", "tenant": "t"}
        )
        assert (read_one.external_id, read_one.source, read_one.time, read_one.subject, read_one.tenant) == (
            *("5", "shop", NOW - timedelta(hours=1)),
            *("s", "t"),
        )

    @pytest.mark.parametrize(
        "content_type", [None, "application/json", "text/plain", "application/octet-stream", "\x00"]
    )
    def test_clients_that_name_any_content_type(self, content_type: str | None) -> None:
        assert isinstance(read(PLAIN, content_type=content_type), Event)

    def test_null_data_is_data(self) -> None:
        assert event({"type": "a", "data": None}).data == b"null"

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            (b"", "body"),
            (b"hello", "body"),
            (b'{"type":"a","data":{}', "body"),
            (b'{"type":"a","data":NaN}', "body"),
            (b'\xef\xbb\xbf{"type":"a","data":{}}', "body"),
            (b'{"type":"a","data":"\xff"}', "body"),
            (b'{"type":"a","data":"\\ud800"}', "body"),
            (b'{"type":"a","data":' + b"[" * 200 + b"]" * 200 + b"}", "body"),
            (b"{}", "type"),
            (b'{"data":{}}', "type"),
            (b'{"type":null,"data":{}}', "type"),
            (b'"type"', "type"),
            (b'[{"type":"a","data":1}]', "type"),
            (b"null", "type"),
            (b'{"type":"a"}', "data"),
            (b'{"type":"a","data":1,"extra":2}', "body"),
            (b'{"type":"a","data":1,"\\u0000":2}', "body"),
            (b'{"type":"a","data":1,"data_base64":"eA=="}', "data_base64"),
            (b'{"type":"a","data":1,"datacontenttype":"text/plain"}', "datacontenttype"),
        ],
    )
    def test_bad(self, body: bytes, field: str) -> None:
        assert unreadable(body).field == field

    def test_of_doubled_members_the_last_counts(self) -> None:
        read_one = event(b'{"type":"a","type":"b","data":1,"data":2}')
        assert (read_one.type, read_one.data) == ("b", b"2")


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


TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters=""), min_size=1, max_size=100).filter(
    lambda text: not any(ord(letter) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(letter) <= 0xFDEF for letter in text)
)
DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
).map(lambda value: json.dumps(value).encode())
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
            },
            content_type="application/json",
            type="order.created",
        )

    def test_every_fault_is_named_at_once(self) -> None:
        with pytest.raises(InvalidInput) as caught:
            build_event(
                type="", data=b"x", external_id="", source="", tenant="", subject="", time=NOW.replace(tzinfo=None)
            )
        names = [problem.field for problem in caught.value.problems]
        assert names == ["tenant", "type", "source", "id", "subject", "time", "data"]

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
