"""Identifiers: time-ordered UUIDs inside, TypeIDs (`evt_01h455vb4pex5vsknk084sn02q`) outside.

The first 48 bits of every key are milliseconds since the epoch (UUIDv7, RFC 9562 section 5.7), so that a key
alone tells its partition, pages a list and bounds a time range. The ids of events and deliveries are functions of what
they identify: work repeated after a crash lands on the same rows.
"""

import hashlib
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final
from uuid import UUID

from schemas.errors import InvalidInput

EVENT: Final = "evt"
SUBSCRIPTION: Final = "sub"
DELIVERY: Final = "dlv"
ATTEMPT: Final = "att"
DEAD_LETTER: Final = "dl"
REPLAY: Final = "rpl"
API_KEY: Final = "key"
AUDIT_ENTRY: Final = "aud"
SECRET: Final = "sec"  # noqa: S105 -- a prefix

# How far apart the clocks of two machines may be: what accepts events may be 5 minutes ahead (`schemas.events`).
CLOCKS_APART_MS: Final = 600_000

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's, lower case, as the TypeID specification 0.3
_PAIRS: Final = [first + second for first in _ALPHABET for second in _ALPHABET]
_VALUES: Final = {letter: value for value, letter in enumerate(_ALPHABET)}


@lru_cache(maxsize=8192)  # each id is written several times, a subscription's again and again
def public_id(prefix: str, key: UUID) -> str:
    """The TypeID of `key`: the prefix, an underscore and 26 base32 letters."""
    number = key.int
    letters = [_PAIRS[(number >> shift) & 1023] for shift in range(120, -1, -10)]
    return f"{prefix}_{''.join(letters)}"


def id_pattern(prefix: str) -> str:
    """The regular expression, of JSON Schema, that ids of one kind match."""
    return f"^{prefix}_[0-7][{_ALPHABET}]{{25}}$"


def parse_id(prefix: str, text: str, *, field: str = "id") -> UUID:
    """The key behind a TypeID. Raises InvalidInput that names `field`."""
    given, _, letters = text.rpartition("_")
    if given == prefix and len(letters) == 26 and letters[0] <= "7":
        try:
            number = 0
            for letter in letters:
                number = number << 5 | _VALUES[letter]
            return UUID(int=number)
        except KeyError:
            pass
    raise InvalidInput.of(field, f"must be an id of the form {prefix}_ followed by 26 letters and digits")


def event_key(accepted_ms: int, tenant: str, source: str, external_id: str) -> UUID:
    """The key of an event: when it was accepted, and a hash of what makes it unique.

    The publisher and the dispatcher compute the same key, so the API can name an event before it is admitted.
    """
    return _hashed_key(accepted_ms, f"{tenant}\x00{source}\x00{external_id}".encode())


def delivery_key(event: UUID, subscription: UUID) -> UUID:
    """The key of an event's delivery to a subscription; it shares the event's milliseconds."""
    return _hashed_key(event.int >> 80, event.bytes + subscription.bytes)


def key_ms(key: UUID) -> int:
    """Milliseconds since the epoch that a key was made at."""
    return key.int >> 80


def keys_alike(key: UUID) -> tuple[UUID, UUID]:
    """The smallest and the largest key of the same millisecond."""
    least = key_ms(key) << 80
    return UUID(int=least), UUID(int=least | (1 << 80) - 1)


def least_key_after(key: UUID) -> UUID:
    """A bound below the keys of all that was made after this one, also where a clock is behind (`CLOCKS_APART_MS`)."""
    return UUID(int=max(0, key_ms(key) - CLOCKS_APART_MS) << 80)


def first_key_at(moment: datetime) -> UUID:
    """The smallest possible key of that moment: the bound for a time range over keys."""
    return UUID(int=int(moment.timestamp() * 1000) << 80)


def key_time(key: UUID) -> datetime:
    """The moment, in UTC, that a key was made at."""
    return datetime.fromtimestamp(key_ms(key) / 1000, UTC)


def _hashed_key(ms: int, content: bytes) -> UUID:
    digest = int.from_bytes(hashlib.sha256(content).digest()[:10], "big")
    number = (ms << 80) | digest
    number = number & ~(0xF << 76) | 0x8 << 76  # version 8: custom (RFC 9562 section 5.8)
    number = number & ~(0x3 << 62) | 0x2 << 62
    return UUID(int=number)
