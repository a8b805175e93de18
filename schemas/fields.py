"""The rules of the text fields that travel with an event or name its owner, each in one place.

A rule (`…_fault`) takes the text and returns None, or what would be right. Everything that passes is storable in
PostgreSQL (no NUL, no lone surrogate) and bounded in bytes, not characters: (tenant, source, id) is an index key, and
PostgreSQL refuses index rows above about 2,700 bytes.
"""

import re
from datetime import UTC, datetime
from typing import Final

MAX_TENANT_BYTES: Final = 64
MAX_TYPE_BYTES: Final = 200  # a routing key of AMQP has at most 255 bytes
MAX_SOURCE_BYTES: Final = 512
MAX_ID_BYTES: Final = 512
MAX_SUBJECT_BYTES: Final = 1024

# The first word of the types of Hookhare's own events. Producers' events may not have it, and a pattern reaches it only
# by having it as its own first word (dispatcher/core/topics.py).
OPERATIONAL_WORD: Final = "hookhare"

_TENANT: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
WORD: Final = r"[A-Za-z0-9_:/-]+"
_TYPE: Final = re.compile(rf"{WORD}(?:\.{WORD})*")
# What a CloudEvents 1.0 String must not contain: control characters, surrogates and noncharacters.
_UNFIT: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
    + "]"
)

_RFC3339: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,30})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)
# W3C Trace Context, section 3.2: no version ff, and no id of zeros alone.
_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


# What of the rules a regular expression or a length can say, for JSON Schemas. There, a length counts characters.
TENANT_SCHEMA: Final = {"pattern": "^[A-Za-z0-9_.-]{1,64}$"}
TYPE_SCHEMA: Final = {"pattern": f"^{WORD}(\\.{WORD})*$", "maxLength": MAX_TYPE_BYTES}
SOURCE_SCHEMA: Final = {"minLength": 1, "maxLength": MAX_SOURCE_BYTES, "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f]*$"}
ID_SCHEMA: Final = SOURCE_SCHEMA | {"maxLength": MAX_ID_BYTES}
SUBJECT_SCHEMA: Final = SOURCE_SCHEMA | {"maxLength": MAX_SUBJECT_BYTES}


def tenant_fault(text: str) -> str | None:
    """A tenant's name."""
    if _TENANT.fullmatch(text):
        return None
    return f"must be 1 to {MAX_TENANT_BYTES} letters, digits, '_', '.' or '-'"


def type_fault(text: str) -> str | None:
    """An event's type. It is the routing key that subscriptions' patterns are matched against."""
    if len(text) <= MAX_TYPE_BYTES and _TYPE.fullmatch(text):
        return None
    return f"must be words of letters, digits, '_', '-', ':' or '/', joined by dots, at most {MAX_TYPE_BYTES} bytes"


def is_operational(text: str) -> bool:
    """Whether a type is one of Hookhare's own events, or a pattern asks for them."""
    return text.partition(".")[0] == OPERATIONAL_WORD


def source_fault(text: str) -> str | None:
    """The name of what produced an event."""
    return _text_fault(text, least=1, most=MAX_SOURCE_BYTES)


def id_fault(text: str) -> str | None:
    """The id that its producer gave an event."""
    return _text_fault(text, least=1, most=MAX_ID_BYTES)


def subject_fault(text: str) -> str | None:
    """What an event is about."""
    return _text_fault(text, least=1, most=MAX_SUBJECT_BYTES)


def description_fault(text: str) -> str | None:
    """A few words for a person; line breaks and tabs are welcome."""
    return _text_fault(re.sub(r"[\t\r\n]", " ", text), least=0, most=1024)


def parse_time(text: str) -> datetime | None:
    """A time of RFC 3339 as UTC, cut to microseconds; None for any other text. A leap second is another text."""
    if not _RFC3339.fullmatch(text):
        return None
    try:
        return in_utc(datetime.fromisoformat(text.upper()))
    except ValueError:
        return None


def in_utc(time: datetime) -> datetime | None:
    """An aware time in UTC; None for a naive one, and for one that its zone moves out of the years 1 to 9999."""
    try:
        return time.astimezone(UTC) if time.tzinfo else None
    except OverflowError:
        return None


def is_traceparent(text: str) -> bool:
    """Whether `text` is a `traceparent` of the W3C's form."""
    return _TRACEPARENT.fullmatch(text) is not None


def _text_fault(text: str, *, least: int, most: int) -> str | None:
    # Characters first: a lone surrogate cannot be counted in bytes.
    if _UNFIT.search(text) or not least <= len(text.encode()) <= most:
        return f"must be {least} to {most} bytes of text without control characters"
    return None
