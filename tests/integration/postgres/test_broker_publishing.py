"""Publishing to the PostgreSQL broker, as far as it is its own; the contract with RabbitMQ is in `tests/contract/`."""

import asyncio
import time
from contextlib import suppress

import asyncpg
import pytest

from infra.broker.base import Outgoing, Queue, ToEvents, ToWorkAfter
from infra.broker.postgres import PostgresBroker
from schemas.errors import BrokerUnavailable, ConfigurationError, PublishRefused, PublishTimeout, Unroutable
from schemas.messages import Message
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
