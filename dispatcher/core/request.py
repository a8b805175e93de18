"""What is sent to an endpoint: headers and body, from an event, the endpoint's recipe and the time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, assert_never

import msgspec

from schemas.cloudevents import BINARY, STRUCTURED, binary_headers, structured_body
from schemas.events import Event, webhook_body
from schemas.formats import Format
from schemas.headers import header_key
from schemas.signatures import (
    ID_HEADER,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    SigningKey,
    hex_signature,
    sign,
)

JSON: Final = "application/json"


class Content(msgspec.Struct, frozen=True, eq=False):
    """What an event says. One object for all its deliveries; `data` is the JSON text as it came.

    Of one that was expunged there is no data, and it is not sent.
    """

    type: str
    time: datetime
    data: bytes
    source: str
    external_id: str
    subject: str | None = None
    headers: Mapping[str, str] | None = None
    traceparent: str | None = None
    expunged: bool = False


def content_of(event: Event) -> Content:
    return Content(
        type=event.type,
        time=event.time,
        data=event.data,
        source=event.source,
        external_id=event.external_id,
        subject=event.subject,
        headers=event.headers,
        traceparent=event.traceparent,
    )


@dataclass(frozen=True, slots=True, eq=False)
class HexHeader:
    """The header of the scheme hmac: before each hex signature stands the prefix."""

    name: str
    prefix: str


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """How an endpoint is written to. Each key signs until its time, or for good.

    With a `hex_header` all keys are HMACs that sign the body alone; without, they sign by Standard Webhooks.
    `hidden` are the secrets among its headers, as `dispatcher.core.echo` looks for them in the answers.
    """

    headers: Mapping[str, str]
    keys: tuple[tuple[SigningKey, datetime | None], ...]
    format: Format = Format.STANDARD
    hex_header: HexHeader | None = None
    hidden: tuple[str, ...] = ()

    def keys_at(self, now: datetime) -> Sequence[SigningKey]:
        """The keys that sign at `now`: during a rotation, the old ones until they expire."""
        return [key for key, expires_at in self.keys if expires_at is None or expires_at > now]


class Composed(msgspec.Struct, frozen=True, eq=False):
    """A request but for its URL and what belongs to the connection."""

    headers: Mapping[str, str]
    body: bytes
    content_type: str = JSON


def compose(
    recipe: Recipe, content: Content, *, webhook_id: str, now: datetime, traceparent: str | None = None
) -> Composed:
    """The request that delivers `content` when it is begun at `now`, signed."""
    headers = {**recipe.headers}
    content_type = JSON
    match recipe.format:
        case Format.STANDARD:
            body = webhook_body(type=content.type, time=content.time, data=content.data)
        case Format.CLOUDEVENTS_STRUCTURED:
            body, content_type = _structured(content), STRUCTURED
        case Format.CLOUDEVENTS_BINARY:
            body, content_type = content.data, BINARY
            headers |= _attributes(content)
        case _:
            assert_never(recipe.format)
    headers[ID_HEADER] = webhook_id
    keys = recipe.keys_at(now)
    if recipe.hex_header is None:
        timestamp = int(now.timestamp())
        headers[TIMESTAMP_HEADER] = str(timestamp)
        headers[SIGNATURE_HEADER] = sign(keys, webhook_id=webhook_id, timestamp=timestamp, body=body)
    else:
        headers[recipe.hex_header.name] = _hex_signatures(recipe.hex_header.prefix, keys, body)
    if traceparent is not None:
        headers["traceparent"] = traceparent
    headers = headers if content.headers is None else _over(content.headers, headers)
    return Composed(headers, body, content_type)


def _over(events: Mapping[str, str], ours: dict[str, str]) -> dict[str, str]:
    """`ours`, and those of an event's headers that are not named there, in whatever form of the name.

    An endpoint's own always win: who publishes an event has no say in how its subscribers are authenticated or signed
    to. None is sent twice; receivers differ in which of the two they read.
    """
    taken = {header_key(name) for name in ours}
    return {name: value for name, value in events.items() if header_key(name) not in taken} | ours


def _hex_signatures(prefix: str, keys: Sequence[SigningKey], body: bytes) -> str:
    """One for each key, newest first, joined by commas. No timestamp goes with it: nothing would vouch for that."""
    return ",".join([f"{prefix}{hex_signature(key, body)}" for key in keys])


def _structured(content: Content) -> bytes:
    return structured_body(
        external_id=content.external_id,
        source=content.source,
        type=content.type,
        time=content.time,
        subject=content.subject,
        data=content.data,
    )


def _attributes(content: Content) -> Mapping[str, str]:
    return binary_headers(
        external_id=content.external_id,
        source=content.source,
        type=content.type,
        time=content.time,
        subject=content.subject,
    )
