"""Events as CloudEvents over HTTP: read back by the SDK of the CloudEvents project, byte for byte."""

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from urllib.parse import unquote

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from hypothesis import given
from hypothesis import strategies as st

from schemas.cloudevents import (
    BINARY,
    STRUCTURED,
    binary_headers,
    header_value,
    structured_body,
    uri_reference,
)
from schemas.fields import id_fault, source_fault, subject_fault

TIME = datetime(2026, 1, 31, 12, 0, 0, 5, tzinfo=timezone(timedelta(hours=2)))
BIG = b'{"n": 12345678901234567890123,\n "e": 1e400, "s": "\\u00e9"}'

# RFC 3986, appendix B, and what may stand in its parts; written apart from what is tested.
PARTS = re.compile(r"(?:([^:/?#]+):)?(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#(.*))?", re.DOTALL)
ANY = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*"
texts = st.text(min_size=1, max_size=60)
sources = (texts | st.text("ab:/?#[]@%41 é{", min_size=1, max_size=12)).filter(lambda text: not source_fault(text))


def is_uri_reference(text: str) -> bool:
    match = PARTS.fullmatch(text)
    assert match is not None
    scheme, authority, path, query, fragment = match.groups()
    parts = [part for part in (authority, path, query, fragment) if part is not None]
    if scheme is not None and not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return False
    if authority and not re.fullmatch(r"[^:@]*(:[0-9]*)?", authority.rpartition("@")[2]):
        return False
    return all(re.fullmatch(ANY, part) for part in parts)


@pytest.mark.parametrize(
    ("source", "reference"),
    [
        *((same, same) for same in ("shop", "/shops/1", "https://shop.example/a?b=c#d", "urn:uuid:1-2", "a:b", "?q")),
        *((same, same) for same in ("mailto:cncf@example.org", "a%41", "//host:80/a", "sensors/tn-1/alerts")),
        ("shop 1", "shop%201"),
        ("bücher", "b%C3%BCcher"),
        ("50%", "50%25"),
        ("http://a b/c", "http://a%20b/c"),
        ('a"<>\\^`{|}', "a%22%3C%3E%5C%5E%60%7B%7C%7D"),
        ("1:b", "1%3Ab"),
        ("a#b#c", "a%23b%23c"),
        ("//host:name", "%2F%2Fhost%3Aname"),
        ("x[1]", "x%5B1%5D"),
        ("a%4", "a%254"),
    ],
)
def test_a_source_becomes_a_uri_reference(source: str, reference: str) -> None:
    assert uri_reference(source) == reference
    assert is_uri_reference(reference)


@given(sources)
def test_any_source_becomes_one_and_once(source: str) -> None:
    reference = uri_reference(source)
    assert is_uri_reference(reference)
    assert uri_reference(reference) == reference
    assert unquote(reference) == unquote(source)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Euro € 😀", "Euro%20%E2%82%AC%20%F0%9F%98%80"),  # the example of the specification
        ('a "b" 100%', "a%20%22b%22%20100%25"),
        ("!#$&'()*+,-./:;<=>?@[\\]^_`{|}~", "!#$&'()*+,-./:;<=>?@[\\]^_`{|}~"),
        ("\x7f", "%7F"),
    ],
)
def test_a_header_value_is_percent_encoded_as_the_binding_says(text: str, value: str) -> None:
    assert header_value(text) == value


@given(
    external_id=texts.filter(lambda text: not id_fault(text)),
    source=sources,
    subject=st.none() | texts.filter(lambda text: not subject_fault(text)),
)
def test_both_modes_are_read_back_by_the_sdk(external_id: str, source: str, subject: str | None) -> None:
    said = {"external_id": external_id, "source": source, "type": "a-b_c:d/e.1", "time": TIME, "subject": subject}
    body = structured_body(**said, data=BIG)  # type: ignore[arg-type]
    headers = binary_headers(**said)  # type: ignore[arg-type]
    assert body.endswith(b'"datacontenttype":"application/json","data":' + BIG + b"}")
    assert all(value.isascii() and value.isprintable() and " " not in value for value in headers.values())
    structured = HTTPMessage({"content-type": STRUCTURED}, body)
    binary = HTTPMessage({"content-type": BINARY} | headers, BIG)
    for event in (from_http_event(structured), from_http_event(binary)):
        assert (event.get_specversion(), event.get_datacontenttype()) == ("1.0", "application/json")
        assert (event.get_id(), event.get_type()) == (external_id, "a-b_c:d/e.1")
        assert event.get_source() == uri_reference(source)
        assert event.get_time() == TIME
        assert event.get_subject() == subject
        assert event.get_data() == json.loads(BIG)
    assert json.loads(body)["time"] == headers["ce-time"] == "2026-01-31T10:00:00.000005Z"


def test_without_a_subject_there_is_none() -> None:
    said = {"external_id": "1", "source": "s", "type": "t", "time": TIME.astimezone(UTC), "subject": None}
    assert "ce-subject" not in binary_headers(**said)  # type: ignore[arg-type]
    assert "subject" not in json.loads(structured_body(**said, data=b"null"))  # type: ignore[arg-type]
