"""The heartbeat: renewing, lapsing, and what a dispatcher knows of it."""

import asyncio
from dataclasses import replace

import pytest

from dispatcher.clock import boot_s
from dispatcher.heartbeat import Heartbeat
from infra.store.store import Store
from schemas.errors import StoreUnavailable
from tests.integration.dispatcher.times import TIMES
from tests.support.seed import Seed
from tests.support.waiting import eventually


async def test_a_lapse_is_remembered_by_the_claims_from_before_it(
    heartbeat: Heartbeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = {"s": boot_s() + 1}
    monkeypatch.setattr("dispatcher.heartbeat.boot_s", lambda: now["s"])
    await heartbeat._renew()
    claimed_s = now["s"]
    now["s"] += 5.4  # liveness 6, margin 0.5
    await heartbeat._renew()
    assert not heartbeat.lapsed_since(claimed_s)
    now["s"] += 5.5
    assert not heartbeat.is_fresh()
    await heartbeat._renew()
    assert heartbeat.is_fresh()
    assert heartbeat.lapsed_since(claimed_s)
    now["s"] += 0.1
    assert not heartbeat.lapsed_since(now["s"])


async def test_a_renewal_that_hangs_is_cut_off_in_its_time_and_the_next_one_has_a_new_connection(
    store: Store, seed: Seed
) -> None:
    heartbeat = await Heartbeat(store, replace(TIMES, renewal_s=0.3)).start()
    before = heartbeat._connection
    async with store.transaction() as blocking:
        await blocking.execute("SELECT 1 FROM dispatchers WHERE id = $1 FOR UPDATE", heartbeat.incarnation)
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(heartbeat._renew(), 2)
    await heartbeat._renew()
    assert heartbeat._connection is not before
    assert heartbeat.is_fresh()
    row = await seed.row("dispatchers", heartbeat.incarnation)
    assert row["renewed_at"] > row["started_at"]


async def test_the_heart_does_not_wait_for_the_pool(store: Store) -> None:
    heartbeat = await Heartbeat(store, TIMES).start()
    async with asyncio.TaskGroup() as users:
        release = asyncio.Event()

        async def keep_one() -> None:
            async with store.connection():
                await release.wait()

        async def all_taken() -> bool:
            return not store._pool.get_idle_size() and store._pool.get_size() == store._pool.get_max_size()

        for _ in range(store._pool.get_max_size()):
            users.create_task(keep_one())
        await eventually(all_taken)
        await asyncio.wait_for(heartbeat._renew(), 2)
        release.set()
    await heartbeat.retire()


async def test_a_retired_dispatcher_has_no_row(heartbeat: Heartbeat, store: Store) -> None:
    await heartbeat.retire()
    async with store.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM dispatchers") == 0
