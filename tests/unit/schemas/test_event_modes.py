"""Reading events: every mode of CloudEvents, and plain JSON, by tables."""

from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from schemas.event_envelopes import CLOUDEVENTS_JSON
from schemas.events import Event, Unreadable
from schemas.messages import HeaderValue
from tests.unit.schemas.event_cases import (
    BIG_NUMBER,
    BINARY,
    NOW,
    PLAIN,
    STRUCTURED,
    TRACEPARENT,
    event,
    read,
    unreadable,
)


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
