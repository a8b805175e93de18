"""The embedded mode's broker: the table `queue_messages` in PostgreSQL, with the contract of `infra/broker/base.py`.

Publishing is one INSERT for whatever has come together while the one before it was being committed. Consuming is
claiming with SKIP LOCKED, leased (`postgres_consumer.py`); the statements are in `postgres_rows.py`.

Nothing is unroutable here but an event type that would be too long for a routing key: the queues are fixed. Delays are
kept exactly, there is no ladder. A wiped table is a wiped broker: what was admitted is fed again from the store.

Left out: making the table. It comes with the store's migrations, since it lives in a database of the store's release.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import asyncpg

from infra.broker import postgres_rows as rows
from infra.broker.base import Consumer, Outgoing, Queue, ToDead
from infra.broker.postgres_consumer import ConsumerOptions, PostgresConsumer
from infra.store.store import DRIVER_ERRORS, close_pool, is_unavailable, make_pool
from infra.tasks import end_task
from schemas.errors import BrokerError, BrokerUnavailable, ConfigurationError, PublishRefused, PublishTimeout
from schemas.messages import Message

_BATCH_ROWS: Final = 1000
_BATCH_BYTES: Final = 4_194_304
_CONNECTIONS: Final = 3  # one stores, one notifies, one checks
LEASE_S: Final = 15.0
_PROBE: Final = Outgoing(ToDead("probe"), Message(b""))  # for `check`; never committed


@dataclass(slots=True, eq=False)
class _Waiting:
    """A message on its way into the table, and whoever waits for its commit."""

    row: tuple[Any, ...]
    size_bytes: int
    stored: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class PostgresBroker:
    """`Broker` over PostgreSQL. `lease_s` is how long after its consumer's death a message stays away."""

    def __init__(self, dsn: str, *, delivery_limit: int, timeout_s: float, lease_s: float = LEASE_S) -> None:
        self._options = ConsumerOptions(dsn, delivery_limit=delivery_limit, timeout_s=timeout_s, lease_s=lease_s)
        self._pool: asyncpg.Pool | None = None
        self._waiting: deque[_Waiting] = deque()
        self._storing: asyncio.Task[None] | None = None
        self._news: set[str] = set()  # queues that somebody has to be told of
        self._notifying: asyncio.Task[None] | None = None
        self._checking: asyncio.Task[Exception | None] | None = None

    async def __aenter__(self) -> Self:
        options = self._options
        self._pool = make_pool(
            options.dsn,
            size=_CONNECTIONS,
            timeout_s=options.timeout_s,
            application="hookhare broker",
            # What a publisher was told is stored survives a crash, whatever the server's own setting is.
            settings={**rows.PLANNER, "synchronous_commit": "on"},
        )
        try:
            await self._pool
            await self.check(timeout_s=options.timeout_s)
        except BaseException:
            await close_pool(self._pool)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for task in (self._storing, self._notifying, self._checking):
                if task is not None:
                    await end_task(task)
        finally:
            for waiting in self._waiting:
                _fail(waiting, BrokerUnavailable("the broker was closed"))
            self._waiting.clear()
            if self._pool is not None:
                pool, self._pool = self._pool, None
                await close_pool(pool)

    async def publish(self, outgoing: Outgoing, *, timeout_s: float) -> None:
        (error,) = await self.publish_many([outgoing], timeout_s=timeout_s)
        if error is not None:
            raise error

    async def publish_many(self, outgoing: Sequence[Outgoing], *, timeout_s: float) -> Sequence[BrokerError | None]:
        places = [self._enqueue(one) for one in outgoing]
        futures = [place.stored for place in places if isinstance(place, _Waiting)]
        self._store_soon()
        try:
            if futures:
                await asyncio.wait(futures, timeout=timeout_s)
        finally:
            for future in futures:
                future.cancel()  # what has not been begun is not stored; does nothing to those that are done
        return [_outcome(place) if isinstance(place, _Waiting) else place for place in places]

    def consume(self, queue: Queue, *, prefetch: int, in_order: bool = False) -> AbstractAsyncContextManager[Consumer]:
        return self._consume(queue, prefetch, in_order=in_order)

    async def check(self, *, timeout_s: float) -> None:
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._probe())
        await asyncio.wait({self._checking}, timeout=timeout_s)
        if not self._checking.done():  # left to itself: it has a timeout of its own, and the next check joins it
            raise BrokerUnavailable(f"the database did not answer within {timeout_s:g} s")
        error = self._checking.result()
        if isinstance(error, ValueError):  # without its cause: that quotes the URL, password and all
            raise ConfigurationError("the broker's URL is not a postgresql:// URL")
        if error is not None:
            raise _translated(error) from error

    async def _probe(self) -> Exception | None:
        """Store a message and take it back: a full disk, a missing table and a read-only replica all show."""
        try:
            async with self._opened().acquire(timeout=self._options.timeout_s) as conn:
                transaction = conn.transaction()
                await transaction.start()
                try:
                    await conn.execute(rows.STORE, *_columns([rows.to_row(_PROBE)]))
                finally:
                    await transaction.rollback()
        except (ValueError, *DRIVER_ERRORS) as error:
            return error
        return None

    @asynccontextmanager
    async def _consume(self, queue: Queue, prefetch: int, *, in_order: bool) -> AsyncIterator[Consumer]:
        self._opened()
        async with PostgresConsumer(queue, prefetch=prefetch, options=self._options, in_order=in_order) as consumer:
            yield consumer

    def _opened(self) -> asyncpg.Pool:
        if self._pool is None:
            raise RuntimeError("the broker is open between __aenter__ and __aexit__")
        return self._pool

    def _enqueue(self, outgoing: Outgoing) -> _Waiting | BrokerError:
        self._opened()
        try:
            waiting = _Waiting(rows.to_row(outgoing), len(outgoing.message.body))
        except BrokerError as error:
            return error
        self._waiting.append(waiting)
        return waiting

    def _store_soon(self) -> None:
        if self._waiting and (self._storing is None or self._storing.done()):
            self._storing = asyncio.create_task(self._store_all())

    async def _store_all(self) -> None:
        """Store what waits, a batch at a time. What comes in during a commit makes up the next batch."""
        while batch := self._next_batch():
            try:
                await self._store(batch)
            except BaseException:
                for waiting in batch:
                    _fail(waiting, BrokerUnavailable("the broker was closed before the commit"))
                raise

    def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size_bytes = 0
        while self._waiting and len(batch) < _BATCH_ROWS and size_bytes < _BATCH_BYTES:
            waiting = self._waiting.popleft()
            if not waiting.stored.done():  # its publisher still waits
                batch.append(waiting)
                size_bytes += waiting.size_bytes
        return batch

    async def _store(self, batch: list[_Waiting]) -> None:
        try:
            async with self._opened().acquire(timeout=self._options.timeout_s) as conn:
                await conn.execute(rows.STORE, *_columns([waiting.row for waiting in batch]))
        except DRIVER_ERRORS as error:
            if len(batch) > 1 and isinstance(error, asyncpg.DataError | asyncpg.ProgramLimitExceededError):
                for waiting in batch:  # one of them is at fault; it does not keep the others back
                    await self._store([waiting])
                return
            for waiting in batch:
                failure = _translated(error)
                failure.__cause__ = error
                _fail(waiting, failure)
            return
        for waiting in batch:
            if not waiting.stored.done():
                waiting.stored.set_result(None)
        self._tell({waiting.row[0] for waiting in batch if not waiting.row[-1]})

    def _tell(self, queues: set[str]) -> None:
        """Wake the consumers of these queues, soon.

        In a transaction of its own: a NOTIFY takes a lock of the whole server from before its commit is flushed until
        after, and in the publishing transaction would let only one publisher of all flush at a time. A notification
        that is lost with its process costs a second: consumers look that often.
        """
        self._news |= queues
        if self._news and (self._notifying is None or self._notifying.done()):
            self._notifying = asyncio.create_task(self._notify())

    async def _notify(self) -> None:
        while self._news:
            queues, self._news = self._news, set()
            with suppress(*DRIVER_ERRORS):
                async with self._opened().acquire(timeout=self._options.timeout_s) as conn:
                    await conn.execute(rows.NOTIFY, sorted(queues))


def _columns(batch: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*batch, strict=True)]


def _outcome(waiting: _Waiting) -> BrokerError | None:
    if waiting.stored.cancelled():
        return PublishTimeout("the database did not commit the message in time")
    error = waiting.stored.exception()
    assert error is None or isinstance(error, BrokerError)
    return error


def _fail(waiting: _Waiting, error: BrokerError) -> None:
    if not waiting.stored.done():
        waiting.stored.set_exception(error)
        waiting.stored.exception()  # a publisher that was cancelled does not ask, and nobody has to hear of that


def _translated(error: Exception) -> BrokerError:
    """What an error of asyncpg, or of the network, is in the broker's terms."""
    text = f"the database: {type(error).__name__}: {error}"
    if isinstance(error, asyncpg.QueryCanceledError | asyncpg.LockNotAvailableError | TimeoutError):
        return PublishTimeout(text)
    if isinstance(error, asyncpg.UndefinedTableError):
        return BrokerUnavailable("the broker's table is missing: run `hookhare migrate`")
    if isinstance(error, asyncpg.TooManyConnectionsError):
        return BrokerUnavailable(text)
    refuses = isinstance(error, asyncpg.InsufficientResourcesError | asyncpg.ReadOnlySQLTransactionError)
    if refuses or not is_unavailable(error):
        return PublishRefused(text, unfit=isinstance(error, asyncpg.DataError))
    return BrokerUnavailable(text)
