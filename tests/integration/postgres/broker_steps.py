"""What the tests of the PostgreSQL broker do again and again."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg
import pytest

from infra.broker.base import Consumer, Outgoing, Received, ToEvents
from infra.broker.postgres import PostgresBroker
from schemas.messages import Message

TIMEOUT_S = 10


def event(text: str, **headers: str | int | bytes | bool | None) -> Outgoing:
    return Outgoing(ToEvents("order.created"), Message(text.encode(), headers))


def bodies(received: Sequence[Received]) -> list[str]:
    return [one.message.body.decode() for one in received]


async def receive(consumer: Consumer, limit: int = 100, *, within_s: float = TIMEOUT_S) -> Sequence[Received]:
    return await asyncio.wait_for(consumer.receive(limit), within_s)


async def receive_count(consumer: Consumer, count: int) -> list[Received]:
    received: list[Received] = []
    while len(received) < count:
        received += await receive(consumer, count - len(received))
    return received


async def assert_nothing(consumer: Consumer, *, for_s: float = 0.3) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(consumer.receive(10), for_s)


async def sql(dsn: str, statement: str, *arguments: object) -> list[asyncpg.Record]:
    conn = await asyncpg.connect(dsn)
    try:
        return await conn.fetch(statement, *arguments)
    finally:
        await conn.close()


@asynccontextmanager
async def opened(
    dsn: str, *, delivery_limit: int = 100, lease_s: float = 15, timeout_s: float = 5
) -> AsyncIterator[PostgresBroker]:
    async with PostgresBroker(dsn, delivery_limit=delivery_limit, timeout_s=timeout_s, lease_s=lease_s) as broker:
        yield broker
