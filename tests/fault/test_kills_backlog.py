"""SIGKILL before, amid and after every commit and POST of what is held: feeder, breakers, replays, reconciler, drain.

Chains of kills, as in `test_kills.py`. What is fed is given a fresh endpoint for each kill: the lease of the one before
is free again only when its dispatcher is taken for dead.
"""

from pathlib import Path
from typing import Any

from tests.fault import test_kills
from tests.support.chain import SOON, Chain, around
from tests.support.points import Moment, Point, Step, statement_names
from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api
from tests.support.waiting import eventually

HELD = around(Step.COMMIT, "HOLD_ENDPOINTS")
FED = (
    *around(Step.COMMIT, "LEASE_ENDPOINTS"),
    *around(Step.COMMIT, "CLAIM_HELD"),
    *around(Step.POST, "hook"),
    *around(Step.COMMIT, "INSERT_ATTEMPTS"),
    *around(Step.COMMIT, "CLOSE_BACKLOGS"),
)
BREAKERS = (*around(Step.COMMIT, "OPEN_BREAKERS"), *around(Step.COMMIT, "CLOSE_BREAKERS"))
REPLAYED = (*around(Step.COMMIT, "ADVANCE"), *around(Step.COMMIT, "COMPLETE"))
CLAIMED = Point(Moment.AFTER, Step.COMMIT, "INSERT_DELIVERIES")
LEASED = Point(Moment.AFTER, Step.COMMIT, "LEASE_ENDPOINTS")
UNTOLD = Point(Moment.BEFORE, Step.PUBLISH, "ToWorkAfter")
FREED = (*around(Step.COMMIT, "FREE_DEAD_CLAIMS"), *around(Step.COMMIT, "FREE_DEAD_LEASES"))
OVERDUE = around(Step.COMMIT, "HOLD_OVERDUE")
ORPHANED = around(Step.COMMIT, "END_ORPHANED")
FORGOTTEN = (*around(Step.COMMIT, "OPEN_WITH_BACKLOG"), *around(Step.COMMIT, "HOLD_ENDPOINTS"))
DRAINED = (*around(Step.COMMIT, "RELEASE_LEASES"), *around(Step.COMMIT, "RETIRE_DISPATCHER"))
BEATING = around(Step.COMMIT, "RENEW_HEARTBEAT", nth=2)

# Statements that no kill is aimed at, and why. Those of the API are in the API's process, and commit or do not.
EXCUSED = {
    "commit with one that is aimed at": "ACK CLAIM CLAIM_WAITING DRAW_ORDINALS END HOLD_SUBSCRIPTIONS INSERT_EVENTS "
    "TAKE_EVENT_KEYS MARK_DEAD_LETTERS_REPLAYED MARK_TOLD NOTIFY RELEASE RENEW REPLAY SETTLE STILL_MINE STORE TELL "
    "TELL_DEATHS",
    "only read or lock": "ADMISSION_VIEW BACKLOG_VIEW CLAIMS_OF DELIVERED_SINCE ENABLED_AT EVENTS_OF_CLAIMS "
    "FAILING_AMONG HELD_ENDPOINTS LOCK_DELIVERIES LOCK_FREE LOCK_FREE_LEASES LOCK_ENABLED_SUBSCRIPTIONS "
    "LOCK_ENDPOINTS LOCK_LEASES LOCK_LIVE_SUBSCRIPTIONS LOCK_OF_STATUS LOCK_REPLAYABLE LOCK_RETRYABLE "
    "LOCK_SUBSCRIPTION_OF LOCK_UNFINISHED PAST_RETENTION PROGRESS STREAK TAKE TAKE_UNPUBLISHED UNANSWERED "
    "UNPUBLISHED_DEAD_LETTERS",
    "of the API": "CANCEL COUNT_RUNNING DELETE GET HOLD INSERT INSERT_TEST_DELIVERY INSERT_TEST_EVENT OF_DELIVERY "
    "RETRY SAVE SETTLE_PUBLISHED",
    "without it, the endpoint is asked again": "AGREE",
    "ends sessions, each by itself": "END_STALLED_SESSIONS",
    "of admission in order, of which tests/e2e/test_order.py kills who does it": "ALONE ALONE_IN_ORDER BECOME_SOLE "
    "END_SOLE FREE_DEAD_ROLES GIVE_UP_ROLE HAS_ROLE SHARE_ROLE SOLE TAKE_OVER TAKE_ROLE",
    "deletes what is past its time, again at the next run": "FORGET_DEAD_LETTERS FORGET_REPLAYS FORGET_DISPATCHERS "
    "FORGET_AUDIT MAY_FORGET_AUDIT FORGET_IDEMPOTENCY_KEYS",
    "no statements": "AMONG_PICKED CANCELED_BY_OPERATOR COLUMNS DELETED DISABLED_BY_OPERATOR EXPUNGED FRESH MAY_JUDGE "
    "PLAN_ANEW PACED_ANEW PAUSED_BY_OPERATOR doc__",
}

IN_ORDER = around(Step.COMMIT, "CLAIM_IN_ORDER")
BLIND: dict[str, Any] = {"reconcile_period_s": 3600}  # for what the dead leave, so that it is still there
PACED = {"rate_limit": {"requests_per_s": 1000, "burst": 1000}}  # so it is held from the first event on


async def test_strict_order(chain: Chain, api: Api, receiver: Receiver) -> None:
    hook = receiver.url("/hook")
    await api.subscribe(hook, ordered=True)
    await chain.kill_at(IN_ORDER, lambda: chain.publish(hook, count=2))
    await chain.finish()


async def test_the_gate_says_hold(chain: Chain, api: Api, receiver: Receiver) -> None:
    """At admission, because it is paced; and at settlement, because it was paused when its retry came."""
    chain.changes["batch_rows"] = 1
    for number, point in enumerate(HELD):
        paced = receiver.url(f"/paced/{number}")
        await api.subscribe(paced, f"paced.{number}", **PACED)
        await chain.publish(paced, event_type=f"paced.{number}")
        await chain.kill(point)
    due = [receiver.behave(f"/due/{number}", Behaviour(fail_first=2)) for number in range(len(HELD))]
    subscriptions = [await api.subscribe(hook, f"due.{number}", retry_policy=SOON) for number, hook in enumerate(due)]
    for number, hook in enumerate(due):
        await chain.publish(hook, event_type=f"due.{number}", count=2)
    async with chain.dispatcher() as one:
        for number in range(len(due)):
            await receiver.wait_for(2, path=f"/due/{number}")
        assert await one.stop() == 0
    for subscription in subscriptions:
        await api.call("PATCH", f"/v1/subscriptions/{subscription['id']}", {"state": "paused"})
    for point in HELD:
        await chain.kill(point)
    for subscription in subscriptions:
        await api.call("PATCH", f"/v1/subscriptions/{subscription['id']}", {"state": "enabled"})
    await chain.finish()


async def test_the_feeder(chain: Chain, api: Api, receiver: Receiver) -> None:
    for number, point in enumerate(FED):
        hook = receiver.url(f"/{number}/hook")
        await api.subscribe(hook, f"fed.{number}", **PACED)
        await chain.publish(hook, event_type=f"fed.{number}", count=2)
        await chain.kill(point)
    await chain.finish()


async def test_breakers(chain: Chain, api: Api, receiver: Receiver) -> None:
    chain.changes |= {"breaker_min_attempts": 1, "breaker_failure_ratio": 0.5, "breaker_rest_s": 0.1}
    for number, point in enumerate(BREAKERS):
        hook = receiver.behave(f"/{number}/hook", Behaviour(fail_first=1))
        await api.subscribe(hook, f"trouble.{number}", retry_policy=SOON)
        await chain.publish(hook, event_type=f"trouble.{number}", count=2)
        await chain.kill(point)
    await chain.finish()
    for number in range(len(BREAKERS)):
        await chain.publish(receiver.url(f"/{number}/hook"), event_type=f"trouble.{number}")
    async with chain.dispatcher() as one:
        await eventually(chain.all_open, deadline_s=60)
        assert await one.stop() == 0  # killed, it would leave POSTs under way that no fault explains
    await chain.finish()


async def test_a_replay(chain: Chain, api: Api, receiver: Receiver) -> None:
    """A replay POSTs again on purpose: once, however often who works through it dies."""
    chain.changes["batch_rows"] = 2
    hook = receiver.url("/hook")
    await api.subscribe(hook)
    for number in range(len(REPLAYED)):
        await chain.publish(hook, event_type=f"again.{number}", count=3)
    await chain.finish()
    for number, point in enumerate(REPLAYED):
        asked = await api.call("POST", "/v1/replays", {"event_type": f"again.{number}", "status": ["delivered"]})
        assert asked["matched"] == 3
        await chain.kill(point)
    await chain.finish()
    cycles = await chain.system.fetch("SELECT cycle FROM deliveries")
    assert [row["cycle"] for row in cycles] == [1] * 3 * len(REPLAYED)
    done = await chain.system.fetch("SELECT state, replayed, skipped FROM replays")
    assert {(row["state"], row["replayed"], row["skipped"]) for row in done} == {("completed", 3, 0)}


async def test_the_reconciler(chain: Chain, api: Api, receiver: Receiver) -> None:
    hook = receiver.url("/hook")
    await api.subscribe(hook, "hook", retry_policy=SOON)
    for point in OVERDUE:
        receiver.behave("/hook", Behaviour(fail_first=1))
        await chain.publish(hook, event_type="hook")
        await chain.kill(UNTOLD)
        await chain.kill(point)
    for number, point in enumerate(FREED):
        # New ones each time: what was reconciled for an endpoint holds it, and then nothing of it is claimed at once.
        fresh, paced = receiver.url(f"/fresh/{number}"), receiver.url(f"/paced/{number}")
        await api.subscribe(fresh, f"fresh.{number}")
        await chain.publish(fresh, event_type=f"fresh.{number}")
        await chain.kill(CLAIMED, **BLIND)
        await api.subscribe(paced, f"paced.{number}", **PACED)
        await chain.publish(paced, event_type=f"paced.{number}")
        await chain.kill(LEASED, **BLIND)
        await chain.kill(point)
    await chain.finish()


async def test_what_an_operators_crash_leaves(chain: Chain, api: Api, receiver: Receiver) -> None:
    """Retries of a subscription that is disabled; and held rows behind an open endpoint."""
    chain.changes["batch_rows"] = 1
    orphan, open_one = receiver.behave("/orphan", Behaviour(status=500)), receiver.url("/open")
    await api.subscribe(orphan, "orphan", retry_policy={"delays_s": [3600.0]})
    await chain.publish(orphan, event_type="orphan", count=len(ORPHANED) + 1)
    async with chain.dispatcher() as one:
        await chain.system.settled({"retrying": len(ORPHANED) + 1})
        assert await one.stop() == 0
    await chain.lose_messages()  # else a work item would find its row first, some day
    await chain.system.fetch("UPDATE subscriptions SET state = 'disabled' WHERE url = $1", orphan)
    await chain.kill_at(ORPHANED, nothing)
    await api.subscribe(open_one, "open")
    for point in FORGOTTEN:
        await chain.publish(open_one, event_type="open")
        await chain.kill(CLAIMED)
        await chain.system.fetch(
            "UPDATE deliveries SET status = 'held', claimed_by = NULL, claimed_at = NULL WHERE status = 'pending'"
        )
        await chain.system.fetch("UPDATE subscriptions SET mode = 'open', feeder = NULL WHERE url = $1", open_one)
        await chain.kill(point)
    await chain.finish()


async def nothing() -> None:
    """What is there already is reason enough."""


async def test_a_drain(chain: Chain, api: Api, receiver: Receiver) -> None:
    """Killed while it stops in order: what it gave back is taken over at once, the rest when it is taken for dead."""
    hook = receiver.url("/hook")
    await api.subscribe(hook)
    for point in DRAINED:
        await chain.publish(hook)
        async with chain.dispatcher(point) as one:
            await one.stop()
            await chain.dies(one, point)
    await chain.kill_at(BEATING, lambda: chain.publish(hook))
    await chain.finish()


def test_no_statement_is_forgotten() -> None:
    aimed_at = Path(__file__).read_text() + Path(test_kills.__file__).read_text()
    excused = {name for names in EXCUSED.values() for name in names.split()}
    assert [name for name in sorted(statement_names() - excused) if f'"{name}"' not in aimed_at] == []
