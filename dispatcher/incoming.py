"""An event as admission has it: with the key that it is stored under and the message that brought it."""

from hashlib import sha256
from uuid import UUID

import asyncpg
import msgspec
from uuid_utils.compat import uuid7

from dispatcher.core.request import Content
from infra.broker.base import Received
from infra.store import statements as sql
from infra.store.dead_letters import pack_properties
from schemas.events import Event


class Incoming(msgspec.Struct, frozen=True, eq=False):
    """An event with the key that it will be stored under and the message that brought it."""

    key: UUID
    event: Event
    received: Received
    content: Content

    @property
    def unique(self) -> tuple[str, str, str]:
        return (self.event.tenant, self.event.source, self.event.external_id)


def event_row(one: Incoming) -> tuple[object, ...]:
    """As INSERT_EVENTS takes it."""
    event = one.event
    return (
        one.key,
        event.tenant,
        event.source,
        event.external_id,
        event.type,
        event.subject,
        event.time,
        event.data,
        event.traceparent,
        event.headers,
    )


async def record_conflict(connection: asyncpg.Connection, one: Incoming, event: UUID | None) -> None:
    """The same (tenant, source, id) as of `event` with another content: kept as a dead letter, once for each."""
    message = one.received.message
    identity = sha256(b"\x00".join((*(part.encode() for part in one.unique), one.event.digest))).hexdigest()
    await connection.execute(
        sql.INSERT_CONFLICT,
        uuid7(),
        f"id: {one.event.external_id!r} of source {one.event.source!r} was used before, for another content",
        one.event.tenant,
        f"conflict:{identity}",
        message.message_id,
        one.received.routing_key,
        message.body,
        pack_properties(message),
        event,
    )
