"""A fleet that is away for longer than every grace, with 5,000 deliveries waiting, and then starts: no storm.

When it is back everything is due at once, and twice: each retry has its work item in the queue, and is overdue for the
reconciler too. What would be a storm, and what prevents it:

- POSTs of the same attempt, by the work item's claim and by the feeder's: a claim wants a row that nobody has claimed
  (`CLAIM_DUE`, `CLAIM_HELD`), and whichever moves the row first leaves the other none.
- Rows that are claimed and held in circles, because more is due than an endpoint takes: a work item is acked with its
  one claim, and if the gate says hold, the row waits for the feeder, which claims only what there is room for.
- Everything in hand at once: who takes stops at `max_in_hand`, and an endpoint has a share of that.
- An endpoint with all of its backlog sent to it at once: its lane has so many workers, in each dispatcher.
- Everybody's claims taken for dead again and again: they are freed once, and only by who is steady.
"""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import asyncpg

from infra.tasks import end_task
from producer.events import NewEvent
from tests.support.accounting import Accounting
from tests.support.books import in_queues
from tests.support.receivers import Behaviour, Receiver
from tests.support.system import QUICK, Api, DispatcherProcess, System
from tests.support.waiting import eventually
from tests.support.witness import call_witness, witnessed

FLEET: Final = 3
MAX_IN_HAND: Final = 400
MAX_IN_FLIGHT: Final = 4  # to one endpoint, from one dispatcher
LIVENESS_S: Final = float(str(QUICK["liveness_s"]))
GRACE_S: Final = float(str(QUICK["reconcile_grace_s"]))

RETRIED: Final = {"/retried/0": 5.0, "/retried/1": 7.0, "/retried/2": 10.0}  # with their delays in seconds
PAUSED: Final = ("/paused/0", "/paused/1")
HANGING: Final = ("/hanging/0", "/hanging/1")
LATE: Final = tuple(f"/late/{number}" for number in range(4))
EVENTS: Final = 5000 // (len(RETRIED) + len(PAUSED) + len(HANGING) + len(LATE)) + 1  # of each type

RETRYING: Final = 300  # at least; a busy machine does not come much further while they fail again and again

MOST_IN_HAND = """
SELECT coalesce(max(number), 0) FROM (
    SELECT count(*) AS number FROM deliveries WHERE claimed_by IS NOT NULL GROUP BY claimed_by) AS one
"""


async def test_a_fleet_that_was_away_makes_each_due_attempt_once(
    system: System, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    books = Accounting(system, [receiver])
    answers = asyncio.Event()
    paused = await subscribe(api, receiver, answers)
    async with fleet(system, tmp_path / "before") as before:
        await publish(system, books, receiver, "paused", PAUSED)
        await publish(system, books, receiver, "retried", tuple(RETRIED))
        await publish(system, books, receiver, "hanging", HANGING)
        await eventually(lambda: all_is_on_its_way(system), system.statuses, deadline_s=180)
        for one in before:
            one.kill()
        for one in before:
            await one.wait()
    for path in (*PAUSED, *RETRIED, *HANGING, *LATE):
        receiver.behave(path, Behaviour(delay_s=0.05))
    answers.set()
    died = await books.after_death("with the whole fleet")
    assert {receiver.url(path) for path in HANGING} <= {repeat.target[1] for repeat in died}

    await publish(system, books, receiver, "late", LATE)
    for subscription in paused:
        await api.call("PATCH", f"/v1/subscriptions/{subscription['id']}", {"state": "enabled"})
    left = await rows_left(system)
    waiting = sum(left.values()) + EVENTS * len(LATE)
    assert waiting >= 5000
    assert min(left["held"], left["retrying"], left["claimed"]) > 0
    await eventually(lambda: everything_is_overdue(system), lambda: in_queues(system), deadline_s=180)
    await call_witness(system, liveness_s=LIVENESS_S)
    fences = await fences_of(system)

    came_before = len(receiver.requests)
    async with most_in_hand(system) as most, fleet(system, tmp_path / "after") as after:
        await books.settled(deadline_s=300)
        assert not any(await asyncio.gather(*(one.stop() for one in after)))
    await books.check()
    assert not (seen := await witnessed(system)), seen[:5]
    assert await system.statuses() == {"delivered": 11 * EVENTS}

    # Each attempt that was due is made once.
    times = Counter((one.webhook_id, one.path) for one in receiver.requests[came_before:])
    assert (len(times), set(times.values())) == (waiting, {1})
    # Nobody has more in hand, or sends more to an endpoint at once, than it may.
    assert 0 < max(most) <= MAX_IN_HAND
    behaviours = [receiver.behaviour(path) for path in (*PAUSED, *RETRIED, *HANGING, *LATE)]
    assert 0 < max(one.most_in_flight for one in behaviours) <= FLEET * MAX_IN_FLIGHT
    # A row is claimed by its work item, and by the feeder if that found its endpoint full; no more. It is written when
    # it is freed or found overdue, held by who had claimed it, and delivered, besides. A dispatcher that the machine
    # keeps from its heartbeat holds what it had claimed, once each time.
    lapses = sum(one.log.count("heartbeat.resumed") for one in after)
    claims = Counter(fence - fences.get(key, 0) for key, fence in (await fences_of(system)).items())
    assert max(claims) <= 2 + lapses, claims
    assert await system.value("SELECT max(number) FROM writes") <= 4 + 2 * lapses
    told = reconciled(after)
    assert left["claimed"] <= told["dead_claims"] <= left["claimed"] + lapses * MAX_IN_HAND
    assert told["overdue_retries"] <= left["retrying"]


async def subscribe(api: Api, receiver: Receiver, answers: asyncio.Event) -> list[dict[str, Any]]:
    """The endpoints; what is returned are the subscriptions that are paused."""
    for path, delay_s in RETRIED.items():
        failing = receiver.behave(path, Behaviour(status=500))
        await api.subscribe(failing, "retried", retry_policy={"delays_s": [delay_s] * 20})
    for path in HANGING:
        await api.subscribe(receiver.behave(path, Behaviour(hold=answers)), "hanging", timeout_s=60)
    for path in LATE:
        await api.subscribe(receiver.url(path), "late")
    paused = [await api.subscribe(receiver.url(path), "paused") for path in PAUSED]
    for subscription in paused:
        await api.call("PATCH", f"/v1/subscriptions/{subscription['id']}", {"state": "paused"})
    return paused


async def publish(system: System, books: Accounting, receiver: Receiver, event_type: str, paths: Sequence[str]) -> None:
    ids = [f"{event_type}-{number}" for number in range(EVENTS)]
    async with system.publisher() as publisher:
        await publisher.publish_many(NewEvent(event_type, {}, id=one) for one in ids)
    for one in ids:
        books.published(one, *map(receiver.url, paths))


@asynccontextmanager
async def fleet(system: System, folder: Path) -> AsyncIterator[list[DispatcherProcess]]:
    """Its processes, all started at once."""
    changes: dict[str, Any] = {
        "max_in_hand": MAX_IN_HAND,
        "endpoint_max_in_flight": MAX_IN_FLIGHT,
        "reconcile_period_s": 0.2,  # so that it acts while work items come
    }
    members = [DispatcherProcess(system, folder.with_suffix(f".{number}.log"), **changes) for number in range(FLEET)]
    async with AsyncExitStack() as stack:
        await asyncio.gather(*(stack.enter_async_context(one) for one in members))
        yield members


async def all_is_on_its_way(system: System) -> bool:
    """All are admitted, many have failed and wait for their time, and some hang."""
    rows = await system.value("SELECT count(*) FROM deliveries")
    retrying = await system.value("SELECT count(*) FROM deliveries WHERE status = 'retrying' AND claimed_by IS NULL")
    hang = await system.value("SELECT count(*) FROM deliveries WHERE event_type = 'hanging' AND claimed_by IS NOT NULL")
    return bool(rows == EVENTS * 7 and retrying >= RETRYING and hang)


async def rows_left(system: System) -> Counter[str]:
    """What the dead fleet has not finished: the rows that it had claimed, and the others by status."""
    rows = await system.fetch(
        "SELECT CASE WHEN claimed_by IS NULL THEN status ELSE 'claimed' END AS what FROM deliveries "
        "WHERE status <> 'delivered'"
    )
    return Counter(row["what"] for row in rows)


async def everything_is_overdue(system: System) -> bool:
    """Each retry is past its grace, and its work item in the queue; each dispatcher is past its liveness."""
    waits = await system.value(
        "SELECT (SELECT count(*) FROM dispatchers WHERE renewed_at > clock_timestamp() - make_interval(secs => $1)) "
        "+ (SELECT count(*) FROM deliveries WHERE hint_due_at > clock_timestamp() - make_interval(secs => $2)) "
        "+ (SELECT count(*) FROM queue_messages WHERE visible_at > clock_timestamp())",
        *(LIVENESS_S, GRACE_S),
    )
    return not waits and not [name for name in await in_queues(system) if "retry" in name]


@asynccontextmanager
async def most_in_hand(system: System) -> AsyncIterator[list[int]]:
    """How much the dispatcher that has the most has claimed, looked at all the time."""
    most: list[int] = []

    async def look() -> None:
        connection = await asyncpg.connect(system.database_url)
        try:
            while True:
                most.append(await connection.fetchval(MOST_IN_HAND))
                await asyncio.sleep(0.005)
        finally:
            connection.terminate()

    looking = asyncio.create_task(look())
    try:
        yield most
    finally:
        await end_task(looking)


async def fences_of(system: System) -> dict[Any, int]:
    return {row["id"]: row["fence"] for row in await system.fetch("SELECT id, fence FROM deliveries")}


def reconciled(members: Sequence[DispatcherProcess]) -> Counter[str]:
    """What the fleet says that it has reconciled."""
    lines = itertools.chain.from_iterable(one.log.splitlines() for one in members)
    told = [json.loads(line) for line in lines if '"event":"reconciled"' in line]
    return sum((Counter({one["what"]: one["number"]}) for one in told), Counter())
