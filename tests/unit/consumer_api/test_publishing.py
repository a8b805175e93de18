"""From the body of `POST /v1/events` to an event."""

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_api.publishing import EventCreate, requested_event
from schemas.errors import InvalidInput
from schemas.events import Event, event_message, read_event
from schemas.inputs import read_input

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def _event(body: bytes) -> Event:
    return requested_event(body, now=NOW, fresh_id="fresh")


def _faults(body: bytes) -> dict[str, str]:
    with pytest.raises(InvalidInput) as raised:
        _event(body)
    return {problem.field: problem.message for problem in raised.value.problems}


@pytest.mark.parametrize(
    "data",
    [
        b"12345678901234567890123",
        b"1.10",
        b"1e400",
        b"-0",
        b"null",
        b"false",
        b'""',
        b'{"b":1, "a":2,"b":3}',
        b'"\\u0000\\/\xc3\xa9"',
        b"[ ]",
    ],
)
def test_data_is_kept_as_the_bytes_that_came(data: bytes) -> None:
    assert _event(b'{"data": %b , "type":"a"}' % data).data == data


def test_what_is_left_out_or_null_is_filled() -> None:
    for body in (
        b'{"type":"a","data":1}',
        b'{"type":"a","data":1,"tenant":null,"id":null,"source":null,"subject":null,"time":null}',
    ):
        event = _event(body)
        assert (event.tenant, event.external_id, event.source) == ("default", "fresh", "unknown")
        assert (event.subject, event.time) == (None, NOW)


def test_what_is_given_is_taken() -> None:
    event = _event(
        b'{"type":"a.b","data":1,"tenant":"t","id":"i","source":"s","subject":"u","time":"2026-01-01T00:00:00+01:00"}'
    )
    assert (event.type, event.tenant, event.external_id) == ("a.b", "t", "i")
    assert (event.source, event.subject) == ("s", "u")
    assert event.time == datetime(2025, 12, 31, 23, tzinfo=UTC)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"{}", {"type", "data"}),
        (b'{"type":"a","data":1,"x":1,"y":2}', {"x", "y"}),
        (b'{"type":1,"data":1,"id":[],"time":{}}', {"type", "id", "time"}),
        (b'{"type":1,"data":1,"headers":{"Host":"x"}}', {"type", "headers"}),
        (b'{"type":"a","data":1,"headers":[]}', {"headers"}),
        (b'{"type":"a","data":1,"headers":{"X-A":1}}', {"headers"}),
        (b'{"type":"","data":1,"id":""}', {"type", "id"}),
        (b'{"type":"a","data":1,"time":"2026-02-30T00:00:00Z"}', {"time"}),
        (b"7", {"body"}),
    ],
)
def test_every_fault_is_named(body: bytes, fields: set[str]) -> None:
    assert _faults(body).keys() == fields


def test_an_unknown_field_is_answered_with_the_known_ones_in_a_form_that_is_fit_for_logs() -> None:
    (field, message), *_ = _faults(b'{"type":"a","data":1,"b\\u0000\\n\xc3\xa9":1}').items()
    assert field == "b\\x00\\n\\xe9"
    assert "type, tenant, id, source, subject, time, dataschema, headers, data" in message
    (long,) = _faults(b'{"type":"a","data":1,"%b":1}' % (b"x" * 5000))
    assert len(long) == 80


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    )
)
def test_what_is_published_is_read_back_as_the_same_event(data: Any) -> None:
    text = orjson.dumps(data, default=str)
    event = _event(b'{"type":"a.b","id":"i","data":%b}' % text)
    assert event.data == text
    assert read_event(event_message(event), now=NOW, fresh_id="other", max_bytes=1_000_000) == event


@pytest.mark.parametrize(
    ("given", "headers"),
    [(b'{"X-A":"1","X-B":""}', {"X-A": "1", "X-B": ""}), (b"{}", None), (b"null", None)],
)
def test_headers_for_its_requests(given: bytes, headers: dict[str, str] | None) -> None:
    assert _event(b'{"type":"a","data":1,"headers":' + given + b"}").headers == headers
    assert _event(b'{"type":"a","data":1}').headers is None


@pytest.mark.parametrize("name", ["type", "data", "tenant", "id", "source", "subject", "time", "headers", "x", "Type"])
def test_the_model_of_the_document_knows_the_names_that_the_reader_knows(name: str) -> None:
    values: dict[str, Any] = {"time": "2026-01-31T12:00:00Z", "headers": {}}
    body = {"type": "a.b", "data": 1, name: values.get(name, "a.b")}
    if name in EventCreate.model_fields:
        read_input(EventCreate, body)
        _event(orjson.dumps(body))
    else:
        with pytest.raises(InvalidInput, match=f"^{name}: is not a known field"):
            read_input(EventCreate, body)
        assert _faults(orjson.dumps(body)).keys() == {name}


@pytest.mark.parametrize("name", list(EventCreate.model_fields))
def test_the_model_of_the_document_needs_what_the_reader_needs(name: str) -> None:
    body = {field: 1 for field in ("type", "data") if field != name}
    needed = EventCreate.model_fields[name].is_required()
    assert (_faults(orjson.dumps(body)).get(name) == "is required") == needed
