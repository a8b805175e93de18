"""RabbitMQ's exchanges, queues and bindings, as data, with the reason for every argument; and their declaration.

Everything is durable. Every queue is a quorum queue: it is replicated in a cluster, counts how often a message came
back, and a publish to it is confirmed only when it is on disk on a majority of its nodes. Runs on RabbitMQ 3.10 to 4.x,
with no plugin.

Declaring is idempotent and is repeated on every new connection, so that a broker that was wiped serves again. A queue's
arguments cannot be changed once it exists: an argument below is a promise to every installation. What may have to be
tuned later belongs into a RabbitMQ policy or under a new queue name.

Left out: taking away what an earlier version declared.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from infra.broker.base import Queue
from infra.broker.ladder import RUNGS_MS
from schemas.errors import ConfigurationError

EVENTS_EXCHANGE: Final = "hookhare.events"
RETRY_EXCHANGE: Final = "hookhare.retry"
DUE_EXCHANGE: Final = "hookhare.due"
DEAD_EXCHANGE: Final = "hookhare.dead"
UNROUTED_EXCHANGE: Final = "hookhare.unrouted"

# How often a dead letter may be looked at and given back. In effect without limit, and still a number: -1 deletes a
# message at its first return on 3.10, and without the argument 4.x deletes it at its 20th.
KEPT_DELIVERY_LIMIT: Final = 1_000_000

DEFAULT_DELIVERY_LIMIT: Final = 100

Arguments = Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class TopologyOptions:
    """What of the topology is a setting.

    `events_delivery_limit`: how often a message of the events or work queue may come back before it is dead-lettered.
    `event_bindings`: further exchanges to take events from, each `exchange:routing-key-pattern`. They must exist.
    """

    events_delivery_limit: int = DEFAULT_DELIVERY_LIMIT
    event_bindings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExchangeSpec:
    name: str
    kind: Literal["topic", "fanout"]
    arguments: Arguments


@dataclass(frozen=True, slots=True)
class QueueSpec:
    name: str
    arguments: Arguments


@dataclass(frozen=True, slots=True)
class BindingSpec:
    exchange: str
    queue: str
    routing_key: str


@dataclass(frozen=True, slots=True)
class Topology:
    """In the order in which it is declared. `foreign` names the bound exchanges that are not ours to declare."""

    exchanges: tuple[ExchangeSpec, ...]
    queues: tuple[QueueSpec, ...]
    bindings: tuple[BindingSpec, ...]
    foreign: frozenset[str]


def topology(options: TopologyOptions) -> Topology:
    """The whole topology. Raises ConfigurationError for an event binding that cannot be one."""
    foreign = tuple(_event_binding(text) for text in options.event_bindings)
    return Topology(
        exchanges=_exchanges(),
        queues=(
            _worked_queue(Queue.EVENTS, "events", options.events_delivery_limit),
            _worked_queue(Queue.WORK, "work", options.events_delivery_limit),
            *(_rung(ms) for ms in RUNGS_MS),
            _kept_queue(Queue.DEAD_LETTERS),
            _kept_queue(Queue.UNROUTED),
        ),
        bindings=(
            BindingSpec(EVENTS_EXCHANGE, Queue.EVENTS.value, "#"),
            BindingSpec(DUE_EXCHANGE, Queue.WORK.value, "#"),
            *(BindingSpec(RETRY_EXCHANGE, rung_queue(ms), str(ms)) for ms in RUNGS_MS),
            BindingSpec(DEAD_EXCHANGE, Queue.DEAD_LETTERS.value, "#"),
            BindingSpec(UNROUTED_EXCHANGE, Queue.UNROUTED.value, ""),
            *foreign,
        ),
        foreign=frozenset(binding.exchange for binding in foreign),
    )


def rung_queue(ms: int) -> str:
    """The name of the ladder's queue that holds a message for `ms` milliseconds."""
    return f"hookhare.retry.{ms}"


def _exchanges() -> tuple[ExchangeSpec, ...]:
    # An alternate exchange turns a mandatory publish that no queue is bound for into a confirmed one, so the two
    # exchanges that we publish to and count on (events, retry) have none: there, no queue is the publisher's error.
    # The broker itself publishes to the other two, as their sources' dead-letter exchange. It has nobody to tell; it
    # keeps a message that it cannot route, tries again every three minutes, and behind 32 of them stalls all others.
    unrouted: Arguments = {"alternate-exchange": UNROUTED_EXCHANGE}
    return (
        ExchangeSpec(UNROUTED_EXCHANGE, "fanout", {}),
        ExchangeSpec(EVENTS_EXCHANGE, "topic", {}),
        ExchangeSpec(RETRY_EXCHANGE, "topic", {}),
        ExchangeSpec(DUE_EXCHANGE, "topic", unrouted),
        ExchangeSpec(DEAD_EXCHANGE, "topic", unrouted),
    )


# Dead-lettering at least once: a message leaves its queue only when the queue it goes to has confirmed it. The default
# strategy publishes without a confirm and would lose retries and dead letters in a crash. `x-overflow` is its
# precondition: with any other value RabbitMQ falls back to the default strategy and says nothing.
_AT_LEAST_ONCE: Final[Arguments] = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}


def _worked_queue(queue: Queue, dead_key: str, delivery_limit: int) -> QueueSpec:
    """A queue whose messages are handled by dispatchers; what keeps coming back ends in the dead letters."""
    return QueueSpec(
        queue.value,
        {
            "x-queue-type": "quorum",
            # A message that kills its consumer must end somewhere. With a limit, what comes back also goes to the
            # front of the queue, where it is met again before its new neighbours.
            "x-delivery-limit": delivery_limit,
            "x-dead-letter-exchange": DEAD_EXCHANGE,
            # Says which of the two queues gave up; the event's own key would not.
            "x-dead-letter-routing-key": dead_key,
            **_AT_LEAST_ONCE,
        },
    )


def _rung(ms: int) -> QueueSpec:
    """One wait of the ladder: nobody consumes it, its messages expire into the work queue."""
    return QueueSpec(
        rung_queue(ms),
        {
            "x-queue-type": "quorum",
            # Of the queue, not of the message: messages expire only at the head of a queue, so with one TTL for all of
            # them the head is always the one that is due first.
            "x-message-ttl": ms,
            "x-dead-letter-exchange": DUE_EXCHANGE,
            **_AT_LEAST_ONCE,
        },
    )


def _kept_queue(queue: Queue) -> QueueSpec:
    """A last resort: no further dead-lettering, and no length limit, because what is dropped here is lost."""
    return QueueSpec(queue.value, {"x-queue-type": "quorum", "x-delivery-limit": KEPT_DELIVERY_LIMIT})


def _event_binding(text: str) -> BindingSpec:
    # At the last colon: there are conventions that put colons into exchange names, and none that puts them into keys.
    exchange, colon, pattern = text.rpartition(":")
    if not colon or not exchange:
        raise ConfigurationError(
            f"HOOKHARE_EVENT_BINDINGS: {text!r} must be exchange:routing-key-pattern, such as shop.events:order.#"
        )
    return BindingSpec(exchange, Queue.EVENTS.value, pattern)


async def declare(channel: AbstractChannel, whole: Topology, *, timeout_s: float) -> None:
    """Declare all of it over a channel, which a refusal leaves closed. Each answer may take `timeout_s`.

    Raises ConfigurationError when the broker has something of that name with other arguments, lacks an exchange to bind
    to, or does not allow it; what else goes wrong comes as aiormq raises it.
    """
    for exchange in whole.exchanges:
        with _refusals(f"exchange {exchange.name}"):
            await channel.exchange_declare(
                exchange.name,
                exchange_type=exchange.kind,
                durable=True,
                arguments=dict(exchange.arguments) or None,
                timeout=timeout_s,
            )
    for queue in whole.queues:
        with _refusals(f"queue {queue.name}"):
            await channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments), timeout=timeout_s)
    for binding in whole.bindings:
        with _refusals(_binding_name(binding, whole)):
            await channel.queue_bind(
                binding.queue, binding.exchange, routing_key=binding.routing_key, timeout=timeout_s
            )


async def look_for(channel: AbstractChannel, whole: Topology, *, timeout_s: float) -> str | None:
    """What of the exchanges and queues the broker lacks, or None. A lack leaves the channel closed."""
    names: Sequence[tuple[str, str]] = [
        *(("exchange", exchange.name) for exchange in whole.exchanges),
        *(("queue", queue.name) for queue in whole.queues),
    ]
    for kind, name in names:
        try:
            if kind == "exchange":
                await channel.exchange_declare(name, passive=True, timeout=timeout_s)
            else:
                await channel.queue_declare(name, passive=True, timeout=timeout_s)
        except ChannelNotFoundEntity:
            return f"{kind} {name}"
    return None


def _binding_name(binding: BindingSpec, whole: Topology) -> str:
    if binding.exchange in whole.foreign:
        return f"exchange {binding.exchange}, which HOOKHARE_EVENT_BINDINGS names,"
    return f"binding of {binding.queue} to {binding.exchange}"


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """What the broker says no to, as an error that tells the operator what to do about it."""
    try:
        yield
    except ChannelPreconditionFailed as refusal:
        raise ConfigurationError(
            f"{what} exists in RabbitMQ with other properties than are to be declared ({_reason(refusal)}). They "
            "cannot be changed in place: set what it was made with (HOOKHARE_EVENTS_DELIVERY_LIMIT?), or stop every "
            "process of Hookhare, save what the queue holds, delete it, and start again"
        ) from refusal
    except ChannelNotFoundEntity as refusal:
        raise ConfigurationError(
            f"{what} does not exist in RabbitMQ: create it first ({_reason(refusal)})"
        ) from refusal
    except ChannelAccessRefused as refusal:
        raise ConfigurationError(
            f"{what}: RabbitMQ does not allow the user to declare it: grant configure, write and read on ^hookhare[.], "
            f"and read on bound exchanges ({_reason(refusal)})"
        ) from refusal


def _reason(refusal: Exception) -> str:
    return str(refusal.args[0]) if refusal.args else type(refusal).__name__
