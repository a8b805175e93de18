"""What a domain service hands to the publisher, and what it gets back.

Nothing here touches the world: the clock, fresh ids and the trace context are arguments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from schemas.errors import BrokerError, InvalidInput, Problem
from schemas.events import DEFAULT_TENANT, UNKNOWN_SOURCE, Event, build_event
from schemas.ids import EVENT, event_key, public_id

_TEXT_FIELDS: Final = ("type", "tenant", "id", "source", "subject", "dataschema")
_REQUIRED: Final = frozenset({"type", "tenant"})


@dataclass(frozen=True, slots=True)
class RawJSON:
    """JSON text that is delivered byte for byte as it is: 1.10 stays 1.10, and 12345678901234567890123 stays whole."""

    text: bytes


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to publish. `data` is anything that orjson serializes, or `RawJSON`.

    What is left None is filled by the publisher: `id` with a time-ordered UUID, `source` with the publisher's own,
    `time` and `accepted_ms` (Unix milliseconds, part of the event's public id) with now. Publishing a filled one again
    is safe: it stays the same event, and is delivered once.

    `headers` are sent with the event to every subscriber, and stored as they are: nothing secret belongs there. What a
    subscription sets itself wins. `dataschema` names the version of its type's schema that it keeps, as the API has its
    address; without it, the newest.
    """

    type: str
    data: Any
    tenant: str = DEFAULT_TENANT
    id: str | None = None
    source: str | None = None
    subject: str | None = None
    time: datetime | None = None
    accepted_ms: int | None = None
    headers: Mapping[str, str] | None = None
    dataschema: str | None = None


@dataclass(frozen=True, slots=True)
class PublishedEvent:
    """An event that the broker has stored.

    `id` is its public id (`evt_…`): what the API calls it, and the `webhook-id` of each of its deliveries.
    `external_id` is the `id` it was published with. If the same (tenant, source, external id) had been published
    before, the first one stands, under its own public id, and this one is dropped as its duplicate.
    """

    id: str
    external_id: str


@dataclass(frozen=True, slots=True)
class FailedEvent:
    """An event that was not confirmed. `event` has its id filled in: publish it again as it is."""

    event: NewEvent
    error: BrokerError


class NotAllPublished(BrokerError):
    """Some events of a `publish_many` were not confirmed; `outcomes` says which, in the order given."""

    def __init__(self, outcomes: Sequence[PublishedEvent | FailedEvent]) -> None:
        self.outcomes = tuple(outcomes)
        first = self.failed[0].error
        super().__init__(
            f"{len(self.failed)} of {len(outcomes)} events were not published; "
            f"the first: {type(first).__name__}: {first}"
        )

    @property
    def published(self) -> tuple[PublishedEvent, ...]:
        return tuple(outcome for outcome in self.outcomes if isinstance(outcome, PublishedEvent))

    @property
    def failed(self) -> tuple[FailedEvent, ...]:
        return tuple(outcome for outcome in self.outcomes if isinstance(outcome, FailedEvent))


def filled(event: NewEvent, *, source: str | None, fresh_id: str, now_ms: int) -> NewEvent:
    """The event with everything filled in that its producer left to the publisher. Raises InvalidInput.

    An id of the producer's own needs a source: two services that both number their orders would otherwise lose events
    to each other as duplicates.
    """
    _require_kinds(event)
    source = event.source if event.source is not None else source
    if source is None and event.id is not None:
        raise InvalidInput.of("source", "is required with an id of your own: an id is unique within its source")
    return replace(
        event,
        id=event.id if event.id is not None else fresh_id,
        source=source if source is not None else UNKNOWN_SOURCE,
        time=event.time if event.time is not None else datetime.fromtimestamp(now_ms / 1000, UTC),
        accepted_ms=event.accepted_ms if event.accepted_ms is not None else now_ms,
    )


def as_event(event: NewEvent, *, traceparent: str | None, max_bytes: int) -> Event:
    """A filled event as it travels. Raises InvalidInput that names each field at fault."""
    assert event.id is not None
    assert event.source is not None
    assert event.time is not None
    data = event.data.text if isinstance(event.data, RawJSON) else _json(event.data)
    if len(data) > max_bytes:
        raise InvalidInput.of("data", f"must be at most {max_bytes} bytes of JSON, and has {len(data)}")
    return build_event(
        type=event.type,
        data=data,
        external_id=event.id,
        source=event.source,
        time=event.time,
        tenant=event.tenant,
        subject=event.subject,
        accepted_ms=event.accepted_ms,
        traceparent=traceparent,
        headers=event.headers,
        dataschema=event.dataschema,
    )


def published(event: NewEvent) -> PublishedEvent:
    """What to tell of a filled event once it is confirmed."""
    assert event.id is not None
    assert event.source is not None
    assert event.accepted_ms is not None
    key = event_key(event.accepted_ms, event.tenant, event.source, event.id)
    return PublishedEvent(public_id(EVENT, key), event.id)


def _require_kinds(event: NewEvent) -> None:
    """Say what is wrong in terms of fields where a wrong type would otherwise fail somewhere below."""
    given: dict[str, object] = {name: getattr(event, name) for name in _TEXT_FIELDS}
    problems = [
        Problem(name, "must be text")
        for name, value in given.items()
        if not isinstance(value, str) and (value is not None or name in _REQUIRED)
    ]
    moment: object = event.time
    if moment is not None and not isinstance(moment, datetime):
        problems.append(Problem("time", "must be a datetime with a time zone"))
    if not _are_texts(event.headers):
        problems.append(Problem("headers", "must be a mapping of names to values, both text"))
    raw: object = event.data.text if isinstance(event.data, RawJSON) else b""
    if not isinstance(raw, bytes):
        problems.append(Problem("data", "must be bytes in RawJSON"))
    if problems:
        raise InvalidInput(problems)


def _are_texts(headers: object) -> bool:
    if headers is None:
        return True
    return isinstance(headers, Mapping) and all(
        isinstance(name, str) and isinstance(value, str) for name, value in headers.items()
    )


def _json(data: object) -> bytes:
    try:
        return orjson.dumps(data)
    except orjson.JSONEncodeError as error:
        raise InvalidInput.of("data", f"must be JSON: {error} (RawJSON takes JSON text as it is)") from error
