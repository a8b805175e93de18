"""The broker over RabbitMQ: `infra.broker.base.Broker`, whose docstring is the contract.

One connection publishes and another one consumes, because an alarm of the broker stops a connection that publishes, and
acks must still get through. Each comes back by itself (`amqp_link.py`) and declares the topology again when it does.

Publishing is aiormq's basic_publish: each publish is persistent, mandatory and confirmed. Nothing is published a second
time on its own: after a lost connection only the caller knows whether that is wanted.
"""

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self, assert_never

from aio_pika.connection import make_url
from aiormq.channel import Channel
from aiormq.exceptions import (
    ChannelClosed,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
    PublishError,
)

from infra.broker.amqp_link import AMQP_FAULTS, Cancellation, Link, Wire, amqp_faults, reason
from infra.broker.amqp_message import to_properties
from infra.broker.base import Address, Consumer, Outgoing, Queue, ToDead, ToEvents, ToWorkAfter
from infra.broker.ladder import rung_ms
from infra.broker.rabbit_consumer import RabbitConsumer
from infra.broker.topology import (
    DEAD_EXCHANGE,
    EVENTS_EXCHANGE,
    RETRY_EXCHANGE,
    TopologyOptions,
    declare,
    look_for,
)
from infra.broker.topology import topology as whole_topology
from schemas.errors import (
    BrokerError,
    BrokerUnavailable,
    ConfigurationError,
    PublishRefused,
    PublishTimeout,
    Unroutable,
)
from schemas.messages import Message

_MAX_IN_FLIGHT: Final = 1000  # unconfirmed publishes; with more, aiormq spends more time on each
# Bodies from this size on wait until the socket has taken them, or a thousand of them would pile up in front of it.
_LARGE_BYTES: Final = 16_384
_ALARM_PERIOD_S: Final = 0.1
_MAX_KEY_BYTES: Final = 255
_PROBE_KEY: Final = "check"  # no rung has this name, so what is published with it comes back
_BLOCKED: Final = "RabbitMQ blocks publishers because of an alarm (its memory or its disk)"


@dataclass(slots=True, eq=False)
class _Lane:
    """The connection that publishes: its channel with confirms, and the clocks of what waits for one."""

    wire: Wire
    channel: Channel
    waiting: set[asyncio.Timeout] = field(default_factory=set)


class RabbitBroker:
    """`url` is amqp:// or amqps://; `timeout_s` is for each answer of the broker that is not a publish's own.

    With `topology=None` nothing is declared, neither on entry nor later: for publishers that may not, or do not know
    the options. Raises ConfigurationError for a URL or an option that cannot be one; on entry BrokerUnavailable when
    there is no connection within `timeout_s`, and ConfigurationError when the topology cannot be declared.
    """

    def __init__(self, url: str, *, topology: TopologyOptions | None, timeout_s: float) -> None:
        _check_url(url)
        self._declared = None if topology is None else whole_topology(topology)
        self._timeout_s = timeout_s
        self._publishing = Link(url, name="hookhare publish", prepare=self._open_lane, timeout_s=timeout_s)
        self._consuming = Link(url, name="hookhare consume", prepare=self._open_consuming, timeout_s=timeout_s)
        self._in_flight = asyncio.Semaphore(_MAX_IN_FLIGHT)
        self._alarm: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._publishing.open()
        self._alarm = asyncio.create_task(self._watch_alarm(), name="watch for RabbitMQ's alarms")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        await asyncio.gather(self._publishing.close(), self._consuming.close())

    async def publish(self, outgoing: Outgoing, *, timeout_s: float) -> None:
        await self._store(outgoing, asyncio.get_running_loop().time() + timeout_s)

    async def publish_many(self, outgoing: Sequence[Outgoing], *, timeout_s: float) -> Sequence[BrokerError | None]:
        deadline = asyncio.get_running_loop().time() + timeout_s

        async def outcome(one: Outgoing) -> BrokerError | None:
            try:
                await self._store(one, deadline)
            except BrokerError as error:
                return error
            return None

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(outcome(one)) for one in outgoing]
        return [task.result() for task in tasks]

    @asynccontextmanager
    async def consume(self, queue: Queue, *, prefetch: int, in_order: bool = False) -> AsyncIterator[Consumer]:
        if prefetch < 1:
            raise ValueError("prefetch must be at least 1")  # for AMQP, 0 is no limit
        self._consuming.start()
        consumer = RabbitConsumer(
            self._consuming,
            queue,
            prefetch=prefetch,
            timeout_s=self._timeout_s,
            redeclare=self._declare,
            in_order=in_order,
        )
        consumer.start()
        try:
            yield consumer
        finally:
            await consumer.stop()

    async def check(self, *, timeout_s: float) -> None:
        deadline = asyncio.get_running_loop().time() + timeout_s
        # Whether it takes publishes shows only in a publish. This one comes back, so it leaves nothing behind.
        with suppress(Unroutable):
            await self._send(RETRY_EXCHANGE, _PROBE_KEY, Message(b""), deadline)
        with amqp_faults("looking for the topology"):
            async with asyncio.timeout_at(deadline):
                lane = await self._publishing.use()
                channel = await lane.wire.open_channel(confirms=False, timeout_s=self._timeout_s)
                lack = await look_for(channel, whole_topology(TopologyOptions()), timeout_s=self._timeout_s)
                await channel.close(ChannelClosed(None, "checked"))
        if lack is not None:
            raise BrokerUnavailable(f"RabbitMQ has no {lack}: a dispatcher that starts or reconnects declares it")

    async def _store(self, outgoing: Outgoing, deadline: float) -> None:
        exchange, routing_key = _route(outgoing.to)
        if len(routing_key.encode("utf-8", "surrogatepass")) > _MAX_KEY_BYTES:
            raise Unroutable(f"a routing key has at most {_MAX_KEY_BYTES} bytes")
        await self._send(exchange, routing_key, outgoing.message, deadline)

    async def _send(self, exchange: str, routing_key: str, message: Message, deadline: float) -> None:
        """Publish once and wait for the confirm, until `deadline` by the loop's clock. Raises BrokerError."""
        properties = to_properties(message)
        cancellation = Cancellation()
        lane: _Lane | None = None
        try:
            async with asyncio.timeout_at(deadline) as clock:
                lane = await self._publishing.use()
                if lane.wire.blocked:
                    raise PublishRefused(_BLOCKED)
                lane.waiting.add(clock)
                async with self._in_flight:
                    await lane.channel.basic_publish(
                        message.body,
                        exchange=exchange,
                        routing_key=routing_key,
                        properties=properties,
                        mandatory=True,
                        wait=len(message.body) >= _LARGE_BYTES,
                    )
        except TimeoutError as error:
            raise self._late(lane) from error
        except (ValueError, TypeError, struct.error) as error:  # from encoding it, before anything was sent
            raise PublishRefused(f"AMQP cannot carry this message: {error}", unfit=True) from error
        except (asyncio.CancelledError, *AMQP_FAULTS) as error:
            if cancellation.asked:
                raise asyncio.CancelledError from error
            raise _publish_error(error, exchange, routing_key, size_bytes=len(message.body)) from error
        finally:
            if lane is not None:
                lane.waiting.discard(clock)

    def _late(self, lane: _Lane | None) -> BrokerError:
        if lane is None:
            return BrokerUnavailable(f"no connection to RabbitMQ in time: {self._publishing.why}")
        if lane.wire.blocked:  # since this was sent: RabbitMQ says so only to who publishes, and reads that afterwards
            return PublishTimeout(f"{_BLOCKED}; the message may be stored once that is over")
        return PublishTimeout("RabbitMQ did not confirm in time; the message may be stored all the same")

    async def _watch_alarm(self) -> None:
        """Let nobody wait for a confirm on a connection that the broker begins to block: run their clocks down."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_ALARM_PERIOD_S)
            lane = self._publishing.now
            if lane is not None and lane.waiting and lane.wire.blocked:
                for clock in lane.waiting:
                    with suppress(RuntimeError):  # it has run down already
                        clock.reschedule(loop.time())
                lane.waiting.clear()

    async def _open_lane(self, wire: Wire) -> _Lane:
        await self._declare(wire)
        channel = await wire.open_channel(confirms=True, timeout_s=self._timeout_s)
        # A channel that the broker closes takes its connection along, so that there is one way back for both.
        channel.closing.add_done_callback(lambda _: wire.abort())
        return _Lane(wire, channel)

    async def _open_consuming(self, wire: Wire) -> Wire:
        await self._declare(wire)
        return wire

    async def _declare(self, wire: Wire) -> None:
        if self._declared is None:
            return
        with amqp_faults("declaring the topology"):
            channel = await wire.open_channel(confirms=False, timeout_s=self._timeout_s)
            await declare(channel, self._declared, timeout_s=self._timeout_s)
            await channel.close(ChannelClosed(None, "declared"))


def _route(to: Address) -> tuple[str, str]:
    match to:
        case ToEvents(event_type):
            return EVENTS_EXCHANGE, event_type
        case ToWorkAfter(delay_s):
            return RETRY_EXCHANGE, str(rung_ms(delay_s))
        case ToDead(kind):
            return DEAD_EXCHANGE, kind
        case _:
            assert_never(to)


def _publish_error(error: BaseException, exchange: str, routing_key: str, *, size_bytes: int) -> BrokerError:
    match error:
        case PublishError():
            return Unroutable(f"no queue is bound to {exchange} for the routing key {routing_key!r}")
        case DeliveryError():
            return PublishRefused("RabbitMQ refused the message (a nack)")
        case ChannelNotFoundEntity() if f"'{exchange}'" in reason(error):
            return Unroutable(f"RabbitMQ has no exchange {exchange}")
        case ChannelPreconditionFailed():
            # "message size 3000000 is larger than configured max size 1000000": told to all that were under way.
            unfit = f"message size {size_bytes} " in reason(error)
            return PublishRefused(f"RabbitMQ refused the message, or another one with it: {reason(error)}", unfit=unfit)
        case asyncio.CancelledError():
            return BrokerUnavailable("the connection was lost before the confirm")
        case _:
            return BrokerUnavailable(f"the connection was lost before the confirm ({reason(error)})")


def _check_url(url: str) -> None:
    try:
        parsed = make_url(url)
        usable = parsed.scheme in {"amqp", "amqps"} and bool(parsed.host)
    except ValueError:
        usable = False
    if not usable:  # never shown: it may hold a password
        raise ConfigurationError("HOOKHARE_BROKER_URL: must be an amqp:// or amqps:// URL with a host")
