"""Partitions are made in time, dropped in time, and nothing unfinished goes without a word."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time, timedelta
from uuid import UUID

import asyncpg
import pytest

from infra.store import locks, partitions
from infra.store.partitions import keep_partitions, partition_name
from infra.store.store import Store
from infra.store.tables import PARTITIONED
from schemas.errors import StoreUnavailable
from schemas.ids import delivery_key, event_key

DEADLINE_S = 20
TODAY = date(2031, 5, 17)  # far from the partitions that the migration made
SUBSCRIPTION = UUID(int=7)


def key_on(day: date, name: str, at: time = time(12)) -> UUID:
    return event_key(int(datetime.combine(day, at, UTC).timestamp() * 1000), "t", "s", name)


async def add_delivery(conn: asyncpg.Connection, day: date, name: str, status: str) -> UUID:
    event = key_on(day, name)
    delivery = delivery_key(event, SUBSCRIPTION)
    await conn.execute(
        "INSERT INTO events (id, tenant, source, external_id, type, time, data)"
        " VALUES ($1, 't', 's', $2, 'y', now(), '')",
        event,
        name,
    )
    await conn.execute(
        """
        INSERT INTO deliveries (id, event_id, subscription_id, tenant, event_type, status, attempts, cycle, fence)
        VALUES ($1, $2, $3, 't', 'y', $4, 0, 2, 0)
        """,
        delivery,
        event,
        SUBSCRIPTION,
        status,
    )
    return delivery


async def names(conn: asyncpg.Connection) -> set[str]:
    rows = await conn.fetch("SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '_[0-9]{8}$'")
    return {row[0] for row in rows}


async def keep(store: Store, day: date, *, retention_days: int = 10_000) -> partitions.Kept:
    async with store.connection() as conn:
        return await keep_partitions(conn, today=day, ahead_days=2, retention_days=retention_days)


async def test_yesterday_today_and_the_days_ahead_are_made_once(store: Store) -> None:
    kept = await keep(store, TODAY)
    days = [TODAY + timedelta(days=offset) for offset in (-1, 0, 1, 2)]
    assert sorted(kept.made) == sorted(partition_name(table, day) for table in PARTITIONED for day in days)
    assert (await keep(store, TODAY)).made == ()
    assert len((await keep(store, TODAY + timedelta(days=1))).made) == len(PARTITIONED)


async def test_a_row_goes_to_its_utc_day_from_first_to_last_millisecond(store: Store) -> None:
    await keep(store, TODAY)
    async with store.connection() as conn:
        for at in (time(0), time(23, 59, 59, 999_000)):
            key = key_on(TODAY, "x", at)
            where = await conn.fetchval(
                "INSERT INTO events (id, tenant, source, external_id, type, time, data)"
                " VALUES ($1, '', '', '', '', now(), '') RETURNING tableoid::regclass::text",
                key,
            )
            assert where == partition_name("events", TODAY)


async def test_a_partition_has_the_indexes_and_checks_of_its_table(store: Store) -> None:
    await keep(store, TODAY)
    async with store.connection() as conn:
        for table in PARTITIONED:
            count = "SELECT count(*) FROM pg_index WHERE indrelid = $1::text::regclass"
            child = partition_name(table, TODAY)
            assert await conn.fetchval(count, child) == await conn.fetchval(count, table) > 0
        with pytest.raises(asyncpg.CheckViolationError):
            await add_delivery(conn, TODAY, "x", "nonsense")


async def test_what_is_past_retention_goes_and_what_is_not_stays(store: Store) -> None:
    await keep(store, TODAY)
    async with store.connection() as conn:
        await add_delivery(conn, TODAY - timedelta(days=1), "old", "delivered")
        await add_delivery(conn, TODAY, "new", "held")
    kept = await keep(store, TODAY + timedelta(days=3), retention_days=3)
    assert {partition_name(table, TODAY - timedelta(days=1)) for table in PARTITIONED} <= set(kept.dropped)
    assert kept.dead_lettered == 0
    async with store.connection() as conn:
        assert not await names(conn) & set(kept.dropped)
        assert [row[0] for row in await conn.fetch("SELECT external_id FROM events")] == ["new"]
        assert await conn.fetchval("SELECT count(*) FROM deliveries") == 1
        assert await conn.fetchval("SELECT count(*) FROM dead_letters") == 0


async def test_what_is_unfinished_past_retention_leaves_one_dead_letter_each(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "_BATCH_ROWS", 2)
    await keep(store, TODAY)
    async with store.connection() as conn:
        expected = {
            await add_delivery(conn, TODAY, f"{status} {copy}", status)
            for status in ("pending", "held", "retrying")
            for copy in range(3)
        }
        for status in ("delivered", "dead", "canceled"):
            await add_delivery(conn, TODAY, status, status)
    kept = await keep(store, TODAY + timedelta(days=5), retention_days=4)
    assert kept.dead_lettered == len(expected)
    async with store.connection() as conn:
        rows = await conn.fetch("SELECT * FROM dead_letters")
    assert {row["delivery_id"] for row in rows} == expected
    assert len(rows) == len(expected)
    for row in rows:
        assert (row["kind"], row["reason"], row["state"]) == ("delivery", "past retention", "open")
        assert (row["tenant"], row["cycle"], row["subscription_id"]) == ("t", 2, SUBSCRIPTION)
        assert row["published_at"] is None  # so that the reconciler publishes it
        assert delivery_key(row["event_id"], SUBSCRIPTION) == row["delivery_id"]


async def test_a_drop_that_was_cut_off_is_finished_by_the_next_call(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keep(store, TODAY)
    async with store.connection() as conn:
        delivery = await add_delivery(conn, TODAY, "x", "held")

    async def fail(*_: object) -> int:
        raise StoreUnavailable("cut off")

    with monkeypatch.context() as cut:
        cut.setattr(partitions, "_bury_unfinished", fail)
        with pytest.raises(StoreUnavailable):
            await keep(store, TODAY + timedelta(days=9), retention_days=4)
    kept = await keep(store, TODAY + timedelta(days=9), retention_days=4)
    assert kept.dead_lettered == 1
    assert partition_name("deliveries", TODAY) in kept.dropped
    async with store.connection() as conn:
        assert await conn.fetchval("SELECT delivery_id FROM dead_letters") == delivery


async def test_only_one_process_keeps_partitions_at_a_time(store: Store) -> None:
    async with store.transaction() as conn:
        await locks.take(conn, locks.Lock.MAINTENANCE)
        assert await keep(store, TODAY) == partitions.Kept()
    many = await asyncio.gather(*(keep(store, TODAY) for _ in range(5)))
    made = [name for kept in many for name in kept.made]
    assert len(made) == len(set(made)) == 4 * len(PARTITIONED)
    later = TODAY + timedelta(days=9)
    await asyncio.gather(*(keep(store, later, retention_days=2) for _ in range(5)))
    async with store.connection() as conn:
        assert not await names(conn) & set(made)


@asynccontextmanager
async def traffic(store: Store, day: date) -> AsyncIterator[list[int]]:
    """Admissions and updates that go on while the context is open; fails if one of them does. Yields their count."""
    done = [0]
    end = asyncio.Event()

    async def run(worker: int) -> None:
        while not end.is_set():
            async with store.transaction() as conn:
                delivery = await add_delivery(conn, day, f"{worker} {done[0]}", "pending")
                await conn.execute("UPDATE deliveries SET status = 'delivered' WHERE id = $1", delivery)
                await conn.fetch("SELECT * FROM deliveries JOIN events ON events.id = event_id LIMIT 5")
            done[0] += 1

    async with asyncio.TaskGroup() as workers:
        for worker in range(4):
            workers.create_task(run(worker))
        try:
            yield done
        finally:
            end.set()


async def test_partitions_come_and_go_under_traffic(store: Store) -> None:
    """A deadlock or a lock that traffic waits for too long would fail a worker."""
    await keep(store, TODAY)
    async with traffic(store, TODAY) as done, asyncio.timeout(DEADLINE_S):
        for offset in range(1, 8):
            before = done[0]
            await keep(store, TODAY + timedelta(days=offset), retention_days=offset)
            while done[0] < before + 4:  # noqa: ASYNC110 - under a deadline
                await asyncio.sleep(0.005)


async def test_dropping_does_not_stop_traffic_while_it_waits_for_a_long_reader(store: Store) -> None:
    """Everybody queues up behind whoever waits for a table of its own."""
    await keep(store, TODAY)
    longest_s = 0.0
    async with asyncio.timeout(DEADLINE_S):
        async with store.transaction() as reader:
            await reader.fetch("SELECT 1 FROM deliveries")
            dropping = asyncio.create_task(keep(store, TODAY + timedelta(days=5), retention_days=5))
            loop = asyncio.get_running_loop()
            end = loop.time() + 3
            while (started := loop.time()) < end:
                async with store.transaction() as conn:
                    await add_delivery(conn, TODAY, str(started), "held")
                longest_s = max(longest_s, loop.time() - started)
            assert not dropping.done()
        assert partition_name("deliveries", TODAY - timedelta(days=1)) in (await dropping).dropped
    assert longest_s < 1


async def test_attaching_does_not_wait_for_readers_or_writers(store: Store) -> None:
    async with store.transaction() as conn:
        await keep(store, TODAY)
        await add_delivery(conn, TODAY, "x", "held")  # holds its locks on the tables
        kept = await asyncio.wait_for(keep(store, TODAY + timedelta(days=1)), 2)
        assert len(kept.made) == len(PARTITIONED)


async def test_old_keys_are_forgotten_in_batches_and_young_ones_kept(store: Store) -> None:
    async with store.connection() as conn:
        await conn.execute(
            """
            INSERT INTO event_keys (tenant, source, external_id, event_id, digest, created_at)
            SELECT 't', 's', n::text, gen_random_uuid(), '', now() - make_interval(secs => n * 100)
              FROM generate_series(1, 10) n
            """
        )
        dropped = [await partitions.drop_old_keys(conn, window_s=450, limit=4) for _ in range(3)]
        assert dropped == [4, 2, 0]
        left = await conn.fetch("SELECT external_id::int FROM event_keys ORDER BY 1")
        assert [row[0] for row in left] == [1, 2, 3, 4]
