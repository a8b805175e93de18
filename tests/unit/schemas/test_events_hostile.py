"""Whatever arrives on the queue, reading it gives an event that can be stored and sent, or a reason that can be."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from hypothesis import event as note
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from schemas.events import Event, Unreadable, read_event, webhook_body
from schemas.messages import HeaderValue, Message

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
MAX_BYTES = 50_000
BOUNDS = {"tenant": 64, "source": 512, "external_id": 512, "type": 200, "subject": 1024, "traceparent": 55}

ANY_TEXT = st.text(st.characters(codec=None), max_size=50) | st.text(max_size=5).map(lambda text: text * 500)
ATTRIBUTES = ["specversion", "id", "source", "type", "time", "subject", "tenant", "traceparent", "datacontenttype", "x"]
GOOD = st.sampled_from(["1.0", "a.b", "2026-01-31T12:00:00Z", "application/json", "0001-01-01T00:00:00+14:00", "\x00"])
VALUES: st.SearchStrategy[HeaderValue] = st.one_of(
    GOOD, ANY_TEXT, st.binary(max_size=50), st.integers(), st.booleans(), st.none(), st.just(10**5000)
)
HEADERS = st.dictionaries(
    st.builds("{}{}".format, st.sampled_from(["cloudEvents:", "cloudEvents_", ""]), st.sampled_from(ATTRIBUTES))
    | st.sampled_from(["hookhare-accepted-ms", "traceparent", "cloudEvents:"])
    | ANY_TEXT,
    VALUES,
    max_size=8,
) | st.fixed_dictionaries(
    {"cloudEvents:specversion": st.just("1.0"), "cloudEvents:type": st.just("a")},
    optional={f"cloudEvents:{name}": VALUES for name in ATTRIBUTES[1:] if name != "type"},
)
PARTS = st.sampled_from(
    [
        *(b"{", b"}", b"[", b"]", b",", b":", b'"type"', b'"data"', b'"a"', b'"specversion"', b'"1.0"', b"1", b"1e999"),
        *(b"NaN", b"null", b"\xff", b"\x00", b"\xef\xbb\xbf", b'"\\ud800"', b'"\\u0000"', b"[" * 3000, b"]" * 3000),
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | GOOD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=5,
)
ENVELOPES = st.dictionaries(st.sampled_from([*ATTRIBUTES, "data", "data_base64"]) | ANY_TEXT, JSON, max_size=8)
BODIES = st.one_of(
    st.binary(max_size=200),
    st.lists(PARTS, max_size=12).map(b"".join),
    ENVELOPES.map(lambda value: json.dumps(value).encode()),
    ENVELOPES.map(
        lambda value: json.dumps({"type": "a", "data": 1} | value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ),
    st.just(b'"' + b"x" * MAX_BYTES + b'"'),
)
ZONES = st.sampled_from([None, UTC, timezone(timedelta(hours=14)), timezone(timedelta(hours=-14))])
HOSTILE = st.builds(
    Message,
    body=BODIES,
    headers=HEADERS,
    content_type=st.none() | ANY_TEXT | st.sampled_from(["application/json", "application/cloudevents+json", "text/x"]),
    message_id=st.none() | ANY_TEXT,
    type=st.none() | ANY_TEXT | st.just("a.b"),
    timestamp=st.none() | st.datetimes(timezones=ZONES),
    app_id=st.none() | ANY_TEXT,
)


@st.composite
def nearly_sound(draw: st.DrawFn) -> Message:
    """A sound message of some mode with at most one thing in it that may be anything."""
    data = draw(st.sampled_from([b"1", b'{"n":1.10}', b'{"data":[]}', b'"\\u0000"', b"12345678901234567890123"]))
    envelope: dict[str, object] = {"specversion": "1.0", "type": "a.b", "id": "1", "data": 1}
    headers: dict[str, HeaderValue] = {"hookhare-accepted-ms": int(NOW.timestamp() * 1000), "traceparent": "junk"}
    name = draw(st.sampled_from(ATTRIBUTES))
    match draw(st.sampled_from(["binary", "structured", "typed", "plain"])):
        case "binary":
            headers |= {
                "cloudEvents:specversion": "1.0",
                "cloudEvents:type": "a.b",
                f"cloudEvents:{name}": draw(VALUES),
            }
            return Message(body=data, headers=headers)
        case "structured":
            body = json.dumps(envelope | {name: draw(JSON)}).encode()
            return Message(body=body, headers=headers, content_type="application/cloudevents+json")
        case "typed":
            changed: dict[str, Any] = {
                draw(st.sampled_from(["type", "message_id", "app_id", "content_type"])): draw(ANY_TEXT)
            }
            return replace(Message(body=data, headers=headers, type="a.b"), **changed)
        case _:
            timestamp = draw(st.datetimes(timezones=ZONES))
            return Message(body=b'{"type":"a.b","data":' + data + b"}", headers=headers, timestamp=timestamp)


MESSAGES = HOSTILE | nearly_sound()


def check_storable(text: str, most: int) -> None:
    """PostgreSQL's text holds no NUL, and asyncpg cannot encode a lone surrogate."""
    assert "\x00" not in text
    assert len(text.encode("utf-8", errors="strict")) <= most


@settings(max_examples=1000)
@given(MESSAGES)
def test_any_message_is_a_storable_event_or_a_storable_reason(message: Message) -> None:
    outcome = read_event(message, now=NOW, fresh_id="fresh", max_bytes=MAX_BYTES)
    note(type(outcome).__name__)
    match outcome:
        case Unreadable():
            assert outcome.field
            assert outcome.message
            check_storable(outcome.field, 50)
            check_storable(outcome.message, 300)
        case Event():
            for name, most in BOUNDS.items():
                text = getattr(outcome, name)
                if text is not None:
                    assert text
                    check_storable(text, most)
            assert outcome.time.tzinfo is UTC
            assert len(outcome.digest) == 32
            assert outcome.accepted_ms is None or 0 < outcome.accepted_ms < 1 << 48
            assert outcome.data in message.body or outcome.data == b"null"
            json.loads(webhook_body(type=outcome.type, time=outcome.time, data=outcome.data), parse_int=str)


@given(MESSAGES)
def test_reading_again_says_the_same(message: Message) -> None:
    """A redelivered message must come to the same key and digest, or its event would be admitted twice."""
    first = read_event(message, now=NOW, fresh_id="fresh", max_bytes=MAX_BYTES)
    again = read_event(message, now=NOW + timedelta(seconds=30), fresh_id="fresh", max_bytes=MAX_BYTES)
    match first, again:
        case Event(), Event():
            assert (first.tenant, first.source, first.external_id) == (again.tenant, again.source, again.external_id)
            assert first.digest == again.digest
        case _:
            assert first == again
