"""Consuming one queue of RabbitMQ.

A `Session` is what one channel lives through. When the channel is gone, for whatever reason, `RabbitConsumer` begins
another one, and the tokens of the old one mean nothing any more: the broker has taken its messages back.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from infra.broker.amqp_link import Link, Wire, amqp_faults, end
from infra.broker.base import Queue, Received
from infra.broker.rabbit_in_order import SessionInOrder
from infra.broker.rabbit_session import Session, Token
from schemas.errors import BrokerError, BrokerUnavailable, ConfigurationError

log = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0


class RabbitConsumer:
    """`infra.broker.base.Consumer` over a link. `redeclare` puts back what of the topology may be missing."""

    def __init__(
        self,
        link: Link[Wire],
        queue: Queue,
        *,
        prefetch: int,
        timeout_s: float,
        redeclare: Callable[[Wire], Awaitable[None]],
        in_order: bool = False,
    ) -> None:
        self._link = link
        self._queue = queue
        self._prefetch = prefetch
        self._timeout_s = timeout_s
        self._redeclare = redeclare
        self._in_order = in_order
        self._narrow = False  # in order: the next session has to begin so
        self._session: Session | None = None
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"consume {self._queue.value}")
        self._task.add_done_callback(lambda _: self._arrived.set())

    async def stop(self) -> None:
        """Give back what is not acked."""
        if self._task is not None:
            await end(self._task)

    async def receive(self, limit: int) -> Sequence[Received]:
        while True:
            if self._session is not None and (batch := self._session.take(limit)):
                return batch
            if self._task is None or self._task.done():
                raise BrokerUnavailable(f"the consumer of {self._queue.value} is closed") from self._failure()
            self._arrived.clear()
            await self._arrived.wait()

    async def ack(self, received: Sequence[Received]) -> None:
        session, tags = self._ours(received)
        if session is not None and tags:
            await session.ack(tags)

    async def release(self, received: Sequence[Received]) -> None:
        session, tags = self._ours(received)
        if session is not None and tags:
            await session.reject(tags)

    def holds(self, received: Received) -> bool:
        session, tags = self._ours([received])
        return session is not None and any(session.has(tag) for tag in tags)

    def _ours(self, received: Sequence[Received]) -> tuple[Session | None, list[int]]:
        """The session there is now, and the tags that belong to it."""
        session = self._session
        tokens = (one.token for one in received)
        return session, [token.tag for token in tokens if isinstance(token, Token) and token.session is session]

    def _failure(self) -> BaseException | None:
        if self._task is None or self._task.cancelled():
            return None
        return self._task.exception()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        pause_s = _FIRST_PAUSE_S
        while True:
            wire = await self._link.use()
            began = loop.time()
            try:
                await self._consume(wire)
            except BrokerError as error:
                log.warning("consuming %s: %s", self._queue.value, error)
            if wire.lost:
                continue
            # The connection is there, so the queue is not, or the broker closed the channel.
            if loop.time() - began > 10 * _LONGEST_PAUSE_S:
                pause_s = _FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            await self._restore(wire)

    async def _restore(self, wire: Wire) -> None:
        """Put back what may be missing, if the connection is still the same."""
        if wire.lost:
            return
        try:
            await self._redeclare(wire)
        except (BrokerError, ConfigurationError) as error:
            log.error("consuming %s: %s", self._queue.value, error)  # noqa: TRY400  its place is no news

    async def _consume(self, wire: Wire) -> None:
        with amqp_faults("opening a channel"):
            channel = await wire.open_channel(confirms=False, timeout_s=self._timeout_s)
        kind = SessionInOrder if self._in_order else Session
        session = kind(
            wire, channel, self._queue, prefetch=self._prefetch, timeout_s=self._timeout_s, arrived=self._arrived
        )
        if isinstance(session, SessionInOrder):
            session.narrow = self._narrow
        self._session = session
        try:
            await session.run()
        finally:
            self._session = None
            self._narrow = isinstance(session, SessionInOrder) and session.met_suspect
            await session.close()
