"""What is the PostgreSQL broker's own; the contract that it shares with RabbitMQ is in `tests/contract/`."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from urllib.parse import urlsplit

import asyncpg
import pytest

from infra.broker.base import Consumer, Outgoing, Queue, Received, ToDead, ToEvents, ToWorkAfter
from infra.broker.postgres import PostgresBroker
from infra.broker.postgres_consumer import PostgresConsumer
from schemas.errors import BrokerUnavailable, ConfigurationError, PublishRefused, PublishTimeout, Unroutable
from schemas.messages import Message
from tests.support.postgres import Postgres
from tests.support.proxy import Direction, Proxy

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


@pytest.fixture
async def broker(database_url: str) -> AsyncIterator[PostgresBroker]:
    async with opened(database_url) as one:
        yield one


async def test_what_cannot_be_kept_as_it_is_is_refused_and_its_neighbours_are_stored(
    broker: PostgresBroker, database_url: str
) -> None:
    errors = await broker.publish_many(
        [
            event("first"),
            Outgoing(ToEvents("a" * 256), Message(b"long")),
            Outgoing(ToEvents("with \x00"), Message(b"nul")),
            event("number", large=2**63),
            event("name", **{"\x00": 1}),
            event("last"),
        ],
        timeout_s=TIMEOUT_S,
    )
    assert [type(error) for error in errors] == [
        type(None), Unroutable, PublishRefused, PublishRefused, PublishRefused, type(None),
    ]  # fmt: skip
    async with broker.consume(Queue.EVENTS, prefetch=10) as consumer:
        assert bodies(await receive_count(consumer, 2)) == ["first", "last"]


async def test_headers_that_json_cannot_hold_arrive_as_they_were(broker: PostgresBroker) -> None:
    headers = {
        "bytes": b"\x00\xff",
        "nul": "a\x00b",
        "half": "\ud800",
        "none": None,
        "yes": True,
        "max": 2**63 - 1,
        "": "",
    }
    await broker.publish(event("x", **headers), timeout_s=TIMEOUT_S)
    async with broker.consume(Queue.EVENTS, prefetch=10) as consumer:
        (one,) = await receive(consumer)
        assert one.message.headers == headers


async def test_concurrent_publishes_share_a_commit(broker: PostgresBroker, database_url: str) -> None:
    await asyncio.gather(*(broker.publish(event(str(n)), timeout_s=TIMEOUT_S) for n in range(300)))
    (row,) = await sql(database_url, "SELECT count(*), count(DISTINCT xmin::text) AS commits FROM queue_messages")
    assert row["count"] == 300
    assert row["commits"] < 30


async def test_a_publish_that_is_not_committed_in_time_says_so_and_is_not_stored_later(
    broker: PostgresBroker, database_url: str
) -> None:
    conn = await asyncpg.connect(database_url)
    try:
        async with conn.transaction():
            await conn.execute("LOCK TABLE queue_messages IN ACCESS EXCLUSIVE MODE")
            begun = asyncio.create_task(broker.publish(event("begun"), timeout_s=TIMEOUT_S))
            await asyncio.sleep(0.05)
            started = time.monotonic()
            with pytest.raises(PublishTimeout):
                await broker.publish(event("late"), timeout_s=0.3)
            assert time.monotonic() - started < 2
    finally:
        await conn.close()
    await begun
    await broker.publish(event("after"), timeout_s=TIMEOUT_S)
    async with broker.consume(Queue.EVENTS, prefetch=10) as consumer:
        assert bodies(await receive_count(consumer, 2)) == ["begun", "after"]
        await assert_nothing(consumer)


async def test_a_read_only_database_refuses(database_url: str) -> None:
    async with opened(database_url) as broker:
        name = (await sql(database_url, "SELECT current_database()"))[0][0]
        await sql(database_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await sql(
            database_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()",
            name,
        )

        async def publish_over_a_new_connection() -> None:
            while True:
                with suppress(BrokerUnavailable):  # the old one is still going away
                    await broker.publish(event("x"), timeout_s=TIMEOUT_S)

        with pytest.raises(PublishRefused):
            await asyncio.wait_for(publish_over_a_new_connection(), TIMEOUT_S)
        with pytest.raises(PublishRefused):
            await broker.check(timeout_s=TIMEOUT_S)


async def test_a_database_without_the_table_is_said_at_once(empty_database_url: str) -> None:
    with pytest.raises(BrokerUnavailable, match="hookhare migrate"):
        async with opened(empty_database_url):
            pass


async def test_a_url_that_is_none_of_ours_shows_no_password() -> None:
    with pytest.raises(ConfigurationError) as caught:
        async with opened("mysql://user:hush@host/db"):
            pass
    assert "hush" not in str(caught.value)


async def test_delays_are_exact_and_the_shortest_is_a_second(broker: PostgresBroker) -> None:
    async with broker.consume(Queue.WORK, prefetch=10) as consumer:
        started = time.monotonic()
        for delay_s in (2.3, 0, 1.5):
            await broker.publish(Outgoing(ToWorkAfter(delay_s), Message(str(delay_s).encode())), timeout_s=TIMEOUT_S)
        late = {}
        for _ in range(3):
            (one,) = await receive(consumer)
            late[one.message.body] = time.monotonic() - started - max(float(one.message.body), 1)
        assert list(late) == [b"0", b"1.5", b"2.3"]
        assert all(0 <= seconds < 0.5 for seconds in late.values())


async def test_a_message_is_there_within_milliseconds_and_not_at_the_next_look(broker: PostgresBroker) -> None:
    """Without the notification it would be half a second in the mean."""
    async with broker.consume(Queue.EVENTS, prefetch=10) as consumer:
        late = []
        for n in range(10):
            receiving = asyncio.create_task(receive(consumer))
            await asyncio.sleep(0.02)
            started = time.monotonic()
            await broker.publish(event(str(n)), timeout_s=TIMEOUT_S)
            await consumer.ack(await receiving)
            late.append(time.monotonic() - started)
        assert sorted(late)[5] < 0.2


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


async def test_a_backlog_is_claimed_by_its_index_although_the_plan_was_made_over_an_empty_table(
    database_url: str,
) -> None:
    """Left to itself, the planner reads and sorts the whole backlog for each claim."""
    async with opened(database_url) as broker, broker.consume(Queue.EVENTS, prefetch=1000) as consumer:
        await sql(database_url, "VACUUM ANALYZE queue_messages")
        for n in range(10):
            await broker.publish(event(str(n)), timeout_s=TIMEOUT_S)
            await consumer.ack(await receive(consumer))
        await sql(
            database_url,
            """
            INSERT INTO queue_messages (queue, message_id, routing_key, body, headers, visible_at)
            SELECT 'hookhare.events', n, '', '', '{}', now() - interval '1 s' FROM generate_series(1, 100000) AS n
            """,
        )
        started = time.monotonic()
        for _ in range(60):
            await consumer.ack(await receive(consumer, 10))
        assert time.monotonic() - started < 2


async def test_suspects_do_not_wait_for_ever_behind_busy_traffic(database_url: str) -> None:
    async with opened(database_url) as broker, broker.consume(Queue.EVENTS, prefetch=20) as consumer:
        await broker.publish_many([event(str(n)) for n in range(200)], timeout_s=TIMEOUT_S)
        await sql(
            database_url,
            "UPDATE queue_messages SET delivery_count = 2, consumer = gen_random_uuid() WHERE body IN ('3', '90')",
        )
        in_hand: list[Sequence[Received]] = []
        alone: list[str] = []
        seen = 0
        while seen < 200:
            try:
                received = await receive(consumer, 5, within_s=0.3)
            except TimeoutError:  # only when it hands out nothing more is everything acked
                if in_hand:
                    await consumer.ack(in_hand.pop(0))
                continue
            seen += len(received)
            if received[0].delivery_count < 3:
                in_hand.append(received)
                if len(in_hand) == 3:
                    await consumer.ack(in_hand.pop(0))
                continue
            assert len(received) == 1
            assert not in_hand
            assert seen < 150  # and not when there is nothing else left
            await assert_nothing(consumer, for_s=0.1)
            alone += bodies(received)
            await consumer.ack(received)
        assert alone == ["3", "90"]


async def test_over_the_limit_goes_to_the_dead_letters_with_where_it_came_from(database_url: str) -> None:
    async with opened(database_url, delivery_limit=4) as broker:
        await broker.publish(event("event", kept=b"\x00"), timeout_s=TIMEOUT_S)
        await broker.publish(Outgoing(ToWorkAfter(0), Message(b"work")), timeout_s=TIMEOUT_S)
        await broker.publish(Outgoing(ToDead("delivery"), Message(b"dead")), timeout_s=TIMEOUT_S)
        async with broker.consume(Queue.DEAD_LETTERS, prefetch=9) as dead:
            for count in range(20):
                (one,) = await receive(dead)
                assert (one.message.body, one.routing_key, one.delivery_count) == (b"dead", "delivery", count)
                await dead.release([one])
            (kept,) = await receive(dead)
            await dead.ack([kept])
            for queue, key in ((Queue.EVENTS, "events"), (Queue.WORK, "work")):
                async with broker.consume(queue, prefetch=9) as consumer:
                    for count in range(5):
                        (one,) = await receive(consumer)
                        assert one.delivery_count == count
                        await consumer.release([one])
                    buried, _ = await asyncio.gather(receive(dead), assert_nothing(consumer))
                    (given_up,) = buried
                    assert given_up.dead_lettered_from == queue.value
                    assert given_up.routing_key == key
                    assert given_up.delivery_count == 0
                    await dead.ack(buried)
        assert await sql(database_url, "SELECT 1 FROM queue_messages") == []
