"""A thousand events to three endpoints, one of which answers 500 half of the time."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from producer.events import NewEvent
from schemas.ids import EVENT, public_id
from tests.support.books import in_queues
from tests.support.receivers import Behaviour, Receiver, Request
from tests.support.system import Api, DispatcherProcess, System
from tests.support.waiting import eventually

EVENTS = 1000
PATHS = ("/well", "/also-well", "/half")
PATIENT = {"max_attempts": 30, "initial_delay_s": 0.2, "multiplier": 1.0, "max_delay_s": 1.0}


async def subscribe_three(api: Api, receiver: Receiver) -> None:
    receiver.behave("/half", Behaviour(fail_fraction=0.5, fail_status=500))
    for path in PATHS:
        await api.subscribe(receiver.url(path), "order.#", retry_policy=PATIENT)


async def publish_all(system: System, *, first: int = 0, count: int = EVENTS) -> None:
    async with system.publisher() as publisher:
        numbers = range(first, first + count)
        await publisher.publish_many(NewEvent("order.created", {"n": n}, id=f"order-{n}") for n in numbers)


def posts(requests: Sequence[Request], *, status: int = 200) -> Counter[tuple[str, str]]:
    return Counter((request.path, request.webhook_id) for request in requests if request.status == status)


async def history_is_complete(system: System) -> None:
    """Every attempt that the endpoints saw is recorded, and the last of each delivery is its success."""
    rows = await system.fetch(
        "SELECT d.attempts, count(a.*) AS recorded, count(a.*) FILTER (WHERE a.outcome = 'delivered') AS delivered "
        "FROM deliveries d LEFT JOIN attempts a ON a.delivery_id = d.id AND NOT a.superseded GROUP BY d.id, d.attempts"
    )
    assert all(row["attempts"] == row["recorded"] and row["delivered"] == 1 for row in rows)


async def recorded_as_delivered(system: System) -> set[tuple[str, str]]:
    rows = await system.fetch(
        "SELECT s.url, d.event_id FROM deliveries d JOIN subscriptions s ON s.id = d.subscription_id "
        "WHERE d.status = 'delivered'"
    )
    return {(urlsplit(row["url"]).path, public_id(EVENT, row["event_id"])) for row in rows}


async def queues_are_empty(system: System) -> None:
    """Nothing is in any queue any more, nor on the ladder. The last hints may still be on their way."""

    async def empty() -> bool:
        return not await in_queues(system)

    await eventually(empty, lambda: in_queues(system), deadline_s=20)


async def test_every_one_is_delivered_once_and_the_history_is_complete(
    system: System, api: Api, receiver: Receiver
) -> None:
    # The liveness of production: on a busy machine nobody is taken for dead, so nothing may come twice.
    async with system.dispatcher(liveness_s=12, heartbeat_s=2, renewal_timeout_s=3, begin_margin_s=1):
        await subscribe_three(api, receiver)
        await publish_all(system)
        await system.settled({"delivered": 3 * EVENTS}, deadline_s=120)
    taken = posts(receiver.requests)
    assert len(taken) == 3 * EVENTS
    assert set(taken.values()) == {1}
    recorded = await system.value("SELECT count(*) FROM attempts")
    assert recorded == len(receiver.requests)
    await history_is_complete(system)
    await queues_are_empty(system)


async def test_with_the_dispatcher_killed_in_the_middle_every_one_is_still_delivered(
    system: System, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    await subscribe_three(api, receiver)
    async with DispatcherProcess(system, tmp_path / "first.log") as first:
        await publish_all(system)

        async def in_the_middle() -> bool:
            return len(receiver.requests) > EVENTS

        await eventually(in_the_middle, deadline_s=60)
        first.kill()
        await first.wait()
        seen = set(posts(receiver.requests))
        uncommitted = seen - await recorded_as_delivered(system)
    async with DispatcherProcess(system, tmp_path / "second.log"):
        await system.settled({"delivered": 3 * EVENTS}, deadline_s=120)
    taken = posts(receiver.requests)
    assert len(taken) == 3 * EVENTS
    # Only a POST that had begun and whose outcome was not committed comes again, once.
    repeated = {key: times for key, times in taken.items() if times > 1}
    assert set(repeated.values()) <= {2}
    assert set(repeated) <= uncommitted
    await history_is_complete(system)
    await queues_are_empty(system)
