"""A dispatcher that is killed while it has work in hand."""

import asyncio
from collections import Counter
from pathlib import Path

from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, DispatcherProcess, System

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
