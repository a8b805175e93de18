"""Consuming from the PostgreSQL broker, as far as it is its own; the contract with RabbitMQ is in `tests/contract/`."""

import asyncio
import os
import signal
import sys
import time
from contextlib import AsyncExitStack, suppress
from urllib.parse import urlsplit

import pytest

from infra.broker.base import Queue, Received
from infra.broker.postgres import PostgresBroker
from infra.broker.postgres_consumer import PostgresConsumer
from schemas.errors import BrokerUnavailable
from tests.integration.postgres.broker_steps import (
    TIMEOUT_S,
    assert_nothing,
    bodies,
    event,
    opened,
    receive,
    receive_count,
    sql,
)
from tests.support.postgres import Postgres
from tests.support.proxy import Direction, Proxy


async def test_the_lease_is_kept_while_the_consumer_lives(database_url: str) -> None:
    async with opened(database_url, lease_s=0.6) as broker:
        await broker.publish(event("x"), timeout_s=TIMEOUT_S)
        async with (
            broker.consume(Queue.EVENTS, prefetch=10) as slow,
            broker.consume(Queue.EVENTS, prefetch=10) as other,
        ):
            held = await receive(slow)
            await assert_nothing(other, for_s=2)
            await slow.ack(held)
            assert await sql(database_url, "SELECT 1 FROM queue_messages") == []


CONSUME_FOR_EVER = """
import asyncio, sys
from infra.broker.base import Queue
from infra.broker.postgres import PostgresBroker
from infra.broker.postgres_consumer import PostgresConsumer

async def main():
    async with PostgresBroker(sys.argv[1], delivery_limit=100, timeout_s=5, lease_s=1) as broker:
        async with broker.consume(Queue.EVENTS, prefetch=10) as consumer:
            print(len(await consumer.receive(10)), flush=True)
            await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_what_a_killed_or_stopped_process_held_comes_back_when_its_lease_ends(
    database_url: str, how: signal.Signals
) -> None:
    async with opened(database_url, lease_s=1) as broker:
        await broker.publish_many([event("a"), event("b")], timeout_s=TIMEOUT_S)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CONSUME_FOR_EVER, database_url, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            assert await asyncio.wait_for(process.stdout.readline(), 20) == b"2\n"
            os.kill(process.pid, how)
            async with broker.consume(Queue.EVENTS, prefetch=10) as consumer:
                again = await receive_count(consumer, 2)
                assert [(one.redelivered, one.delivery_count) for one in again] == [(True, 1)] * 2
                await consumer.ack(again)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        assert await sql(database_url, "SELECT 1 FROM queue_messages") == []


async def test_closing_gives_back_at_once_and_does_not_wait_for_the_lease(database_url: str) -> None:
    async with (
        opened(database_url, lease_s=60) as broker,
        AsyncExitStack() as stack,
        broker.consume(Queue.EVENTS, prefetch=10) as other,
    ):
        consumer = await stack.enter_async_context(broker.consume(Queue.EVENTS, prefetch=10))
        await broker.publish(event("x"), timeout_s=TIMEOUT_S)
        await receive(consumer)
        receiving = asyncio.create_task(receive(other))
        await stack.aclose()
        (again,) = await receiving
        assert again.delivery_count == 1


async def test_an_ack_that_the_connection_was_cut_under_is_made_good(postgres: Postgres, database_url: str) -> None:
    dsn = postgres.tcp_dsn(urlsplit(database_url).path[1:])
    async with Proxy(("127.0.0.1", postgres.port)) as proxy:
        through = postgres.tcp_dsn(urlsplit(database_url).path[1:], port=proxy.port)
        async with opened(through, lease_s=60) as broker, broker.consume(Queue.EVENTS, prefetch=10) as consumer:
            await broker.publish_many([event("acked"), event("kept")], timeout_s=TIMEOUT_S)
            received = await receive_count(consumer, 2)
            proxy.stall(Direction.TO_SERVER)
            acking = asyncio.create_task(consumer.ack(received[:1]))
            await asyncio.sleep(0)  # asked for, on its way
            proxy.cut()
            proxy.resume()
            await acking
            (again,) = await receive(consumer)
            assert bodies([again]) == ["kept"]
            rows = await sql(dsn, "SELECT convert_from(body, 'utf8') AS body FROM queue_messages")
            assert [row["body"] for row in rows] == ["kept"]


async def test_several_consumers_never_get_the_same_message(database_url: str) -> None:
    async with opened(database_url) as broker, opened(database_url) as another:
        await broker.publish_many([event(str(n)) for n in range(1000)], timeout_s=TIMEOUT_S)
        seen: list[str] = []

        async def work(of: PostgresBroker) -> None:
            async with of.consume(Queue.EVENTS, prefetch=50) as consumer:
                while len(seen) < 1000:
                    with suppress(TimeoutError):
                        received = await asyncio.wait_for(consumer.receive(7), 0.5)
                        assert all(one.delivery_count == 0 for one in received)
                        seen.extend(bodies(received))
                        await consumer.ack(received)

        await asyncio.gather(*(work(of) for of in (broker, another) for _ in range(3)))
        assert sorted(map(int, seen)) == list(range(1000))


async def test_an_ack_makes_room_at_once(broker: PostgresBroker) -> None:
    """And not at the consumer's next look, a second later."""
    await broker.publish_many([event(str(n)) for n in range(10)], timeout_s=TIMEOUT_S)
    async with broker.consume(Queue.EVENTS, prefetch=1) as consumer:
        received = await receive(consumer)
        started = time.monotonic()
        for _ in range(9):
            receiving = asyncio.create_task(receive(consumer))
            await asyncio.sleep(0.01)  # it waits for room
            await consumer.ack(received)
            received = await receiving
        assert time.monotonic() - started < 3


async def test_who_lost_the_lease_cannot_ack_release_or_renew_for_the_next_one(database_url: str) -> None:
    async with opened(database_url, lease_s=30) as broker:
        await broker.publish(event("x"), timeout_s=TIMEOUT_S)
        async with (
            broker.consume(Queue.EVENTS, prefetch=9) as first,
            broker.consume(Queue.EVENTS, prefetch=9) as second,
        ):
            lost = await receive(first)
            await sql(database_url, "UPDATE queue_messages SET visible_at = now()")  # as if the lease had ended
            mine = await receive(second)
            assert mine[0].delivery_count == 1
            await first.ack(lost)
            await first.release(lost)
            await assert_nothing(first)
            await second.ack(mine)
        assert await sql(database_url, "SELECT 1 FROM queue_messages") == []


async def test_an_own_message_that_came_back_is_not_acked_by_its_first_handing_out(database_url: str) -> None:
    async with opened(database_url, lease_s=30) as broker:
        await broker.publish(event("x"), timeout_s=TIMEOUT_S)
        async with broker.consume(Queue.EVENTS, prefetch=9) as consumer:
            before = await receive(consumer)
            await sql(database_url, "UPDATE queue_messages SET visible_at = now()")
            again = await receive(consumer)
            await consumer.ack(before)
            assert len(await sql(database_url, "SELECT 1 FROM queue_messages")) == 1
            await consumer.ack(again)
        assert await sql(database_url, "SELECT 1 FROM queue_messages") == []


async def test_a_released_message_keeps_its_place(broker: PostgresBroker) -> None:
    await broker.publish_many([event(name) for name in "abc"], timeout_s=TIMEOUT_S)
    async with broker.consume(Queue.EVENTS, prefetch=10) as consumer:
        first = await receive(consumer, 1)
        assert bodies(first) == ["a"]
        await consumer.release(first)
        assert bodies(await receive_count(consumer, 3)) == ["a", "b", "c"]


async def test_a_cancelled_receive_loses_nothing_and_counts_nothing(broker: PostgresBroker) -> None:
    async with broker.consume(Queue.EVENTS, prefetch=100) as consumer:
        got: list[Received] = []
        for n in range(40):
            receiving = asyncio.create_task(consumer.receive(10))
            await broker.publish(event(str(n)), timeout_s=TIMEOUT_S)
            await asyncio.sleep(n % 8 * 0.0005)
            receiving.cancel()
            with suppress(asyncio.CancelledError):
                got += await receiving
        got += await receive_count(consumer, 40 - len(got))
        assert sorted(map(int, bodies(got))) == list(range(40))
        assert all(one.delivery_count == 0 for one in got)


async def test_a_receive_that_is_cancelled_as_it_wakes_up_ends(broker: PostgresBroker) -> None:
    """asyncio.wait_for() of Python 3.11 loses such a cancellation, and whoever closes waits for ever."""
    async with broker.consume(Queue.EVENTS, prefetch=100) as consumer:
        assert isinstance(consumer, PostgresConsumer)
        for ticks in range(6):
            receiving = asyncio.create_task(consumer.receive(10))
            await asyncio.sleep(0.05)  # it has looked, and waits
            consumer._woken.set()
            for _ in range(ticks):
                await asyncio.sleep(0)
            receiving.cancel()
            await asyncio.wait({receiving}, timeout=TIMEOUT_S)
            assert receiving.cancelled()


async def test_what_a_cancelled_caller_has_acked_is_acked(broker: PostgresBroker, database_url: str) -> None:
    await broker.publish_many([event(str(n)) for n in range(30)], timeout_s=TIMEOUT_S)
    async with broker.consume(Queue.EVENTS, prefetch=100) as consumer:
        for one in await receive_count(consumer, 30):
            acking = asyncio.create_task(consumer.ack([one]))
            await asyncio.sleep(0)
            acking.cancel()
    assert await sql(database_url, "SELECT 1 FROM queue_messages") == []


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_restart_of_the_server_gives_back_and_goes_on(own_postgres: Postgres, end: str) -> None:
    dsn = own_postgres.dsn(await own_postgres.create_database())
    async with opened(dsn, lease_s=60) as broker, broker.consume(Queue.EVENTS, prefetch=10) as consumer:
        await broker.publish_many([event("a"), event("b")], timeout_s=TIMEOUT_S)
        before = await receive_count(consumer, 2)
        await consumer.ack(before[:1])
        await asyncio.to_thread(getattr(own_postgres, end))
        with pytest.raises(BrokerUnavailable):
            await broker.publish(event("lost"), timeout_s=TIMEOUT_S)
        with pytest.raises(BrokerUnavailable):
            await broker.check(timeout_s=TIMEOUT_S)
        await asyncio.to_thread(own_postgres.start)
        await broker.publish(event("c"), timeout_s=TIMEOUT_S)
        after = await receive_count(consumer, 2)
        assert [(body, one.delivery_count) for body, one in zip(bodies(after), after, strict=True)] == [
            ("b", 1),
            ("c", 0),
        ]
        await consumer.ack(before)  # of a connection since lost
        await consumer.ack(after)
        assert await sql(dsn, "SELECT 1 FROM queue_messages") == []


async def test_closing_while_the_server_is_away_takes_no_time(own_postgres: Postgres) -> None:
    dsn = own_postgres.dsn(await own_postgres.create_database())
    async with opened(dsn) as broker, broker.consume(Queue.EVENTS, prefetch=10) as consumer:
        await broker.publish(event("a"), timeout_s=TIMEOUT_S)
        await receive(consumer)
        await asyncio.to_thread(own_postgres.kill)
        started = time.monotonic()
    assert time.monotonic() - started < 5
