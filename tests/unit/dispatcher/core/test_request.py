"""What is sent: each format with each signature, over the exact bytes, and headers that can always be sent."""

import base64
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from standardwebhooks.webhooks import Webhook

from dispatcher.core.request import Composed, Content, HexHeader, Recipe, compose
from infra.request_head import header_fault
from schemas.fields import id_fault, source_fault, subject_fault
from schemas.formats import Format
from schemas.signatures import (
    Algorithm,
    Ed25519Key,
    SigningKey,
    format_keypair,
    format_secret,
    parse_public_key,
    parse_secret,
    public_key,
    text_key,
    verify,
)

NOW = datetime.now(UTC)  # the library that verifies knows no other time
HOUR = timedelta(hours=1)
SECRET, OLD_SECRET = format_secret(bytes(range(32))), format_secret(bytes(range(1, 33)))
KEYPAIR = format_keypair(bytes(range(32)))
ID = "evt_01h455vb4pex5vsknk084sn02q"
CONTENT = Content("order.created", NOW, b'{"n": 1}', "shop 1", "order/1", subject="été")
FORMATS = sorted(Format)


def keys(*texts: str) -> tuple[tuple[SigningKey, None], ...]:
    return tuple((parse_secret(text), None) for text in texts)


def made(recipe: Recipe, content: Content = CONTENT, traceparent: str | None = None) -> Composed:
    return compose(recipe, content, webhook_id=ID, now=NOW, traceparent=traceparent)


def test_github_s_own_example() -> None:
    """The secret, payload and digest of its documentation, "Validating webhook deliveries"."""
    key = text_key("It's a Secret to Everybody", Algorithm.SHA256)
    recipe = Recipe({}, ((key, None),), Format.CLOUDEVENTS_BINARY, HexHeader("X-Hub-Signature-256", "sha256="))
    composed = made(recipe, Content("t", NOW, b"Hello, World!", "s", "i"))
    assert composed.body == b"Hello, World!"
    assert composed.headers["X-Hub-Signature-256"] == (
        "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    )


def test_a_sha1_example_of_rfc_2202() -> None:
    key = text_key("Jefe", Algorithm.SHA1)
    recipe = Recipe({}, ((key, None),), Format.CLOUDEVENTS_BINARY, HexHeader("x-signature", ""))
    composed = made(recipe, Content("t", NOW, b"what do ya want for nothing?", "s", "i"))
    assert composed.headers["x-signature"] == "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"


@pytest.mark.parametrize("format_", FORMATS)
def test_every_format_is_signed_by_standard_webhooks_with_every_key(format_: Format) -> None:
    recipe = Recipe({"X-Own": "1"}, keys(SECRET, KEYPAIR, OLD_SECRET), format_)
    composed = made(recipe)
    headers = dict(composed.headers)
    assert headers["webhook-id"] == ID
    assert headers["webhook-timestamp"] == str(int(NOW.timestamp()))
    assert headers["X-Own"] == "1"
    for secret in (SECRET, OLD_SECRET):
        Webhook(secret).verify(composed.body, headers)
    pair = parse_secret(KEYPAIR)
    assert isinstance(pair, Ed25519Key)
    verify(parse_public_key(public_key(pair)), headers=headers, body=composed.body, now=NOW)
    assert [one.partition(",")[0] for one in headers["webhook-signature"].split(" ")] == ["v1", "v1a", "v1"]


@pytest.mark.parametrize("format_", FORMATS)
def test_every_format_is_signed_by_hex_with_every_key_newest_first(format_: Format) -> None:
    both = tuple((text_key(text, Algorithm.SHA256), None) for text in ("n" * 16, "o" * 16))
    composed = made(Recipe({}, both, format_, HexHeader("X-Signature", "sha256=")))
    expected = [f"sha256={key.signature(composed.body).hex()}" for key, _ in both]
    assert composed.headers["X-Signature"] == ",".join(expected)
    assert "webhook-signature" not in composed.headers
    assert "webhook-timestamp" not in composed.headers  # nothing vouches for it
    assert composed.headers["webhook-id"] == ID


def test_the_formats() -> None:
    by_format = {one: made(Recipe({}, keys(SECRET), one)) for one in FORMATS}
    assert {one: composed.content_type for one, composed in by_format.items()} == {
        Format.STANDARD: "application/json",
        Format.CLOUDEVENTS_STRUCTURED: "application/cloudevents+json; charset=utf-8",
        Format.CLOUDEVENTS_BINARY: "application/json",
    }
    moment = NOW.replace(tzinfo=None).isoformat() + "Z"
    assert json.loads(by_format[Format.STANDARD].body) == {
        "type": "order.created",
        "timestamp": moment,
        "data": {"n": 1},
    }
    assert json.loads(by_format[Format.CLOUDEVENTS_STRUCTURED].body) == {
        "specversion": "1.0",
        "id": "order/1",
        "source": "shop%201",
        "type": "order.created",
        "time": moment,
        "subject": "été",
        "datacontenttype": "application/json",
        "data": {"n": 1},
    }
    binary = by_format[Format.CLOUDEVENTS_BINARY]
    assert binary.body == b'{"n": 1}'
    assert {name: value for name, value in binary.headers.items() if name.startswith("ce-")} == {
        "ce-specversion": "1.0",
        "ce-id": "order/1",
        "ce-source": "shop%25201",
        "ce-type": "order.created",
        "ce-time": moment,
        "ce-subject": "%C3%A9t%C3%A9",
    }
    assert not any(name.startswith("ce-") for name in by_format[Format.CLOUDEVENTS_STRUCTURED].headers)


def test_no_event_signs_for_itself_or_says_what_it_is() -> None:
    """What it brings is sent along, unless we say it, in whatever letter case."""
    said = {"x-SIGNATURE": "forged", "CE-ID": "another", "Webhook-Id": "evt_2", "X-Of-The-Event": "1"}
    key = text_key("x" * 16, Algorithm.SHA256)
    recipe = Recipe({}, ((key, None),), Format.CLOUDEVENTS_BINARY, HexHeader("X-Signature", ""))
    sent = {name.lower(): value for name, value in made(recipe, replace(CONTENT, headers=said)).headers.items()}
    assert len(sent) == len(made(recipe).headers) + 1
    assert sent["x-of-the-event"] == "1"
    assert not {"forged", "another", "evt_2"} & set(sent.values())


def test_a_key_signs_until_its_time() -> None:
    old = parse_secret(OLD_SECRET)
    recipe = Recipe({}, ((parse_secret(SECRET), None), (old, NOW + HOUR)))
    soon = compose(recipe, CONTENT, webhook_id=ID, now=NOW, traceparent=None)
    later = compose(recipe, CONTENT, webhook_id=ID, now=NOW + HOUR, traceparent=None)
    assert len(soon.headers["webhook-signature"].split(" ")) == 2
    (left,) = later.headers["webhook-signature"].split(" ")
    content = f"{ID}.{later.headers['webhook-timestamp']}.".encode() + later.body
    assert left == "v1," + base64.b64encode(parse_secret(SECRET).signature(content)).decode()


def test_a_traceparent_goes_along() -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert made(Recipe({}, keys(SECRET)), traceparent=parent).headers["traceparent"] == parent
    assert "traceparent" not in made(Recipe({}, keys(SECRET))).headers


texts = st.text(min_size=1, max_size=60)
numbers = st.integers(min_value=10**20, max_value=10**40)


@given(
    format_=st.sampled_from(FORMATS),
    number=numbers,
    source=texts.filter(lambda text: not source_fault(text)),
    external_id=texts.filter(lambda text: not id_fault(text)),
    subject=st.none() | texts.filter(lambda text: not subject_fault(text)),
    hexed=st.booleans(),
)
def test_whatever_an_event_says_its_data_is_spliced_as_it_came_and_its_headers_can_be_sent(
    format_: Format, number: int, source: str, external_id: str, subject: str | None, hexed: bool
) -> None:
    data = b'{ "n" : %d, "s":"\\u00e9\xc3\xa9" }' % number
    header = HexHeader("X-S", "sha1=") if hexed else None
    key = text_key("x" * 16, Algorithm.SHA1) if hexed else parse_secret(SECRET)
    composed = made(
        Recipe({}, ((key, None),), format_, header), Content("a.b", NOW, data, source, external_id, subject=subject)
    )
    if format_ is Format.CLOUDEVENTS_BINARY:
        assert composed.body == data
    else:
        assert composed.body.endswith(b'"data":' + data + b"}")
        assert json.loads(composed.body)["data"]["n"] == number
    for name, value in composed.headers.items():
        assert header_fault(name) is None
        assert value.isascii()
        assert value.isprintable()
        assert value.strip() == value != ""
