"""Events as they come in: CloudEvents 1.0 in binary or structured mode, or plain JSON.

`read_event` turns a message into an `Event` or an `Unreadable`; it never raises and never guesses at content.
An event's `data` is the slice of bytes that came, not parsed and written again: 12345678901234567890123 stays what it is.
"""

from dataclasses import dataclass
from datetime import datetime

from schemas.messages import Message

CLOUDEVENTS_JSON = "application/cloudevents+json"
JSON = "application/json"
DEFAULT_TENANT = "default"
ACCEPTED_MS_HEADER = "hookhare-accepted-ms"


@dataclass(frozen=True, slots=True)
class Event:
    """One event. (tenant, source, external_id) is what makes it unique; `data` is JSON text.

    `accepted_ms` is when a publisher of ours took it (Unix milliseconds), None from foreign producers.
    `digest` is a SHA-256 over what the event says (type, subject, time, data), to tell a repeat from a conflict.
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


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why a message is not an event: the field at fault and what would be right."""

    field: str
    message: str


def read_event(message: Message, *, now: datetime, fresh_id: str, max_bytes: int) -> Event | Unreadable:
    """Read a message as an event. `now` and `fresh_id` fill a missing time and a missing id."""
    raise NotImplementedError
