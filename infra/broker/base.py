"""The broker as the rest of Hookhare sees it.

There are two: RabbitMQ (`infra/broker/rabbitmq.py`) and, for the embedded mode, a PostgreSQL table
(`infra/broker/postgres.py`). Every sentence of `Broker`'s docstring is a test in `tests/contract/`, run
over both.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Protocol, Self

import msgspec

from schemas.errors import BrokerError
from schemas.messages import Message


class Queue(StrEnum):
    """The queues that somebody consumes. The ladder's queues are the broker's own business."""

    EVENTS = "hookhare.events"
    WORK = "hookhare.work"
    DEAD_LETTERS = "hookhare.dead-letters"
    UNROUTED = "hookhare.unrouted"


@dataclass(frozen=True, slots=True)
class ToEvents:
    """To the events exchange; `event_type` is the routing key (at most 255 bytes)."""

    event_type: str


@dataclass(frozen=True, slots=True)
class ToWorkAfter:
    """To the work queue, on the first rung of the ladder that is not shorter than `delay_s`."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class ToDead:
    """To the dead-letter exchange; `kind` (a `DeadLetterKind`) is the routing key."""

    kind: str


Address = ToEvents | ToWorkAfter | ToDead


@dataclass(frozen=True, slots=True)
class Outgoing:
    to: Address
    message: Message


class Received(msgspec.Struct, frozen=True, eq=False):
    """A message handed to a consumer, its own until it is acked, released or its consumer is lost.

    `delivery_count` is how often the message was handed out before and came back. `dead_lettered_from` names the
    queue whose delivery limit or expiry brought it to the dead letters; `routing_key` is the key it was last
    routed by. `token` is the adapter's own.
    """

    message: Message
    routing_key: str
    delivery_count: int
    redelivered: bool
    dead_lettered_from: str | None
    token: object


class Consumer(Protocol):
    """Hands out the messages of one queue, a batch at a time. One task receives; any task acks."""

    async def receive(self, limit: int) -> Sequence[Received]:
        """Wait for a message, then return what is there at once: at least one, at most `limit`.

        Waits through lost connections. A suspect (see `Broker`) is returned alone.
        """
        ...

    async def ack(self, received: Sequence[Received]) -> None:
        """Tell the broker that these are done. Those of a connection since lost are passed over."""
        ...

    async def release(self, received: Sequence[Received]) -> None:
        """Give these back, to be handed out again. Those of a connection since lost are passed over."""
        ...

    def holds(self, received: Received) -> bool:
        """Whether this is still the consumer's own: neither acked nor released, and its connection not lost."""
        ...


class Broker(Protocol):
    """Publishes and consumes. Open between `__aenter__` and `__aexit__`; the topology is declared on entry.

    Publishing:
    - `publish` returns only when the message is stored durably: a broker killed right after still has it.
    - A message that no queue is bound for raises `Unroutable`, and nothing is stored.
    - A broker that refuses or blocks raises `PublishRefused`, and nothing is stored. One that is away raises
      `BrokerUnavailable`, and no confirm in time, or a broker that began to block meanwhile, `PublishTimeout`: then it
      may be stored. Each within `timeout_s`, never a hang.
    - `publish_many` pipelines; its result has for each message, in order, None or the error.
    - Body, headers, content type and the properties arrive as they were sent, but for `message_id`, which is fresh for
      each publish. `x-death` headers are never republished.

    Delay:
    - A message sent `ToWorkAfter(d)` arrives in the work queue never earlier than d, and at most 19 % plus 1 s late
      (d between 0 and 24 h; 0 takes the first rung, 1 s).
    - Messages of different delays do not wait for each other.

    Consuming:
    - A message that is received and not acked is handed out again when its consumer closes, dies or loses its
      connection, to any consumer of the queue, with `redelivered` set and a larger `delivery_count`.
    - An acked message is never handed out again. A released one is, at once.
    - At most `prefetch` messages are unacked at a consumer at any time; the others wait in the broker.
    - A message of the events or work queue that came back more often than the delivery limit goes to the dead letters
      with its body, its headers, and the name of the queue it came from.
    - A suspect, which is a message with a `delivery_count` of 3 or more, is handed out alone: no other message is
      unacked at that consumer while it is, and until it is acked; so a message that kills its consumer takes no
      neighbour along.
    - A dead letter stays in its queue until a keeper acks it, however often it is looked at.

    Consuming in order (`in_order`), by one consumer at a time, which is for its users to see to:
    - It is handed the messages in the order in which they were published: over RabbitMQ those of one channel, over
      PostgreSQL those of one publisher. So are those that come back, be it from a consumer that died or closed.
    - It is handed nothing that comes after a message that another consumer has in hand. Over RabbitMQ it waits until
      there is no other consumer; over PostgreSQL it ends the one before it, and takes over what that has in hand.
    - A suspect is handed out alone in its place: those before it are acked by then, and those behind it wait.
    - What is released loses its place. To keep it, close the consumer: all that is not acked goes back, in order.

    Connections:
    - A cut connection restores itself, and consumers with it; publishing works again once the broker is back.
    - Closing gives back what is not acked and returns within a few seconds, even when the broker is away.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def publish(self, outgoing: Outgoing, *, timeout_s: float) -> None:
        """Store one message. Raises `BrokerError`, as above."""
        ...

    async def publish_many(self, outgoing: Sequence[Outgoing], *, timeout_s: float) -> Sequence[BrokerError | None]:
        """Store several at once; one that fails does not keep the others back."""
        ...

    def consume(self, queue: Queue, *, prefetch: int, in_order: bool = False) -> AbstractAsyncContextManager[Consumer]:
        """Consume `queue` for as long as the context is open. In order, always with the same `prefetch`."""
        ...

    async def check(self, *, timeout_s: float) -> None:
        """Really ask the broker whether it would take a message and has our topology. Raises `BrokerError`."""
        ...


SUSPECT_DELIVERY_COUNT = 3
