"""Dead letters: what was given up on, kept until somebody replays or discards it.

A delivery's has no bytes of its own, its event has them. A message's (unreadable, in conflict, over its delivery limit,
unroutable) holds the message as it came: `body`, and headers and properties as `pack_properties` packs them.
"""

import base64
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from infra.store import deliveries, tables
from infra.store.history import ANY_TIME, TimeRange, time_conditions
from infra.store.outcomes import Missing, Refused
from infra.store.query import Page, column_list, equal, fetch_page
from schemas.messages import HeaderValue, Message

# JSON in PostgreSQL holds neither.
_UNFIT = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class DeadLetterRow:
    """A dead letter, without the message."""

    id: UUID
    kind: str
    reason: str
    tenant: str | None
    delivery_id: UUID | None
    cycle: int | None
    subscription_id: UUID | None
    event_id: UUID | None
    message_id: str | None
    routing_key: str | None
    state: str
    created_at: datetime
    settled_at: datetime | None
    discard_reason: str | None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter and its message; for a delivery, `body` is the `data` of its event.

    None past its retention, and once the event was expunged.
    """

    row: DeadLetterRow
    body: bytes | None = field(repr=False)
    properties: dict[str, Any] | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Which dead letters; None asks for nothing."""

    kind: str | None = None
    state: str | None = None
    tenant: str | None = None
    subscription_id: UUID | None = None
    delivery_id: UUID | None = None
    event_id: UUID | None = None
    created: TimeRange = ANY_TIME


_COLUMNS = column_list(tables.dead_letters, DeadLetterRow)

_GET = f"""
SELECT {_COLUMNS},
       CASE WHEN kind = 'delivery'
            THEN (SELECT data FROM events WHERE events.id = event_id AND expunged_at IS NULL) ELSE body END AS body,
       headers
FROM dead_letters WHERE id = $1
"""  # noqa: S608 -- column names of our own table

_OF_DELIVERY = f"""
SELECT {_COLUMNS} FROM dead_letters WHERE delivery_id = $1 ORDER BY cycle DESC LIMIT $2
"""  # noqa: S608 -- column names of our own table

_SETTLE = f"""
UPDATE dead_letters SET state = $2, discard_reason = $3, settled_at = clock_timestamp() WHERE id = $1 AND state = 'open'
RETURNING {_COLUMNS}
"""  # noqa: S608 -- column names of our own table

# A conflict is of its event already.
_SETTLE_PUBLISHED = f"""
UPDATE dead_letters SET state = 'replayed', settled_at = clock_timestamp(), event_id = coalesce(event_id, $2)
WHERE id = $1 AND state = 'open'
RETURNING {_COLUMNS}
"""  # noqa: S608 -- column names of our own table


async def list_page(
    conn: asyncpg.Connection, wanted: DeadLetterFilter, *, after: UUID | None, limit: int
) -> Page[DeadLetterRow]:
    table = tables.dead_letters
    conditions = equal(
        (table.c.kind, wanted.kind),
        (table.c.state, wanted.state),
        (table.c.tenant, wanted.tenant),
        (table.c.subscription_id, wanted.subscription_id),
        (table.c.delivery_id, wanted.delivery_id),
        (table.c.event_id, wanted.event_id),
    )
    conditions += time_conditions(table, wanted.created)
    return await fetch_page(conn, table, DeadLetterRow, conditions, after=after, limit=limit)


async def get(conn: asyncpg.Connection, dead_letter_id: UUID) -> DeadLetter | Missing:
    return _dead_letter(await conn.fetchrow(_GET, dead_letter_id))


async def of_delivery(conn: asyncpg.Connection, delivery_id: UUID, *, limit: int) -> list[DeadLetterRow]:
    """The last `limit` dead letters of a delivery, one for each cycle that it died in, the latest first."""
    return [DeadLetterRow(**record) for record in await conn.fetch(_OF_DELIVERY, delivery_id, limit)]


async def lock_message(conn: asyncpg.Connection, dead_letter_id: UUID) -> DeadLetter | Missing | Refused:
    """An open dead letter of a message, locked, for the caller to publish it again and then `mark_replayed`.

    Refused rather than waited for when somebody else is at it: both would publish it.
    """
    locked = await conn.fetchval(
        "SELECT id FROM dead_letters WHERE id = $1 FOR NO KEY UPDATE SKIP LOCKED", dead_letter_id
    )
    letter = await get(conn, dead_letter_id)
    if isinstance(letter, Missing):
        return letter
    if locked is None:
        return Refused("the dead letter is being replayed or discarded just now")
    if letter.row.state != "open":
        return _refused(letter.row)
    # Before it is published: as it still is what it was, it comes back, and has to be kept anew.
    await conn.execute("UPDATE dead_letters SET identity = NULL WHERE id = $1", dead_letter_id)
    return letter


async def mark_replayed(conn: asyncpg.Connection, dead_letter_id: UUID, event_id: UUID | None) -> DeadLetterRow:
    """Settle a dead letter that the caller has locked and published, as an event with this key if it is known."""
    record = await conn.fetchrow(_SETTLE_PUBLISHED, dead_letter_id, event_id)
    assert record is not None
    return DeadLetterRow(**record)


async def replay_delivery(conn: asyncpg.Connection, letter: DeadLetterRow) -> DeadLetterRow | Missing | Refused:
    """Replay the delivery of a dead letter.

    The dead letter's own row is locked last, by `deliveries.replay`, as everybody does who replays deliveries.
    """
    assert letter.delivery_id is not None
    if letter.state != "open":
        return _refused(letter)
    if not await deliveries.replay(conn, [letter.delivery_id]):
        return await deliveries.why_not_replayed(conn, letter.delivery_id)
    now = await get(conn, letter.id)
    return now if isinstance(now, Missing) else now.row


async def discard(
    conn: asyncpg.Connection, dead_letter_id: UUID, reason: str | None = None
) -> DeadLetterRow | Missing | Refused:
    """Settle a dead letter that nobody is going to replay. Its delivery stays dead."""
    record = await conn.fetchrow(_SETTLE, dead_letter_id, "discarded", reason)
    if record is not None:
        return DeadLetterRow(**record)
    letter = await get(conn, dead_letter_id)
    return letter if isinstance(letter, Missing) else _refused(letter.row)


def pack_properties(message: Message) -> dict[str, Any]:
    """A message's headers and properties as JSON that PostgreSQL stores whatever they hold.

    Bytes become {"base64": …}, text that JSON in PostgreSQL refuses (NUL, lone surrogates) {"text_base64": …}; names of
    headers are values too, because they are the producer's.
    """
    return {
        "headers": [[_pack(name), _pack(value)] for name, value in message.headers.items()],
        "content_type": _pack(message.content_type),
        "message_id": _pack(message.message_id),
        "type": _pack(message.type),
        "timestamp": message.timestamp and message.timestamp.isoformat(),
        "app_id": _pack(message.app_id),
    }


def unpack_message(body: bytes, packed: dict[str, Any]) -> Message:
    """The message behind what `pack_properties` made."""
    return Message(
        body=body,
        headers={str(_unpack(name)): _unpack(value) for name, value in packed["headers"]},
        content_type=_unpack_text(packed["content_type"]),
        message_id=_unpack_text(packed["message_id"]),
        type=_unpack_text(packed["type"]),
        timestamp=datetime.fromisoformat(packed["timestamp"]) if packed["timestamp"] else None,
        app_id=_unpack_text(packed["app_id"]),
    )


def _pack(value: HeaderValue) -> object:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, str) and _UNFIT.search(value):
        return {"text_base64": base64.b64encode(value.encode("utf-8", "surrogatepass")).decode()}
    return value


def _unpack(value: Any) -> HeaderValue:
    match value:
        case {"base64": str(text)}:
            return base64.b64decode(text)
        case {"text_base64": str(text)}:
            return base64.b64decode(text).decode("utf-8", "surrogatepass")
        case str() | int() | bool() | None:
            return value
    raise TypeError(f"not a packed header value: {type(value).__name__}")


def _unpack_text(value: Any) -> str | None:
    text = _unpack(value)
    return None if text is None else str(text)


def _refused(row: DeadLetterRow) -> Refused:
    return Refused(f"the dead letter was {row.state} already")


def _dead_letter(record: asyncpg.Record | None) -> DeadLetter | Missing:
    if record is None:
        return Missing()
    values = dict(record)
    body, properties = values.pop("body"), values.pop("headers")
    return DeadLetter(DeadLetterRow(**values), body, properties)
