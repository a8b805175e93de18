"""A tenant's flood for an endpoint that hangs is its own: another tenant's events are attempted all the same."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, DispatcherProcess, System
from tests.support.waiting import eventually

FLOOD, QUIET = 1000, 50
PLACES = 320  # of each dispatcher


async def test_three_dispatchers_have_places_left_for_a_quiet_tenant(
    system: System, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    hang = asyncio.Event()
    await api.subscribe(receiver.behave("/hangs", Behaviour(hold=hang)), tenant="noisy", timeout_s=60)
    await api.subscribe(receiver.url("/quiet"), tenant="quiet")

    async def admitted() -> bool:
        return bool(await system.value("SELECT count(*) = $1 FROM events WHERE tenant = 'noisy'", FLOOD))

    async with AsyncExitStack() as stack:
        for number in range(3):
            log = tmp_path / f"{number}.log"
            await stack.enter_async_context(DispatcherProcess(system, log, max_in_hand=PLACES, drain_s=0.1))
        async with system.publisher() as publisher:
            await asyncio.gather(*(publisher.publish("order", {"n": n}, tenant="noisy") for n in range(FLOOD)))
            await asyncio.gather(*(publisher.publish("order", {"n": n}, tenant="quiet") for n in range(QUIET)))
        await receiver.wait_for(QUIET, path="/quiet", deadline_s=60)
        await eventually(admitted, deadline_s=60)
        rows = await system.fetch("SELECT status, claimed_by FROM deliveries WHERE tenant = 'noisy'")
        assert {row["status"] for row in rows} <= {"held", "pending"}
        assert sum(row["claimed_by"] is not None for row in rows) <= 3 * (PLACES // 16 + 1)
        hang.set()
        await system.settled({"delivered": FLOOD + QUIET}, deadline_s=120)
