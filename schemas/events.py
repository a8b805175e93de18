"""Events as they come in: CloudEvents 1.0 in binary or structured mode, or plain JSON.

`read_event` turns a message into an `Event` or an `Unreadable`; it never raises and never guesses at content. An
event's `data` is the slice of bytes that came, not parsed and written again: 12345678901234567890123 stays what it is.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from schemas.dataschema import ATTRIBUTE as DATASCHEMA
from schemas.dataschema import dataschema_of, named_version
from schemas.errors import InvalidInput, Problem
from schemas.event_envelopes import SPEC_VERSION, Found, attributes_of
from schemas.event_headers import ATTRIBUTE, event_headers_fault, told_headers, write_event_headers
from schemas.fields import (
    OPERATIONAL_WORD,
    id_fault,
    in_utc,
    is_operational,
    is_traceparent,
    parse_time,
    source_fault,
    subject_fault,
    tenant_fault,
    type_fault,
)
from schemas.messages import HeaderValue, Message
from schemas.raw_json import json_fault

JSON: Final = "application/json"
DEFAULT_TENANT: Final = "default"
UNKNOWN_SOURCE: Final = "unknown"
ACCEPTED_MS_HEADER: Final = "hookhare-accepted-ms"
# The id of an event that is published again. Its producer may have said it as the message_id, which is another then.
ID_HEADER: Final = "hookhare-id"
TRACEPARENT_HEADER: Final = "traceparent"

# How far the time of acceptance may be from now: it becomes part of the event's key, which names its day's partition.
_OLDEST_ACCEPTED: Final = timedelta(hours=24)
_NEWEST_ACCEPTED: Final = timedelta(minutes=5)


class Event(msgspec.Struct, frozen=True):
    """One event. (tenant, source, external_id) is what makes it unique; `data` is JSON text.

    `headers` are for its requests, None for none; they keep `event_headers_fault`.
    `schema_version` is the version of its type's schema that its `dataschema` names; None: the newest.
    `accepted_ms` is when a publisher of ours took it (Unix milliseconds), None from foreign producers.
    `digest` is a SHA-256 over what the event says (type, subject, data), to tell a repeat from a conflict. Not over its
    time: who publishes again after a lost confirm often stamps it anew.
    """

    tenant: str
    source: str
    external_id: str
    type: str
    time: datetime
    subject: str | None
    data: bytes
    digest: bytes
    accepted_ms: int | None
    traceparent: str | None
    headers: Mapping[str, str] | None = None
    schema_version: int | None = None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why a message is not an event: the field at fault and what would be right."""

    field: str
    message: str


def build_event(
    *,
    type: str,  # noqa: A002 - the field's own name
    data: bytes,
    external_id: str,
    source: str,
    time: datetime,
    tenant: str = DEFAULT_TENANT,
    subject: str | None = None,
    accepted_ms: int | None = None,
    traceparent: str | None = None,
    headers: Mapping[str, str] | None = None,
    dataschema: str | None = None,
    operational: bool = False,
) -> Event:
    """An event that keeps every rule. Raises InvalidInput that names each field at fault (`external_id` as `id`).

    An `operational` one is Hookhare's own; nobody else's may have a type that only those have.
    `data` is JSON text and `time` aware. A `traceparent` that is not of the W3C's form is left out.
    """
    problems = _field_problems(tenant=tenant, type=type, source=source, id=external_id, subject=subject)
    if is_operational(type) and not operational:
        problems.append(Problem("type", f"must not begin with the word {OPERATIONAL_WORD}: it is for its own events"))
    utc = in_utc(time)
    if utc is None:
        problems.append(Problem("time", "must have a time zone, and be between the years 1 and 9999 in UTC"))
    if fault := json_fault(data):
        problems.append(Problem("data", fault))
    if headers and (fault := event_headers_fault(headers)):
        problems.append(Problem("headers", fault))
    if problems or utc is None:
        raise InvalidInput(problems)
    return Event(
        tenant=tenant,
        source=source,
        external_id=external_id,
        type=type,
        time=utc,
        subject=subject,
        data=data,
        digest=_digest(type, subject, data),
        accepted_ms=accepted_ms,
        traceparent=traceparent if traceparent is not None and is_traceparent(traceparent) else None,
        headers=dict(headers) if headers else None,
        schema_version=named_version(dataschema, type),
    )


def validate_event_fields(*, tenant: str, type: str, source: str, id: str, subject: str | None) -> None:  # noqa: A002
    """Check the text fields of an event. Raises InvalidInput that names each field at fault."""
    if problems := _field_problems(tenant=tenant, type=type, source=source, id=id, subject=subject):
        raise InvalidInput(problems)


def event_message(event: Event) -> Message:
    """The message that carries an event: binary mode, which `read_event` reads back to an equal event."""
    headers: dict[str, HeaderValue] = {
        "cloudEvents_specversion": SPEC_VERSION,
        "cloudEvents_id": event.external_id,
        "cloudEvents_source": event.source,
        "cloudEvents_type": event.type,
        "cloudEvents_time": event.time.isoformat(),
        "cloudEvents_tenant": event.tenant,
    }
    if event.subject is not None:
        headers["cloudEvents_subject"] = event.subject
    if event.accepted_ms is not None:
        headers[ACCEPTED_MS_HEADER] = event.accepted_ms
    if event.traceparent is not None:
        headers[TRACEPARENT_HEADER] = event.traceparent
    if event.schema_version is not None:
        headers[f"cloudEvents_{DATASCHEMA}"] = dataschema_of(event.type, event.schema_version)
    if event.headers is not None:
        headers[f"cloudEvents_{ATTRIBUTE}"] = write_event_headers(event.headers)
    return Message(body=event.data, headers=headers, content_type=JSON, type=event.type)


def webhook_body(*, type: str, time: datetime, data: bytes) -> bytes:  # noqa: A002 - the field's own name
    """The body of a webhook, {"type", "timestamp", "data"} (Standard Webhooks 1.0.0), with `data` as the bytes it is.

    `time` is when the event occurred, aware. The type's rule leaves nothing to escape in it.
    """
    timestamp = time.astimezone(UTC).isoformat()[: -len("+00:00")]
    return b'{"type":%b,"timestamp":"%bZ","data":%b}' % (msgspec.json.encode(type), timestamp.encode(), data)


def read_event(message: Message, *, now: datetime, fresh_id: str, max_bytes: int) -> Event | Unreadable:
    """Read a message as an event. `now` and `fresh_id` fill a missing time and a missing id."""
    if len(message.body) > max_bytes:
        return Unreadable("body", f"must be at most {max_bytes} bytes, and has {len(message.body)}")
    try:
        found = attributes_of(message)
        return _event(found, message, now=now, fresh_id=fresh_id)
    except InvalidInput as error:
        problem = error.problems[0]
        return Unreadable(problem.field, problem.message)


def _event(found: Found, message: Message, *, now: datetime, fresh_id: str) -> Event:
    told = found.attributes
    kind = _ruled(type_fault, ("type", told.get("type")), ("AMQP type", message.type))
    if kind is None:
        raise InvalidInput.of(
            "type", "is required: as a CloudEvents attribute, the AMQP property type, or a member of the body"
        )
    source = _ruled(source_fault, ("source", told.get("source")), ("AMQP app_id", message.app_id))
    given = message.headers.get(ID_HEADER)
    external_id = _ruled(
        id_fault,
        ("id", told.get("id")),
        (ID_HEADER, given if isinstance(given, str) else None),
        ("AMQP message_id", message.message_id),
    )
    subject = _ruled(subject_fault, ("subject", told.get("subject")))
    return Event(
        tenant=_ruled(tenant_fault, ("tenant", told.get("tenant"))) or DEFAULT_TENANT,
        source=source or UNKNOWN_SOURCE,
        external_id=external_id or fresh_id,
        type=kind,
        time=_time(told.get("time"), message.timestamp, now),
        subject=subject,
        data=found.data,
        digest=_digest(kind, subject, found.data),
        accepted_ms=_sound_accepted_ms(message.headers.get(ACCEPTED_MS_HEADER), now),
        traceparent=_traceparent(message.headers, told),
        headers=told_headers(told),
        schema_version=named_version(told.get(DATASCHEMA), kind),
    )


def _ruled(fault_of: Callable[[str], str | None], *sources: tuple[str, str | None]) -> str | None:
    """The first text that is there, which must keep the rule. A fault is named for where the text came from.

    An AMQP property that is empty counts as missing: clients send unset ones so.
    """
    for field, text in sources:
        if text is None or (not text and field.startswith("AMQP ")):
            continue
        if fault := fault_of(text):
            raise InvalidInput.of(field, fault)
        return text
    return None


def _time(told: str | None, timestamp: datetime | None, now: datetime) -> datetime:
    if told is not None:
        time = parse_time(told)
        if time is None:
            raise InvalidInput.of("time", "must be a time of RFC 3339 with its zone, as 2026-01-31T12:00:00Z")
        return time
    if timestamp is None:
        return now
    if timestamp.tzinfo is None:  # AMQP's are Unix seconds, so it is in UTC
        return timestamp.replace(tzinfo=UTC)
    time = in_utc(timestamp)
    if time is None:
        raise InvalidInput.of("AMQP timestamp", "must be between the years 1 and 9999")
    return time


def _sound_accepted_ms(value: HeaderValue, now: datetime) -> int | None:
    if not isinstance(value, int):
        return None
    oldest_ms = (now - _OLDEST_ACCEPTED).timestamp() * 1000
    newest_ms = (now + _NEWEST_ACCEPTED).timestamp() * 1000
    return value if oldest_ms <= value <= newest_ms else None


def _traceparent(headers: Mapping[str, HeaderValue], told: Mapping[str, str]) -> str | None:
    header = headers.get(TRACEPARENT_HEADER)
    text = header.decode("latin-1") if isinstance(header, bytes) else header
    return next((it for it in (text, told.get("traceparent")) if isinstance(it, str) and is_traceparent(it)), None)


def _digest(kind: str, subject: str | None, data: bytes) -> bytes:
    # Neither a type nor a subject has a NUL in it, and no subject is empty: the parts cannot run into each other.
    return hashlib.sha256(f"{kind}\x00{subject or ''}\x00".encode() + data).digest()


def _field_problems(**fields: str | None) -> list[Problem]:
    rules = {
        "tenant": tenant_fault,
        "type": type_fault,
        "source": source_fault,
        "id": id_fault,
        "subject": subject_fault,
    }
    faults = ((name, rules[name](text)) for name, text in fields.items() if text is not None)
    return [Problem(name, fault) for name, fault in faults if fault]
