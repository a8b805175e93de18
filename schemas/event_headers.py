"""The headers that an event brings for its own requests, besides those of each subscription.

They travel as JSON text: `{"X-Region": "eu"}`, in CloudEvents as an extension attribute. They are stored and shown as
they are and go to every subscriber of the event, so they cannot hold credentials. They are not part of the digest that
tells a repeat from a conflict: like the time, they say how an event was sent, and who publishes again after a lost
confirm may stamp them anew. What a subscription sets itself always wins (dispatcher/core/request.py).
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from schemas.errors import InvalidInput
from schemas.headers import header_key, headers_fault

# A CloudEvents attribute's name has nothing but lower-case letters and digits.
ATTRIBUTE: Final = "hookhareheaders"
MEMBER: Final = "headers"  # of a plain JSON object, where it is an object itself

# Every delivery in hand has them, and what they hold is not counted as the event's data is.
MAX_EVENT_HEADERS: Final = 10
MAX_EVENT_HEADERS_CHARS: Final = 2048

_CREDENTIALS: Final = frozenset({"authorization", "cookie", "set-cookie"})
# By these an endpoint, or what stands before it, learns who asks, by which method, and through which proxy it answers.
_MISLEADING: Final = frozenset({"forwarded", "proxy", "x-real-ip", "x-method-override"})
_MISLEADING_PREFIXES: Final = ("x-forwarded", "x-http-method")

_decoder = msgspec.json.Decoder(dict[str, str])


def event_headers_fault(headers: Mapping[str, str]) -> str | None:
    """The headers of an event. The fault names the header, never its value."""
    for name in headers:
        key = header_key(name)
        if key in _MISLEADING or key.startswith(_MISLEADING_PREFIXES):
            return f"must not set {name}: it would tell endpoints that the request is another than it is"
        if key in _CREDENTIALS:
            return f"must not set {name}: every subscriber would get it; credentials belong to a subscription"
    return headers_fault(headers, most=MAX_EVENT_HEADERS, most_chars=MAX_EVENT_HEADERS_CHARS)


def write_event_headers(headers: Mapping[str, str]) -> str:
    """The JSON text that `read_event_headers` reads."""
    return msgspec.json.encode(headers).decode()


def told_headers(told: Mapping[str, str]) -> dict[str, str] | None:
    """The headers among an event's attributes, None for none. Raises InvalidInput that names the attribute."""
    text, member = told.get(ATTRIBUTE), told.get(MEMBER)
    if text is not None and member is not None:
        raise InvalidInput.of(MEMBER, f"must not be given beside {ATTRIBUTE}, which says the same")
    if text is not None:
        return read_event_headers(text, field=ATTRIBUTE)
    return None if member is None else read_event_headers(member, field=MEMBER)


def read_event_headers(text: str | bytes, *, field: str) -> dict[str, str] | None:
    """The headers in a JSON text; None for an empty object. Raises InvalidInput that names `field`.

    Of a name that is there twice, the last counts, as with most parsers.
    """
    try:
        headers = _decoder.decode(text)
    except (ValueError, RecursionError):  # msgspec.DecodeError and what cannot be encoded; it may quote a value
        raise InvalidInput.of(field, "must be a JSON object of headers, each name with its value as text") from None
    if fault := event_headers_fault(headers):
        raise InvalidInput.of(field, fault)
    return headers or None
