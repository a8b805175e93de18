"""What a message says of its event: the attributes as text, by name, and the data.

How a message is read, the first that fits:

1. Structured mode: the content type is `application/cloudevents+json`. The body is a CloudEvents envelope.
2. Binary mode: there are headers with the prefix `cloudEvents:` or `cloudEvents_`. The body is the data.
3. With the AMQP property `type`: the body is an envelope if it has `data` and no member that an envelope does not have.
   Otherwise all of it is the data. (`headers` is no member of an envelope here: `{"type", "headers", "data"}` is more
   likely what somebody wants delivered. `hookhareheaders` is one.)
4. Structured mode without its content type: a JSON object with `specversion` and `type`.
5. A JSON object with `type`, `data`, and no member that an envelope does not have.

What is missing is filled from the AMQP properties `message_id` (id), `type`, `timestamp` (time) and `app_id` (source),
then with defaults. Without `data`, a CloudEvent's data is `null`: CloudEvents allows it to be absent, and a webhook's
body always has it. Plain JSON without `data` is unreadable, since there it is more likely a mistake.
"""

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from schemas.errors import InvalidInput
from schemas.event_headers import ATTRIBUTE, MEMBER
from schemas.messages import HeaderValue, Message
from schemas.raw_json import json_fault, members

CLOUDEVENTS_JSON: Final = "application/cloudevents+json"
SPEC_VERSION: Final = "1.0"

# The AMQP binding has the colon; the underscore is what producers use where a colon is not allowed in a name. First
# wins.
_PREFIXES: Final = ("cloudEvents:", "cloudEvents_")
_ENVELOPE: Final = frozenset(
    {"specversion", "id", "source", "type", "time", "subject", "tenant", "traceparent", "tracestate"}
    | {"datacontenttype", "dataschema", "data", "data_base64", ATTRIBUTE}
)
_PLAIN: Final = _ENVELOPE | {MEMBER}
_READ: Final = frozenset(_ENVELOPE - {"data", "data_base64", "tracestate"})

_INTEGER: Final = re.compile(rb"-?[0-9]{1,20}")
_JSON_TYPE: Final = re.compile(r"[^/\s]+/(?:[^/\s;]+\+)?json", re.IGNORECASE)


class Found(msgspec.Struct, frozen=True):
    """The attributes as text, by name, and the data; what a message said, before defaults and rules."""

    attributes: Mapping[str, str]
    data: bytes


def attributes_of(message: Message) -> Found:
    """Raises InvalidInput for what cannot be read."""
    media_type = (message.content_type or "").partition(";")[0].strip().lower()
    if media_type.startswith("application/cloudevents"):
        if media_type != CLOUDEVENTS_JSON:
            raise InvalidInput.of(
                "content_type", f"must be {CLOUDEVENTS_JSON}, the only format of CloudEvents that is read"
            )
        return _structured(_members(message.body))
    if binary := _binary_attributes(message.headers):
        return _binary(binary, media_type, message.body)
    body = _checked("body", message.body)
    envelope = members(body)
    if message.type:
        if envelope is not None and "data" in envelope and envelope.keys() <= _ENVELOPE:
            return _plain(envelope)
        return Found({}, body)
    if envelope is None or "type" not in envelope:
        raise InvalidInput.of(
            "type", "is required: as a CloudEvents attribute, the AMQP property type, or a member of the body"
        )
    return _structured(envelope) if "specversion" in envelope else _plain(envelope)


def _structured(envelope: Mapping[str, bytes]) -> Found:
    if _text_of_json("specversion", envelope.get("specversion", b"null")) != SPEC_VERSION:
        raise InvalidInput.of("specversion", f'must be "{SPEC_VERSION}"')
    return _enveloped(envelope, data=envelope.get("data", b"null"))


def _plain(envelope: Mapping[str, bytes]) -> Found:
    if "data" not in envelope:
        raise InvalidInput.of("data", "is required")
    if unknown := envelope.keys() - _PLAIN:
        name = ascii(min(unknown))[:80]  # whatever it is, in a form that any log and database takes
        raise InvalidInput.of(
            "body", f"must not have a member {name} next to data: what is to be delivered belongs into data"
        )
    if _text_of_json("specversion", envelope.get("specversion", b"null")) not in {None, SPEC_VERSION}:
        raise InvalidInput.of("specversion", f'must be "{SPEC_VERSION}"')
    found = _enveloped(envelope, data=envelope["data"])
    headers = envelope.get(MEMBER, b"null")
    return found if headers == b"null" else Found({**found.attributes, MEMBER: headers.decode()}, found.data)


def _enveloped(envelope: Mapping[str, bytes], *, data: bytes) -> Found:
    if envelope.get("data_base64", b"null") != b"null":
        raise InvalidInput.of("data_base64", "is not supported: data must be JSON")
    texts = {name: _text_of_json(name, raw) for name, raw in envelope.items() if name in _READ}
    attributes = {name: text for name, text in texts.items() if text is not None}
    _require_json_type(attributes.get("datacontenttype"), "datacontenttype")
    return Found(attributes, data)


def _binary_attributes(headers: Mapping[str, HeaderValue]) -> dict[str, HeaderValue]:
    found: dict[str, HeaderValue] = {}
    for prefix in _PREFIXES:
        for name, value in headers.items():
            if name.startswith(prefix):
                found.setdefault(name.removeprefix(prefix), value)
    return found


def _binary(headers: Mapping[str, HeaderValue], media_type: str, body: bytes) -> Found:
    texts = {name: _text_of_header(name, value) for name, value in headers.items() if name in _READ}
    attributes = {name: text for name, text in texts.items() if text is not None}
    if attributes.get("specversion") != SPEC_VERSION:
        raise InvalidInput.of("specversion", f'must be "{SPEC_VERSION}"')
    _require_json_type(media_type or None, "content_type")
    _require_json_type(attributes.get("datacontenttype"), "datacontenttype")
    return Found(attributes, _checked("data", body) if body else b"null")


def _text_of_header(name: str, value: object) -> str | None:
    """A header's value in CloudEvents' canonical text form; None for unset."""
    match value:
        case None | str():
            return value
        case bool():
            return "true" if value else "false"
        case int() if abs(value) < 1 << 64:
            return str(value)
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                pass
    raise InvalidInput.of(name, "must be text")


def _text_of_json(name: str, raw: bytes) -> str | None:
    """An attribute's JSON value as text; None for null, which CloudEvents has mean unset. Integers are written out."""
    if raw == b"null":
        return None
    if _INTEGER.fullmatch(raw):
        return raw.decode()
    if raw.startswith(b'"'):
        return msgspec.json.decode(raw, type=str)
    raise InvalidInput.of(name, "must be a string")


def _require_json_type(media_type: str | None, field: str) -> None:
    if media_type is not None and not _JSON_TYPE.fullmatch(media_type.partition(";")[0].strip()):
        raise InvalidInput.of(field, "must be application/json, or another media type of JSON: data must be JSON")


def _members(body: bytes) -> dict[str, bytes]:
    envelope = members(_checked("body", body))
    if envelope is None:
        raise InvalidInput.of("body", "must be a JSON object")
    return envelope


def _checked(field: str, body: bytes) -> bytes:
    if fault := json_fault(body):
        raise InvalidInput.of(field, fault)
    return body
