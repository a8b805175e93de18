"""Lists: newest first, complete while rows come and go, bounded, and answered from the right partitions."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from uuid_utils.compat import uuid7

from infra.store import attempts, delivery_pages, history, partitions, tables
from infra.store.attempts import AttemptedFilter, AttemptFilter
from infra.store.deliveries import DeliveryRow
from infra.store.history import DeliveryFilter, EventFilter, EventRow, KnownEvent, TimeRange
from infra.store.outcomes import Missing
from infra.store.query import columns, compiled
from infra.store.store import Store
from tests.support import rows

NOW = datetime.now(UTC)
EVERY = AttemptedFilter(DeliveryFilter())


async def _all(conn: asyncpg.Connection, wanted: DeliveryFilter, *, limit: int) -> list[DeliveryRow]:
    found: list[DeliveryRow] = []
    after: UUID | None = None
    while True:
        page = await delivery_pages.list_page(conn, AttemptedFilter(wanted), after=after, limit=limit)
        assert len(page.rows) <= limit
        assert len(found) < 100
        found += page.rows
        after = page.next_after
        if after is None:
            return found


async def test_pages_hold_every_delivery_once_newest_first(store: Store) -> None:
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn)).id
        keys = [
            await rows.add_delivery(conn, subscription, "held", at=NOW - timedelta(seconds=second))
            for second in range(7)
        ]
        # Four that share their event, and with it the milliseconds of their keys.
        event = await rows.add_event(conn)
        keys += [await rows.add_delivery(conn, uuid7(), "held", event=event) for _ in range(4)]
        for limit in (1, 2, 10, 11, 12):
            listed = [row.id for row in await _all(conn, DeliveryFilter(), limit=limit)]
            assert listed == sorted(keys, reverse=True), limit


async def test_rows_that_come_and_go_while_paging_neither_repeat_nor_hide_others(store: Store) -> None:
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn)).id
        keys = sorted(
            [await rows.add_delivery(conn, subscription, "held", at=NOW - timedelta(seconds=n)) for n in range(6)],
            reverse=True,
        )
        first = await delivery_pages.list_page(conn, EVERY, after=None, limit=3)
        await rows.add_delivery(conn, subscription, "held", at=NOW + timedelta(seconds=1))
        await conn.execute("DELETE FROM deliveries WHERE id = $1", keys[2])
        second = await delivery_pages.list_page(conn, EVERY, after=first.next_after, limit=3)
    assert [row.id for row in first.rows] == keys[:3]
    assert [row.id for row in second.rows] == keys[3:]
    assert second.next_after is None


async def test_deliveries_are_filtered_by_each_field(store: Store) -> None:
    async with store.transaction() as conn:
        one, two = [(await rows.add_subscription(conn, tenant=tenant)).id for tenant in ("acme", "other")]
        before = NOW - timedelta(minutes=10)
        key = await rows.add_delivery(conn, one, "dead", tenant="acme", event_type="a.b", at=before)
        await rows.add_delivery(conn, two, "held", tenant="other", event_type="a.c", at=NOW)
        event = (await rows.delivery(conn, key))["event_id"]
        for wanted in (
            DeliveryFilter(subscription_id=one),
            DeliveryFilter(event_id=event),
            DeliveryFilter(tenant="acme"),
            DeliveryFilter(event_type="a.b"),
            DeliveryFilter(statuses=("dead", "canceled")),
            DeliveryFilter(created=TimeRange(None, NOW)),
            DeliveryFilter(created=TimeRange(before, before + timedelta(milliseconds=1))),
        ):
            assert [row.id for row in await _all(conn, wanted, limit=9)] == [key], wanted
        assert await _all(conn, DeliveryFilter(created=TimeRange(NOW + timedelta(hours=1))), limit=9) == []


async def test_a_time_range_holds_its_beginning_and_not_its_end(store: Store) -> None:
    at = NOW.replace(microsecond=5000)
    async with store.transaction() as conn:
        key = await rows.add_delivery(conn, (await rows.add_subscription(conn)).id, "held", at=at)
        later = at + timedelta(milliseconds=1)
        assert [row.id for row in await _all(conn, DeliveryFilter(created=TimeRange(at, later)), limit=9)] == [key]
        assert await _all(conn, DeliveryFilter(created=TimeRange(None, at)), limit=9) == []
        assert await _all(conn, DeliveryFilter(created=TimeRange(later)), limit=9) == []


async def test_a_time_before_the_epoch_is_the_beginning(store: Store) -> None:
    async with store.transaction() as conn:
        key = await rows.add_delivery(conn, (await rows.add_subscription(conn)).id, "held")
        old = TimeRange(datetime(1900, 1, 1, tzinfo=UTC))
        assert [row.id for row in await _all(conn, DeliveryFilter(created=old), limit=9)] == [key]


@pytest.mark.parametrize("wanted", ["event", "time"])
async def test_deliveries_of_an_event_and_of_a_time_are_looked_up_in_their_days_partition(
    store: Store, wanted: str
) -> None:
    async with store.transaction() as conn:
        event = await rows.add_event(conn, at=NOW)
        of = {
            "event": DeliveryFilter(event_id=event),
            "time": DeliveryFilter(created=TimeRange(NOW, NOW + timedelta(milliseconds=1))),
        }[wanted]
        scanned = await _scanned(conn, of)
    assert scanned == {partitions.partition_name("deliveries", NOW.date())}


async def _scanned(conn: asyncpg.Connection, wanted: DeliveryFilter) -> set[str]:
    from sqlalchemy import select

    statement = select(*columns(tables.deliveries, DeliveryRow)).where(*history.delivery_conditions(wanted))
    sql, arguments = compiled(statement)
    await conn.set_type_codec("json", schema="pg_catalog", encoder=str, decoder=_loads)
    plan = await conn.fetchval(f"EXPLAIN (FORMAT JSON) {sql}", *arguments)
    await conn.reset_type_codec("json", schema="pg_catalog")
    return set(_relations(plan[0]["Plan"]))


def _loads(text: str) -> Any:
    import orjson

    return orjson.loads(text)


def _relations(plan: dict[str, Any]) -> list[str]:
    own = [str(plan["Relation Name"])] if "Relation Name" in plan else []
    return own + [name for part in plan.get("Plans", ()) for name in _relations(part)]


async def test_events_are_listed_with_their_data_as_it_came(store: Store) -> None:
    data = b'{"b": 1.10, "a":12345678901234567890123, "t":"\\u0000"}'
    async with store.transaction() as conn:
        key = await rows.add_event(conn, tenant="acme", source="shop", external_id="1", type="a.b", data=data)
        await rows.add_event(conn, tenant="other", source="else", external_id="2", type="a.c")
        for wanted in (
            EventFilter(tenant="acme"),
            EventFilter(source="shop"),
            EventFilter(external_id="1"),
            EventFilter(type="a.b"),
        ):
            page = await history.list_events(conn, wanted, after=None, limit=9)
            assert [(row.id, row.data) for row in page.rows] == [(key, data)], wanted
        row = await history.get_event(conn, key)
        assert isinstance(row, EventRow)
        assert row.data == data
        assert await history.get_event(conn, uuid7()) == Missing()


async def test_a_page_of_events_is_bounded_in_bytes_and_loses_none(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MAX_PAGE_BYTES", 1000)
    sizes = [400, 700, 300, 5000, 10, 10, 990, 1]
    async with store.transaction() as conn:
        keys = [
            await rows.add_event(conn, at=NOW - timedelta(seconds=n), data=b'"' + b"x" * (size - 2) + b'"')
            for n, size in enumerate(sizes)
        ]
        shown: list[list[UUID]] = []
        after: UUID | None = None
        while after is not None or not shown:
            page = await history.list_events(conn, EventFilter(), after=after, limit=5)
            shown.append([row.id for row in page.rows])
            after = page.next_after
    assert [key for page_of in shown for key in page_of] == keys
    assert [len(page_of) for page_of in shown] == [1, 2, 1, 2, 2]


async def test_a_page_of_a_tenants_events_looks_at_so_many_of_all_and_its_cursor_is_none_of_anothers(
    store: Store,
) -> None:
    async with store.transaction() as conn:
        keys = [
            (tenant, await rows.add_event(conn, at=NOW - timedelta(seconds=n), tenant=tenant))
            for n, tenant in enumerate(["other"] * 5 + ["acme", "other", "acme"] + ["other"] * 9 + ["acme"])
        ]
        shown: list[list[UUID]] = []
        cursors: list[UUID | None] = []
        while not cursors or cursors[-1] is not None:
            page = await history.list_events(
                conn, EventFilter(tenant="acme"), after=cursors[-1] if cursors else None, limit=2, scanned_rows=4
            )
            shown.append([row.id for row in page.rows])
            cursors.append(page.next_after)
    acmes = [key for tenant, key in keys if tenant == "acme"]
    assert [key for page_of in shown for key in page_of] == acmes
    assert [len(page_of) for page_of in shown] == [0, 1, 1, 0, 0, 1]
    assert {key for _, key in keys}.intersection(filter(None, cursors)) <= set(acmes)


async def test_a_page_of_a_tenants_attempts_looks_at_so_many_of_all(store: Store) -> None:
    async with store.transaction() as conn:
        deliveries = {
            tenant: await rows.add_delivery(
                conn, (await rows.add_subscription(conn, tenant=tenant)).id, "retrying", tenant=tenant
            )
            for tenant in ("acme", "other")
        }
        made = [await rows.add_attempt(conn, deliveries[of]) for of in ["acme"] + ["other"] * 7 + ["acme", "other"] * 2]
        acmes = [made[10], made[8], made[0]]
        for wanted in (AttemptFilter(tenant="acme"), AttemptFilter(delivery_id=deliveries["acme"], outcome="retry")):
            found: list[UUID] = []
            after, cursors = None, set[UUID]()
            while after is not None or not cursors:
                page = await attempts.list_page(conn, wanted, after=after, limit=2, scanned_rows=3)
                found += [row.id for row in page.rows]
                after = page.next_after
                cursors.add(after or UUID(int=0))
            assert found == acmes
            theirs = replace(wanted, tenant="acme", delivery_id=deliveries["other"])
            page = await attempts.list_page(conn, theirs, after=None, limit=1, scanned_rows=2)
            assert (page.rows, page.next_after) == ([], None)
            assert cursors.intersection(made) <= set(acmes)


async def test_attempts_are_the_deliverys_own_in_order_and_at_most_the_latest(store: Store) -> None:
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn)).id
        key, other = [await rows.add_delivery(conn, subscription, "retrying") for _ in range(2)]
        made = [await rows.add_attempt(conn, key, number=number) for number in (1, 2, 3)]
        await rows.add_attempt(conn, other)
        assert [row.id for row in await history.attempts_of(conn, key, limit=9)] == made
        assert [row.id for row in await history.attempts_of(conn, key, limit=2)] == made[1:]


async def test_a_known_event_is_found_by_all_of_its_identity_within_the_window(store: Store) -> None:
    async with store.transaction() as conn:
        key = await rows.add_event(conn, tenant="t", source="s", external_id="1", digest=b"d")
        known = KnownEvent(key, b"d")
        assert await history.known_event(conn, "t", "s", "1", window_s=60) == known
        for other in (("u", "s", "1"), ("t", "z", "1"), ("t", "s", "2")):
            assert await history.known_event(conn, *other, window_s=60) is None
        await conn.execute("UPDATE event_keys SET created_at = now() - interval '2 minutes'")
        assert await history.known_event(conn, "t", "s", "1", window_s=60) is None
