"""Messages between our form and AMQP's.

What a broker or a client library writes into the headers for its own use is kept out of ours, in both directions:
RabbitMQ up to 3.13 interprets a republished `x-death` (a second walk up the ladder vanished), and `CC` and `BCC`
route.
"""

import re
from collections.abc import Mapping
from typing import Any, Final
from uuid import uuid4

from pamqp.commands import Basic

from infra.broker.amqp_properties import as_ascii, read_properties
from infra.broker.amqp_reader import Delivered
from infra.broker.base import Queue, Received
from schemas.errors import PublishRefused
from schemas.messages import HeaderValue, Message

# A header frame cannot be split, and one above the negotiated frame size (131,072 bytes by default) ends the
# connection.
MAX_HEADERS_BYTES: Final = 120_000

_PERSISTENT: Final = 2
_BROKERS_OWN: Final = re.compile(r"x-death|x-(first|last)-death-.*|x-(delivery|acquired)-count|CC|BCC", re.DOTALL)
_DELIVERY_COUNT: Final = "x-delivery-count"
_GIVEN_UP: Final = frozenset({Queue.DEAD_LETTERS, Queue.UNROUTED})


def to_properties(message: Message) -> Basic.Properties:
    """The AMQP properties of a publish, with an id of its own. Raises PublishRefused for what AMQP cannot carry."""
    headers = {name: _encodable(value) for name, value in message.headers.items() if not _BROKERS_OWN.fullmatch(name)}
    if _size(message.headers) > MAX_HEADERS_BYTES:
        raise PublishRefused(f"the headers are larger than {MAX_HEADERS_BYTES} bytes", unfit=True)
    return Basic.Properties(
        content_type=message.content_type,
        headers=headers or None,
        delivery_mode=_PERSISTENT,
        message_id=uuid4().hex,  # aiormq matches returns by it: two publishes with the same one would swap outcomes
        timestamp=message.timestamp,
        message_type=message.type,
        app_id=message.app_id,
    )


def to_received(delivered: Delivered, queue: Queue, token: object) -> Received:
    """What a consumer of `queue` is handed."""
    properties = read_properties(delivered.properties)
    raw = properties.headers
    return Received(
        message=Message(
            body=delivered.body,
            headers={name: readable(value) for name, value in raw.items() if not _BROKERS_OWN.fullmatch(name)},
            content_type=properties.content_type,
            message_id=properties.message_id,
            type=properties.message_type,
            timestamp=properties.timestamp,
            app_id=properties.app_id,
        ),
        routing_key=_routing_key(delivered.routing_key),
        delivery_count=_delivery_count(raw) if delivered.redelivered else 0,
        redelivered=delivered.redelivered,
        dead_lettered_from=_dead_lettered_from(raw) if queue in _GIVEN_UP else None,
        token=token,
    )


def _routing_key(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return as_ascii(raw)


def readable(value: Any) -> HeaderValue:
    """A header's value as ours; what has no counterpart (a table, a list, a float, a moment) as text."""
    if value is None or isinstance(value, str | int | bytes):  # a bool is an int
        return value
    return bytes(value) if isinstance(value, bytearray) else str(value)


def _encodable(value: HeaderValue) -> Any:
    if isinstance(value, bytes):
        return bytearray(value)  # pamqp knows only this type as AMQP's byte array
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise PublishRefused("a header's number has more than 64 bits", unfit=True)
    return value


def _size(headers: Mapping[str, HeaderValue]) -> int:
    """At most so many bytes: UTF-8 needs up to four for a character."""
    size = 0
    for name, value in headers.items():
        size += 16 + 4 * len(name)
        if isinstance(value, str):
            size += len(value) if value.isascii() else 4 * len(value)
        elif isinstance(value, bytes):
            size += len(value)
    return size


def _delivery_count(headers: Mapping[str, Any]) -> int:
    """Read only on a redelivery: on a first one the header is absent, or was put there by the producer."""
    count = headers.get(_DELIVERY_COUNT)
    return count if isinstance(count, int) and count > 0 else 1


def _dead_lettered_from(headers: Mapping[str, Any]) -> str | None:
    """The queue that the message came from last: a retry was in a queue of the ladder before that."""
    deaths = headers.get("x-death")
    newest = deaths[0].get("queue") if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else None
    for queue in (newest, headers.get("x-last-death-queue"), headers.get("x-first-death-queue")):
        if isinstance(queue, str):
            return queue
    return None
