"""The broker or the database is away while there is more to do than memory may hold: all of it is done in the end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import asyncpg

from producer.events import NewEvent
from tests.support.memory import watch_memory
from tests.support.parts import Parts, parts_in_sight
from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, DispatcherProcess, System
from tests.support.waiting import eventually
from tests.support.wires import DEADLINE_S, Wires

KB, MB = 1024, 1024 * 1024
EVENTS, SIZE_BYTES = 1_500, 64 * KB  # 96 MB
# Those unacked, those in hand, the same once more on their way between the two, and what libraries keep.
LIMITS: dict[str, Any] = {"prefetch": 64, "max_in_hand": 64, "max_in_hand_bytes": 4 * MB}
GROWTH_BYTES = 40 * MB
LONG_S = 3.0


async def test_what_comes_while_the_database_is_away_stays_in_the_broker(
    wires: Wires, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    await api.subscribe(receiver.url("/good"))
    limits = {**LIMITS, "batch_rows": 64, "max_event_bytes": 2 * SIZE_BYTES, "database_timeout_s": 1}
    async with DispatcherProcess(wires.through, tmp_path / "log", **limits) as dispatcher:
        async with wires.direct.publisher() as publisher, watch_memory(dispatcher.pid) as memory:
            wires.database.stall()
            for _ in range(EVENTS // 100):
                await publisher.publish_many(NewEvent("big", {"filler": "x" * SIZE_BYTES}) for _ in range(100))
            await asyncio.sleep(LONG_S)  # in which it could take them all
            wires.database.resume()
            await wires.direct.settled({"delivered": EVENTS}, deadline_s=DEADLINE_S)
        assert memory.grown_bytes < GROWTH_BYTES
    assert len({request.webhook_id for request in receiver.requests}) == EVENTS


async def test_outcomes_that_cannot_be_committed_keep_their_places(wires: Wires, api: Api, receiver: Receiver) -> None:
    """The database takes events, and no attempts: so nothing more is taken in hand, and nothing more POSTed."""
    for number in range(10):
        await api.subscribe(receiver.url(f"/{number}"))
    async with wires.through.dispatcher(max_in_hand=64, database_timeout_s=60), wires.direct.publisher() as publisher:
        async with no_attempts(wires.direct):
            await publisher.publish_many(NewEvent("good", {"n": number}) for number in range(50))
            await eventually(lambda: admitted(wires.direct, 500), deadline_s=DEADLINE_S)
            await eventually(lambda: everybody_waits(receiver), deadline_s=DEADLINE_S)
            assert len(receiver.requests) <= 64
        await wires.direct.settled({"delivered": 500}, deadline_s=DEADLINE_S)
    assert len(receiver.requests) == 500


async def test_hints_wait_for_the_broker_in_bounded_number(wires: Wires, api: Api, receiver: Receiver) -> None:
    """What is over is left to the reconciler, which holds every retry whose hint did not come."""
    failing = receiver.behave("/failing", Behaviour(fail_first=300))
    subscription = await api.subscribe(failing, retry_policy={"delays_s": [1.0] * 20})
    await api.call("PATCH", f"/v1/subscriptions/{subscription['id']}", {"state": "paused"})
    limits = {"batch_rows": 1, "broker_timeout_s": 30, "reconcile_grace_s": 1}  # a hint for each delivery
    with parts_in_sight() as parts:
        async with wires.through.dispatcher(**limits), most_hints(parts) as most:
            async with wires.direct.publisher() as publisher:
                await publisher.publish_many(NewEvent("failing", {"n": number}) for number in range(300))
            await wires.direct.settled({"held": 300}, deadline_s=DEADLINE_S)
            wires.broker.stall()
            await api.call("PATCH", f"/v1/subscriptions/{subscription['id']}", {"state": "enabled"})
            await receiver.wait_for(300, deadline_s=DEADLINE_S)
            wires.broker.resume()
            await wires.direct.settled({"delivered": 300}, deadline_s=DEADLINE_S)
    assert most == [64]  # more had to wait, and did not


@asynccontextmanager
async def no_attempts(system: System) -> AsyncIterator[None]:
    """Somebody has locked their table."""
    connection = await asyncpg.connect(system.database_url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE attempts IN EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


async def admitted(system: System, number: int) -> bool:
    return bool(await system.value("SELECT count(*) FROM deliveries") == number)


async def everybody_waits(receiver: Receiver) -> bool:
    """Whether no request has come for as long as the feeder would need to bring several."""
    return bool(receiver.requests and monotonic() - receiver.requests[-1].at_s > 1)


@asynccontextmanager
async def most_hints(parts: Parts) -> AsyncIterator[list[int]]:
    """The most batches of hints that were on their way at once, while the context is open."""
    most = [0]

    async def look() -> None:
        while True:
            most[0] = max(most[0], len(parts.hints._tasks))
            await asyncio.sleep(0.002)

    looking = asyncio.create_task(look())
    try:
        yield most
    finally:
        looking.cancel()
