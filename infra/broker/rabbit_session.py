"""What one consuming channel lives through: its window, its suspects, its unacked messages.

Prefetch is RabbitMQ's `basic.qos` for each consumer of the channel (quorum queues have no other), and applies to
consumers that begin after it. So a session begins with a consumer that may have one message; once it met a message that
is no suspect, it adds a second consumer for the rest of the prefetch. When a suspect turns up among others, both are
cancelled, the others are waited for, the suspect is handed out, alone, and then it begins again with one.

aiormq is used without aio-pika, whose wrapping costs two thirds more for each message; and messages are taken off the
connection before aiormq (`amqp_reader.py`).
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Final

import msgspec
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import ChannelClosed

from infra.broker.amqp_link import AMQP_FAULTS, Wire, amqp_faults
from infra.broker.amqp_message import to_received
from infra.broker.amqp_reader import Delivered
from infra.broker.base import SUSPECT_DELIVERY_COUNT, Queue, Received
from schemas.errors import BrokerUnavailable

log = logging.getLogger(__name__)

_CLOSE_S: Final = 2.0


class Token(msgspec.Struct, frozen=True, eq=False):
    session: "Session"
    tag: int


class Session:
    """`arrived` is set when there may be something to take."""

    def __init__(
        self,
        wire: Wire,
        channel: Channel,
        queue: Queue,
        *,
        prefetch: int,
        timeout_s: float,
        arrived: asyncio.Event,
    ) -> None:
        self._wire = wire
        self._channel = channel
        self._queue = queue
        self._prefetch = prefetch
        self._timeout_s = timeout_s
        self._arrived = arrived
        self._ready: deque[Received] = deque()
        self._unacked: dict[int, None] = {}  # delivery tags, in the order of delivery: ready, and handed out
        self._suspects: list[Received] = []  # that came among others
        self._narrow = True  # one message at a time
        self._innocent = False  # met a message that is no suspect
        self._consumers: list[str] = []
        self._over: str | None = None
        self._turn = asyncio.Event()  # something that run() waits for may have happened
        self._settling = asyncio.Lock()  # acks must leave in the order in which they were computed
        wire.hand_over(channel, self._take)

    async def run(self) -> None:
        """Consume for as long as the channel lives. Raises BrokerUnavailable when it does not any more."""
        closing = self._channel.closing
        closing.add_done_callback(lambda _: self._end("the channel was closed"))
        self._channel.on_consumer_cancel_callbacks.add(lambda _: self._end("the broker cancelled it"))
        await self._consume()

    async def _consume(self) -> None:
        while True:
            self._narrow, self._innocent = True, False
            await self._add_consumer(1)
            await self._until(lambda: self._innocent and self._prefetch > 1)
            self._narrow = False
            await self._add_consumer(self._prefetch - 1)
            await self._until(lambda: bool(self._suspects))
            await self._cancel_consumers()
            await self._hand_out_alone(await self._keep_one_suspect())

    def take(self, limit: int) -> list[Received]:
        """What is there, at most `limit`."""
        return [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]

    def has(self, tag: int) -> bool:
        """Whether it is neither acked nor given back, and can still be."""
        return self._over is None and tag in self._unacked

    async def ack(self, tags: Collection[int]) -> None:
        await self._settle(tags, ack=True)

    async def reject(self, tags: Collection[int]) -> None:
        """Give back. Not by basic.nack, which from 4.3 on does not count as a delivery."""
        await self._settle(tags, ack=False)

    async def close(self) -> None:
        """Close the channel: the broker takes back what is not acked. Never raises, and takes seconds at most."""
        self._end("it is closed")
        if self._channel.is_closed:
            return
        cut = asyncio.get_running_loop().call_later(_CLOSE_S, self._wire.abort)
        try:
            with suppress(BrokerUnavailable), amqp_faults("closing a channel"):
                await self._channel.close(ChannelClosed(None, "closed by its consumer"))
        finally:
            cut.cancel()

    def _take(self, delivered: Delivered) -> None:
        if self._over is not None:
            return
        try:
            received = to_received(delivered, self._queue, Token(self, delivered.tag))
        except Exception:
            # Raised from here it would end what reads the connection, and nobody would be told why.
            log.exception("a message of %s cannot be read", self._queue.value)
            self._end("a message cannot be read")
            return
        self._unacked[delivered.tag] = None
        self._arrive(received, suspect=received.delivery_count >= SUSPECT_DELIVERY_COUNT)

    def _arrive(self, received: Received, *, suspect: bool) -> None:
        """A message came; the next one comes after this."""
        if suspect and not self._narrow:
            self._suspects.append(received)
        else:
            self._ready.append(received)
            self._innocent = not suspect
            self._arrived.set()
        if suspect or self._narrow:
            self._turn.set()

    async def _add_consumer(self, prefetch: int) -> None:
        with amqp_faults("beginning to consume"):
            await self._channel.basic_qos(prefetch_count=prefetch, timeout=self._timeout_s)
            begun = await self._channel.basic_consume(self._queue.value, _unused, timeout=self._timeout_s)
        assert begun.consumer_tag is not None
        self._consumers.append(begun.consumer_tag)

    async def _cancel_consumers(self) -> None:
        """When it returns, nothing more is delivered, and what was delivered is in `_unacked`."""
        with amqp_faults("ceasing to consume"):
            while self._consumers:
                await self._channel.basic_cancel(self._consumers.pop(), timeout=self._timeout_s)

    async def _keep_one_suspect(self) -> Received:
        """The suspect that stays; the others go back.

        It does not go back as well: under load every consumer's window is open, and it would go from one to the next,
        one delivery older each time, until the limit declares it dead.
        """
        first, *others = self._suspects
        self._suspects.clear()
        with amqp_faults("giving back suspects"):
            async with self._settling:
                for tag in map(_tag, others):
                    # Nobody has seen it, so it should not count as one more delivery; before 4.3 it does all the same.
                    await self._channel.basic_nack(tag, requeue=True, wait=False)
                    del self._unacked[tag]
        return first

    async def _hand_out_alone(self, suspect: Received) -> None:
        """Once all others are settled; and wait until it is settled, too."""
        await self._until(lambda: len(self._unacked) == 1)
        self._ready.append(suspect)
        self._arrived.set()
        await self._until(lambda: not self._unacked)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._over is not None:
                raise BrokerUnavailable(self._over)
            self._turn.clear()
            await self._turn.wait()

    def _end(self, why: str) -> None:
        if self._over is None:
            self._over = why
            self._turn.set()

    async def _settle(self, tags: Collection[int], *, ack: bool) -> None:
        """Tell the broker, and forget. If the channel is lost over it, the broker takes the messages back itself."""
        try:
            async with asyncio.timeout(self._timeout_s), self._settling:
                known = {tag for tag in tags if tag in self._unacked}  # a tag settled twice would close the channel
                if ack and (first := self._leading(known)):
                    await self._channel.basic_ack(first[-1], multiple=True, wait=False)
                    self._forget(first)
                    known.difference_update(first)
                settle = self._channel.basic_ack if ack else self._channel.basic_reject
                for tag in sorted(known):
                    await settle(tag, wait=False)
                    self._forget([tag])
        except TimeoutError:
            self._wire.abort()  # nothing can be written any more
        except AMQP_FAULTS:
            pass
        if len(self._unacked) <= 1 + len(self._suspects):
            self._turn.set()

    def _leading(self, known: Collection[int]) -> list[int]:
        """The oldest of the unacked, as far as all of them are known: one ack says it for them together."""
        return list(takewhile(known.__contains__, self._unacked))

    def _forget(self, tags: Sequence[int]) -> None:
        for tag in tags:
            del self._unacked[tag]


async def _unused(_: DeliveredMessage) -> None:
    """aiormq wants a callback; no message gets as far as that."""


def _tag(received: Received) -> int:
    assert isinstance(received.token, Token)
    return received.token.tag
