"""The cap in flight: endpoints that hang, or ask for less, leave the places to those that are well."""

import asyncio
import random
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from time import monotonic

from producer.publisher import EventPublisher
from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, DispatcherProcess, System
from tests.support.waiting import eventually

HANGING, EVENTS = 110, 9  # so many endpoints, so many events for each
LATER, LATER_EVENTS = 40, 4  # that begin to hang when the others do
ALL = HANGING * EVENTS + LATER * LATER_EVENTS
PLACES = 320  # of each dispatcher: a third of the events would fill them
OLD_S = 1.5  # of a POST, in seconds, before the next events come: its endpoint's cap is low by then
WELL, WELL_EVENTS = 20, 5


async def test_endpoints_that_hang_leave_places_for_the_others_in_three_dispatchers(
    system: System, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    hang = asyncio.Event()
    receiver.behave("/hangs", Behaviour(hold=hang))
    for number in range(HANGING + LATER):
        await api.subscribe(receiver.url("/hangs"), f"hangs.n{number}", timeout_s=60)
    for number in range(WELL):
        await api.subscribe(receiver.url("/well"), f"well.n{number}")
    async with AsyncExitStack() as stack:
        for number in range(3):
            log = tmp_path / f"{number}.log"
            await stack.enter_async_context(DispatcherProcess(system, log, max_in_hand=PLACES, drain_s=0.1))
        publisher = await stack.enter_async_context(system.publisher())
        for n in range(1, EVENTS + 1):
            await publish(publisher, "hangs", range(HANGING))
            await eventually(partial(all_hang, system, receiver, n * HANGING), deadline_s=60)
        for n in range(1, LATER_EVENTS + 1):
            await publish(publisher, "hangs", range(HANGING, HANGING + LATER))
            events = HANGING * EVENTS + n * LATER
            await eventually(partial(all_hang, system, receiver, events), deadline_s=60)
        for _ in range(WELL_EVENTS):
            await publish(publisher, "well", range(WELL))
        await receiver.wait_for(WELL * WELL_EVENTS, path="/well", deadline_s=30)
        assert receiver.behaviour("/hangs").in_flight == len(receiver.to("/hangs")) >= HANGING  # none has ended
        hang.set()
        await system.settled({"delivered": ALL + WELL * WELL_EVENTS}, deadline_s=90)


async def publish(publisher: EventPublisher, name: str, numbers: range) -> None:
    """One event for each, in any order: if they came in turn, all of an endpoint's would go to one dispatcher."""
    order = random.sample(numbers, len(numbers))
    await asyncio.gather(*(publisher.publish(f"{name}.n{number}", {}) for number in order))


async def all_hang(system: System, receiver: Receiver, events: int) -> bool:
    """Whether so many events are admitted, and what is in hand of them has been waiting for its answer for a while."""
    row = await system.fetch("SELECT count(*) AS stored, count(claimed_by) AS in_hand FROM deliveries")
    came = receiver.to("/hangs")
    return row[0]["stored"] == events and len(came) == row[0]["in_hand"] and came[-1].at_s < monotonic() - OLD_S


async def test_while_a_retry_after_runs_nothing_else_begins_and_no_attempt_is_spent(
    system: System, api: Api, receiver: Receiver
) -> None:
    """Neither what waits in hand when the answer comes, nor what comes later; each is held once, and fed once."""
    rest_s, hold = 4, asyncio.Event()
    busy = Behaviour(fail_first=1, fail_status=429, headers={"Retry-After": str(rest_s)}, hold=hold)
    await api.subscribe(receiver.behave("/busy", busy), retry_policy={"delays_s": [1.0]})
    async with system.publisher() as publisher:
        await asyncio.gather(*(publisher.publish("order.created", {"n": number}) for number in range(20)))
        async with system.dispatcher(endpoint_max_in_flight=1):
            await eventually(partial(all_in_hand, system, 20))
            answered_s = monotonic()
            hold.set()
            await system.settled({"retrying": 1, "held": 19})
            await asyncio.gather(*(publisher.publish("order.created", {"n": number}) for number in range(20, 30)))
            await system.settled({"delivered": 30})
    _, *others = receiver.requests
    assert min(one.at_s for one in others) >= answered_s + rest_s
    assert len(others) == 30
    assert await system.value("SELECT max(fence) FROM deliveries") <= 3


async def all_in_hand(system: System, events: int) -> bool:
    return bool(await system.value("SELECT count(claimed_by) = $1 FROM deliveries", events))
