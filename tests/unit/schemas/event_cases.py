"""The parts of the tests of events: example messages, and reading one."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from schemas.events import (
    Event,
    Unreadable,
    read_event,
)
from schemas.messages import HeaderValue, Message

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BIG_NUMBER = b"12345678901234567890123"
BINARY: dict[str, HeaderValue] = {
    "cloudEvents:specversion": "1.0",
    "cloudEvents:id": "id-1",
    "cloudEvents:source": "/shop",
    "cloudEvents:type": "order.created",
}
STRUCTURED: dict[str, Any] = {"specversion": "1.0", "id": "id-1", "source": "/shop", "type": "order.created"}
PLAIN: dict[str, Any] = {"type": "order.created", "data": {"n": 1}}


def read(
    body: bytes | Mapping[str, object] = b"{}", headers: Mapping[str, HeaderValue] | None = None, **properties: Any
) -> Event | Unreadable:
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    message = Message(body=encoded, headers=headers or {}, **properties)
    return read_event(message, now=NOW, fresh_id="fresh", max_bytes=1_000_000)


def event(*args: Any, **kwargs: Any) -> Event:
    outcome = read(*args, **kwargs)
    assert isinstance(outcome, Event), outcome
    return outcome


def unreadable(*args: Any, **kwargs: Any) -> Unreadable:
    outcome = read(*args, **kwargs)
    assert isinstance(outcome, Unreadable), outcome
    return outcome
