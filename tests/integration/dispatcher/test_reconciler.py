"""The reconciler: each of its clauses, and who may judge."""

import asyncio
from uuid import UUID

import asyncpg
import pytest

from dispatcher.claims import Claims
from dispatcher.heartbeat import Heartbeat
from dispatcher.hints import Hints
from dispatcher.lanes import Lanes
from dispatcher.reconciler import Reconciler
from dispatcher.settlement import Settlement
from infra.settings import Settings, read_settings
from infra.store import statements as sql
from infra.store import upkeep
from infra.store.store import Store
from infra.telemetry import Telemetry
from schemas.work import WorkItem
from tests.support.points import Moment, Point, Step, trap
from tests.support.seed import Seed
from tests.support.silent_broker import SilentBroker
from tests.support.waiting import eventually

PAST_LIVENESS_S = 7.0


@pytest.fixture
def reconciler(
    store: Store,
    claims: Claims,
    lanes: Lanes,
    settlement: Settlement,
    hints: Hints,
    heartbeat: Heartbeat,
    telemetry: Telemetry,
    settings: Settings,
) -> Reconciler:
    return Reconciler(store, claims, lanes, settlement, hints, heartbeat, telemetry, settings)


@pytest.fixture
async def steady(store: Store, heartbeat: Heartbeat) -> None:
    """This dispatcher has renewed without a gap for long enough to judge."""
    async with store.connection() as connection:
        await connection.execute(
            "UPDATE dispatchers SET steady_since = clock_timestamp() - interval '1 hour' WHERE id = $1",
            heartbeat.incarnation,
        )


async def age(store: Store, delivery: UUID, column: str, seconds: float) -> None:
    async with store.connection() as connection:
        await connection.execute(
            f"UPDATE deliveries SET {column} = clock_timestamp() - make_interval(secs => $2) WHERE id = $1",
            delivery,
            seconds,
        )


@pytest.mark.parametrize("status", ["pending", "retrying", "held"])
@pytest.mark.usefixtures("steady")
async def test_a_row_claimed_by_the_dead_is_held_with_its_fence_unchanged(
    reconciler: Reconciler, seed: Seed, store: Store, status: str
) -> None:
    subscription = await seed.subscription()
    dead = await seed.dispatcher(renewed_ago_s=PAST_LIVENESS_S)
    delivery = await seed.delivery(subscription, status=status, claimed_by=dead, fence=4, attempts=1)
    await age(store, delivery, "claimed_at", 1)
    await reconciler.reconcile()
    row = await seed.row("deliveries", delivery)
    assert (row["status"], row["claimed_by"], row["fence"], row["attempts"]) == ("held", None, 4, 1)
    assert row["reason"] == "its dispatcher died"
    assert (await seed.row("subscriptions", subscription))["mode"] == "held"


@pytest.mark.usefixtures("steady")
async def test_a_row_claimed_by_the_living_is_left_alone_until_the_claims_cap(
    reconciler: Reconciler, seed: Seed, store: Store
) -> None:
    living = await seed.dispatcher()
    delivery = await seed.delivery(await seed.subscription(), status="pending", claimed_by=living, fence=1)
    await age(store, delivery, "claimed_at", 79)
    await reconciler.reconcile()
    assert (await seed.row("deliveries", delivery))["claimed_by"] == living
    await age(store, delivery, "claimed_at", 81)
    await reconciler.reconcile()
    assert (await seed.row("deliveries", delivery))["status"] == "held"


@pytest.mark.usefixtures("steady")
async def test_an_ended_row_keeps_its_end_and_loses_a_dead_claim(
    reconciler: Reconciler, seed: Seed, store: Store
) -> None:
    dead = await seed.dispatcher(renewed_ago_s=PAST_LIVENESS_S)
    delivery = await seed.delivery(await seed.subscription(), status="canceled", claimed_by=dead)
    await age(store, delivery, "claimed_at", 1)
    await reconciler.reconcile()
    row = await seed.row("deliveries", delivery)
    assert (row["status"], row["claimed_by"]) == ("canceled", None)


async def test_who_has_not_renewed_without_a_gap_judges_nobody(
    reconciler: Reconciler, seed: Seed, store: Store
) -> None:
    """After an outage of the database every heartbeat is old; the first one back is not the only one alive."""
    dead = await seed.dispatcher(renewed_ago_s=PAST_LIVENESS_S)
    subscription = await seed.subscription(mode="held", feeder=dead)
    delivery = await seed.delivery(subscription, status="pending", claimed_by=dead)
    await age(store, delivery, "claimed_at", 1)
    await reconciler.reconcile()
    assert (await seed.row("deliveries", delivery))["claimed_by"] == dead
    assert (await seed.row("subscriptions", subscription))["feeder"] == dead


@pytest.mark.parametrize("step", [Step.COMMIT, Step.STATEMENT])
@pytest.mark.usefixtures("steady")
async def test_who_loses_the_right_to_judge_before_it_acts_frees_nothing(
    reconciler: Reconciler, seed: Seed, store: Store, heartbeat: Heartbeat, step: Step
) -> None:
    """Stopped after it had freed the leases, or right before it frees the claims; its own heartbeat is old then."""
    dead = await seed.dispatcher(renewed_ago_s=PAST_LIVENESS_S)
    subscription = await seed.subscription(mode="held", feeder=dead)
    delivery = await seed.delivery(subscription, status="pending", claimed_by=dead)
    await age(store, delivery, "claimed_at", 1)

    async def stand_still() -> None:
        async with store.connection() as connection:
            await connection.execute(
                "UPDATE dispatchers SET renewed_at = clock_timestamp() - interval '6 s' WHERE id = $1",
                heartbeat.incarnation,
            )

    point = {
        Step.COMMIT: Point(Moment.AFTER, Step.COMMIT, "FREE_DEAD_LEASES"),
        Step.STATEMENT: Point(Moment.BEFORE, Step.STATEMENT, "FREE_DEAD_CLAIMS"),
    }[step]
    with trap(point, stand_still) as trapped:
        await reconciler.reconcile()
    assert trapped.sprung.is_set()
    assert (await seed.row("deliveries", delivery))["claimed_by"] == dead


@pytest.mark.usefixtures("steady")
async def test_a_claim_that_is_made_while_a_judge_looks_is_not_freed(
    seed: Seed, store: Store, heartbeat: Heartbeat
) -> None:
    """Another judge was first, and who had been taken for dead is back: the slow one still sees it as dead."""
    back = await seed.dispatcher(renewed_ago_s=PAST_LIVENESS_S)
    subscription = await seed.subscription(mode="held", feeder=back)
    delivery = await seed.delivery(subscription, status="pending", claimed_by=back)
    await age(store, delivery, "claimed_at", 1)
    looks = "WHERE EXISTS (SELECT FROM (SELECT pg_advisory_xact_lock(1)) AS looks) AND EXISTS"
    slow = upkeep.FREE_DEAD_CLAIMS.replace("WHERE EXISTS", looks, 1)
    judge = (heartbeat.incarnation, 5.0, 150.0, 10)

    async def judge_slowly() -> list[asyncpg.Record]:
        async with store.transaction() as connection:
            return await connection.fetch(slow, *judge)

    async def is_looking() -> bool:
        async with store.connection() as connection:
            return bool(await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    async with store.transaction() as keeping:
        await keeping.execute("SELECT pg_advisory_xact_lock(1)")
        judging = asyncio.create_task(judge_slowly())
        await eventually(is_looking)
        async with store.transaction() as connection:
            assert len(await connection.fetch(upkeep.FREE_DEAD_CLAIMS, *judge)) == 1
            await connection.execute("UPDATE dispatchers SET renewed_at = clock_timestamp() WHERE id = $1", back)
            assert len(await connection.fetch(sql.CLAIM_HELD, back, 4.0, [subscription], [10])) == 1
    assert await judging == []
    assert (await seed.row("deliveries", delivery))["claimed_by"] == back


async def test_a_session_whose_client_stopped_before_it_executed_what_it_had_prepared_is_ended(
    reconciler: Reconciler, seed: Seed, store: Store
) -> None:
    """Nothing of the server's own ends it, and it would keep its locks for as long as the process stands still."""
    subscription = await seed.subscription()
    stopped = await store.connect()
    try:
        await stopped.execute("BEGIN")
        await stopped.execute("SELECT FROM subscriptions WHERE id = $1 FOR UPDATE", subscription)
        await stopped.prepare("SELECT now()")
        pid = stopped.get_server_pid()

        async def is_there() -> bool:
            async with store.connection() as connection:
                return bool(await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid))

        async def is_ended() -> bool:
            await reconciler.reconcile()
            return not await is_there()

        await reconciler.reconcile()
        assert await is_there()  # a moment is nothing
        await eventually(is_ended, deadline_s=20)  # its patience is three times two seconds
        async with store.transaction() as connection:
            await connection.execute("SELECT FROM subscriptions WHERE id = $1 FOR UPDATE NOWAIT", subscription)
    finally:
        stopped.terminate()


async def test_a_session_whose_client_stopped_amid_an_answer_is_ended(
    reconciler: Reconciler, seed: Seed, store: Store
) -> None:
    """As one that stopped amid the events of its claims, which are megabytes: no timeout reaches who sends, either."""
    subscription = await seed.subscription()
    stopped = await store.connect()
    asking: asyncio.Task[object] | None = None
    try:
        await stopped.execute("BEGIN")
        await stopped.execute("SELECT FROM subscriptions WHERE id = $1 FOR UPDATE", subscription)
        pid = stopped.get_server_pid()
        answer = await stopped.prepare("SELECT repeat('x', 1000000) FROM generate_series(1, 100)")
        stopped._transport.pause_reading()  # type: ignore[attr-defined]
        asking = asyncio.create_task(answer.fetch(timeout=600))  # who stands still gives nothing up

        async def state() -> object:
            async with store.connection() as connection:
                return await connection.fetchval("SELECT wait_event FROM pg_stat_activity WHERE pid = $1", pid)

        async def sends() -> bool:
            return await state() == "ClientWrite"

        async def is_ended() -> bool:
            await reconciler.reconcile()
            return await state() is None

        await eventually(sends, deadline_s=20)
        await eventually(is_ended, deadline_s=20)  # its patience is three times two seconds
        async with store.transaction() as connection:
            await connection.execute("SELECT FROM subscriptions WHERE id = $1 FOR UPDATE NOWAIT", subscription)
    finally:
        stopped.terminate()
        if asking is not None:
            await asyncio.wait({asking})


async def test_more_orphans_than_one_batch_end_in_one_scan(
    store: Store,
    claims: Claims,
    lanes: Lanes,
    settlement: Settlement,
    hints: Hints,
    heartbeat: Heartbeat,
    telemetry: Telemetry,
    seed: Seed,
) -> None:
    settings = read_settings(batch_rows=3)
    reconciler = Reconciler(store, claims, lanes, settlement, hints, heartbeat, telemetry, settings)
    subscription = await seed.subscription(state="disabled")
    for _ in range(10):
        await seed.delivery(subscription)
    await reconciler.scan()
    async with store.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM deliveries WHERE status = 'dead'") == 10


async def test_a_gap_in_the_heartbeat_starts_the_count_anew(heartbeat: Heartbeat, seed: Seed, store: Store) -> None:
    async with store.connection() as connection:
        await connection.execute(
            "UPDATE dispatchers SET steady_since = clock_timestamp() - interval '1 hour', "
            "renewed_at = clock_timestamp() - interval '3.5 s' WHERE id = $1",
            heartbeat.incarnation,
        )
    await heartbeat._renew()
    row = await seed.row("dispatchers", heartbeat.incarnation)
    assert (row["renewed_at"] - row["steady_since"]).total_seconds() < 1


@pytest.mark.usefixtures("steady")
async def test_the_leases_of_the_dead_are_freed(reconciler: Reconciler, seed: Seed) -> None:
    dead, living = await seed.dispatcher(renewed_ago_s=PAST_LIVENESS_S), await seed.dispatcher()
    freed = await seed.subscription(mode="held", feeder=dead)
    kept = await seed.subscription(mode="held", feeder=living)
    await reconciler.reconcile()
    assert (await seed.row("subscriptions", freed))["feeder"] is None
    assert (await seed.row("subscriptions", kept))["feeder"] == living


async def test_a_retry_whose_hint_is_lost_is_held_after_the_grace(
    reconciler: Reconciler, seed: Seed, store: Store
) -> None:
    subscription = await seed.subscription()
    early = await seed.delivery(subscription, status="retrying", attempts=1)
    late = await seed.delivery(subscription, status="retrying", attempts=1)
    await age(store, early, "hint_due_at", 29)
    await age(store, late, "hint_due_at", 31)
    await reconciler.reconcile()
    assert (await seed.row("deliveries", early))["status"] == "retrying"
    row = await seed.row("deliveries", late)
    assert (row["status"], row["attempts"], row["cycle"]) == ("held", 1, 0)
    assert (await seed.row("subscriptions", subscription))["mode"] == "held"


async def test_a_late_retry_that_somebody_has_claimed_is_left_to_him(
    reconciler: Reconciler, seed: Seed, store: Store, claims: Claims, lanes: Lanes
) -> None:
    delivery = await seed.delivery(await seed.subscription(), status="retrying", attempts=1)
    await age(store, delivery, "hint_due_at", 31)
    (claim,) = await claims.due([WorkItem(delivery, 0, 2, 0)])
    lanes.in_hand[claim.delivery] = claim
    await reconciler.reconcile()
    assert (await seed.row("deliveries", delivery))["status"] == "retrying"


@pytest.mark.parametrize(
    ("columns", "status", "reason"),
    [
        ({"state": "disabled", "state_reason": "410 Gone"}, "dead", "410 Gone"),
        ({"state": "disabled"}, "dead", "the subscription is disabled"),
    ],
)
@pytest.mark.parametrize("waiting", ["held", "retrying"])
async def test_waiting_rows_of_a_disabled_subscription_end_with_the_reason(
    reconciler: Reconciler, seed: Seed, store: Store, waiting: str, columns: dict[str, object], status: str, reason: str
) -> None:
    delivery = await seed.delivery(await seed.subscription(**columns), status=waiting)
    await reconciler.scan()
    row = await seed.row("deliveries", delivery)
    assert (row["status"], row["reason"]) == (status, reason)
    async with store.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM dead_letters WHERE delivery_id = $1", delivery) == 1


async def test_held_rows_of_a_deleted_subscription_are_canceled(
    reconciler: Reconciler, seed: Seed, store: Store
) -> None:
    subscription = await seed.subscription()
    delivery = await seed.delivery(subscription)
    async with store.connection() as connection:
        await connection.execute("UPDATE subscriptions SET deleted_at = clock_timestamp() WHERE id = $1", subscription)
    await reconciler.scan()
    assert (await seed.row("deliveries", delivery))["status"] == "canceled"


async def test_held_rows_behind_an_open_endpoint_hold_it(reconciler: Reconciler, seed: Seed) -> None:
    subscription = await seed.subscription()
    await seed.delivery(subscription)
    await reconciler.scan()
    assert (await seed.row("subscriptions", subscription))["mode"] == "held"


async def test_an_unpublished_dead_letter_is_published(
    reconciler: Reconciler, seed: Seed, store: Store, broker: SilentBroker
) -> None:
    delivery = await seed.delivery(await seed.subscription(state="disabled"))
    await reconciler.scan()
    assert not broker.sent
    await reconciler.reconcile()
    assert len(broker.sent) == 1
    await reconciler.reconcile()
    assert len(broker.sent) == 1
    async with store.connection() as connection:
        published = await connection.fetchval("SELECT published_at FROM dead_letters WHERE delivery_id = $1", delivery)
    assert published is not None


async def test_a_claim_of_ours_that_is_not_in_hand_is_held(
    reconciler: Reconciler, seed: Seed, store: Store, claims: Claims
) -> None:
    delivery = await seed.delivery(await seed.subscription(), status="retrying", attempts=1)
    await claims.due([WorkItem(delivery, 0, 2, 0)])
    await age(store, delivery, "claimed_at", 5)
    await reconciler.reconcile()

    async def held() -> bool:
        row = await seed.row("deliveries", delivery)
        return row["status"] == "held" and row["claimed_by"] is None

    await eventually(held)
