"""Many deliveries retried or canceled at once, against those who have them in hand and against each other."""

import asyncio
from collections.abc import Sequence
from uuid import UUID

from uuid_utils.compat import uuid7

from infra.store import deliveries
from infra.store.store import Store
from tests.support import rows
from tests.support.rows import Claim


async def _add(store: Store, *statuses: str, claim: Claim | None = None) -> list[UUID]:
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn)).id
        return [await rows.add_delivery(conn, subscription, status, claim=claim) for status in statuses]


async def test_a_retry_leaves_a_live_claim_alone_and_a_cancel_leaves_it_to_its_owner(store: Store) -> None:
    claim = Claim(uuid7(), fence=3)
    waiting, claimed = await _add(store, "retrying"), await _add(store, "retrying", claim=claim)
    async with store.transaction() as conn:
        before = await rows.delivery(conn, claimed[0])
        assert await deliveries.retry_all(conn, [*waiting, *claimed, uuid7()]) == waiting
        assert await rows.delivery(conn, claimed[0]) == before
        assert set(await deliveries.cancel_all(conn, [*waiting, *claimed])) == {*waiting, *claimed}
        after = await rows.delivery(conn, claimed[0])
    assert (after["status"], after["claimed_by"], after["fence"]) == ("canceled", claim.by, 3)


async def test_a_row_that_is_claimed_while_the_retry_waits_for_it_is_passed_over(store: Store) -> None:
    (key,) = await _add(store, "retrying")

    async def retry() -> list[UUID]:
        async with store.transaction() as conn:
            return await deliveries.retry_all(conn, [key])

    async with store.transaction() as conn:
        await conn.execute("UPDATE deliveries SET claimed_by = $2, claimed_at = now() WHERE id = $1", key, uuid7())
        task = asyncio.create_task(retry())
        await asyncio.wait({task}, timeout=0.1)
        assert not task.done()
    assert await task == []


async def test_calls_over_the_same_rows_do_not_deadlock(store: Store) -> None:
    keys = [key for _ in range(10) for key in await _add(store, *["retrying"] * 4)]

    async def act(ids: Sequence[UUID], *, cancel: bool) -> int:
        async with store.transaction() as conn:
            return len(await (deliveries.cancel_all if cancel else deliveries.retry_all)(conn, ids))

    done = await asyncio.gather(*(act(keys[:: 1 if turn % 2 else -1], cancel=turn > 2) for turn in range(6)))
    assert sum(done[3:]) == 40
    async with store.connection() as conn:
        assert {one["status"] for one in await conn.fetch("SELECT status FROM deliveries")} == {"canceled"}


async def test_nothing_asked_for_is_nothing_done(store: Store) -> None:
    async with store.transaction() as conn:
        assert await deliveries.retry_all(conn, []) == []
        assert await deliveries.cancel_all(conn, []) == []
        assert await deliveries.cancel_all(conn, await _add(store, "held"), ["delivered"]) == []
