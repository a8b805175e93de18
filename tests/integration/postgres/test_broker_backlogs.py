"""Backlogs, suspects and dead letters of the PostgreSQL broker, as far as they are its own."""

import asyncio
from collections.abc import Sequence

import asyncpg

from infra.broker.base import Outgoing, Queue, Received, ToDead, ToWorkAfter
from schemas.messages import Message
from tests.integration.postgres.broker_steps import (
    TIMEOUT_S,
    assert_nothing,
    bodies,
    event,
    opened,
    receive,
    sql,
)
from tests.support.waiting import eventually


async def scanned(database_url: str) -> tuple[int, int]:
    """How often all of the messages were read through, and how often an index was used."""
    conn = await asyncpg.connect(database_url)
    try:
        (row,) = await conn.fetch("SELECT seq_scan, idx_scan FROM pg_stat_user_tables WHERE relname = 'queue_messages'")
        return row["seq_scan"], row["idx_scan"]
    finally:
        await conn.close()


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
        before = await scanned(database_url)
        for _ in range(60):
            await consumer.ack(await receive(consumer, 10))

        async def told() -> bool:  # a session tells what it did a little later
            return (await scanned(database_url))[1] >= before[1] + 60

        await eventually(told, deadline_s=60)
        assert (await scanned(database_url))[0] == before[0]


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
