"""Pages of deliveries: nothing repeated, nothing left out, and never more read than a page may cost."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from random import Random
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from uuid_utils.compat import uuid7

from infra.store import delivery_pages, partitions, replays
from infra.store.attempts import AttemptedFilter
from infra.store.deliveries import DeliveryRow
from infra.store.history import DeliveryFilter, TimeRange
from infra.store.store import Store
from schemas.deliveries import Status, StatusClass
from tests.support import rows

NOW = datetime.now(UTC)
TENANTS = ("acme", "other")
TYPES = ("a.b", "a.c")
SCANNED = 12

READ = """
    SELECT coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0) FROM pg_stat_xact_user_tables
     WHERE relname ~ '^deliveries_'
"""


async def _walk(conn: asyncpg.Connection, wanted: AttemptedFilter, *, limit: int) -> Iterator[list[DeliveryRow]]:
    """Every page of a list, each of which may look at a few rows."""
    pages: list[list[DeliveryRow]] = []
    after: UUID | None = None
    while not pages or after is not None:
        assert len(pages) < 200
        page = await delivery_pages.list_page(conn, wanted, after=after, limit=limit, scanned_rows=SCANNED)
        pages.append(list(page.rows))
        after = page.next_after
    return iter(pages)


async def _seed(conn: asyncpg.Connection) -> list[UUID]:
    """Deliveries of two tenants with three subscriptions each, whose ids are returned, in every status."""
    chance = Random(7)
    subscriptions = [(tenant, (await rows.add_subscription(conn, tenant=tenant)).id) for tenant in TENANTS * 3]
    for number in range(60):
        tenant, subscription = chance.choice(subscriptions)
        at = NOW - timedelta(seconds=number // 2)
        status, event_type = chance.choice(list(Status)), chance.choice(TYPES)
        key = await rows.add_delivery(conn, subscription, status, tenant=tenant, event_type=event_type, at=at)
        for code in chance.choices([200, 404, 500, None], k=chance.randrange(3)):
            await rows.add_attempt(conn, key, status_code=code)
    return [key for _, key in subscriptions]


async def test_every_filter_finds_what_a_look_at_every_row_finds_once_and_in_order(store: Store) -> None:
    async with store.transaction() as conn:
        subscription, *_ = await _seed(conn)
        every = [row for page in await _walk(conn, AttemptedFilter(DeliveryFilter()), limit=50) for row in page]
        assert len(every) == 60
        statuses: tuple[tuple[str, ...], ...] = ((), ("dead",), ("dead", "canceled"), ("dead", "held"))
        owners: tuple[dict[str, Any], ...] = (
            {},
            {"tenant": "acme"},
            {"tenant": "nobody"},
            {"subscription_id": subscription},
        )
        for owner, wanted_statuses, event_type in product(owners, statuses, (None, "a.b")):
            wanted = DeliveryFilter(**owner, statuses=wanted_statuses, event_type=event_type)
            expected = [
                row.id
                for row in every
                if all(getattr(row, name) == value for name, value in owner.items())
                and row.status in (wanted_statuses or tuple(Status))
                and event_type in (None, row.event_type)
            ]
            pages = await _walk(conn, AttemptedFilter(wanted), limit=3)
            assert [row.id for page in pages for row in page] == expected, wanted


async def test_a_page_may_be_short_with_more_to_come_and_the_last_one_says_so(store: Store) -> None:
    async with store.transaction() as conn:
        await _seed(conn)
        nothing = AttemptedFilter(DeliveryFilter(event_type="a.none"))
        pages = list(await _walk(conn, nothing, limit=4))
        assert len(pages) == 60 // SCANNED + 1
        assert not any(pages)


async def test_the_last_answers_class_is_looked_at_row_by_row(store: Store) -> None:
    async with store.transaction() as conn:
        await _seed(conn)
        for status_class in (StatusClass.CLIENT_ERROR, StatusClass.NONE):
            wanted = AttemptedFilter(DeliveryFilter(), status_class)
            found = {row.id for page in await _walk(conn, wanted, limit=4) for row in page}
            whole = await delivery_pages.list_page(conn, wanted, after=None, limit=100)
            assert found == {row.id for row in whole.rows}
        assert found < {row["id"] for row in await conn.fetch("SELECT id FROM deliveries")}


async def test_a_tenant_with_too_many_subscriptions_to_merge_sees_its_own(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with store.transaction() as conn:
        await _seed(conn)
        wanted = AttemptedFilter(DeliveryFilter(tenant="acme"))
        merged = [row for page in await _walk(conn, wanted, limit=4) for row in page]
        monkeypatch.setattr(delivery_pages, "OWNERS", 2)
        among_all = [row for page in await _walk(conn, wanted, limit=4) for row in page]
    assert merged == among_all
    assert {row.tenant for row in merged} == {"acme"}


async def test_a_page_has_the_deliveries_of_a_replay_however_many_others_there_are(store: Store) -> None:
    async with store.transaction() as conn:
        subscription, *_ = await _seed(conn)
        wanted = DeliveryFilter(tenant="acme", created=TimeRange(before=NOW - timedelta(seconds=20)))
        oldest = {row.id for page in await _walk(conn, AttemptedFilter(wanted), limit=9) for row in page}
        acmes, everybodys = [
            (await replays.create(conn, replay_id=uuid7(), wanted=replace(wanted, tenant=of), max_per_s=1, now=NOW)).id
            for of in ("acme", None)
        ]
        for replay_id, tenants in ((acmes, ("acme", None)), (everybodys, (None,))):
            await conn.execute("UPDATE deliveries SET replay_id = $1 WHERE id = ANY($2::uuid[])", replay_id, oldest)
            for tenant in tenants:
                of_it = AttemptedFilter(DeliveryFilter(tenant=tenant, replay_id=replay_id))
                page = await delivery_pages.list_page(conn, of_it, after=None, limit=50, scanned_rows=SCANNED)
                assert {row.id for row in page.rows} == oldest
                assert page.next_after is None
            narrower = (
                DeliveryFilter(tenant="acme"),
                DeliveryFilter(subscription_id=subscription),
                DeliveryFilter(statuses=("dead",)),
            )
            for wanted in narrower:
                every = [row.id for page in await _walk(conn, AttemptedFilter(wanted), limit=3) for row in page]
                of_it = AttemptedFilter(replace(wanted, replay_id=replay_id))
                found = [row.id for page in await _walk(conn, of_it, limit=3) for row in page]
                assert found == [key for key in every if key in oldest]
            strangers = AttemptedFilter(DeliveryFilter(tenant="other", replay_id=replay_id))
            assert not any(await _walk(conn, strangers, limit=3))


async def test_a_cursor_is_no_key_of_a_row_that_is_not_shown(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be another tenant's. Nor is there a cursor where the subscription or the event is another's."""
    monkeypatch.setattr(delivery_pages, "OWNERS", 2)
    async with store.transaction() as conn:
        _, others, *_ = await _seed(conn)
        acmes = AttemptedFilter(DeliveryFilter(tenant="acme", event_type="a.b"))
        every = {row["id"]: row["tenant"] for row in await conn.fetch("SELECT id, tenant FROM deliveries")}
        after: UUID | None = None
        cursors: list[UUID | None] = []
        while not cursors or after is not None:
            page = await delivery_pages.list_page(conn, acmes, after=after, limit=4, scanned_rows=SCANNED)
            cursors.append(after := page.next_after)
        assert len(cursors) > 3
        assert {every[cursor] for cursor in cursors if cursor in every} <= {"acme"}
        event = await rows.add_event(conn, tenant="other")
        for _ in range(3):
            subscription = (await rows.add_subscription(conn, tenant="other")).id
            await rows.add_delivery(conn, subscription, "held", event=event, tenant="other")
        for asked_for in (DeliveryFilter(subscription_id=others), DeliveryFilter(event_id=event)):
            for status_class in (None, StatusClass.NONE):
                wanted = AttemptedFilter(replace(asked_for, tenant="acme"), status_class)
                page = await delivery_pages.list_page(conn, wanted, after=None, limit=1, scanned_rows=2)
                assert (page.rows, page.next_after) == ([], None)


@pytest.mark.parametrize("days", [TimeRange(), TimeRange(NOW - timedelta(days=20), NOW - timedelta(days=3))])
async def test_a_page_reads_no_more_than_it_may_also_where_nothing_is_found(store: Store, days: TimeRange) -> None:
    """Not even the sixth time, when PostgreSQL would keep a plan that knows no bounds."""
    async with store.transaction() as conn:
        (subscription,) = [(await rows.add_subscription(conn, tenant="acme")).id]
        today = await partitions.today(conn)
        await partitions.make(conn, first=today - timedelta(days=29), last=today)
        await conn.execute(
            """
            INSERT INTO deliveries (id, event_id, subscription_id, tenant, event_type, status, attempts, cycle, fence)
            SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - n * 29 * 8640), 12, '0')
                    || '8000800000000000' || lpad(to_hex(n), 4, '0'))::uuid, gen_random_uuid(), $1, 'acme', 'a.b',
                   CASE WHEN n % 100 = 1 THEN 'dead' ELSE 'delivered' END, 1, 0, 1
            FROM generate_series(1, 10000::bigint) AS n
            """,
            subscription,
        )
        await conn.execute("ANALYZE deliveries")
        for wanted in (
            DeliveryFilter(event_type="a.none", created=days),
            DeliveryFilter(subscription_id=subscription, statuses=("held",), created=days),
            DeliveryFilter(tenant="acme", event_type="a.none", created=days),
            DeliveryFilter(statuses=("dead",), created=days),
            DeliveryFilter(subscription_id=subscription, statuses=("dead", "canceled"), created=days),
        ):
            for _ in range(7):
                before = await conn.fetchval(READ)
                await delivery_pages.list_page(conn, AttemptedFilter(wanted), after=None, limit=10, scanned_rows=300)
                assert await conn.fetchval(READ) - before <= 300 + 2 * 29, wanted
