"""Burials: messages that are no event, or none that is taken, go to the dead letters with the reason and their bytes.

Each batch is buried by a task of its own, so good events are admitted meanwhile, however long a confirm takes. A
message stays unacked until its burial is confirmed, so burials that wait are bounded by the consumer's prefetch: with
that many, nothing more is handed out until the broker takes them.

A foreign producer's headers may be such that a message comes with them and cannot be published with them (they fill
their frame, and the reason has no place). Then it is buried with its bytes and the reason alone. And the broker may
have taken larger messages once than it takes now (RabbitMQ 4 has a smaller default). What cannot be published even so
is given back until it is over its delivery limit: the broker dead-letters it itself then, and asks for no size.

Any other one that is not confirmed is published again, and not given back to the broker: coming back again and again it
would become a suspect, which is handed out alone, and a single one would hold up every good event for as long as the
broker refuses publishes (tried: of a hundred, none was admitted in 30 s). One that is a suspect already, by the deaths
of others that handled it, does hold them up for that long.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Self

import structlog
from msgspec.structs import replace
from uuid_utils.compat import uuid7

from infra.broker.base import Broker, Consumer, Outgoing, Received, ToDead
from infra.telemetry import Telemetry
from schemas.deliveries import DeadLetterKind
from schemas.errors import BrokerError, Problem, PublishRefused
from schemas.events import Event, Unreadable
from schemas.messages import Message

log = structlog.get_logger(__name__)

REASON_HEADER: Final = "hookhare-reason"
MESSAGE_ID_HEADER: Final = "hookhare-message-id"  # the one it came with: buried twice by a crash, it is kept once
TENANT_HEADER: Final = "hookhare-tenant"  # whose an event that can be read is
_OURS: Final = frozenset({REASON_HEADER, MESSAGE_ID_HEADER, TENANT_HEADER})
_REASON_LENGTH: Final = 1000
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0


class Burials:
    """Buries what one consumer received. Open as a context: leaving it by an error gives up what is not confirmed."""

    def __init__(self, broker: Broker, telemetry: Telemetry, *, timeout_s: float) -> None:
        self._broker = broker
        self._metrics = telemetry.metrics
        self._timeout_s = timeout_s
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._tasks.__aexit__(*error)  # type: ignore[arg-type]

    def begin(self, consumer: Consumer, unreadable: Sequence[tuple[Received, Unreadable]]) -> None:
        """Bury these; returns at once."""
        for one, why in unreadable:
            log.warning("event.unreadable", field=why.field, reason=why.message, message_id=one.message.message_id)
        waiting = [(one, _letter(one.message, why)) for one, why in unreadable]
        counted = self._metrics.events_unreadable.add
        self._tasks.create_task(self._bury(consumer, DeadLetterKind.UNREADABLE, waiting, counted), name="bury")

    def begin_invalid(self, consumer: Consumer, invalid: Sequence[tuple[Received, Event, Problem]]) -> None:
        """Bury these events, which the catalogue refuses; returns at once. The log does not quote the place in the
        data, whose names are the producer's."""
        for _, event, why in invalid:
            log.warning("event.invalid", event_type=event.type, tenant=event.tenant, reason=why.message)
        waiting = [(one, _letter(one.message, why, tenant=event.tenant)) for one, event, why in invalid]
        counted = partial(self._metrics.events_invalid.add, attributes={"result": "refused"})
        self._tasks.create_task(self._bury(consumer, DeadLetterKind.INVALID, waiting, counted), name="bury")

    async def _bury(
        self,
        consumer: Consumer,
        kind: DeadLetterKind,
        waiting: list[tuple[Received, Message]],
        counted: Callable[[int], None],
    ) -> None:
        """Until all are confirmed, or are this consumer's no more: the broker hands those out anew."""
        pause_s = _FIRST_PAUSE_S
        while waiting:
            letters = [Outgoing(ToDead(kind), letter) for _, letter in waiting]
            errors = await self._broker.publish_many(letters, timeout_s=self._timeout_s)
            told = list(zip(waiting, errors, strict=True))
            buried = [one for (one, _), error in told if error is None]
            await consumer.ack(buried)
            counted(len(buried))
            tries = [(one, _next(letter, error)) for (one, letter), error in told if error is not None]
            await consumer.release([one for one, letter in tries if letter is None])
            waiting = [(one, letter) for one, letter in tries if letter is not None]
            if waiting:
                log.warning("burial.retry", messages=len(waiting), error=str(next(filter(None, errors))))
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                waiting = [(one, letter) for one, letter in waiting if consumer.holds(one)]


def _letter(message: Message, why: Unreadable | Problem, *, tenant: str | None = None) -> Message:
    ours = {} if tenant is None else {TENANT_HEADER: tenant}
    ours |= {
        REASON_HEADER: f"{why.field}: {why.message}"[:_REASON_LENGTH],
        # A foreign producer may have set none. Then it has one for as long as we try: what is not confirmed in time may
        # be stored all the same, and the next try must be known as the same letter.
        MESSAGE_ID_HEADER: message.message_id or uuid7().hex,
    }
    theirs = {name: value for name, value in message.headers.items() if name != TENANT_HEADER}
    return replace(message, headers=theirs | ours)


def _next(letter: Message, error: BrokerError) -> Message | None:
    """What to try after this error: the same, or, if that can never be published, its bytes with our headers alone.

    None: that was tried, too.
    """
    if not (isinstance(error, PublishRefused) and error.unfit):
        return letter
    ours = {name: value for name, value in letter.headers.items() if name in _OURS}
    bare = Message(letter.body, headers=ours)
    return None if letter == bare else bare
