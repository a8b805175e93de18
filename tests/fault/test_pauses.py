"""Dispatchers stopped past their liveness (SIGSTOP), at every point that hurts; they go on when others have taken over.

At most their own late POSTs, no lost update, no revived delivery (`tests/support/pauses.py`).
"""

import asyncio
import itertools
from collections import Counter
from uuid import UUID

from infra.broker.base import Outgoing, ToWorkAfter
from infra.store.replays import MAX_RUNNING
from schemas.work import WorkItem, encode_work
from tests.support.books import in_queues
from tests.support.chain import ONCE, around
from tests.support.pauses import Pauses, nothing, stop
from tests.support.points import Moment, Point, Step
from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, System
from tests.support.waiting import eventually
from tests.support.witness import call_witness

POSTING = (Point(Moment.SENT, Step.POST, "hook"), Point(Moment.AFTER, Step.POST, "hook"))
EXPRESS_LANE = (
    Point(Moment.AFTER, Step.PREPARE, "INSERT_DELIVERIES"),  # with an event's key locked, and no Sync sent
    *around(Step.COMMIT, "INSERT_DELIVERIES"),
    *around(Step.ACK, "hookhare.events"),
    *POSTING,
    *around(Step.COMMIT, "INSERT_ATTEMPTS"),
    *around(Step.COMMIT, "RENEW_HEARTBEAT", nth=4),
)
DUE = (
    Point(Moment.BEFORE, Step.STATEMENT, "CLAIM_DUE"),
    *around(Step.COMMIT, "CLAIM_DUE"),
    *around(Step.ACK, "hookhare.work"),
)
RETRIES = (*around(Step.COMMIT, "UPDATE_DELIVERIES"), *around(Step.PUBLISH, "ToWorkAfter"), *DUE)
DEATHS = (
    *around(Step.COMMIT, "INSERT_DEAD_LETTERS"),
    *around(Step.PUBLISH, "ToDead"),
    *around(Step.COMMIT, "MARK_DEAD_LETTERS_PUBLISHED"),
    *around(Step.COMMIT, "KEEP_DEAD_LETTERS"),
    *around(Step.ACK, "hookhare.dead-letters"),
)
HELD = (
    *around(Step.COMMIT, "HOLD_ENDPOINTS"),
    *around(Step.COMMIT, "LEASE_ENDPOINTS"),
    Point(Moment.BEFORE, Step.STATEMENT, "CLAIM_HELD"),
    *around(Step.COMMIT, "CLAIM_HELD"),
    *around(Step.COMMIT, "CLOSE_BACKLOGS"),
)
RECONCILED = (
    *around(Step.COMMIT, "FREE_DEAD_CLAIMS"),
    *around(Step.COMMIT, "FREE_DEAD_LEASES"),
    *around(Step.COMMIT, "HOLD_OVERDUE"),
)
REPLAYED = (*around(Step.COMMIT, "ADVANCE"), *around(Step.COMMIT, "COMPLETE"))
# Not for the first time, when the statement has to be prepared and the heartbeat is renewed meanwhile.
ABOUT_TO_CLAIM = tuple(Point(Moment.BEFORE, Step.STATEMENT, what, nth=6) for what in ("CLAIM_DUE", "CLAIM_HELD"))
BEFORE_POST = Point(Moment.BEFORE, Step.POST, "hook")
ABOUT_TO_JUDGE = Point(Moment.BEFORE, Step.STATEMENT, "FREE_DEAD_CLAIMS")

SHORT = (
    Point(Moment.AFTER, Step.COMMIT, "INSERT_DELIVERIES"),
    *around(Step.ACK, "hookhare.events"),
    *POSTING,
    *around(Step.COMMIT, "INSERT_ATTEMPTS"),
    *around(Step.PUBLISH, "ToWorkAfter"),
    Point(Moment.AFTER, Step.COMMIT, "CLAIM_DUE"),
    *around(Step.ACK, "hookhare.work"),
)

# What a killed dispatcher leaves, without one.
CLAIMED_BY_THE_DEAD = """
UPDATE deliveries SET claimed_by = gen_random_uuid(), claimed_at = clock_timestamp() WHERE id = (
    SELECT id FROM deliveries WHERE event_type = 'held' AND claimed_by IS NULL LIMIT 1 FOR UPDATE SKIP LOCKED)
"""
LEASED_BY_THE_DEAD = """
UPDATE subscriptions SET mode = 'held', feeder = gen_random_uuid() WHERE id = (
    SELECT id FROM subscriptions WHERE event_types = '{nothing}' AND feeder IS NULL LIMIT 1 FOR UPDATE SKIP LOCKED)
"""

PACED = {"rate_limit": {"requests_per_s": 1000, "burst": 1000}}  # so it is held from the first event on
PATIENT = {"timeout_s": 60}  # a POST that began before the pause goes on after it


async def test_the_express_lane(pauses: Pauses, api: Api, receiver: Receiver) -> None:
    hook = receiver.url("/hook")
    await api.subscribe(hook)
    await pauses.pause_at(EXPRESS_LANE, lambda: pauses.publish(hook))


async def test_retries(pauses: Pauses, api: Api, receiver: Receiver) -> None:
    hook = receiver.behave("/hook", Behaviour(status=500))
    await api.subscribe(hook, retry_policy={"delays_s": [1.0] * 49})

    async def mend() -> None:
        receiver.behave("/hook", Behaviour())

    await pauses.pause_at(RETRIES, lambda: pauses.publish(hook), meanwhile=mend)
    assert set(await pauses.system.statuses()) == {"delivered"}


async def test_deaths_and_what_is_unreadable(pauses: Pauses, api: Api, receiver: Receiver) -> None:
    hook = receiver.behave("/hook", Behaviour(status=500))
    await api.subscribe(hook, retry_policy=ONCE)

    async def bad() -> None:
        await pauses.publish(hook)
        await pauses.publish_junk()

    await pauses.pause_at(DEATHS, bad)
    assert set(await pauses.system.statuses()) == {"dead"}


async def test_what_is_held(pauses: Pauses, api: Api, receiver: Receiver) -> None:
    """Many endpoints, so that one that is leased by who stands still keeps nobody from coming to its point."""
    numbers = range(40)
    for number in numbers:
        await api.subscribe(receiver.url(f"/{number}/hook"), f"paced.{number}", **PACED)
    turns = itertools.cycle(numbers)

    async def next_one() -> None:
        number = next(turns)
        await pauses.publish(receiver.url(f"/{number}/hook"), event_type=f"paced.{number}")

    await pauses.pause_at(HELD, next_one)


async def test_replays(pauses: Pauses, api: Api, receiver: Receiver) -> None:
    hook = receiver.url("/hook")
    await api.subscribe(hook)
    kinds = [f"again.{number}" for number in range(10)]
    for kind in kinds:
        await pauses.publish(hook, event_type=kind, count=3)
    async with pauses.dispatcher(batch_rows=500, prefetch=100) as first:
        await pauses.books.settled()
        assert await stop(first)
    turns = itertools.cycle(kinds)

    async def again() -> None:
        if await pauses.system.value("SELECT count(*) FROM replays WHERE state = 'running'") < MAX_RUNNING:
            await api.call("POST", "/v1/replays", {"event_type": next(turns), "status": ["delivered"]})

    await pauses.pause_at(REPLAYED, again)
    done = await pauses.system.fetch("SELECT state, replayed FROM replays")
    assert {row["state"] for row in done} == {"completed"}
    cycles = await pauses.system.value("SELECT sum(cycle) FROM deliveries")
    assert cycles == sum(row["replayed"] for row in done)


async def test_the_reconciler(pauses: Pauses, api: Api, receiver: Receiver) -> None:
    """It stands still with the claims, leases and retries of others in its hands."""
    held = receiver.url("/held")
    late = receiver.behave("/late", Behaviour(status=500))
    backlog = await api.subscribe(held, "held")
    await api.subscribe(late, "late", retry_policy={"delays_s": [1.0]})
    for number in range(20):
        await api.subscribe(receiver.url(f"/idle/{number}"), "nothing")
    await api.call("PATCH", f"/v1/subscriptions/{backlog['id']}", {"state": "paused"})
    async with pauses.dispatcher(batch_rows=500, prefetch=100) as one:
        await pauses.publish(held, event_type="held", count=20)
        await pauses.publish(late, event_type="late", count=10)
        await pauses.system.settled({"held": 20, "retrying": 10})
        assert await stop(one)
    await pauses.lose_messages()
    receiver.behave("/late", Behaviour())

    async def somebody_dies() -> None:
        for statement in CLAIMED_BY_THE_DEAD, LEASED_BY_THE_DEAD:
            await pauses.system.fetch(statement)

    async def resume() -> bool:
        """Or 503, while who stands still amid freeing its lease has the row locked."""
        status, _ = await api.ask("PATCH", f"/v1/subscriptions/{backlog['id']}", {"state": "enabled"})
        return status == 200

    # The others leave what is overdue to those that are to be stopped at it.
    own = {what: {"reconcile_grace_s": 1000} for what in ("FREE_DEAD_CLAIMS", "FREE_DEAD_LEASES")}
    await pauses.pause_at(RECONCILED, somebody_dies, own=own, meanwhile=lambda: eventually(resume, deadline_s=60))
    assert await pauses.system.statuses() == {"delivered": 30}


async def claimed(system: System, number: int) -> bool:
    found: int = await system.value("SELECT count(*) FROM deliveries WHERE claimed_by IS NOT NULL")
    return found == number


async def test_it_begins_nothing_that_it_had_claimed_before(pauses: Pauses, api: Api, receiver: Receiver) -> None:
    """What it had begun comes twice, and its late outcomes change nothing; what waited in its hands comes once."""
    hanging = asyncio.Event()
    hook = receiver.behave("/hook", Behaviour(hold=hanging))
    await api.subscribe(hook, **PATIENT)
    pauses.changes |= {"batch_rows": 500, "prefetch": 100, "endpoint_max_in_flight": 4}
    async with pauses.dispatcher() as stopped:
        await pauses.publish(hook, count=40)
        await receiver.wait_for(4)
        await eventually(lambda: claimed(pauses.system, 40), pauses.system.statuses)
        stopped.pause()
        await pauses.books.at_standstill([])
        receiver.behave("/hook", Behaviour())  # those that hang go on hanging
        async with pauses.dispatcher() as other:
            await pauses.system.settled({"delivered": 40}, deadline_s=60)
            await pauses.go_on([stopped])
            hanging.set()
            await eventually(lambda: superseded(pauses.system, 4), deadline_s=30)
            assert await stop(stopped)
            await pauses.books.settled()
            assert await stop(other)
    await pauses.check()
    times = Counter(request.webhook_id for request in receiver.requests)
    assert sorted(times.values()) == [1] * 36 + [2] * 4


async def superseded(system: System, number: int) -> bool:
    found: int = await system.value("SELECT count(*) FROM attempts WHERE superseded")
    return found == number


async def test_it_claims_nothing_with_a_heartbeat_that_lapsed(pauses: Pauses, api: Api, receiver: Receiver) -> None:
    """Stopped for less than an open transaction is kept: what it was about to claim is asked for after the pause."""
    hook, paced = receiver.behave("/hook", Behaviour(fail_fraction=0.5)), receiver.url("/paced")
    await api.subscribe(hook, "hook", retry_policy={"delays_s": [1.0] * 49})
    await api.subscribe(paced, "paced", **PACED)
    pauses.changes["database_timeout_s"] = 20

    async def both() -> None:
        await pauses.publish(hook, event_type="hook")
        await pauses.publish(paced, event_type="paced")

    async with pauses.standing_still(ABOUT_TO_CLAIM, both) as stopped:
        await pauses.taken_for_dead(stopped)
        await pauses.go_on(stopped)
        receiver.behave("/hook", Behaviour())  # half of it failing, its breaker may stay open for minutes
        await pauses.books.settled()
        assert await stop(*stopped)
    await pauses.check()


async def test_stopped_after_its_last_check_it_sends_that_post_late_and_only_that_one(
    pauses: Pauses, api: Api, receiver: Receiver
) -> None:
    """The others of the same event, claimed with it and not checked yet, are left to who took over."""
    hooks = [receiver.url(f"/{number}/hook") for number in range(10)]
    for hook in hooks:
        await api.subscribe(hook)
    pauses.changes["batch_rows"] = 500
    await pauses.publish(*hooks)
    async with pauses.standing_still([BEFORE_POST], nothing) as stopped, pauses.dispatcher() as other:
        (late,) = stopped[0].under_way()
        await eventually(pauses.books.is_settled, pauses.books.rows_at_fault, deadline_s=60)
        assert len(receiver.requests) == 10
        await pauses.go_on(stopped)
        await eventually(lambda: superseded(pauses.system, 1), deadline_s=30)
        assert await stop(*stopped)
        await pauses.books.settled()
        assert await stop(other)
    await pauses.check()
    times = Counter((request.webhook_id, receiver.url(request.path)) for request in receiver.requests)
    assert {one: number for one, number in times.items() if number > 1} == {late: 2}


async def test_its_late_outcome_changes_nothing_that_another_has_in_hand(
    pauses: Pauses, api: Api, receiver: Receiver
) -> None:
    """Only a success counts, as it is one; a failure or a death does not. In each case the other one's claim stays."""
    answers = {"/well": 200, "/retry": 500, "/die": 500}
    first, second = asyncio.Event(), asyncio.Event()
    for path, status in answers.items():
        hook = receiver.behave(path, Behaviour(status=status, hold=first))
        await api.subscribe(hook, retry_policy=ONCE if path == "/die" else {"delays_s": [1.0]}, **PATIENT)
    async with pauses.dispatcher() as late:
        await pauses.publish(*map(receiver.url, answers))
        await receiver.wait_for(3)
        late.pause()
        await pauses.books.at_standstill([])
        for path in answers:
            receiver.behave(path, Behaviour(hold=second))
        async with pauses.dispatcher() as other:
            await receiver.wait_for(6, deadline_s=60)
            await pauses.go_on([late])
            first.set()
            await eventually(lambda: attempts(pauses.system, 3))
            rows = await pauses.system.fetch(
                "SELECT s.url, d.status, d.attempts, x.pid FROM deliveries AS d JOIN subscriptions AS s "
                "ON s.id = d.subscription_id LEFT JOIN dispatchers AS x ON x.id = d.claimed_by"
            )
            assert {tuple(row) for row in rows} == {
                (receiver.url("/well"), "delivered", 1, other.pid),
                (receiver.url("/retry"), "pending", 0, other.pid),
                (receiver.url("/die"), "pending", 0, other.pid),
            }
            second.set()
            await pauses.books.settled()
            assert await stop(late, other)
    await pauses.check()
    assert await pauses.system.statuses() == {"delivered": 3}
    assert await superseded(pauses.system, 3)


async def attempts(system: System, number: int) -> bool:
    found: int = await system.value("SELECT count(*) FROM attempts")
    return found == number


async def test_a_pause_shorter_than_the_liveness_time_changes_nothing(
    pauses: Pauses, api: Api, receiver: Receiver
) -> None:
    """Though the embedded broker has handed out again what they had, and every work item comes twice."""
    hook = receiver.behave("/hook", Behaviour(fail_fraction=0.5))
    await api.subscribe(hook, retry_policy={"delays_s": [1.0] * 49}, **PATIENT)
    # A hint is lost if the broker takes who stands still for gone; that it is made up for is no matter here.
    # A machine that is busy with other things needs long to bring each to its point: that may be as long as it likes.
    # Nothing is held meanwhile: a hold would wait for who stands still amid a settlement that ends the streak.
    pauses.changes |= {"liveness_s": 600, "claim_cap_s": 600, "max_wait_in_hand_s": 120, "database_timeout_s": 60}
    pauses.changes |= {"reconcile_grace_s": 45, "database_pool": 5}
    await call_witness(pauses.system, liveness_s=pauses.liveness_s)

    async def publish_now_and_then() -> None:
        await pauses.publish(hook)
        await asyncio.sleep(0.25)

    async with pauses.standing_still(SHORT, publish_now_and_then) as stopped, pauses.dispatcher() as other:
        pauses.books.begun.clear()  # nothing may come again
        receiver.behave("/hook", Behaviour())
        claims = await pauses.system.fetch(
            "SELECT id, cycle, attempts FROM deliveries WHERE status = 'retrying' AND claimed_by IS NOT NULL"
        )
        assert claims
        for row in claims:
            item = WorkItem(UUID(str(row["id"])), row["cycle"], row["attempts"] + 1, 0)
            await pauses.send(Outgoing(ToWorkAfter(0), encode_work(item)))

        stood_still_at = await pauses.system.value("SELECT clock_timestamp()")
        enough_s = 3 * pauses.system.settings().broker_lease_s

        async def all_handed_out() -> bool:
            """Or else it waits for what is locked by who stands still."""
            waited = "SELECT clock_timestamp() > $1::timestamptz + make_interval(secs => $2)"
            return not await in_queues(pauses.system) or await pauses.system.value(waited, stood_still_at, enough_s)

        await eventually(all_handed_out, deadline_s=60)
        for one in stopped:
            one.resume()
        await pauses.books.settled()
        assert await stop(*stopped)
        await pauses.books.settled()
        assert await stop(other)
    await pauses.check()
    logs = "".join(one.log for one in (*stopped, other))
    assert [what for what in ("dead_claims", "dead_leases", "heartbeat.resumed") if what in logs] == []
    assert await superseded(pauses.system, 0)


async def test_a_fleet_that_stood_still_together_takes_nobody_for_dead(
    pauses: Pauses, api: Api, receiver: Receiver
) -> None:
    """As on a machine that is suspended; also when one goes on first, which was about to judge. No POST is repeated."""
    hanging = asyncio.Event()
    hook = receiver.behave("/hook", Behaviour(hold=hanging))
    await api.subscribe(hook, **PATIENT)
    # Time for the second one to go on before it is rightly taken for dead; and for an open transaction to outlive it.
    pauses.changes |= {"liveness_s": 8, "database_timeout_s": 20}
    await call_witness(pauses.system, liveness_s=pauses.liveness_s)
    async with pauses.dispatcher(batch_rows=500, prefetch=100) as busy:
        await pauses.publish(hook, count=10)
        await eventually(lambda: claimed(pauses.system, 10))
        async with pauses.standing_still([ABOUT_TO_JUDGE], nothing) as stopped:
            busy.pause()
            pauses.books.begun.clear()
            await pauses.taken_for_dead([busy, *stopped])
            await pauses.go_on(stopped)

            async def has_reconciled() -> bool:
                return bool(
                    await pauses.system.value(
                        "SELECT renewed_at > steady_since + make_interval(secs => $2) FROM dispatchers WHERE pid = $1",
                        *(stopped[0].pid, 3 * pauses.system.settings().reconcile_period_s),
                    )
                )

            await eventually(has_reconciled, deadline_s=60)
            await pauses.go_on([busy])
            hanging.set()
            await pauses.books.settled()
            assert await stop(busy, *stopped)
    await pauses.check()
    assert "dead_claims" not in stopped[0].log + busy.log
    assert len(receiver.requests) == 10
