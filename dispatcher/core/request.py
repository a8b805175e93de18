"""What is sent to an endpoint: headers and body, from an event, the endpoint's recipe and the time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from schemas.events import webhook_body
from schemas.signatures import ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, SigningKey, sign

JSON: Final = "application/json"


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """What an event says. One object for all its deliveries; `data` is the JSON text as it came."""

    type: str
    time: datetime
    data: bytes
    source: str
    external_id: str
    subject: str | None = None
    headers: Mapping[str, str] | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """How an endpoint is written to. Each key signs until its time, or for good."""

    headers: Mapping[str, str]
    keys: tuple[tuple[SigningKey, datetime | None], ...]

    def keys_at(self, now: datetime) -> Sequence[SigningKey]:
        """The keys that sign at `now`: during a rotation, the old ones until they expire."""
        return [key for key, expires_at in self.keys if expires_at is None or expires_at > now]


@dataclass(frozen=True, slots=True, eq=False)
class Composed:
    """A request but for its URL and what belongs to the connection."""

    headers: Mapping[str, str]
    body: bytes
    content_type: str = JSON


def compose(
    recipe: Recipe, content: Content, *, webhook_id: str, now: datetime, traceparent: str | None = None
) -> Composed:
    """The request that delivers `content` when it is begun at `now`, signed."""
    body = webhook_body(type=content.type, time=content.time, data=content.data)
    timestamp = int(now.timestamp())
    headers = {
        **recipe.headers,
        ID_HEADER: webhook_id,
        TIMESTAMP_HEADER: str(timestamp),
        SIGNATURE_HEADER: sign(recipe.keys_at(now), webhook_id=webhook_id, timestamp=timestamp, body=body),
    }
    if traceparent is not None:
        headers["traceparent"] = traceparent
    return Composed(headers if content.headers is None else _over(content.headers, headers), body)


def _over(events: Mapping[str, str], ours: dict[str, str]) -> dict[str, str]:
    """`ours`, and those of an event's headers that are not named there, in whatever letter case.

    An endpoint's own always win: who publishes an event has no say in how its subscribers are authenticated or signed
    to. None is sent twice; receivers differ in which of the two they read.
    """
    taken = {name.lower() for name in ours}
    return {name: value for name, value in events.items() if name.lower() not in taken} | ours
