"""A consumer of the PostgreSQL broker: claims what is due, keeps the leases while it lives, gives back what is left.

Each consumer has a connection of its own, for claims, acks and LISTEN. Its messages hang on that connection, as over
AMQP: when it is lost, the next one gives back what was handed out over it, and that comes again; acks that were asked
for and not committed are made good first. A consumer whose process died gives nothing back: its leases run out.

It is woken by a notification, by the time of the next message that is not due yet, and once a second at least.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

import asyncpg
import structlog
from uuid_utils.compat import uuid7

from infra.broker import postgres_rows as rows
from infra.broker.base import SUSPECT_DELIVERY_COUNT, Queue, Received
from infra.broker.postgres_rows import Handed
from infra.store.store import DRIVER_ERRORS, server_settings, set_codecs
from infra.tasks import end_task

_log = structlog.get_logger()

_LOOK_S: Final = 1.0
_FIRST_PAUSE_S: Final = 0.05  # before connecting again; doubled each time
_LONGEST_PAUSE_S: Final = 1.0
_STEADY_S: Final = 5.0  # a connection that lasted so long was a good one
_CLOSE_TIMEOUT_S: Final = 3.0
_RENEWALS_PER_LEASE: Final = 3


@dataclass(frozen=True, slots=True)
class ConsumerOptions:
    """What all consumers of a broker have in common."""

    dsn: str
    delivery_limit: int
    timeout_s: float
    lease_s: float


class _Session:
    """One connection of a consumer, and what was handed out over it. Runs one statement at a time."""

    def __init__(self, conn: asyncpg.Connection) -> None:
        self.id: UUID = uuid7()
        self.held: dict[int, Handed] = {}
        self.acked: list[Handed] = []  # not the caller's any more, and not committed yet
        self.lost = asyncio.Event()
        self._conn = conn
        self._turn = asyncio.Lock()
        conn.add_termination_listener(lambda _: self.lost.set())

    @property
    def has_suspect(self) -> bool:
        return any(one.delivery_count >= SUSPECT_DELIVERY_COUNT for one in self.held.values())

    async def run(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        async with self._turn:
            return await self._conn.fetch(statement, *arguments)

    async def settle(self, statement: str, handed: Sequence[Handed], *more: object) -> None:
        """Run ACK, RELEASE or RENEW over messages of one session, this one or one before it."""
        async with self._turn:
            await self._settle(statement, handed, *more)

    async def commit_acks(self) -> None:
        """Commit all acks that wait. Whoever waits for its turn meanwhile finds them done."""
        async with self._turn:
            acked = list(self.acked)  # more may be added meanwhile
            await self._settle(rows.ACK, acked)
            self.acked = self.acked[len(acked) :]

    async def _settle(self, statement: str, handed: Sequence[Handed], *more: object) -> None:
        if handed:
            columns = zip(*((one.id, one.due_at) for one in handed), strict=True)
            await self._conn.execute(statement, handed[0].consumer, *(list(column) for column in columns), *more)

    async def close(self) -> None:
        await self._conn.close()

    def end(self) -> None:
        """Take the connection for lost."""
        self._conn.terminate()
        self.lost.set()


class PostgresConsumer:
    """`Consumer` of one queue, while its context is open."""

    def __init__(self, queue: Queue, *, prefetch: int, options: ConsumerOptions, in_order: bool = False) -> None:
        self._queue = queue
        self._prefetch = prefetch
        self._in_order = in_order
        self._options = options
        self._session: _Session | None = None
        self._ended: list[_Session] = []  # lost, and what was handed out over them not given back yet
        self._ready: list[Received] = []  # claimed, not yet received: a `receive` was cancelled
        self._woken = asyncio.Event()
        self._draining = False  # a suspect is due, and waits until nothing else is in hand
        self._closing = False
        self._keeping: asyncio.Task[None] | None = None
        self._claiming: asyncio.Task[float] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._keeping = asyncio.create_task(self._keep_connected())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._keeping is not None
        self._closing = True
        session = self._session
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                if self._claiming is not None:
                    await self._claiming
                if session is not None:
                    await session.commit_acks()
                    await session.settle(rows.RELEASE, list(session.held.values()))
                    await session.run(rows.NOTIFY, [self._queue.value])
                    await session.close()
        except DRIVER_ERRORS as lost:
            self._say("queue.closed_without_giving_back", lost)
        finally:
            await end_task(self._keeping)

    async def receive(self, limit: int) -> Sequence[Received]:
        while True:
            self._woken.clear()
            wait_s = _LOOK_S
            if not self._ready:
                # In a task of its own: if the caller is cancelled now, what was claimed waits for its next call.
                if self._claiming is None or self._claiming.done():
                    self._claiming = asyncio.create_task(self._claim(limit))
                wait_s = await asyncio.shield(self._claiming)
            if self._ready:
                batch, self._ready = self._ready[:limit], self._ready[limit:]
                return batch
            # Not wait_for(): up to Python 3.11 it loses a cancellation that comes together with what it waits for.
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._woken.wait()

    async def ack(self, received: Sequence[Received]) -> None:
        session = self._session
        if session is not None and (mine := self._let_go(session, received)):
            session.acked.extend(mine)
            await self._finish(session, session.commit_acks())

    async def release(self, received: Sequence[Received]) -> None:
        session = self._session
        if session is not None and (mine := self._let_go(session, received)):
            await self._finish(session, self._release(session, mine))

    def holds(self, received: Received) -> bool:
        token, session = received.token, self._session
        return session is not None and isinstance(token, Handed) and session.held.get(token.id) is token

    def _let_go(self, session: _Session, received: Sequence[Received]) -> list[Handed]:
        """Those that are still in hand over this connection, no longer so."""
        tokens = [one.token for one in received if isinstance(one.token, Handed)]
        # The same message may have been handed out anew, to this consumer: that one is not meant.
        mine = [token for token in tokens if session.held.get(token.id) is token]
        for token in mine:
            del session.held[token.id]
        self._woken.set()  # there is room
        return mine

    async def _release(self, session: _Session, mine: Sequence[Handed]) -> None:
        try:
            await session.settle(rows.RELEASE, mine)
        except BaseException:
            session.held.update({one.id: one for one in mine})  # given back with the rest
            raise
        await session.run(rows.NOTIFY, [self._queue.value])

    async def _finish(self, session: _Session, work: Coroutine[Any, Any, None]) -> None:
        """Run to its end what a cancelled caller has asked for; a lost connection is not the caller's business."""

        async def run() -> None:
            try:
                await work
            except DRIVER_ERRORS as error:
                self._end(session, error)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    async def _claim(self, limit: int) -> float:
        """Fill `_ready` with up to `limit` messages; how many seconds there may be nothing new."""
        session = self._session
        if session is None or session.has_suspect or (self._draining and session.held):
            return _LOOK_S
        room = min(limit, self._prefetch - len(session.held))
        if room <= 0:
            return _LOOK_S
        limited = self._queue in rows.DEAD_KEYS
        try:
            records = await session.run(
                rows.CLAIM_IN_ORDER if self._in_order else rows.CLAIM,
                self._queue.value,
                room,
                session.id,
                self._options.lease_s,
                not session.held,
                self._options.delivery_limit if limited else None,
                rows.DEAD_KEYS.get(self._queue),
            )
            if records[0]["moved"]:
                await session.run(rows.NOTIFY, [Queue.DEAD_LETTERS.value])
        except DRIVER_ERRORS as error:
            self._end(session, error)
            return _LOOK_S
        received = [rows.to_received(record) for record in records if record["id"] is not None]
        session.held.update({one.token.id: one.token for one in received if isinstance(one.token, Handed)})
        self._draining = records[0]["suspects"] > 0 and not session.has_suspect
        if session is self._session:
            self._ready.extend(received)
        if records[0]["moved"]:
            return 0
        next_s = records[0]["next_s"]
        return _LOOK_S if next_s is None else min(max(next_s, 0), _LOOK_S)

    def _end(self, session: _Session, error: Exception) -> None:
        if not session.lost.is_set():
            self._say("queue.connection_lost", error)
        session.end()

    def _say(self, what: str, error: Exception) -> None:
        _log.warning(what, queue=self._queue.value, error=f"{type(error).__name__}: {error}")

    async def _keep_connected(self) -> None:
        pause_s = _FIRST_PAUSE_S
        loop = asyncio.get_running_loop()
        while not self._closing:
            begun = loop.time()
            session = None
            try:
                session = await self._connect()
                await self._give_back(session)
                if self._in_order:
                    await self._take_over(session)
                self._session = session
                self._woken.set()
                await self._renew(session)
            except DRIVER_ERRORS as error:
                if not self._closing:
                    self._say("queue.connecting_again", error)
            finally:
                self._session = None
                if session is not None:
                    session.end()
                    self._ended.append(session)
                    self._ready.clear()
            if loop.time() - begun > _STEADY_S:
                pause_s = _FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _connect(self) -> _Session:
        options = self._options
        conn = await asyncpg.connect(
            options.dsn,
            timeout=options.timeout_s,
            command_timeout=options.timeout_s,
            server_settings={**server_settings(options.timeout_s, f"hookhare {self._queue}"), **rows.PLANNER},
        )
        try:
            await set_codecs(conn)
            await conn.add_listener(rows.CHANNEL, self._on_news)
        except BaseException:
            conn.terminate()
            raise
        return _Session(conn)

    def _on_news(self, _conn: object, _pid: int, _channel: str, payload: object) -> None:
        if payload == self._queue.value:
            self._woken.set()

    async def _give_back(self, session: _Session) -> None:
        """Make good the acks of the connections before, and give back what else was handed out over them."""
        while self._ended:
            ended = self._ended[0]
            await session.settle(rows.ACK, ended.acked)
            await session.settle(rows.RELEASE, list(ended.held.values()))
            self._ended.pop(0)

    async def _take_over(self, session: _Session) -> None:
        """From the consumer in order before this one, which ends."""
        while not (await session.run(rows.BECOME_SOLE, self._queue.value))[0]["mine"]:
            await session.run(rows.END_SOLE, self._queue.value)
            await asyncio.sleep(_FIRST_PAUSE_S)
        await session.run(rows.TAKE_OVER, self._queue.value, session.id)

    async def _renew(self, session: _Session) -> None:
        """Keep the leases until the connection is lost."""
        while not session.lost.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._options.lease_s / _RENEWALS_PER_LEASE):
                    await session.lost.wait()
                    return
            await session.commit_acks()
            await session.settle(rows.RENEW, list(session.held.values()), self._options.lease_s)
