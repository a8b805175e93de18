"""What a batch costs does not grow with the table, also when one of its rows is weeks older than the others.

PostgreSQL plans a prepared statement anew five times and then keeps a plan that knows no ids; that is the plan which
may read everything between the least and the greatest.
"""

from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from infra.store import partitions, statements
from infra.store.arrays import arrays
from infra.store.store import Store
from schemas.ids import first_key_at
from tests.support import rows

DAYS = 30
ROWS_A_DAY = 1000
BATCH = 40
BACKLOG = 3000
SUBSCRIPTION = UUID(int=7)
DISPATCHER = UUID(int=8)

READ = """
    SELECT coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0) FROM pg_stat_xact_user_tables
     WHERE relname ~ '^(deliveries|events)_'
"""

Arguments = Callable[[list[UUID]], tuple[Any, ...]]


def settled(ids: list[UUID]) -> tuple[Any, ...]:
    return *arrays([(key, "delivered", None, 1, None, None, False) for key in ids]), ids[0]


CASES: dict[str, tuple[str, Arguments]] = {
    "settling": (statements.UPDATE_DELIVERIES, settled),
    "locking": (statements.LOCK_DELIVERIES, lambda ids: (ids, ids[0], ids[-1])),
    "dead letters": (statements.INSERT_DEAD_LETTERS, lambda ids: (ids, ids, ids[0])),
    "claiming": (
        statements.CLAIM_DUE,
        lambda ids: (DISPATCHER, 3600.0, ids, [0] * len(ids), [2] * len(ids), ids[0]),
    ),
    "events": (statements.EVENTS_OF_CLAIMS, lambda ids: (ids, ids[0], ids[-1])),
}


async def fill(conn: asyncpg.Connection) -> list[UUID]:
    """A month of ended deliveries and, spread over it, a batch that is retrying; its ids."""
    today = await partitions.today(conn)
    first = today - timedelta(days=DAYS - 1)
    async with conn.transaction():
        await partitions.make(conn, first=first, last=today)
    noon = datetime.combine(first, time(12), UTC)
    days = [first_key_at(noon + timedelta(days=offset)) for offset in range(DAYS)]
    keys = [UUID(int=day.int + row) for day in days for row in range(ROWS_A_DAY)]
    batch = keys[:: len(keys) // BATCH][:BATCH]
    await conn.execute(
        """
        INSERT INTO deliveries (id, event_id, subscription_id, tenant, event_type, status, attempts, cycle, fence,
                                hint_due_at, reason)
        SELECT id, id, $2, 't', 'y', CASE WHEN id = ANY ($3) THEN 'retrying' ELSE 'delivered' END, 1, 0, 0,
               CASE WHEN id = ANY ($3) THEN now() - interval '1 day' END,
               repeat('wide, so that fewer rows are enough to be worth an index', 20)
          FROM unnest($1::uuid[]) AS id
        """,
        keys,
        SUBSCRIPTION,
        batch,
    )
    await conn.execute("INSERT INTO dispatchers (id, host, pid) VALUES ($1, 'here', 1)", DISPATCHER)
    await conn.execute("ANALYZE")
    return batch


@pytest.mark.parametrize("case", CASES)
async def test_a_batch_reads_its_own_rows(store: Store, case: str) -> None:
    statement, arguments = CASES[case]
    async with store.connection() as conn:
        batch = await fill(conn)
        for _ in range(8):
            transaction = conn.transaction()
            await transaction.start()
            before = await conn.fetchval(READ)
            await conn.fetch(statement, *arguments(batch))
            read = await conn.fetchval(READ) - before
            await transaction.rollback()
            assert read <= 4 * BATCH < DAYS * ROWS_A_DAY / 10


async def back_up(conn: asyncpg.Connection) -> None:
    """The subscription is in strict order, and has a backlog; the fleet is at work on others."""
    await rows.add_subscription(conn, subscription_id=SUBSCRIPTION, ordered=True)
    await conn.execute("UPDATE subscriptions SET mode = 'held', feeder = $1", DISPATCHER)
    last = (await conn.fetchval("SELECT id FROM deliveries ORDER BY id DESC LIMIT 1")).int
    keys = [UUID(int=last + number) for number in range(1, 2 * BACKLOG + 1)]
    await conn.execute(
        """
        INSERT INTO deliveries (id, event_id, subscription_id, tenant, event_type, status, attempts, cycle, fence,
                                ordinal)
        SELECT id, id, $2, 't', 'y', 'held', 0, 0, 0, number FROM unnest($1::uuid[]) WITH ORDINALITY AS new (id, number)
        """,
        keys[:BACKLOG],
        SUBSCRIPTION,
    )
    await conn.execute(
        """
        INSERT INTO deliveries (id, event_id, subscription_id, tenant, event_type, status, attempts, cycle, fence,
                                claimed_by, claimed_at)
        SELECT id, id, id, 't', 'y', 'pending', 0, 0, 1, $2, now() FROM unnest($1::uuid[]) AS id
        """,
        keys[BACKLOG:],
        DISPATCHER,
    )
    await conn.execute("ANALYZE")


@pytest.mark.parametrize("blocked", [True, False])
async def test_the_claim_in_strict_order_reads_no_backlog(store: Store, blocked: bool) -> None:
    """Not the history, nor what is held behind, nor what is claimed of others: a row for each day, and few more."""
    async with store.connection() as conn:
        await fill(conn)
        if not blocked:
            await conn.execute("UPDATE deliveries SET status = 'delivered', hint_due_at = NULL")
        await back_up(conn)
        for _ in range(8):
            transaction = conn.transaction()
            await transaction.start()
            before = await conn.fetchval(READ)
            claimed = await conn.fetch(statements.CLAIM_IN_ORDER, DISPATCHER, 3600.0, [SUBSCRIPTION])
            read = await conn.fetchval(READ) - before
            await transaction.rollback()
            assert len(claimed) == (not blocked)
            assert read <= 4 * BATCH < BACKLOG / 10
