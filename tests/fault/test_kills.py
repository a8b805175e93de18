"""SIGKILL before, amid and after every commit, publish, ack and POST: from an event's message to its outcome.

Each test is a chain of kills (`tests/support/chain.py`), after which the books have to be right: every event at every
endpoint, or dead with one dead letter; no POST repeated but those that had begun and were not committed.
"""

from uuid import UUID

from infra.broker.base import Outgoing, ToWorkAfter
from schemas.work import WorkItem, encode_work
from tests.support.chain import ONCE, SOON, Chain, around
from tests.support.points import Step
from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api

EXPRESS_LANE = (
    *around(Step.COMMIT, "INSERT_DELIVERIES"),
    *around(Step.ACK, "hookhare.events"),
    *around(Step.POST, "two"),
    *around(Step.COMMIT, "INSERT_ATTEMPTS"),
)
KNOWN = around(Step.COMMIT, "KNOWN_EVENT_KEYS")
CONFLICTING = around(Step.COMMIT, "INSERT_CONFLICT")
UNREADABLE = (
    *around(Step.PUBLISH, "ToDead"),
    *around(Step.COMMIT, "KEEP_DEAD_LETTERS"),
    *around(Step.ACK, "hookhare.dead-letters"),
)
FAILING = (*around(Step.COMMIT, "UPDATE_DELIVERIES"), *around(Step.PUBLISH, "ToWorkAfter"))
DUE = (
    *around(Step.COMMIT, "CLAIM_DUE"),
    *around(Step.ACK, "hookhare.work"),
    *around(Step.POST, "hook"),
    *around(Step.COMMIT, "INSERT_ATTEMPTS"),
)
EARLY = around(Step.PUBLISH, "ToWorkAfter")
LATE_S = 25.0  # three dispatchers have to come and die before
DYING = around(Step.COMMIT, "INSERT_DEAD_LETTERS")
DEAD = (
    *around(Step.ACK, "hookhare.dead-letters"),
    *around(Step.COMMIT, "MARK_DEAD_LETTERS_PUBLISHED"),
    *reversed(around(Step.PUBLISH, "ToDead")),  # so that in the end one is not published
)
GONE = around(Step.COMMIT, "DISABLE")
COUNTED = around(Step.COMMIT, "COUNT_FAILURES")
ENDED = around(Step.COMMIT, "END_STREAKS")
TOLD = (*around(Step.PUBLISH, "ToEvents"), *around(Step.COMMIT, "FORGET_PUBLISHED"))


async def test_the_express_lane(chain: Chain, api: Api, receiver: Receiver) -> None:
    one, two = receiver.url("/one"), receiver.url("/two")
    await api.subscribe(one)
    await api.subscribe(two)
    await chain.kill_at(EXPRESS_LANE, lambda: chain.publish(one, two))
    await chain.finish()


async def test_an_event_that_is_known(chain: Chain, api: Api, receiver: Receiver) -> None:
    hook = receiver.url("/hook")
    await api.subscribe(hook)
    await chain.publish_as("known", hook)
    await chain.finish()

    others = 0

    async def again() -> None:
        await chain.publish_as("known", hook)

    async def otherwise() -> None:
        nonlocal others
        others += 1
        await chain.publish_as("known", hook, n=others)
        chain.books.buried("conflict", b'{"n":%d}' % others)

    await chain.kill_at(KNOWN, again)
    await chain.kill_at(CONFLICTING, otherwise)
    await chain.finish()
    assert len(receiver.requests) == 1


async def test_what_is_unreadable(chain: Chain, api: Api, receiver: Receiver) -> None:
    hook = receiver.url("/hook")
    await api.subscribe(hook)

    async def good_and_bad() -> None:
        await chain.publish_junk()
        await chain.publish(hook)

    await chain.kill_at(UNREADABLE, good_and_bad)
    await chain.finish()


async def test_a_retry(chain: Chain, api: Api, receiver: Receiver) -> None:
    # One work item at a time, so that enough are left for who comes next; and none is taken for lost meanwhile.
    chain.changes |= {"batch_rows": 1, "reconcile_grace_s": 60}
    hook = receiver.behave("/hook", Behaviour(status=500))
    await api.subscribe(hook, retry_policy=SOON)
    await chain.kill_at(FAILING, lambda: chain.publish(hook))
    await chain.publish(hook, count=2 * len(DUE))  # a dispatcher takes some more until it dies
    async with chain.dispatcher() as one:
        await receiver.wait_for(2 * len(DUE))
        assert await one.stop() == 0
    receiver.behave("/hook", Behaviour())
    for point in DUE:
        await chain.kill(point)
    del chain.changes["reconcile_grace_s"]
    await chain.finish()


async def test_a_work_item_that_comes_early(chain: Chain, api: Api, receiver: Receiver) -> None:
    hook = receiver.behave("/hook", Behaviour(fail_first=1))
    await api.subscribe(hook, retry_policy={"delays_s": [LATE_S]})
    await chain.publish(hook)
    async with chain.dispatcher() as one:
        await chain.system.settled({"retrying": 1})
        assert await one.stop() == 0
    row = (await chain.system.fetch("SELECT id, next_attempt_at FROM deliveries"))[0]
    due_ms = int(row["next_attempt_at"].timestamp() * 1000)
    early = encode_work(WorkItem(UUID(str(row["id"])), 0, 2, due_ms))
    for point in EARLY:
        await chain.send(Outgoing(ToWorkAfter(0), early))
        await chain.kill(point)
    await chain.finish()
    first, second = receiver.requests
    assert second.at_s - first.at_s >= LATE_S - 0.5


async def test_a_death(chain: Chain, api: Api, receiver: Receiver) -> None:
    """In the end only the reconciler is left to publish the dead letter."""
    hook = receiver.behave("/hook", Behaviour(status=500))
    await api.subscribe(hook, retry_policy=ONCE)
    await chain.kill_at(DYING, lambda: chain.publish(hook))
    await chain.finish()
    await chain.kill_at(DEAD, lambda: chain.publish(hook))
    await chain.finish()
    assert set(await chain.system.statuses()) == {"dead"}


async def test_an_endpoint_that_is_gone(chain: Chain, api: Api, receiver: Receiver) -> None:
    """A kill leaves it enabled or disabled as a whole; in the end the next 410 disables what was left."""
    for number, point in enumerate(GONE):
        hook = receiver.behave(f"/gone/{number}", Behaviour(status=410))
        await api.subscribe(hook, f"gone.{number}")
        await chain.publish(hook, event_type=f"gone.{number}", count=2)
        await chain.kill(point)
    still = {row["url"]: row["state"] for row in await chain.system.fetch("SELECT url, state FROM subscriptions")}
    for number in range(len(GONE)):
        asked = [hook for hook in [receiver.url(f"/gone/{number}")] if still[hook] == "enabled"]
        await chain.publish(*asked, event_type=f"gone.{number}")
    await chain.finish()
    states = await chain.system.fetch("SELECT state FROM subscriptions")
    assert {row["state"] for row in states} == {"disabled"}
    assert set(await chain.system.statuses()) == {"dead"}


async def test_a_streak(chain: Chain, api: Api, receiver: Receiver) -> None:
    """Killed amid a count: no failure counts twice. Killed amid a success: it ends the streak, or its repeat does."""
    hook = receiver.behave("/hook", Behaviour(status=500))
    await api.subscribe(hook, retry_policy=ONCE)
    await chain.kill_at(COUNTED, lambda: chain.publish(hook))
    await chain.finish()
    failures = await chain.system.value("SELECT failures FROM subscriptions")
    assert 1 <= failures <= await chain.system.value("SELECT count(*) FROM attempts WHERE NOT superseded")
    receiver.behave("/hook", Behaviour())

    async def succeed() -> None:
        await chain.system.fetch("UPDATE subscriptions SET failures = 7, failing_since = now()")
        await chain.publish(hook)

    await chain.kill_at(ENDED, succeed)
    await chain.finish()
    assert await chain.system.value("SELECT count(*) FROM subscriptions WHERE failing_since IS NOT NULL") == 0


async def test_what_hookhare_tells(chain: Chain, api: Api, receiver: Receiver) -> None:
    """Killed before it is told, amid it, or before that is known: it is told in the end, and is one event."""
    ears = receiver.url("/ears")
    listener = await api.subscribe(ears, "hookhare.#")
    path = f"/v1/subscriptions/{listener['id']}"

    async def change() -> None:
        await api.call("PATCH", path, {"description": "new"})
        for row in await chain.system.fetch("SELECT id::text FROM operational_events"):
            chain.books.published(row["id"], ears)

    await chain.kill_at(TOLD, change)
    await chain.finish()
    assert await chain.system.value("SELECT count(*) FROM events") == 1 + len(TOLD)  # created, and each change
    assert await chain.system.value("SELECT count(*) FROM operational_events") == 0
