"""From the body of `POST /v1/events` to an event. Pure: the clock and fresh ids are arguments.

The body is `{"type", "data", "tenant", "id", "source", "subject", "time", "headers", "dataschema"}`; the first two
must be there, `null` for one of the others leaves it out. `data` is cut out of the body, not parsed and written again.
"""

from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from pydantic import ConfigDict, Field, WithJsonSchema

from schemas.errors import InvalidInput, Problem
from schemas.event_headers import read_event_headers
from schemas.events import DEFAULT_TENANT, UNKNOWN_SOURCE, Event, build_event
from schemas.fields import (
    ID_SCHEMA,
    SOURCE_SCHEMA,
    SUBJECT_SCHEMA,
    TENANT_SCHEMA,
    TYPE_SCHEMA,
    parse_time,
    source_fault,
)
from schemas.inputs import Input
from schemas.raw_json import elements, members

MAX_BATCH_EVENTS: Final = 1000

_TEXTS: Final = ("type", "tenant", "id", "source", "subject", "time", "dataschema")
_KNOWN: Final = (*_TEXTS, "headers", "data")


class EventCreate(Input):
    """An event to be published. For the document only: the bytes of `data` are cut out of the body, never parsed.

    The fields' rules are those of `schemas.fields`.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"type": "order.created", "tenant": "acme", "id": "order-4711", "data": {"total": "1.10"}}]
        }
    )

    type: Annotated[str, Field(json_schema_extra=TYPE_SCHEMA)]
    data: Annotated[Any, WithJsonSchema({"description": "Any JSON. It is delivered byte for byte as it came."})]
    tenant: Annotated[str, Field(json_schema_extra=TENANT_SCHEMA)] | None = None
    id: Annotated[
        Annotated[str, Field(json_schema_extra=ID_SCHEMA)] | None,
        Field(description="With tenant and source, what makes it unique; made if left out."),
    ] = None
    source: Annotated[str, Field(json_schema_extra=SOURCE_SCHEMA)] | None = None
    subject: Annotated[str, Field(json_schema_extra=SUBJECT_SCHEMA)] | None = None
    time: datetime | None = None
    headers: dict[str, str] | None = None
    dataschema: Annotated[
        Annotated[str, Field(json_schema_extra=SOURCE_SCHEMA)] | None,
        Field(description="`/v1/event-types/{type}/versions/{n}`: the version of its schema; else the newest."),
    ] = None


class EventBatchCreate(Input):
    """Events to be published, each with its own result. For the document only, as `EventCreate`."""

    events: Annotated[list[EventCreate], Field(min_length=1, max_length=MAX_BATCH_EVENTS)]


def requested_batch(body: bytes) -> list[bytes]:
    """The bodies of the events that a body, well-formed JSON, asks for. Raises InvalidInput."""
    given = members(body)
    if given is None or "events" not in given:
        raise InvalidInput.of("events", "is required: a JSON object with a list of events")
    if unknown := [name for name in given if name != "events"]:
        raise InvalidInput.of(_printable(unknown[0]), "is not a known field; known is events")
    listed = elements(given["events"])
    if listed is None or not 1 <= len(listed) <= MAX_BATCH_EVENTS:
        raise InvalidInput.of("events", f"must be a list of 1 to {MAX_BATCH_EVENTS} events")
    return listed


def requested_event(body: bytes, *, now: datetime, fresh_id: str, default_tenant: str = DEFAULT_TENANT) -> Event:
    """The event that a body, well-formed JSON, asks for. Raises InvalidInput that names each field at fault."""
    given = members(body)
    if given is None:
        raise InvalidInput.of("body", "must be a JSON object with type and data")
    problems = [Problem(name, "is required") for name in ("type", "data") if name not in given]
    problems += [
        Problem(_printable(name), f"is not a known field; known are {', '.join(_KNOWN)}")
        for name in given
        if name not in _KNOWN
    ]
    texts = {name: _text(name, given[name], problems) for name in _TEXTS if name in given}
    time = _time(texts.get("time"), now, problems)
    headers = _headers(given.get("headers"), problems)
    dataschema = texts.get("dataschema")
    if dataschema is not None and (fault := source_fault(dataschema)):
        problems.append(Problem("dataschema", fault))
    if problems:
        raise InvalidInput(problems)
    return build_event(
        type=texts.get("type") or "",
        data=given["data"],
        external_id=_or(texts.get("id"), fresh_id),
        source=_or(texts.get("source"), UNKNOWN_SOURCE),
        tenant=_or(texts.get("tenant"), default_tenant),
        subject=texts.get("subject"),
        time=time,
        headers=headers,
        dataschema=dataschema,
    )


def _text(name: str, raw: bytes, problems: list[Problem]) -> str | None:
    try:
        text = msgspec.json.decode(raw, type=str | None)
    except msgspec.ValidationError:
        problems.append(Problem(name, "must be a string"))
        return None
    if text is None and name == "type":
        problems.append(Problem(name, "must be a string"))
    return text


def _time(text: str | None, now: datetime, problems: list[Problem]) -> datetime:
    time = now if text is None else parse_time(text)
    if time is None:
        problems.append(Problem("time", "must be a time of RFC 3339 with its zone, as 2026-01-31T12:00:00Z"))
        return now
    return time


def _headers(raw: bytes | None, problems: list[Problem]) -> dict[str, str] | None:
    if raw is None or raw == b"null":
        return None
    try:
        return read_event_headers(raw, field="headers")
    except InvalidInput as error:
        problems += error.problems
        return None


def _or(text: str | None, default: str) -> str:
    return default if text is None else text  # an empty text breaks the field's rule, and is told so


def _printable(name: str) -> str:
    """A name that the caller made up, short and in a form that any log takes."""
    return ascii(name)[1:-1][:80]
