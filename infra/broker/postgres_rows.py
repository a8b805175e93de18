"""Messages as rows of `queue_messages`: every statement of the PostgreSQL broker, and what goes in and out of them.

A row is due when `visible_at` has passed. Handing a message out sets `visible_at` to the end of its lease and
`consumer` to who has it; so a consumer that died, and no longer renews, gives its messages back by doing nothing. A row
that has, or had, a consumer was handed out before: that is what `delivery_count` counts when it is handed out again.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from infra.broker.base import SUSPECT_DELIVERY_COUNT, Outgoing, Queue, Received, ToDead, ToEvents, ToWorkAfter
from infra.broker.ladder import RUNGS_MS
from schemas.errors import PublishRefused, Unroutable
from schemas.messages import HeaderValue, Message

CHANNEL: Final = "hookhare_queue"  # its notifications name a queue that has something new, and carry nothing else

# The key that a message over its delivery limit is dead-lettered with.
DEAD_KEYS: Final[Mapping[Queue, str]] = {Queue.EVENTS: "events", Queue.WORK: "work"}

_MAX_KEY_BYTES: Final = 255  # a routing key on AMQP; here so that what the embedded mode takes, RabbitMQ takes
_SHORTEST_DELAY_S: Final = RUNGS_MS[0] / 1000
# What brokers write for their own use is not copied from one message to the next, as over AMQP.
_BROKERS_OWN: Final = re.compile(r"x-death|x-(first|last)-death-.*|x-(delivery|acquired)-count|CC|BCC", re.DOTALL)
_UNFIT: Final = re.compile("[\x00\ud800-\udfff]")  # PostgreSQL's text and jsonb hold neither

# clock_timestamp(), not now(): the wait begins when the row is written, however long the statement took to get there.
STORE: Final = """
    INSERT INTO queue_messages (queue, message_id, routing_key, body, headers, content_type, type, "timestamp", app_id,
                                visible_at)
    SELECT queue, message_id, routing_key, body, headers, content_type, type, "timestamp", app_id,
           clock_timestamp() + make_interval(secs => delay_s)
      FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::jsonb[], $6::text[], $7::text[],
                  $8::timestamptz[], $9::text[], $10::float8[])
        AS new (queue, message_id, routing_key, body, headers, content_type, type, "timestamp", app_id, delay_s)
"""

NOTIFY: Final = f"SELECT pg_notify('{CHANNEL}', queue) FROM unnest($1::text[]) AS queue"  # noqa: S608

# The sole consumer in order of queue $1 holds this lock for as long as its connection lives.
_SOLE: Final = "hashtextextended('hookhare: in order from ' || $1, 0)"
BECOME_SOLE: Final = f"SELECT pg_try_advisory_lock({_SOLE}) AS mine"
END_SOLE: Final = f"""
    SELECT pg_terminate_backend(pid) FROM pg_locks
     WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND pid <> pg_backend_pid()
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND (classid::bigint << 32) | objid::bigint = {_SOLE}
"""  # noqa: S608
# Everything of queue $1 that was ever handed out and is still there is handed out again to consumer $2, before the
# rest: by `id`, which is the order of publish. Nobody else's acks and renewals reach it any more.
TAKE_OVER: Final = """
    UPDATE queue_messages SET consumer = $2, visible_at = 'epoch' WHERE queue = $1 AND consumer IS NOT NULL
"""

# Hands out up to $2 messages of queue $1 to consumer $3 for $4 seconds: those that were due first.
# - Suspects are left, and counted in `suspects`, unless $5: then, if there is one, it is handed out and nothing else.
# - What came back more often than $6 times moves to the dead letters with the key $7. Without a $6, nothing does.
# - `next_s` is how many seconds from now the next message is due.
# - At least one row comes back; it has no id when nothing was handed out.
# statement_timestamp() is stable, which lets the index bound the scan; clock_timestamp() would read the whole future.
_ALONE: Final = f"""CASE WHEN $5 AND EXISTS (SELECT FROM suspects)
                    THEN due.id = (SELECT id FROM suspects ORDER BY visible_at, id LIMIT 1)
                    ELSE due.times < {SUSPECT_DELIVERY_COUNT} AND ($6::int IS NULL OR due.times <= $6) END"""  # noqa: S608
# In order: those before the first suspect, or, where it is the first of all, it alone.
_ALONE_IN_ORDER: Final = f"""($6::int IS NULL OR due.times <= $6)
           AND NOT EXISTS (SELECT FROM suspects WHERE (visible_at, id) < (due.visible_at, due.id))
           AND (due.times < {SUSPECT_DELIVERY_COUNT}
                OR $5 AND NOT EXISTS (SELECT FROM due AS before WHERE (visible_at, id) < (due.visible_at, due.id)
                                         AND ($6::int IS NULL OR before.times <= $6)))"""  # noqa: S608
_CLAIM: Final = f"""
    WITH due AS MATERIALIZED (
        SELECT id, visible_at, delivery_count + (consumer IS NOT NULL)::int AS times
          FROM queue_messages
         WHERE queue = $1 AND visible_at <= statement_timestamp()
         ORDER BY visible_at, id LIMIT $2
           FOR UPDATE SKIP LOCKED
    ), suspects AS (
        SELECT id, visible_at FROM due
         WHERE times >= {SUSPECT_DELIVERY_COUNT} AND ($6::int IS NULL OR times <= $6)
    ), moved AS (
        UPDATE queue_messages AS message
           SET queue = '{Queue.DEAD_LETTERS}', dead_lettered_from = $1, routing_key = $7,
               visible_at = statement_timestamp(), consumer = NULL, delivery_count = 0
          FROM due WHERE message.id = due.id AND due.times > $6
        RETURNING 1
    ), taken AS (
        UPDATE queue_messages AS message
           SET consumer = $3, visible_at = statement_timestamp() + make_interval(secs => $4), delivery_count = due.times
          FROM due
         WHERE message.id = due.id
           AND %s
        RETURNING message.*, due.visible_at AS due_at
    )
    SELECT told.*, taken.*
      FROM (SELECT (SELECT count(*) FROM suspects) AS suspects,
                   (SELECT count(*) FROM moved) AS moved,
                   (SELECT extract(epoch FROM min(visible_at) - clock_timestamp())::float8 FROM queue_messages
                     WHERE queue = $1 AND visible_at > statement_timestamp()) AS next_s) AS told
      LEFT JOIN taken ON true
     ORDER BY taken.due_at, taken.id
"""  # noqa: S608 - constants of our own
CLAIM: Final = _CLAIM % _ALONE
CLAIM_IN_ORDER: Final = _CLAIM % _ALONE_IN_ORDER

# Since then the lease may have run out, and somebody else may have had the message.
_STILL_MINE: Final = """
      FROM unnest($2::bigint[], $3::timestamptz[]) AS mine (id, due_at)
     WHERE message.id = mine.id AND message.consumer = $1
"""
ACK: Final = f"DELETE FROM queue_messages AS message {_STILL_MINE.replace('FROM', 'USING', 1)}"  # noqa: S608
# Back to the place that it had in the queue.
RELEASE: Final = f"UPDATE queue_messages AS message SET visible_at = mine.due_at {_STILL_MINE}"  # noqa: S608
RENEW: Final = f"""
    UPDATE queue_messages AS message SET visible_at = statement_timestamp() + make_interval(secs => $4) {_STILL_MINE}
"""  # noqa: S608

# The broker's connections see one table, by its indexes, a batch at a time. After a quiet time the statistics say that
# it is empty, and until they are renewed the planner would read all of a backlog, and sort it, for each claim.
PLANNER: Final[Mapping[str, str]] = {
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
}


@dataclass(frozen=True, slots=True)
class Handed:
    """One handing out of a message: the token of a `Received`."""

    id: int
    consumer: UUID
    delivery_count: int
    due_at: datetime


def to_row(outgoing: Outgoing) -> tuple[Any, ...]:
    """The arguments that STORE has for one message. Raises Unroutable or PublishRefused."""
    message = outgoing.message
    queue, routing_key, delay_s = _address(outgoing)
    texts = (message.content_type, message.type, message.app_id)
    if any(text is not None and _UNFIT.search(text) for text in (routing_key, *texts)):
        raise PublishRefused("a property holds a NUL or half a surrogate pair", unfit=True)
    content_type, kind, app_id = texts
    return (
        queue.value,
        uuid7().hex,
        routing_key,
        message.body,
        _pack_headers(message.headers),
        content_type,
        kind,
        _in_utc(message.timestamp),
        app_id,
        delay_s,
    )


def to_received(row: asyncpg.Record) -> Received:
    """What a row that CLAIM handed out means."""
    return Received(
        message=Message(
            body=row["body"],
            headers={name: _unpack(value) for name, value in row["headers"].items()},
            content_type=row["content_type"],
            message_id=row["message_id"],
            type=row["type"],
            timestamp=row["timestamp"],
            app_id=row["app_id"],
        ),
        routing_key=row["routing_key"],
        delivery_count=row["delivery_count"],
        redelivered=row["delivery_count"] > 0,
        dead_lettered_from=row["dead_lettered_from"],
        token=Handed(row["id"], row["consumer"], row["delivery_count"], row["due_at"]),
    )


def _address(outgoing: Outgoing) -> tuple[Queue, str, float]:
    match outgoing.to:
        case ToEvents(event_type):
            if len(event_type.encode("utf-8", "surrogatepass")) > _MAX_KEY_BYTES:
                raise Unroutable(f"an event type has at most {_MAX_KEY_BYTES} bytes")
            return Queue.EVENTS, event_type, 0
        case ToWorkAfter(delay_s):
            # As long as the first rung of RabbitMQ's ladder at least. So nobody has to be woken for it: every consumer
            # looks once a second when the next message is due.
            return Queue.WORK, DEAD_KEYS[Queue.WORK], max(delay_s, _SHORTEST_DELAY_S)
        case ToDead(kind):
            return Queue.DEAD_LETTERS, kind, 0


def _in_utc(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


def _pack_headers(headers: Mapping[str, HeaderValue]) -> dict[str, Any]:
    packed = {}
    for name, value in headers.items():
        if _UNFIT.search(name):
            raise PublishRefused("a header's name holds a NUL or half a surrogate pair", unfit=True)
        if not _BROKERS_OWN.fullmatch(name):
            packed[name] = _pack(value)
    return packed


def _pack(value: HeaderValue) -> Any:
    """What JSON has no form for as an object with one member that says what it is."""
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, str) and _UNFIT.search(value):
        return {"text": base64.b64encode(value.encode("utf-8", "surrogatepass")).decode()}
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise PublishRefused("a header's number has more than 64 bits", unfit=True)
    return value


def _unpack(value: Any) -> HeaderValue:
    if not isinstance(value, dict):
        return value  # type: ignore[no-any-return]
    if "text" in value:
        return base64.b64decode(value["text"]).decode("utf-8", "surrogatepass")
    return base64.b64decode(value["bytes"])
