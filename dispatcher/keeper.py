"""The keeper: what the broker gave up on becomes a row that people can read, and is acked.

Dead letters of deliveries are rows already, so they are acked as they come; so is a work item over its delivery limit,
because the delivery's row speaks for it and the reconciler will hold it.
"""

import asyncio
from collections.abc import Sequence

import structlog
from uuid_utils.compat import uuid7

from dispatcher.admission import REASON_HEADER
from infra.broker.base import Consumer, Queue, Received
from infra.store import statements as sql
from infra.store.dead_letters import pack_properties
from infra.store.store import Store
from infra.telemetry import Telemetry
from schemas.deliveries import DeadLetterKind
from schemas.errors import StoreError
from schemas.messages import Message

log = structlog.get_logger(__name__)

_LONGEST_PAUSE_S = 2.0
_BATCH = 100  # each with a body of up to the broker's limit


class Keeper:
    """Consumes the dead letters, or what was unroutable."""

    def __init__(self, store: Store, telemetry: Telemetry) -> None:
        self._store = store
        self._metrics = telemetry.metrics

    async def run(self, consumer: Consumer, queue: Queue) -> None:
        """Keep for ever."""
        while True:
            received = await consumer.receive(_BATCH)
            letters = [(one, kind) for one in received if (kind := _kind(one, queue)) is not None]
            if letters:
                await self._keep(letters)
            await consumer.ack(received)

    async def _keep(self, letters: Sequence[tuple[Received, DeadLetterKind]]) -> None:
        """Store them, until the database has them; one that it refuses is stored with its bytes alone."""
        pause_s = 0.05
        rows = [_row(one, kind) for one, kind in letters]
        while True:
            try:
                await self._store_letters(rows)
                break
            except StoreError as error:
                log.warning("keeper.retry", letters=len(letters), error=str(error))
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            except Exception:
                log.exception("keeper.refused", letters=len(letters))
                rows = [_bare_row(one, kind) for one, kind in letters]
                await asyncio.sleep(pause_s)
        for _, kind in letters:
            self._metrics.dead_letters.add(1, {"kind": kind.value})

    async def _store_letters(self, rows: Sequence[tuple[object, ...]]) -> None:
        async with self._store.connection() as connection:
            await connection.execute(sql.KEEP_DEAD_LETTERS, *map(list, zip(*rows, strict=True)))


def _row(one: Received, kind: DeadLetterKind) -> tuple[object, ...]:
    message = one.message
    return (
        uuid7(),
        kind.value,
        _reason(one, kind),
        _storable(message.message_id),
        _storable(one.routing_key),
        message.body,
        pack_properties(message),
    )


def _bare_row(one: Received, kind: DeadLetterKind) -> tuple[object, ...]:
    return (uuid7(), kind.value, "its headers cannot be stored", None, None, one.message.body, pack_properties(_BARE))


_BARE = Message(b"")


def _storable(text: str | None) -> str | None:
    """PostgreSQL's text holds no NUL; a routing key may."""
    return text and text.replace("\x00", "\ufffd")


def _kind(one: Received, queue: Queue) -> DeadLetterKind | None:
    """What a message at the keeper is; None for what is told by a delivery's row."""
    if queue is Queue.UNROUTED:
        return DeadLetterKind.UNROUTABLE
    match one.dead_lettered_from:
        case Queue.EVENTS:
            return DeadLetterKind.OVER_DELIVERY_LIMIT
        case Queue.WORK:
            return None
    return None if one.routing_key == DeadLetterKind.DELIVERY else DeadLetterKind.UNREADABLE


def _reason(one: Received, kind: DeadLetterKind) -> str:
    given = one.message.headers.get(REASON_HEADER)
    if isinstance(given, str):
        return given.replace("\x00", "\ufffd")[:1000]
    match kind:
        case DeadLetterKind.OVER_DELIVERY_LIMIT:
            return "it came back more often than the delivery limit: it may kill the dispatcher that handles it"
        case DeadLetterKind.UNROUTABLE:
            return f"the broker had no queue for the routing key {one.routing_key!r}".replace("\x00", "\ufffd")
        case _:
            return "dead-lettered without a reason"
