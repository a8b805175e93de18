"""Dispatchers that are killed, or stopped for longer than they may be, while they have work in hand."""

import asyncio
from collections import Counter
from pathlib import Path

from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, DispatcherProcess, System
from tests.support.waiting import eventually

EVENTS = 40


async def publish(system: System) -> None:
    async with system.publisher() as publisher:
        await asyncio.gather(*(publisher.publish("order.created", {"n": n}, id=f"order-{n}") for n in range(EVENTS)))


async def test_the_work_of_a_killed_dispatcher_is_taken_over(
    system: System, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    """Killed amid its POSTs: those repeat, with the same id; what had not begun is POSTed once."""
    answers = asyncio.Event()
    await api.subscribe(receiver.behave("/hook", Behaviour(hold=answers)))
    async with DispatcherProcess(system, tmp_path / "killed.log", endpoint_max_in_flight=4) as killed:
        await publish(system)
        await receiver.wait_for(4)
        killed.kill()
        await killed.wait()
        answers.set()
    begun = {request.webhook_id for request in receiver.requests}
    async with DispatcherProcess(system, tmp_path / "second.log"):
        await system.settled({"delivered": EVENTS}, deadline_s=60)
    times = Counter(request.webhook_id for request in receiver.requests)
    assert len(times) == EVENTS
    assert {one for one, number in times.items() if number > 1} == begun
    assert max(times.values()) == 2


async def test_a_dispatcher_stopped_past_its_liveness_begins_nothing_that_it_had_claimed_before(
    system: System, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    """What it had begun comes twice, and its late outcomes change nothing; what waited in its hands comes once."""
    hanging = asyncio.Event()
    await api.subscribe(receiver.behave("/hook", Behaviour(hold=hanging)))
    log = tmp_path / "stopped.log"
    async with DispatcherProcess(system, log, endpoint_max_in_flight=4) as stopped:
        await publish(system)
        await receiver.wait_for(4)

        async def all_in_hand() -> bool:
            return bool(await system.value("SELECT count(*) FROM deliveries WHERE claimed_by IS NOT NULL") == EVENTS)

        await eventually(all_in_hand, system.statuses)
        stopped.pause()
        receiver.behave("/hook", Behaviour())  # those that hang go on hanging
        async with DispatcherProcess(system, tmp_path / "second.log"):
            await system.settled({"delivered": EVENTS}, deadline_s=60)
            stopped.resume()

            async def resumed() -> bool:
                return b"heartbeat.resumed" in log.read_bytes()

            await eventually(resumed, deadline_s=30)
            hanging.set()

            async def superseded() -> bool:
                return bool(await system.value("SELECT count(*) FROM attempts WHERE superseded") == 4)

            await eventually(superseded, deadline_s=30)
        assert await stopped.stop() == 0
    times = Counter(request.webhook_id for request in receiver.requests)
    assert len(times) == EVENTS
    assert max(times.values()) == 2
    assert sum(times.values()) == EVENTS + 4
    assert await system.statuses() == {"delivered": EVENTS}
    assert await system.value("SELECT count(*) FROM attempts") == EVENTS + 4
