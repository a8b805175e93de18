"""The keeper: what the broker gave up on becomes a row that people can read, and is acked.

Dead letters of deliveries are rows already, so they are acked as they come; so is a work item over its delivery limit,
because the delivery's row speaks for it and the reconciler will hold it.
"""

import asyncio
from collections.abc import Iterator, Sequence
from hashlib import sha256
from uuid import UUID

import structlog
from uuid_utils.compat import uuid7

from dispatcher.burial import MESSAGE_ID_HEADER, REASON_HEADER, TENANT_HEADER
from infra.broker.base import Consumer, Queue, Received
from infra.store import upkeep
from infra.store.dead_letters import pack_properties
from infra.store.store import Store
from infra.telemetry import Telemetry
from schemas.deliveries import DeadLetterKind
from schemas.errors import StoreError
from schemas.fields import tenant_fault
from schemas.messages import Message

log = structlog.get_logger(__name__)

_LONGEST_PAUSE_S = 2.0
_BATCH = 100
_BATCH_BYTES = 4_194_304  # a message that is too large to be an event may be as large as the broker takes

_Row = tuple[UUID, str, str, str | None, str | None, str | None, str | None, bytes, dict[str, object]]


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
            for batch in _by_size(letters):
                await self._keep([_row(one, kind) for one, kind in batch])
            for _, kind in letters:
                self._metrics.dead_letters.add(1, {"kind": kind.value})
            await consumer.ack(received)

    async def _keep(self, rows: Sequence[_Row]) -> None:
        """Store them, until the database has them; one that it refuses is stored with its bytes alone."""
        pause_s = 0.05
        while True:
            try:
                async with self._store.connection() as connection:
                    columns = map(list, zip(*rows, strict=True))
                    await connection.execute(upkeep.KEEP_DEAD_LETTERS, *columns)
                return
            except StoreError as error:
                log.warning("keeper.retry", letters=len(rows), error=str(error))
            except Exception:
                log.exception("keeper.refused", letters=len(rows))
                if len(rows) > 1:
                    for row in rows:
                        await self._keep([row])
                    return
                rows = [_bare(rows[0])]
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _by_size(letters: Sequence[tuple[Received, DeadLetterKind]]) -> Iterator[list[tuple[Received, DeadLetterKind]]]:
    """The letters in batches of so many bytes that one statement stores them well within its time."""
    batch: list[tuple[Received, DeadLetterKind]] = []
    size_bytes = 0
    for letter in letters:
        if batch and size_bytes + len(letter[0].message.body) > _BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
        batch.append(letter)
        size_bytes += len(letter[0].message.body)
    if batch:
        yield batch


def _row(one: Received, kind: DeadLetterKind) -> _Row:
    message = one.message
    given = message.headers.get(MESSAGE_ID_HEADER)
    message_id = given if isinstance(given, str) else message.message_id
    # Of events it is the producer's own id, which another event may bear too.
    identity = message_id and sha256(message_id.encode("utf-8", "replace") + b"\x00" + message.body).hexdigest()
    return (
        uuid7(),
        kind.value,
        _reason(one, kind),
        _tenant(one, kind),
        identity,
        _storable(message_id),
        _storable(one.routing_key),
        message.body,
        pack_properties(message),
    )


def _bare(row: _Row) -> _Row:
    key, kind, _, tenant, identity, _, _, body, _ = row
    return (
        key,
        kind,
        "its headers cannot be stored",
        tenant,
        identity,
        None,
        None,
        body,
        pack_properties(Message(b"")),
    )


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
    match one.routing_key:
        case DeadLetterKind.DELIVERY:
            return None
        case DeadLetterKind.INVALID:
            return DeadLetterKind.INVALID
    return DeadLetterKind.UNREADABLE


def _tenant(one: Received, kind: DeadLetterKind) -> str | None:
    """Whose it is, which is known of an event that could be read: its tenant's keys see why it was refused."""
    given = one.message.headers.get(TENANT_HEADER)
    if kind is not DeadLetterKind.INVALID or not isinstance(given, str) or tenant_fault(given):
        return None
    return given


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
