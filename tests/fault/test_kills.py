"""SIGKILL before, amid and after every commit, publish, ack and POST of the protocol.

Each test is a chain: dispatcher after dispatcher is killed at its point, and the next one goes on with what it left and
with new events. The last one is left in peace, and then the books have to be right: every event at every endpoint, and
no POST repeated but those that had begun and were not committed.
"""

import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.broker.base import Outgoing, ToEvents
from schemas.messages import Message
from tests.support.books import Books
from tests.support.points import Moment, Point, Step, statement_names
from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, DispatcherProcess, System

# Short, because the next one waits so long for each that was killed. Only one lives at a time, so on a busy machine
# nobody is taken for dead.
SHORT: dict[str, Any] = {
    "heartbeat_s": 0.3,
    "renewal_timeout_s": 1,
    "begin_margin_s": 0.1,
    "liveness_s": 2,
    "reconcile_period_s": 0.2,
    "reconcile_grace_s": 1,
    "broker_lease_s": 1,
}
ONCE: dict[str, Any] = {"delays_s": []}
SOON: dict[str, Any] = {"delays_s": [1.0] * 5}


def around(step: Step, *what: str) -> list[Point]:
    """Before, amid and after each of these."""
    return [Point(moment, step, one) for one in what for moment in Moment]


class Chain:
    """Kills one dispatcher after the other, each at its point, after `provoke` has given it reason to come there."""

    def __init__(self, system: System, receiver: Receiver, folder: Path, **changes: Any) -> None:
        self.system = system
        self.books = Books(system, receiver)
        self.events = 0
        self._log = folder / "dispatchers.log"
        self._changes = SHORT | changes

    async def publish(self, count: int = 1, event_type: str = "order.created") -> None:
        async with self.system.publisher() as publisher:
            for _ in range(count):
                await publisher.publish(event_type, {"n": self.events}, id=f"order-{self.events}")
                self.events += 1

    async def kill_at(self, points: Sequence[Point], provoke: Callable[[], Awaitable[None]]) -> None:
        for point in points:
            await provoke()
            async with self.dispatcher(point) as one:
                assert await one.wait(deadline_s=90) == -signal.SIGKILL, point
            await self.books.note_fault()

    def dispatcher(self, *at: Point) -> DispatcherProcess:
        return DispatcherProcess(self.system, self._log, at=at, **self._changes)

    async def finish(self, *, events: int | None = None, paths: int = 1) -> None:
        """One dispatcher is left in peace and does all that is left."""
        async with self.dispatcher():
            await self.books.check(self.events if events is None else events, paths=paths, deadline_s=60)


@pytest.fixture
def chain(system: System, receiver: Receiver, tmp_path: Path) -> Chain:
    return Chain(system, receiver, tmp_path)


async def test_the_express_lane(chain: Chain, api: Api, receiver: Receiver) -> None:
    await api.subscribe(receiver.url("/one"))
    await api.subscribe(receiver.url("/two"))
    points = [
        *around(Step.COMMIT, "TAKE_EVENT_KEYS"),
        *around(Step.ACK, "hookhare.events"),
        *around(Step.POST, "two"),
        *around(Step.COMMIT, "INSERT_ATTEMPTS"),
    ]
    await chain.kill_at(points, chain.publish)
    await chain.finish(paths=2)


async def test_a_known_event_and_a_conflicting_one(chain: Chain, api: Api, receiver: Receiver) -> None:
    await api.subscribe(receiver.url("/hook"))
    await chain.publish()
    other = 0

    async def again() -> None:
        nonlocal other
        other += 1
        async with chain.system.publisher() as publisher:
            await publisher.publish("order.created", {"n": 0}, id="order-0")
            await publisher.publish("order.created", {"other": other}, id="order-0")

    points = [*around(Step.COMMIT, "INSERT_CONFLICT"), *around(Step.COMMIT, "KNOWN_EVENT_KEYS")]
    await chain.kill_at([points[0]], again)
    await chain.kill_at(points[1:], again)
    await chain.finish()
    assert await chain.system.value("SELECT count(*) FROM dead_letters WHERE kind = 'conflict'") == other


async def test_what_is_unreadable_and_the_keeper(chain: Chain, api: Api, receiver: Receiver) -> None:
    await api.subscribe(receiver.url("/hook"))
    sent: list[bytes] = []

    async def junk() -> None:
        sent.append(b"junk %d" % len(sent))
        async with chain.system.broker() as broker:
            await broker.publish(Outgoing(ToEvents("order.created"), Message(sent[-1])), timeout_s=10)
        await chain.publish()

    points = [
        *around(Step.PUBLISH, "ToDead"),
        *around(Step.COMMIT, "KEEP_DEAD_LETTERS"),
        *around(Step.ACK, "hookhare.dead-letters"),
    ]
    await chain.kill_at(points, junk)
    await chain.finish()
    kept = await chain.system.fetch("SELECT body FROM dead_letters WHERE kind = 'unreadable'")
    assert sorted(row["body"] for row in kept) == sorted(sent)


async def test_a_retry(chain: Chain, api: Api, receiver: Receiver) -> None:
    fails = receiver.behave("/hook", Behaviour(fail_first=1))
    await api.subscribe(fails, retry_policy=SOON)

    async def fail_once() -> None:
        receiver.behave("/hook", Behaviour(fail_first=1))
        await chain.publish()

    points = [
        *around(Step.COMMIT, "UPDATE_DELIVERIES"),
        *around(Step.PUBLISH, "ToWorkAfter"),
        *around(Step.COMMIT, "CLAIM_DUE"),
        *around(Step.ACK, "hookhare.work"),
        *(replace(point, nth=2) for point in around(Step.POST, "hook")),
    ]
    await chain.kill_at(points, fail_once)
    await chain.finish()


async def test_a_death(chain: Chain, api: Api, receiver: Receiver) -> None:
    await api.subscribe(receiver.behave("/hook", Behaviour(status=500)), retry_policy=ONCE)
    points = [
        *around(Step.COMMIT, "INSERT_DEAD_LETTERS"),
        *around(Step.PUBLISH, "ToDead"),
        *around(Step.COMMIT, "MARK_DEAD_LETTERS_PUBLISHED"),
        *around(Step.ACK, "hookhare.dead-letters"),
    ]
    await chain.kill_at(points, chain.publish)
    await chain.finish()
    assert await chain.system.statuses() == {"dead": chain.events}


async def test_an_endpoint_that_is_gone(chain: Chain, api: Api, receiver: Receiver) -> None:
    """Every kill leaves it enabled or disabled as a whole; the next 410 disables what was left."""
    points = around(Step.COMMIT, "DISABLE")
    for number, point in enumerate(points):
        url = receiver.behave(f"/gone/{number}", Behaviour(status=410))
        await api.subscribe(url, f"gone.{number}")

        async def publish(event_type: str = f"gone.{number}") -> None:
            await chain.publish(2, event_type)

        await chain.kill_at([point], publish)
    for number in range(len(points)):
        await chain.publish(1, f"gone.{number}")
    async with chain.dispatcher():
        await chain.books.check(deadline_s=60)
    states = await chain.system.fetch("SELECT state FROM subscriptions")
    assert {row["state"] for row in states} == {"disabled"}


async def test_the_feeder(system: System, api: Api, receiver: Receiver, tmp_path: Path) -> None:
    chain = Chain(system, receiver, tmp_path, max_in_hand=16)  # so that an endpoint has one delivery in hand
    await api.subscribe(receiver.url("/hook"))

    async def flood() -> None:
        await chain.publish(4)

    points = [
        *around(Step.COMMIT, "LOCK_ENDPOINTS"),
        *around(Step.COMMIT, "LEASE_ENDPOINTS"),
        *around(Step.COMMIT, "CLAIM_HELD"),
        *(replace(point, nth=2) for point in around(Step.POST, "hook")),
        *(replace(point, nth=2) for point in around(Step.COMMIT, "INSERT_ATTEMPTS")),
        *around(Step.COMMIT, "CLOSE_BACKLOGS"),
    ]
    await chain.kill_at(points, flood)
    await chain.finish()


async def test_a_replay(system: System, api: Api, receiver: Receiver, tmp_path: Path) -> None:
    """Replays POST again on purpose: once for each that was asked for, however often who works through them dies."""
    chain = Chain(system, receiver, tmp_path, batch_rows=2)
    await api.subscribe(receiver.url("/hook"))
    await chain.publish(3)
    async with chain.dispatcher():
        await chain.books.check(3)
    asked = 0

    async def replay() -> None:
        nonlocal asked
        asked += (await api.call("POST", "/v1/replays", {"status": ["delivered"], "tenant": "default"}))["matched"]

    await chain.kill_at([*around(Step.COMMIT, "ADVANCE"), *around(Step.COMMIT, "COMPLETE")], replay)
    await chain.finish()
    assert await system.value("SELECT count(*) FROM replays WHERE state = 'running'") == 0
    done = await system.fetch("SELECT sum(replayed) AS replayed, sum(replayed + skipped) AS matched FROM replays")
    assert done[0]["matched"] == asked
    assert await system.value("SELECT sum(cycle) FROM deliveries") == done[0]["replayed"]


async def test_the_reconciler(chain: Chain, api: Api, receiver: Receiver) -> None:
    await api.subscribe(receiver.behave("/hook", Behaviour(fail_first=1)), retry_policy=SOON)
    claimed = Point(Moment.AFTER, Step.ACK, "hookhare.events")

    async def leave_a_claim() -> None:
        await chain.kill_at([claimed], chain.publish)

    async def leave_a_lease() -> None:
        await chain.kill_at([Point(Moment.AFTER, Step.COMMIT, "LEASE_ENDPOINTS")], leave_a_claim)

    async def lose_a_hint() -> None:
        receiver.behave("/hook", Behaviour(fail_first=1))
        await chain.kill_at([Point(Moment.BEFORE, Step.PUBLISH, "ToWorkAfter")], chain.publish)

    await chain.kill_at(around(Step.COMMIT, "FREE_DEAD_CLAIMS"), leave_a_claim)
    await chain.kill_at(around(Step.COMMIT, "FREE_DEAD_LEASES"), leave_a_lease)
    await chain.kill_at(around(Step.COMMIT, "HOLD_OVERDUE"), lose_a_hint)
    await chain.finish()


async def test_what_an_operators_crash_leaves(chain: Chain, api: Api, receiver: Receiver) -> None:
    """Rows of a subscription that was disabled in between, and held rows behind an open endpoint."""

    async def orphan(event_type: str) -> None:
        url = receiver.behave(f"/{event_type}", Behaviour(status=500))
        await api.subscribe(url, event_type, retry_policy=SOON)
        await chain.publish(1, event_type)
        async with chain.dispatcher(Point(Moment.AFTER, Step.PUBLISH, "ToWorkAfter")) as one:
            await one.wait()
        await chain.books.note_fault()
        await chain.system.fetch("UPDATE subscriptions SET state = 'disabled' WHERE url = $1", url)

    points = [*around(Step.COMMIT, "END_ORPHANED")]
    for number, point in enumerate(points):
        await orphan(f"orphan-{number}")
        await chain.kill_at([point], nothing)
    await api.subscribe(receiver.url("/backlog"), "backlog")
    await chain.publish(1, "backlog")
    async with chain.dispatcher(Point(Moment.AFTER, Step.ACK, "hookhare.events")) as one:
        await one.wait()
    await chain.books.note_fault()
    await chain.system.fetch(
        "UPDATE deliveries SET status = 'held', claimed_by = NULL, claimed_at = NULL WHERE event_type = 'backlog'"
    )
    await chain.kill_at(around(Step.COMMIT, "OPEN_WITH_BACKLOG"), nothing)
    await chain.finish()
    assert await chain.system.statuses() == {"delivered": 1, "dead": len(points)}


async def nothing() -> None:
    """What is there already is provocation enough."""


async def test_a_drain(chain: Chain, api: Api, receiver: Receiver) -> None:
    """Killed while it stops in order: what it gave back is taken over at once, the rest when it is taken for dead."""
    await api.subscribe(receiver.url("/hook"))
    for point in [
        *around(Step.COMMIT, "RELEASE_LEASES"),
        *around(Step.COMMIT, "RETIRE_DISPATCHER"),
        Point(Moment.BEFORE, Step.COMMIT, "RENEW_HEARTBEAT", nth=2),
        Point(Moment.AFTER, Step.COMMIT, "RENEW_HEARTBEAT", nth=2),
    ]:
        await chain.publish()
        async with chain.dispatcher(point) as one:
            assert await one.stop() == -signal.SIGKILL if "HEARTBEAT" not in point.what else await one.wait()
        await chain.books.note_fault()
    await chain.finish()


# Statements that no kill is aimed at, and why. Those of the API are in the API's process, and commit or do not.
EXCUSED = {
    "commit with one that is aimed at": "ACK BURY CLAIM END HOLD_ENDPOINTS HOLD_SUBSCRIPTIONS INSERT_DELIVERIES "
    "INSERT_EVENTS MARK_DEAD_LETTERS_REPLAYED NOTIFY RELEASE RENEW REPLAY SETTLE STILL_MINE STORE",
    "only read or lock": "ADMISSION_VIEW BACKLOG_VIEW CLAIMS_OF ENABLED_AT EVENTS_OF_CLAIMS HELD_ENDPOINTS "
    "LOCK_DELIVERIES LOCK_ENABLED_SUBSCRIPTIONS LOCK_LEASES LOCK_REPLAYABLE LOCK_SUBSCRIPTION_OF "
    "LOCK_UNFINISHED MAY_JUDGE PAST_RETENTION TAKE UNPUBLISHED_DEAD_LETTERS",
    "of the API": "CANCEL DELETE GET INSERT INSERT_TEST_DELIVERY INSERT_TEST_EVENT RETRY SAVE",
    "lost without harm: the breaker is counted anew": "CLOSE_BREAKERS OPEN_BREAKERS",
    "deletes what is past its time, again at the next run": "FORGET_DEAD_LETTERS FORGET_DISPATCHERS",
    "no statements": "AMONG_PICKED CANCELED_BY_OPERATOR COLUMNS DELETED DISABLED_BY_OPERATOR FRESH PACED_ANEW "
    "PAUSED_BY_OPERATOR doc__",
}


def test_no_statement_is_forgotten() -> None:
    aimed_at = Path(__file__).read_text()
    excused = {name for names in EXCUSED.values() for name in names.split()}
    assert [name for name in sorted(statement_names() - excused) if f'"{name}"' not in aimed_at] == []
