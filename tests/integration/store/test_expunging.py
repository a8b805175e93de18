"""Expunging against those who act on the same event just then: whoever comes first, nothing is sent of it after."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from infra.store import deliveries, expunging, redelivery
from infra.store.expunging import EXPUNGED, Expunction
from infra.store.outcomes import Expunged, Missing
from infra.store.redelivery import Sent, Target
from infra.store.store import Store
from tests.support import rows
from tests.support.rows import Claim
from tests.support.waiting import eventually


async def _expunge(store: Store, event: UUID) -> Expunction:
    async with store.transaction() as conn:
        done = await expunging.expunge(conn, event)
    assert isinstance(done, Expunction)
    return done


@asynccontextmanager
async def _meanwhile(store: Store, waiting: Coroutine[Any, Any, Any]) -> AsyncIterator[asyncpg.Connection]:
    """A transaction that commits only once `waiting`, begun at the end of the block, waits for one of its locks."""
    async with store.transaction() as conn:
        yield conn
        task = asyncio.create_task(waiting)

        async def waits() -> bool:
            async with store.connection() as other:
                number = await other.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                    "AND datname = current_database()"
                )
            return bool(number)

        await eventually(waits)
    await task


async def _one(store: Store, status: str, **given: Any) -> tuple[UUID, UUID, UUID]:
    """An event, a subscription and the delivery between them."""
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn)).id
        event = await rows.add_event(conn)
        return event, subscription, await rows.add_delivery(conn, subscription, status, event=event, **given)


async def _row(store: Store, key: UUID) -> dict[str, Any]:
    async with store.connection() as conn:
        return await rows.delivery(conn, key)


async def test_who_claims_first_keeps_its_claim_and_the_row_is_canceled(store: Store) -> None:
    event, _, key = await _one(store, "held")
    claim = Claim(uuid7())
    done: list[Expunction] = []

    async def expunge() -> None:
        done.append(await _expunge(store, event))

    async with _meanwhile(store, expunge()) as conn:
        await conn.execute("UPDATE deliveries SET claimed_by = $2, claimed_at = now() WHERE id = $1", key, claim.by)
    assert (done[0].canceled, done[0].in_progress) == (1, 1)
    row = await _row(store, key)
    assert (row["status"], row["reason"], row["claimed_by"]) == ("canceled", EXPUNGED, claim.by)


async def test_a_replay_that_waited_for_it_begins_nothing(store: Store) -> None:
    event, _, key = await _one(store, "delivered")
    begun: list[UUID] = []

    async def replay() -> None:
        async with store.transaction() as conn:
            begun.extend(await deliveries.replay(conn, [key]))

    async with _meanwhile(store, replay()) as conn:
        await expunging.expunge(conn, event)
    assert begun == []
    async with store.connection() as conn:
        assert await deliveries.why_not_replayed(conn, key) == Expunged(EXPUNGED)
    assert (await _row(store, key))["cycle"] == 0


async def test_what_a_replay_began_before_is_canceled(store: Store) -> None:
    event, _, key = await _one(store, "delivered")
    async with _meanwhile(store, _expunge(store, event)) as conn:
        assert await deliveries.replay(conn, [key]) == [key]
    row = await _row(store, key)
    assert (row["status"], row["cycle"]) == ("canceled", 1)


async def test_what_a_redelivery_makes_meanwhile_is_canceled(store: Store) -> None:
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn)).id
        event = await rows.add_event(conn)
    async with _meanwhile(store, _expunge(store, event)) as conn:
        sent, target = await redelivery.lock_event(conn, event), await redelivery.lock_target(conn, subscription)
        assert isinstance(sent, Sent)
        assert isinstance(target, Target)
        key = (await redelivery.add(conn, sent, target)).id
    assert (await _row(store, key))["status"] == "canceled"
    async with store.connection() as conn:
        assert await redelivery.lock_event(conn, event) == Expunged(EXPUNGED)


async def test_an_answer_is_cleared_also_where_the_clock_of_who_attempted_was_behind(store: Store) -> None:
    event, _, key = await _one(store, "delivered")
    async with store.transaction() as conn:
        before = UUID(int=event.int - (10 << 80))
        attempt = await rows.add_attempt(conn, key, id=before, response_body=b'{"n":1}')
        await expunging.expunge(conn, event)
        assert await conn.fetchval("SELECT response_body FROM attempts WHERE id = $1", attempt) is None
        assert await conn.fetchval("SELECT count(*) FROM attempts") == 1


async def test_two_who_expunge_the_same_event_do_not_deadlock(store: Store) -> None:
    event, _, _ = await _one(store, "held")
    async with store.transaction() as conn:
        for _ in range(20):
            await rows.add_delivery(conn, (await rows.add_subscription(conn)).id, "held", event=event)
    done = await asyncio.gather(*(_expunge(store, event) for _ in range(3)))
    assert sorted(one.canceled for one in done) == [0, 0, 21]
    assert len({one.expunged_at for one in done}) == 1


async def test_an_event_that_is_not_there_is_missing_and_others_are_left_alone(store: Store) -> None:
    event, subscription, _ = await _one(store, "held")
    async with store.transaction() as conn:
        other = await rows.add_delivery(conn, subscription, "held", event=await rows.add_event(conn, data=b"2"))
        assert await expunging.expunge(conn, uuid7()) == Missing()
        await expunging.expunge(conn, event)
        assert (await rows.delivery(conn, other))["status"] == "held"
        assert await conn.fetchval("SELECT count(*) FROM events WHERE data = '2'") == 1
        assert await expunging.expunged_of(conn, [event, uuid7()]) == {event}
