"""What the publisher makes of what it is given, before anything is sent."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from producer.events import FailedEvent, NewEvent, NotAllPublished, PublishedEvent, RawJSON, as_event, filled, published
from schemas.errors import InvalidInput, PublishTimeout
from schemas.events import UNKNOWN_SOURCE, Event, event_message, read_event
from schemas.ids import EVENT, event_key, public_id

NOW_MS = 1_750_000_000_000
NOW = datetime.fromtimestamp(NOW_MS / 1000, UTC)
LIMIT_BYTES = 262_144


def complete(event: NewEvent, source: str | None = "shop") -> NewEvent:
    return filled(event, source=source, fresh_id="fresh", now_ms=NOW_MS)


def travelling(event: NewEvent) -> Event:
    return as_event(complete(event), traceparent=None, max_bytes=LIMIT_BYTES)


def test_what_is_left_out_is_filled() -> None:
    event = complete(NewEvent("order.created", {}))
    assert (event.id, event.source, event.time, event.accepted_ms) == ("fresh", "shop", NOW, NOW_MS)


def test_what_is_given_is_kept() -> None:
    given = NewEvent("order.created", {}, id="7", source="till", time=datetime(2024, 1, 1, tzinfo=UTC), accepted_ms=5)
    assert complete(given) == given


def test_a_filled_event_stays_the_same_event_when_it_is_published_again() -> None:
    first = complete(NewEvent("order.created", {}))
    again = filled(first, source="another", fresh_id="another", now_ms=NOW_MS + 60_000)
    assert again == first
    assert published(again) == published(first)


def test_an_own_id_needs_a_source() -> None:
    with pytest.raises(InvalidInput, match="source: is required with an id of your own"):
        complete(NewEvent("order.created", {}, id="1"), source=None)
    assert complete(NewEvent("order.created", {}), source=None).source == UNKNOWN_SOURCE


def test_the_public_id_is_the_one_that_the_dispatcher_computes() -> None:
    event = complete(NewEvent("order.created", {}, tenant="acme", id="4711"))
    message = event_message(as_event(event, traceparent=None, max_bytes=LIMIT_BYTES))
    admitted = read_event(message, now=NOW, fresh_id="unused", max_bytes=LIMIT_BYTES)
    assert isinstance(admitted, Event)
    assert admitted.accepted_ms is not None
    key = event_key(admitted.accepted_ms, admitted.tenant, admitted.source, admitted.external_id)
    assert published(event) == PublishedEvent(public_id(EVENT, key), "4711")


@pytest.mark.parametrize(
    "text", [b"1.10", b"12345678901234567890123", b'{ "b" : 1,\n"a":2 }', b'"\\u00e9\xc3\xa9"', b"null", b"[]"]
)
def test_raw_json_is_taken_byte_for_byte(text: bytes) -> None:
    assert travelling(NewEvent("a.b", RawJSON(text))).data == text


def test_python_data_becomes_json() -> None:
    data = {"name": "Zoë", "at": NOW, "none": None, "list": (1, 2.5)}
    expected = '{"name":"Zoë","at":"2025-06-15T15:06:40+00:00","none":null,"list":[1,2.5]}'
    assert travelling(NewEvent("a.b", data)).data == expected.encode()


@pytest.mark.parametrize(
    ("field", "event"),
    [
        ("data", NewEvent("a.b", {1, 2})),
        ("data", NewEvent("a.b", Decimal("1.10"))),
        ("data", NewEvent("a.b", 2**70)),
        ("data", NewEvent("a.b", "\ud800")),
        ("data", NewEvent("a.b", RawJSON(b"{"))),
        ("data", NewEvent("a.b", RawJSON(b"NaN"))),
        ("data", NewEvent("a.b", RawJSON(b'"\xff"'))),
        ("data", NewEvent("a.b", RawJSON("{}"))),  # type: ignore[arg-type]
        ("data", NewEvent("a.b", "x" * LIMIT_BYTES)),
        ("type", NewEvent("", {})),
        ("type", NewEvent("a..b", {})),
        ("type", NewEvent(None, {})),  # type: ignore[arg-type]
        ("tenant", NewEvent("a.b", {}, tenant="a b")),
        ("tenant", NewEvent("a.b", {}, tenant=None)),  # type: ignore[arg-type]
        ("id", NewEvent("a.b", {}, id="")),
        ("id", NewEvent("a.b", {}, id=4711)),  # type: ignore[arg-type]
        ("source", NewEvent("a.b", {}, source="\x00")),
        ("subject", NewEvent("a.b", {}, subject="")),
        ("time", NewEvent("a.b", {}, time=datetime(2024, 1, 1))),  # noqa: DTZ001  naive on purpose
        ("time", NewEvent("a.b", {}, time="2024-01-01")),  # type: ignore[arg-type]
    ],
)
def test_bad_input_names_its_field(field: str, event: NewEvent) -> None:
    with pytest.raises(InvalidInput) as caught:
        travelling(event)
    assert [problem.field for problem in caught.value.problems] == [field]


def test_the_size_limit_is_exact() -> None:
    text = b'"' + b"x" * (LIMIT_BYTES - 2) + b'"'
    assert len(travelling(NewEvent("a.b", RawJSON(text))).data) == LIMIT_BYTES
    with pytest.raises(InvalidInput, match=f"at most {LIMIT_BYTES} bytes of JSON, and has {LIMIT_BYTES + 1}"):
        travelling(NewEvent("a.b", RawJSON(text + b" ")))


def test_not_all_published_tells_which() -> None:
    failed = FailedEvent(complete(NewEvent("a.b", {})), PublishTimeout("no confirm within 10 s"))
    done: Any = PublishedEvent("evt_1", "1")
    error = NotAllPublished([done, failed, done])
    assert error.published == (done, done)
    assert error.failed == (failed,)
    assert str(error) == "1 of 3 events were not published; the first: PublishTimeout: no confirm within 10 s"


@pytest.mark.parametrize("headers", [[], "X-A: 1", {"X-A": 1}, {1: "a"}, {"X-A": None}, {"Host": "x"}, {"X-A": "a\nb"}])
def test_headers_that_no_request_may_have_are_refused(headers: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^headers: must "):
        travelling(NewEvent("order.created", {}, headers=headers))


def test_headers_travel_as_they_are_given() -> None:
    given = {"X-Region": "eu"}
    event = travelling(NewEvent("order.created", {}, headers=given))
    assert event.headers == given
    assert travelling(NewEvent("order.created", {}, headers={})).headers is None


def test_the_version_of_a_schema_travels_as_it_is_named() -> None:
    named = NewEvent(
        "order.created", {}, dataschema="https://hooks.example.com/v1/event-types/order.created/versions/2"
    )
    assert travelling(named).schema_version == 2
    assert travelling(NewEvent("order.created", {}, dataschema="urn:of:ours")).schema_version is None
    with pytest.raises(InvalidInput, match=r"^dataschema: must be text"):
        travelling(NewEvent("order.created", {}, dataschema=2))  # type: ignore[arg-type]
