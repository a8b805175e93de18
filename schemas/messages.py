"""A message as every broker carries it: the AMQP 0-9-1 fields that we read or write, and no others."""

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType

import msgspec

HeaderValue = str | int | bool | bytes | None

_NO_HEADERS: Mapping[str, HeaderValue] = MappingProxyType({})


class Message(msgspec.Struct, frozen=True):
    """`body` with the headers and properties that travel with it. All but the body may be missing.

    `message_id`, `type`, `timestamp` and `app_id` are the AMQP properties as a foreign producer set them;
    a broker gives each publish of ours a `message_id` of its own (returns are matched by it).
    """

    body: bytes
    headers: Mapping[str, HeaderValue] = msgspec.field(default_factory=lambda: _NO_HEADERS)
    content_type: str | None = None
    message_id: str | None = None
    type: str | None = None
    timestamp: datetime | None = None
    app_id: str | None = None
