"""A process that consumes and never acks, to be killed."""

import asyncio
import multiprocessing
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

from infra.broker.base import Queue
from tests.contract.harness import Harness
from tests.contract.steps import PATIENCE_S


class Victim:
    """Receives from the events queue and tells what it received."""

    def __init__(self, harness: Harness, *, prefetch: int, in_order: bool = False) -> None:
        self._told, telling = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("spawn")  # a fork would share the test's loop
        self._process = context.Process(target=_consume, args=(harness, prefetch, in_order, telling), daemon=True)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    async def received(self, count: int) -> list[str]:
        """The bodies of so many messages that it has received."""
        async with asyncio.timeout(2 * PATIENCE_S):
            return [await asyncio.to_thread(self._told.recv) for _ in range(count)]

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()


def _consume(harness: Harness, prefetch: int, in_order: bool, telling: Connection) -> None:
    asyncio.run(_consume_for_ever(harness, prefetch, in_order, telling))


async def _consume_for_ever(harness: Harness, prefetch: int, in_order: bool, telling: Connection) -> None:
    async with (
        harness.broker() as broker,
        broker.consume(Queue.EVENTS, prefetch=prefetch, in_order=in_order) as consumer,
    ):
        while True:
            for one in await consumer.receive(prefetch):
                telling.send(one.message.body.decode())
