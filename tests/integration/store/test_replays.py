"""Replays in bulk: frozen when asked for, worked through in batches, counted, canceled."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from infra.store import deliveries, replays
from infra.store.history import DeliveryFilter, TimeRange
from infra.store.outcomes import Missing, Refused
from infra.store.replays import ReplayRow, decode_filter, encode_filter
from infra.store.store import Store
from tests.support import rows
from tests.support.waiting import eventually

DEAD = DeliveryFilter(statuses=("dead",))


async def _create(
    store: Store, wanted: DeliveryFilter = DEAD, *, now: datetime | None = None, max_per_s: float = 100
) -> ReplayRow:
    async with store.transaction() as conn:
        # A millisecond on, because keys have no finer time and the bound is exclusive.
        at = now or datetime.now(UTC) + timedelta(milliseconds=1)
        return await replays.create(conn, replay_id=uuid7(), wanted=wanted, max_per_s=max_per_s, now=at)


async def _run(store: Store, *, batch: int) -> int:
    """Advance until nothing is left to do; returns how many steps that took."""
    steps = 0
    while True:
        async with store.transaction() as conn:
            if not await rows.step_replay(conn, batch=batch):
                return steps
        steps += 1
        assert steps < 100


async def _get(store: Store, key: UUID) -> ReplayRow:
    async with store.connection() as conn:
        row = await replays.get(conn, key)
    assert isinstance(row, ReplayRow)
    return row


async def _dead(store: Store, number: int, subscription: UUID | None = None) -> list[UUID]:
    async with store.transaction() as conn:
        subscription = subscription or (await rows.add_subscription(conn)).id
        return [await rows.add_delivery(conn, subscription, "dead") for _ in range(number)]


async def _statuses(store: Store) -> list[str]:
    async with store.connection() as conn:
        return [record["status"] for record in await conn.fetch("SELECT status FROM deliveries ORDER BY id")]


async def test_a_replay_goes_through_all_that_matched_in_batches(store: Store) -> None:
    keys = await _dead(store, 7)
    created = await _create(store)
    assert (created.state, created.matched, created.replayed) == ("running", 7, 0)
    assert await _run(store, batch=3) == 3
    row = await _get(store, created.id)
    assert (row.state, row.matched, row.replayed, row.skipped) == ("completed", 7, 7, 0)
    assert row.ended_at is not None
    async with store.connection() as conn:
        assert [(await rows.delivery(conn, key))["cycle"] for key in keys] == [1] * 7


@pytest.mark.parametrize("number", [0, 3, 6])
async def test_a_replay_ends_also_at_the_edge_of_a_batch(store: Store, number: int) -> None:
    await _dead(store, number)
    created = await _create(store)
    await _run(store, batch=3)
    row = await _get(store, created.id)
    assert (row.state, row.replayed) == ("completed", number)


async def test_a_step_looks_at_a_bounded_number_of_rows_and_goes_on_behind_them(store: Store) -> None:
    """Of eleven rows three are wanted, the first, one amid and the last; a step looks at four."""
    wanted = DeliveryFilter(event_type="order.last", statuses=("delivered",))
    keys = []
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn)).id
        at = datetime.now(UTC) - timedelta(seconds=20)
        for number in range(11):
            kind = "order.last" if number in {0, 5, 10} else "order.created"
            moment = at + timedelta(seconds=number)
            keys.append(await rows.add_delivery(conn, subscription, "delivered", event_type=kind, at=moment))
    created = await _create(store, wanted)
    steps = []
    while (await _get(store, created.id)).state == "running":
        async with store.transaction() as conn:
            await conn.execute("UPDATE replays SET paced_since = to_timestamp(1)")
            running = await replays.take(conn, after=UUID(int=0))
            assert running is not None
            looking = await replays.advance(conn, running, count=2, since_s=running.now_s, scanned_rows=4)
            used = await conn.fetchval("SELECT paced_since > to_timestamp(1) FROM replays")
        steps.append((looking, used, (await _get(store, created.id)).replayed))
    assert steps == [(True, True, 1), (True, True, 2), (False, True, 3)]
    async with store.connection() as conn:
        cycles = [(await rows.delivery(conn, key))["cycle"] for key in keys]
    assert cycles == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]


async def test_a_step_that_finds_nothing_uses_nothing_of_the_rate(store: Store) -> None:
    await _dead(store, 5)
    created = await _create(store, DeliveryFilter(event_type="other", statuses=("dead",)))
    async with store.transaction() as conn:
        await conn.execute("UPDATE replays SET paced_since = to_timestamp(1)")
        running = await replays.take(conn, after=UUID(int=0))
        assert running is not None
        assert await replays.advance(conn, running, count=9, since_s=running.now_s, scanned_rows=2)
        assert await conn.fetchval("SELECT extract(epoch FROM paced_since) FROM replays") == 1
    assert (await _get(store, created.id)).state == "running"


async def test_advance_says_that_there_is_nothing_to_do(store: Store) -> None:
    async with store.transaction() as conn:
        assert not await rows.step_replay(conn, batch=10)


async def test_deliveries_created_after_the_replay_are_not_part_of_it(store: Store) -> None:
    await _dead(store, 1)
    created = await _create(store, now=datetime.now(UTC) + timedelta(milliseconds=1))
    await asyncio.sleep(0.005)
    await _dead(store, 2)
    await _run(store, batch=10)
    assert sorted(await _statuses(store)) == ["dead", "dead", "held"]
    assert (await _get(store, created.id)).matched == 1


async def test_an_upper_bound_in_the_future_is_frozen_at_now(store: Store) -> None:
    now = datetime.now(UTC)
    wanted = DeliveryFilter(statuses=("dead",), created=TimeRange(None, now + timedelta(days=9)))
    created = await _create(store, wanted, now=now)
    assert decode_filter(created.filter).created.before == now


async def test_what_is_replayed_and_dies_again_is_not_replayed_twice(store: Store) -> None:
    await _dead(store, 4)
    await _create(store)
    async with store.transaction() as conn:
        await rows.step_replay(conn, batch=2)
        await conn.execute("UPDATE deliveries SET status = 'dead' WHERE status = 'held'")
    await _run(store, batch=2)
    async with store.connection() as conn:
        assert {record["cycle"] for record in await conn.fetch("SELECT cycle FROM deliveries")} == {1}


async def test_what_cannot_be_replayed_when_its_turn_comes_is_counted_as_skipped(store: Store) -> None:
    await _dead(store, 2)
    async with store.transaction() as conn:
        paused = (await rows.add_subscription(conn)).id
    await _dead(store, 3, paused)
    elsewhere = (await _dead(store, 1))[0]
    created = await _create(store)
    async with store.transaction() as conn:
        await conn.execute("UPDATE subscriptions SET state = 'paused' WHERE id = $1", paused)
        await deliveries.replay(conn, [elsewhere])
    await _run(store, batch=2)
    row = await _get(store, created.id)
    assert (row.state, row.matched, row.replayed, row.skipped) == ("completed", 6, 2, 4)


async def test_a_replay_takes_only_what_its_filter_names(store: Store) -> None:
    async with store.transaction() as conn:
        one, two = [(await rows.add_subscription(conn)).id for _ in range(2)]
        hour_ago = datetime.now(UTC) - timedelta(hours=1)
        wanted = {
            "subscription": await rows.add_delivery(conn, one, "dead", at=hour_ago, tenant="t", event_type="a.b"),
        }
        await rows.add_delivery(conn, two, "dead", at=hour_ago, tenant="t", event_type="a.b")
        await rows.add_delivery(conn, one, "delivered", at=hour_ago, tenant="t", event_type="a.b")
        await rows.add_delivery(conn, one, "dead", at=hour_ago, tenant="u", event_type="a.b")
        await rows.add_delivery(conn, one, "dead", at=hour_ago, tenant="t", event_type="a.c")
        await rows.add_delivery(conn, one, "dead", at=hour_ago - timedelta(hours=1), tenant="t", event_type="a.b")
        await rows.add_delivery(conn, one, "dead", tenant="t", event_type="a.b")
    window = TimeRange(hour_ago - timedelta(minutes=1), hour_ago + timedelta(minutes=1))
    created = await _create(
        store,
        DeliveryFilter(
            subscription_id=one, tenant="t", event_type="a.b", statuses=("dead", "canceled"), created=window
        ),
    )
    await _run(store, batch=10)
    async with store.connection() as conn:
        held = [record["id"] for record in await conn.fetch("SELECT id FROM deliveries WHERE status = 'held'")]
    assert held == [wanted["subscription"]]
    assert (await _get(store, created.id)).matched == 1


async def test_a_canceled_replay_stops_and_what_it_began_goes_on(store: Store) -> None:
    await _dead(store, 4)
    created = await _create(store)
    async with store.transaction() as conn:
        await rows.step_replay(conn, batch=2)
    async with store.transaction() as conn:
        row = await replays.cancel(conn, created.id)
        assert isinstance(row, ReplayRow)
        assert (row.state, row.replayed) == ("canceled", 2)
    assert await _run(store, batch=2) == 0
    assert sorted(await _statuses(store)) == ["dead", "dead", "held", "held"]
    async with store.transaction() as conn:
        assert await replays.cancel(conn, created.id) == Refused(
            "the replay is canceled; only a running one can be canceled"
        )
        assert await replays.cancel(conn, uuid7()) == Missing()


async def test_two_dispatchers_work_on_two_replays_and_never_on_the_same(store: Store) -> None:
    await _dead(store, 4)
    first, second = await _create(store), await _create(store)
    async with store.transaction() as conn:
        await conn.execute("UPDATE replays SET paced_since = paced_since - interval '1 minute'")
    async with store.transaction() as one, store.transaction() as two:
        taken = [await replays.take(conn, after=UUID(int=0)) for conn in (one, two)]
        assert [running and running.id for running in taken] == [first.id, second.id]
        assert await replays.take(one, after=first.id) is None


async def test_a_replay_is_taken_again_when_its_rate_allows_one_more(store: Store) -> None:
    await _dead(store, 4)
    slow, fast = await _create(store, max_per_s=0.01), await _create(store, max_per_s=1000)

    async def ready() -> list[UUID]:
        found, last = [], UUID(int=0)
        async with store.transaction() as conn:
            while (running := await replays.take(conn, after=last)) is not None:
                assert running.now_s - running.since_s >= 1 / running.max_per_s
                last = running.id
                found.append(last)
        return found

    async def is_ready() -> bool:
        return await ready() == [fast.id]

    await eventually(is_ready)
    async with store.transaction() as conn:
        running = await replays.take(conn, after=UUID(int=0))
        assert running is not None
        await replays.advance(conn, running, count=2, since_s=running.now_s + 60)
    assert await ready() == []
    async with store.transaction() as conn:
        await conn.execute("UPDATE replays SET paced_since = paced_since - interval '100 s'")
    assert await ready() == [slow.id, fast.id]
    assert (await _get(store, fast.id)).replayed == 2


async def test_many_dispatchers_at_once_replay_each_delivery_once(store: Store) -> None:
    await _dead(store, 40)
    created = await _create(store)
    await asyncio.gather(*(_run(store, batch=3) for _ in range(4)))
    while await _run(store, batch=3):
        pass
    row = await _get(store, created.id)
    assert (row.state, row.replayed, row.skipped) == ("completed", 40, 0)
    async with store.connection() as conn:
        assert {record["cycle"] for record in await conn.fetch("SELECT cycle FROM deliveries")} == {1}


async def test_lists_show_the_newest_first_and_filter(store: Store) -> None:
    one = await _create(store, DeliveryFilter(tenant="acme", statuses=("dead",)))
    two = await _create(store)
    async with store.transaction() as conn:
        await replays.cancel(conn, two.id)
        assert [
            row.id for row in (await replays.list_page(conn, tenant=None, state=None, after=None, limit=9)).rows
        ] == [
            two.id,
            one.id,
        ]
        page = await replays.list_page(conn, tenant="acme", state=None, after=None, limit=9)
        assert [row.id for row in page.rows] == [one.id]
        page = await replays.list_page(conn, tenant=None, state="canceled", after=None, limit=9)
        assert [row.id for row in page.rows] == [two.id]


def test_a_filter_reads_back_as_it_was_stored() -> None:
    now = datetime.now(UTC)
    full = DeliveryFilter(
        subscription_id=uuid7(),
        tenant="t",
        event_type="a.b",
        statuses=("dead", "canceled"),
        created=TimeRange(now, now),
    )
    assert decode_filter(encode_filter(full)) == full
    assert decode_filter(encode_filter(DEAD)) == DEAD
