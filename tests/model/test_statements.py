"""The model decides as the database does: every twin and its statement, over the same rows.

The rows are all combinations of what any condition looks at: status, claim (whose, how old), cycle, attempts, a hint
that is overdue; under subscriptions in every state, mode and lease, with a backlog and without. Each statement runs
over all of them at once, in a transaction that is rolled back. Limits are in hours: the test's own time is nothing.
"""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from types import SimpleNamespace
from typing import Final, cast
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio
from uuid_utils.compat import uuid7

from dispatcher.core.conclude import Dead, Delivered, Expired, Held, RetryIn, Verdict
from dispatcher.core.request import Content
from dispatcher.core.settle import Claimed
from dispatcher.core.streak import Thresholds
from dispatcher.hints import Hints
from dispatcher.lanes import Claim, Lanes
from dispatcher.settlement import Outcome, Settlement
from dispatcher.streaks import Streaks
from infra.broker.base import Broker
from infra.settings import read_settings
from infra.store import deliveries, statements, upkeep
from infra.store.store import Store, open_store
from infra.telemetry import open_telemetry
from schemas.deliveries import Status
from schemas.ids import event_key
from tests.model import statements as twins
from tests.model.rules import RULES
from tests.model.state import GONE, Delivery, Dispatcher, Row, State, Subscription, Task
from tests.model.steps import commit
from tests.support.postgres import Postgres
from tests.support.seed import Seed
from tests.support.silent_broker import SilentBroker

STEADY, UNSTEADY, STALE = 0, 1, 2  # dispatchers; GONE has no row
LIVENESS_S: Final = 3600.0
CLAIM_CAP_S: Final = 24 * 3600.0
GRACE_S: Final = 3600.0
ALL: Final = 1_000_000

pytestmark = pytest.mark.asyncio(loop_scope="module")
ME: Final = pytest.mark.parametrize("me", [STEADY, UNSTEADY, STALE])


def is_fresh(incarnation: int) -> bool:
    return incarnation in (STEADY, UNSTEADY)


@dataclass(frozen=True)
class Seen:
    """The tables, in the model's words."""

    rows: dict[UUID, Row]
    subscriptions: dict[UUID, Subscription]
    letters: dict[tuple[UUID, int], int]


@dataclass(frozen=True)
class House:
    """The seeded store: what is in it, and how to see what a change makes of it."""

    connection: asyncpg.Connection
    incarnations: dict[int, UUID]
    owner: dict[UUID, UUID]  # the subscription of each delivery
    overdue: set[UUID]
    before: Seen

    def under(self, subscription: UUID) -> list[Row]:
        return [row for key, row in self.before.rows.items() if self.owner[key] == subscription]

    def of(self, delivery: UUID) -> Subscription:
        return self.before.subscriptions[self.owner[delivery]]

    def letters_of(self, delivery: UUID) -> tuple[int, ...]:
        cycle = self.before.rows[delivery].cycle
        return tuple(self.before.letters.get((delivery, number), 0) for number in range(cycle + 1))

    async def after(self, change: Callable[[], Awaitable[object]]) -> Seen:
        transaction = self.connection.transaction()
        await transaction.start()
        try:
            await change()
            return await see(self.connection, self.incarnations)
        finally:
            await transaction.rollback()


async def see(connection: asyncpg.Connection, incarnations: dict[int, UUID]) -> Seen:
    name = {key: number for number, key in incarnations.items()} | {None: None}
    rows = await connection.fetch(
        "SELECT *, coalesce(claimed_at < clock_timestamp() - make_interval(secs => $1), false) AS old FROM deliveries",
        CLAIM_CAP_S,
    )
    subscriptions = await connection.fetch("SELECT * FROM subscriptions")
    letters = await connection.fetch("SELECT delivery_id, cycle, count(*) FROM dead_letters GROUP BY 1, 2")
    return Seen(
        {
            row["id"]: Row(
                Status(row["status"]), row["cycle"], row["attempts"], row["fence"], name[row["claimed_by"]], row["old"]
            )
            for row in rows
        },
        {
            row["id"]: Subscription("deleted" if row["deleted_at"] else row["state"], row["mode"], name[row["feeder"]])
            for row in subscriptions
        },
        {(row["delivery_id"], row["cycle"]): row["count"] for row in letters},
    )


def possible_subscriptions() -> Iterator[tuple[Subscription, bool]]:
    """And whether it has a backlog."""
    for state in ("enabled", "paused", "disabled", "deleted"):
        for feeder in (None, STEADY, UNSTEADY, STALE, GONE):
            yield Subscription(state, "held", feeder), True
            yield Subscription(state, "held", feeder), False
        yield Subscription(state, "open", None), True
        yield Subscription(state, "open", None), False


def possible_rows(*, backlog: bool) -> Iterator[tuple[Row, bool]]:
    """And whether its hint is overdue. A pending row always has a claim."""
    claims = [(None, False), *product((STEADY, UNSTEADY, STALE, GONE), (False, True))]
    for status, (owner, old), (cycle, attempts) in product(Status, claims, ((0, 0), (0, 1), (1, 0))):
        if (backlog or status is not Status.HELD) and (status is not Status.PENDING or owner is not None):
            for overdue in (False, True) if status is Status.RETRYING else (False,):
                yield Row(status, cycle, attempts, 3, owner, old), overdue


# `id` stands for the event too: nothing here reads it.
INSERT: Final = """
INSERT INTO deliveries (id, event_id, subscription_id, tenant, event_type, status, reason, cycle, attempts, fence,
                        claimed_by, claimed_at, hint_due_at)
SELECT id, id, subscription_id, 'default', 'order.created', status, 'a reason', cycle, attempts, fence,
       claimed_by, clock_timestamp() - make_interval(secs => age_s), clock_timestamp() - make_interval(secs => hint_s)
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::int[], $5::int[], $6::int[], $7::uuid[], $8::float8[], $9::float8[])
     AS new (id, subscription_id, status, cycle, attempts, fence, claimed_by, age_s, hint_s)
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(postgres: Postgres) -> AsyncIterator[House]:
    name = await postgres.create_database()
    async with open_store(read_settings(database_url=postgres.dsn(name))) as store:
        incarnations, owner, overdue = await furnish(store)
        async with store.connection() as connection:
            yield House(connection, incarnations, owner, overdue, await see(connection, incarnations))
    await postgres.drop_database(name)


async def furnish(store: Store) -> tuple[dict[int, UUID], dict[UUID, UUID], set[UUID]]:
    """Dispatchers, subscriptions, deliveries. Of the dead ones, those with an attempt have their dead letter."""
    seed = Seed(store)
    incarnations = {
        STEADY: await seed.dispatcher(steady_for_s=2 * LIVENESS_S),
        UNSTEADY: await seed.dispatcher(steady_for_s=0),
        STALE: await seed.dispatcher(renewed_ago_s=2 * LIVENESS_S),
        GONE: uuid7(),
    }
    columns: list[tuple[object, ...]] = []
    owner: dict[UUID, UUID] = {}
    overdue, buried = set(), []
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    for subscription, backlog in possible_subscriptions():
        deleted = subscription.state == "deleted"
        key = await seed.subscription(
            state="enabled" if deleted else subscription.state,
            mode=subscription.mode,
            feeder=None if subscription.feeder is None else incarnations[subscription.feeder],
            deleted_at=datetime.now(UTC) if deleted else None,
        )
        for row, late in possible_rows(backlog=backlog):
            delivery = event_key(now_ms, "default", "tests", str(len(owner)))
            owner[delivery] = key
            if late:
                overdue.add(delivery)
            if row.status is Status.DEAD and row.attempts:
                buried.append(delivery)
            claimed_by = None if row.claimed_by is None else incarnations[row.claimed_by]
            age_s = None if row.claimed_by is None else 2 * CLAIM_CAP_S if row.old else 1.0
            hint_s = None if row.status is not Status.RETRYING else 2 * GRACE_S if late else -GRACE_S
            columns.append((delivery, key, *row[:4], claimed_by, age_s, hint_s))
    buried.sort()
    async with store.transaction() as connection:
        await connection.execute(INSERT, *map(list, zip(*columns, strict=True)))
        await connection.execute(statements.INSERT_DEAD_LETTERS, [uuid7() for _ in buried], buried, buried[0])
    return incarnations, owner, overdue


def changed(house: House, twin: Callable[[UUID, Row], Row | None]) -> dict[UUID, Row]:
    """What the twin makes of every row."""
    after = {key: twin(key, row) or row for key, row in house.before.rows.items()}
    assert after != house.before.rows, "the twin changes nothing: the test compares nothing"
    return after


async def test_the_rows_are_those_that_were_meant(house: House) -> None:
    meant = [row for _, backlog in possible_subscriptions() for row, _ in possible_rows(backlog=backlog)]
    assert sorted(house.before.rows.values(), key=str) == sorted(meant, key=str)
    assert len(meant) == 8280
    subscriptions = [subscription for subscription, _ in possible_subscriptions()]
    assert sorted(house.before.subscriptions.values(), key=str) == sorted(subscriptions, key=str)


# --- Claims and leases ---------------------------------------------------------------------------------------------


@ME
@pytest.mark.parametrize(("cycle", "attempt"), [(0, 1), (0, 2), (1, 1)])
async def test_claim_due(house: House, me: int, cycle: int, attempt: int) -> None:
    keys = sorted(house.owner)
    cycles, attempts = [cycle] * len(keys), [attempt] * len(keys)
    seen = await house.after(
        lambda: house.connection.fetch(
            statements.CLAIM_DUE, house.incarnations[me], LIVENESS_S, keys, cycles, attempts, keys[0]
        )
    )
    assert seen.rows == {
        key: twins.claim_due(row, cycle=cycle, attempt=attempt, me=me, fresh=is_fresh(me)) or row
        for key, row in house.before.rows.items()
    }
    assert (seen.rows != house.before.rows) == is_fresh(me)


@ME
async def test_claim_held(house: House, me: int) -> None:
    subscriptions = list(house.before.subscriptions)
    seen = await house.after(
        lambda: house.connection.fetch(
            statements.CLAIM_HELD, house.incarnations[me], LIVENESS_S, subscriptions, [ALL] * len(subscriptions)
        )
    )
    assert seen.rows == {
        key: twins.claim_held(row, house.of(key), me=me, fresh=is_fresh(me)) or row
        for key, row in house.before.rows.items()
    }
    assert (seen.rows != house.before.rows) == is_fresh(me)


@ME
async def test_lease_endpoints(house: House, me: int) -> None:
    seen = await house.after(
        lambda: house.connection.fetch(statements.LEASE_ENDPOINTS, house.incarnations[me], LIVENESS_S, ALL)
    )
    assert seen.subscriptions == {
        key: twins.lease_endpoints(one, me=me, fresh=is_fresh(me)) or one
        for key, one in house.before.subscriptions.items()
    }
    assert (seen.subscriptions != house.before.subscriptions) == is_fresh(me)


@ME
async def test_close_backlogs(house: House, me: int) -> None:
    keys = sorted(house.before.subscriptions)

    async def close() -> None:
        await house.connection.execute(statements.LOCK_LEASES, house.incarnations[me], keys)
        await house.connection.execute(statements.CLOSE_BACKLOGS, house.incarnations[me], keys, [0.0] * len(keys))

    seen = await house.after(close)
    assert seen.subscriptions == {
        key: twins.close_backlogs(one, house.under(key), me=me) or one
        for key, one in house.before.subscriptions.items()
    }
    assert seen.subscriptions != house.before.subscriptions


@ME
async def test_claims_of(house: House, me: int) -> None:
    found = await house.connection.fetch(statements.CLAIMS_OF, house.incarnations[me], 0.0)
    assert (
        {row["id"] for row in found}
        == {key for key, row in house.before.rows.items() if twins.claims_of(row, me=me)}
        != set()
    )


# --- Reconciler ----------------------------------------------------------------------------------------------------


JUDGES = pytest.mark.parametrize("me", [STEADY, UNSTEADY, STALE, GONE])


def may_judge(me: int) -> bool:
    return twins.may_judge(fresh=is_fresh(me), steady=me != UNSTEADY)


@JUDGES
async def test_free_dead_claims(house: House, me: int) -> None:
    judge = house.incarnations[me]
    seen = await house.after(
        lambda: house.connection.fetch(upkeep.FREE_DEAD_CLAIMS, judge, LIVENESS_S, CLAIM_CAP_S, ALL)
    )
    if may_judge(me):
        assert seen.rows == changed(
            house,
            lambda _, row: twins.free_dead_claims(
                row, owner_alive=row.claimed_by is not None and is_fresh(row.claimed_by)
            ),
        )
    else:
        assert seen.rows == house.before.rows


@JUDGES
async def test_free_dead_leases(house: House, me: int) -> None:
    seen = await house.after(
        lambda: house.connection.fetch(upkeep.FREE_DEAD_LEASES, house.incarnations[me], LIVENESS_S)
    )
    assert seen.subscriptions == {
        key: (
            twins.free_dead_leases(one, feeder_alive=one.feeder is not None and is_fresh(one.feeder))
            if may_judge(me)
            else None
        )
        or one
        for key, one in house.before.subscriptions.items()
    }
    assert (seen.subscriptions != house.before.subscriptions) == may_judge(me)


async def test_hold_overdue(house: House) -> None:
    seen = await house.after(lambda: house.connection.fetch(upkeep.HOLD_OVERDUE, GRACE_S, ALL))
    assert seen.rows == changed(house, lambda key, row: twins.hold_overdue(row, overdue=key in house.overdue))


async def test_end_orphaned(house: House) -> None:
    async def end() -> None:
        for statement in upkeep.END_ORPHANED:
            await house.connection.execute(statement, ALL)

    seen = await house.after(end)
    assert seen.rows == changed(house, lambda key, row: twins.end_orphaned(row, house.of(key)))


async def test_open_with_backlog(house: House) -> None:
    found = await house.connection.fetch(upkeep.OPEN_WITH_BACKLOG)
    assert (
        {row["id"] for row in found}
        == {key for key, one in house.before.subscriptions.items() if twins.open_with_backlog(one, house.under(key))}
        != set()
    )


async def test_insert_dead_letters(house: House) -> None:
    keys = sorted(house.owner)
    seen = await house.after(
        lambda: house.connection.execute(statements.INSERT_DEAD_LETTERS, [uuid7() for _ in keys], keys, keys[0])
    )
    assert seen.letters == letters_after(house, house.before.rows)
    assert seen.letters != house.before.letters


def letters_after(house: House, rows: dict[UUID, Row]) -> dict[tuple[UUID, int], int]:
    """With the letters of those that are dead, by the twin."""
    return {
        (key, cycle): number
        for key, row in rows.items()
        for cycle, number in enumerate(twins.insert_dead_letters(row, house.letters_of(key)))
        if number
    }


# --- Operators -----------------------------------------------------------------------------------------------------


async def test_replay(house: House) -> None:
    seen = await house.after(lambda: deliveries.replay(house.connection, list(house.owner)))
    assert seen.rows == changed(house, lambda key, row: twins.replay(row, house.of(key)))
    assert_held(house, seen)


@pytest.mark.parametrize("seed", range(3))
async def test_retry_now_and_cancel(house: House, seed: int) -> None:
    """Each is for one delivery: some of them, by chance."""
    some = set(random.Random(seed).sample(sorted(house.owner), 200))

    async def retry() -> None:
        for key in sorted(some):
            await deliveries.retry_now(house.connection, key)

    async def cancel() -> None:
        for key in sorted(some):
            await deliveries.cancel(house.connection, key)

    seen = await house.after(retry)
    assert seen.rows == changed(house, lambda key, row: twins.retry_now(row, house.of(key)) if key in some else None)
    retried = {house.owner[key] for key in some if twins.retry_now(house.before.rows[key], house.of(key))}
    assert seen.subscriptions == {
        key: twins.hold_endpoints(one) if key in retried else one for key, one in house.before.subscriptions.items()
    }
    seen = await house.after(cancel)
    assert seen.rows == changed(house, lambda key, row: twins.cancel(row) if key in some else None)


@pytest.mark.parametrize("status", [Status.DEAD, Status.CANCELED])
async def test_end_unfinished(house: House, status: Status) -> None:
    async def end() -> None:
        for subscription in house.before.subscriptions:
            await deliveries.end_unfinished(house.connection, subscription, status=status, reason="", limit=ALL)

    seen = await house.after(end)
    expected = changed(house, lambda _, row: twins.end_unfinished(row, status))
    assert seen.rows == expected
    ended = {key: row for key, row in expected.items() if row != house.before.rows[key]}
    assert seen.letters == house.before.letters | letters_after(house, ended)


def assert_held(house: House, seen: Seen) -> None:
    """The endpoints of those rows that changed are held, and no others are."""
    touched = {house.owner[key] for key, row in seen.rows.items() if row != house.before.rows[key]}
    assert seen.subscriptions == {
        key: twins.hold_endpoints(one) if key in touched else one for key, one in house.before.subscriptions.items()
    }


# --- Admission and settlement --------------------------------------------------------------------------------------


@pytest.mark.parametrize("hold", [True, False])
async def test_insert_deliveries(house: House, hold: bool) -> None:
    key, subscription = uuid7(), next(iter(house.before.subscriptions))
    reason = "the gate" if hold else None
    seen = await house.after(
        lambda: house.connection.execute(
            statements.INSERT_DELIVERIES,
            house.incarnations[STEADY],
            [key],
            [key],
            [subscription],
            ["default"],
            ["order.created"],
            [reason],
            [None],
        )
    )
    assert seen.rows == house.before.rows | {key: twins.insert_deliveries(hold=hold, me=STEADY)}


VERDICTS: Final[tuple[Verdict, ...]] = (Delivered(), RetryIn(60, "no"), Dead("no"), Held("no"), Expired("no"))


@pytest.mark.parametrize("seed", range(3))
async def test_settlement(house: House, seed: int) -> None:
    """What the real settlement commits, and what the model's does: 600 outcomes, of any claim, on any row."""
    chance = random.Random(seed)
    batch, expected, held = [], dict(house.before.rows), set()
    letters = dict(house.before.letters)
    for key in chance.sample(sorted(house.owner), 600):
        row = house.before.rows[key]
        cycle, attempt = chance.choice((row.cycle, row.cycle, 0, 1)), row.attempts + chance.choice((1, 1, 0, 2))
        task = Task(0, cycle, attempt, row.fence - chance.choice((0, 0, 1)), "outcome", chance.choice(VERDICTS))
        state = State((Delivery(False, row, house.letters_of(key)),), (Dispatcher(),) * 3, Subscription())
        after, _ = commit(state, task, RULES)
        one = after.deliveries[0]
        assert one.row is not None
        assert task.verdict is not None
        expected[key] = one.row
        letters |= {(key, cycle): number for cycle, number in enumerate(one.letters) if number}
        if after.subscription.mode == "held":
            held.add(house.owner[key])
        claimed = Claimed(task.cycle, task.attempt, task.fence)
        content = Content("order.created", datetime.now(UTC), b"{}", "shop", "1")
        claim = Claim(key, key, house.owner[key], claimed, 0.0, content)
        batch.append(Outcome(claim, task.verdict, None))
    seen = await house.after(lambda: commit_for_real(house, batch))
    assert seen.rows == expected
    assert seen.letters == letters
    assert seen.subscriptions == {
        key: twins.hold_endpoints(one) if key in held else one for key, one in house.before.subscriptions.items()
    }


async def commit_for_real(house: House, batch: Sequence[Outcome]) -> None:
    """By the real settlement, in the transaction that is rolled back."""

    @asynccontextmanager
    async def transaction() -> AsyncIterator[asyncpg.Connection]:
        yield house.connection

    settings, store = read_settings(), cast(Store, SimpleNamespace(transaction=transaction))
    lanes = Lanes(max_in_hand=1000, max_in_hand_bytes=10_000, endpoint_max_in_flight=8, first_in_flight=8)
    with open_telemetry(settings, "test") as telemetry:
        hints = Hints(cast(Broker, SilentBroker()), store, telemetry, timeout_s=2, batch_rows=100)
        incarnation = house.incarnations[STEADY]
        streaks = Streaks(store, Thresholds(10, 300, 20, 3600), period_s=1)
        settlement = Settlement(store, lanes, hints, streaks, telemetry, incarnation=incarnation, batch_rows=1000)
        await settlement._commit(batch)
